"""
The memory of ids: what makes publishing idempotent.

Only ids that producers chose are remembered, for a time that covers their retries. An id is *pending* while
its event is on the way to the log and *known* once the event is durable. Only the known ones need an order to
be forgotten in, and it is the log's own, so a failed append leaves nothing behind to clean up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence

from fanout.event import Event

Stored = asyncio.Future[None]
"""The outcome of an append: done when the events are durable, or failed."""


class Dedup:
    """
    The ids published lately.

    Args:
        seconds: how long an id is remembered, counted from its event's time; 0 is not at all.
        max_ids: how many are remembered at most, about 150 bytes each beside the id; the oldest go first.
    """

    def __init__(self, seconds: float, max_ids: int) -> None:
        self.window_ms = round(seconds * 1000) if max_ids else 0
        self.max_ids = max_ids
        self.forgotten = 0  # ids that had to go before their time, because there were too many
        self._known: set[str] = set()
        self._order: deque[str] = deque()  # the known ids, oldest first
        self._ends: deque[int] = deque()  # for each of them the millisecond at which it is forgotten
        self._pending: dict[str, Stored] = {}

    def __len__(self) -> int:
        return len(self._known) + len(self._pending)

    def sift(self, events: Sequence[Event], now: int) -> tuple[list[Event], set[Stored]]:
        """
        Return the events that are no duplicates, and the outcomes on which those that are still depend.

        A duplicate of a pending event is as durable as that one, so its publisher waits for the same outcome.
        """
        self._forget(now)
        fresh: list[Event] = []
        originals: set[Stored] = set()
        own: set[str] = set()
        for event in events:
            id = event.given_id
            if id is not None and self.window_ms:
                if id in self._known or id in own:
                    continue
                original = self._pending.get(id)
                if original is not None and not _failed(original):
                    originals.add(original)
                    continue
                own.add(id)
            fresh.append(event)
        return fresh, originals

    def pend(self, events: Sequence[Event], stored: Stored) -> None:
        """Remember the ids of events that were just handed to the log, and settle them with the outcome."""
        if not self.window_ms:
            return
        named = [event for event in events if event.given_id is not None]
        if named:
            self._pending.update((event.given_id or "", stored) for event in named)
            stored.add_done_callback(lambda stored: self._settle(named, stored))

    def restore(self, events: Iterable[Event]) -> None:
        """Remember the ids of events that are in the log; given in the log's order, at the start."""
        if self.window_ms:
            for event in events:
                if event.given_id is not None:
                    self._know(event.given_id, event.time)

    def _settle(self, events: Sequence[Event], stored: Stored) -> None:
        failed = _failed(stored)
        for event in events:
            id = event.given_id or ""
            # After a failure the id may be pending again: for a retry that came before this callback.
            if self._pending.get(id) is stored:
                del self._pending[id]
            if not failed:
                self._know(id, event.time)

    def _know(self, id: str, time: int) -> None:
        if id in self._known:  # twice in a restored log: it was forgotten in between, as now
            return
        self._known.add(id)
        self._order.append(id)
        self._ends.append(time + self.window_ms)
        if len(self._order) > self.max_ids:
            self._forget_oldest()
            self.forgotten += 1

    def _forget(self, now: int) -> None:
        while self._ends and self._ends[0] <= now:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        self._known.discard(self._order.popleft())
        self._ends.popleft()


def _failed(stored: Stored) -> bool:
    return stored.done() and (stored.cancelled() or stored.exception() is not None)
