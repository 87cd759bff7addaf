"""The hub beside a plain list of who wants what: every batch goes to exactly those, whatever else happens."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fanout.connection import Connection, State
from fanout.frames import STREAM_WIRES, Wire
from fanout.hub import Hub
from fanout.topics import matches
from fanout.window import Window
from tests.support.fakes import FakeSink, event_of
from tests.support.readers import Reader, reader_of
from tests.support.world import PATTERNS, TOPICS

patterns = st.lists(st.sampled_from(PATTERNS), max_size=3)
which = st.integers(0, 9)


class Listener:
    """A connection, with what it should have got and what it did get."""

    def __init__(self, patterns: list[str], wire: Wire, room: int, buffer_bytes: int) -> None:
        self.sink = FakeSink(None, wire, room, buffer_bytes)
        self.connection = Connection("c", self.sink, wire)
        self.patterns = set(patterns)
        self.reader: Reader = reader_of(wire)
        self.due: list[int] = []
        self.got: list[int] = []

    def read(self) -> None:
        for message in self.reader.feed(self.sink.bytes_taken()):
            self.got.append(int(str(message.cursor).split("-")[1]))


class Beside(RuleBasedStateMachine):
    """A hub, and the list."""

    @initialize(
        buffer_bytes=st.sampled_from((1, 300, 1000, 1 << 20)),
        window_bytes=st.sampled_from((1, 3000, 1 << 20)),
    )
    def begin(self, buffer_bytes: int, window_bytes: int) -> None:
        self.hub = Hub(Window("abcdef", window_bytes, 1000), buffer_bytes)
        self.listeners: list[Listener] = []
        self.left: list[Listener] = []
        self.deliveries = 0

    @rule(
        patterns=patterns, wire=st.sampled_from(STREAM_WIRES), room=st.sampled_from((0, 300, 2000, 1 << 30))
    )
    def connect(self, patterns: list[str], wire: Wire, room: int) -> None:
        if len(self.listeners) < 10:
            listener = Listener(patterns, wire, room, self.hub.buffer_bytes)
            self.listeners.append(listener)
            self.hub.attach(listener.connection, patterns, self.hub.window.head)

    @rule(which=which)
    def disconnect(self, which: int) -> None:
        if which < len(self.listeners):
            self.left.append(self.listeners.pop(which))
            self.hub.detach(self.left[-1].connection)

    @rule(which=which, patterns=patterns)
    def subscribe(self, which: int, patterns: list[str]) -> None:
        if which < len(self.listeners):
            self.hub.subscribe(self.listeners[which].connection, patterns, self.hub.window.head)
            self.listeners[which].patterns |= set(patterns)

    @rule(which=which, patterns=patterns)
    def unsubscribe(self, which: int, patterns: list[str]) -> None:
        if which < len(self.listeners):
            self.hub.unsubscribe(self.listeners[which].connection, patterns)
            self.listeners[which].patterns -= set(patterns)

    @rule(
        batch=st.lists(
            st.tuples(st.sampled_from(TOPICS), st.sampled_from((0, 100, 900))), min_size=1, max_size=6
        )
    )
    def publish(self, batch: list[tuple[str, int]]) -> None:
        first = self.hub.window.head + 1
        events = [
            event_of(at, topic, size=size, position=at) for at, (topic, size) in enumerate(batch, first)
        ]
        live = [listener for listener in self.listeners if listener.connection.state is State.LIVE]
        self.hub.publish(events)
        for listener in live:
            paused = listener.connection.state is State.PAUSED
            upto = listener.connection.position if paused else self.hub.window.head
            wanted = [
                event.position
                for event in events
                if event.position <= upto and any(matches(each, event.topic) for each in listener.patterns)
            ]
            assert not paused or wanted[-1:] == [upto]  # it stands at the last event it was given
            listener.due += wanted
            self.deliveries += len(wanted)

    @rule(which=which)
    def read(self, which: int) -> None:
        """Reading alone does not bring a paused connection back: the catch-up does."""
        if which < len(self.listeners):
            self.listeners[which].read()

    @invariant()
    def everybody_got_what_was_due(self) -> None:
        """What is on its way to each is what it wanted while it was live, and it is counted right."""
        for listener in self.listeners + self.left:
            assert self.hub.delivered(listener.connection) == len(listener.due)
            assert listener.got == listener.due[: len(listener.got)]
        assert self.hub.deliveries == self.deliveries

    @invariant()
    def it_knows_who_wants_what(self) -> None:
        """Patterns and cohorts are those of the connections that are there; of the others nothing remains."""
        hub = self.hub
        counts: dict[str, int] = {}
        for listener in self.listeners:
            assert hub.patterns(listener.connection) == listener.patterns
            for pattern in listener.patterns:
                counts[pattern] = counts.get(pattern, 0) + 1
        assert hub.subscriptions() == counts
        kinds = {(frozenset(listener.patterns), listener.connection.wire) for listener in self.listeners}
        assert hub._cohorts.keys() == kinds
        for (wanted, _), cohort in hub._cohorts.items():
            assert not cohort.pending
            assert all(each.cohort is cohort and each.state is State.LIVE for each in cohort.live)
            assert all(cohort in hub._index.match(topic) for topic in TOPICS if topic in wanted)

    def teardown(self) -> None:
        if not hasattr(self, "hub"):
            return
        for listener in self.listeners + self.left:
            listener.read()
            assert listener.got == listener.due
            self.hub.detach(listener.connection)
        assert self.hub._index._exact == {}
        assert self.hub._index._root.branches == {}


TestBeside = Beside.TestCase
TestBeside.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
