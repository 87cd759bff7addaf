"""
The writer: publishes to the stream in order, with a bounded number of events on the way.

An event is not done when the broker confirms it but when it was read back: only then does it have its
position. So the calls wait here, under the numbers of their events, until the reader claims them. What one
turn of the event loop publishes is one write.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_hex
from typing import Final

from pamqp import commands

from fanout.event import OVERHEAD_BYTES, Event
from gateway.amqp.frames import Confirm, Delivery, Publications
from gateway.amqp.link import Link, LinkError
from gateway.amqp.properties import encode, encode_headers
from gateway.amqp.topology import Topology
from gateway.log import LogBusy, LogUnavailable
from gateway.stream_messages import Copies, Mark, Outgoing, Received

log = logging.getLogger(__name__)

RETRY_BUSY: Final = 1.0
READ_BACK_SECONDS: Final = 15.0
"""How long an event may take to come back before its producer is told to ask again."""


class Call:
    """One `append` that was published."""

    __slots__ = ("bytes", "events", "first", "future", "left", "since")

    def __init__(self, events: list[Event], first: int, size: int, future: asyncio.Future[None]) -> None:
        self.events = events
        self.first = first  # the number of its first event
        self.bytes = size
        self.left = len(events)  # how many were not read back, or not confirmed where that matters
        self.future = future
        self.since = time.monotonic()


@dataclass(frozen=True, slots=True)
class Queued:
    """What is on the way: how much, and for how long the oldest of it."""

    events: int
    bytes: int
    oldest_seconds: float


class Writer:
    """
    Publishes, on one connection after the other.

    Args:
        topology: where to.
        queue_bytes: memory for events on the way.
        queue_events: how many may be on the way.
        over: told when the connection ended, or is of no more use.
    """

    def __init__(
        self, topology: Topology, queue_bytes: int, queue_events: int, over: Callable[[LinkError], None]
    ) -> None:
        self.blocked_by: str | None = None  # why the broker takes nothing
        self.published = 0
        self.failures = 0  # calls that failed
        self._topology = topology
        self._queue_bytes = queue_bytes
        self._queue_events = queue_events
        self._over = over
        self._outgoing = Outgoing(token_hex(5))
        self.origin = self._outgoing.origin
        self._link: Link | None = None
        self._events = Publications(1, "", 4096)
        self._direct = Publications(1, "", 4096)
        self._number = 0  # of the last event published
        self._calls: deque[Call] = deque()
        self._pending: dict[int, Call] = {}  # by the number of an event
        self._pending_bytes = 0
        self._taken = 0.0  # since when the broker takes messages
        self._out: list[bytes] = []
        self._flushing = False
        self._written = 0  # messages, on this connection
        self._unconfirmed: dict[int, Call] = {}  # by the number of a message that a queue must have as well

    @property
    def outgoing(self) -> Outgoing:
        """What makes messages of events."""
        return self._outgoing

    async def open(self, link: Link) -> None:
        """Go on with a new connection."""
        self.blocked_by = None
        channel = await link.channel()
        await link.call(commands.Confirm.Select(), channel)
        self._events = Publications(channel, self._topology.exchange, link.frame_max)
        self._direct = Publications(channel, "", link.frame_max)
        self._link = link
        self._written = 0
        self._unconfirmed.clear()

    def publish(self, events: list[Event], future: asyncio.Future[None]) -> None:
        """
        Publish events; the future resolves through `resolve`.

        Raises:
            LogBusy: too many are on the way.
        """
        size = sum([len(event.body) for event in events]) + OVERHEAD_BYTES * len(events)
        if self._pending and (
            len(self._pending) + len(events) > self._queue_events
            or self._pending_bytes + size > self._queue_bytes
        ):
            raise LogBusy(RETRY_BUSY)
        first = self._number + 1
        call = Call(events, first, size, future)
        frames, message = self._events.frames, self._outgoing.message
        for number, event in enumerate(events, first):
            self._out += frames(*message(event, number))
            self._pending[number] = call
        if self._outgoing.copies is not None:
            self._await_copies(call, self._outgoing.copies)
        self._written += len(events)
        self._number += len(events)
        self.published += len(events)
        self._calls.append(call)
        self._pending_bytes += size
        self._flush_soon()

    def _await_copies(self, call: Call, copies: Copies) -> None:
        """What goes to a queue as well is done when that has it, too, and reading back cannot tell."""
        for number, event in enumerate(call.events, self._written + 1):
            if event.key is not None and copies(event) is not None:
                self._unconfirmed[number] = call
                call.left += 1

    def mark(self, mark: Mark) -> None:
        """Publish a mark, to the stream alone."""
        self._out += self._direct.frames(self._topology.stream.encode(), mark.properties(), b"null")
        self._written += 1
        self._flush_soon()

    def bury(self, message: Received, name: str, reason: str) -> None:
        """Send a message that cannot be an event to the dead letters, with the reason."""
        delivery = message.delivery
        headers: dict[bytes, bytes | int] = {
            b"x-sluice-reason": reason.encode(),
            b"x-sluice-position": name.encode(),
            b"x-sluice-exchange": delivery.exchange,
            b"x-sluice-routing-key": delivery.key,
        }
        properties = encode(
            message.content_type or b"application/octet-stream",
            encode_headers(headers),
            message_id=name.encode(),  # the same from every replica
        )
        self._out += self._direct.frames(self._topology.dead.encode(), properties, delivery.body)
        self._written += 1
        self._flush_soon()

    # Reading back.

    def claim(self, number: int) -> tuple[Call, Event] | None:
        """Return call and event of a number that was read back, None if nobody waits for it any more."""
        call = self._pending.pop(number, None)
        if call is None:
            return None
        call.left -= 1
        return call, call.events[number - call.first]

    def resolve(self, calls: list[Call]) -> None:
        """Tell those whose events were all read back and delivered."""
        for call in calls:
            self._pending_bytes -= call.bytes
            _resolve(call.future)
        while self._calls and not self._calls[0].left:
            self._calls.popleft()

    def after_all(self, future: asyncio.Future[None]) -> None:
        """Resolve a future when everything published before was read back."""
        last = next((call for call in reversed(self._calls) if not call.future.done()), None)
        if last is None:
            future.set_result(None)
        else:
            last.future.add_done_callback(lambda _: _resolve(future))

    def waits(self) -> bool:
        """Say whether something that was published was not read back yet."""
        return bool(self._calls)

    def queued(self) -> Queued:
        """Return what is on the way."""
        waits = time.monotonic() - self._calls[0].since if self._calls else 0.0
        return Queued(len(self._pending), self._pending_bytes, waits)

    def futures(self) -> list[asyncio.Future[None]]:
        """Return what is being waited for."""
        return [call.future for call in self._calls]

    def expire(self) -> None:
        """Give up a connection on which events do not come back: their producers ask again."""
        if not self._calls or self.blocked_by is not None:
            return
        if max(self._calls[0].since, self._taken) < time.monotonic() - READ_BACK_SECONDS:
            self._over(LinkError(f"an event did not come back in {READ_BACK_SECONDS:.0f} seconds"))

    def fail(self, reason: str, retry_after: float) -> None:
        """Fail every call; what is not written yet is not written any more."""
        calls, self._calls = self._calls, deque()
        self._pending.clear()
        self._unconfirmed.clear()
        self._pending_bytes = 0
        self._out = []
        self._link = None
        for call in calls:
            if not call.future.done():
                self.failures += 1
                call.future.set_exception(LogUnavailable(reason, retry_after))

    # Writing.

    def _flush_soon(self) -> None:
        """Write at the end of this turn of the loop, together with what others publish in it."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out, self._out = self._out, []
        if self._link is not None and out:
            self._link.write(b"".join(out))

    # What the link reports.

    def delivered(self, deliveries: list[Delivery]) -> None:
        """Nothing is read here."""

    def confirmed(self, confirms: list[Confirm]) -> None:
        """What the broker has will be read back; what it could not store fails the connection."""
        if not all(confirm.positive for confirm in confirms):
            self._over(LinkError("the broker could not store a message"))
        elif self._unconfirmed:
            for confirm in confirms:
                self._note(confirm)

    def _note(self, confirm: Confirm) -> None:
        """Count off what a queue has by now; what was read back before is done."""
        done: list[Call] = []
        numbers = (
            [number for number in self._unconfirmed if number <= confirm.tag]
            if confirm.multiple
            else [confirm.tag]
        )
        for number in numbers:
            call = self._unconfirmed.pop(number, None)
            if call is not None:
                call.left -= 1
                if not call.left:
                    done.append(call)
        if done:
            self.resolve(done)

    def returned(self, reason: str) -> None:
        """A message reached no queue: everything must be declared again."""
        self._over(LinkError(f"a message reached no queue ({reason}): the stream is gone, or its binding"))

    def blocked(self, reason: str | None) -> None:
        """Note that the broker is short of memory or disk, or not any more."""
        log.warning("backbone.blocked: %s", reason or "no longer")
        self.blocked_by = reason
        self._taken = time.monotonic()

    def ended(self, error: LinkError) -> None:
        """Pass it on."""
        self._over(error)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():  # whoever waited was cancelled
        future.set_result(None)
