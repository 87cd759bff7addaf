"""
Catching up: what a drained connection that is behind the head gets next.

Its overflow policy decides first, if it fell behind while live; then it is fed, at most `buffer_bytes` at a
time, from the window, or from the log where the window does not reach; what the log no longer has is
announced by a gap. At the head it becomes live. Nothing is queued for it meanwhile: its position is all there
is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto, unique
from typing import Final

from fanout.closing import FELL_BEHIND
from fanout.connection import Connection, Overflow, Signal
from fanout.event import Event
from fanout.frames import Wire, control_frame
from fanout.hub import Cohort, Hub
from fanout.selection import Filter
from fanout.window import Limits, Run, Stretch, candidates

SHARED_BYTES: Final = 8 << 20
"""Bytes of parts that are kept for sharing."""

SHARED_MS: Final = 1000
"""How long a part is shared: a crowd takes no longer, and what expires meanwhile is not sent for long."""


@unique
class Fed(Enum):
    """How feeding a connection ended."""

    LIVE = auto()
    """It is at the head."""
    MORE = auto()
    """It took what it was given and can take more at once."""
    FULL = auto()
    """Its sink is full; it reports when it drains."""
    NEEDS_LOG = auto()
    """The window does not reach back to its position: read the log there and call `feed_stored`."""
    CLOSED = auto()
    """Its policy closed it."""


def gap_members(reason: str, begin: str, end: str) -> bytes:
    """
    Return the JSON members of a gap: everything behind cursor `begin`, up to and including cursor `end`, is
    skipped.
    """
    return b'"reason":"%b","from":"%b","to":"%b"' % (reason.encode(), begin.encode(), end.encode())


def gap_frame(wire: Wire, reason: str, begin: str, end: str) -> bytes:
    """Return a gap as bytes of `wire`."""
    return control_frame(wire, "gap", gap_members(reason, begin, end), cursor=end)


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the log as bytes: `count` events' frames; whoever got them has everything up to `upto`."""

    payload: bytes
    count: int
    upto: int


def joined(stretch: Stretch) -> Part:
    """Return a stretch as bytes."""
    return Part(b"".join(stretch.frames), len(stretch.frames), stretch.upto)


class Block:
    """
    A stretch of the log that was read for those who are behind the window. As in the window, a client of one
    topic out of many reads only what is its own: it is many who read a block.

    Args:
        after: the position it begins behind.
        events: all that follow, at least one.
    """

    __slots__ = ("_run", "_topics", "after", "events")

    def __init__(self, after: int, events: list[Event]) -> None:
        self.after = after
        self.events = events
        self._run = Run()
        self._topics: dict[str, Run] = {}
        for event in events:
            self._run.append(event)
            run = self._topics.get(event.topic)
            if run is None:
                run = self._topics[event.topic] = Run()
            run.append(event)

    @property
    def end(self) -> int:
        """The position of its last event."""
        return self.events[-1].position

    def holds(self, position: int) -> bool:
        """Say whether the event that follows `position` is in here."""
        return self.after <= position < self.end

    def candidates(self, wanted: Filter, after: int) -> Iterable[Event]:
        """Return the events behind a position that `wanted` may want."""
        return candidates(self._run, self._topics, wanted, after)


class Shared:
    """
    The parts made lately, for those who stand at the same place and want the same: clients that come back
    together are given the same bytes, made once.
    """

    def __init__(self) -> None:
        self._parts: dict[tuple[Cohort, int], tuple[Part, int]] = {}  # oldest first, with when it was made
        self._bytes = 0

    def find(self, connection: Connection, now: int) -> Part | None:
        """Return the part that comes next for a connection, if it is here."""
        if connection.cohort is None or connection.backfill is not None:
            return None
        part, made = self._parts.get((connection.cohort, connection.position), (None, 0))
        return part if now - made <= SHARED_MS else None

    def keep(self, connection: Connection, part: Part, now: int) -> None:
        """Keep the part that a connection gets next for others."""
        if connection.cohort is not None and connection.backfill is None:
            self._drop((connection.cohort, connection.position))
            self._parts[connection.cohort, connection.position] = part, now
            self._bytes += len(part.payload)
            while self._bytes > SHARED_BYTES:
                self._drop(next(iter(self._parts)))

    def forget(self, now: int) -> None:
        """Drop what is too old."""
        while self._parts:
            key, (_, made) = next(iter(self._parts.items()))
            if now - made <= SHARED_MS:
                break
            self._drop(key)

    def clear(self) -> None:
        """Drop all."""
        self._parts.clear()
        self._bytes = 0

    def _drop(self, key: tuple[Cohort, int]) -> None:
        if key in self._parts:
            part, _ = self._parts.pop(key)
            self._bytes -= len(part.payload)


class CatchUp:
    """
    Feeds connections that are behind.

    Args:
        hub: where they belong.
        first: tells the position of the oldest event the log retains.
    """

    def __init__(self, hub: Hub, first: Callable[[], int]) -> None:
        self.hub = hub
        self.gaps: dict[str, int] = {"expired": 0, "reset": 0, "overflow": 0, "history": 0}
        self._first = first
        self._shared = Shared()

    def feed(self, connection: Connection, now: int) -> Fed:
        """
        Give a connection in CATCHING_UP the next part of what it lacks; `now` in ms decides which events
        have expired.
        """
        if connection.fell_behind and connection.overflow is not Overflow.CATCHUP:
            return self._apply_policy(connection, now)
        window = self.hub.window
        if connection.position < window.floor and connection.position + 1 < self._first():
            if not self.gap(connection, "expired", min(self._first() - 1, window.floor)):
                return Fed.FULL
            return Fed.MORE
        part = self._shared.find(connection, now)
        if part is None:
            if connection.position < window.floor:
                return Fed.NEEDS_LOG
            wanted, limits = self.hub.wanted(connection), self._limits(now)
            stretch = window.read(wanted, connection.wire, connection.position, limits)
            part = joined(stretch)
            if stretch.more:  # the head moves on: who comes later gets what is behind it as well
                self._shared.keep(connection, part, now)
        return self._give(connection, part)

    def feed_stored(self, connection: Connection, block: Block, now: int) -> Fed:
        """
        Give a connection in CATCHING_UP the next part out of a block that was read a moment ago, perhaps for
        somebody else.

        Returns:
            NEEDS_LOG when its position is not inside the block (any more).
        """
        if connection.position + 1 < self._first():
            return self.feed(connection, now)  # retention overtook it: a gap comes first
        if not block.holds(connection.position):
            return Fed.NEEDS_LOG  # it went on, or was rewound, meanwhile
        part = self._shared.find(connection, now)
        if part is None:
            wanted, wire, limits = self.hub.wanted(connection), connection.wire, self._limits(now)
            events = block.candidates(wanted, connection.position)
            part = joined(self.hub.window.read_stored(events, wanted, wire, limits, block.end))
            self._shared.keep(connection, part, now)
        return self._give(connection, part)

    def forget(self, now: int) -> None:
        """Let go of what was kept for sharing and is older than a moment; to be called now and then."""
        self._shared.forget(now)

    def restart(self) -> None:
        """Let go of all that was kept: the log became another one."""
        self._shared.clear()

    def _limits(self, now: int) -> Limits:
        return Limits(events=1_000_000, bytes=self.hub.buffer_bytes, now=now)

    def gap(self, connection: Connection, reason: str, end: int) -> bool:
        """Tell a connection that it goes on at position `end`; return whether its sink has room for more."""
        cursor = self.hub.window.cursor
        begin = cursor(connection.position)
        connection.gaps += 1
        self.gaps[reason] += 1
        return self._write(connection, gap_frame(connection.wire, reason, begin, cursor(end)), end)

    def _give(self, connection: Connection, part: Part) -> Fed:
        """Write a part to a connection and move its position."""
        if part.payload:
            connection.delivered += part.count
            self.hub.deliveries += part.count
            if not self._write(connection, part.payload, part.upto):
                return Fed.FULL
        connection.position = max(connection.position, part.upto)
        if connection.position >= self.hub.window.head:
            self.hub.caught_up(connection)
            return Fed.LIVE
        return Fed.MORE

    def _write(self, connection: Connection, payload: bytes, upto: int) -> bool:
        connection.position = upto
        if connection.sink.write(payload):
            return True
        connection.fire(Signal.FULL)
        connection.pauses += 1
        return False

    def _apply_policy(self, connection: Connection, now: int) -> Fed:
        """Decide about a connection that fell behind while live, if it missed anything."""
        hub, window = self.hub, self.hub.window
        after = max(connection.position, window.floor)
        missed = window.read(
            hub.wanted(connection), connection.wire, after, Limits(events=1, bytes=1, now=now)
        )
        if after == connection.position and not missed.frames:
            return self._give(connection, joined(missed))
        if connection.overflow is Overflow.DISCONNECT:
            connection.sink.close(FELL_BEHIND)
            return Fed.CLOSED
        return self._jump(connection, now)

    def _jump(self, connection: Connection, now: int) -> Fed:
        """
        Skip to the newest event of each key, then to the head, announcing each stretch that is left out.

        Written in parts of `buffer_bytes`, gaps included; when called again it goes on from the position
        reached, with what is newest then.
        """
        hub, window, wire = self.hub, self.hub.window, connection.wire
        here = connection.position
        parts: list[bytes] = []
        size = events = gaps = 0
        for event in window.newest_by_key(hub.wanted(connection), max(here, window.floor), now):
            gap = self._skip(wire, here, event.position - 1)
            part = gap + window.frame(event, wire)
            if parts and size + len(part) > hub.buffer_bytes:
                break
            parts.append(part)
            size += len(part)
            events += 1
            gaps += bool(gap)
            here = event.position
        else:
            gap = self._skip(wire, here, window.head)
            if not parts or size + len(gap) <= hub.buffer_bytes:
                parts.append(gap)
                gaps += bool(gap)
                here = window.head
        window.evict(0)  # the frames just cached count
        connection.gaps += gaps
        self.gaps["overflow"] += gaps
        return self._give(connection, Part(b"".join(parts), events, here))

    def _skip(self, wire: Wire, begin: int, end: int) -> bytes:
        """Return the gap behind position `begin` up to `end`; nothing if there is none."""
        cursor = self.hub.window.cursor
        return gap_frame(wire, "overflow", cursor(begin), cursor(end)) if begin < end else b""
