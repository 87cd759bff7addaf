"""kill -9, again and again: what was answered 202 is there, once and in order, and nobody misses it."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Final

import pytest

from tests.support.crowd import (
    DEADLINE,
    PAUSE,
    TRANSPORTS,
    Member,
    Producer,
    check_published,
    more_accepted,
    ready,
    whole_log,
)
from tests.support.server import GatewayProcess
from tests.support.zygote import Zygote

pytestmark = pytest.mark.scenario

KILLS: Final = 50
TOPICS: Final = ("orders.1", "orders.2", "parcels.1")


async def test_nothing_accepted_is_lost_and_nobody_misses_it() -> None:
    """Through 50 kills the log keeps all that was accepted, and every follower gets exactly that."""
    gateway = GatewayProcess(window_events=200, heartbeat_seconds=0.5, log_level="warning")
    dice = random.Random(9)
    producers = [Producer(gateway.port, f"p{n}", TOPICS, batch=n * 3 + 1) for n in range(3)]
    members = [
        Member(gateway.port, patterns, itertools.repeat(transport).__next__, start="earliest")
        for transport in TRANSPORTS
        for patterns in (["#"], ["orders.*"], ["parcels.1", "orders.2"])
    ]
    with Zygote(gateway) as zygote:
        zygote.start()
        async with asyncio.timeout(2 * DEADLINE), asyncio.TaskGroup() as tasks:
            await ready(gateway.port)
            following = [tasks.create_task(member.follow()) for member in members]
            done = asyncio.Event()
            publishing = [tasks.create_task(producer.publish_until(done)) for producer in producers]
            for _ in range(KILLS):
                await more_accepted(producers, 30)
                await asyncio.sleep(dice.random() * PAUSE)  # so that it is hit in the middle of anything
                zygote.kill()
                zygote.start()
                await ready(gateway.port)
            done.set()
            await asyncio.gather(*publishing)
            log = await whole_log(gateway.port)
            await asyncio.gather(*(member.reaches(log[-1].position) for member in members))
            for task in following:
                task.cancel()
        check_published(log, producers)
        assert [event.position for event in log] == list(range(1, len(log) + 1))
        assert sum(producer.retries for producer in producers) >= KILLS
        for member in members:
            member.check(log)
            assert member.connections > KILLS
