"""
The lane: an endpoint as the process that sends to it has it, with what it knows of its deliveries.

What is in memory is a part of what is pending, bounded, and never the truth: the rows of the store are. A
lane knows the messages that it has in its hands (queued, on their way, or their outcome not yet written
down), so that it takes none of them twice; and it knows whether the store may have more for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import Final

from webhooks.attempt import Target
from webhooks.description import Order
from webhooks.endpoint import Endpoint, State
from webhooks.records import Due, Status
from webhooks.retry_after import LONGEST_MS
from webhooks.schedule import SPREAD
from webhooks.stored import health_of, status_of

MAX_QUEUE: Final = 128
"""Deliveries of one endpoint in memory that wait to be sent; the store has the others."""
NEVER: Final = 2**62


class Lane:
    """
    One endpoint.

    Args:
        id: the endpoint's.
        bucket: the share it belongs to.
        revision: of the row that it was made from.
        since: see `webhooks.stored.settings`.
        endpoint: the endpoint at run time.
        target: where it is sent to; None if the settings of this gateway let nothing be sent there.

    Attributes:
        queue: deliveries that are due, in the order in which they are sent.
        known: messages of those that it has in its hands.
        in_flight: attempts under way.
        settling: outcomes that are not written down yet.
        behind: the store may have deliveries that are due and not in `known`.
        missed: something was added to the store while it was being asked.
        asking: the store is being asked.
        released: what went out of its hands while it is asked: the answer may be from before that.
        seen: the highest message that the store ever answered.
        queued: it waits for its turn to send.
        wakes_at: when it is looked at again, whatever happens; milliseconds since the Unix epoch.
        due_at: when something in the store becomes due that is not in `known`, as far as is known.
        saved: its health as the store has it.
        over: nothing is sent to it from here any more.
        lost: another replica answers for it, or will; what came of attempts is not for us to write down.
    """

    __slots__ = (
        "asking",
        "behind",
        "bucket",
        "due_at",
        "endpoint",
        "id",
        "in_flight",
        "is_fifo",
        "known",
        "longest_wait",
        "lost",
        "missed",
        "over",
        "queue",
        "queued",
        "released",
        "revision",
        "saved",
        "seen",
        "settling",
        "since",
        "target",
        "wakes_at",
    )

    def __init__(
        self, id: int, bucket: int, revision: int, since: int, endpoint: Endpoint, target: Target | None
    ) -> None:
        self.id = id
        self.bucket = bucket
        self.since = since
        self.queue: deque[Due] = deque()
        self.known: set[int] = set()
        self.in_flight = 0
        self.settling = 0
        self.behind = True
        self.missed = False
        self.asking = False
        self.released: set[int] = set()
        self.seen = 0
        self.queued = False
        self.wakes_at = self.due_at = NEVER
        self.over = False
        self.lost = False
        self.saved = health_of(endpoint)
        self.become(revision, endpoint, target)

    def become(self, revision: int, endpoint: Endpoint, target: Target | None) -> None:
        """Be as the row of another revision says."""
        self.revision = revision
        self.endpoint = endpoint
        self.target = target
        description = endpoint.description
        self.is_fifo = description.order is Order.FIFO
        waits = max(description.schedule, default=0.0) * (1 + SPREAD) * 1000
        self.longest_wait = max(round(waits), LONGEST_MS)

    @property
    def patterns(self) -> Sequence[str]:
        """The patterns of the topics that it gets."""
        return self.endpoint.description.topics

    @property
    def is_open(self) -> bool:
        """Whether anything may be sent to it."""
        return self.endpoint.state is State.ACTIVE and self.target is not None and not self.over

    @property
    def status(self) -> Status:
        """Its status as the store has it, or is about to."""
        return status_of(self.endpoint)

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it is under way."""
        return not self.in_flight and not self.settling

    def room(self, now: int) -> int:
        """Return how many attempts may begin."""
        if not self.is_open:
            return 0
        busy = self.in_flight
        if self.is_fifo:
            # The next one only when it is written down what became of this one: whoever sends after a crash
            # begins with what is written down, and must not go back behind what was sent already.
            busy += self.settling
        return self.endpoint.room(now, busy)

    def offer(self, due: Due) -> bool:
        """
        Take a delivery that was just stored, the newest there is; return whether there was a place for it.

        If not, it stays in the store, to be asked for when the ones before it have gone. The store may have
        answered it already, before whoever stored it heard that it was: then it was taken, all that was
        stored with it as well, and perhaps it has gone out.
        """
        if due.message <= self.seen:
            return True
        if self.behind or self.asking or len(self.queue) >= MAX_QUEUE or not self.is_open:
            self.behind = self.missed = True
            return False
        self.queue.append(due)
        self.known.add(due.message)
        return True

    def ask(self) -> int:
        """Begin to ask the store; return for how many rows, to learn what comes next."""
        self.asking, self.missed = True, False
        return len(self.known) + MAX_QUEUE - len(self.queue) + 1

    def take(self, rows: Sequence[Due], limit: int, now: int) -> int:
        """
        Take what the store answered; return when it has to be asked again, `NEVER` if only when told.

        Args:
            rows: its pending deliveries, those that are due first first.
            limit: at most so many were asked for.
            now: milliseconds since the Unix epoch.
        """
        missed, released = self.missed, self.released
        self.stop_asking()
        self.behind = missed or len(rows) >= limit or not self.is_open
        if not self.is_open:
            return NEVER
        self.seen = max([self.seen, *(row.message for row in rows)])
        for row in rows:
            if not self._is_due(row, now):
                self.behind = missed
                return row.due
            if row.message in self.known or row.message in released:
                continue
            if len(self.queue) >= MAX_QUEUE:
                self.behind = True
                break
            self.queue.append(row)
            self.known.add(row.message)
        return NEVER

    def stop_asking(self) -> None:
        """The store has answered, or will not."""
        self.asking = self.missed = False
        self.released = set()

    def release(self, message: int) -> None:
        """A delivery is out of its hands: it is written down what became of it."""
        self.known.discard(message)
        if self.asking:
            self.released.add(message)

    def forget(self, messages: Collection[int]) -> None:
        """Take out of the queue what is not there any more."""
        for due in [due for due in self.queue if due.message in messages]:
            self.queue.remove(due)
            self.known.discard(due.message)

    def empty(self) -> None:
        """Let go of what is queued; the store has it."""
        for due in self.queue:
            self.known.discard(due.message)
        self.queue.clear()
        self.behind = True

    def _is_due(self, row: Due, now: int) -> bool:
        # A time that no wait leads to was seen on another clock.
        return self.is_fifo or row.due <= now or row.due > now + self.longest_wait
