"""One broker and two replicas in trouble, under load: every client gets every event once, and in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import aio_pika
import msgspec
import pytest
from aio_pika.abc import AbstractConnection, AbstractExchange
from aiormq.exceptions import AMQPException, ChannelInvalidStateError

from tests.support.accounts import DEADLINE, Ledger, account, crowd, until
from tests.support.clients import Address, fetch, metric, open_subscriber
from tests.support.crowd import Producer, pss
from tests.support.quick import quickest
from tests.support.rabbitmq import Broker, accepts
from tests.support.server import GatewayProcess
from tests.support.stage import play

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]

MIB: Final = 1 << 20


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def broker(stack: ExitStack) -> Broker:
    return stack.enter_context(Broker(niceness=0))


@pytest.fixture(scope="module")
def pair(stack: ExitStack, broker: Broker) -> list[GatewayProcess]:
    """Two replicas, on a broker that knows its stream by heart."""
    two = [stack.enter_context(GatewayProcess(backbone=broker.url)) for _ in range(2)]
    broker.settle()
    return two


@pytest.fixture
def replicas(broker: Broker, pair: list[GatewayProcess]) -> list[GatewayProcess]:
    """The two replicas, running, whatever the scenario before left behind."""
    if not broker.alive:
        broker.start()
    for each in pair:
        if not each.alive:
            each.start()
    return pair


async def test_a_killed_replica_leaves_its_clients_to_the_other(replicas: list[GatewayProcess]) -> None:
    """A replica is killed and started again under load: its clients go on where they were, on the other."""

    async def trouble() -> None:
        replicas[0].kill()
        await asyncio.sleep(1)
        await replicas[0].astart()

    await play("kill", replicas, trouble)


async def test_a_broker_that_is_killed_loses_nothing(broker: Broker, replicas: list[GatewayProcess]) -> None:
    """The broker is killed and started again under load."""

    async def trouble() -> None:
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start)

    story = await play("crash", replicas, trouble)
    assert sum(each.retries for each in story.producers) > 0


async def test_a_broker_that_restarts_loses_nothing(broker: Broker, replicas: list[GatewayProcess]) -> None:
    """The broker is stopped in an orderly way and started again under load."""

    async def trouble() -> None:
        await asyncio.to_thread(broker.restart)

    story = await play("restart", replicas, trouble)
    assert sum(each.retries for each in story.producers) > 0


async def test_a_frozen_broker_is_noticed(broker: Broker, replicas: list[GatewayProcess]) -> None:
    """The broker stands still for 20 seconds: the replicas say so and go on afterwards, with nothing lost."""

    async def trouble() -> None:
        broker.freeze()
        try:
            await asyncio.sleep(20)
            for each in replicas:
                await until(lambda each=each: "said nothing for" in each.log_text(), "the replica says so")  # type: ignore[misc]
        finally:
            broker.thaw()

    story = await play("freeze", replicas, trouble)
    assert sum(each.retries for each in story.producers) > 0


async def test_a_broker_short_of_memory_refuses_events_and_nothing_else(
    broker: Broker, replicas: list[GatewayProcess]
) -> None:
    """While an alarm is on, publishers are refused, readers go on, and a replica that starts waits."""
    address = Address(replicas[0].host, replicas[0].port)

    async def refused() -> None:
        answer = await fetch(address, "/v1/topics/alarm.none", method="POST", body=b"1")
        assert answer.status == 503
        assert int(answer.head["retry-after"]) > 0
        assert "the broker takes no events now" in answer.problem["detail"]

    async def trouble() -> None:
        broker.raise_alarm()
        try:
            await until(lambda: "backbone.blocked" in replicas[0].log_text(), "the broker says so")
            assert await quickest(refused) < 2
            async with open_subscriber(address, "sse", "alarm.#", cursor="earliest") as reader:
                await reader.events(1000)
            await replicas[1].astop()
            replicas[1].launch()
            second = Address(replicas[1].host, replicas[1].port)
            await until(lambda: accepts(replicas[1].port), "the replica listens")
            ready = await fetch(second, "/readyz")
            assert ready.status == 503
            assert "takes no messages" in str(ready.json)
        finally:
            broker.lower_alarm()

    story = await play("alarm", replicas, trouble)
    assert sum(each.retries for each in story.producers) > 0
    assert max(each.slowest for each in story.producers) < 8


async def test_publishers_who_wait_for_a_frozen_broker_are_bounded(
    broker: Broker, replicas: list[GatewayProcess]
) -> None:
    """With the broker frozen, a hundred publishers fill the queue and not the memory; then all goes on."""
    address = Address(replicas[0].host, replicas[0].port)
    many = [
        Producer(replicas[0].port, f"wide-{n}", [f"wide.{n}"], batch=200, padding=1500) for n in range(100)
    ]
    readers = crowd(10, [each.port for each in replicas], Ledger(), ["wide.#"])
    grown: list[int] = []
    busy: list[float] = []

    async def trouble() -> None:
        enough = asyncio.Event()
        before = pss(replicas[0].pid)
        broker.freeze()
        try:
            async with asyncio.TaskGroup() as tasks:
                for each in many:
                    tasks.create_task(each.publish_until(enough))
                for _ in range(15):
                    await asyncio.sleep(1)
                    grown.append(pss(replicas[0].pid) - before)
                    busy.append(await metric(address, "sluice_publish_busy_total"))
                enough.set()
                broker.thaw()
        finally:
            broker.thaw()

    await play("window", replicas, trouble)
    numbers = {each.name: each.published for each in many}
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(each.follow()) for each in readers]
        await until(lambda: all(each.has(numbers) for each in readers), "the readers have all events")
        for task in following:
            task.cancel()
    wide = account(readers, many)
    shown = [f"{each / MIB:.0f}" for each in grown]
    print(f"window: {busy[-1]:.0f} refused, the replica grew by these MiB: {' '.join(shown)}; {wide}")
    wide.check()
    assert busy[-1] > 100
    assert max(grown) < 96 * MIB, shown


class PlainProducer(Producer):
    """
    A producer who knows nothing of us: it publishes with aio-pika, each message until it is confirmed and was
    not returned. A broker that has just started confirms what it has no queue for: that one comes back.

    Args:
        url: of the broker.
        name: its own.
        topic: of its messages.
    """

    def __init__(self, url: str, name: str, topic: str) -> None:
        super().__init__(0, name, [topic], batch=20)
        self._url = url
        self._topic = topic
        self._link: AbstractConnection | None = None
        self._exchange: AbstractExchange | None = None

    async def publish(self) -> None:
        """Publish the next messages, all of them again until all are confirmed."""
        numbers = range(self.published, self.published + self._batch)
        while True:
            try:
                await self._send(numbers)
                break
            except (AMQPException, ChannelInvalidStateError, OSError, TimeoutError):
                self.retries += 1
                self.close()
                await asyncio.sleep(0.2)
        self.published += self._batch

    async def _send(self, numbers: range) -> None:
        async with asyncio.timeout(10):
            if self._exchange is None:
                self._link = await aio_pika.connect(self._url, heartbeat=5)
                channel = await self._link.channel(on_return_raises=True)
                self._exchange = await channel.get_exchange("events", ensure=False)
            for number in numbers:
                body = msgspec.json.encode([self.name, number])
                message = aio_pika.Message(body, message_id=f"{self.name}-{number}", delivery_mode=2)
                await self._exchange.publish(message, self._topic)

    def close(self) -> None:
        """Drop the connection."""
        link, self._link, self._exchange = self._link, None, None
        if link is not None:
            task = asyncio.ensure_future(link.close())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())


async def test_events_of_plain_producers_are_accounted_for(
    broker: Broker, replicas: list[GatewayProcess], caplog: pytest.LogCaptureFixture
) -> None:
    """Producers who know nothing of us publish beside the gateway while the broker is killed."""
    caplog.set_level(logging.CRITICAL, "aiormq")  # it complains of each attempt to connect

    async def trouble() -> None:
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start)

    plain = [PlainProducer(broker.url, f"plain-{n}", f"foreign.plain{n}") for n in range(4)]
    await play("foreign", replicas, trouble, extra=plain)
    assert all(each.published > 200 for each in plain)
    assert sum(each.retries for each in plain) > 0
