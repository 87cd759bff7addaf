"""Where a client begins: from `earliest`, `latest`, `-N`, a time or a cursor to a position in this log."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, assert_never

from fanout.cursor import Cursor, Earliest, Latest, Newest, Since, Start
from fanout.selection import Filter
from fanout.window import Window
from gateway.log import Log

SCAN_EVENTS: Final = 4096
"""
How far the search for the last N matching events steps back in the log at first; it doubles up to sixteen
times this.
"""

SCAN_BYTES: Final = 1 << 20
MAX_SCANS: Final = 4
"""Searches in the log at a time; others wait."""


@dataclass(frozen=True, slots=True)
class Place:
    """
    A position to start after.

    Attributes:
        position: the client has, or does not want, everything up to here.
        reset: the cursor it came with, if what is behind that is not what it gets, and it must be told so.
        reason: why: the cursor belongs to another history of the log (`reset`), or it may not see so far
            back (`history`).
        cursor: the text of the position's cursor, where that is known better than the window knows it.
    """

    position: int
    reset: str | None = None
    cursor: str | None = None
    reason: str = "reset"


class Locator:
    """
    Finds the place that a start names.

    Args:
        window: the recent part of the log.
        log: the rest of it.
    """

    def __init__(self, window: Window, log: Log) -> None:
        self._window = window
        self._log = log
        self._scans = asyncio.Semaphore(MAX_SCANS)

    async def locate(self, start: Start, wanted: Filter) -> Place:
        """
        Return where `start` is, for someone who wants what `wanted` picks.

        Raises:
            LogError: the log had to be read and could not be.
        """
        match start:
            case Latest():
                return Place(self._window.head)
            case Cursor():
                return await self._locate_cursor(start)
            case Earliest():
                return Place(self._before_first())
            case Newest():
                return Place(await self._locate_newest(wanted, start.count))
            case Since():
                return Place(await self._locate_time(start.time_ms))
            case _:
                assert_never(start)

    async def reach(self, start: Start, wanted: Filter, oldest_ms: int) -> Place:
        """
        Return where `start` is for someone who may not see events from before a time.

        Args:
            start: where they want to begin.
            wanted: picks what they want.
            oldest_ms: that time, in milliseconds since the Unix epoch; 0 if they may see all.

        Raises:
            LogError: the log had to be read and could not be.
        """
        place = await self.locate(start, wanted)
        if not oldest_ms or isinstance(start, Latest):
            return place
        bound = await self._locate_time(oldest_ms)
        if place.position >= bound:
            return place
        if place.reset is not None or not isinstance(start, Cursor):
            return Place(bound, reset=place.reset)
        return Place(bound, reset=str(start), reason="history")

    def _before_first(self) -> int:
        """Return the position before the oldest event that can still be had."""
        return min(self._log.first - 1, self._window.floor)

    async def _locate_cursor(self, cursor: Cursor) -> Place:
        """
        Return the place of a cursor seen before, and whether it is from another history.

        From another log, or one created anew: everything here is new to the client. From this log, but ahead
        of its head or naming another event: the log lost its end once (restored, truncated); what follows the
        position is new.
        """
        window = self._window
        if cursor.epoch != window.epoch:
            return Place(self._before_first(), reset=str(cursor))
        if cursor.position > window.head:
            return Place(window.head, reset=str(cursor))
        there = await self._tag_at(cursor.position) if cursor.tag else None
        if there is None:  # nothing to compare with: the cursor has no tag, or the event is gone
            return Place(cursor.position)
        if there != cursor.tag:
            return Place(cursor.position, reset=str(cursor))
        return Place(cursor.position, cursor=str(cursor))

    async def _tag_at(self, position: int) -> int | None:
        """Return the tag of the event at `position`; 0 if none is there, None if it can no longer be had."""
        tag = self._window.tag_at(position)
        if tag or position > self._window.floor:
            return tag
        if position >= self._log.first:
            events = await self._log.read(position - 1, 1)
            if events and position >= self._log.first:
                return events[0].tag if events[0].position == position else 0
        return None

    async def _locate_time(self, time_ms: int) -> int:
        position = self._window.position_before(time_ms)
        if position is None:
            position = min(await self._log.find_time(time_ms), self._window.head)
        return position

    async def _locate_newest(self, wanted: Filter, count: int) -> int:
        """Step back through window and log until `count` matching events are behind the place."""
        position, lacking = self._window.newest(wanted, count, self._window.head)
        if not lacking or self._log.first > self._window.floor:
            return position
        async with self._scans:
            step = SCAN_EVENTS
            while position >= self._log.first:
                begin = max(self._log.first - 1, position - step)
                found = await self._matching(wanted, begin, position)
                if len(found) >= lacking:
                    return found[-lacking] - 1
                lacking -= len(found)
                position = begin
                step = min(step * 2, SCAN_EVENTS * 16)
        return position

    async def _matching(self, wanted: Filter, begin: int, end: int) -> list[int]:
        """Return the positions behind `begin`, up to `end`, of events that `wanted` picks."""
        found: list[int] = []
        while begin < end:
            events = await self._log.read(begin, SCAN_BYTES)
            if not events:
                break
            found += [event.position for event in events if event.position <= end and wanted.picks(event)]
            begin = events[-1].position
        return found
