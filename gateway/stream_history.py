"""
History: the older parts of the stream, read again for whoever resumes from there.

A part that is asked for while it is on its way is read once for all who ask, and parts that were read lately
are kept. Nothing here touches the live consumer, so live delivery never waits for somebody's past.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from fanout.event import OVERHEAD_BYTES, Event
from gateway.amqp.link import LinkError
from gateway.log import LogUnavailable
from gateway.stream_admission import Admission
from gateway.stream_reading import read_message
from gateway.stream_scan import Scan, Scans

RETRY_SECONDS: Final = 2.0
"""After which a refused reader should try again."""

SLICE_SECONDS: Final = 0.001
"""How long messages are made events of before the loop does other things; a part takes ten times as long."""

BLOCKS_BYTES: Final = 8 << 20
"""Memory for parts that were read lately."""


@dataclass(slots=True)
class Extent:
    """
    How far the log reaches, in positions.

    Attributes:
        epoch: its name.
        first: of the oldest event that is retained.
        head: of the newest event.
        head_tag: its tag.
    """

    epoch: str = ""
    first: int = 1
    head: int = 0
    head_tag: int = 0


class History:
    """
    Reads older parts.

    Args:
        scans: what reads messages.
        admission: what makes events of them.
        extent: how far the log reaches; `first` is moved when retention is seen to have moved it.
    """

    def __init__(self, scans: Scans, admission: Admission, extent: Extent) -> None:
        self._scans = scans
        self._admission = admission
        self._extent = extent
        self._blocks: OrderedDict[tuple[int, int], tuple[list[Event], int]] = OrderedDict()
        self._blocks_bytes = 0
        self._fetching: dict[tuple[int, int], asyncio.Future[list[Event]]] = {}

    def forget(self) -> None:
        """Drop what is kept: the stream is another one."""
        self._blocks.clear()
        self._blocks_bytes = 0

    async def read(self, after: int, max_bytes: int) -> list[Event]:
        """
        Return events behind `after`; see `gateway.log.Log.read`. Where the part that was read ends with
        positions that hold nothing for clients, its last event has expired and stands for these.

        Raises:
            LogUnavailable: the broker cannot be reached.
        """
        after = max(after, self._extent.first - 1)
        if after >= self._extent.head:
            return []
        key = (after, max_bytes)
        if (block := self._blocks.get(key)) is not None:
            self._blocks.move_to_end(key)
            return block[0]
        if (fetching := self._fetching.get(key)) is None:
            fetching = self._fetching[key] = asyncio.ensure_future(self._fetch(*key))
            fetching.add_done_callback(lambda done: self._fetched(key, done))
        return await asyncio.shield(fetching)

    async def find_time(self, time_ms: int) -> int:
        """Return the position of the last event older than `time_ms`; see `gateway.log.Log.find_time`."""
        low, high = self._extent.first - 1, self._extent.head  # the answer is in low..high
        if self._admission.time < time_ms:
            return high
        while low < high:
            middle = (low + high) // 2
            event = await self._next_event(middle, high)
            if event is not None and event.time < time_ms:
                low = event.position
            else:
                high = middle
        return low

    async def probe(self) -> None:
        """Look where the stream begins now: retention works unannounced."""
        async with self._scans.at("first", keep=False) as scan:
            received = read_message(await scan.next())
        if received is not None:
            self._extent.first = received.offset + 1

    async def _fetch(self, after: int, max_bytes: int) -> list[Event]:
        """Read behind a position that is known to be in the stream."""
        try:
            async with self._scans.at(after) as scan:
                return await self._fetch_from(scan, after, max_bytes)
        except LinkError as error:
            raise LogUnavailable(f"the stream cannot be read: {error}", RETRY_SECONDS) from None

    async def _fetch_from(self, scan: Scan, after: int, max_bytes: int) -> list[Event]:
        head = self._extent.head
        events: list[Event] = []
        size = 0
        earliest = 0
        at = after  # the last position that is accounted for
        end = time.monotonic() + SLICE_SECONDS
        while size < max_bytes and at < head:
            received = read_message(await scan.next())
            if received is None or received.offset < at:
                continue
            if received.offset > at and at == after:
                await self.probe()  # did retention take what is before?
            at = received.offset + 1
            event = self._admission.again(received, earliest)
            if event is not None and at <= head:
                earliest = event.time
                events.append(event)
                size += len(event.body) + OVERHEAD_BYTES
            if time.monotonic() > end:
                await asyncio.sleep(0)
                end = time.monotonic() + SLICE_SECONDS
        scan.offset = at
        last = min(at, head)
        if last > (events[-1].position if events else after):
            events.append(Event("", b"", earliest, 0, expires=1, position=last))
        return events

    def _fetched(self, key: tuple[int, int], done: asyncio.Future[list[Event]]) -> None:
        """Keep a part for those who read the same."""
        del self._fetching[key]
        if done.cancelled() or done.exception() is not None:
            return
        events = done.result()
        size = sum(len(event.body) + OVERHEAD_BYTES for event in events)
        self._blocks[key] = events, size
        self._blocks_bytes += size
        while self._blocks_bytes > BLOCKS_BYTES and self._blocks:
            self._blocks_bytes -= self._blocks.popitem(last=False)[1][1]

    async def _next_event(self, after: int, last: int) -> Event | None:
        """Return the first event behind `after` that clients can be given, up to position `last`."""
        while after < last:
            for event in await self.read(after, 1):
                if event.position > last:
                    return None
                if event.topic:
                    return event
                after = event.position
        return None
