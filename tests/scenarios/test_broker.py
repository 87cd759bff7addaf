"""Broker and replicas in trouble, under load: every client gets every event once, and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import aio_pika
import pytest

from tests.support.clients import Address
from tests.support.followers import TRANSPORTS, Follower, check_account, publish_all
from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]

CLIENTS = 24
EVENTS = 5_000
PAUSE = 0.01
"""Between two batches of 50: up to 5,000 events a second, if the machine can."""

Trouble = Callable[[], Awaitable[None]]


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker() as node:
        yield node


@pytest.fixture
def replicas(broker: Broker) -> Iterator[list[GatewayProcess]]:
    """Two replicas, on a broker that knows its stream by heart."""
    with ExitStack() as stack:
        two = [stack.enter_context(GatewayProcess(backbone=broker.url)) for _ in range(2)]
        broker.settle()
        yield two


def _addresses(replicas: list[GatewayProcess]) -> list[Address]:
    return [Address(each.host, each.port) for each in replicas]


async def _story(replicas: list[GatewayProcess], trouble: Trouble, publishers: list[GatewayProcess]) -> int:
    """Publish while clients follow, with trouble in the middle; check the account, return the repeats."""
    addresses = _addresses(replicas)
    followers = [
        Follower(addresses[number % 2 :] + addresses[: number % 2], TRANSPORTS[number % 4], "load.#")
        for number in range(CLIENTS)
    ]
    async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
        for each in followers:
            tasks.create_task(each.run(EVENTS - 1))
        publishing = tasks.create_task(publish_all(publishers, "load.1", range(EVENTS), PAUSE))
        while len(followers[0].data) < EVENTS // 5:
            await asyncio.sleep(0.01)
        await trouble()
    check_account(followers, EVENTS)
    return publishing.result()


async def test_a_broker_that_restarts_loses_nothing(broker: Broker, replicas: list[GatewayProcess]) -> None:
    """The broker is killed and started again under load: nothing lost, nothing twice, nothing out of order."""

    async def trouble() -> None:
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start)

    assert await _story(replicas, trouble, replicas) > 0


async def test_a_frozen_broker_is_noticed(broker: Broker, replicas: list[GatewayProcess]) -> None:
    """The broker stands still for 20 seconds: the replicas say so and go on afterwards, with nothing lost."""

    async def trouble() -> None:
        broker.freeze()
        try:
            await asyncio.sleep(20)
            assert await asyncio.to_thread(replicas[0].log_text) != ""
            assert "backbone.lost" in replicas[0].log_text()
        finally:
            broker.thaw()

    assert await _story(replicas, trouble, replicas) > 0


async def test_a_killed_replica_leaves_its_clients_to_the_other(replicas: list[GatewayProcess]) -> None:
    """A replica is killed and started again under load: its clients go on where they were, on the other."""

    async def trouble() -> None:
        replicas[0].kill()
        await asyncio.sleep(1)
        await replicas[0].astart()

    assert await _story(replicas, trouble, replicas) > 0


async def test_every_client_is_told_of_a_stream_made_anew(
    broker: Broker, replicas: list[GatewayProcess]
) -> None:
    """The stream is deleted: every client is told `reset`, and then gets what the new stream has."""
    followers = [
        Follower(_addresses(replicas), TRANSPORTS[number % 4], "load.#") for number in range(CLIENTS)
    ]
    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        for each in followers:
            tasks.create_task(each.run("end"))
        await publish_all(replicas, "load.1", range(1000), 0)
        while any(len(each.data) < 1000 for each in followers):
            await asyncio.sleep(0.02)
        connection = await aio_pika.connect(broker.url)
        await (await connection.channel()).queue_delete("sluicegate")
        await connection.close()
        while any("backbone.reset" not in each.log_text() for each in replicas):
            await asyncio.sleep(0.05)
        await publish_all(replicas, "load.2", range(1000, 1100), 0)
        await replicas[0].apublish({"topic": "load.3", "data": "end"})
    for each in followers:
        assert each.data == [*range(1100), "end"]
        assert [gap["reason"] for gap in each.gaps] == ["reset"]
