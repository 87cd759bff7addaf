"""
Admission: which messages of the stream are events, and what each becomes. Pure.

Every replica sees the same messages in the same order, and decides the same from them: an event's time never
decreases along the log, and what carries an id that was there lately is a second copy and left out.

What a message lacks is made up in a way that can be repeated. A time that nobody wrote is the moment at which
this replica first read the message, which is remembered (`Clock`) for when it is read again.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import OrderedDict
from contextlib import suppress
from typing import Final

from fanout.event import Event
from gateway.stream_messages import Incoming, NoEvent, Received
from gateway.stream_seen import Seen

log = logging.getLogger(__name__)

SKEW_MS: Final = 5000
"""How far the clock of another replica may lead."""

MAX_SKIPPED: Final = 100_000
"""Second copies that are remembered, so that they are left out also of what is read again."""

TICK_MS: Final = 1000
MAX_TICKS: Final = 200_000
"""Two days and more, at one a second."""


class Clock:
    """When which offset was read live."""

    def __init__(self) -> None:
        self._offsets: list[int] = [0]
        self._times: list[int] = [0]

    def restart(self, offset: int, now: int) -> None:
        """Begin anew: what lies before `offset` counts as read `now`."""
        self._offsets, self._times = [offset], [now]

    def note(self, offset: int, now: int) -> None:
        """Remember that `offset` is read `now`, if the last note is old enough."""
        if now - self._times[-1] < TICK_MS:
            return
        self._offsets.append(offset)
        self._times.append(now)
        if len(self._offsets) > MAX_TICKS:
            del self._offsets[: MAX_TICKS // 2], self._times[: MAX_TICKS // 2]

    def at(self, offset: int) -> int:
        """Return when an offset was read, to a second."""
        return self._times[max(bisect_right(self._offsets, offset) - 1, 0)]


class Admission:
    """
    Makes events of messages.

    Args:
        max_event_bytes: how long an event's JSON may be.
        dedup_ms: how long an id makes a message a second copy.
        dedup_events: how many ids are remembered.

    Attributes:
        epoch: that of the log.
        duplicates: second copies so far.
    """

    def __init__(self, max_event_bytes: int, dedup_ms: int, dedup_events: int) -> None:
        self.epoch = ""
        self.duplicates = 0
        self.clock = Clock()
        self._incoming = Incoming(max_event_bytes)
        self._seen = Seen(dedup_ms, dedup_events)
        self._time = 0  # of the last event
        self._skipped: OrderedDict[int, None] = OrderedDict()  # positions of second copies

    def restart(self, epoch: str, offset: int, now: int) -> None:
        """Begin with another stream, or at another place of it; `offset` is the next that is read live."""
        self.epoch = epoch
        self.clock.restart(offset, now)
        self._seen.clear()
        self._skipped.clear()
        self._time = 0

    @property
    def time(self) -> int:
        """The time of the last event, ms; 0 if there is none."""
        return self._time

    def event(self, received: Received, now: int) -> Event | None:
        """
        Return the event that the next message is; None if it is a second copy.

        Raises:
            NoEvent: it cannot be one.
        """
        latest = now + SKEW_MS if received.origin is not None else now
        event = self._make(received, self._time, latest)
        self._time = event.time
        return event if event.given_id is None or self._is_first(event) else None

    def own(self, event: Event, received: Received, now: int) -> Event | None:
        """As `event`, for one that this process published: there is no need to make it again."""
        event.position = received.offset + 1
        event.time = self._time = min(max(event.time, self._time), max(now + SKEW_MS, self._time))
        return event if event.given_id is None or self._is_first(event) else None

    def again(self, received: Received, earliest: int) -> Event | None:
        """
        Return the event that a message is which was read before; None if clients cannot be given one.

        Args:
            received: the message.
            earliest: the time of the event before it.
        """
        if received.mark is not None or received.offset + 1 in self._skipped:
            return None
        latest = self.clock.at(received.offset)
        with suppress(NoEvent):
            skew = SKEW_MS if received.origin is not None else 0
            return self._make(received, earliest, latest + skew)
        return None

    def _make(self, received: Received, earliest: int, latest: int) -> Event:
        """Return the event that a message is; a mistake of ours must cost this message, not the log."""
        try:
            return self._incoming.event(received, self.epoch, earliest, latest)
        except NoEvent:
            raise
        except Exception:
            log.exception("backbone.mistake: message %d to %r", received.offset, received.delivery.key)
            raise NoEvent("the gateway made a mistake with it") from None

    def _is_first(self, event: Event) -> bool:
        """Say whether no event had this id lately; one that is not gets the position of the first."""
        assert event.unique is not None
        original = self._seen.original(event.unique, event.position, event.time)
        if original is None:
            return True
        self.duplicates += 1
        self._skipped[event.position] = None
        if len(self._skipped) > MAX_SKIPPED:
            self._skipped.popitem(last=False)
        event.position = original
        return False
