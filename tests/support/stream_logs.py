"""Stream logs in the test's own process, and a plain AMQP producer beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel
from pamqp import commands

from fanout.event import Event
from gateway.amqp.address import Address
from gateway.amqp.connecting import connect
from gateway.amqp.frames import Confirm, Delivery, Publications, joined
from gateway.amqp.link import Link, LinkError
from gateway.amqp.topology import Topology
from gateway.mint import Mint, random_prefix
from gateway.stream_log import StreamLog

DEADLINE: Final = 30.0
"""Seconds for whatever a test waits for."""

_numbers = count(1)
_mint = Mint(1 << 20, random_prefix())


def new_topology(**members: Any) -> Topology:
    """Return names that no other test uses."""
    name = f"test{next(_numbers)}"
    values: dict[str, Any] = {
        "stream": name,
        "exchange": f"{name}.events",
        "bindings": ((f"{name}.events", "#"),),
        "dead": f"{name}.dead",
        "max_age_seconds": 3600,
        "max_bytes": 100_000_000,
        "segment_bytes": 1_000_000,
    }
    return Topology(**(values | members))


def event(topic: str = "orders.1", data: bytes = b"1", **fields: Any) -> Event:
    """Return a new event."""
    return _mint.event(int(time.time() * 1000), topic, data, **fields)


class Replica:
    """A stream log with all that it delivered."""

    def __init__(self, url: str, topology: Topology, **limits: Any) -> None:
        values: dict[str, Any] = {
            "max_event_bytes": 100_000,
            "queue_bytes": 16 << 20,
            "queue_events": 50_000,
            "tail_bytes": 16 << 20,
            "tail_events": 100_000,
            "dedup_seconds": 300,
            "dedup_events": 100_000,
        }
        self.log = StreamLog(Address.parse(url), topology, **(values | limits))
        self.events: list[Event] = []
        self.tail: list[Event] = []
        self.epochs: list[str] = []  # one for each time it began from scratch

    async def start(self) -> None:
        self.log.on_begin = self._begin
        await self.log.start(self.events.extend)

    def _begin(self) -> None:
        self.tail = self.log.take_tail()
        self.epochs.append(self.log.epoch)

    def facts(self) -> list[tuple[int, bytes]]:
        """Return position and JSON of everything known, tail and live."""
        return [(each.position, each.body) for each in (*self.tail, *self.events)]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"{what}; trouble: {self.log.trouble()}"
            await asyncio.sleep(0.01)

    async def everything(self) -> list[Event]:
        """Return all events that the log retains, read from the stream."""
        found: list[Event] = []
        after = self.log.first - 1
        while block := await self.log.read(after, 50_000):
            found += block
            after = block[-1].position
        return [each for each in found if each.topic]


@asynccontextmanager
async def replicas(url: str, topology: Topology, number: int, **limits: Any) -> AsyncIterator[list[Replica]]:
    """Run replicas that start at the same time."""
    made = [Replica(url, topology, **limits) for _ in range(number)]
    try:
        await asyncio.gather(*(each.start() for each in made))
        yield made
    finally:
        for each in made:
            await each.log.close()


@asynccontextmanager
async def producer(url: str) -> AsyncIterator[AbstractChannel]:
    """Open a channel of somebody who knows nothing of us."""
    connection = await aio_pika.connect(url)
    try:
        yield await connection.channel()
    finally:
        await connection.close()


async def send(
    channel: AbstractChannel, topology: Topology, topic: str, body: bytes, **properties: Any
) -> None:
    """Publish a plain message to the exchange."""
    exchange = await channel.get_exchange(topology.exchange, ensure=False)
    await exchange.publish(aio_pika.Message(body, **properties), topic)


class Deaf:
    """Hears a connection on which nothing is to be heard; a `gateway.amqp.link.Listener`."""

    def __init__(self) -> None:
        self.lost: LinkError | None = None

    def delivered(self, deliveries: list[Delivery]) -> None: ...
    def confirmed(self, confirms: list[Confirm]) -> None: ...
    def returned(self, reason: str) -> None: ...
    def blocked(self, reason: str | None) -> None: ...
    def ended(self, error: LinkError) -> None:
        self.lost = error


class RawProducer:
    """
    Publishes whatever bytes it is told to, as fast as the socket takes them.

    Args:
        link: its connection.
        channel: its channel.
        deaf: hears it.
    """

    def __init__(self, link: Link, channel: int, deaf: Deaf) -> None:
        self._link = link
        self._channel = channel
        self._deaf = deaf

    def send(self, exchange: str, *messages: tuple[bytes, bytes, bytes]) -> None:
        """Publish messages, each a routing key, property flags and list, and a body."""
        publications = Publications(self._channel, exchange, self._link.frame_max)
        self._link.write(joined(publications.frames(*message) for message in messages))

    async def settle(self) -> None:
        """Wait until the broker took everything; fail if it objected."""
        await self._link.call(commands.Confirm.Select(), self._channel)
        assert self._deaf.lost is None, self._deaf.lost


@asynccontextmanager
async def raw_producer(url: str) -> AsyncIterator[RawProducer]:
    """Open a connection for messages that no client library would write."""
    address, deaf = Address.parse(url), Deaf()
    link = await connect(address, address.hosts[0], "raw", deaf)
    try:
        yield RawProducer(link, await link.channel(), deaf)
    finally:
        await link.close()
