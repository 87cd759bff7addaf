"""
The survey: how a stream is looked at from scratch, at a start and whenever it has become another one.

Strategy: consume behind the end, publish a barrier and wait for it: from its offset on everything comes to
the live consumer, and what lies before it is there to be read by scans. Then the oldest message is looked
for, the newest are read for the window, and replicas agree on the epoch by the marks among them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from secrets import token_hex
from typing import Final

from fanout.event import OVERHEAD_BYTES
from gateway.stream_marks import BARRIER, PROPOSAL, EpochSearch, random_epoch
from gateway.stream_messages import Mark, Received
from gateway.stream_reading import Reading, read_message
from gateway.stream_scan import Scans

log = logging.getLogger(__name__)

SAMPLE: Final = 1000
"""Messages at the end that are read first, to learn how long messages are."""


@dataclass(frozen=True, slots=True)
class Findings:
    """
    What a stream is found to be.

    Attributes:
        epoch: its name.
        begin: the first offset that comes to the live consumer.
        tail: the newest messages before it, oldest first.
    """

    epoch: str
    begin: int
    tail: list[Received]


class Survey:
    """
    Looks at one stream once.

    Args:
        reading: its live consumer, which has not begun.
        scans: what reads the older parts.
        probe: finds the oldest message and returns its offset.
        publish: publishes a mark; raises LinkError if that has become impossible.
        tail_bytes: memory that the tail may take.
        tail_events: how many messages that may be.
    """

    def __init__(
        self,
        reading: Reading,
        scans: Scans,
        probe: Callable[[], Awaitable[int]],
        publish: Callable[[Mark], None],
        tail_bytes: int,
        tail_events: int,
    ) -> None:
        self._reading = reading
        self._scans = scans
        self._probe = probe
        self._publish = publish
        self._tail_bytes = tail_bytes
        self._tail_events = tail_events
        self._search = EpochSearch()
        self._live: list[Mark] = []  # those that came to the live consumer

    async def run(self, waits: Callable[[float], None]) -> Findings:
        """
        Look.

        Args:
            waits: called now and then while the broker does not answer, with for how many seconds it has not;
                raises LinkError to give up.

        Raises:
            LinkError: the broker cannot be asked (any more).
        """
        begin = await self._mark(Mark(BARRIER, "", token_hex(5)), waits)
        oldest = await self._probe()
        tail, start = await self._read_tail(oldest, begin)
        return Findings(await self._agree(oldest, start, begin, waits), begin, tail)

    async def _mark(self, mark: Mark, waits: Callable[[float], None]) -> int:
        """
        Publish a mark and wait until it was read; it stays among what waits, like all that comes before it.

        Returns:
            The first offset that came while it was waited for.
        """
        self._publish(mark)
        since = time.monotonic()
        first: int | None = None
        while True:
            for each in self._reading.fresh():
                since = time.monotonic()
                first = each.offset if first is None else first
                self._live += [each.mark] if each.mark is not None else []
            if first is not None and any(each.nonce == mark.nonce for each in self._live):
                return first
            waits(time.monotonic() - since)
            await self._reading.more()

    async def _read_tail(self, oldest: int, end: int) -> tuple[list[Received], int]:
        """Return the newest messages before offset `end`, and the first one's offset."""
        start = max(oldest, end - SAMPLE)
        tail = await self._read(start, end)
        if start > oldest and tail:
            size = sum(len(each.delivery.body) + OVERHEAD_BYTES for each in tail) // len(tail)
            count = min(self._tail_events, self._tail_bytes // size)
            more = max(oldest, end - count)
            if more < start:
                tail = await self._read(more, start) + tail
                start = more
        return tail, start

    async def _read(self, start: int, end: int) -> list[Received]:
        """Return the messages from one offset up to before another; note their marks."""
        found: list[Received] = []
        if start >= end:
            return found
        async with self._scans.at(start, keep=False) as scan:
            while not found or found[-1].offset < end - 1:
                received = read_message(await scan.next())
                if received is None:
                    continue
                if received.offset >= end:
                    break
                found.append(received)
                if received.mark is not None:
                    self._search.note(received.mark)
        return found

    async def _agree(self, oldest: int, start: int, end: int, waits: Callable[[float], None]) -> str:
        """Return the epoch that all replicas agree on; propose one if there is none."""
        complete = start <= oldest
        self._note_live()
        epoch = self._search.epoch(complete=complete)
        if epoch is None and not complete:
            log.info("backbone.searching: no epoch near the end of the stream, reading it from the start")
            self._search = EpochSearch()
            epoch = await self._search_all(oldest, end)
        if epoch is None:
            await self._mark(Mark(PROPOSAL, random_epoch(), token_hex(5)), waits)
            self._note_live()
            epoch = self._search.epoch(complete=True)
        assert epoch is not None, "there is our own proposal at least"
        return epoch

    def _note_live(self) -> None:
        """Note the marks that came to the live consumer, which are behind all others."""
        for mark in self._live:
            self._search.note(mark)

    async def _search_all(self, oldest: int, end: int) -> str | None:
        """Read the stream until a renewal is found."""
        async with self._scans.at(oldest, keep=False) as scan:
            while True:
                received = read_message(await scan.next())
                if received is None:
                    continue
                if received.mark is not None:
                    self._search.note(received.mark)
                    if self._search.epoch(complete=False) is not None:
                        break
                if received.offset >= end - 1:
                    break
        return self._search.epoch(complete=True)
