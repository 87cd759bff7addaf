"""The window beside a plain list: everything it gives and counts, however it is filled, read and emptied."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fanout.event import OVERHEAD_BYTES, Event
from fanout.frames import Wire, event_frame
from fanout.selection import Backfill, Filter, Selection
from fanout.topics import matches
from fanout.window import Limits, Window
from tests.support.fakes import copy_of, event_of
from tests.support.world import PATTERNS, TOPICS

EPOCH = "abcdef"

wires = st.sampled_from((Wire.NDJSON, Wire.SSE, Wire.WEBSOCKET, Wire.WEBSOCKET_DEFLATE))
limits = st.builds(
    Limits,
    st.sampled_from((1, 2, 5, 1000)),
    st.sampled_from((1, 200, 600, 3000, 1 << 30)),
    st.integers(0, 400),
)
patterns = st.lists(st.sampled_from(PATTERNS), max_size=4)
drafts = st.tuples(
    st.sampled_from(TOPICS),
    st.sampled_from((0, 20, 300, 1500)),  # bytes
    st.sampled_from((None, "k", "l")),
    st.sampled_from((0, 0, 1, 50)),  # ms to live
    st.integers(0, 30),  # ms since the one before
)


class Beside(RuleBasedStateMachine):
    """A window, and the list of all events there ever were with the number of those that are gone."""

    @initialize(
        max_bytes=st.sampled_from((900, 3000, 1 << 30)),
        max_events=st.sampled_from((1, 4, 1000)),
        max_age=st.sampled_from((0, 40)),
        head=st.sampled_from((0, 0, 7)),
    )
    def begin(self, max_bytes: int, max_events: int, max_age: int, head: int) -> None:
        self.window = Window(EPOCH, max_bytes, max_events, max_age)
        self.window.begin(head, 1 if head else 0)
        self.list: list[Event] = []  # what should be in it
        self.made: dict[int, set[Wire]] = {}  # the frames that should be cached, by position
        self.now = 0
        self.count = head
        self.gone = 0

    # --- what fills and empties it --------------------------------------------------------------------------

    @rule(batch=st.lists(drafts, min_size=1, max_size=5))
    def publish(self, batch: list[tuple[str, int, str | None, int, int]]) -> None:
        events = []
        for topic, size, key, ttl, pause in batch:
            self.now += pause
            self.count += 1
            expires = self.now + ttl if ttl else 0
            events.append(
                event_of(
                    self.count,
                    topic,
                    size=size,
                    time=self.now,
                    key=key,
                    expires=expires,
                    position=self.count,
                )
            )
        self.window.append(events)
        self.list += events
        self.window.evict(self.now)
        self.evict(self.now)

    @rule(pause=st.integers(0, 100))
    def tick(self, pause: int) -> None:
        self.now += pause
        self.window.evict(self.now)
        self.evict(self.now)

    @rule()
    def begin_again(self) -> None:
        """A new window takes in what is left of the old one, as after a restart."""
        old = self.window
        tail = [copy_of(event) for event in self.list]
        self.window = Window(EPOCH, old.max_bytes, old.max_events, old.max_age_ms)
        self.window.begin(old.head, old.head_tag)
        self.window.preload(tail)
        self.list, self.made = tail, {}
        self.gone = 0

    def evict(self, now: int) -> None:
        """Do with the list what the bounds say."""
        window = self.window
        while self.list and (
            self.cost() > window.max_bytes
            or len(self.list) > window.max_events
            or (window.max_age_ms and now and self.list[0].time < now - window.max_age_ms)
        ):
            self.made.pop(self.list.pop(0).position, None)
            self.gone += 1

    def cost(self) -> int:
        """Return what the events cost, with the frames that have been asked for since they came."""
        bodies = sum(len(event.body) + OVERHEAD_BYTES for event in self.list)
        frames = [(event, wire) for event in self.list for wire in self.made.get(event.position, ())]
        return bodies + sum(len(self.frame(event, wire)) for event, wire in frames)

    def frame(self, event: Event, wire: Wire) -> bytes:
        return event_frame(wire, f"{EPOCH}-{event.position}-{event.tag:04x}", event.body)

    # --- what it is asked -----------------------------------------------------------------------------------

    @rule(wanted=patterns, wire=wires, after=st.integers(0, 1 << 10), limits=limits)
    def read(self, wanted: list[str], wire: Wire, after: int, limits: Limits) -> None:
        """Read from somewhere to the end, stretch by stretch."""
        position = self.window.floor + after % (self.window.head - self.window.floor + 1)
        self.read_on(Selection(wanted), lambda event: self.wants(wanted, event), wire, position, limits)

    @rule(
        starts=st.dictionaries(st.sampled_from(PATTERNS), st.integers(0, 30), max_size=3),
        wire=wires,
        limits=limits,
    )
    def read_backfill(self, starts: dict[str, int], wire: Wire, limits: Limits) -> None:
        """Read patterns that began at different places, from the floor on."""

        def wants(event: Event) -> bool:
            return any(
                start < event.position and matches(each, event.topic) for each, start in starts.items()
            )

        self.read_on(Backfill(starts), wants, wire, self.window.floor, limits)

    def read_on(self, wanted: Filter, wants: object, wire: Wire, position: int, limits: Limits) -> None:
        assert callable(wants)
        due = [
            event
            for event in self.list
            if event.position > position and wants(event) and not 0 < event.expires <= limits.now
        ]
        while True:
            stretch = self.window.read(wanted, wire, position, limits)
            assert len(stretch.frames) <= limits.events
            assert len(stretch.frames) <= 1 or sum(map(len, stretch.frames)) <= limits.bytes
            got = [event for event in due if position < event.position <= stretch.upto]
            assert stretch.frames == [self.frame(event, wire) for event in got]
            for event in got:
                self.made.setdefault(event.position, set()).add(wire)
            # A stretch that was cut may have looked at one event more than it gave.
            following = next((event for event in due if event.position > stretch.upto), None)
            self.cached_ahead(following, wire)
            assert position < stretch.upto or not stretch.more
            position = stretch.upto
            self.evict(0)
            if not stretch.more or position < self.window.floor:
                break
        assert stretch.more or position == self.window.head

    def cached_ahead(self, event: Event | None, wire: Wire) -> None:
        if event is not None and event.frames and wire in event.frames:
            self.made.setdefault(event.position, set()).add(wire)

    @rule(wanted=patterns, count=st.integers(1, 8), back=st.integers(0, 8))
    def look_back(self, wanted: list[str], count: int, back: int) -> None:
        upto = max(self.window.head - back, self.window.floor)
        there = [
            event.position for event in self.list if event.position <= upto and self.wants(wanted, event)
        ]
        position, lacking = self.window.newest(Selection(wanted), count, upto)
        assert lacking == max(count - len(there), 0)
        assert position == (there[-count] - 1 if not lacking else self.window.floor)

    @rule(wanted=patterns, back=st.integers(0, 12), now=st.integers(0, 400))
    def newest_of_keys(self, wanted: list[str], back: int, now: int) -> None:
        after = max(self.window.head - back, self.window.floor)
        newest = {
            event.key: event
            for event in self.list
            if event.position > after and event.key is not None and self.wants(wanted, event)
        }
        expected = sorted(event.position for event in newest.values() if not 0 < event.expires <= now)
        found = self.window.newest_by_key(Selection(wanted), after, now)
        assert [event.position for event in found] == expected

    @rule(time=st.integers(0, 500))
    def find_time(self, time: int) -> None:
        older = [event.position for event in self.list if event.time < time]
        assert self.window.position_before(time) == (older[-1] if older else None)

    @staticmethod
    def wants(wanted: list[str], event: Event) -> bool:
        return any(matches(pattern, event.topic) for pattern in wanted)

    # --- what always holds ----------------------------------------------------------------------------------

    @invariant()
    def it_has_what_the_list_has(self) -> None:
        """The same events, at the same places, also by topic; exactly the same cost; all bounds kept."""
        window = self.window
        assert list(window._events.after(0)) == self.list
        assert len(window) == len(self.list)
        assert window.bytes == self.cost()
        assert window.head == self.count
        assert window.floor == self.count - len(self.list)
        assert window.evicted == self.gone
        topics = {event.topic for event in self.list}
        assert window.topics().keys() == topics
        for topic in topics:
            run = [event for event in self.list if event.topic == topic]
            assert list(window._topics[topic].after(0)) == run
            assert list(window._topics[topic].before(1 << 60)) == run[::-1]

    @invariant()
    def it_names_what_it_has(self) -> None:
        """A position has the cursor of its event, or one without a tag."""
        tags = {event.position: event.tag for event in self.list}
        for position in range(max(self.window.floor - 1, 0), self.window.head):
            tag = tags.get(position, 0)
            assert self.window.tag_at(position) == tag
            assert self.window.cursor(position) == f"{EPOCH}-{position}-{tag:04x}"
        assert self.window.cursor(self.count) == f"{EPOCH}-{self.count}-{self.window.head_tag:04x}"


TestBeside = Beside.TestCase
TestBeside.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
