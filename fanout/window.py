"""
The window: the recent part of the log, held in memory.

It serves every resume that is not too old, without touching the disk. Bounded by bytes, count and age, and
the bytes are exact: what caching an event's frames costs is counted too. Besides the events in order it keeps
one run of events per topic, so a client of one topic out of many reads only what is its own.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Final

from fanout.cursor import Cursor
from fanout.event import OVERHEAD_BYTES, Event
from fanout.frames import Wire, event_frame
from fanout.selection import Filter

MAX_MERGED: Final = 32
"""Up to this many topics their runs are merged; a selection of more topics reads the whole window."""

MAX_SCAN: Final = 4096
"""
Events looked at in one read; a longer stretch without a match is read in several, so that nobody else waits.
"""

ALIGNMENT: Final = 64
"""
A read that is more than half full ends where the positions pass a multiple of this. So readers of the same
thing that began at different places soon read the same parts, which can then be shared.
"""

_position = attrgetter("position")
_time = attrgetter("time")


class Run:
    """
    Events in the order of their positions: grows at the end, is dropped from the front, found by position in
    O(log n).
    """

    __slots__ = ("_dropped", "_events")

    def __init__(self) -> None:
        self._events: list[Event | None] = []
        self._dropped = 0  # how many at the front are gone; the list is shortened now and then, not each time

    def __len__(self) -> int:
        return len(self._events) - self._dropped

    def append(self, event: Event) -> None:
        """Add an event behind all others."""
        self._events.append(event)

    def drop_first(self) -> None:
        """Forget the oldest event."""
        self._events[self._dropped] = None
        self._dropped += 1
        if self._dropped > 32 and self._dropped * 2 > len(self._events):
            del self._events[: self._dropped]
            self._dropped = 0

    def first(self) -> Event:
        """Return the oldest event; there must be one."""
        event = self._events[self._dropped]
        assert event is not None
        return event

    def after(self, position: int) -> Iterator[Event]:
        """Iterate over the events behind `position`. The run must not change meanwhile."""
        events: list[Event] = self._events  # type: ignore[assignment]  # only what was dropped is None
        at = bisect_right(events, position, lo=self._dropped, key=_position)
        # Not `islice`, which would walk over all that is before.
        return map(events.__getitem__, range(at, len(events)))

    def before(self, position: int) -> Iterator[Event]:
        """Iterate backwards over the events up to and including `position`."""
        events: list[Event] = self._events  # type: ignore[assignment]
        for at in range(
            bisect_right(events, position, lo=self._dropped, key=_position) - 1, self._dropped - 1, -1
        ):
            yield events[at]

    def last_before(self, time_ms: int) -> Event | None:
        """Return the last event accepted before `time_ms` (times never decrease), if it is here."""
        events: list[Event] = self._events  # type: ignore[assignment]
        at = bisect_right(events, time_ms - 1, lo=self._dropped, key=_time)
        return events[at - 1] if at > self._dropped else None

    def at(self, position: int) -> Event | None:
        """Return the event at exactly `position`, if it is here."""
        event = next(self.after(position - 1), None)
        return event if event is not None and event.position == position else None


@dataclass(frozen=True, slots=True)
class Stretch:
    """
    Part of the log as one connection sees it.

    Attributes:
        frames: the frames of the events it wants, in order.
        upto: it has now seen everything up to this position.
        more: whether the limits cut it, so there may be more to read at once.
    """

    frames: list[bytes]
    upto: int
    more: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Bounds of one read: `events`, `bytes` of frames (one frame may be larger) and the time `now` that decides
    what has expired (ms).
    """

    events: int
    bytes: int
    now: int


class Window:
    """
    The recent part of one log.

    Args:
        epoch: that of the log.
        max_bytes: what the events, with overhead and cached frames, may cost.
        max_events: how many there may be; 0 is any number.
        max_age_ms: how old they may get; 0 is any age.
    """

    def __init__(self, epoch: str, max_bytes: int, max_events: int, max_age_ms: int = 0) -> None:
        self.epoch = epoch
        self.max_bytes = max_bytes
        self.max_events = max_events or sys.maxsize
        self.max_age_ms = max_age_ms
        self.bytes = 0
        self.head = 0  # position of the newest event of the log
        self.head_tag = 0
        self.floor = 0  # events behind this position are here; it and all before are not
        self.evicted = 0  # how many events have left, for the metrics
        self.restarts = 0  # positions from before the last one mean nothing
        self._events = Run()
        self._topics: dict[str, Run] = {}

    def __len__(self) -> int:
        return len(self._events)

    def begin(self, head: int, head_tag: int) -> None:
        """Set where the log stands when the window is still empty."""
        self.head = self.floor = head
        self.head_tag = head_tag

    def restart(self, epoch: str, head: int, head_tag: int) -> None:
        """Forget everything: from now on this is the window of another log."""
        while len(self._events):
            self._drop_first()
        self.restarts += 1
        self.epoch = epoch
        self.begin(head, head_tag)

    def preload(self, events: list[Event]) -> None:
        """Fill the empty window with the newest part of the log: events without a hole up to its head."""
        if events:
            self.floor = events[0].position - 1
            self.append(events)
            self.evict(0)

    def append(self, batch: list[Event]) -> None:
        """Take in the next events of the log; `evict` then lets the oldest go."""
        events, topics = self._events, self._topics
        for event in batch:
            events.append(event)
            run = topics.get(event.topic)
            if run is None:
                run = topics[event.topic] = Run()
            run.append(event)
            self.bytes += OVERHEAD_BYTES + len(event.body)
        self.head = batch[-1].position
        self.head_tag = batch[-1].tag

    def evict(self, now: int) -> None:
        """Drop the oldest events until every bound holds at `now` (ms; 0 leaves age out)."""
        oldest_allowed = now - self.max_age_ms if self.max_age_ms else 0
        while len(self._events) and (
            self.bytes > self.max_bytes
            or len(self._events) > self.max_events
            or self._events.first().time < oldest_allowed
        ):
            self._drop_first()

    def _drop_first(self) -> None:
        event = self._events.first()
        self._events.drop_first()
        run = self._topics[event.topic]
        run.drop_first()
        if not run:
            del self._topics[event.topic]
        cached = sum(map(len, event.frames.values())) if event.frames else 0
        event.frames = None
        self.bytes -= OVERHEAD_BYTES + len(event.body) + cached
        self.floor = event.position
        self.evicted += 1

    def frame(self, event: Event, wire: Wire) -> bytes:
        """Return the event's frame for `wire`, encoded at most once as long as the event is in the window."""
        frames = event.frames
        if frames is None:
            frames = event.frames = {}
        frame = frames.get(wire)
        if frame is None:
            frame = frames[wire] = event_frame(wire, self.cursor_of(event), event.body)
            self.bytes += len(frame)
        return frame

    def cursor_of(self, event: Event) -> str:
        """Return the cursor text that names `event`."""
        return f"{self.epoch}-{event.position}-{event.tag:04x}"

    def cursor(self, position: int) -> str:
        """Return the cursor text of a position; without a tag where the event is not here."""
        if position == self.head:
            tag = self.head_tag
        else:
            event = self._events.at(position)
            tag = event.tag if event is not None else 0
        return str(Cursor(self.epoch, position, tag))

    def tag_at(self, position: int) -> int:
        """Return the tag of the event at `position`; 0 when it is not known here."""
        if position == self.head:
            return self.head_tag
        event = self._events.at(position)
        return event.tag if event is not None else 0

    def read(self, wanted: Filter, wire: Wire, after: int, limits: Limits) -> Stretch:
        """Return what `wanted` picks of the events behind `after`; `after` must not be before `floor`."""
        stretch = _take(
            candidates(self._events, self._topics, wanted, after),
            wanted,
            partial(self.frame, wire=wire),
            limits,
            self.head,
        )
        if self.bytes > self.max_bytes:  # by the frames just cached
            self.evict(0)
        return stretch

    def read_stored(
        self, events: Iterable[Event], wanted: Filter, wire: Wire, limits: Limits, end: int
    ) -> Stretch:
        """
        Return what `wanted` picks of `events`, from a stretch of the log up to position `end` that is not in
        the window.

        Their frames are not kept: nobody would count them, and whoever stands at the same place shares whole
        parts.
        """

        def encode(event: Event) -> bytes:
            return event_frame(wire, self.cursor_of(event), event.body)

        return _take(events, wanted, encode, limits, end)

    def after(self, position: int, most: int, max_bytes: int) -> list[Event]:
        """
        Return the events behind `position`, which must not be before `floor`: at most so many, and not many
        more bytes of them.
        """
        found = []
        size = 0
        for event in islice(self._events.after(position), most):
            found.append(event)
            size += len(event.body)
            if size >= max_bytes:
                break
        return found

    def newest(self, wanted: Filter, count: int, upto: int) -> tuple[int, int]:
        """
        Look back from `upto` for the last `count` events that `wanted` picks.

        Returns:
            The position to start after so that they come, and how many of them the window does not reach.
        """
        for event in self._events.before(upto):
            if wanted.picks(event):
                count -= 1
                if count == 0:
                    return event.position - 1, 0
        return self.floor, count

    def newest_by_key(self, wanted: Filter, after: int, now: int) -> list[Event]:
        """
        Return, of the events behind `after` that `wanted` picks, the newest of each key; those without key
        are left out.
        """
        newest: dict[str, Event] = {}
        for event in self._events.before(self.head):
            if event.position <= after:
                break
            if event.key is not None and event.key not in newest and wanted.picks(event):
                newest[event.key] = event
        return [event for event in reversed(newest.values()) if not 0 < event.expires <= now]

    def position_before(self, time_ms: int) -> int | None:
        """Return the position of the last event accepted before `time_ms`; None if only the log can tell."""
        event = self._events.last_before(time_ms)
        return event.position if event is not None else None

    def topics(self) -> dict[str, int]:
        """Return the topics in the window with the number of their events."""
        return {topic: len(run) for topic, run in self._topics.items()}


def candidates(events: Run, topics: dict[str, Run], wanted: Filter, after: int) -> Iterable[Event]:
    """
    Return the events behind `after` that `wanted` may want.

    Args:
        events: all there are.
        topics: the same by topic.
        wanted: with topics of which the runs are merged, or else it may want everything.
        after: a position.
    """
    names = wanted.topics
    if names is None or len(names) > MAX_MERGED:
        return events.after(after)
    runs = [topics[name].after(after) for name in names if name in topics]
    return runs[0] if len(runs) == 1 else merge(*runs, key=_position)


def _take(
    events: Iterable[Event], wanted: Filter, encode: Callable[[Event], bytes], limits: Limits, end: int
) -> Stretch:
    """
    Return what `wanted` picks of `events`, up to the limits; `end` is the position that has been seen when
    all were.
    """
    frames: list[bytes] = []
    size = 0
    upto = 0
    for scanned, event in enumerate(events, 1):
        if size * 2 > limits.bytes and event.position // ALIGNMENT != upto // ALIGNMENT:
            return Stretch(frames, upto, more=True)
        if wanted.picks(event) and not 0 < event.expires <= limits.now:
            frame = encode(event)
            if frames and size + len(frame) > limits.bytes:
                return Stretch(frames, upto, more=True)
            frames.append(frame)
            size += len(frame)
        upto = event.position
        if len(frames) >= limits.events or scanned >= MAX_SCAN:
            return Stretch(frames, upto, more=upto < end)
    return Stretch(frames, end, more=False)
