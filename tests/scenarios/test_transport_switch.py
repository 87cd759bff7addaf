"""Clients that change their transport all the time, under load, in the middle of whatever is on its way."""

from __future__ import annotations

import asyncio
import random
from typing import Final

import pytest

from tests.support.crowd import (
    DEADLINE,
    TRANSPORTS,
    Member,
    Producer,
    check_published,
    more_accepted,
    whole_log,
)
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.scenario

TOPICS: Final = ("orders.1", "orders.2", "parcels.1")
PATTERNS: Final = (["#"], ["orders.*"], ["parcels.1", "orders.2"], ["orders.1"])


async def test_a_client_loses_nothing_by_hopping() -> None:
    """Clients that go on elsewhere every few events get every event, once and in order."""
    dice = random.Random(3)

    def transport() -> str:
        return dice.choice(TRANSPORTS)

    def events() -> int:
        return dice.choice((1, 2, 5, 20))

    async with GatewayProcess(window_events=100, heartbeat_seconds=0.5) as gateway:
        producers = [Producer(gateway.port, f"p{n}", TOPICS, batch=5, padding=300) for n in range(2)]
        members = [
            Member(gateway.port, patterns, transport, events_each=events)
            for patterns in PATTERNS
            for _ in range(8)
        ]
        async with asyncio.timeout(2 * DEADLINE), asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(member.follow()) for member in members]
            done = asyncio.Event()
            publishing = [tasks.create_task(producer.publish_until(done, 0.02)) for producer in producers]
            await more_accepted(producers, 2000)
            done.set()
            await asyncio.gather(*publishing)
            log = await whole_log(gateway.port)
            await asyncio.gather(*(member.reaches(log[-1].position) for member in members))
            for task in following:
                task.cancel()
        check_published(log, producers)
        for member in members:
            member.check(log)
            assert member.connections >= 10
