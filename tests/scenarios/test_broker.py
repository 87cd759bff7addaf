"""Broker and replicas in trouble, under load: every client gets every event once, and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import aio_pika
import pytest

from tests.support.clients import Address, fetch
from tests.support.followers import TRANSPORTS, Follower, check_account, publish_all, until
from tests.support.rabbitmq import Broker, Cluster, accepts
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
        await until(lambda: len(followers[0].data) >= EVENTS // 5, "the events flow")
        await trouble()
    check_account(followers, EVENTS)
    return publishing.result()


async def test_a_broker_that_restarts_loses_nothing(broker: Broker, replicas: list[GatewayProcess]) -> None:
    """The broker is killed and started again under load: nothing lost, nothing twice, all in order."""

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
            for each in replicas:
                assert "said nothing for" in each.log_text()
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


async def test_a_gateway_waits_for_its_broker() -> None:
    """Without a broker a gateway says that it is not ready and why; it begins when the broker is there."""
    with ExitStack() as stack:
        broker = Broker()
        stack.callback(broker.close)
        gateway = GatewayProcess(backbone=broker.url)
        stack.push(gateway)
        gateway.launch()
        address = Address(gateway.host, gateway.port)
        await until(lambda: accepts(gateway.port), "the gateway listens")
        ready = await fetch(address, "/readyz")
        assert ready.status == 503
        assert "cannot be reached" in str(ready.json)
        assert (await fetch(address, "/healthz")).status == 200
        refused = await fetch(address, "/v1/events?topic=a")
        assert refused.status == 503
        assert int(refused.head["retry-after"]) > 0
        await asyncio.to_thread(broker.start)
        await until(lambda: "backbone.began" in gateway.log_text(), "the gateway begins")
        assert (await gateway.apublish({"topic": "a", "data": 1}))["accepted"] == 1
        assert (await fetch(address, "/readyz")).status == 200


async def test_a_wrong_password_ends_the_start(broker: Broker) -> None:
    """A gateway whose password is wrong ends at once, with one sentence and no traceback."""
    with ExitStack() as stack:
        gateway = GatewayProcess(backbone=broker.url.replace(":guest@", ":hush@"))
        stack.push(gateway)
        gateway.launch()
        assert await asyncio.to_thread(gateway.wait) == 1
        said = gateway.log_text()
    assert said.startswith("sluice: the broker at ")
    assert "wrong name or password" in said
    assert said.count("\n") == 1
    assert "hush" not in said


async def test_a_lost_leader_is_replaced() -> None:
    """The node that leads the stream is killed: the replicas go on with another, with nothing lost."""
    with Cluster(3) as cluster, ExitStack() as stack:
        two = [stack.enter_context(GatewayProcess(backbone=cluster.url)) for _ in range(2)]

        async def trouble() -> None:
            leader = await asyncio.to_thread(cluster.leader, "sluicegate")
            await asyncio.to_thread(leader.kill)

        await _story(two, trouble, two)


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
        await until(lambda: all(len(each.data) == 1000 for each in followers), "all have the first events")
        connection = await aio_pika.connect(broker.url)
        await (await connection.channel()).queue_delete("sluicegate")
        await connection.close()
        await until(
            lambda: all("backbone.reset" in each.log_text() for each in replicas), "both replicas notice"
        )
        await publish_all(replicas, "load.2", range(1000, 1100), 0)
        await replicas[0].apublish({"topic": "load.3", "data": "end"})
    for each in followers:
        assert each.data == [*range(1100), "end"]
        assert [gap["reason"] for gap in each.gaps] == ["reset"]
