"""Graceful restarts under load: a hundred clients on all transports lose nothing, and are told to return."""

from __future__ import annotations

import asyncio
import itertools
from typing import Final

import pytest

from tests.support.crowd import (
    DEADLINE,
    STREAMS,
    TRANSPORTS,
    Member,
    Producer,
    check_published,
    more_accepted,
    whole_log,
)
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.scenario

RESTARTS: Final = 3
TOPICS: Final = ("orders.1", "orders.2", "parcels.1")
PATTERNS: Final = (["#"], ["orders.*"], ["parcels.1", "orders.2"], ["orders.1"])


async def test_a_hundred_clients_come_through_restarts() -> None:
    """Through restarts under load each of 100 clients gets every event it wants, once and in order."""
    async with GatewayProcess(drain_seconds=1, window_events=300, heartbeat_seconds=0.5) as gateway:
        producers = [Producer(gateway.port, f"p{n}", TOPICS, batch=5) for n in range(2)]
        members = [
            Member(gateway.port, patterns, itertools.repeat(transport).__next__)
            for transport in TRANSPORTS
            for patterns in PATTERNS
            for _ in range(5)
        ]
        assert len(members) == 100
        async with asyncio.timeout(2 * DEADLINE), asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(member.follow()) for member in members]
            done = asyncio.Event()
            publishing = [tasks.create_task(producer.publish_until(done, 0.05)) for producer in producers]
            for _ in range(RESTARTS):
                await more_accepted(producers, 100)
                await gateway.arestart()
            await more_accepted(producers, 100)
            done.set()
            await asyncio.gather(*publishing)
            log = await whole_log(gateway.port)
            await asyncio.gather(*(member.reaches(log[-1].position) for member in members))
            for task in following:
                task.cancel()
        check_published(log, producers)
        for member in members:
            member.check(log)
            if member.transport in STREAMS:
                assert member.farewells == RESTARTS, f"{member.transport} was told {member.farewells} times"
