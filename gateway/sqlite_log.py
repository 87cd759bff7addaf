"""
The embedded log: one SQLite file that every commit makes durable, and that nobody has to run a server for.

Strategy: `append` only queues, on the event loop. Everything queued goes to the writer thread as one transaction
with one wait for the disk (group commit); what is appended meanwhile gathers for the next. All state lives on the
loop: the threads get a job and return an outcome, so nothing is shared and nothing is locked. At most one job is with
the writer at a time, a commit or a step of retention, so the end that a commit builds on is always the durable one,
and a commit that fails has used up nothing.

Reading has a connection and a thread of its own, and a cache of decoded blocks. A read that misses waits
in a list; blocks are loaded one by one, and each new one serves every waiting reader that it can.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fanout.event import Event
from gateway.log import Deliver, LogBusy, LogDamaged, LogError, LogUnavailable
from gateway.sqlite_blocks import Block, Blocks
from gateway.sqlite_file import LogInUse, SqliteFile, cause, is_damage
from gateway.sqlite_rows import FORMAT, End, Limits, Rows, Trimmed, create, memory_of
from gateway.sqlite_worker import Worker

__all__ = ["LogInUse", "LogStatistics", "SqliteLog"]

T = TypeVar("T")
log = logging.getLogger(__name__)

COMMIT_BYTES = 4 * 1024 * 1024
"""A commit takes whole calls until it has so much; the rest is the next commit. Bounds a turn of the loop."""

CACHE_BYTES = 16 * 1024 * 1024
"""Memory for decoded blocks: 30 of the largest, so readers scattered over the log do not evict each other."""

TRIM_SLACK_BYTES = 4 * 1024 * 1024
"""Retention by bytes does not wait for its second when the log exceeds its bound by this."""

RETRY_BUSY = 1.0
RETRY_FAILED = 2.0
RETRY_CLOSED = 5.0
"""Seconds after which a refused producer should try again."""


def _now() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """What the log has to do and did since it started."""

    queued_events: int
    queued_bytes: int
    commits: int
    events: int
    bytes: int  # as stored
    failures: int
    commit_ms: float  # the last commit, from its start in the writer thread to its durability
    file_bytes: int


@dataclass(frozen=True, slots=True)
class _Call:
    """One `append`: its events and who waits for them."""

    events: list[Event]
    bytes: int
    future: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Committed:
    """What a commit did."""

    end: End
    seconds: float


class SqliteLog:
    """
    The log in a SQLite file `log.db`; see `gateway.log.Log` for what it promises.

    Args:
        path: the data folder; None keeps the log in memory and forgets it on close.
        retention_seconds: events are kept so long; 0 is for ever. Exact to the event, within `trim_seconds`.
        retention_bytes: so many stored bytes are kept, exact to a row of at most 256 KiB or one commit; 0 is any number.
        retention_events: so many events are kept, exactly; 0 is any number.
        queue_bytes: memory that events may take which wait to be durable. A call when nothing waits is always taken.
        queue_events: how many may wait.
        tail_bytes: memory that the events returned by `tail` may take.
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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deliver: Deliver = _nobody
        self._end = End(0, 0, 0, 0)
        self._tail: list[Event] | None = None  # read and checked at the start, until somebody asks for it
        self._opened_at = 0  # the head at the start
        # Writing.
        self._writer = Worker("log-writer")
        self._file: SqliteFile | None = None  # None before start and after close
        self._rows: Rows | None = None  # the writer's
        self._queue: deque[_Call] = deque()
        self._queued_events = 0  # with those being committed
        self._queued_bytes = 0
        self._working = False  # the writer has a job
        self._scheduled = False  # `_next` is about to run
        self._closing = False
        self._closed: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None  # resolves when a closing log has nothing left to do
        self._trim_due = False
        self._trimmed_last = False  # so that commits and retention take turns
        self._timer: asyncio.TimerHandle | None = None
        # Reading.
        self._reader = self._writer if path is None else Worker("log-reader")
        self._reader_rows: Rows | None = None
        self._blocks = Blocks(CACHE_BYTES)
        self._misses: dict[int, list[asyncio.Future[Block | None]]] = {}  # by position
        self._loading = False
        # Counting.
        self._commits = self._events = self._bytes = self._failures = 0
        self._commit_ms = 0.0

    async def start(self, deliver: Deliver) -> None:
        """
        Open or make the log; see `Log.start`.

        Raises:
            LogInUse: another process has it open.
            LogDamaged: it cannot be used; it was left untouched.
        """
        self._writer.start()
        try:
            await self._writer.call(self._open)
        except BaseException:
            self._writer.run(self._release, lambda *_: None)
            self._writer.stop()
            raise
        if self._reader is not self._writer:
            self._reader.start()
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self.head = self._opened_at = self._end.head
        self.head_tag = self._end.tag
        self._timer = self._loop.call_later(self._trim_seconds, self._tick)

    def append(self, events: list[Event]) -> asyncio.Future[None]:
        """Queue events; see `Log.append`."""
        assert self._loop is not None, "the log was not started"
        future: asyncio.Future[None] = self._loop.create_future()
        if self._closing:
            future.set_exception(LogUnavailable("the log is closed", RETRY_CLOSED))
            return future
        size = memory_of(events)
        if self._queued_events and events and self._is_full(len(events), size):
            raise LogBusy(RETRY_BUSY)
        self._queue.append(_Call(events, size, future))
        self._queued_events += len(events)
        self._queued_bytes += size
        if not self._working and not self._scheduled:
            # Not at once: other callers that are ready in this turn of the loop shall share the commit.
            self._scheduled = True
            self._loop.call_soon(self._next)
        return future

    async def read(self, after: int, max_bytes: int) -> list[Event]:
        """
        Return events behind `after`; see `Log.read`. Their size is that in memory, with `OVERHEAD_BYTES` each.

        Raises:
            LogDamaged: the stored event is damaged.
            LogUnavailable: the disk cannot be read.
        """
        position = max(after + 1, self.first)
        while position <= self.head:
            events = self._blocks.read(position, max_bytes)
            if events:
                return events
            block = await self._loaded(position)
            if block is not None:
                return block.part(max(position, block.first), max_bytes)
            position = max(self._blocks.following(position) or self.head + 1, self.first)
        return []

    async def find_time(self, time_ms: int) -> int:
        """Return the position of the last event older than `time_ms`; see `Log.find_time`."""
        head = self.head
        rows = self._reading()
        found = await self._reader.call(lambda: _translated(lambda: rows.before_time(time_ms)))
        # What was committed or expired meanwhile is no part of the answer.
        return max(head if found is None else min(found, head), self.first - 1)

    async def tail(self) -> list[Event]:
        """Return the newest events, as many as fit into `tail_bytes` of memory; oldest of them first."""
        events, self._tail = self._tail, None
        if events is None or self.head != self._opened_at:
            rows = self._reading()
            events = await self._reader.call(lambda: _translated(lambda: rows.newest(self._tail_bytes)))
        head = self.head
        return [event for event in events if self.first <= event.position <= head]

    def statistics(self) -> LogStatistics:
        """Return what there is to do and was done."""
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

    async def close(self) -> None:
        """Commit what is queued and close; see `Log.close`."""
        if self._closing or self._loop is None:
            if self._closed is not None:
                await asyncio.shield(self._closed)
            return
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._closed = self._loop.create_task(self._shut())
        await asyncio.shield(self._closed)

    # The queue, on the loop.

    def _is_full(self, events: int, size: int) -> bool:
        return self._queued_events + events > self._queue_events or self._queued_bytes + size > self._queue_bytes

    def _next(self) -> None:
        """Give the writer its next job if it has none: a commit, or now and then a step of retention."""
        self._scheduled = False
        if self._working:
            return
        if self._trim_due and not (self._queue and self._trimmed_last):
            self._trimmed_last = True
            self._working = True
            self._writer.run(self._trim_job(), self._trimmed)
        elif self._queue:
            self._trimmed_last = False
            self._commit(self._taken())
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _taken(self) -> list[_Call]:
        """Take the calls of one commit from the queue."""
        calls: list[_Call] = []
        size = 0
        while self._queue and size < COMMIT_BYTES:
            calls.append(self._queue.popleft())
            size += calls[-1].bytes
        return calls

    def _commit(self, calls: list[_Call]) -> None:
        """Have the calls' events committed in one transaction."""
        events = calls[0].events if len(calls) == 1 else [event for call in calls for event in call.events]
        if not events:
            _resolve(calls)
            self._next()
            return
        rows, end = self._rows, self._end
        assert rows is not None

        def job() -> _Committed:
            started = time.perf_counter()
            return _Committed(rows.insert(end, events), time.perf_counter() - started)

        def done(committed: _Committed | None, error: Exception | None) -> None:
            self._working = False
            if committed is None:
                self._failed(calls, error)
            else:
                self._committed(calls, events, committed)

        self._working = True
        self._writer.run(job, done)

    def _committed(self, calls: list[_Call], events: list[Event], committed: _Committed) -> None:
        """Make a commit visible: positions, head, delivery; then tell those who wait."""
        for position, event in enumerate(events, self.head + 1):
            event.position = position
        self._forget(calls)
        self._commits += 1
        self._events += len(events)
        self._bytes += committed.end.size - self._end.size
        self._commit_ms = committed.seconds * 1000
        self._end = committed.end
        self.head, self.head_tag = committed.end.head, committed.end.tag
        if self._limits.events:
            self.first = max(self.first, self.head - self._limits.events + 1)
        self._next()  # first, so that the disk works while we deliver
        try:
            self._deliver(events)
        except Exception:
            log.exception("log.delivery_failed", extra={"first": events[0].position, "last": events[-1].position})
        _resolve(calls)

    def _failed(self, calls: list[_Call], error: Exception | None) -> None:
        """Fail a commit's calls and all that were queued behind it; the next `append` starts afresh."""
        calls = [*calls, *self._queue]
        self._queue.clear()
        self._forget(calls)
        self._failures += 1
        unavailable = _unavailable(error)
        log.error("log.commit_failed", extra={"reason": str(unavailable), "calls": len(calls)})
        for call in calls:
            if not call.future.done():
                call.future.set_exception(LogUnavailable(str(unavailable), unavailable.retry_after))
        self._next()

    def _forget(self, calls: list[_Call]) -> None:
        for call in calls:
            self._queued_events -= len(call.events)
            self._queued_bytes -= call.bytes

    # Retention.

    def _tick(self) -> None:
        """Look once in a while for something to delete."""
        assert self._loop is not None
        self._trim_due = True
        self._timer = self._loop.call_later(self._trim_seconds, self._tick)
        self._next()

    def _trim_job(self) -> Callable[[], Trimmed]:
        rows, end, now, floor = self._rows, self._end, self._clock(), self.first
        assert rows is not None
        return lambda: rows.trim(end, self._limits, now, floor)

    def _trimmed(self, trimmed: Trimmed | None, error: Exception | None) -> None:
        """Move `first`, and go on if there is more; what failed is tried again at the next tick."""
        self._working = False
        self._trim_due = trimmed is not None and trimmed.more and not self._closing
        if trimmed is not None:
            self.first = max(self.first, trimmed.first)
        else:
            log.warning("log.retention_failed", extra={"reason": str(_unavailable(error))})
        self._next()

    # Reading, on the loop.

    def _reading(self) -> Rows:
        if self._reader_rows is None or self._closing:
            raise LogUnavailable("the log is closed", RETRY_CLOSED)
        return self._reader_rows

    async def _loaded(self, position: int) -> Block | None:
        """
        Return the block that holds `position`, or begins behind it; those who wait for the same one share it.

        None if nothing is stored between `position` and the next block in the cache: retention was faster.
        """
        self._reading()
        assert self._loop is not None
        future: asyncio.Future[Block | None] = self._loop.create_future()
        self._misses.setdefault(position, []).append(future)
        if not self._loading:
            self._load()
        return await future

    def _load(self) -> None:
        """Have the block at the first missed position read."""
        if not self._misses:
            return
        position = next(iter(self._misses))
        before = min(self._blocks.following(position) or self.head + 1, self.head + 1)
        rows = self._reader_rows
        assert rows is not None

        def done(events: list[Event] | None, error: Exception | None) -> None:
            self._loading = False
            self._settle(position, Block(events) if events else None, error)
            self._load()

        self._loading = True
        self._reader.run(lambda: _translated(lambda: rows.block(position, before)), done)

    def _settle(self, position: int, block: Block | None, error: Exception | None) -> None:
        """Serve every waiting reader that a loaded block serves."""
        served = [position]
        if block is not None:
            self._blocks.add(block)
            served += [p for p in self._misses if p != position and block.first <= p <= block.last]
        for missed in served:
            for future in self._misses.pop(missed, ()):
                if future.done():
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(block)

    # Closing.

    async def _shut(self) -> None:
        """Commit what is queued, let nobody wait for a read, close the connections, end the threads."""
        assert self._loop is not None
        self._idle = self._loop.create_future()
        self._next()
        await self._idle
        for futures in self._misses.values():
            for future in futures:
                if not future.done():
                    future.set_exception(LogUnavailable("the log is closed", RETRY_CLOSED))
        self._misses.clear()
        if self._reader is not self._writer:
            await self._reader.call(self._release_reader)
            self._reader.stop()
        await self._writer.call(self._save)
        await self._writer.call(self._release)
        self._writer.stop()

    # In the writer thread.

    def _open(self) -> None:
        """Open the file and read its end; a file that cannot be used is closed again, untouched."""
        file = SqliteFile(self._folder, FORMAT, create)
        self._file = file
        rows = Rows(file.connection, str(file.path or "memory:"))
        try:
            self.epoch = rows.epoch()
            self._end = rows.end()
            self._tail = rows.newest(self._tail_bytes)
        except sqlite3.Error as error:
            raise file.refusal(cause(error)) from error
        except LogDamaged as error:
            raise file.refusal(str(error)) from error
        self._rows = rows
        self._reader_rows = rows if file.path is None else Rows(file.reader(), str(file.path))
        self.first = rows.floor()
        self.first = rows.trim(self._end, self._limits, self._clock(), self.first).first

    def _save(self) -> None:
        """Write down where the log begins. If that fails it is worth a line only: the next start computes it again."""
        assert self._rows is not None
        try:
            self._rows.save(self._end, self.first)
        except sqlite3.Error as error:
            log.warning("log.close_failed", extra={"reason": cause(error)})

    def _release(self) -> None:
        """Close the file if it is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _release_reader(self) -> None:
        """Close the reader's connection, in its thread and before the writer's: the last one empties the WAL."""
        assert self._reader_rows is not None
        self._reader_rows.close()


def _nobody(_: list[Event]) -> None:
    """Deliver to nobody: before the start."""


def _resolve(calls: list[_Call]) -> None:
    for call in calls:
        if not call.future.done():  # it may have been cancelled
            call.future.set_result(None)


def _unavailable(error: Exception | None) -> LogUnavailable:
    """Return what producers are told about a failure."""
    if isinstance(error, sqlite3.Error):
        return LogUnavailable(cause(error), RETRY_FAILED)
    if isinstance(error, LogError):
        return LogUnavailable(str(error), RETRY_FAILED)
    log.error("log.job_failed", exc_info=error)
    return LogUnavailable("the log failed", RETRY_FAILED)


def _translated(job: Callable[[], T]) -> T:
    """Do a reading job; say in the log's terms what SQLite has to complain."""
    try:
        return job()
    except sqlite3.Error as error:
        if is_damage(error):
            raise LogDamaged(f"the log is damaged ({error})") from error
        raise LogUnavailable(cause(error), RETRY_FAILED) from error
