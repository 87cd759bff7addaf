"""
A member: this process among those that share work over one broker.

It says once a second that it is there, hears all that do, and so knows who owns which bucket
(`fanout.membership` decides). The heartbeats of a group go through one exchange, to a queue of each member
that also brings its own: in the order in which the broker had them.

A name is held exclusively on the broker, by a queue that nobody reads. So no two processes run under one
name, and others can ask whether who fell silent still has its connection.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aiormq.exceptions import (
    AMQPError,
    ChannelInvalidStateError,
    ChannelLockedResource,
    ChannelNotFoundEntity,
)

from fanout.heartbeat import FORGET_AFTER, State
from fanout.membership import Membership
from fanout.ring import BOUND, BUCKETS
from gateway.amqp import tls
from gateway.amqp.topology import connect
from gateway.members.wire import Facts, Seen, decode, encode

if TYPE_CHECKING:
    from gateway.amqp.address import Address

log = logging.getLogger(__name__)

STEP_SECONDS: Final = 5.0
"""How long one step on the broker may take; then the connection is given up."""

RETRY_SECONDS: Final = (0.5, 5.0)
"""Between two connections: doubled each time from the first to the second, and up to half of it less."""

QUEUE_LENGTH: Final = 10_000
"""Heartbeats that wait for a member that does not read; the oldest go, and then it does not hear itself."""

PROBE_SECONDS: Final = 1.0
"""How often it is asked whether who is suspected still has its connection."""

BROKEN: Final = (AMQPError, ChannelInvalidStateError, ConnectionError, OSError, tls.TlsError, TimeoutError)


def pause_after(failures: int) -> float:
    """Return the seconds between two connections, after so many failures."""
    longest: float = min(RETRY_SECONDS[0] * 2 ** min(failures, 10), RETRY_SECONDS[1])
    return longest * random.uniform(0.5, 1)  # no secret


def exchange_of(prefix: str) -> str:
    """Return the name of the exchange that heartbeats go through."""
    return f"{prefix}.members"


def holders_of(prefix: str) -> str:
    """Return what the names of the queues of members begin with, up to the dot."""
    return f"{prefix}.member"


class Member:
    """
    This process in one group.

    Args:
        address: of the broker.
        prefix: what the names of the exchange and the queues begin with; members with another know nothing of
            each other.
        group: what is shared; only members of one group are in a ring together.
        name: of this process; the same after a restart, so that it owns the same.
        facts: asked for each heartbeat.
        changed: called when the view, or what is owned, may have changed.
        observe: whether to hear the other groups as well.
        buckets: of the ring; the same for all members of the group.
        bound: of the ring; the same for all.
    """

    def __init__(
        self,
        address: Address,
        prefix: str,
        group: str,
        name: str,
        facts: Callable[[], Facts],
        *,
        changed: Callable[[], None] = lambda: None,
        observe: bool = False,
        buckets: int = BUCKETS,
        bound: int = BOUND,
    ) -> None:
        self.group = group
        self.membership = Membership(
            name, time.time_ns() // 1_000_000, time.monotonic(), buckets=buckets, bound=bound
        )
        self.seen: dict[tuple[str, str], Seen] = {}
        self.passed = 0  # messages that were none
        self.trouble: str | None = "it was not connected to the broker yet"
        self._address = address
        self._prefix = prefix
        self._facts = facts
        self._changed = changed
        self._observe = observe
        self._known: object = None
        self._woken = asyncio.Event()
        self._leaving = asyncio.Event()

    @property
    def name(self) -> str:
        return self.membership.name

    def owns(self, bucket: int) -> bool:
        """Say whether something may be begun for a bucket; to be asked each time."""
        return self.membership.owns(bucket, time.monotonic())

    def drain(self) -> None:
        """Own nothing any more; others take over."""
        self.membership.drain(time.monotonic())
        self._look()
        self._woken.set()

    def leave(self) -> None:
        """Be gone: `run` returns when that was said, or cannot be."""
        self._leaving.set()
        self._woken.set()

    async def run(self) -> None:
        """Take part until told to leave, over all trouble with the broker."""
        failures = 0
        while not self._leaving.is_set():
            host = self._address.hosts[failures % len(self._address.hosts)]
            begun = time.monotonic()
            try:
                await self._take_part(host)
            except BROKEN as error:
                self._lost(host, error)
            except ExceptionGroup as group:
                broken, other = group.split(BROKEN)
                if other is not None:
                    raise other from None
                assert broken is not None
                self._lost(host, broken.exceptions[0])
            self.membership.tick(time.monotonic())
            self._look()
            if not self._leaving.is_set():
                failures = failures + 1 if time.monotonic() - begun < RETRY_SECONDS[1] else 1
                self._woken.clear()
                await self._wait(pause_after(failures))

    # --- one connection -------------------------------------------------------------------------------------

    async def _take_part(self, host: tuple[str, int]) -> None:
        """Take part over one connection, until it breaks or it is time to leave."""
        async with asyncio.timeout(2 * STEP_SECONDS):
            connection = await connect(self._address, host, f"sluicegate member {self.name}")
        try:
            async with asyncio.timeout(4 * STEP_SECONDS):
                channel, exchange = await self._set_up(connection)
            self.membership.connected(time.monotonic())
            if self.trouble is not None:
                log.info("members.connected", extra={"group": self.group, "member": self.name})
            self.trouble = None
            async with asyncio.TaskGroup() as tasks:
                probing = tasks.create_task(self._probe(connection))
                await self._beat(channel, exchange)
                probing.cancel()
        finally:
            try:
                async with asyncio.timeout(STEP_SECONDS):
                    await connection.close()
            except BROKEN:
                pass

    async def _set_up(self, connection: AbstractConnection) -> tuple[AbstractChannel, AbstractExchange]:
        """Hold our name, and hear the group."""
        holding = await connection.channel(publisher_confirms=False)
        await holding.declare_queue(self._holder(self.name), exclusive=True)
        channel = await connection.channel(publisher_confirms=False)
        exchange = await channel.declare_exchange(
            exchange_of(self._prefix), aio_pika.ExchangeType.TOPIC, durable=True
        )
        arguments: dict[str, Any] = {"x-max-length": QUEUE_LENGTH, "x-overflow": "drop-head"}
        heard = f"{self._holder(self.name)}.heard"
        queue = await channel.declare_queue(heard, exclusive=True, arguments=arguments)
        await queue.bind(exchange, "#" if self._observe else self.group)
        await queue.consume(self._take, no_ack=True)
        return channel, exchange

    async def _beat(self, channel: AbstractChannel, exchange: AbstractExchange) -> None:
        """Send heartbeats when they are due; return after the last."""
        while True:
            if channel.is_closed:
                raise ConnectionError("the broker closed the connection")
            now = time.monotonic()
            if self._leaving.is_set():
                self.membership.leave(now)
            if now >= self.membership.due or self._leaving.is_set():
                body = encode(self.group, self.membership.beat(now), self._facts())
                self._look()
                async with asyncio.timeout(STEP_SECONDS):
                    await exchange.publish(aio_pika.Message(body), self.group)
                if self._leaving.is_set() or self.membership.replaced:
                    return
            self._woken.clear()
            await self._wait(min(self.membership.due - time.monotonic(), 1.0))

    async def _wait(self, seconds: float) -> None:
        """Wait so long, or until there is something to do."""
        try:
            async with asyncio.timeout(max(seconds, 0.001)):
                await self._woken.wait()
        except TimeoutError:
            pass

    async def _take(self, message: AbstractIncomingMessage) -> None:
        """Take a message in. It has no await: so messages are taken in the order in which they came."""
        found = decode(message.body)
        if found is None:
            self.passed += 1
            return
        group, heartbeat, facts = found
        now = time.monotonic()
        if group == self.group:
            due = self.membership.due
            self.membership.hear(heartbeat, now)
            self._look()
            if self.membership.due < due:
                self._woken.set()
        known = self.seen.get((group, heartbeat.name))
        if known is None or (known.heartbeat.born, known.heartbeat.number) < (
            heartbeat.born,
            heartbeat.number,
        ):
            self.seen[group, heartbeat.name] = Seen(group, heartbeat, facts, now)
        for key in [each for each, seen in self.seen.items() if seen.heard < now - FORGET_AFTER]:
            del self.seen[key]

    async def _probe(self, connection: AbstractConnection) -> None:
        """Ask the broker about those who fell silent: whoever does not hold its name has no connection."""
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            for peer in list(self.membership.peers.values()):
                if peer.state is State.SUSPECT and not peer.gone:
                    async with asyncio.timeout(STEP_SECONDS):
                        held = await self._holds(connection, peer.name)
                    if not held:
                        self.membership.gone(peer.name, peer.born, time.monotonic())
                        self._look()
                        self._woken.set()

    async def _holds(self, connection: AbstractConnection, name: str) -> bool:
        """Ask whether somebody holds a name."""
        channel = await connection.channel(publisher_confirms=False)  # a refusal closes it
        try:
            await channel.declare_queue(self._holder(name), passive=True)
        except ChannelNotFoundEntity:
            return False
        except ChannelLockedResource:
            return True
        await channel.close()
        return True  # it is ours

    def _holder(self, name: str) -> str:
        return f"{holders_of(self._prefix)}.{self.group}.{name}"

    def _look(self) -> None:
        """Tell whoever wants to know that something changed."""
        membership = self.membership
        known = membership.view, membership.state, membership.owned(time.monotonic())
        if known != self._known:
            self._known = known
            self._changed()

    def _lost(self, host: tuple[str, int], error: BaseException) -> None:
        if isinstance(error, ChannelLockedResource):
            why = f"another process runs under the name {self.name!r}, or its connection is not over yet"
        else:
            why = f"{type(error).__name__}: {error}".rstrip(": ")
        if self.trouble is None or self.trouble.startswith("it was not"):
            log.warning(
                "members.lost",
                extra={"group": self.group, "broker": self._address.name(host), "why": why},
            )
        self.trouble = why
