"""The runtime of a worker, on a source in memory that is a source like any other."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from gateway.handling import Refused, Request
from gateway.handling.data import Unreadable
from gateway.handling.loading import Handler
from gateway.handling.runtime import STRAYS, Runtime
from gateway.handling.source import Job, SourceError
from tests.support.accounts import until

DEADLINE = 30.0


class Memory:
    """Jobs in memory."""

    def __init__(self, *data: Any, seconds: float = 30.0) -> None:
        self.jobs = deque(
            Job(f"lease-{number}", f"token-{number}", "reports", 1, each, seconds)
            for number, each in enumerate(data)
        )
        self.ends: dict[str, Any] = {}
        self.progresses: list[tuple[str, Any]] = []
        self.asked: list[int] = []
        self.lost: set[str] = set()
        self.ended = asyncio.Event()

    async def take(self, most: int) -> list[Job]:
        self.asked.append(most)
        if not self.jobs:
            await asyncio.Event().wait()
        return [self.jobs.popleft() for _ in range(min(most, len(self.jobs)))]

    async def progress(self, job: Job, value: bytes | None) -> bool:
        self.progresses.append((job.token, None if value is None else msgspec.json.decode(value)))
        return job.token not in self.lost

    async def complete(self, job: Job, result: bytes) -> bool:
        return self._end(job, ("done", msgspec.json.decode(result)))

    async def fail(self, job: Job, reason: str, detail: str, *, again: bool) -> bool:
        return self._end(job, (reason, detail, again))

    async def release(self, job: Job) -> None:
        self._end(job, ("released",))

    def _end(self, job: Job, how: Any) -> bool:
        self.ends[job.token] = how
        self.ended.set()
        return job.token not in self.lost

    async def until(self, count: int) -> None:
        """Wait until so many jobs have ended."""
        async with asyncio.timeout(DEADLINE):
            while len(self.ends) < count:
                self.ended.clear()
                await self.ended.wait()


@asynccontextmanager
async def running(
    source: Memory, handler: Handler, concurrency: int = 1, limit: float = 30, drain: float = 30
) -> AsyncIterator[Runtime]:
    runtime = Runtime(source, handler, concurrency=concurrency, timeout=limit)
    task = asyncio.create_task(runtime.run(drain))
    try:
        yield runtime
    finally:
        runtime.drain()
        async with asyncio.timeout(DEADLINE):
            await task


async def _async_echo(request: Request) -> Any:
    await asyncio.sleep(0)
    return [request.data, request.attempt, request.token, request.service]


def _echo(request: Request) -> Any:
    return [request.data, request.attempt, request.token, request.service]


class _Called:
    async def __call__(self, request: Request) -> Any:
        return await _async_echo(request)


@pytest.mark.parametrize("handler", [_async_echo, _echo, _Called(), functools.partial(_echo)])
async def test_every_kind_of_handler(handler: Handler) -> None:
    """A function, a coroutine function, an object that is called."""
    source = Memory({"a": 1}, None)
    async with running(source, handler) as runtime:
        await source.until(2)
    assert source.ends["token-0"] == ("done", [{"a": 1}, 1, "token-0", "reports"])
    assert source.ends["token-1"][1][0] is None
    assert runtime.done == 2


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("outcome", "end"),
    [
        (lambda: _raise(ValueError("bad\nthing")), ("error", "ValueError: bad thing", True)),
        (lambda: _raise(Refused("never")), ("refused", "never", False)),
        (lambda: _raise(SystemExit(1)), ("error", "RuntimeError: the handler raised SystemExit: 1", True)),
        (lambda: _raise(TimeoutError("its own")), ("error", "TimeoutError: its own", True)),
        (
            lambda: _raise(KeyboardInterrupt()),
            ("error", "RuntimeError: the handler raised KeyboardInterrupt", True),
        ),
    ],
)
async def test_what_a_handler_raises(outcome: Any, end: Any) -> None:
    """It is the reason, and the worker goes on."""
    source = Memory("bad", "good")
    async with running(source, lambda request: outcome() if request.data == "bad" else "fine") as runtime:
        await source.until(2)
    assert source.ends == {"token-0": end, "token-1": ("done", "fine")}
    assert (runtime.done, runtime.failed) == (1, 1)


async def test_what_cannot_be_read_fails_its_request() -> None:
    """The handler does not see it, and the next one is done."""
    source = Memory(Unreadable("nobody can read this"), "good")
    async with running(source, lambda request: str(request.data)) as runtime:
        await source.until(2)
    assert source.ends == {
        "token-0": ("refused", "nobody can read this", False),
        "token-1": ("done", "good"),
    }
    assert (runtime.done, runtime.failed) == (1, 1)


@pytest.mark.parametrize("result", [object(), {1: object()}, b"\xff".decode("latin1"), {("a", 1): 1}])
async def test_what_cannot_be_a_result(result: Any) -> None:
    """JSON has to be able to say it; trying again would not help."""
    source = Memory(1)
    async with running(source, lambda _: result):
        await source.until(1)
    reason, *_ = source.ends["token-0"]
    if isinstance(result, str):
        assert source.ends["token-0"] == ("done", "ÿ")
    else:
        assert reason == "result"
        assert source.ends["token-0"][2] is False


async def test_concurrency_is_the_bound() -> None:
    """Never more than that many at a time, and never asked for more."""
    together: list[int] = []
    now = 0

    async def handle(_: Request) -> None:
        nonlocal now
        now += 1
        together.append(now)
        await asyncio.sleep(0.01)
        now -= 1

    source = Memory(*range(30))
    async with running(source, handle, concurrency=4):
        await source.until(30)
    assert max(together) == 4
    assert max(source.asked) == 4


async def test_progress_comes_as_it_changes() -> None:
    """The last of several values; and without any the lease is kept all the same."""
    steps = threading.Event()

    def handle(request: Request) -> str:
        for number in range(100):
            request.progress({"step": number})
        assert steps.wait(DEADLINE)
        return "done"

    source = Memory(1, seconds=0.6)
    async with running(source, handle):
        await until(lambda: ("token-0", None) in source.progresses, "it is reported without progress")
        steps.set()
        await source.until(1)
    values = [value for _, value in source.progresses if value is not None]
    assert values[-1] == {"step": 99}
    assert len(values) < 10


async def test_a_progress_that_json_cannot_say() -> None:
    """The handler is told at once, where the mistake is."""
    source = Memory(1)
    async with running(source, lambda request: request.progress(object())):
        await source.until(1)
    assert source.ends["token-0"][:1] == ("error",)
    assert "TypeError" in source.ends["token-0"][1]


async def test_a_job_that_is_lost_is_stopped_and_says_nothing() -> None:
    """Somebody else has it, or its client took it back."""
    stopped = asyncio.Event()

    async def handle(_: Request) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    source = Memory(1, 2, seconds=0.3)
    source.lost.add("token-0")
    async with running(source, handle, drain=0.1):
        await until(stopped.is_set, "the handler is stopped")
        await until(lambda: ("token-1", None) in source.progresses, "the next one is reported")
        assert source.ends == {}
    assert source.ends == {"token-1": ("released",)}


async def test_an_async_handler_that_hangs_is_stopped() -> None:
    """Its time is over; the next one gets its place."""

    async def handle(request: Request) -> str:
        if request.data == "hang":
            await asyncio.Event().wait()
        return "fine"

    source = Memory("hang", "good")
    async with running(source, handle, limit=0.2) as runtime:
        await source.until(2)
    assert source.ends["token-0"] == ("timeout", "it took more than 0.2 seconds", True)
    assert source.ends["token-1"] == ("done", "fine")
    assert runtime.strays == 0


async def test_threads_that_hang_are_counted_and_end_the_worker() -> None:
    """One that ends after all is one less; too many of them are the worker's end, and a sentence."""
    go_on = threading.Event()

    def handle(request: Request) -> str:
        if request.data == "hang":
            go_on.wait(DEADLINE)
        return "fine"

    source = Memory("hang", "good")
    async with running(source, handle, limit=0.2) as runtime:
        await source.until(2)
        assert runtime.strays == 1
        go_on.set()
        await until(lambda: not runtime.strays, "the thread ends after all")
    go_on.clear()
    source = Memory(*["hang"] * (STRAYS + 1))
    runtime = Runtime(source, handle, concurrency=1, timeout=0.1)
    try:
        with pytest.raises(SourceError, match=f"{STRAYS} calls of the handler hang"):
            async with asyncio.timeout(DEADLINE):
                await runtime.run(0)
    finally:
        go_on.set()


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_drain_lets_what_runs_finish(*, is_async: bool) -> None:
    """Nothing more is taken; what runs has its time."""
    begun, go_on = threading.Event(), threading.Event()

    def handle(_: Request) -> str:
        begun.set()
        assert go_on.wait(DEADLINE)
        return "fine"

    async def handle_async(_: Request) -> str:
        begun.set()
        await until(go_on.is_set, "it may go on")
        return "fine"

    source = Memory(1, 2)
    runtime = Runtime(source, handle_async if is_async else handle, concurrency=1, timeout=30)
    task = asyncio.create_task(runtime.run(30))
    assert await asyncio.to_thread(begun.wait, DEADLINE)
    runtime.drain()
    await asyncio.sleep(0.05)
    assert not task.done()
    go_on.set()
    async with asyncio.timeout(DEADLINE):
        await task
    assert source.ends == {"token-0": ("done", "fine")}
    assert [job.token for job in source.jobs] == ["token-1"]


async def test_a_drain_gives_back_what_takes_too_long() -> None:
    """So that another worker has it at once."""
    begun = threading.Event()

    def handle(_: Request) -> None:
        begun.set()
        time.sleep(2)

    source = Memory(1)
    runtime = Runtime(source, handle, concurrency=1, timeout=30)
    task = asyncio.create_task(runtime.run(0.1))
    assert await asyncio.to_thread(begun.wait, DEADLINE)
    runtime.drain()
    async with asyncio.timeout(DEADLINE):
        await task
    assert source.ends == {"token-0": ("released",)}
