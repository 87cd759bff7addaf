"""A log that keeps its events in a list: for tests of what stands in front of a log, or behind it."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterator

from fanout.event import OVERHEAD_BYTES, Event
from gateway.log import Deliver, LogBusy, LogUnavailable, Measure


class MemoryLog:
    """
    A `gateway.log.Log` in memory; everything queued in one turn of the event loop is one commit.

    A test steers it: `hold` and `release` decide when commits happen, `fail` makes the next ones fail, `trim`
    is retention, and a restart is a new `MemoryLog` with the same `events`.

    Args:
        epoch: the name of the log.
        events: what it holds at the start; positions are 1, 2, 3 … unless they have some.
        max_queued: how many events may wait for a commit before `append` says `LogBusy`.
    """

    def __init__(
        self, *, epoch: str = "memory", events: list[Event] | None = None, max_queued: int = 1_000_000
    ) -> None:
        self.epoch = epoch
        self.first = 1
        self.head = 0
        self.head_tag = 0
        self.events: list[Event] = []
        self.commits = 0
        self.max_queued = max_queued
        self._queue: list[tuple[list[Event], asyncio.Future[None]]] = []
        self._queued = 0
        self._deliver: Deliver = lambda _events: None
        self._held = False
        self._due = False
        self._failure: LogUnavailable | None = None
        self._store(events or [])

    async def start(self, deliver: Deliver) -> None:
        self._deliver = deliver

    def append(self, events: list[Event]) -> asyncio.Future[None]:
        if self._queued + len(events) > self.max_queued:
            raise LogBusy(1.0)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._queue.append((events, future))
        self._queued += len(events)
        if not self._held and not self._due:
            self._due = True
            loop.call_soon(self.commit)
        return future

    async def read(self, after: int, max_bytes: int) -> list[Event]:
        start = max(after + 1 - self.first, 0)
        size = 0
        batch: list[Event] = []
        for event in self.events[start:]:
            size += len(event.body) + OVERHEAD_BYTES
            if batch and size > max_bytes:
                break
            batch.append(event)
        return batch

    async def find_time(self, time_ms: int) -> int:
        return self.first - 1 + bisect_left(self.events, time_ms, key=lambda event: event.time)

    def measures(self) -> Iterator[Measure]:
        """Nobody operates it."""
        return iter(())

    def trouble(self) -> str | None:
        return None if self._failure is None else str(self._failure)

    async def close(self) -> None:
        self.release()
        self.commit()

    def hold(self) -> None:
        """Make no commit from now on."""
        self._held = True

    def release(self) -> None:
        """Commit what is queued at the next turn of the loop, and everything after it as usual."""
        self._held = False
        if self._queue and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self.commit)

    def fail(self, failure: LogUnavailable | None) -> None:
        """Let every commit fail with `failure`, until called with None."""
        self._failure = failure

    def trim(self, first: int) -> None:
        """Forget the events before position `first`, as retention does."""
        first = min(first, self.head + 1)
        del self.events[: max(first - self.first, 0)]
        self.first = max(first, self.first)

    def commit(self) -> None:
        """Commit everything queued as one batch, now; without a hold this happens by itself."""
        self._due = False
        if self._held:
            return
        queue, self._queue, self._queued = self._queue, [], 0
        if not queue:
            return
        self.commits += 1
        if self._failure is not None:
            _settle(queue, self._failure)
            return
        batch = [event for events, _ in queue for event in events]
        self._store(batch)
        if batch:
            self._deliver(batch)
        _settle(queue, None)

    def _store(self, events: list[Event]) -> None:
        for event in events:
            event.position = event.position or self.head + 1
            if not self.events:
                self.first = event.position
            self.events.append(event)
            self.head, self.head_tag = event.position, event.tag


def _settle(queue: list[tuple[list[Event], asyncio.Future[None]]], failure: LogUnavailable | None) -> None:
    for _, future in queue:
        if future.done():
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)
