"""
The intake: the one way in for events, whatever brought them. It answers only once they are durable.

Strategy: everything between reading the clock and queueing at the log happens without an await, so times
never decrease along the log. What waits is bounded on both sides: bodies being read by a budget of bytes
here, events waiting for their commit by the log's queue. Beyond either, the producer is told to come back.
"""

from __future__ import annotations

import time
from asyncio import shield, timeout
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from fanout.cursor import Cursor
from fanout.event import Event
from gateway.dedup import Dedup
from gateway.formats import Formats
from gateway.log import Log, LogBusy, LogUnavailable
from gateway.mint import Mint, random_prefix
from gateway.problems import Problem

RESTORE_BYTES: Final = 1 << 20
"""How much of the log is read at a time when the ids are restored."""

ANSWER_SECONDS: Final = 5.0
"""
How long a producer waits for an answer while the log stands still. Its events stay on their way: whoever
asks again with the same ids waits for the same outcome.
"""

RETRY_SLOW: Final = 1.0

BODIES: Final = 4
"""How many bodies of the largest size may be in memory at a time; ordinary ones are a thousandth of that."""


class Limits(Protocol):
    """The settings that bound what is published."""

    @property
    def max_event_bytes(self) -> int: ...
    @property
    def max_batch_events(self) -> int: ...
    @property
    def max_body_bytes(self) -> int: ...
    @property
    def body_timeout(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a producer is told: everything up to `cursor`, its events among it, is durable."""

    accepted: int
    duplicates: int
    cursor: str


class Budget:
    """Bytes of request bodies that may be in memory at a time, for all requests together."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0

    def take(self, size: int) -> None:
        """
        Account for `size` more bytes.

        Raises:
            Problem: 503, there would be too many; nothing was taken.
        """
        if self.used + size > self.max_bytes:
            raise Problem(503, "too much is being published at once", retry_after=1.0)
        self.used += size

    def give(self, size: int) -> None:
        """Give back bytes that were taken."""
        self.used -= size


class Intake:
    """
    Takes events in.

    Args:
        log: where they go.
        dedup: which ids were there lately.
        limits: see `Limits`.
        clock: seconds since the Unix epoch.
    """

    def __init__(
        self, log: Log, dedup: Dedup, limits: Limits, clock: Callable[[], float] = time.time
    ) -> None:
        self.log = log
        self.dedup = dedup
        self.mint = Mint(limits.max_event_bytes, random_prefix())
        self.formats = Formats(self.mint, limits.max_batch_events)
        self.budget = Budget(BODIES * limits.max_body_bytes)
        self.accepted = 0
        self.duplicates = 0
        self.busy = 0  # calls refused because the log's queue was full
        self.unavailable = 0  # calls that failed because the log could not store
        self.refuses: Callable[[], Problem | None] = lambda: None  # why a WebSocket may publish nothing now
        self._clock = clock
        self._now = 0

    async def restore(self) -> None:
        """Take up where the log ends: its ids are remembered, time does not go back behind its last event."""
        now = self.now()
        most = max(self.dedup.max_ids, 1)  # the last event is wanted for its time in any case
        start = max(await self.log.find_time(now - self.dedup.window_ms), self.log.head - most)
        while events := await self.log.read(start, RESTORE_BYTES):
            self.dedup.restore(events)
            self._now = max(self._now, events[-1].time)
            start = events[-1].position

    def now(self) -> int:
        """Return the time for new events: milliseconds since the Unix epoch, never decreasing."""
        self._now = max(self._now, int(self._clock() * 1000))
        return self._now

    async def publish(self, events: Sequence[Event]) -> Receipt:
        """
        Store events that were minted with `now()` since the last await, and return once they are durable.

        Raises:
            Problem: 503, the log is busy or cannot store. The call may be repeated: what was stored
                nevertheless is a duplicate then, if it has an id.
        """
        fresh, originals = self.dedup.sift(events, self._now)
        try:
            async with timeout(ANSWER_SECONDS):
                await self._store(fresh)
                for original in originals:
                    await shield(original)
        except TimeoutError:
            self.unavailable += 1
            detail = f"the events are not durable after {ANSWER_SECONDS:g} seconds; they may still become so"
            raise Problem(503, detail, retry_after=RETRY_SLOW) from None
        except LogBusy as error:
            self.busy += 1
            detail = "more is being published than the log can take"
            raise Problem(503, detail, retry_after=error.retry_after) from None
        except LogUnavailable as error:
            self.unavailable += 1
            raise Problem(503, str(error), retry_after=error.retry_after) from None
        self.accepted += len(fresh)
        self.duplicates += len(events) - len(fresh)
        return Receipt(len(fresh), len(events) - len(fresh), self._cursor(fresh))

    async def publish_one(
        self,
        topic: str,
        data: bytes | msgspec.Raw,
        id: str | None = None,
        type: str | None = None,
        key: str | None = None,
        ttl: float | None = None,
        *,
        admit: Callable[[Event], None] = lambda _event: None,
    ) -> Receipt:
        """
        Publish one event given by its fields; `data` must be one JSON value, and UTF-8.

        Args:
            topic: see `Mint.event`, like the five that follow.
            data: what the event says.
            id: makes publishing idempotent.
            type: what it is.
            key: what it is about.
            ttl: seconds for which it is worth delivering.
            admit: says whether the event may be published; it may change its topic.

        Raises:
            Problem: 422 or 413, the event is refused; 503, as `publish`, or there is no memory for more; and
                what `admit` raises.
        """
        if (problem := self.refuses()) is not None:
            raise problem
        event = self.mint.event(self.now(), topic, data, id, type, key, ttl)
        admit(event)
        return await self.publish((event,))

    async def _store(self, events: list[Event]) -> None:
        if events:
            stored = self.log.append(events)
            self.dedup.pend(events, stored)
            # The outcome is the ids' as well: a cancelled publisher must not cancel it.
            await shield(stored)

    def _cursor(self, stored: list[Event]) -> str:
        """Return the cursor of the last event stored; of duplicates the head, behind their originals."""
        if stored:
            return str(Cursor(self.log.epoch, stored[-1].position, stored[-1].tag))
        return str(Cursor(self.log.epoch, self.log.head, self.log.head_tag))
