"""
The runtime: takes as many jobs as may run at a time, runs the handler for each, and says what came of it.

An async handler runs on the loop, any other in a thread of its own. A thread cannot be stopped: one that is
past its time is left to itself, its request is given up, and another takes its place. When too many are left
so, the worker ends, for whoever keeps it running to start it afresh.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable
from typing import Any, Final

import msgspec

from gateway.handling.data import Unreadable
from gateway.handling.loading import Handler, described, is_async
from gateway.handling.request import Refused, Request
from gateway.handling.source import Job, Source, SourceError

log = logging.getLogger(__name__)

REPORTS: Final = 3
"""How often a worker reports while a lease lasts."""

PROGRESS_SECONDS: Final = 0.25
"""Between two reports, however often a handler has something to say."""

STRAYS: Final = 2
"""Threads left to themselves for each that may run at a time, before the worker ends."""


class Runtime:
    """
    Runs a handler.

    Args:
        source: where jobs come from.
        handler: called with a `Request`; what it returns is the result.
        concurrency: how many jobs may run at a time.
        timeout: seconds for one of them.

    Attributes:
        done: jobs whose result was taken.
        failed: attempts that ended badly.
        strays: threads that were left to themselves and still run.
    """

    def __init__(self, source: Source, handler: Handler, *, concurrency: int, timeout: float) -> None:
        self.done = 0
        self.failed = 0
        self.strays = 0
        self._source = source
        self._handler = handler
        self._is_async = is_async(handler)
        self._concurrency = concurrency
        self._timeout = timeout
        self._running: dict[asyncio.Task[None], Job] = {}
        self._freed = asyncio.Event()
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Take nothing more; `run` returns when what runs is over."""
        self._draining.set()

    async def run(self, drain_seconds: float) -> None:
        """
        Work until drained.

        Args:
            drain_seconds: how long what runs then may take; the rest is given back.

        Raises:
            SourceError: there is nothing to be had any more, or too many threads hang.
        """
        try:
            while not self._draining.is_set():
                self._freed.clear()
                free = self._concurrency - len(self._running)
                if not free:
                    await self._either(self._freed.wait())
                    continue
                for job in await self._take(free):
                    task = asyncio.create_task(self._work(job))
                    self._running[task] = job
                    task.add_done_callback(self._ended)
                if self.strays >= STRAYS * self._concurrency:
                    raise SourceError(
                        f"{self.strays} calls of the handler hang although their time of {self._timeout:g} "
                        "seconds is over, and threads cannot be stopped: start the worker again"
                    )
        finally:
            await self._finish(drain_seconds)

    async def _take(self, free: int) -> list[Job]:
        taking = asyncio.ensure_future(self._source.take(free))
        try:
            await self._either(taking)
            return taking.result() if taking.done() else []
        finally:
            if not taking.done():
                taking.cancel()
                await asyncio.wait([taking])
                if not taking.cancelled() and taking.exception() is None:
                    for job in taking.result():  # they came at the last moment
                        await self._source.release(job)

    async def _either(self, other: Awaitable[Any]) -> None:
        """Wait for something, or until drained."""
        draining = asyncio.ensure_future(self._draining.wait())
        waited = asyncio.ensure_future(other)
        try:
            await asyncio.wait([draining, waited], return_when=asyncio.FIRST_COMPLETED)
        finally:
            draining.cancel()
            if not asyncio.isfuture(other):
                waited.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        self._freed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("worker.broken", exc_info=error)

    async def _finish(self, seconds: float) -> None:
        """Wait for what runs, then give back the rest."""
        left = dict(self._running)
        if left:
            log.info("worker.draining", extra={"running": len(left)})
            await asyncio.wait(list(left), timeout=seconds)
        for task, job in left.items():
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
                await self._source.release(job)
                log.warning("worker.released", extra={"token": job.token})

    # --- one job --------------------------------------------------------------------------------------------

    async def _work(self, job: Job) -> None:
        """Run the handler for one job, and say what came of it."""
        news = _News(asyncio.get_running_loop())
        request = Request(job.token, job.service, job.attempt, job.data, news.put)
        keeping = asyncio.create_task(self._keep(job, news))
        calling = asyncio.create_task(self._call(request))
        try:
            await asyncio.wait([keeping, calling], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (keeping, calling):
                task.cancel()
            await asyncio.wait([keeping, calling])
        if not keeping.cancelled() and (error := keeping.exception()) is not None:
            log.error("worker.broken", exc_info=error)
        if calling.cancelled():
            log.warning("worker.lost", extra={"token": job.token, "attempt": job.attempt})
            return
        await self._settle(job, calling)

    async def _settle(self, job: Job, calling: asyncio.Task[bytes]) -> None:
        error = calling.exception()
        if error is None:
            taken = await self._source.complete(job, calling.result())
            self.done += taken
        else:
            reason, again = _judged(error)
            detail = str(error) if reason != "error" else described(error)
            log.warning(
                "worker.failed", extra={"token": job.token, "reason": reason, "attempt": job.attempt},
                exc_info=error if reason == "error" else None,
            )  # fmt: skip
            self.failed += 1
            taken = await self._source.fail(job, reason, detail, again=again)
        if not taken:
            log.warning("worker.untaken", extra={"token": job.token, "attempt": job.attempt})

    async def _call(self, request: Request) -> bytes:
        """Call the handler; return its result as JSON."""
        if isinstance(request.data, Unreadable):
            raise Refused(request.data.why)
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                if self._is_async:
                    result = await self._handler(request)
                else:
                    result = await self._in_thread(request)
        except TimeoutError:
            if limit.expired():
                raise _TimedOut(f"it took more than {self._timeout:g} seconds") from None
            raise
        try:
            return msgspec.json.encode(result)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise _NoResult(f"what the handler returned cannot be JSON: {error}") from None

    async def _in_thread(self, request: Request) -> Any:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any] = loop.create_future()
        left = False

        def call() -> None:
            try:
                result, error = self._handler(request), None
            except BaseException as raised:  # noqa: BLE001  # SystemExit too must not end the thread in silence
                result, error = None, raised
            with contextlib.suppress(RuntimeError):  # the worker has ended meanwhile
                loop.call_soon_threadsafe(settle, result, error)

        def settle(result: Any, error: BaseException | None) -> None:
            if left:
                self.strays -= 1
            if outcome.done():
                return
            if error is None:
                outcome.set_result(result)
            elif isinstance(error, Exception):
                outcome.set_exception(error)
            else:
                outcome.set_exception(RuntimeError(f"the handler raised {described(error)}"))

        threading.Thread(target=call, name=f"handler {request.token}", daemon=True).start()
        try:
            return await outcome
        except asyncio.CancelledError:
            left = True
            self.strays += 1
            raise

    async def _keep(self, job: Job, news: _News) -> None:
        """Report until cancelled; return when the job is not ours any more."""
        ours = True
        while ours:
            ours = await self._source.progress(job, await news.next(job.seconds / REPORTS))
            await asyncio.sleep(PROGRESS_SECONDS if ours else 0)


class _TimedOut(Exception):
    """The handler took too long."""


class _NoResult(Exception):
    """What the handler returned cannot be a result."""


class _News:
    """The newest progress of one request, put in from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._value: bytes | None = None
        self._there = asyncio.Event()

    def put(self, value: bytes) -> None:
        """Take a progress in place of one that was not sent yet."""
        self._value = value
        with contextlib.suppress(RuntimeError):  # the worker has ended; a stray thread does not know
            self._loop.call_soon_threadsafe(self._there.set)

    async def next(self, seconds: float) -> bytes | None:
        """Return the next progress; None if there was none for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._there.wait()
        except TimeoutError:
            return None
        self._there.clear()
        value, self._value = self._value, None
        return value


def _judged(error: BaseException) -> tuple[str, bool]:
    """Return the reason that an exception is, and whether trying again can help."""
    if isinstance(error, Refused):
        return "refused", False
    if isinstance(error, _NoResult):
        return "result", False
    if isinstance(error, _TimedOut):
        return "timeout", True
    return "error", True
