"""
The plain model that the fan-out is held to: a log as a list, and clients that know what they have a right to.

A `Reading` is one client's view. It reads the real messages of its wires, one by one, and fails at the first
that breaks a promise: an event lost without a gap, twice, out of order or not asked for; a gap of the wrong
range or reason; a wrong position after a cursor of another history.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from fanout.catchup import SHARED_MS, Block
from fanout.connection import Overflow
from fanout.cursor import Cursor
from fanout.event import OVERHEAD_BYTES, Event
from fanout.topics import matches
from tests.support.fakes import Moment, copy_of
from tests.support.readers import Message


class ModelLog:
    """
    A log that never waits: a list of all events, of which the oldest are gone.

    As with a real log, what retention deletes is gone a little before `first` says so: `trim` deletes,
    `tell` says. It is a `gateway.log.Log` as far as readers need one.
    """

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.history: list[Event] = []  # all of them, also those that are gone: position 1 is history[0]
        self.first = 1
        self.kept = 1  # position of the oldest that is still there

    @property
    def head(self) -> int:
        return len(self.history)

    @property
    def head_tag(self) -> int:
        return self.history[-1].tag if self.history else 0

    def append(self, events: list[Event]) -> None:
        for event in events:
            self.history.append(event)
            event.position = len(self.history)

    def trim(self, kept: int) -> None:
        """Delete the events before position `kept`."""
        self.kept = max(self.kept, min(kept, self.head + 1))

    def tell(self) -> None:
        """Let `first` say what was deleted."""
        self.first = self.kept

    def truncate(self, head: int) -> None:
        """Lose the events behind position `head`, as when an old copy of the log is restored."""
        del self.history[head:]
        self.kept = min(self.kept, self.head + 1)
        self.tell()

    def stretch(self, after: int, max_bytes: int) -> list[Event]:
        """Return what `read` returns."""
        events: list[Event] = []
        for event in self.history[max(after, self.kept - 1) :]:
            max_bytes -= len(event.body) + OVERHEAD_BYTES
            if events and max_bytes < 0:
                break
            events.append(copy_of(event))
        return events

    async def read(self, after: int, max_bytes: int) -> list[Event]:
        return self.block(after, max_bytes).events

    def block(self, after: int, max_bytes: int) -> Block:
        """Read, and say in `first` what is seen to be gone, as `gateway.log.Log.read` promises."""
        events = self.stretch(after, max_bytes)
        if (events[0].position if events else self.head + 1) > after + 1:
            self.tell()
        return Block(after, events)

    async def find_time(self, time_ms: int) -> int:
        older = sum(event.time < time_ms for event in self.history)
        return max(older, self.first - 1)

    def tag_at(self, position: int) -> int:
        """Return the tag of the event that is, or was, at a position; 0 if there never was one."""
        return self.history[position - 1].tag if 1 <= position <= self.head else 0


@dataclass(frozen=True, slots=True)
class Reset:
    """A reset that a client must be told: it came with cursor `begin` and goes on at `position`."""

    begin: str
    position: int
    opening: bool  # for the connection as a whole, not for one subscription


class Reading:
    """
    One client: what it was told so far, on whatever transport, and what it may expect.

    Args:
        log: tells it the truth about the log that the gateway has now.
        patterns: what it wants.
        overflow: what it chose for when it falls behind.
    """

    def __init__(self, log: Callable[[], ModelLog], patterns: Iterable[str], overflow: Overflow) -> None:
        self.patterns = frozenset(patterns)  # as far as the gateway confirmed
        self.overflow = overflow
        self.cursor: str | None = None  # what it resumes with; None before it was told any
        self.position = 0  # of the cursor
        self.starts: dict[str, int] = {}  # pattern -> it has what that matches up to here
        self.resets: deque[Reset] = deque()  # announcements that are due, in order
        self.events = 0  # on this connection
        self.gaps = 0  # on this connection
        self.pauses = 0  # how often its connections were full, as far as it was told by the test
        self.ended = False  # the gateway said goodbye
        self._welcome: int | None = None  # where the connection must begin
        self._log = log

    # --- what the test tells it -----------------------------------------------------------------------------

    def opened(self, position: int, resets: Iterable[Reset] = ()) -> None:
        """A connection was opened that is to begin at `position`."""
        self._welcome = position
        self.resets = deque(resets)
        self.events = self.gaps = self.pauses = 0
        self.ended = False

    def parted(self) -> None:
        """The connection is over; what it was not told on it will not come any more."""
        self.resets.clear()

    # --- what the gateway tells it --------------------------------------------------------------------------

    def read(self, message: Message, moment: Moment) -> None:
        """
        Take in the next message, which was written at `moment`.

        Raises:
            AssertionError: it breaks a promise.
        """
        if self._welcome is not None and message.kind not in ("welcome", "hello"):
            raise AssertionError(f"before the welcome came {message}")
        match message.kind:
            case "welcome" | "hello":
                self._welcomed(message)
            case "event":
                self._event(message, moment)
            case "gap":
                self._gap(message, moment)
            case "heartbeat":
                self._advance(message, moment)
            case "reconnect":
                self._goodbye(message, moment)
            case "subscribed" | "unsubscribed":
                self._resubscribed(message)
            case "close" | "end":
                assert self.ended, f"an end without a goodbye: {message}"
            case _:
                raise AssertionError(f"unexpected: {message}")

    def poll(self, message: Message, moment: Moment) -> None:
        """Take in the whole answer of a poll."""
        assert self._welcome is not None
        assert message.cursor is not None
        self._begin(self._welcome)
        gap = message.members.get("gap")
        if gap is not None:
            self._gap(Message("gap", gap["to"], gap), moment)
        assert not self.resets, "the answer does not say that the log is another"
        for event in message.members["events"]:
            self._event(Message("event", event["cursor"], event), moment)
        self._advance(message, moment)
        behind = self.due(self.position, self._log().head, moment.now)
        assert not behind or message.members["more"], (
            f"the answer does not say that there is {behind[0]} as well"
        )

    def at_the_end(self, moment: Moment) -> None:
        """Check that nothing is missing when the connection is live, and everything was read."""
        assert self._welcome is None, "there was no welcome"
        assert not self.resets, f"not told: {self.resets}"
        self._nothing_lost(self._log().head, moment)

    def due(self, after: int, upto: int, now: int) -> list[Event]:
        """Return the events behind `after`, up to `upto`, that it has a right to at `now`."""
        return [
            event
            for event in self._log().history[after:upto]
            if self._wants(event) and not 0 < event.expires <= now
        ]

    def _wants(self, event: Event) -> bool:
        return any(
            start < event.position and matches(pattern, event.topic) for pattern, start in self.starts.items()
        )

    # --- messages -------------------------------------------------------------------------------------------

    def _welcomed(self, message: Message) -> None:
        assert self._welcome is not None, "a second welcome"
        assert message.cursor is not None
        opening = next((reset for reset in self.resets if reset.opening), None)
        if opening is not None:
            assert message.cursor == opening.begin, "it is moved before it is told why"
        else:
            assert self._known(message.cursor) == self._welcome, "it begins at the wrong place"
        self._begin(self._welcome)
        self.cursor = message.cursor

    def _begin(self, position: int) -> None:
        self._welcome = None
        self.position = position
        self.starts = dict.fromkeys(self.patterns, position)

    def _event(self, message: Message, moment: Moment) -> None:
        assert message.cursor is not None
        position = self._known(message.cursor)
        assert position > self.position, f"twice, or out of order: {message.cursor} behind {self.cursor}"
        event = self._log().history[position - 1]
        assert message.cursor.endswith(f"-{event.tag:04x}"), "an event's cursor has its tag"
        assert self._wants(event), f"not asked for: {message}"
        assert moment.live or not 0 < event.expires <= moment.now - SHARED_MS, f"it had expired: {message}"
        expected = b'{"cursor":"%b",%b}' % (message.cursor.encode(), event.body)
        assert (message.text or expected) == expected
        assert message.members == msgspec.json.decode(expected)
        self._nothing_lost(position - 1, moment)
        self._adopt(message.cursor, position)
        self.events += 1

    def _gap(self, message: Message, moment: Moment) -> None:
        self.gaps += 1
        reason, begin, end = (message.members[name] for name in ("reason", "from", "to"))
        assert message.cursor == end
        position = self._known(end)
        if reason == "reset":
            assert self.resets, f"a reset out of nowhere: {message}"
            reset = self.resets.popleft()
            assert (begin, position) == (reset.begin, reset.position)
            if reset.opening:
                self._adopt(end, position)
            return
        skipped = self._known(begin)
        assert self.position <= skipped < position, f"a gap that leads back: {message} at {self.cursor}"
        self._nothing_lost(skipped, moment)
        if reason == "expired":
            assert position <= min(moment.lost, moment.floor), (
                f"of what is skipped, something is there: {message}"
            )
        else:
            assert reason == "overflow", f"an unknown reason: {message}"
            self._justified(skipped, position, moment)
        self._adopt(end, position)

    def _justified(self, skipped: int, position: int, moment: Moment) -> None:
        """Check a gap by overflow: what it skips has no key, or a newer event of its key came since."""
        assert self.overflow is Overflow.LATEST, "an overflow gap for a client that did not choose it"
        assert self.pauses, "an overflow gap for a client that was never full"
        history = self._log().history
        for event in self.due(max(skipped, moment.floor), position, moment.now):
            newer = (other for other in history[event.position :] if self._wants(other))
            assert event.key is None or any(other.key == event.key for other in newer), (
                f"{event} is the newest of its key"
            )

    def _resubscribed(self, message: Message) -> None:
        if message.kind == "unsubscribed":
            self.patterns = self.patterns.difference(message.members["topics"])
            self.starts = {pattern: self.starts[pattern] for pattern in self.patterns}
            return
        assert message.cursor is not None
        start = self._known(message.cursor)
        added = [pattern for pattern in message.members["topics"] if pattern not in self.patterns]
        if not added:
            return
        self.starts = {pattern: max(old, self.position) for pattern, old in self.starts.items()}
        self.starts |= dict.fromkeys(added, start)
        self.patterns = self.patterns.union(added)
        if start < self.position:
            self._adopt(message.cursor, start)  # it went back there, for what is new

    def _goodbye(self, message: Message, moment: Moment) -> None:
        if message.members["reason"] == "fell_behind":
            assert self.overflow is Overflow.DISCONNECT, "cut off although it did not choose that"
            assert self.pauses, "cut off although it was never full"
        self._advance(message, moment)
        self.ended = True

    # --- the promises ---------------------------------------------------------------------------------------

    def _advance(self, message: Message, moment: Moment) -> None:
        """Go on to a cursor that says: you have everything up to here."""
        assert message.cursor is not None
        position = self._known(message.cursor)
        assert position >= self.position, f"led back from {self.cursor} by {message}"
        self._nothing_lost(position, moment)
        self._adopt(message.cursor, position)

    def _adopt(self, cursor: str, position: int) -> None:
        self.cursor, self.position = cursor, position

    def _nothing_lost(self, upto: int, moment: Moment) -> None:
        """Promise 1: what is passed over without a gap was not asked for, or has expired."""
        lost = self.due(self.position, upto, moment.now)
        assert not lost, f"lost without a word behind {self.cursor}: {lost}, written at {moment}"

    def _known(self, text: str) -> int:
        """
        Return the position of a cursor that the gateway gave, which must be one of this log, with the right
        tag.
        """
        cursor = Cursor.parse(text)
        log = self._log()
        assert cursor.epoch == log.epoch, f"a cursor of another log: {text}"
        assert cursor.position <= log.head, f"a cursor of the future: {text}"
        assert cursor.tag in (0, log.tag_at(cursor.position)), f"a wrong tag: {text}"
        return cursor.position
