"""The window: what it holds, what it forgets, and what it gives."""

from __future__ import annotations

import pytest

from fanout import window as module
from fanout.event import OVERHEAD_BYTES, Event
from fanout.frames import Wire, event_frame
from fanout.selection import Backfill, Selection
from fanout.window import Limits, Run, Window
from tests.support.fakes import event_of

ALL = Selection(["#"])
NO_LIMITS = Limits(events=1000, bytes=1 << 30, now=0)


def events_of(*topics: str, begin: int = 1, size: int = 0) -> list[Event]:
    """Return events of these topics, at positions from `begin` on, each a second after the one before."""
    return [
        event_of(position, topic, size=size, time=position * 1000, position=position)
        for position, topic in enumerate(topics, begin)
    ]


def window_of(*topics: str, **bounds: int) -> Window:
    """Return a window with these events in it."""
    window = Window("abcdef", **{"max_bytes": 1 << 30, "max_events": 1000, **bounds})
    window.append(events_of(*topics))
    window.evict(0)
    return window


def positions(
    window: Window, wanted: Selection | Backfill = ALL, after: int = 0, limits: Limits = NO_LIMITS
) -> list[int]:
    """Return the positions that a read gives."""
    stretch = window.read(wanted, Wire.NDJSON, after, limits)
    return [int(frame.split(b"-")[1]) for frame in stretch.frames]


# --- reading ------------------------------------------------------------------------------------------------


def test_reading_gives_what_is_wanted_behind_a_position() -> None:
    """A read gives the frames of the wanted events behind a position, in order."""
    window = window_of("a", "b", "a", "b", "c")
    stretch = window.read(Selection(["b", "c"]), Wire.NDJSON, 2, NO_LIMITS)
    events = {event.position: event for event in window._events.after(0)}
    assert stretch.frames == [
        event_frame(Wire.NDJSON, window.cursor_of(events[position]), events[position].body)
        for position in (4, 5)
    ]
    assert (stretch.upto, stretch.more) == (5, False)


@pytest.mark.parametrize("patterns", [["#"], ["a", "b", "c"], ["a", "b", "*"], ["a", "b", "c", "d"]])
def test_it_does_not_matter_how_it_is_wanted(patterns: list[str]) -> None:
    """By wildcard or by the runs of its topics, merged, the same events come in the same order."""
    window = window_of("a", "b", "a", "c", "b", "a")
    for after in range(7):
        assert positions(window, Selection(patterns), after) == list(range(after + 1, 7))


def test_nothing_wanted_is_seen_at_once() -> None:
    """Whoever wants nothing, or nothing that is here, has seen everything."""
    window = window_of("a", "b")
    for wanted in (Selection([]), Selection(["c"]), Selection(["c.*"])):
        stretch = window.read(wanted, Wire.SSE, 0, NO_LIMITS)
        assert (stretch.frames, stretch.upto, stretch.more) == ([], 2, False)


def test_many_topics_are_found_in_the_whole_window() -> None:
    """A selection of more topics than are merged gets the same events."""
    window = window_of(*(f"t{number}" for number in range(50)))
    assert positions(window, Selection([f"t{number}" for number in range(0, 50, 1)])) == list(range(1, 51))


def test_the_limit_of_events_cuts() -> None:
    """A read stops behind so many events, and says that there may be more, unless it is at the end."""
    window = window_of("a", "b", "a", "b")
    stretch = window.read(ALL, Wire.NDJSON, 0, Limits(2, 1 << 30, 0))
    assert (len(stretch.frames), stretch.upto, stretch.more) == (2, 2, True)
    stretch = window.read(ALL, Wire.NDJSON, 2, Limits(2, 1 << 30, 0))
    assert (len(stretch.frames), stretch.upto, stretch.more) == (2, 4, False)


def test_the_limit_of_bytes_cuts_before_it_is_exceeded() -> None:
    """A read gives no more bytes than the limit, but always at least one event, however large."""
    window = window_of("a", "a", "a")
    size = len(window.frame(next(window._events.after(0)), Wire.NDJSON))
    for limit, count in ((1, 1), (size, 1), (2 * size - 1, 1), (2 * size, 2), (3 * size, 3)):
        stretch = window.read(ALL, Wire.NDJSON, 0, Limits(1000, limit, 0))
        assert (len(stretch.frames), stretch.upto, stretch.more) == (count, count, count < 3)


def test_a_long_stretch_without_a_match_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read looks at only so many events; it says how far it came, and that there may be more."""
    monkeypatch.setattr(module, "MAX_SCAN", 3)
    window = window_of("a", "a", "a", "a", "b")
    stretch = window.read(Selection(["*.x", "b"]), Wire.NDJSON, 0, NO_LIMITS)
    assert (stretch.frames, stretch.upto, stretch.more) == ([], 3, True)
    assert positions(window, Selection(["*.x", "b"]), after=3) == [5]


def test_what_has_expired_is_left_out() -> None:
    """An event is given before the moment it expires, and not from then on."""
    window = Window("abcdef", 1 << 30, 1000)
    window.append([event_of(1, expires=500, position=1), event_of(2, position=2)])
    assert positions(window, limits=Limits(1000, 1 << 30, 499)) == [1, 2]
    assert positions(window, limits=Limits(1000, 1 << 30, 500)) == [2]


def test_a_stored_stretch_is_read_as_the_window_is() -> None:
    """Events from the log are picked and cut as those of the window are, and end where the stretch ends."""
    window = window_of("a")
    stored = events_of("a", "b", "a", begin=10)
    stretch = window.read_stored(stored, Selection(["a"]), Wire.NDJSON, NO_LIMITS, 12)
    assert (len(stretch.frames), stretch.upto, stretch.more) == (2, 12, False)
    stretch = window.read_stored(stored, Selection(["a"]), Wire.NDJSON, Limits(1, 1 << 30, 0), 12)
    assert (len(stretch.frames), stretch.upto, stretch.more) == (1, 10, True)


def test_frames_of_stored_events_are_not_kept() -> None:
    """Events that are not in the window keep no frames, which nobody would count."""
    window = window_of("a")
    stored = events_of("a", "b", begin=10)
    window.read_stored(stored, ALL, Wire.NDJSON, NO_LIMITS, 11)
    assert [event.frames for event in stored] == [None, None]
    assert window.bytes == OVERHEAD_BYTES + len(event_of(1).body)


# --- bounds -------------------------------------------------------------------------------------------------


def test_its_bytes_are_what_its_events_cost() -> None:
    """Bodies, overhead and cached frames are counted, and given back when an event goes."""
    window = window_of("a", "b", "a")
    bodies = sum(len(event.body) for event in window._events.after(0))
    assert window.bytes == 3 * OVERHEAD_BYTES + bodies
    stretch = window.read(ALL, Wire.SSE, 0, NO_LIMITS)
    window.read(ALL, Wire.SSE, 0, NO_LIMITS)  # a frame that is there costs nothing more
    assert window.bytes == 3 * OVERHEAD_BYTES + bodies + sum(map(len, stretch.frames))
    window.max_bytes = 0
    window.evict(0)
    assert (window.bytes, len(window), window.topics()) == (0, 0, {})


def test_a_frame_is_made_once() -> None:
    """As long as an event is in the window, all who want it on one wire get the same bytes object."""
    window = window_of("a")
    (event,) = window._events.after(0)
    assert window.frame(event, Wire.SSE) is window.frame(event, Wire.SSE)
    assert window.frame(event, Wire.SSE) != window.frame(event, Wire.NDJSON)


def test_the_oldest_goes_first() -> None:
    """Beyond the number of events the oldest goes, also from its topic's run, and the floor rises."""
    window = window_of("a", "b", "a", "c", max_events=2)
    assert (window.floor, window.evicted, len(window)) == (2, 2, 2)
    assert window.topics() == {"a": 1, "c": 1}
    assert positions(window, after=2) == [3, 4]
    assert positions(window, Selection(["a", "b"]), after=2) == [3]


def test_any_number() -> None:
    """A bound of 0 events is no bound."""
    assert len(window_of(*"aaaaa", max_events=0)) == 5


def test_the_bound_of_bytes() -> None:
    """Beyond the bytes the oldest go until the rest fits, also when only frames were cached."""
    cost = OVERHEAD_BYTES + len(event_of(1).body)
    window = window_of("a", "a", "a", max_bytes=3 * cost)
    assert len(window) == 3
    window.read(ALL, Wire.SSE, 0, NO_LIMITS)
    assert window.bytes <= window.max_bytes
    assert window.floor > 0


def test_an_event_larger_than_the_window_is_not_kept() -> None:
    """One event that exceeds the bound alone leaves an empty window, with the head at its position."""
    window = window_of("a", "a", max_bytes=10)
    assert (len(window), window.bytes, window.floor, window.head) == (0, 0, 2, 2)


def test_the_bound_of_age() -> None:
    """An event goes when it is older than the bound at the time given; time 0 leaves age out."""
    window = window_of("a", "a", "a", max_age_ms=1000)
    window.evict(0)
    assert len(window) == 3
    window.evict(3000)
    assert window.floor == 1
    window.evict(3001)
    assert window.floor == 2
    window.evict(5000)
    assert (len(window), window.floor, window.head) == (0, 3, 3)


# --- the beginning ------------------------------------------------------------------------------------------


def test_it_begins_where_the_log_stands() -> None:
    """An empty window of a log that has events begins at its head, whose cursor it knows."""
    window = Window("abcdef", 1000, 10)
    window.begin(41, 0xBEEF)
    assert (window.floor, window.head, window.cursor(41)) == (41, 41, "abcdef-41-beef")
    window.append(events_of("a", begin=42))
    assert positions(window, after=41) == [42]


def test_the_tail_of_the_log_is_taken_in() -> None:
    """The tail of the log fills the window, within its bounds, and the floor lies before it."""
    window = Window("abcdef", 1 << 30, 2)
    window.begin(43, 7)
    window.preload(events_of("a", "b", "c", begin=41))
    assert (window.floor, window.head, len(window)) == (41, 43, 2)
    window.preload([])
    assert len(window) == 2


def test_another_log() -> None:
    """When the log was replaced, everything is forgotten, and cursors have the new log's name."""
    window = window_of("a", "b")
    window.read(ALL, Wire.SSE, 0, NO_LIMITS)
    window.restart("uvwxyz", 1, 5)
    assert (len(window), window.bytes, window.topics(), window.floor) == (0, 0, {}, 1)
    assert window.cursor(1) == "uvwxyz-1-0005"


# --- cursors and places -------------------------------------------------------------------------------------


def test_cursors_have_the_tag_where_it_is_known() -> None:
    """A cursor has the tag of the event at its position if that is here, or at the head, else none."""
    window = window_of("a", "b", "c", max_events=1)
    tags = [event_of(number).tag for number in (1, 2, 3)]
    assert window.cursor(3) == f"abcdef-3-{tags[2]:04x}"
    assert window.cursor(2) == "abcdef-2-0000"
    assert window.cursor(0) == "abcdef-0-0000"
    assert [window.tag_at(position) for position in (1, 2, 3, 4)] == [0, 0, tags[2], 0]


def test_the_newest_so_many() -> None:
    """Looking back finds the place behind which the last N wanted events are, or how many it cannot see."""
    window = window_of("a", "b", "a", "b", "a")
    assert window.newest(ALL, 1, 5) == (4, 0)
    assert window.newest(Selection(["a"]), 2, 5) == (2, 0)
    assert window.newest(Selection(["a"]), 2, 4) == (0, 0)
    assert window.newest(Selection(["a"]), 5, 5) == (0, 2)
    assert window.newest(Selection(["c"]), 1, 5) == (0, 1)


def test_the_newest_of_each_key() -> None:
    """Behind a position the newest of each key is found, in order; not if it expired or has no key."""
    window = Window("abcdef", 1 << 30, 1000)
    keys = ["k", "l", None, "k", "m", "k", "m"]
    window.append(
        [
            event_of(number, key=key, position=number, expires=50 if number == 7 else 0)
            for number, key in enumerate(keys, 1)
        ]
    )
    assert [event.position for event in window.newest_by_key(ALL, 0, 49)] == [2, 6, 7]
    assert [event.position for event in window.newest_by_key(ALL, 0, 50)] == [2, 6]
    assert [event.position for event in window.newest_by_key(ALL, 2, 49)] == [6, 7]
    assert window.newest_by_key(Selection(["b"]), 0, 49) == []


def test_the_last_event_before_a_time() -> None:
    """The last event accepted before a time is found, unless it would lie before the window."""
    window = window_of("a", "b", "c")
    assert window.position_before(1000) is None
    assert window.position_before(1001) == 1
    assert window.position_before(3000) == 2
    assert window.position_before(99_999) == 3
    assert Window("abcdef", 1, 1).position_before(5) is None


# --- runs ---------------------------------------------------------------------------------------------------


def test_a_run_lets_go_of_what_it_dropped() -> None:
    """Dropping from the front is cheap, and does not keep memory for what is gone."""
    run = Run()
    for event in events_of(*("a" for _ in range(1000))):
        run.append(event)
    for left in range(999, -1, -1):
        run.drop_first()
        assert len(run) == left
        assert len(run._events) <= max(2 * left + 2, 64)
        assert all(event is None for event in run._events[: run._dropped])
    assert list(run.after(0)) == list(run.before(2000)) == []
