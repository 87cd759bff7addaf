"""
A gateway's fan-out with everything around it that can happen to it, each as a method: what the model tests
drive.

Hub, window, catch-up, streams, sessions, the search for a start and the answer to a poll are the real ones.
Sinks, clock and log are the test's. The clients' real bytes are read by independent readers, and every
message is held against `tests.support.model`, as soon as it is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from fanout.catchup import Block, CatchUp, Fed
from fanout.connection import Connection, Overflow, State
from fanout.cursor import Cursor, parse_start
from fanout.event import OVERHEAD_BYTES, Event
from fanout.frames import WEBSOCKET_WIRES, Wire, heartbeat_frame
from fanout.hub import Hub
from fanout.selection import Selection
from fanout.window import Window
from gateway.greeting import greeting_of
from gateway.log import Log
from gateway.polling import Poller
from gateway.session import Services, Session, Subscribe, Unsubscribe
from gateway.starts import Locator, Place
from gateway.streams import Streams
from gateway.subscription import Request, Transport
from tests.support.fakes import FakeSink, Moment, StillStreams, at_once, event_of
from tests.support.model import ModelLog, Reading, Reset
from tests.support.readers import Message, Reader, reader_of

TOPICS: Final = ("a", "b", "a.x", "a.y", "b.x", "a.x.z")
PATTERNS: Final = (*TOPICS, "#", "*", "a.*", "*.x", "a.#", "#.z", "c")

BEGINNING: Final = 2_000_000_000_000
"""
The time at first, in ms: ahead of the real one that polls look at, so that for a poll nothing has expired.
"""

EVERYTHING: Final = 1 << 40
"""Bytes: more than there ever are."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An event to be published; `ttl` in ms, 0 for none."""

    topic: str
    size: int = 0
    key: str | None = None
    ttl: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """The sizes of a gateway."""

    buffer_bytes: int = 1000
    window_bytes: int = 1_000_000
    window_events: int = 1000
    window_age: int = 0


@dataclass
class Client:
    """A client, and the connection that it has at the moment."""

    reading: Reading
    link: Link | None = None
    seen: list[str] = field(default_factory=list)  # every cursor it was given


@dataclass
class Link:
    """An open connection, from both sides."""

    sink: FakeSink
    connection: Connection
    session: Session
    reader: Reader
    fell_behind: bool = False  # it was live, and then full


class World:
    """
    A gateway on an empty log, and nobody there yet.

    Args:
        bounds: its sizes.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.clients: list[Client] = []
        self.now = BEGINNING
        self.blocks: list[Block] = []  # that the feeder read, some of them a while ago
        self._epochs = 0
        self._numbers = 0  # of events
        self._live = False  # the hub is writing
        self.log = self._new_log()
        self._boot(EVERYTHING)

    def _new_log(self) -> ModelLog:
        self._epochs += 1
        return ModelLog("epoch" + "abcdefghijklmnopqrstuvwxyz"[self._epochs % 26])

    def _boot(self, tail_bytes: int) -> None:
        """Begin on the log as it is, as `Gateway` does, with the tail of it in the window."""
        log, bounds = self.log, self.bounds
        log.tell()
        self.window = Window(log.epoch, bounds.window_bytes, bounds.window_events, bounds.window_age)
        self.hub = Hub(self.window, bounds.buffer_bytes)
        self.catchup = CatchUp(self.hub, lambda: self.log.first)
        self.streams = self._new_streams()
        self.locator = Locator(self.window, cast("Log", log))
        self.poller = Poller(self.streams, cast("Log", log), 1)
        nobody = cast("Any", None)
        self.services = Services(self.streams, self.locator, nobody, nobody, nobody, max_topics=100)
        self.window.begin(log.head, log.head_tag)
        tail = log.stretch(log.kept - 1, EVERYTHING)
        while tail and sum(len(event.body) + OVERHEAD_BYTES for event in tail) > tail_bytes:
            del tail[0]
        self.window.preload(tail)
        self.blocks = []

    def _new_streams(self) -> Streams:
        return StillStreams(self.hub, self.catchup)

    def moment(self) -> Moment:
        return Moment(self.now, self.log.first - 1, self.window.floor, self._live)

    # --- the log --------------------------------------------------------------------------------------------

    def publish(self, batch: Sequence[Draft]) -> None:
        """Events become durable and are delivered, as one batch."""
        events = [self._event(draft) for draft in batch]
        self.log.append(events)
        live = [
            link for client in self.clients if (link := client.link) and link.connection.state is State.LIVE
        ]
        self._live = True
        self.hub.publish(events)
        self._live = False
        for link in live:
            link.fell_behind = link.connection.state is State.PAUSED

    def _event(self, draft: Draft) -> Event:
        self._numbers += 1
        expires = self.now + draft.ttl if draft.ttl else 0
        return event_of(
            self._numbers, draft.topic, size=draft.size, time=self.now, key=draft.key, expires=expires
        )

    def pass_time(self, ms: int) -> None:
        """Time passes, and the keepalive has window and catch-up let go of what is too old."""
        self.now += ms
        self.catchup.forget(self.now)
        self.window.evict(self.now)

    def trim(self, left: int) -> None:
        """Retention deletes all but `left` events; the log says so a little later."""
        self.log.trim(self.log.head + 1 - left)

    def tell(self) -> None:
        """The log says what retention deleted."""
        self.log.tell()

    def restart(self, portion: int, tail_bytes: int) -> None:
        """The gateway dies and begins again; the clients get `portion` bytes of what was on its way."""
        self._cut_all(portion)
        self._boot(tail_bytes)

    def recreate(self, portion: int, refilled: int) -> None:
        """The log is lost; a new one takes its place, with other events at the same positions."""
        self._cut_all(portion)
        self.log = self._new_log()
        self._refill(refilled)
        self._boot(EVERYTHING)

    def truncate(self, portion: int, lost: int, refilled: int, tail_bytes: int) -> None:
        """The log loses its end, as when a copy is restored, and uses the positions again."""
        self._cut_all(portion)
        self.log.truncate(max(self.log.head - lost, 0))
        self._refill(refilled)
        self._boot(tail_bytes)

    def _refill(self, count: int) -> None:
        self.log.append([self._event(Draft(TOPICS[number % len(TOPICS)])) for number in range(count)])

    def _cut_all(self, portion: int) -> None:
        for client in self.clients:
            self.leave(client, portion)

    # --- clients come and go --------------------------------------------------------------------------------

    def arrive(
        self,
        patterns: Sequence[str],
        wire: Wire,
        start: str,
        room: int,
        overflow: Overflow = Overflow.CATCHUP,
    ) -> Client:
        """A new client connects."""
        client = Client(Reading(lambda: self.log, patterns, overflow))
        self.clients.append(client)
        self.come(client, wire, start, room)
        return client

    def leave(self, client: Client, portion: int) -> None:
        """A client's connection, if any, is lost behind the next `portion` bytes."""
        self.take(client, portion)
        if client.link is not None:
            self.streams.lost(client.link.sink)
            self._part(client)

    def _part(self, client: Client) -> None:
        client.link = None
        client.reading.parted()

    def come(self, client: Client, wire: Wire, start: str, room: int) -> None:
        """
        A client without a connection goes on where it was, or begins at `start`, on whatever wire.

        As `gateway.subscribe` does it.
        """
        if client.link is not None:
            return
        place = self._locate(client, client.reading.cursor or start)
        sink = FakeSink(self.streams, wire, room, self.bounds.buffer_bytes, self.moment)
        connection = Connection("c", sink, wire, client.reading.overflow)
        session = Session(self.services, sink, connection, None, cast("Any", None))
        client.link = Link(sink, connection, session, reader_of(wire))
        greeting = greeting_of(self.streams, connection, place)
        self.streams.open(sink, connection, tuple(client.reading.patterns), place.position, greeting)
        sink.told_full = sink.full

    def poll(self, client: Client, start: str, limit: int) -> None:
        """A client without a connection goes on where it was, or begins at `start`, by a poll."""
        if client.link is not None:
            return
        text = client.reading.cursor or start
        place = self._locate(client, text)
        request = Request(
            Transport.POLL,
            tuple(client.reading.patterns),
            parse_start(text),
            client.reading.overflow,
            consumer=None,
            wait=0.0,
            limit=limit,
            conditional=False,
        )
        sent: list[dict[str, Any]] = []
        moment = replace(self.moment(), now=0)

        async def send(message: Any) -> None:
            sent.append(message)

        at_once(self.poller.answer(request, place, {}, cast("Any", None), send))
        moment = replace(moment, lost=self.moment().lost)  # reading the log may have shown what is gone
        answer = json.loads(sent[1]["body"])
        assert len(answer["events"]) <= limit
        moment = replace(moment, lost=self.log.first - 1)  # what is lost may be seen by reading
        client.reading.poll(Message("poll", answer["cursor"], answer), moment)
        client.seen.append(answer["cursor"])

    def _locate(self, client: Client, start: str) -> Place:
        """Find a start, check it, and prepare the client's reading for it."""
        patterns = tuple(client.reading.patterns)
        place = cast("Place", at_once(self.locator.locate(parse_start(start), Selection(patterns))))
        resets = self._check_place(place, start, patterns)
        client.reading.opened(place.position, [replace(reset, opening=True) for reset in resets])
        return place

    # --- where they begin -----------------------------------------------------------------------------------

    def _check_place(self, place: Place, start: str, patterns: Sequence[str]) -> list[Reset]:
        """Check where a start led, against the log as it is; return the reset that is to be announced."""
        if start == "latest":
            assert place == Place(self.log.head)
        elif start == "earliest":
            assert place == Place(min(self.log.first - 1, self.window.floor))
        elif start.startswith("-"):
            self._check_newest(place, int(start[1:]), patterns)
        else:
            return self._check_cursor(place, Cursor.parse(start))
        return []

    def _check_newest(self, place: Place, count: int, patterns: Sequence[str]) -> None:
        """Check that behind `place` are the last `count` events of `patterns`, or all there are."""
        wanted = Selection(patterns)
        gone = min(self.log.kept - 1, self.window.floor)
        there = [event.position for event in self.log.history[gone:] if wanted.picks(event)]
        found = [position for position in there if position > place.position]
        assert place.reset is None
        assert found == there[-count:]

    def _check_cursor(self, place: Place, cursor: Cursor) -> list[Reset]:
        """Promise 2: a cursor of another history is noticed, and only such a one."""
        log = self.log
        gone = min(log.kept - 1, self.window.floor)
        position = cursor.position
        if cursor.epoch != log.epoch:
            position = min(log.first - 1, self.window.floor)
        elif cursor.position > log.head:
            position = log.head
        elif (
            not cursor.tag or cursor.tag == log.tag_at(cursor.position) or gone >= cursor.position < log.head
        ):
            # It is right; or there is nothing to compare it with: neither it nor the log says what was there.
            assert place in (Place(position), Place(position, cursor=str(cursor)))
            return []
        assert place == Place(position, reset=str(cursor))
        return [Reset(str(cursor), position, opening=False)]

    # --- clients read ---------------------------------------------------------------------------------------

    def take(self, client: Client, count: int) -> None:
        """A client takes bytes off the wire: every message in them is checked, and the sink may drain."""
        link = client.link
        if link is None:
            return
        client.reading.pauses = link.connection.pauses
        for data, moment in link.sink.take(count):
            for message in link.reader.feed(data):
                client.reading.read(message, moment)
                if message.cursor is not None:
                    client.seen.append(message.cursor)
        if client.reading.ended and not link.sink.waiting:
            assert link.connection.state is State.CLOSED
            self._part(client)

    # --- the feeder -----------------------------------------------------------------------------------------

    def feed(self, client: Client) -> None:
        """The feeder gives a connection its turn."""
        if client.link is not None and client.link.connection.state is State.CATCHING_UP:
            self._feed(client.link)

    def turn(self, client: Client) -> None:
        """The feeder gives a connection its turn, and reads the log for it if need be."""
        if client.link is None or client.link.connection.state is not State.CATCHING_UP:
            return
        connection = client.link.connection
        if self._feed(client.link) is Fed.NEEDS_LOG:
            block = self.log.block(connection.position, 2000)
            if block.events:
                self._fed(connection, self.catchup.feed_stored(connection, block, self.now))

    def read_block(self, client: Client, max_bytes: int) -> None:
        """The feeder reads the log for a connection, which may get it much later, as may others."""
        if client.link is not None:
            block = self.log.block(self.hub.position(client.link.connection), max_bytes)
            self.blocks = [*self.blocks[-2:], block] if block.events else self.blocks

    def feed_block(self, client: Client, at: int) -> None:
        """The feeder gives a connection a stretch of the log that it read some time ago."""
        if client.link is None or at >= len(self.blocks):
            return
        connection = client.link.connection
        if connection.state is State.CATCHING_UP and not connection.fell_behind:
            self._fed(connection, self.catchup.feed_stored(connection, self.blocks[at], self.now))

    def _feed(self, link: Link) -> Fed:
        """Feed a connection, and check that its policy is applied if it fell behind."""
        connection = link.connection
        delivered = self.hub.delivered(connection)
        missed = [
            event for event in self.log.history[connection.position :] if self._lacks(connection, event)
        ]
        skipped = self.catchup.gaps["overflow"]
        fed = self._fed(connection, self.catchup.feed(connection, self.now))
        if not link.fell_behind or connection.overflow is Overflow.CATCHUP:
            assert fed is not Fed.CLOSED
            assert self.catchup.gaps["overflow"] == skipped
        elif missed:
            assert (fed is Fed.CLOSED) == (connection.overflow is Overflow.DISCONNECT)
            assert self.hub.delivered(connection) - delivered <= len({event.key for event in missed} - {None})
        link.fell_behind = link.fell_behind and fed is not Fed.LIVE
        return fed

    def _lacks(self, connection: Connection, event: Event) -> bool:
        return self.hub.wanted(connection).picks(event) and not 0 < event.expires <= self.now

    def _fed(self, connection: Connection, fed: Fed) -> Fed:
        states = {
            Fed.LIVE: State.LIVE,
            Fed.MORE: State.CATCHING_UP,
            Fed.FULL: State.PAUSED,
            Fed.NEEDS_LOG: State.CATCHING_UP,
            Fed.CLOSED: State.CLOSED,
        }
        assert connection.state is states[fed]
        return fed

    # --- what is said on open connections -------------------------------------------------------------------

    def subscribe(self, client: Client, patterns: list[str], start: str, back: int) -> None:
        """
        A WebSocket client adds topics, from `start` on; `seen` is a cursor that it was given `back` cursors
        ago.
        """
        link = self._websocket(client)
        if link is None:
            return
        text = start
        if start == "seen":
            text = client.seen[-1 - back % len(client.seen)] if client.seen else "latest"
        place = cast("Place", at_once(self.locator.locate(parse_start(text), Selection(patterns))))
        client.reading.resets.extend(self._check_place(place, text, patterns))
        at_once(link.session._carry_out(Subscribe(topics=patterns, cursor=text)))

    def unsubscribe(self, client: Client, at: int) -> None:
        """A WebSocket client leaves a topic."""
        link = self._websocket(client)
        patterns = sorted(self.hub.patterns(link.connection)) if link is not None else []
        if link is not None and patterns:
            at_once(link.session._carry_out(Unsubscribe(topics=[patterns[at % len(patterns)]])))

    @staticmethod
    def _websocket(client: Client) -> Link | None:
        """Return the client's connection if it can say something."""
        link = client.link
        if (
            link is None
            or link.connection.state is State.CLOSED
            or link.connection.wire not in WEBSOCKET_WIRES
        ):
            return None
        return link

    def heartbeat(self) -> None:
        """The keepalive moves the cursors of those who are at the head."""
        cursor = self.window.cursor(self.window.head)
        for client in self.clients:
            if client.link is not None and client.link.connection.state is State.LIVE:
                frame = heartbeat_frame(client.link.connection.wire, cursor)
                client.link.sink.heartbeat(frame, self.window.head)

    # --- in the end -----------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Everybody reads, and is fed, until there is nothing more: then all are live and lack nothing."""
        self.log.tell()
        for client in self.clients:
            turns = 0
            while (link := client.link) is not None and (
                link.connection.state is not State.LIVE or link.sink.waiting
            ):
                turns += 1
                assert turns < 1000, f"it never ends: {link.connection.state}"
                self.take(client, EVERYTHING)
                self.turn(client)
            if client.link is not None:
                self._check_end(client.reading, client.link.connection)

    def _check_end(self, reading: Reading, connection: Connection) -> None:
        reading.at_the_end(self.moment())
        assert self.hub.position(connection) == self.log.head
        assert self.hub.delivered(connection) == reading.events
        assert connection.gaps == reading.gaps
        assert self.hub.patterns(connection) == reading.patterns

    # --- what always holds ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Check what must be so between any two steps."""
        self._check_window()
        self._check_hub()

    def _check_window(self) -> None:
        """The window's bytes are what its events cost, and it reaches from its floor to the head."""
        window, bounds = self.window, self.bounds
        events = list(window._events.after(0))
        frames = sum(sum(map(len, event.frames.values())) for event in events if event.frames)
        assert window.bytes == sum(len(event.body) + OVERHEAD_BYTES for event in events) + frames
        assert [event.position for event in events] == list(range(window.floor + 1, self.log.head + 1))
        assert window.bytes <= bounds.window_bytes
        assert len(window) <= bounds.window_events

    def _check_hub(self) -> None:
        """Cohorts have exactly the connections that are open, and write to exactly the live ones."""
        hub = self.hub
        live = {connection for cohort in hub._cohorts.values() for connection in cohort.live}
        assert live == {connection for connection in hub.connections if connection.state is State.LIVE}
        assert sum(cohort.members for cohort in hub._cohorts.values()) == len(hub.connections)
        for connection in hub.connections:
            assert connection.position <= self.log.head
            assert connection.state is not State.LIVE or connection.backfill is None
