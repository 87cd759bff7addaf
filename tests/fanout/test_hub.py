"""The hub: who is written to, with what, and what is kept about it."""

from __future__ import annotations

from fanout.connection import Connection, Overflow, State
from fanout.event import Event
from fanout.frames import Wire
from fanout.hub import Hub
from fanout.window import Window
from tests.support.fakes import FakeSink, event_of
from tests.support.readers import messages_in


class Stage:
    """A hub, and what is published to it."""

    def __init__(self, buffer_bytes: int = 1 << 20, **bounds: int) -> None:
        self.window = Window("abcdef", **{"max_bytes": 1 << 30, "max_events": 1000, **bounds})
        self.hub = Hub(self.window, buffer_bytes)

    def connect(
        self, *patterns: str, wire: Wire = Wire.NDJSON, room: int = 1 << 30, position: int | None = None
    ) -> tuple[Connection, FakeSink]:
        """Attach a connection at the head, or at `position`."""
        sink = FakeSink(None, wire, room, self.hub.buffer_bytes)
        connection = sink.connection = Connection("c", sink, wire)
        self.hub.attach(connection, patterns, self.window.head if position is None else position)
        return connection, sink

    def publish(self, *topics: str, size: int = 0) -> list[Event]:
        """Publish one batch with an event of each topic."""
        first = self.window.head + 1
        batch = [
            event_of(position, topic, size=size, position=position)
            for position, topic in enumerate(topics, first)
        ]
        self.hub.publish(batch)
        return batch


def positions(sink: FakeSink, wire: Wire = Wire.NDJSON) -> list[int]:
    """Take what a sink has; return the positions of the events in it."""
    messages = messages_in(wire, sink.bytes_taken())
    return [int(str(message.cursor).split("-")[1]) for message in messages if message.kind == "event"]


# --- publishing ---------------------------------------------------------------------------------------------


def test_each_gets_what_it_wants_once() -> None:
    """A live connection gets the events that any of its patterns matches, each once and in order."""
    stage = Stage()
    _, one = stage.connect("a", "a.*", "#.x")
    _, other = stage.connect("b")
    _, nothing = stage.connect("c")
    stage.publish("a", "a.x", "b", "a")
    assert positions(one) == [1, 2, 4]
    assert positions(other) == [3]
    assert (positions(nothing), nothing.writes) == ([], 0)


def test_a_batch_is_one_write() -> None:
    """A connection is written to once for a batch, with the same bytes object as all who want the same."""
    stage = Stage()
    taken = []
    for _ in range(2):
        _, sink = stage.connect("a")
        stage.connect("#")
        stage.publish("a", "b", "a")
        assert sink.writes == 1
    (_, one), (_, other) = stage.connect("a"), stage.connect("a")
    stage.publish("a", "a")
    taken = [sink.take()[0][0] for sink in (one, other)]
    assert taken[0] is taken[1]


def test_no_write_asks_for_more_than_the_buffer() -> None:
    """A batch is written in parts of at most `buffer_bytes`, an event larger than that alone."""
    stage = Stage(buffer_bytes=400)
    _, sink = stage.connect("a")
    stage.publish("a", "a", "a", "a")
    assert sink.writes == 2
    stage.publish("a", size=5000)
    assert sink.writes == 3
    assert positions(sink) == [1, 2, 3, 4, 5]


def test_a_full_connection_keeps_its_place() -> None:
    """A connection whose sink is full is paused at the last event it was given, and left alone."""
    stage = Stage(buffer_bytes=300)
    slow, sink = stage.connect("a", room=200)
    quick, other = stage.connect("a")
    stage.publish("a", "b", "a", "a", "b", "a", "a")
    assert (slow.state, slow.position, slow.fell_behind, slow.pauses) == (State.PAUSED, 3, True, 1)
    stage.publish("a")
    assert positions(sink) == [1, 3]
    assert positions(other) == [1, 3, 4, 6, 7, 8]
    assert (stage.hub.position(slow), stage.hub.position(quick)) == (3, 8)
    assert (stage.hub.delivered(slow), stage.hub.delivered(quick)) == (2, 6)


def test_the_window_has_what_was_published() -> None:
    """The batch is in the window when it is written, and the window keeps its bounds afterwards."""
    stage = Stage(max_events=2)
    _, sink = stage.connect("a")
    stage.publish("a", "a", "a")
    assert (len(stage.window), stage.window.floor) == (2, 1)
    assert positions(sink) == [1, 2, 3]


# --- coming and going ---------------------------------------------------------------------------------------


def test_at_the_head_a_connection_is_live() -> None:
    """A connection that has everything is live at once; one that lacks something, or is full, is not."""
    stage = Stage()
    stage.publish("a", "a")
    live, _ = stage.connect("a")
    behind, sink = stage.connect("a", position=1)
    full = Connection("c", FakeSink(None, Wire.SSE), Wire.SSE)
    stage.hub.attach(full, ["a"], 2, full=True)
    assert [each.state for each in (live, behind, full)] == [State.LIVE, State.CATCHING_UP, State.PAUSED]
    assert (stage.hub.position(behind), sink.writes, full.fell_behind) == (1, 0, False)


def test_who_leaves_is_forgotten() -> None:
    """When all have left, in whatever state, the hub keeps nothing of them; leaving twice is leaving once."""
    stage = Stage()
    live, _ = stage.connect("a", "#.b")
    paused, _ = stage.connect("a", room=0)
    behind, _ = stage.connect("a", position=0)
    stage.publish("a")
    for connection in (live, paused, behind, live):
        stage.hub.detach(connection)
        assert connection.state is State.CLOSED
    hub = stage.hub
    assert (hub.connections, hub._cohorts, hub.subscriptions()) == ({}, {}, {})
    assert (hub._index._exact, hub._index._root.branches) == ({}, {})
    stage.publish("a")


def test_counts_go_on_when_a_connection_is_gone() -> None:
    """What was delivered to a connection is known after it left."""
    stage = Stage()
    connection, _ = stage.connect("a")
    stage.connect("a")
    stage.publish("a", "a")
    stage.hub.detach(connection)
    stage.publish("a")
    assert stage.hub.delivered(connection) == 2
    assert stage.hub.deliveries == 5
    assert stage.hub.events == 3


# --- changing what one wants --------------------------------------------------------------------------------


def test_a_topic_from_now_on() -> None:
    """A topic added at the head brings what is published from now on, and the connection stays live."""
    stage = Stage()
    connection, sink = stage.connect("a")
    stage.publish("a", "b")
    stage.hub.subscribe(connection, ["b"], 2)
    assert (connection.state, connection.backfill) == (State.LIVE, None)
    stage.publish("b", "a", "c")
    assert positions(sink) == [1, 3, 4]
    assert stage.hub.patterns(connection) == {"a", "b"}


def test_a_topic_from_the_past() -> None:
    """A topic added from the past takes a live connection back there, for that topic alone."""
    stage = Stage()
    connection, _ = stage.connect("a")
    stage.publish("a", "b", "a", "b")
    stage.hub.subscribe(connection, ["b"], 1)
    assert (connection.state, connection.position, connection.fell_behind) == (State.CATCHING_UP, 1, False)
    wanted = stage.hub.wanted(connection)
    assert [event.position for event in stage.window._events.after(1) if wanted.picks(event)] == [2, 4]


def test_a_topic_from_the_past_for_one_that_is_behind() -> None:
    """A connection that is behind goes on from the earlier place, with each topic from its own."""
    stage = Stage()
    stage.publish("a", "b", "a", "b", "a")
    connection, _ = stage.connect("a", position=2)
    stage.hub.subscribe(connection, ["b"], 1)
    assert (connection.state, connection.position) == (State.CATCHING_UP, 1)
    stage.hub.subscribe(connection, ["c"], 4)
    assert connection.position == 1
    wanted = stage.hub.wanted(connection)
    assert [event.position for event in stage.window._events.after(0) if wanted.picks(event)] == [2, 3, 4, 5]


def test_a_wider_pattern_from_the_past() -> None:
    """A pattern added from the past brings all it matches behind there, also what another brought before."""
    stage = Stage()
    connection, _ = stage.connect("a.x", "b")
    stage.publish("a.x", "a.y", "b", "a.x")
    stage.hub.subscribe(connection, ["a.*"], 1)
    wanted = stage.hub.wanted(connection)
    assert [event.position for event in stage.window._events.after(0) if wanted.picks(event)] == [2, 4]


def test_a_topic_it_has_stays_as_it_is() -> None:
    """Subscribing to what is subscribed to, from wherever, changes nothing."""
    stage = Stage()
    connection, sink = stage.connect("a")
    stage.publish("a")
    cohort = connection.cohort
    stage.hub.subscribe(connection, ["a"], 0)
    assert (connection.state, connection.cohort) == (State.LIVE, cohort)
    stage.publish("a")
    assert positions(sink) == [1, 2]


def test_a_paused_connection_is_rewound_without_being_written_to() -> None:
    """A paused connection that subscribes stays paused, at the earlier place."""
    stage = Stage()
    connection, sink = stage.connect("a", room=10)
    stage.publish("a", "b", "a")
    stage.hub.subscribe(connection, ["b"], 1)
    assert (connection.state, connection.position, sink.writes) == (State.PAUSED, 1, 1)


def test_leaving_a_topic() -> None:
    """What was left comes no more, the rest goes on; who left everything hears nothing."""
    stage = Stage()
    connection, sink = stage.connect("a", "b")
    stage.publish("a", "b")
    stage.hub.unsubscribe(connection, ["a", "c"])
    stage.publish("a", "b")
    stage.hub.unsubscribe(connection, ["b"])
    stage.publish("a", "b")
    assert (positions(sink), connection.state) == ([1, 2, 4], State.LIVE)
    assert stage.hub.delivered(connection) == 3
    assert stage.hub.patterns(connection) == frozenset()


def test_leaving_a_topic_that_is_being_caught_up() -> None:
    """A topic left in the middle of its past is not gone on with; the others keep their places."""
    stage = Stage()
    connection, _ = stage.connect("a")
    stage.publish("a", "b", "c", "a")
    stage.hub.subscribe(connection, ["b", "c"], 0)
    stage.hub.unsubscribe(connection, ["b"])
    wanted = stage.hub.wanted(connection)
    assert [event.position for event in stage.window._events.after(0) if wanted.picks(event)] == [3]
    stage.hub.unsubscribe(connection, ["c", "a"])
    assert connection.backfill is None


def test_what_operators_see() -> None:
    """The patterns in use are listed with the number of connections that have each."""
    stage = Stage()
    stage.connect("a", "b")
    stage.connect("a", wire=Wire.SSE)
    stage.connect("a", position=0)
    assert stage.hub.subscriptions() == {"a": 3, "b": 1}


def test_a_connection_that_caught_up_begins_anew() -> None:
    """At the head a connection forgets that it fell behind, and where its topics began."""
    stage = Stage()
    connection, _ = stage.connect("a")
    connection.overflow = Overflow.LATEST
    stage.publish("a", "b")
    stage.hub.subscribe(connection, ["b"], 0)
    connection.fell_behind = True
    stage.hub.caught_up(connection)
    assert (connection.state, connection.backfill, connection.fell_behind) == (State.LIVE, None, False)
