"""
The directory: the lanes of this process, and which of them an event is for.

It follows the store by revisions: one change of any endpoint has a higher one than those before, so what was
not seen yet is found by one number. Topics go through the same index as those of subscribers, so that
thousands of endpoints cost an event nothing that do not want it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable

from fanout.topics import PatternIndex
from webhooks import records
from webhooks.attempt import Target
from webhooks.endpoint import State
from webhooks.envelope import Message
from webhooks.errors import Invalid
from webhooks.guard import Guard
from webhooks.lane import Lane
from webhooks.records import Status
from webhooks.schedule import Dice
from webhooks.store import Store
from webhooks.stored import loaded, record_of, since_of
from webhooks.target import UrlRefused

log = logging.getLogger(__name__)

PAGE = 500
"""Endpoints that the store is asked for at a time."""


class Directory:
    """
    All lanes of this process.

    Args:
        store: where endpoints are kept.
        guard: says where may be sent to.
        dice: spreads waits.
        clock: milliseconds since the Unix epoch.

    Attributes:
        lanes: by the ids of their endpoints.
        on_gone: told of each lane that is looked after here no more.
    """

    def __init__(self, store: Store, guard: Guard, dice: Dice, clock: Callable[[], int]) -> None:
        self.lanes: dict[int, Lane] = {}
        self.on_gone: Callable[[Lane], None] = lambda _: None
        self._store = store
        self._guard = guard
        self._dice = dice
        self._clock = clock
        self._index: PatternIndex[Lane] = PatternIndex()
        self._indexed: dict[int, tuple[str, ...]] = {}
        self._buckets: dict[int, dict[int, Lane]] = {}
        self._revision = 0

    @property
    def buckets(self) -> Collection[int]:
        """Buckets whose endpoints are here."""
        return self._buckets.keys()

    def of(self, bucket: int) -> Collection[Lane]:
        """Return the lanes of a bucket."""
        return self._buckets.get(bucket, {}).values()

    async def admit(self, buckets: Collection[int]) -> None:
        """Take in the endpoints of buckets that this process holds from now on."""
        for bucket in buckets:
            self._buckets.setdefault(bucket, {})
        after = 0
        while True:
            rows = await self._store.list_endpoints(after, PAGE)
            for row in rows:
                if row.bucket in buckets and row.id not in self.lanes:
                    self._see(row)
            if len(rows) < PAGE:
                return
            after = rows[-1].id

    def dismiss(self, buckets: Iterable[int]) -> None:
        """Let go of the endpoints of buckets, which are another's now, or nobody's."""
        for bucket in buckets:
            for lane in list(self._buckets.pop(bucket, {}).values()):
                lane.lost = True
                self._drop(lane)

    async def refresh(self) -> list[Lane]:
        """Take in what has changed since the last time; return the lanes that are not as before."""
        changed = []
        while True:
            rows = await self._store.list_changed_endpoints(self._revision, PAGE)
            for row in rows:
                lane = self._see(row)
                if lane is not None:
                    changed.append(lane)
                self._revision = row.revision
            if len(rows) < PAGE:
                return changed

    def match(self, topic: str, number: int, message: Callable[[], Message]) -> list[Lane]:
        """
        Return the lanes that get an event.

        Args:
            topic: the event's.
            number: of its message.
            message: makes the message, if anything but its topic has to be looked at.
        """
        found = self._index.match(topic)
        if not found:
            return []
        wanting = [lane for lane in found if number > lane.since]
        return [lane for lane in wanting if not lane.endpoint.is_picky or lane.endpoint.wants(message())]

    def _see(self, row: records.Endpoint) -> Lane | None:
        """Take in a row; return its lane if there is something new about it."""
        lane = self.lanes.get(row.id)
        if row.bucket not in self._buckets or (lane is not None and row.revision <= lane.revision):
            return None
        if row.status is Status.REMOVED:
            if lane is not None:
                self._drop(lane)
            return None
        now = self._clock()
        try:
            fresh = loaded(row, self._dice, now)
        except (Invalid, ValueError):
            log.exception("webhooks.endpoint_unreadable", extra={"endpoint": row.id})
            return None
        target = self._target(fresh.description.url)
        if lane is None:
            lane = Lane(row.id, row.bucket, row.revision, since_of(row), fresh, target)
            self.lanes[row.id] = self._buckets[row.bucket][row.id] = lane
        else:
            endpoint, before = lane.endpoint, lane.endpoint.state
            endpoint.change(fresh.description, now)
            endpoint.keys = fresh.keys
            endpoint.state = fresh.state
            if before is not State.ACTIVE and fresh.state is State.ACTIVE:
                endpoint.health.record = record_of(row.health)
            lane.saved = row.health
            lane.become(row.revision, endpoint, target)
        self._put(lane)
        if not lane.is_open:
            lane.empty()
        return lane

    def _target(self, url: str) -> Target | None:
        try:
            return self._guard.admit(url)
        except UrlRefused as error:
            log.warning("webhooks.url_refused: %s", error)
            return None

    def _put(self, lane: Lane) -> None:
        """Have a lane found by its patterns, and no others."""
        before, now = self._indexed.get(lane.id, ()), tuple(lane.patterns)
        for pattern in before:
            if pattern not in now:
                self._index.discard(pattern, lane)
        for pattern in now:
            if pattern not in before:
                self._index.add(pattern, lane)
        self._indexed[lane.id] = now

    def _drop(self, lane: Lane) -> None:
        lane.over = True
        lane.empty()
        for pattern in self._indexed.pop(lane.id, ()):
            self._index.discard(pattern, lane)
        del self.lanes[lane.id]
        self._buckets.get(lane.bucket, {}).pop(lane.id, None)
        self.on_gone(lane)
