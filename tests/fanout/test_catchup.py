"""Catching up: what a connection that is behind gets next, and what it is told that it cannot get."""

from __future__ import annotations

from typing import Any

import pytest

from fanout import catchup as module
from fanout.catchup import SHARED_MS, Block, CatchUp, Fed, gap_frame
from fanout.closing import FELL_BEHIND
from fanout.connection import Connection, Overflow, Signal, State
from fanout.event import Event
from fanout.frames import STREAM_WIRES, Wire
from fanout.hub import Hub
from fanout.selection import Selection
from fanout.window import Window
from tests.support.fakes import FakeSink, copy_of, event_of
from tests.support.readers import Message, messages_in

NOW = 1000


class Stage:
    """A hub with its catch-up, on a log that is a list."""

    def __init__(self, *topics: str, buffer_bytes: int = 1 << 20, **bounds: int) -> None:
        self.window = Window("abcdef", **{"max_bytes": 1 << 30, "max_events": 1000, **bounds})
        self.hub = Hub(self.window, buffer_bytes)
        self.first = 1
        self.catchup = CatchUp(self.hub, lambda: self.first)
        self.log: list[Event] = []
        self.publish(*topics)

    def publish(self, *topics: str, **members: Any) -> None:
        """Publish one batch with an event of each topic."""
        batch = [
            event_of(position, topic, position=position, **members)
            for position, topic in enumerate(topics, len(self.log) + 1)
        ]
        self.log += batch
        if batch:
            self.hub.publish(batch)

    def connect(
        self,
        *patterns: str,
        position: int = 0,
        room: int = 1 << 30,
        wire: Wire = Wire.NDJSON,
        overflow: Overflow = Overflow.CATCHUP,
    ) -> tuple[Connection, FakeSink]:
        """Attach a connection that has everything up to `position`."""
        sink = FakeSink(None, wire, room, self.hub.buffer_bytes)
        connection = Connection("c", sink, wire, overflow)
        self.hub.attach(connection, patterns, position)
        return connection, sink

    def block(self, after: int, count: int = 1000) -> Block:
        """Read from the log."""
        events = [copy_of(event) for event in self.log if event.position > after]
        return Block(after, events[:count])


def told(sink: FakeSink, wire: Wire = Wire.NDJSON) -> list[str]:
    """Take what a sink has; return it as words: an event's position, or `reason from-to` of a gap."""
    return [_word(message) for message in messages_in(wire, sink.bytes_taken())]


def _word(message: Message) -> str:
    if message.kind != "gap":
        return str(message.cursor).split("-")[1]
    begin, end = (message.members[name].split("-")[1] for name in ("from", "to"))
    return f"{message.members['reason']} {begin}-{end}"


# --- out of the window --------------------------------------------------------------------------------------


def test_it_gets_what_it_lacks_and_is_live() -> None:
    """A connection behind the head gets what it wants of the window in one write, and is live."""
    stage = Stage("a", "b", "a")
    connection, sink = stage.connect("a")
    assert stage.catchup.feed(connection, NOW) is Fed.LIVE
    assert (sink.writes, connection.state) == (1, State.LIVE)
    stage.publish("a")
    assert told(sink) == ["1", "3", "4"]
    assert stage.hub.delivered(connection) == 3


def test_it_gets_a_buffer_full_at_a_time() -> None:
    """More than `buffer_bytes` comes in parts; an event larger than that comes alone."""
    stage = Stage("a", "a", "a", buffer_bytes=300)
    stage.publish("a", size=2000)
    connection, sink = stage.connect("a")
    fed = []
    while connection.state is State.CATCHING_UP:
        fed.append(stage.catchup.feed(connection, NOW))
    assert fed == [Fed.MORE, Fed.MORE, Fed.LIVE]
    assert told(sink) == ["1", "2", "3", "4"]


def test_a_sink_that_is_full_pauses_it() -> None:
    """When the sink is full, the connection keeps its place until it has drained, and goes on."""
    stage = Stage("a", "a", "a", buffer_bytes=300)
    connection, sink = stage.connect("a", room=100)
    assert stage.catchup.feed(connection, NOW) is Fed.FULL
    assert (connection.state, connection.position, connection.pauses) == (State.PAUSED, 2, 1)
    assert not connection.fell_behind  # it was not live: no policy is applied to who catches up slowly
    assert told(sink) == ["1", "2"]
    connection.fire(Signal.DRAINED)
    assert stage.catchup.feed(connection, NOW) is Fed.FULL
    assert told(sink) == ["3"]
    connection.fire(Signal.DRAINED)
    assert stage.catchup.feed(connection, NOW) is Fed.LIVE


def test_nothing_wanted_is_nothing_written() -> None:
    """A connection that wants nothing of what it lacks is live without a byte."""
    stage = Stage("a", "a")
    connection, sink = stage.connect("b")
    assert stage.catchup.feed(connection, NOW) is Fed.LIVE
    assert (sink.writes, stage.hub.position(connection)) == (0, 2)


# --- out of the log -----------------------------------------------------------------------------------------


def test_behind_the_window_the_log_is_needed() -> None:
    """What has left the window but not the log comes from a block of it; then the window goes on."""
    stage = Stage("a", "b", "a", "a", max_events=1)
    connection, sink = stage.connect("a")
    assert stage.catchup.feed(connection, NOW) is Fed.NEEDS_LOG
    assert stage.catchup.feed_stored(connection, stage.block(0, 3), NOW) is Fed.MORE
    assert connection.position == 3
    assert stage.catchup.feed(connection, NOW) is Fed.LIVE
    assert told(sink) == ["1", "3", "4"]


def test_a_block_is_given_in_parts() -> None:
    """A block with more than `buffer_bytes` of what a connection wants takes several turns."""
    stage = Stage(*"aaaaaa", buffer_bytes=300, max_events=1)
    connection, sink = stage.connect("a")
    block = stage.block(0)
    turns = 0
    while connection.position < 6:
        assert stage.catchup.feed_stored(connection, block, NOW) in (Fed.MORE, Fed.LIVE)
        turns += 1
    assert turns == 3
    assert told(sink) == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("position", [0, 1, 4, 5])
def test_a_block_elsewhere_is_no_help(position: int) -> None:
    """A block that begins behind a connection's place, or ends before it, gives it nothing."""
    stage = Stage(*"aaaaaa", max_events=1)
    connection, sink = stage.connect("a", position=position)
    assert stage.catchup.feed_stored(connection, stage.block(2, 2), NOW) is Fed.NEEDS_LOG
    assert (connection.position, sink.writes) == (position, 0)


def test_of_a_block_only_what_may_be_wanted_is_looked_at() -> None:
    """Who wants topics by name is not shown what a block has of others; who has a pattern sees all of it."""
    block = Stage(*"abcabc", max_events=1).block(0)

    def shown(*patterns: str, after: int = 0) -> list[int]:
        return [event.position for event in block.candidates(Selection(patterns), after)]

    assert shown("a") == [1, 4]
    assert shown("a", "c", "d") == [1, 3, 4, 6]
    assert shown("a", "c", after=3) == [4, 6]
    assert shown("d") == []
    assert shown("*") == [1, 2, 3, 4, 5, 6]


def test_a_hole_in_the_log_is_no_gap() -> None:
    """Positions that no event ever had are passed over in silence."""
    stage = Stage(*"aaaa", max_events=1)
    connection, sink = stage.connect("a")
    block = Block(0, stage.block(0, 3).events[2:])
    assert stage.catchup.feed_stored(connection, block, NOW) is Fed.MORE
    assert told(sink) == ["3"]


def test_what_nobody_has_any_more_is_a_gap() -> None:
    """What has left log and window is announced, from the connection's place to the last that is gone."""
    stage = Stage(*"aaaaaa", max_events=2)
    stage.first = 4
    connection, sink = stage.connect("a", position=1)
    assert stage.catchup.feed(connection, NOW) is Fed.MORE
    assert connection.position == 3
    assert stage.catchup.feed_stored(connection, stage.block(3, 1), NOW) is Fed.MORE
    assert stage.catchup.feed(connection, NOW) is Fed.LIVE
    assert told(sink) == ["expired 1-3", "4", "5", "6"]
    assert (connection.gaps, stage.catchup.gaps["expired"]) == (1, 1)


def test_what_the_window_still_has_is_no_gap() -> None:
    """What retention deleted and the window still has is delivered."""
    stage = Stage(*"aaaaaa", max_events=4)
    stage.first = 7
    connection, sink = stage.connect("a", position=0)
    assert stage.catchup.feed(connection, NOW) is Fed.MORE
    assert stage.catchup.feed(connection, NOW) is Fed.LIVE
    assert told(sink) == ["expired 0-2", "3", "4", "5", "6"]


def test_retention_overtakes_a_block() -> None:
    """A connection whose next events were deleted since a block was read is told of the gap first."""
    stage = Stage(*"aaaaaa", max_events=1)
    connection, sink = stage.connect("a")
    block = stage.block(0)
    stage.first = 3
    assert stage.catchup.feed_stored(connection, block, NOW) is Fed.MORE
    assert (connection.position, told(sink)) == (2, ["expired 0-2"])


def test_a_gap_can_fill_a_sink() -> None:
    """A connection whose sink is full of the gap waits until it has drained."""
    stage = Stage(*"aaaa", max_events=1)
    stage.first = 4
    connection, sink = stage.connect("a", room=10)
    assert stage.catchup.feed(connection, NOW) is Fed.FULL
    assert (connection.state, connection.position) == (State.PAUSED, 3)
    assert told(sink) == ["expired 0-3"]


@pytest.mark.parametrize("wire", STREAM_WIRES)
def test_a_gap_on_each_wire(wire: Wire) -> None:
    """A gap says reason, from and to, and leaves the client's cursor at `to`."""
    (gap,) = messages_in(wire, gap_frame(wire, "expired", "abcdef-1-0000", "abcdef-5-beef"))
    assert (gap.kind, gap.cursor) == ("gap", "abcdef-5-beef")
    assert gap.members == {"reason": "expired", "from": "abcdef-1-0000", "to": "abcdef-5-beef"}


# --- who fell behind ----------------------------------------------------------------------------------------


def fallen(stage: Stage, overflow: Overflow, **options: Any) -> tuple[Connection, FakeSink]:
    """Return a connection that was live at position 0, got the first event and was full."""
    connection, sink = stage.connect("#", room=1, overflow=overflow, **options)
    stage.publish("a", key="k")
    assert connection.state is State.PAUSED
    assert told(sink, connection.wire) == ["1"]
    return connection, sink


def drain(connection: Connection, sink: FakeSink) -> None:
    """Let a connection drain, with plenty of room from now on."""
    sink.bytes_taken()
    sink.room = 1 << 30
    connection.fire(Signal.DRAINED)


def test_catchup_gets_everything() -> None:
    """By default who fell behind gets all it missed."""
    stage = Stage()
    connection, sink = fallen(stage, Overflow.CATCHUP)
    stage.publish("a", "b", "c")
    drain(connection, sink)
    assert stage.catchup.feed(connection, NOW) is Fed.LIVE
    assert told(sink) == ["2", "3", "4"]
    assert not connection.fell_behind


def test_latest_gets_the_newest_of_each_key() -> None:
    """With `latest` it gets the newest event of each key, and a gap for each stretch that is left out."""
    stage = Stage()
    connection, sink = fallen(stage, Overflow.LATEST)
    for topic, key in (("a", "k"), ("a", "l"), ("a", "k"), ("a", None), ("b", "m"), ("a", None)):
        stage.publish(topic, key=key)
    drain(connection, sink)
    assert stage.catchup.feed(connection, NOW) is Fed.LIVE
    assert told(sink) == ["overflow 1-2", "3", "4", "overflow 4-5", "6", "overflow 6-7"]
    assert (connection.gaps, stage.catchup.gaps["overflow"], stage.hub.delivered(connection)) == (3, 3, 4)


def test_latest_without_keys_goes_to_the_head() -> None:
    """Without keys there is one gap, up to the head."""
    stage = Stage()
    connection, sink = fallen(stage, Overflow.LATEST)
    stage.publish("a", "b", "c")
    drain(connection, sink)
    assert stage.catchup.feed(connection, NOW) is Fed.LIVE
    assert told(sink) == ["overflow 1-4"]


def test_latest_begins_its_gap_where_the_client_is() -> None:
    """What has left the window is part of the gap as well."""
    stage = Stage(max_events=2)
    connection, sink = fallen(stage, Overflow.LATEST)
    stage.publish("a", "a", key="k")
    stage.publish("a", key="l")
    drain(connection, sink)
    assert stage.catchup.feed(connection, NOW) is Fed.LIVE
    assert told(sink) == ["overflow 1-2", "3", "4"]


def test_latest_keeps_to_the_buffer() -> None:
    """Newest events and gaps come in parts of `buffer_bytes`, each with what is newest then."""
    stage = Stage(buffer_bytes=400)
    connection, sink = fallen(stage, Overflow.LATEST)
    for number in range(6):
        stage.publish("a", "b", key=f"k{number}")
    drain(connection, sink)
    assert stage.catchup.feed(connection, NOW) is Fed.MORE
    reached = connection.position
    stage.publish("a", key="k0")
    while connection.state is State.CATCHING_UP:
        stage.catchup.feed(connection, NOW)
    words = told(sink)
    assert sink.writes > 3
    assert [word for word in words if " " not in word] == ["3", "5", "7", "9", "11", "13", "14"]
    assert words[-1] == "14"
    assert reached < 13


def test_latest_when_nothing_was_missed() -> None:
    """Who missed nothing that it wants is not told of a gap."""
    stage = Stage()
    connection, sink = stage.connect("a", room=1, overflow=Overflow.LATEST)
    stage.publish("a")
    stage.publish("b", "b")
    drain(connection, sink)
    assert stage.catchup.feed(connection, NOW) is Fed.LIVE
    assert (told(sink), connection.gaps) == ([], 0)


def test_disconnect_is_told_to_come_back() -> None:
    """With `disconnect` it is told why, and closed."""
    stage = Stage()
    connection, sink = fallen(stage, Overflow.DISCONNECT)
    stage.publish("a")
    drain(connection, sink)
    assert stage.catchup.feed(connection, NOW) is Fed.CLOSED
    assert sink.reason is FELL_BEHIND


def test_disconnect_when_nothing_was_missed() -> None:
    """Who missed nothing that it wants is not sent away."""
    stage = Stage()
    connection, sink = stage.connect("a", room=1, overflow=Overflow.DISCONNECT)
    stage.publish("a")
    stage.publish("b", "b")
    drain(connection, sink)
    assert stage.catchup.feed(connection, NOW) is Fed.LIVE
    assert sink.reason is None


@pytest.mark.parametrize("overflow", Overflow)
def test_who_resumes_has_not_fallen_behind(overflow: Overflow) -> None:
    """Whoever comes with an old cursor gets everything, however slowly it reads."""
    stage = Stage("a", "a", "a", buffer_bytes=150)
    connection, sink = stage.connect("a", room=1, overflow=overflow)
    while connection.state is not State.LIVE:
        assert stage.catchup.feed(connection, NOW) is not Fed.CLOSED
        if connection.state is State.PAUSED:
            connection.fire(Signal.DRAINED)
            sink.told_full = sink.full = False
    assert told(sink) == ["1", "2", "3"]


# --- sharing ------------------------------------------------------------------------------------------------


def test_who_comes_back_together_shares_the_bytes() -> None:
    """Connections that want the same from the same place get the same bytes object, made once."""
    stage = Stage(*"aaaaaa", buffer_bytes=300)
    (one, first), (other, second) = stage.connect("a"), stage.connect("a")
    for connection in (one, other):
        assert stage.catchup.feed(connection, NOW) is Fed.MORE
    assert first.take()[0][0] is second.take()[0][0]


def test_what_is_shared_is_shared_by_equals_only() -> None:
    """Another wire, other patterns, another place, topics that began elsewhere: each gets its own."""
    stage = Stage(*"abababab", buffer_bytes=300)
    one, _ = stage.connect("a", "b")
    assert stage.catchup.feed(one, NOW) is Fed.MORE
    for options, expected in (
        ({"wire": Wire.WEBSOCKET}, ["1", "2"]),
        ({"position": 1}, ["2", "3"]),
    ):
        connection, sink = stage.connect("a", "b", **options)
        stage.catchup.feed(connection, NOW)
        assert told(sink, connection.wire) == expected
    connection, sink = stage.connect("a")
    stage.catchup.feed(connection, NOW)
    assert told(sink) == ["1", "3"]
    connection, sink = stage.connect("a", position=8)
    stage.hub.subscribe(connection, ["b"], 0)
    assert connection.cohort is one.cohort
    stage.catchup.feed(connection, NOW)
    assert told(sink) == ["2", "4"]


def test_what_is_shared_is_forgotten() -> None:
    """A part is given to others for a moment only, and then let go of."""
    stage = Stage(*"aaaaaa", buffer_bytes=300)
    stage.catchup.feed(stage.connect("a")[0], NOW)
    (late, sink), shared = stage.connect("a"), stage.catchup._shared
    stage.log[0].expires = stage.window._events.first().expires = NOW + SHARED_MS
    stage.catchup.feed(late, NOW + SHARED_MS + 1)
    assert told(sink) == ["2", "3"]
    stage.catchup.forget(NOW + SHARED_MS + 1)
    assert shared._bytes == sum(len(part.payload) for part, _ in shared._parts.values()) > 0
    stage.catchup.forget(NOW + 2 * SHARED_MS + 2)
    assert (shared._bytes, shared._parts) == (0, {})


def test_what_is_shared_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts take no more memory than a bound; the oldest go first."""
    monkeypatch.setattr(module, "SHARED_BYTES", 1000)
    stage = Stage(*("a" * 60), buffer_bytes=300)
    shared = stage.catchup._shared
    for position in range(50):
        stage.catchup.feed(stage.connect("a", position=position)[0], NOW)
        assert shared._bytes == sum(len(part.payload) for part, _ in shared._parts.values()) <= 1000
    assert max(position for _, position in shared._parts) == 49
