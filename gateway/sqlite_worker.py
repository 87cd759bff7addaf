"""
Threads for SQLite: jobs in, outcomes back to the event loop.

SQLite calls wait for disks, so they do not belong on the event loop. A `Worker` owns one thread, does the
jobs it is given in order, and reports each with a single wake-up of the loop. There is no pool: a connection
that only one thread ever touches needs no lock, and the order of jobs is the order of their effects.

`Turns` is the group commit, whatever is committed: one job at a time, and what is asked for meanwhile gathers
for the next one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Done = Callable[[Any, Exception | None], None]
"""Called on the loop with a job's result, or with None and what it raised."""


@dataclass(frozen=True, slots=True)
class Job:
    """Work for a thread, and what hears on the event loop what came of it."""

    work: Callable[[], Any]
    done: Done


class Worker:
    """
    A named thread that does jobs one after the other; made and used on the event loop.

    The thread is a daemon, so a program that dies without `stop` does not hang; a job cut short by that is
    what SQLite's transactions are for.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; outcomes go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    def run(self, job: Job) -> None:
        """Queue a job for the thread."""
        self._jobs.put(job)

    async def call(self, work: Callable[[], T]) -> T:
        """Have `work` done by the thread; return what it returns, raise what it raises."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(result: T, error: Exception | None) -> None:
            if future.done():  # whoever waited was cancelled
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.run(Job(work, done))
        return await future

    def stop(self) -> None:
        """Let the thread finish what is queued, and wait for its end. Idempotent."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        """Do jobs until told to stop. What a job raises is its outcome, never the end of the thread."""
        while (job := self._jobs.get()) is not None:
            try:
                result, error = job.work(), None
            except Exception as raised:  # noqa: BLE001  (handed to whoever asked for the job)
                result, error = None, raised
            self._report(job.done, result, error)
            del job, result, error  # an idle thread must not keep the last batch alive

    def _report(self, done: Done, result: object, error: Exception | None) -> None:
        """Wake the loop with an outcome. A loop that is closed has nobody left who waits."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(done, result, error)
        except RuntimeError:
            if not self._loop.is_closed():
                raise


class Turns:
    """
    Gives a worker one job at a time, as long as `choose` finds one; lives on the event loop.

    Args:
        worker: does the jobs.
        choose: returns the next job, or None if there is none now; then it is asked again after `wake`.
    """

    def __init__(self, worker: Worker, choose: Callable[[], Job | None]) -> None:
        self._worker = worker
        self._choose = choose
        self._working = False
        self._woken = False
        self._idle: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """
        Look for a job soon.

        Not at once: other callers that are ready in this turn of the loop shall share the job.
        """
        if not self._working and not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_soon(self.go_on)

    def go_on(self) -> None:
        """Start the next job now, if none is running; a job's `done` may call it before its own long work."""
        self._woken = False
        if self._working:
            return
        job = self._choose()
        if job is not None:
            self._working = True
            self._worker.run(Job(job.work, lambda result, error: self._finish(job.done, result, error)))
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def finished(self) -> None:
        """Wait until there is no job left; for one caller, once."""
        self._idle = asyncio.get_running_loop().create_future()
        self.go_on()
        await self._idle

    def _finish(self, done: Done, result: object, error: Exception | None) -> None:
        self._working = False
        try:
            done(result, error)
        finally:
            self.go_on()
