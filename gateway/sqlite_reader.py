"""
Reading the log beside its writer: a connection and a thread of its own, and a cache of decoded blocks.

Readers that resume after an outage are at similar positions, so what one waits for serves the others: a read
that misses the cache waits in a list, blocks are loaded one by one, and each serves every waiting reader that
it can.
"""

from __future__ import annotations

import asyncio
import sqlite3
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable
from itertools import accumulate
from typing import TypeVar

from fanout.event import OVERHEAD_BYTES, Event
from gateway.log import LogDamaged, LogUnavailable
from gateway.sqlite_file import cause, is_damage
from gateway.sqlite_rows import Rows
from gateway.sqlite_worker import Job, Worker

T = TypeVar("T")

RETRY_UNREADABLE = 2.0
RETRY_CLOSED = 5.0
"""Seconds after which a refused caller should try again."""


class Block:
    """Consecutive events, with the sums of their sizes, so that a part of some size is found by bisection."""

    __slots__ = ("bytes", "events", "first", "last", "sums")

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.first = events[0].position
        self.last = events[-1].position
        self.sums = list(accumulate([len(event.body) + OVERHEAD_BYTES for event in events], initial=0))
        self.bytes = self.sums[-1]

    def part(self, position: int, max_bytes: int) -> list[Event]:
        """Return events from `position` on that take at most `max_bytes` in memory, at least one."""
        start = position - self.first
        stop = bisect_right(self.sums, self.sums[start] + max_bytes) - 1
        return self.events[start : max(stop, start + 1)]


class Blocks:
    """A cache of blocks that never overlap; bounded in bytes, the least recently used goes first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._used = 0
        self._firsts: list[int] = []  # ascending
        self._blocks: OrderedDict[int, Block] = OrderedDict()  # by first position, least recently used first

    def read(self, position: int, max_bytes: int) -> list[Event]:
        """Return cached events from `position` on, about `max_bytes`; empty if that one is not cached."""
        events: list[Event] = []
        while (max_bytes > 0 or not events) and (block := self._holding(position)) is not None:
            part = block.part(position, max_bytes)
            events = events + part if events else part
            max_bytes -= block.sums[position - block.first + len(part)] - block.sums[position - block.first]
            position += len(part)
            if position <= block.last:
                break
        return events

    def following(self, position: int) -> int | None:
        """Return where the first block behind `position` begins."""
        index = bisect_right(self._firsts, position)
        return self._firsts[index] if index < len(self._firsts) else None

    def add(self, block: Block) -> None:
        """Keep a block; others make room. The newest stays whatever its size."""
        if block.first in self._blocks:
            return
        insort(self._firsts, block.first)
        self._blocks[block.first] = block
        self._used += block.bytes
        while self._used > self._max_bytes and len(self._blocks) > 1:
            first, evicted = self._blocks.popitem(last=False)
            self._firsts.remove(first)
            self._used -= evicted.bytes

    def _holding(self, position: int) -> Block | None:
        """Return the block that holds `position`, and count that as use."""
        index = bisect_right(self._firsts, position)
        if not index:
            return None
        block = self._blocks[self._firsts[index - 1]]
        if block.last < position:
            return None
        self._blocks.move_to_end(block.first)
        return block


class Reader:
    """
    Reads what the writer has committed; lives on the event loop.

    Args:
        rows: the table behind a connection for this reader alone, or the writer's together with its thread.
        worker: the thread, started; whoever started it stops it.
        cache_bytes: memory for decoded events.
    """

    def __init__(self, rows: Rows, worker: Worker, cache_bytes: int) -> None:
        self._rows = rows
        self._worker = worker
        self._blocks = Blocks(cache_bytes)
        self._misses: dict[int, list[asyncio.Future[Block | None]]] = {}  # who waits, by position
        self._loading = False
        self._closed = False
        self._head = 0  # the newest position that anybody asked about: what is behind it may be half done

    async def read(self, position: int, head: int, max_bytes: int) -> list[Event]:
        """
        Return stored events from `position` to at most `head`, about `max_bytes` of them; see `Log.read`.

        Raises:
            LogDamaged: what is stored there is damaged.
            LogUnavailable: it cannot be read, or the log is closed.
        """
        self._head = max(self._head, head)
        while position <= head:
            events = self._blocks.read(position, max_bytes)
            if events:
                return events
            block = await self._loaded(position)
            if block is not None:
                return block.part(max(position, block.first), max_bytes)
            position = self._blocks.following(position) or head + 1
        return []

    async def ask(self, question: Callable[[Rows], T]) -> T:
        """
        Have the table asked something by the reader's thread.

        Raises:
            LogDamaged: what is stored is damaged.
            LogUnavailable: it cannot be read, or the log is closed.
        """
        self._refuse_closed()
        return await self._worker.call(lambda: _translated(lambda: question(self._rows)))

    async def close(self) -> None:
        """Let nobody wait any more, and close the connection when the thread is done with it."""
        self._closed = True
        for futures in self._misses.values():
            _settle(futures, None, LogUnavailable("the log is closed", RETRY_CLOSED))
        self._misses.clear()
        await self._worker.call(self._rows.close)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise LogUnavailable("the log is closed", RETRY_CLOSED)

    async def _loaded(self, position: int) -> Block | None:
        """
        Return the block that holds `position`, or begins behind it; those who wait for the same one share it.

        None if nothing is stored between `position` and the next block in the cache: retention was faster.
        """
        self._refuse_closed()
        future: asyncio.Future[Block | None] = asyncio.get_running_loop().create_future()
        self._misses.setdefault(position, []).append(future)
        if not self._loading:
            self._load()
        return await future

    def _load(self) -> None:
        """Have the block at the position read that has been missed longest."""
        if not self._misses:
            return
        position = next(iter(self._misses))
        before = min(self._blocks.following(position) or self._head + 1, self._head + 1)

        def work() -> Block | None:
            events = _translated(lambda: self._rows.block(position, before))
            return Block(events) if events else None

        def done(block: Block | None, error: Exception | None) -> None:
            self._loading = False
            self._serve(position, block, error)
            self._load()

        self._loading = True
        self._worker.run(Job(work, done))

    def _serve(self, position: int, block: Block | None, error: Exception | None) -> None:
        """Serve every waiting reader that a block serves; an error only those who wait for its position."""
        served = [position]
        if block is not None:
            self._blocks.add(block)
            served += [p for p in self._misses if p != position and block.first <= p <= block.last]
        for missed in served:
            _settle(self._misses.pop(missed, []), block, error)


def _settle(
    futures: list[asyncio.Future[Block | None]], block: Block | None, error: Exception | None
) -> None:
    for future in futures:
        if future.done():  # whoever waited was cancelled
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(block)


def _translated(work: Callable[[], T]) -> T:
    """Do `work`; say in the log's terms what SQLite has to complain about."""
    try:
        return work()
    except sqlite3.Error as error:
        if is_damage(error):
            raise LogDamaged(f"the log is damaged ({error})") from error
        raise LogUnavailable(cause(error), RETRY_UNREADABLE) from error
