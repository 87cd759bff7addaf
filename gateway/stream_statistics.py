"""What a stream log tells about itself, and the broker with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gateway.log import Measure


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """
    How it is, and what was done since the start.

    Attributes:
        connected: whether events come in, as far as is known.
        blocked: whether the broker takes no events: it is short of memory or disk.
        silent_seconds: how long the broker has said nothing; not connected, since it last did.
        queued_events: events that were published and not read back.
        queued_bytes: memory of these.
        queue_events: how many there may be.
        queue_bytes: how much memory they may take.
        oldest_seconds: how long the oldest of them has been on the way; 0 if there is none.
        events: read live.
        published: events sent to the broker.
        duplicates: second copies that were left out.
        dead: messages that were no events.
        unburied: of these, those that no replica is known to have sent to the dead letters yet.
        failures: calls that failed.
        reconnects: attempts to connect after the first.
        resets: how often the stream turned out to be another one.
    """

    connected: bool
    blocked: bool
    silent_seconds: float
    queued_events: int
    queued_bytes: int
    queue_events: int
    queue_bytes: int
    oldest_seconds: float
    events: int
    published: int
    duplicates: int
    dead: int
    unburied: int
    failures: int
    reconnects: int
    resets: int

    def measures(self) -> Iterator[Measure]:
        """Return it for operators; see `Log.measures`."""
        yield Measure("log_queued_events", "Events waiting to be durable.", self.queued_events)
        yield Measure("log_queued_bytes", "Memory of these.", self.queued_bytes)
        yield Measure("log_queue_limit_events", "How many may wait.", self.queue_events)
        yield Measure("log_queue_limit_bytes", "How much memory they may take.", self.queue_bytes)
        yield Measure("backbone_connected", "Whether this replica reads and publishes.", self.connected)
        yield Measure("backbone_blocked", "Whether the broker takes no events.", self.blocked)
        yield Measure("backbone_silent_seconds", "Since the broker last said something.", self.silent_seconds)
        yield Measure(
            "backbone_oldest_seconds", "How long the oldest event has been waiting.", self.oldest_seconds
        )
        yield Measure("backbone_unburied", "Dead letters that are not in their queue yet.", self.unburied)
        for name, what, value in (
            ("read_events", "Events read live.", self.events),
            ("published_events", "Events sent to the broker.", self.published),
            ("failed_calls", "Publish calls that failed because of the broker.", self.failures),
            ("duplicates", "Second copies of an event that were left out.", self.duplicates),
            ("dead_letters", "Messages that were no events.", self.dead),
            ("reconnects", "Attempts to connect again.", self.reconnects),
            ("resets", "How often the stream was another one.", self.resets),
        ):
            yield Measure(f"backbone_{name}", what, value, total=True)
