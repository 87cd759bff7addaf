"""
The embedded log: one SQLite file in which every commit is durable, and for which nobody has to run a server.

Strategy: `append` only queues, on the event loop. Everything queued goes to the writer thread as one
transaction with one wait for the disk (group commit); what is appended meanwhile gathers for the next. All
state lives on the loop: a thread gets a job and returns an outcome, so nothing is shared and nothing is
locked. The writer has at most one job at a time, a commit or a step of retention. So the end that a commit
builds on is always the durable one, and a commit that fails has used up nothing.

Reading has a connection and a thread of its own (`gateway.sqlite_reader`).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fanout.event import Event
from gateway.log import Deliver, LogBusy, LogDamaged, LogUnavailable, Measure
from gateway.sqlite_file import LogInUse, SqliteFile, cause
from gateway.sqlite_reader import Reader
from gateway.sqlite_rows import FORMAT, TRIM_BYTES, End, Limits, Rows, Trimmed, fill, memory_of
from gateway.sqlite_worker import Job, Turns, Worker

__all__ = ["LogInUse", "LogStatistics", "SqliteLog"]

log = logging.getLogger(__name__)

COMMIT_BYTES = 1024 * 1024
"""
A commit takes whole calls until they take so much memory: bounds a turn of the loop. Larger is no cheaper.
"""

CACHE_BYTES = 16 * 1024 * 1024
"""
Memory for decoded blocks: dozens of them, so that readers at different places do not evict each other's.
"""

SURPLUS_BYTES = 4 * 1024 * 1024
"""When the log exceeds its bound by so much, retention does not wait for its time."""

TROUBLE_SECONDS = 10.0
"""How long a failed commit is held against the log when nobody tries another."""

RETRY_BUSY = 1.0
RETRY_FAILED = 2.0
RETRY_CLOSED = 5.0
"""Seconds after which a refused producer should try again."""


def _now() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """What the log has to do, and what it did since it started."""

    queued_events: int
    queued_bytes: int  # of memory
    commits: int
    events: int
    bytes: int  # as stored
    failures: int  # commits that failed
    commit_ms: float  # how long the last commit took in the writer's thread
    file_bytes: int  # the file with its write-ahead log


@dataclass(frozen=True, slots=True)
class _Call:
    """One `append`: its events, what they take in memory, and who waits."""

    events: list[Event]
    bytes: int
    future: asyncio.Future[None]


class SqliteLog:
    """
    The log in the file `log.db`; see `gateway.log.Log` for what it promises.

    Args:
        path: the data folder; None keeps the log in memory and forgets it on close.
        retention_seconds: how long events are kept, exact to the event within `trim_seconds`; 0 is for ever.
        retention_bytes: how much is kept, as stored, exact to a row (256 KiB or a commit); 0 is no limit.
        retention_events: how many are kept, exactly; 0 is no limit.
        queue_bytes: memory for events that wait to be durable. When none waits, a call of any size is taken.
        queue_events: how many may wait.
        tail_bytes: memory that what `tail` returns may take.
        clock: the time in milliseconds since the Unix epoch, for retention by age.
        trim_seconds: how often retention looks for something to delete.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        retention_seconds: float,
        retention_bytes: int,
        retention_events: int,
        queue_bytes: int = 16 * 1024 * 1024,
        queue_events: int = 50_000,
        tail_bytes: int,
        clock: Callable[[], int] = _now,
        trim_seconds: float = 1.0,
    ) -> None:
        self.epoch = ""
        self.first = 1
        self.head = 0
        self.head_tag = 0
        self._folder = path
        self._limits = Limits(int(retention_seconds * 1000), retention_bytes, retention_events)
        self._queue_bytes = queue_bytes
        self._queue_events = queue_events
        self._tail_bytes = tail_bytes
        self._clock = clock
        self._trim_seconds = trim_seconds
        self._loop: asyncio.AbstractEventLoop | None = None  # None before the start
        self._deliver: Deliver = _ignore
        self._closing: asyncio.Task[None] | None = None
        # The writer.
        self._worker = Worker("log-writer")
        self._turns = Turns(self._worker, self._choose)
        self._file: SqliteFile | None = None  # None before the start and after the end
        self._rows: Rows | None = None
        self._end = End(0, 0, 0, 0)
        # The queue.
        self._calls: deque[_Call] = deque()
        self._queued_events = 0  # with those being committed
        self._queued_bytes = 0
        # Retention.
        self._start = 0  # of the oldest row
        self._committed_bytes = 0  # by the last commit
        self._trim_due = False
        self._trimmed_last = False  # commits and steps of retention take turns
        self._timer: asyncio.TimerHandle | None = None
        # The reader.
        self._reader_worker = self._worker if path is None else Worker("log-reader")
        self._reader: Reader | None = None
        self._tail: list[Event] | None = None  # what the start read, until somebody asks for it
        # Counters, as in LogStatistics.
        self._commits = self._events = self._bytes = self._failures = 0
        self._commit_ms = 0.0
        self._trouble: str | None = None  # why the last commit failed; logged once, not per call
        self._failed_at = 0.0

    async def start(self, deliver: Deliver) -> None:
        """
        Open or make the log; see `Log.start`.

        Raises:
            LogInUse: another process has it open.
            LogDamaged: it cannot be used; it was left untouched.
        """
        self._worker.start()
        try:
            connection = await self._worker.call(self._open)
        except BaseException:
            self._worker.run(
                Job(self._release, _forget)
            )  # also when the opening goes on, as after a cancellation
            self._worker.stop()
            raise
        if self._reader_worker is not self._worker:
            self._reader_worker.start()
        self._reader = Reader(connection, self._reader_worker, CACHE_BYTES)
        self.head, self.head_tag = self._end.head, self._end.tag
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._trim_seconds, self._tick)

    def append(self, events: list[Event]) -> asyncio.Future[None]:
        """Queue events; see `Log.append`."""
        assert self._loop is not None, "the log was not started"
        future: asyncio.Future[None] = self._loop.create_future()
        if self._closing is not None:
            future.set_exception(LogUnavailable("the log is closed", RETRY_CLOSED))
            return future
        size = memory_of(events)
        if events and self._queued_events and self._exceeds(len(events), size):
            raise LogBusy(RETRY_BUSY)
        self._calls.append(_Call(events, size, future))
        self._queued_events += len(events)
        self._queued_bytes += size
        self._turns.wake()
        return future

    async def read(self, after: int, max_bytes: int) -> list[Event]:
        """
        Return events behind `after`; see `Log.read`. `max_bytes` is memory, with OVERHEAD_BYTES for each.

        Raises:
            LogDamaged: what is stored there is damaged.
            LogUnavailable: it cannot be read, or the log is closed.
        """
        head = self.head
        events = await self._reading().read(max(after + 1, self.first), head, max_bytes)
        there = events[0].position if events else head + 1
        if there > after + 1:  # positions have no holes: retention was there just now
            self.first = max(self.first, there)
        return events

    async def find_time(self, time_ms: int) -> int:
        """Return the position of the last event older than `time_ms`; see `Log.find_time`."""
        head = self.head  # what becomes durable meanwhile is not asked about
        found = await self._reading().ask(lambda rows: rows.before_time(time_ms))
        return max(head if found is None else min(found, head), self.first - 1)

    async def tail(self) -> list[Event]:
        """Return the newest events, as many as fit into `tail_bytes` of memory; oldest of them first."""
        events, self._tail = self._tail, None
        if events is None or self._commits:
            events = await self._reading().ask(lambda rows: rows.newest(self._tail_bytes))
        return [event for event in events if self.first <= event.position <= self.head]

    def trouble(self) -> str | None:
        """
        Return why the log cannot store at the moment; None when it can, as far as is known.

        Nobody may publish to a replica that is not ready, so it is not known for long.
        """
        return self._trouble if time.monotonic() < self._failed_at + TROUBLE_SECONDS else None

    def statistics(self) -> LogStatistics:
        """Return what there is to do, and what was done."""
        return LogStatistics(
            queued_events=self._queued_events,
            queued_bytes=self._queued_bytes,
            commits=self._commits,
            events=self._events,
            bytes=self._bytes,
            failures=self._failures,
            commit_ms=self._commit_ms,
            file_bytes=0 if self._file is None else self._file.size(),
        )

    def measures(self) -> Iterator[Measure]:
        """Return what operators look at; see `Log.measures`."""
        counted = self.statistics()
        yield Measure("log_queued_events", "Events waiting to be durable.", counted.queued_events)
        yield Measure("log_queued_bytes", "Memory of these.", counted.queued_bytes)
        yield Measure("log_queue_limit_events", "How many may wait.", self._queue_events)
        yield Measure("log_queue_limit_bytes", "How much memory they may take.", self._queue_bytes)
        yield Measure("log_commits", "Group commits.", counted.commits, total=True)
        yield Measure("log_failures", "Group commits that failed.", counted.failures, total=True)
        yield Measure("log_commit_seconds", "How long the last commit took.", counted.commit_ms / 1000)
        yield Measure("log_file_bytes", "Size of the log's file.", counted.file_bytes)

    async def close(self) -> None:
        """Commit what is queued and close; see `Log.close`."""
        if self._loop is None:
            return
        if self._closing is None:
            self._closing = self._loop.create_task(self._shut())
        await asyncio.shield(self._closing)

    # The queue and the writer's turns, on the loop.

    def _exceeds(self, events: int, size: int) -> bool:
        """Return whether the queue has no room for so much more."""
        many = self._queued_events + events > self._queue_events
        return many or self._queued_bytes + size > self._queue_bytes

    def _choose(self) -> Job | None:
        """Return the writer's next job: a commit, or now and then a step of retention."""
        if self._trim_due and not (self._calls and self._trimmed_last):
            self._trimmed_last = True
            return self._trim()
        self._trimmed_last = False
        while self._calls:
            calls = self._take()
            events = [event for call in calls for event in call.events]
            if events:
                return self._commit(calls, events)
            _resolve(calls)
        return None

    def _take(self) -> list[_Call]:
        """Take the calls of one commit from the queue."""
        calls: list[_Call] = []
        size = 0
        while self._calls and size < COMMIT_BYTES:
            calls.append(self._calls.popleft())
            size += calls[-1].bytes
        return calls

    def _commit(self, calls: list[_Call], events: list[Event]) -> Job:
        """Return the job that makes the calls' events durable."""
        rows, end = self._rows, self._end
        assert rows is not None

        def work() -> tuple[End, float]:
            started = time.perf_counter()
            return rows.insert(end, events), time.perf_counter() - started

        def done(committed: tuple[End, float] | None, error: Exception | None) -> None:
            if committed is None:
                self._fail(calls, error)
            else:
                self._succeed(calls, events, *committed)

        return Job(work, done)

    def _succeed(self, calls: list[_Call], events: list[Event], end: End, seconds: float) -> None:
        """Make a commit visible: positions, head, delivery; then tell those who wait."""
        self._drop(calls)
        self._count(events, end, seconds)
        for position, event in enumerate(events, self._end.head + 1):
            event.position = position
        self._end = end
        self.head, self.head_tag = end.head, end.tag
        if self._limits.events:
            self.first = max(self.first, end.head - self._limits.events + 1)
        if self._limits.bytes and end.size - self._start > self._limits.bytes + SURPLUS_BYTES:
            self._trim_due = True
        self._turns.go_on()  # before delivering, so that the disk works meanwhile
        try:
            self._deliver(events)
        except Exception:
            log.exception("log.delivery_failed", extra={"first": events[0].position, "head": end.head})
        _resolve(calls)

    def _fail(self, calls: list[_Call], error: Exception | None) -> None:
        """Fail a commit's calls and all that are queued behind; the next `append` is tried as usual."""
        calls = [*calls, *self._calls]
        self._calls.clear()
        self._drop(calls)
        self._failures += 1
        reason = _reason(error)
        if self._trouble is None:
            log.error("log.commit_failed", extra={"reason": reason})
        self._trouble = reason
        self._failed_at = time.monotonic()
        for call in calls:
            if not call.future.done():
                call.future.set_exception(LogUnavailable(reason, RETRY_FAILED))

    def _count(self, events: list[Event], end: End, seconds: float) -> None:
        """Count a commit, and note that the log works again if it did not."""
        self._commits += 1
        self._events += len(events)
        self._committed_bytes = end.size - self._end.size
        self._bytes += self._committed_bytes
        self._commit_ms = seconds * 1000
        if self._trouble is not None:
            log.info("log.recovered")
        self._trouble = None

    def _drop(self, calls: list[_Call]) -> None:
        """Count calls as not queued any more."""
        for call in calls:
            self._queued_events -= len(call.events)
            self._queued_bytes -= call.bytes

    # Retention, on the loop.

    def _tick(self) -> None:
        """Have retention look for something to delete, once in a while."""
        assert self._loop is not None
        self._timer = self._loop.call_later(self._trim_seconds, self._tick)
        self._trim_due = True
        self._turns.wake()

    def _trim(self) -> Job:
        """Return the job that takes a step of retention."""
        rows, end, now, floor = self._rows, self._end, self._clock(), self.first
        step_bytes = max(TRIM_BYTES, 2 * self._committed_bytes)  # so that commits of any size are outrun
        assert rows is not None

        def done(trimmed: Trimmed | None, error: Exception | None) -> None:
            if trimmed is None:
                self._trim_due = False  # until the next tick
                log.warning("log.retention_failed", extra={"reason": _reason(error)})
                return
            self.first = max(self.first, trimmed.first)
            self._start = trimmed.start
            self._trim_due = trimmed.more and self._closing is None

        return Job(lambda: rows.trim(end, self._limits, now, floor, step_bytes), done)

    # Opening and closing.

    def _reading(self) -> Reader:
        assert self._reader is not None, "the log was not started"
        return self._reader

    async def _shut(self) -> None:
        """Commit what is queued, close the connections, end the threads."""
        if self._timer is not None:
            self._timer.cancel()
        await self._turns.finished()
        await self._worker.call(self._save)
        # The writer's connection is closed last: that empties the write-ahead log.
        await self._reading().close()
        await self._worker.call(self._release)
        self._reader_worker.stop()
        self._worker.stop()

    def _open(self) -> Rows:
        """
        Open the file, check its end, apply retention; return the rows for the reader. In the writer's thread.

        What cannot be used is refused before anything is written to it.
        """
        self._file = file = SqliteFile(self._folder, FORMAT, fill)
        self._rows = rows = Rows(file.connection, str(file.path))
        try:
            self.epoch, self._end, self.first = rows.epoch(), rows.end(), rows.floor()
            self._tail = rows.newest(self._tail_bytes)
        except sqlite3.Error as error:
            raise file.refusal(cause(error)) from error
        except LogDamaged as error:
            raise file.refusal(str(error)) from error
        trimmed = rows.trim(self._end, self._limits, self._clock(), self.first)
        self.first, self._start = trimmed.first, trimmed.start
        return rows if file.path is None else Rows(file.reader(), str(file.path))

    def _save(self) -> None:
        """
        Write down where the log begins. In the writer's thread.

        A failure is worth a line only: what was not written down the next start finds out again.
        """
        assert self._rows is not None
        try:
            self._rows.save(self._end, self.first)
        except sqlite3.Error as error:
            log.warning("log.close_failed", extra={"reason": cause(error)})

    def _release(self) -> None:
        """Close the file if it is open. In the writer's thread."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _ignore(_: list[Event]) -> None:
    """Deliver to nobody: before the start."""


def _forget(_result: object, _error: Exception | None) -> None:
    """Ignore what came of a job."""


def _resolve(calls: list[_Call]) -> None:
    for call in calls:
        if not call.future.done():  # whoever waited was cancelled
            call.future.set_result(None)


def _reason(error: Exception | None) -> str:
    """Return in a few words why a job of the writer failed."""
    if isinstance(error, sqlite3.Error):
        return cause(error)
    log.error("log.job_failed", exc_info=error)
    return "the log failed"
