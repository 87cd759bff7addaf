"""
The hub: gives every batch of the log to the connections that want it. This is the hot path.

Connections with the same patterns and the same wire form a *cohort*: they get the same bytes. So a batch
costs one lookup an event, one encoding an event and wire, one join a cohort, and then one write a connection:
`publish` below, no task, no queue, no coroutine, no encoding per connection. A connection whose sink is full
leaves `live` and costs nothing more until it drains; `fanout.catchup` brings it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fanout.connection import Connection, Signal, State
from fanout.event import Event
from fanout.frames import Wire
from fanout.selection import Backfill, Filter, Selection
from fanout.topics import PatternIndex
from fanout.window import Window


class Cohort:
    """Connections that get the same bytes."""

    __slots__ = ("live", "members", "pending", "selection", "sent", "wire")

    def __init__(self, selection: Selection, wire: Wire) -> None:
        self.selection = selection
        self.wire = wire
        self.live: dict[Connection, None] = {}  # drained and at the head
        self.members = 0  # live or not
        self.pending: list[Event] = []  # of the batch at hand
        self.sent = 0  # events written to each live connection since the cohort began


class Hub:
    """
    All connections of a replica, and the window they are served from.

    Args:
        window: the recent part of the log; the hub appends to it.
        buffer_bytes: the most that is written to a connection at a time (one larger frame is written alone),
            and so the most that its buffer can be asked to hold.
    """

    def __init__(self, window: Window, buffer_bytes: int) -> None:
        self.window = window
        self.buffer_bytes = buffer_bytes
        self.connections: dict[Connection, None] = {}
        self.deliveries = 0  # events written to connections, all together
        self.events = 0
        self._index: PatternIndex[Cohort] = PatternIndex()
        self._cohorts: dict[tuple[frozenset[str], Wire], Cohort] = {}

    # --- the hot path ---------------------------------------------------------------------------------------

    def publish(self, batch: list[Event]) -> None:
        """
        Take the next events of the log and write them to every live connection that wants them. Never
        awaits.
        """
        self.window.append(batch)
        match = self._index.match
        touched: list[Cohort] = []
        for event in batch:
            for cohort in match(event.topic):
                if not cohort.pending:
                    touched.append(cohort)
                cohort.pending.append(event)
        for cohort in touched:
            events, cohort.pending = cohort.pending, []
            if cohort.live:
                for payload, count, upto in self._payloads(events, cohort.wire):
                    full = [connection for connection in cohort.live if not connection.sink.write(payload)]
                    self.deliveries += count * len(cohort.live)
                    cohort.sent += count
                    for connection in full:
                        self._pause(connection, upto)
        self.events += len(batch)
        self.window.evict(batch[-1].time)

    def _payloads(self, events: list[Event], wire: Wire) -> Iterator[tuple[bytes, int, int]]:
        """
        Yield the frames of `events` joined to at most `buffer_bytes`, with their count and the last one's
        position.
        """
        frame = self.window.frame
        frames: list[bytes] = []
        size = 0
        upto = 0
        for event in events:
            encoded = frame(event, wire)
            if frames and size + len(encoded) > self.buffer_bytes:
                yield b"".join(frames), len(frames), upto
                frames, size = [], 0
            frames.append(encoded)
            size += len(encoded)
            upto = event.position
        yield b"".join(frames), len(frames), upto

    def _pause(self, connection: Connection, upto: int) -> None:
        """A live connection's sink is full: from now on it costs a position."""
        self._leave_live(connection, upto)
        connection.fire(Signal.FULL)
        connection.pauses += 1
        connection.fell_behind = True

    # --- coming and going -----------------------------------------------------------------------------------

    def attach(
        self, connection: Connection, patterns: Iterable[str], position: int, *, full: bool = False
    ) -> None:
        """
        Add a connection that has everything it wants up to `position`, and whose sink is `full` or not.

        At the head it is live at once; else it is to be fed by the catch-up.
        """
        connection.position = position
        self.connections[connection] = None
        self._join(connection, patterns)
        if full:
            connection.fire(Signal.FULL)
        elif position >= self.window.head:
            self.caught_up(connection)

    def detach(self, connection: Connection) -> None:
        """Remove a connection for good. Idempotent."""
        if connection in self.connections:
            if connection.state is State.LIVE:
                self._leave_live(connection, self.window.head)
            self._part(connection)
            del self.connections[connection]
            connection.fire(Signal.ENDED)

    def subscribe(self, connection: Connection, patterns: Iterable[str], start: int) -> None:
        """
        Add patterns to a connection, each from `start` on; what only others of its match is not sent again.

        A pattern it already has stays as it is. What a new one matches behind `start` comes, though an older
        one may have brought it before: who goes back for it asks for it.
        """
        before = self.patterns(connection)
        added = [pattern for pattern in patterns if pattern not in before]
        if not added:
            return
        here = self.position(connection)
        was_live = connection.state is State.LIVE
        starts = connection.backfill.starts_at(here) if connection.backfill else dict.fromkeys(before, here)
        starts |= dict.fromkeys(added, start)
        self._rejoin(connection, starts)
        connection.position = min(starts.values())
        if all(begin <= connection.position for begin in starts.values()):
            connection.backfill = None
        else:
            connection.backfill = Backfill(starts)
        if was_live and connection.position < self.window.head:
            connection.fire(Signal.REWOUND)
        elif was_live:
            self._enter_live(connection)

    def unsubscribe(self, connection: Connection, patterns: Iterable[str]) -> None:
        """Take patterns from a connection; those it does not have are ignored."""
        gone = set(patterns)
        was_live = connection.state is State.LIVE
        kept = [pattern for pattern in self.patterns(connection) if pattern not in gone]
        self._rejoin(connection, kept)
        if connection.backfill is not None:
            starts = {
                pattern: start for pattern, start in connection.backfill.starts.items() if pattern not in gone
            }
            connection.backfill = Backfill(starts) if starts else None
        if was_live:
            self._enter_live(connection)

    def caught_up(self, connection: Connection) -> None:
        """A drained connection has everything up to the head: the hot path writes to it from now on."""
        connection.backfill = None
        connection.fell_behind = False
        connection.fire(Signal.CAUGHT_UP)
        self._enter_live(connection)

    # --- what can be seen of it -----------------------------------------------------------------------------

    def patterns(self, connection: Connection) -> frozenset[str]:
        """Return what a connection is subscribed to."""
        return connection.cohort.selection.patterns if connection.cohort else frozenset()

    def wanted(self, connection: Connection) -> Filter:
        """Return what picks the events a connection still lacks."""
        if connection.backfill is not None:
            return connection.backfill
        assert connection.cohort is not None
        return connection.cohort.selection

    def position(self, connection: Connection) -> int:
        """Return up to where a connection has everything it wants."""
        return self.window.head if connection.state is State.LIVE else connection.position

    def delivered(self, connection: Connection) -> int:
        """Return how many events were written to a connection."""
        live = connection.state is State.LIVE and connection.cohort is not None
        return connection.delivered + (connection.cohort.sent if live and connection.cohort else 0)

    def subscriptions(self) -> dict[str, int]:
        """Return the patterns in use with the number of connections that have each."""
        counts: dict[str, int] = {}
        for cohort in self._cohorts.values():
            for pattern in cohort.selection.patterns:
                counts[pattern] = counts.get(pattern, 0) + cohort.members
        return counts

    # --- cohorts --------------------------------------------------------------------------------------------

    def _join(self, connection: Connection, patterns: Iterable[str]) -> None:
        """Make a connection a member of the cohort for `patterns`, which is made if there is none."""
        key = (frozenset(patterns), connection.wire)
        cohort = self._cohorts.get(key)
        if cohort is None:
            cohort = self._cohorts[key] = Cohort(Selection(key[0]), connection.wire)
            for pattern in key[0]:
                self._index.add(pattern, cohort)
        cohort.members += 1
        connection.cohort = cohort

    def _part(self, connection: Connection) -> None:
        """End a connection's membership; a cohort without members goes."""
        cohort = connection.cohort
        assert cohort is not None
        connection.cohort = None
        cohort.members -= 1
        if not cohort.members:
            del self._cohorts[cohort.selection.patterns, cohort.wire]
            for pattern in cohort.selection.patterns:
                self._index.discard(pattern, cohort)

    def _rejoin(self, connection: Connection, patterns: Iterable[str]) -> None:
        """Move a connection to the cohort for `patterns`; it is not in `live` of any afterwards."""
        if connection.state is State.LIVE:
            self._leave_live(connection, self.window.head)
        self._part(connection)
        self._join(connection, patterns)

    def _enter_live(self, connection: Connection) -> None:
        cohort = connection.cohort
        assert cohort is not None
        connection.delivered -= cohort.sent  # from here on the cohort counts for it
        cohort.live[connection] = None

    def _leave_live(self, connection: Connection, position: int) -> None:
        cohort = connection.cohort
        assert cohort is not None
        del cohort.live[connection]
        connection.delivered += cohort.sent
        connection.position = position
