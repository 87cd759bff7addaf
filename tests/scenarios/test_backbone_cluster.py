"""A broker of three nodes that loses one, under load: every client gets every event once, and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.accounts import until
from tests.support.rabbitmq import Broker, Cluster
from tests.support.server import GatewayProcess
from tests.support.stage import play

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]

STREAM = "sluicegate"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(3, niceness=0) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def replicas(cluster: Cluster) -> Iterator[list[GatewayProcess]]:
    """Three replicas, each of which knows all nodes."""
    with ExitStack() as stack:
        yield [stack.enter_context(GatewayProcess(backbone=cluster.url)) for _ in range(3)]


async def _another_leads(cluster: Cluster, before: Broker) -> None:
    """Wait until another node leads the stream."""
    await until(lambda: cluster.leader(STREAM) is not before, "another node leads")


async def test_a_killed_leader_is_replaced_and_comes_back(
    cluster: Cluster, replicas: list[GatewayProcess]
) -> None:
    """The node that leads the stream is killed under load, and started again a moment later."""

    async def trouble() -> None:
        leader = cluster.leader(STREAM)
        await asyncio.to_thread(leader.kill)
        await _another_leads(cluster, leader)
        await asyncio.to_thread(leader.start)

    await play("leader", replicas, trouble)


async def test_a_leader_that_goes_in_order_is_replaced(
    cluster: Cluster, replicas: list[GatewayProcess]
) -> None:
    """The node that leads the stream is taken out of service under load, as for an upgrade, and put back."""

    async def trouble() -> None:
        leader = cluster.leader(STREAM)
        await asyncio.to_thread(leader.evaluate, "rabbit:stop()")
        await _another_leads(cluster, leader)
        await asyncio.to_thread(leader.evaluate, "rabbit:start()")

    await play("moved", replicas, trouble)


async def test_a_lost_node_that_does_not_lead_is_done_without(
    cluster: Cluster, replicas: list[GatewayProcess]
) -> None:
    """A node that follows is killed under load, and started again; one replica knows no other node."""
    leader = cluster.leader(STREAM)
    lost = next(node for node in cluster.nodes if node is not leader)
    await replicas[0].arestart(backbone=lost.url)

    async def trouble() -> None:
        await asyncio.to_thread(lost.kill)
        await asyncio.sleep(3)
        await asyncio.to_thread(lost.start)

    story = await play("member", replicas, trouble)
    assert sum(each.retries for each in story.producers) > 0
