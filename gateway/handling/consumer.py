"""
The consumer: brings the requests of those buckets that this member of a service owns.

It takes part in the group `service.<name>`, and consumes the queues of its buckets, no others. What it was
given stays its own until it is acknowledged, or its connection ends: then the broker gives it to whoever
consumes the bucket by then. Two that believe they own a bucket do no harm: its queue has one active consumer
at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

import aio_pika
import msgspec
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aiormq.exceptions import (
    AuthenticationError,
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    ProbableAuthenticationError,
)

from fanout.ring import BOUND
from gateway.amqp.topology import connect, declare_queues
from gateway.handling.source import SourceError
from gateway.members.member import BROKEN, RETRY_SECONDS, Member, pause_after
from gateway.members.wire import Facts
from gateway.requests.buckets import BUCKETS, key_of, over_key, queue_of, queues_of
from gateway.requests.changes import TYPE, Change, token_in, topic_of

if TYPE_CHECKING:
    from gateway.amqp.address import Address

log = logging.getLogger(__name__)

HEARTBEAT: Final = 3
"""
Seconds. The broker ends the connection of who stands still after twice or three times as long, and gives what
it had to others.
"""

REFUSALS: Final = (
    AuthenticationError,
    ProbableAuthenticationError,
    ConnectionNotAllowed,
    ChannelAccessRefused,
    ChannelPreconditionFailed,
    ChannelNotFoundEntity,
)
"""What will not change by itself, if it never was otherwise."""

STEP_SECONDS: Final = 10.0
"""How long one step on the broker may take."""

LOOK_SECONDS: Final = 0.5
"""How often it is looked whether the buckets are still ours, should nobody say so."""


@dataclass(eq=False, slots=True)
class Held:
    """
    A message of a bucket that we were given.

    Attributes:
        token: of the request.
        change: by which it became ready, with its data; None if it cannot be read.
        bucket: whose it is.
        deliveries: how often it was given to somebody before.
        headers: what its gateway says beside.
        consumer: by which it came.
    """

    token: str
    change: Change | None
    bucket: int
    deliveries: int
    headers: dict[str, Any]
    consumer: Consumer
    _message: AbstractIncomingMessage

    @property
    def lost(self) -> bool:
        """Whether the connection has ended by which it came: it is somebody else's."""
        try:
            return bool(self._message.channel.is_closed)
        except ChannelInvalidStateError:
            return True

    async def acknowledge(self) -> None:
        """Be done with it. On a connection that has ended nothing happens."""
        with contextlib.suppress(*BROKEN):
            await self._message.ack()

    async def put_back(self) -> None:
        """Let another have it."""
        with contextlib.suppress(*BROKEN):
            await self._message.nack(requeue=True)


class Consumer:
    """
    Takes part in a service.

    Args:
        address: of the broker.
        stream: the name of the log's stream; names of queues begin with it.
        exchange: where events are published.
        service: whose requests.
        name: of this member; no two of one service have the same.
        take: called with what comes.
        over: called with the token of a request that is over without us.
        prefetch: how many of each bucket may be held at a time.
    """

    def __init__(
        self,
        address: Address,
        stream: str,
        exchange: str,
        service: str,
        name: str,
        *,
        take: Callable[[Held], None],
        over: Callable[[str], None],
        prefetch: int = 1,
    ) -> None:
        self.service = service
        self.busy = 0  # requests that are worked on, for operators
        self._address = address
        self._stream = stream
        self._exchange_name = exchange
        self._take = take
        self._over = over
        self._prefetch = prefetch
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._exchange: AbstractExchange | None = None
        self._origin = token_hex(5)
        self._numbers = count(1)
        self._connected = False
        self.member = Member(
            address,
            stream,
            f"service.{service}",
            name,
            self._facts,
            changed=self._changed.set,
            buckets=BUCKETS,
            bound=BOUND,
        )

    @property
    def buckets(self) -> frozenset[int]:
        """Those that are ours."""
        return self.member.membership.owned(time.monotonic())

    def stop(self) -> None:
        """Take nothing more and leave; what is held can still be published about and acknowledged."""
        self._stopping.set()
        self._changed.set()
        self.member.drain()

    async def run(self) -> None:
        """
        Take part until cancelled, over all trouble with the broker.

        Raises:
            SourceError: the broker does not let us.
        """
        async with asyncio.TaskGroup() as tasks:
            membership = tasks.create_task(self.member.run())
            try:
                await self._connect_again_and_again()
            finally:
                self.member.leave()
                await asyncio.wait([membership], timeout=1)
                membership.cancel()

    async def publish(self, token: str, change: Change, bucket: int | None = None) -> None:
        """
        Write a change into the log; returns when it is durable, over all trouble that passes.

        Args:
            token: of the request.
            change: of it.
            bucket: into whose queue it goes as well.
        """
        number = next(self._numbers)
        body = msgspec.json.encode(change)
        more: dict[str, Any] = {}
        if bucket is not None:
            more["BCC"] = [key_of(self._stream, self.service, bucket)]
        failures = 0
        while True:
            try:
                if self._exchange is None:
                    raise ConnectionError("there is no connection to the broker at the moment")
                now = int(time.time() * 1000)
                message = aio_pika.Message(
                    body,
                    content_type="application/json",
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    message_id=f"{self._origin}{number}",
                    type=TYPE,
                    # As replicas write it: the exact time, an id that nobody publishes twice, who.
                    headers={"sluice": f"e1;{now};m;{self._origin};{number}", "key": token, **more},
                )
                await self._exchange.publish(message, topic_of(token, change.tenant), timeout=STEP_SECONDS)
            except BROKEN as error:
                if not failures:
                    log.warning("worker.unpublished", extra={"why": f"{type(error).__name__}: {error}"})
                failures += 1
                await asyncio.sleep(pause_after(failures))
            else:
                return

    # --- the connection -------------------------------------------------------------------------------------

    async def _connect_again_and_again(self) -> None:
        failures = 0
        while True:
            host = self._address.hosts[failures % len(self._address.hosts)]
            begun = time.monotonic()
            try:
                await self._serve(host)
            except REFUSALS as error:
                if not self._connected:
                    raise SourceError(f"the broker at {self._address.name(host)} refuses: {error}") from None
                self._lost(host, error)
            except BROKEN as error:
                self._lost(host, error)
            failures = failures + 1 if time.monotonic() - begun < RETRY_SECONDS[1] else 1
            await asyncio.sleep(pause_after(failures))

    def _lost(self, host: tuple[str, int], error: BaseException) -> None:
        why = f"{type(error).__name__}: {error}".rstrip(": ")
        log.warning("worker.waiting", extra={"broker": self._address.name(host), "why": why})

    async def _serve(self, host: tuple[str, int]) -> None:
        """Consume over one connection until it ends."""
        async with asyncio.timeout(2 * STEP_SECONDS):
            connection = await connect(
                self._address, host, f"sluicegate worker {self.member.name}", HEARTBEAT
            )
        try:
            async with asyncio.timeout(2 * STEP_SECONDS):
                channel = await self._set_up(connection)
            self._connected = True
            await self._consume(channel)
        finally:
            self._exchange = None
            try:
                async with asyncio.timeout(STEP_SECONDS):
                    await connection.close()
            except BROKEN:
                pass

    async def _set_up(self, connection: AbstractConnection) -> AbstractChannel:
        """Declare what is not there, and hear what is over without us."""
        publishing = await connection.channel(on_return_raises=True)
        exchange = await publishing.declare_exchange(
            self._exchange_name, aio_pika.ExchangeType.TOPIC, durable=True
        )
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=self._prefetch)
        await declare_queues(channel, self._exchange_name, queues_of(self._stream, self.service))
        hearing = await connection.channel(publisher_confirms=False)
        name = f"{self._stream}.requests.{self.service}.over.{self.member.name}"
        overs = await hearing.declare_queue(
            name, exclusive=True, arguments={"x-max-length": 10_000, "x-overflow": "drop-head"}
        )
        await overs.bind(exchange, over_key(self._stream, self.service))
        await overs.consume(self._hear, no_ack=True)
        self._exchange = exchange
        return channel

    async def _consume(self, channel: AbstractChannel) -> None:
        """Consume the buckets that are ours, as long as they are."""
        consuming: dict[int, str] = {}
        while not channel.is_closed:
            self._changed.clear()
            wanted = frozenset[int]() if self._stopping.is_set() else self.buckets
            async with asyncio.timeout(STEP_SECONDS):
                for bucket in sorted(consuming.keys() - wanted):
                    queue = await channel.get_queue(self._queue(bucket), ensure=False)
                    await queue.cancel(consuming.pop(bucket))
                for bucket in sorted(wanted - consuming.keys()):
                    queue = await channel.get_queue(self._queue(bucket), ensure=False)
                    consuming[bucket] = await queue.consume(self._receiver(bucket))
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass
        raise ConnectionError("the broker closed the connection")

    def _receiver(self, bucket: int) -> Callable[[AbstractIncomingMessage], Awaitable[None]]:
        async def receive(message: AbstractIncomingMessage) -> None:
            self._take(_held(message, bucket, self))

        return receive

    async def _hear(self, message: AbstractIncomingMessage) -> None:
        self._over(token_in(message.routing_key or "") or "")

    def _queue(self, bucket: int) -> str:
        return queue_of(self._stream, self.service, bucket)

    def _facts(self) -> Facts:
        return Facts("", version("sluicegate"), self.busy)


def _held(message: AbstractIncomingMessage, bucket: int, consumer: Consumer) -> Held:
    try:
        change = _changes.decode(message.body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        change = None
    headers = dict(message.headers)
    delivered = headers.get("x-delivery-count", 0)
    return Held(
        token=token_in(message.routing_key or "") or "",
        change=change,
        bucket=bucket,
        deliveries=delivered if isinstance(delivered, int) else 0,
        headers=headers,
        consumer=consumer,
        _message=message,
    )


_changes: Final = msgspec.json.Decoder(Change)
