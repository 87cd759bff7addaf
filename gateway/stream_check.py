"""
The check: what a start would find on the broker, looked at without changing anything.

What is there is declared again with the arguments of the settings, which changes nothing and fails as a start
would. For what is not there yet, permissions are asked for by requests that can never succeed, or whose
success means nothing: a stream that is not durable, the end of a binding that nobody made, a message to a
queue that nobody has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, Final

from pamqp import commands

from gateway.amqp.address import Address
from gateway.amqp.connecting import connect
from gateway.amqp.frames import Confirm, Delivery, Publications
from gateway.amqp.link import (
    NOT_FOUND,
    ChannelClosed,
    ChannelRefused,
    Link,
    LinkError,
    LinkRefused,
    said,
)
from gateway.amqp.properties import PropertiesError, encode, encode_headers
from gateway.amqp.topology import DEAD_ARGUMENTS, QUEUE_ARGUMENTS, Topology, check_version, refusal
from gateway.members.member import exchange_of, holders_of
from gateway.stream_messages import JSON, Received
from gateway.stream_reading import read_message

QUIET_SECONDS: Final = 1.0
"""How long a stream is listened to for its first or its next message."""

NO_REPLICA: Final = "replica"
"""What a node says that has no part of a stream: `… does not have a running replica on the local node`."""


@dataclass(frozen=True, slots=True)
class Found:
    """
    What was found.

    Attributes:
        host: the first host that answered.
        version: of its broker.
        cluster: the name of that one's cluster.
        unreachable: hosts of the address that do not answer, with a sentence each.
        exchanges: those that events come from, each with whether it is there.
        stream: whether it is there.
        oldest: its oldest message; None if it has none, or is not there.
        newest: one of its newest.
        replicas: the hosts that have a copy of it, and can be read from.
        bare: the hosts that have none.
        dead: how many dead letters there are; None if their queue is not there.
    """

    host: str
    version: str
    cluster: str
    unreachable: dict[str, str]
    exchanges: dict[str, bool]
    stream: bool
    oldest: Received | None
    newest: Received | None
    replicas: list[str]
    bare: list[str]
    dead: int | None


async def look(address: Address, topology: Topology) -> Found:
    """
    Look at a broker.

    Raises:
        LinkRefused: what would stop a start, in the same words.
        LinkError: no host can be reached, the broker takes no events, or no host has the stream.
    """
    links, unreachable = await _reach(address)
    try:
        first = links[0]
        check_version(first.link.version)
        exchanges = await _exchanges(first.link, topology)
        stream = await _stream(first.link, topology)
        dead = await _dead(first.link, topology)
        await _rights(first.link, topology)
        await _members(first.link, topology.stream)
        await _requests(first.link, topology)
        await _publishing(first)
        replicas, bare = await _replicas(links, topology.stream) if stream else ([], [])
        oldest = newest = None
        if replicas:
            reader = next(each for each in links if each.name == replicas[0])
            oldest = await _oldest(reader, topology.stream)
            newest = await _newest(reader, topology.stream) if oldest is not None else None
        elif stream:
            raise LinkError(
                f"the stream {topology.stream!r} has no running replica on {', '.join(bare)}: the address "
                "must have nodes with one"
            )
    finally:
        await _leave(links)
    return Found(
        host=first.name,
        version=".".join(map(str, first.link.version)),
        cluster=first.link.cluster,
        unreachable=unreachable,
        exchanges=exchanges,
        stream=stream,
        oldest=oldest,
        newest=newest,
        replicas=replicas,
        bare=bare,
        dead=dead,
    )


def told_time(message: Received) -> int | None:
    """Return when a message says that it was made, in seconds; None if it does not, as marks do not."""
    if message.time:
        return message.time // 1000
    with suppress(PropertiesError):
        message.complete(message.delivery.header)
        return message.timestamp
    return None


@dataclass(slots=True)
class _Node:
    """One host, and what it sends; a `gateway.amqp.link.Listener`."""

    name: str
    deliveries: list[Delivery] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    blocked_by: str | None = None
    _link: Link | None = None

    @property
    def link(self) -> Link:
        assert self._link is not None, "it is not connected"
        return self._link

    async def connect(self, address: Address, host: tuple[str, int]) -> None:
        self._link = await connect(address, host, "sluicegate check", self)

    def delivered(self, deliveries: list[Delivery]) -> None:
        """Keep them."""
        self.deliveries += deliveries
        self.arrived.set()

    def confirmed(self, confirms: list[Confirm]) -> None:
        """None is asked for."""

    def returned(self, reason: str) -> None:
        """As it should be: there is no such queue."""

    def blocked(self, reason: str | None) -> None:
        """Note it."""
        self.blocked_by = reason
        self.arrived.set()

    def ended(self, error: LinkError) -> None:
        """Whoever asks next is told."""
        self.arrived.set()


async def _reach(address: Address) -> tuple[list[_Node], dict[str, str]]:
    """Connect to every host; return those that answer, and why the others do not."""
    reached: list[_Node] = []
    unreachable: dict[str, str] = {}
    for host in address.hosts:
        node = _Node(address.name(host))
        try:
            await node.connect(address, host)
        except LinkRefused:
            await _leave(reached)
            raise
        except LinkError as error:
            unreachable[node.name] = str(error)
        else:
            reached.append(node)
    if not reached:
        raise LinkError("; ".join(unreachable.values()))
    return reached, unreachable


async def _leave(nodes: list[_Node]) -> None:
    await asyncio.gather(*(each.link.close() for each in nodes))


async def _ask(link: Link, method: Any) -> Any:
    """Ask on a channel of its own: a refusal closes the channel."""
    channel = await link.channel()
    answer = await link.call(method, channel)
    await link.call(commands.Channel.Close(200, "done", 0, 0), channel)
    return answer


async def _is_there(link: Link, method: Any) -> Any | None:
    """Return the answer to a passive declaration; None if there is no such thing."""
    try:
        return await _ask(link, method)
    except ChannelClosed as error:
        if error.code != NOT_FOUND:
            raise
    return None


async def _step(link: Link, method: Any, what: str) -> None:
    """Do what a start does, and fail as it would."""
    try:
        await _ask(link, method)
    except ChannelClosed as error:
        raise refusal(what, error.code, said(error.text)) from None


async def _try(link: Link, method: Any, what: str) -> None:
    """Ask for what cannot be, to learn whether this user might; any other refusal is as it should be."""
    try:
        await _ask(link, method)
    except ChannelRefused as error:
        raise refusal(what, error.code, said(error.text)) from None
    except ChannelClosed:
        pass


async def _exchanges(link: Link, topology: Topology) -> dict[str, bool]:
    """Return which exchanges are there; the first may be missing, and is made then."""
    found: dict[str, bool] = {}
    own = topology.exchange
    for name in dict.fromkeys((own, *(name for name, _ in topology.bindings))):
        passive = commands.Exchange.Declare(exchange=name, passive=True)
        if name != own:  # nobody makes it
            await _step(link, passive, f"the binding of the exchange {name!r} to the stream")
            found[name] = True
            continue
        what = f"the exchange {name!r}"
        found[name] = await _is_there(link, passive) is not None
        arguments: dict[str, Any] = {} if found[name] else {"alternate-exchange": 0}  # no name: never made
        declare = commands.Exchange.Declare(
            exchange=name, exchange_type="topic", durable=True, arguments=arguments
        )
        await (_step if found[name] else _try)(link, declare, what)
    return found


async def _stream(link: Link, topology: Topology) -> bool:
    what = f"the stream {topology.stream!r}"
    return await _queue(link, topology.stream, topology.stream_arguments, what) is not None


async def _dead(link: Link, topology: Topology) -> int | None:
    what = f"the dead-letter queue {topology.dead!r}"
    answer = await _queue(link, topology.dead, DEAD_ARGUMENTS, what)
    return None if answer is None else int(answer.message_count)


async def _queue(link: Link, name: str, arguments: dict[str, Any], what: str) -> Any | None:
    """Return what the broker says of a queue; None if it is not there and may be made."""
    answer = await _is_there(link, commands.Queue.Declare(queue=name, passive=True))
    if answer is not None:
        await _step(link, commands.Queue.Declare(queue=name, durable=True, arguments=arguments), what)
    else:  # one of its kind that is not durable: never made
        kind = {"x-queue-type": arguments["x-queue-type"]}
        await _try(link, commands.Queue.Declare(queue=name, durable=False, arguments=kind), what)
    return answer


async def _rights(link: Link, topology: Topology) -> None:
    """Find out whether this user may bind, read and publish; the bindings asked for are nobody's."""
    nobody = f"sluicegate.check.{token_hex(16)}"
    for name, _ in topology.bindings:
        method = commands.Queue.Unbind(queue=topology.stream, exchange=name, routing_key=nobody)
        await _try(link, method, f"the binding of the exchange {name!r} to the stream")
    exchange = topology.exchange
    unbind = commands.Exchange.Unbind(destination=exchange, source=exchange, routing_key=nobody)
    await _try(link, unbind, f"publishing to the exchange {exchange!r}")
    consume = commands.Basic.Consume(queue=topology.stream)  # without a QoS a stream is never consumed
    await _try(link, consume, f"reading the stream {topology.stream!r}")


async def _members(link: Link, stream: str) -> None:
    """Find out whether this user may take part in the ring of replicas."""
    exchange, queue = exchange_of(stream), f"{holders_of(stream)}.check.{token_hex(16)}"
    what = "taking part among the replicas"
    there = await _is_there(link, commands.Exchange.Declare(exchange=exchange, passive=True)) is not None
    arguments: dict[str, Any] = {} if there else {"alternate-exchange": 0}
    declare = commands.Exchange.Declare(
        exchange=exchange, exchange_type="topic", durable=True, arguments=arguments
    )
    await (_step if there else _try)(link, declare, what)
    kind: dict[str, Any] = {"x-queue-type": "stream"}  # and not durable: never made
    await _try(link, commands.Queue.Declare(queue=queue, durable=False, arguments=kind), what)
    await _try(link, commands.Queue.Unbind(queue=queue, exchange=exchange, routing_key=queue), what)
    unbind = commands.Exchange.Unbind(destination=exchange, source=exchange, routing_key=queue)
    await _try(link, unbind, what)
    await _try(link, commands.Basic.Consume(queue=queue), what)


async def _requests(link: Link, topology: Topology) -> None:
    """Find out whether the queues of requests are as they must be, or may be made."""
    for name, key in topology.queues:
        what = f"the queue of requests {name!r}"
        await _queue(link, name, QUEUE_ARGUMENTS, what)
        unbind = commands.Queue.Unbind(queue=name, exchange=topology.exchange, routing_key=f"{key}.check")
        await _try(link, unbind, what)


async def _publishing(node: _Node) -> None:
    """
    Publish to a queue that nobody has, by the exchange that marks and dead letters go through.

    A broker that takes no events says so now, and then hears nothing more on this connection.
    """
    link = node.link
    channel = await link.channel()
    frames = Publications(channel, "", link.frame_max).frames
    nobody = f"sluicegate.check.{token_hex(16)}".encode()
    link.write(b"".join(frames(nobody, encode(JSON, encode_headers({})), b"null")))
    answer = asyncio.ensure_future(link.call(commands.Basic.Qos(prefetch_count=1), channel))
    blocked = asyncio.ensure_future(node.arrived.wait())
    await asyncio.wait((answer, blocked), return_when=asyncio.FIRST_COMPLETED)
    blocked.cancel()
    if node.blocked_by is not None:
        answer.cancel()
        with suppress(asyncio.CancelledError, LinkError):
            await answer
        link.abort()
        raise LinkError(f"the broker takes no events now: {node.blocked_by}")
    await answer


@asynccontextmanager
async def _consuming(node: _Node, stream: str, offset: str, prefetch: int) -> AsyncIterator[None]:
    """Consume for a moment."""
    link = node.link
    channel = await link.channel()
    node.deliveries.clear()
    node.arrived.clear()
    await link.call(commands.Basic.Qos(prefetch_count=prefetch), channel)
    method = commands.Basic.Consume(queue=stream, arguments={"x-stream-offset": offset})
    await link.call(method, channel)
    yield
    await link.call(commands.Channel.Close(200, "done", 0, 0), channel)


async def _replicas(nodes: list[_Node], stream: str) -> tuple[list[str], list[str]]:
    """Return which hosts have a copy of the stream, and which have none."""
    there: list[str] = []
    bare: list[str] = []
    for node in nodes:
        try:
            async with _consuming(node, stream, "next", 1):
                there.append(node.name)
        except LinkRefused:
            raise
        except ChannelClosed as error:
            if NO_REPLICA not in error.text:
                raise
            bare.append(node.name)
    return there, bare


async def _oldest(node: _Node, stream: str) -> Received | None:
    """Return the first message of a stream."""
    async with _consuming(node, stream, "first", 1):
        await _more(node)
        return next((each for delivery in node.deliveries if (each := read_message(delivery))), None)


async def _newest(node: _Node, stream: str) -> Received | None:
    """Return the last message of a stream, or of a busy one some that came a moment ago."""
    async with _consuming(node, stream, "last", 1000):
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * QUIET_SECONDS):
                while await _more(node):
                    pass
        read = [each for delivery in node.deliveries if (each := read_message(delivery))]
        return read[-1] if read else None


async def _more(node: _Node) -> bool:
    """Wait for messages; return False if none come."""
    try:
        await asyncio.wait_for(node.arrived.wait(), QUIET_SECONDS)
    except TimeoutError:
        return False
    node.arrived.clear()
    return True
