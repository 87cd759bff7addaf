"""
The host: notices that the server our application runs in is going away, when that server is not our own.

No ASGI message says so: a server first waits for its requests to end, which streams never do, and then ends
the lifespan. sse-starlette knows (it looks at uvicorn), so it is asked, as long as there is anybody to tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final

from sse_starlette.sse import AppStatus

LOOK_SECONDS: Final = 0.25
"""How often it is asked; sse-starlette itself looks twice a second."""


class HostWatch:
    """
    Watches the host while requests are being answered: enter it for each.

    Args:
        tasks: owns the one task of it.
        leave: called, once, when the host is going away.
    """

    def __init__(self, tasks: asyncio.TaskGroup, leave: Callable[[], None]) -> None:
        self._tasks = tasks
        self._leave = leave
        self._requests = 0
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._requests += 1
        if self._watch is None:
            self._watch = self._tasks.create_task(self._look())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._requests -= 1
        if not self._requests and self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _look(self) -> None:
        while not AppStatus.should_exit:  # noqa: ASYNC110  # a flag of another library, which has no event
            await asyncio.sleep(LOOK_SECONDS)
        self._leave()
