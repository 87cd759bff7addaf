"""A bounded cache of decoded stretches of the log, for the many readers that are at similar positions."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict
from itertools import accumulate

from fanout.event import OVERHEAD_BYTES, Event


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
    """The least recently used block goes first. Blocks never overlap. Lives on the event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._used = 0
        self._firsts: list[int] = []  # ascending
        self._blocks: OrderedDict[int, Block] = OrderedDict()  # by first position, least recently used first

    def read(self, position: int, max_bytes: int) -> list[Event]:
        """Return cached events from `position` on, about `max_bytes` of them; empty if that one is not cached."""
        events: list[Event] = []
        while max_bytes > 0 or not events:
            block = self._holding(position)
            if block is None:
                break
            part = block.part(position, max_bytes)
            events = events + part if events else part
            position = part[-1].position + 1
            if position <= block.last:
                break
            max_bytes -= block.sums[-1] - block.sums[part[0].position - block.first]
        return events

    def following(self, position: int) -> int | None:
        """Return where the first block behind `position` begins."""
        index = bisect_right(self._firsts, position)
        return self._firsts[index] if index < len(self._firsts) else None

    def add(self, block: Block) -> None:
        """Keep a block that was read; the least recently used make room. The newest stays whatever its size."""
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
        first = self._firsts[index - 1]
        block = self._blocks[first]
        if block.last < position:
            return None
        self._blocks.move_to_end(first)
        return block
