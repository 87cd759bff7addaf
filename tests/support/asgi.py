"""An ASGI server of one request, in which the test decides when what is sent goes through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message

from tests.support.clients import DEADLINE


class AsgiExchange:
    """
    One request and what the application makes of it.

    Args:
        on_send: awaited with each message before it counts as sent: a slow or broken network.

    Attributes:
        sent: the messages that went through.
    """

    def __init__(self, on_send: Callable[[Message], Awaitable[None]] | None = None) -> None:
        self.sent: list[Message] = []
        self._on_send = on_send
        self._received: asyncio.Queue[Message] = asyncio.Queue()
        self._changed = asyncio.Event()

    def tell(self, message: Message) -> None:
        """Give the application a message of the client's."""
        self._received.put_nowait(message)

    async def receive(self) -> Message:
        return await self._received.get()

    async def send(self, message: Message) -> None:
        if self._on_send is not None:
            await self._on_send(message)
        self.sent.append(message)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on what was sent holds."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    @property
    def body(self) -> bytes:
        """The body that went through so far."""
        return b"".join(each.get("body", b"") for each in self.sent if each["type"] == "http.response.body")


def scope_of(
    path: str, query: str = "", *headers: tuple[str, str], kind: str = "http", **members: Any
) -> Message:
    """Return the scope of a GET request, or (kind "websocket") of a handshake."""
    scope: Message = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http" if kind == "http" else "ws",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        **members,
    }
    if kind == "http":
        scope["method"] = "GET"
    return scope


@asynccontextmanager
async def answering(
    application: ASGIApp, scope: Message, exchange: AsgiExchange
) -> AsyncIterator[asyncio.Task[None]]:
    """Have the application answer a request; at the end the client leaves, and the answer must end."""
    if scope["type"] == "http":
        exchange.tell({"type": "http.request", "body": b"", "more_body": False})
    task = asyncio.ensure_future(application(scope, exchange.receive, exchange.send))
    try:
        yield task
    finally:
        exchange.tell({"type": f"{scope['type']}.disconnect", "code": 1006})
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(task, return_exceptions=True)
