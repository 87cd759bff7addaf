"""The live consumer of a stream: one connection that does nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Final
from zlib import crc32

from pamqp import commands
from pamqp.common import FieldValue

from gateway.amqp.frames import Confirm, Delivery, ack
from gateway.amqp.link import Link, LinkError
from gateway.amqp.properties import PropertiesError
from gateway.stream_messages import Received

log = logging.getLogger(__name__)

PREFETCH: Final = 2000
"""Messages on the way to the live reader: what bounds its memory, and 20 ms of its work."""

MOMENT: Final = 0.2
"""Seconds after which whoever waits for a message looks at other things too."""


REST_SECONDS: Final = 0.03
REST_EVENTS: Final = 30
"""
How long reading rests between small reads when events come quickly: until about so many have come, at most so
long. Waking up for an event costs several times what the event does, because all that it takes has left the
caches meanwhile; and then every connection is written to as often. At 1,000 events a second 30 are read
together, 15 ms later on average; at 5,000 it is 3 ms.
"""

FEW: Final = 64
"""A read of more messages was worth waking up for."""

PACE_SECONDS: Final = 0.05
QUICK: Final = 20.0
"""So many events within `PACE_SECONDS` are quick: 400 a second. Slower ones are read at once."""


class Reading:
    """
    Hears a connection and consumes on it: messages wait until `go`, then they are handed on as they come.

    Args:
        over: told when the connection ended.
        hurried: says whether somebody here waits for a message, so that reading does not rest.
    """

    def __init__(self, over: Callable[[LinkError], None], hurried: Callable[[], bool]) -> None:
        self._over = over
        self._hurried = hurried
        self._handed = 0.0  # when the last messages were handed on
        self._pace = 0.0  # how many came within `PACE_SECONDS`, those longer ago counting less and less
        self._link: Link | None = None
        self._channel = 0
        self._waiting: list[Delivery] = []
        self._take: Callable[[list[Delivery]], None] | None = None
        self._looked = 0  # how many of those were given to `fresh`
        self._arrived = asyncio.Event()
        self._tag = 0  # of the last message that was taken
        self._acknowledged = 0

    async def begin(self, link: Link, stream: str, offset: int | str) -> None:
        """Begin to consume at an offset, or behind the end (`next`)."""
        self._link = link
        channel = await link.channel()
        await link.call(commands.Basic.Qos(prefetch_count=PREFETCH), channel)
        self._channel = channel
        self._looked = self._tag = self._acknowledged = 0
        arguments: dict[str, FieldValue] = {"x-stream-offset": offset}
        await link.call(commands.Basic.Consume(queue=stream, arguments=arguments), channel)

    async def stop(self) -> None:
        """Consume no more, and forget what waits; the connection stays open."""
        assert self._link is not None
        channel, self._channel = self._channel, 0
        self._waiting.clear()
        await self._link.close_channel(channel)

    def go(self, take: Callable[[list[Delivery]], None]) -> None:
        """Hand on what waits, and from now on everything."""
        self._take = take
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._hand_on(waiting)

    def acknowledge(self) -> None:
        """Give the broker credit for what was taken; also now and then, for it waits half an hour only."""
        if self._tag > self._acknowledged and self._link is not None:
            self._acknowledged = self._tag
            self._link.write(ack(self._channel, self._tag))

    def fresh(self) -> list[Received]:
        """
        Return what came since the last call; it goes on waiting. The broker gets credit for it, for what is
        waited for may come behind more than it would send.
        """
        fresh = self._waiting[self._looked :]
        if fresh:
            self._looked = len(self._waiting)
            self._tag = fresh[-1].tag
            self.acknowledge()
        return [message for each in fresh if (message := read_message(each)) is not None]

    async def first(self) -> Delivery:
        """Wait for the first message."""
        while not self._waiting:
            await self.more()
        return self._waiting[0]

    async def more(self) -> None:
        """Wait a moment for something to come; raise LinkError if the link is lost."""
        assert self._link is not None
        if self._link.lost is not None:
            raise self._link.lost
        self._arrived.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), MOMENT)

    def _hand_on(self, deliveries: list[Delivery]) -> None:
        assert self._take is not None
        self._take(deliveries)
        self._tag = deliveries[-1].tag
        if self._tag - self._acknowledged >= PREFETCH // 4:
            self.acknowledge()
        self._rest_if_quick(len(deliveries))

    def _rest_if_quick(self, count: int) -> None:
        """Let more come together, if that takes but a moment and nobody waits for it."""
        now = time.monotonic()
        self._pace = self._pace * math.exp((self._handed - now) / PACE_SECONDS) + count
        self._handed = now
        if self._pace >= QUICK and count < FEW and not self._hurried():
            assert self._link is not None
            self._link.rest(min(REST_SECONDS, REST_EVENTS * PACE_SECONDS / self._pace))

    # What the link reports.

    def delivered(self, deliveries: list[Delivery]) -> None:
        """Take what one read brought; what still comes for a consumer that was stopped is nobody's."""
        if deliveries[0].channel != self._channel or deliveries[-1].channel != self._channel:
            deliveries = [each for each in deliveries if each.channel == self._channel]
            if not deliveries:
                return
        if self._take is not None:
            self._hand_on(deliveries)
        else:
            self._waiting += deliveries
            self._arrived.set()

    def confirmed(self, confirms: list[Confirm]) -> None:
        """Nothing is published here."""

    def returned(self, reason: str) -> None:
        """Nothing is published here."""

    def blocked(self, reason: str | None) -> None:
        """Reading goes on."""

    def ended(self, error: LinkError) -> None:
        """Pass it on."""
        self._over(error)


def read_message(delivery: Delivery) -> Received | None:
    """Return a message as read; one whose properties cannot be read is as good as not there."""
    try:
        return Received(delivery)
    except PropertiesError as error:
        log.warning("backbone.unreadable: message to %r: %s", delivery.key, error)
        return None


def fingerprint(delivery: Delivery) -> tuple[bytes, int, int]:
    """Return what tells a message from another at the same offset."""
    return delivery.key, delivery.size, crc32(delivery.header) ^ crc32(delivery.body)
