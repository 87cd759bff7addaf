"""
One thread for one SQLite connection: jobs in, outcomes back to the event loop.

SQLite calls wait for disks, so they do not belong on the event loop. A worker owns one thread, does the jobs it is
given in order, and reports each with a single wake-up of the loop. There is no pool: a connection that only one
thread ever touches needs no lock, and the order of jobs is the order of their effects.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Done = Callable[[Any, Exception | None], None]
"""Called on the loop with the job's result, or with None and what it raised."""


class Worker:
    """
    A named thread that does jobs one after the other; made and used on the event loop.

    The thread is a daemon, so a program that dies without `stop` does not hang; a job cut short by that is what
    SQLite's transactions are for.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Done] | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; outcomes go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    def run(self, job: Callable[[], T], done: Callable[[T | None, Exception | None], None]) -> None:
        """Queue `job` for the thread; `done` hears on the event loop what came of it."""
        self._jobs.put((job, done))

    async def call(self, job: Callable[[], T]) -> T:
        """Have `job` done by the thread; return what it returns, raise what it raises."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(result: T | None, error: Exception | None) -> None:
            if future.done():  # whoever waited was cancelled
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # a job that raised nothing returned a T

        self.run(job, done)
        return await future

    def stop(self) -> None:
        """Let the thread finish what is queued, and wait for its end. Idempotent."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        """Do jobs until told to stop. What a job raises is its outcome, never the end of the thread."""
        while (item := self._jobs.get()) is not None:
            job, done = item
            try:
                result, error = job(), None
            except Exception as raised:  # noqa: BLE001  (handed to whoever asked for the job)
                result, error = None, raised
            self._report(done, result, error)
            del item, job, done, result, error  # an idle thread must not keep the last batch alive

    def _report(self, done: Done, result: object, error: Exception | None) -> None:
        """Wake the loop with an outcome; a loop that is gone has nobody left who waits."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(done, result, error)
        except RuntimeError:  # the loop was closed without stopping us
            if not self._loop.is_closed():
                raise
