"""
The dispatcher: makes deliveries of the events of the log.

Strategy: each bucket of endpoints has a place, the number of the last message that was looked at for it.
The rows for some events and the move of that place are one transaction, so every endpoint that is to get an
event gets exactly one delivery, whoever is killed when. Buckets that stand at the same place move together
(`Group`); one that was taken over from somebody else catches up and joins the rest. A bucket without
endpoints has no place to keep: it begins where its first endpoint does.

Events are read first and then endpoints are looked at: an endpoint that was there before an event is known by
the time the event is looked at, whichever replica stored it.

Where nobody wants anything of what was looked at, the place is moved in memory, and in the store now and
then: that costs nothing while there are no webhooks, and events that nobody wants are looked at twice at
worst.

What cannot be read any more, because retention took it or the log is another one, is a gap: it is announced
(`$webhooks.dispatch.gap`) and counted, and dispatching goes on behind it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from fanout.event import Event
from gateway.log import LogDamaged, LogError, StoreUnavailable
from webhooks import parcels
from webhooks.announcing import Announcing, Notice
from webhooks.counters import Counters
from webhooks.directory import Directory
from webhooks.envelope import Message as Content
from webhooks.envelope import message_id
from webhooks.lane import Lane
from webhooks.logbook import Logbook
from webhooks.operations import Misplaced
from webhooks.ownership import Fenced
from webhooks.parcels import Parcels
from webhooks.records import LOG_BITS, Due, Message, message_number
from webhooks.sending import Sending
from webhooks.source import Source
from webhooks.store import Store
from webhooks.tenure import Tenure

log = logging.getLogger(__name__)

MAX_DELIVERIES: Final = 2000
"""Deliveries of one transaction; those of one event are never split."""
LAZY_SECONDS: Final = 1.0
LAZY_EVENTS: Final = 5000
"""A place is written down after so long, or so many events, that nobody wanted."""
BACK_OFF: Final = 0.5
"""Seconds before it is tried again, when log or store cannot be asked."""
_POSITION: Final = (1 << LOG_BITS) - 1


class Changed(Protocol):
    """Says whether endpoints may have changed since it was asked last."""

    def __call__(self, *, seen: bool) -> bool:
        """
        Args:
            seen: events were read, and whatever happened before them has to be known now.
        """


@dataclass(eq=False, slots=True)
class Group:
    """
    Buckets that stand at the same place.

    Attributes:
        place: number of the last message that was looked at.
        stored: the same, as the store has it for all of them.
        buckets: which.
    """

    place: int
    stored: int
    buckets: set[int]


@dataclass(slots=True)
class _Batch:
    """What some events come to."""

    last: int
    messages: list[Message]
    deliveries: list[tuple[int, int, int]]
    offers: list[tuple[Lane, Due]]


class Dispatcher:
    """
    Dispatches.

    Args:
        source: the log.
        store: where deliveries are made.
        directory: whose they are.
        tenure: says which buckets are ours.
        logbook: knows the numbers of logs.
        sending: gets what was just stored.
        kept: messages in memory.
        announcing: tells about gaps.
        changed: see `Changed`.
        clock: milliseconds since the Unix epoch.
        counters: where it is counted.
    """

    def __init__(
        self,
        source: Source,
        store: Store,
        directory: Directory,
        tenure: Tenure,
        logbook: Logbook,
        sending: Sending,
        kept: Parcels,
        announcing: Announcing,
        changed: Changed,
        clock: Callable[[], int],
        counters: Counters,
    ) -> None:
        self.groups: list[Group] = []
        self.trouble: str | None = None
        self._source = source
        self._store = store
        self._directory = directory
        self._tenure = tenure
        self._logbook = logbook
        self._sending = sending
        self._kept = kept
        self._announcing = announcing
        self._changed = changed
        self._clock = clock
        self._counters = counters
        self._idle: dict[int, int] = {}  # buckets without endpoints, and their places as the store has them
        self._stale = True  # endpoints may have changed
        self._unsure = False  # whether a transaction happened is not known
        self._lazy_since = 0.0
        self._wanted = asyncio.Event()
        self._lock = asyncio.Lock()  # whoever changes groups has it

    def wake(self) -> None:
        """There is something to look at."""
        self._wanted.set()

    @property
    def lag(self) -> int:
        """How many events behind the head of the log the furthest bucket is."""
        head = self._source.head
        behind = [head - (group.place & _POSITION) for group in self.groups]
        return max(0, *behind) if behind else 0

    async def run(self) -> None:
        """Dispatch until cancelled."""
        while True:
            lazy = any(group.place != group.stored for group in self.groups)
            try:
                async with asyncio.timeout(LAZY_SECONDS if lazy else None):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            try:
                while await self._step():
                    pass
                self.trouble = None
            except (LogError, Fenced, Misplaced) as error:
                self._failed(error)
                await asyncio.sleep(BACK_OFF)
                self._wanted.set()
            except Exception:
                self._unsure = self._stale = True
                self._wanted.set()
                raise

    # --- buckets --------------------------------------------------------------------------------------------

    async def take(self, places: dict[int, int]) -> None:
        """Dispatch for buckets from now on, whose endpoints are in the directory."""
        async with self._lock:
            self._idle |= places
            self._activate(places)
        self.wake()

    async def drop(self, buckets: Collection[int]) -> None:
        """Dispatch for buckets no more; nothing is under way for them when this returns."""
        async with self._lock:
            for group in self.groups:
                if group.buckets.intersection(buckets):
                    await self._move(group)  # so that whoever comes next looks at nothing twice
                group.buckets.difference_update(buckets)
            self.groups = [group for group in self.groups if group.buckets]
            for bucket in buckets:
                self._idle.pop(bucket, None)

    def lost(self) -> None:
        """Nothing is ours any more."""
        self.groups = []
        self._idle.clear()

    async def flush(self) -> None:
        """Write down the places that are not."""
        async with self._lock:
            for group in self.groups:
                await self._move(group)

    def _activate(self, buckets: Iterable[int]) -> None:
        """Give buckets a place that have endpoints and had none."""
        for bucket in list(buckets):
            lanes = self._directory.of(bucket)
            if bucket in self._idle and lanes:
                stored = self._idle.pop(bucket)
                begin = min(lane.since for lane in lanes)
                self.groups.append(Group(max(stored, begin), stored, {bucket}))
        self._merge()

    def _merge(self) -> None:
        """Have those move together that stand together."""
        found: dict[tuple[int, int], Group] = {}
        for group in self.groups:
            other = found.setdefault((group.place, group.stored), group)
            if other is not group:
                other.buckets |= group.buckets
        self.groups = sorted(found.values(), key=lambda group: group.place)

    # --- steps ----------------------------------------------------------------------------------------------

    async def _step(self) -> bool:
        """Look at the next events for whoever is furthest behind; return whether there may be more to do."""
        async with self._lock:
            if self._unsure:
                await self._learn()
            if self._changed(seen=False) or self._stale:
                await self._refresh()
            if not self.groups or not self._source.epoch:
                return False
            number = await self.number()
            group = min(self.groups, key=lambda each: each.place)
            if not await self._is_there(group, number):
                return True
            after = group.place & _POSITION
            try:
                events = await self._source.read(after)
            except LogDamaged as error:
                if error.last is None:
                    raise
                log.error("webhooks.log_damaged: %s", error)  # noqa: TRY400  (its sentence says all)
                await self._gap(group, "expired", message_number(number, error.last))
                return True
            if self._source.first > after + 1 and (not events or events[0].position > after + 1):
                await self._gap(group, "expired", message_number(number, self._source.first - 1))
                return True
            if not events:
                return await self._rest()
            if self._changed(seen=True):
                await self._refresh()
            await self._dispatch(group, number, events)
            return True

    async def number(self) -> int:
        """Return the number of the log as it is now, which is not before any that a bucket is at."""
        seen = max((group.place for group in self.groups), default=0) >> LOG_BITS
        return await self._logbook.number(self._source.epoch, seen)

    async def _is_there(self, group: Group, number: int) -> bool:
        """Say whether a group's place is one of this log; if not, announce a gap and go on behind it."""
        known, position = group.place >> LOG_BITS, group.place & _POSITION
        if known != number:
            await self._gap(group, "reset", message_number(number, 0))
            return False
        if not await self._source.reaches(position):
            # The log lost its end. What takes those positions now must not be mistaken for what was there.
            another = await self._logbook.replace(self._source.epoch, number)
            await self._gap(group, "reset", message_number(another, self._source.head))
            return False
        return True

    async def _rest(self) -> bool:
        """All is looked at: now and then write down how far. Returns False."""
        lazy = [group for group in self.groups if group.place != group.stored]
        if len(self.groups) > 1:
            for group in self.groups:
                await self._move(group)
            self._merge()
        elif lazy and time.monotonic() - self._lazy_since > LAZY_SECONDS:
            await self._move(lazy[0])
        return False

    async def _dispatch(self, group: Group, number: int, events: list[Event]) -> None:
        """Make deliveries of events, and move a group behind them."""
        others = [each.place for each in self.groups if each.place > group.place]
        batch = self._batch(group, number, events, min(others, default=message_number(number + 1, 0)))
        if not batch.deliveries:
            self._look_past(group, batch.last)
            if len(self.groups) > 1:
                if batch.last in others:
                    for each in self.groups:
                        await self._move(each)
                self._merge()
            return
        await self._commit(group, batch.last, batch.messages, batch.deliveries)
        self._counters.dispatched += len(batch.deliveries)
        for lane, due in batch.offers:
            self._sending.offer(lane, due)
        if others:
            for each in self.groups:
                await self._move(each)
            self._merge()

    def _look_past(self, group: Group, last: int) -> None:
        if group.place == group.stored:
            self._lazy_since = time.monotonic()
        group.place = last

    def _batch(self, group: Group, number: int, events: list[Event], end: int) -> _Batch:
        """Work out what events come to, up to number `end`."""
        now = self._clock()
        epoch = self._source.epoch
        all_buckets = len(self.groups) == 1
        match = self._directory.match
        batch = _Batch(group.place, [], [], [])
        for event in events:
            last = message_number(number, event.position)
            if last > end or len(batch.deliveries) >= MAX_DELIVERIES:
                break
            batch.last = last
            self._counters.events += 1
            if not event.topic:  # stands for positions that hold nothing
                continue
            content: list[Content] = []

            def made(event: Event = event, content: list[Content] = content) -> Content:
                if not content:
                    cursor = f"{epoch}-{event.position}-{event.tag:04x}"
                    content.append(Content(message_id(cursor), cursor, event.body))
                return content[0]

            lanes = match(event.topic, last, made)
            if not all_buckets:
                lanes = [lane for lane in lanes if lane.bucket in group.buckets]
            if not lanes:
                continue
            message = made()
            batch.messages.append(
                Message(
                    last, event.topic, message.event_id, message.type, event.time, event.expires, event.body
                )
            )
            self._kept.put(last, parcels.parcel(message, event.time, event.expires))
            for lane in lanes:
                # Times never decrease along the log, which is the order that FIFO needs. The others must not
                # wait for a clock that was set back.
                due = event.time if lane.is_fifo else min(event.time, now)
                batch.deliveries.append((lane.id, last, due))
                batch.offers.append((lane, Due(lane.id, last, due, 0, 0)))
        return batch

    async def _move(self, group: Group) -> None:
        """Write down a group's place, if it is not."""
        if group.place != group.stored:
            await self._commit(group, group.place, [], [])

    async def _commit(
        self, group: Group, last: int, messages: list[Message], deliveries: list[tuple[int, int, int]]
    ) -> None:
        try:
            await self._store.dispatch(
                self._tenure.owner, group.buckets, group.stored, last, messages, deliveries
            )
        except (StoreUnavailable, Misplaced, asyncio.CancelledError):
            self._unsure = True
            raise
        group.place = group.stored = last

    async def _refresh(self) -> None:
        """Take in what has changed about endpoints."""
        self._stale = True
        changed = await self._directory.refresh()
        self._stale = False
        for lane in changed:
            if lane.bucket in self._idle:
                self._activate((lane.bucket,))
            lane.behind = True
            self._sending.wake(lane)

    async def _learn(self) -> None:
        """Ask the store where our buckets are: it is not known whether they were moved."""
        places = await self._tenure.places()
        self.groups = []
        self._idle = {bucket: place for bucket, place in places.items() if bucket in self._tenure.buckets}
        self._activate(list(self._idle))
        self._unsure = False
        for lane in self._directory.lanes.values():  # rows may have been made that nobody was told of
            lane.behind = True
            self._sending.wake(lane)

    async def _gap(self, group: Group, reason: str, place: int) -> None:
        """Announce that a group misses a part of the log, and go on behind it."""
        log.error("webhooks.gap", extra={"reason": reason, "after": group.place, "upto": place})
        self._counters.gaps += 1
        data = {
            "reason": reason,
            "after": group.place & _POSITION,
            "upto": place & _POSITION,
            "endpoints": [
                lane.endpoint.id for lane in self._directory.lanes.values() if lane.bucket in group.buckets
            ][:100],
        }
        await self._announcing.announce([Notice("dispatch.gap", f"webhook.gap.{group.place}.{place}", data)])
        await self._commit(group, place, [], [])
        self._merge()

    def _failed(self, error: Exception) -> None:
        if self.trouble != str(error):
            log.warning("webhooks.dispatch_waits: %s", error)
        self.trouble = str(error) or type(error).__name__
        if isinstance(error, Fenced):
            self._tenure.check()
