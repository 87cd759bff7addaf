"""
The topology: exchange, stream, bindings and dead-letter queue, declared before a replica reads or publishes.

Declaring is idempotent: every replica does it at every connection. Nothing is declared per client or per
topic. The only file that uses aio-pika: none of this is on the event path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from gateway.amqp import tls
from gateway.amqp.address import Address
from gateway.amqp.link import (
    ACCESS_REFUSED,
    HEARTBEAT_SECONDS,
    NOT_FOUND,
    OPEN_SECONDS,
    LinkError,
    LinkRefused,
    said,
)

OLDEST: Final = (3, 9)
"""The first version of RabbitMQ with streams."""

DEAD_EVENTS: Final = 100_000
DEAD_BYTES: Final = 256 * 1024 * 1024
"""Bounds of the dead-letter queue: whoever publishes nonsense must not fill the broker."""

DEAD_ARGUMENTS: Final[dict[str, Any]] = {
    "x-queue-type": "quorum",
    "x-max-length": DEAD_EVENTS,
    "x-max-length-bytes": DEAD_BYTES,
    # Since 4.0 a message that was looked at and put back 20 times is dropped, unless told otherwise.
    "x-delivery-limit": 1_000_000,
}

QUEUE_ARGUMENTS: Final[dict[str, Any]] = {
    "x-queue-type": "quorum",
    "x-single-active-consumer": True,  # should two believe that a bucket is theirs, one has to wait
    "x-delivery-limit": 1_000_000,  # whoever works on them counts, and says why it gives one up
}
"""Of the queues of requests."""

PRECONDITION_FAILED: Final = 406

_CODES: Final = {
    ChannelPreconditionFailed: PRECONDITION_FAILED,
    ChannelAccessRefused: ACCESS_REFUSED,
    ChannelNotFoundEntity: NOT_FOUND,
}


@dataclass(frozen=True, slots=True)
class Topology:
    """
    What is declared.

    Attributes:
        stream: the name of the stream.
        exchange: the topic exchange that is made, and that events are published to.
        bindings: exchanges with the routing-key patterns that are bound to the stream.
        dead: the name of the dead-letter queue.
        max_age_seconds: how long the stream keeps messages; 0 is no limit.
        max_bytes: how many bytes it keeps; 0 is no limit.
        segment_bytes: retention goes by segments of this size.
        queues: quorum queues that the exchange fills as well, each with its routing key.
    """

    stream: str
    exchange: str
    bindings: tuple[tuple[str, str], ...]
    dead: str
    max_age_seconds: int
    max_bytes: int
    segment_bytes: int
    queues: tuple[tuple[str, str], ...] = ()

    @property
    def stream_arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "x-queue-type": "stream",
            "x-stream-max-segment-size-bytes": self.segment_bytes,
        }
        if self.max_age_seconds:
            arguments["x-max-age"] = f"{self.max_age_seconds}s"
        if self.max_bytes:
            arguments["x-max-length-bytes"] = self.max_bytes
        return arguments


async def declare(
    address: Address, host: tuple[str, int], topology: Topology, at: tuple[str, int] | None = None
) -> None:
    """
    Declare everything that is not there.

    Args:
        address: where and who.
        host: which of its hosts.
        topology: what is to be there.
        at: the host's very address (`Link.at`), if it is known.

    Raises:
        LinkRefused: something of that name is otherwise, or we may not; the sentence says what to do.
        LinkError: the connection failed.
    """
    where = f"the broker at {address.name(host)}"
    try:
        async with asyncio.timeout(2 * OPEN_SECONDS):
            connection = await connect(address, at or host, "sluicegate topology")
            try:
                await _declare(connection, topology)
            finally:
                await connection.close()
    except TimeoutError:
        raise LinkError(f"{where} did not declare the stream in time") from None
    except (AMQPError, OSError, tls.TlsError) as error:
        raise LinkError(f"{where}: {_text(error)}") from None


async def connect(
    address: Address, at: tuple[str, int], name: str, heartbeat: int = HEARTBEAT_SECONDS
) -> AbstractConnection:
    """
    Return a connection of aio-pika's, for what is slow; it does not come back by itself.

    Args:
        address: where and who.
        at: which of its hosts, or the very address of one.
        name: the name under which operators of the broker see it.
        heartbeat: seconds; the broker ends a connection that says nothing for twice or three times as long.
    """
    return await aio_pika.connect(
        host=at[0],
        port=at[1],
        login=address.user,
        password=address.password,
        virtualhost=address.vhost,
        ssl=address.tls,
        ssl_context=await asyncio.to_thread(tls.context, address) if address.tls else None,
        client_properties={"connection_name": name},
        timeout=OPEN_SECONDS,
        heartbeat=heartbeat,
    )


async def declare_queues(channel: AbstractChannel, exchange: str, queues: Iterable[tuple[str, str]]) -> None:
    """Declare queues of requests, each with the routing key by which the exchange fills it."""
    for name, key in queues:
        queue = await channel.declare_queue(name, durable=True, arguments=QUEUE_ARGUMENTS)
        await queue.bind(exchange, key)


async def _declare(connection: AbstractConnection, topology: Topology) -> None:
    """Declare step by step; each in a channel of its own, because a refusal closes the channel."""

    async def exchange(channel: AbstractChannel) -> None:
        await channel.declare_exchange(topology.exchange, aio_pika.ExchangeType.TOPIC, durable=True)

    async def stream(channel: AbstractChannel) -> None:
        await channel.declare_queue(topology.stream, durable=True, arguments=topology.stream_arguments)

    async def dead(channel: AbstractChannel) -> None:
        await channel.declare_queue(topology.dead, durable=True, arguments=DEAD_ARGUMENTS)

    async def queues(channel: AbstractChannel) -> None:
        await declare_queues(channel, topology.exchange, topology.queues)

    async def publishing(channel: AbstractChannel) -> None:
        # The end of a binding that nobody made: nothing happens, but only to those who may publish.
        own = await channel.get_exchange(topology.exchange, ensure=False)
        await own.unbind(own, f"sluicegate.{token_hex(16)}")

    await _step(connection, exchange, f"the exchange {topology.exchange!r}")
    await _step(connection, stream, f"the stream {topology.stream!r}")
    await _step(connection, dead, f"the dead-letter queue {topology.dead!r}")
    for name, pattern in topology.bindings:

        async def bind(channel: AbstractChannel, name: str = name, pattern: str = pattern) -> None:
            queue = await channel.get_queue(topology.stream, ensure=False)
            await queue.bind(name, pattern)

        await _step(connection, bind, f"the binding of the exchange {name!r} to the stream")
    if topology.queues:
        await _step(connection, queues, f"the queues of requests, {topology.queues[0][0]!r} and so on")
    await _step(connection, publishing, f"publishing to the exchange {topology.exchange!r}")


async def _step(connection: AbstractConnection, step: Any, what: str) -> None:
    channel = await connection.channel(publisher_confirms=False)
    try:
        await step(channel)
    except (ChannelPreconditionFailed, ChannelAccessRefused, ChannelNotFoundEntity) as error:
        raise refusal(what, _CODES[type(error)], _text(error)) from None
    if not channel.is_closed:
        await channel.close()


def refusal(what: str, code: int, text: str) -> LinkError:
    """Return why something cannot be declared, by what the broker said when it closed the channel."""
    if code == PRECONDITION_FAILED and "inequivalent" not in text:
        return LinkRefused(f"{what} cannot be made ({text})")
    if code == PRECONDITION_FAILED:
        return LinkRefused(
            f"{what} exists with other arguments ({text}): change the settings to what is there, use another "
            "name, or delete it if nobody needs what it holds"
        )
    if code == ACCESS_REFUSED:
        return LinkRefused(
            f"{what}: this user may not ({text}); it needs the permissions configure, write and read"
        )
    if code == NOT_FOUND and "inaccessible" not in text:
        return LinkRefused(f"{what}: there is no such thing ({text}); create it first")
    return LinkError(f"{what} is not available yet ({text})")  # it is there, and its node is just starting


def check_version(version: tuple[int, ...]) -> None:
    """Raise LinkRefused if the broker is too old; one that does not say is taken as it is."""
    if version and version < OLDEST:
        text = ".".join(map(str, version))
        raise LinkRefused(f"the broker is RabbitMQ {text}, which has no streams: 3.9 or newer is needed")


def _text(error: BaseException) -> str:
    """Return what the broker said."""
    return said(str(error.args[0])) if error.args else type(error).__name__
