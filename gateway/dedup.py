"""
The memory of ids: what makes publishing idempotent.

Only ids that producers chose are remembered, for a time that covers their retries. An id is *pending* while
its event is on the way to the log and *known* once the event is durable, so a failed append leaves nothing
behind to clean up.

The known ids lie in a few generations by age, and are forgotten by dropping the oldest. A generation is a
plain dict of strings and numbers: Python's garbage collector never walks through those, so a million ids make
no pause.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final

from fanout.event import Event

GENERATIONS: Final = 8
"""Parts of the window, and of `max_ids`, that a generation covers: few make a look-up quick, many exact."""

Stored = asyncio.Future[None]
"""The outcome of an append: done when the events are durable, or failed."""


class _Generation:
    """Ids that became known one after the other, each with the millisecond at which it is forgotten."""

    __slots__ = ("end", "full_at", "ids")

    def __init__(self, full_at: int) -> None:
        self.ids: dict[str, int] = {}
        self.end = 0  # the last of their ends
        self.full_at = full_at  # an id that ends then or later belongs to the next generation


class Dedup:
    """
    The ids published lately.

    Args:
        seconds: how long an id is remembered, counted from its event's time; 0 is not at all.
        max_ids: how many are remembered at most; beyond it the oldest eighth goes.
    """

    def __init__(self, seconds: float, max_ids: int) -> None:
        self.window_ms = round(seconds * 1000) if max_ids else 0
        self.max_ids = max_ids
        self.forgotten = 0  # ids that went because there were too many, not because of their age
        self._generations: deque[_Generation] = deque()  # oldest first
        self._share = max(max_ids // GENERATIONS, 1)  # ids of a full generation
        self._pending: dict[str, Stored] = {}

    def __len__(self) -> int:
        return self._known() + len(self._pending)

    def sift(self, events: Sequence[Event], now: int) -> tuple[list[Event], set[Stored]]:
        """
        Return the events that are no duplicates, and the outcomes on which those that are still depend.

        A duplicate of a pending event is as durable as that one, so its publisher waits for the same outcome.
        """
        while self._generations and self._generations[0].end <= now:
            self._generations.popleft()
        fresh: list[Event] = []
        originals: set[Stored] = set()
        own: set[str] = set()
        for event in events:
            id = event.unique
            if id is not None and self.window_ms:
                if id in own or self._knows(id, now):
                    continue
                original = self._pending.get(id)
                if original is not None and not _failed(original):
                    originals.add(original)
                    continue
                own.add(id)
            fresh.append(event)
        return fresh, originals

    def pend(self, events: Iterable[Event], stored: Stored) -> None:
        """Remember the ids of events that were just handed to the log, and settle them with the outcome."""
        named = self._named(events)
        if named:
            self._pending.update((id, stored) for id, _ in named)
            stored.add_done_callback(lambda stored: self._settle(named, stored))

    def restore(self, events: Iterable[Event]) -> None:
        """Remember the ids of events that are in the log; given in the log's order, at the start."""
        self._learn(self._named(events))

    def clear(self) -> None:
        """Forget what is known: the log does not have it any more."""
        self._generations.clear()

    def _named(self, events: Iterable[Event]) -> list[tuple[str, int]]:
        """Return id and time of the events whose ids are to be remembered."""
        if not self.window_ms:
            return []
        return [(id, event.time) for event in events if (id := event.unique) is not None]

    def _settle(self, named: list[tuple[str, int]], stored: Stored) -> None:
        for id, _ in named:
            # After a failure the id may be pending again: for a retry that came before this callback.
            if self._pending.get(id) is stored:
                del self._pending[id]
        if not _failed(stored):
            self._learn(named)

    def _knows(self, id: str, now: int) -> bool:
        for generation in self._generations:  # noqa: SIM110  # half as long as any(): it is asked for every event
            if generation.ids.get(id, 0) > now:
                return True
        return False

    def _known(self) -> int:
        return sum(len(generation.ids) for generation in self._generations)

    def _learn(self, named: list[tuple[str, int]]) -> None:
        """Make ids known, in the order of their times; those of one call share one: they come in groups."""
        for time, group in groupby(named, itemgetter(1)):
            end = time + self.window_ms
            ids = [id for id, _ in group]
            for at in range(0, len(ids), self._share):
                part = dict.fromkeys(ids[at : at + self._share], end)
                newest = self._newest(end, len(part))
                newest.ids.update(part)
                newest.end = end
        while self._known() > self.max_ids:
            self.forgotten += len(self._generations.popleft().ids)

    def _newest(self, end: int, room: int) -> _Generation:
        """Return the generation for ids with this end; a new one if the newest has no room or is too old."""
        if self._generations:
            newest = self._generations[-1]
            if end < newest.full_at and len(newest.ids) + room <= self._share:
                return newest
        newest = _Generation(end + max(self.window_ms // GENERATIONS, 1))
        self._generations.append(newest)
        return newest


def _failed(stored: Stored) -> bool:
    return stored.done() and (stored.cancelled() or stored.exception() is not None)
