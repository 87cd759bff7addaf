"""The replay of a big log: many clients read it at once, and the gateway's memory keeps to its bounds."""

from __future__ import annotations

import asyncio
import itertools
from typing import Final

import pytest

from fanout.catchup import SHARED_BYTES
from gateway.sqlite_log import CACHE_BYTES
from tests.support.crowd import (
    DEADLINE,
    STREAMS,
    Member,
    Producer,
    check_published,
    pss,
    until,
    whole_log,
)
from tests.support.server import GatewayProcess

pytestmark = [pytest.mark.scenario, pytest.mark.alone]

MIB: Final = 1 << 20
TOPICS: Final = tuple(f"load.{number}" for number in range(20))
CLIENTS: Final = 200
BATCH: Final = 200
PADDING: Final = 1000
LOG: Final = 40 * MIB

ALLOWED: Final = CACHE_BYTES + SHARED_BYTES + 12 * MIB
"""Beside the window: decoded blocks of the log, parts that are shared, and 60 KiB for each client."""


async def test_a_replay_keeps_to_the_bounds() -> None:
    """While 200 clients replay 40 MB, memory keeps within caches and buffers, and each gets what it wants."""
    async with GatewayProcess(window_bytes=4 * MIB, heartbeat_seconds=60, log_level="warning") as gateway:
        producer = Producer(gateway.port, "p", TOPICS, batch=BATCH, padding=PADDING)
        kinds = itertools.islice(itertools.product(TOPICS * CLIENTS, STREAMS), CLIENTS)
        members = [
            Member(gateway.port, [topic], itertools.repeat(transport).__next__, start="earliest")
            for topic, transport in kinds
        ]
        async with asyncio.timeout(2 * DEADLINE), asyncio.TaskGroup() as tasks:
            while producer.published < LOG // PADDING:
                await producer.publish()
            before = pss(gateway.pid)
            following = [tasks.create_task(member.follow()) for member in members]
            seen, looks = [before], itertools.count()

            def all_there() -> bool:
                if next(looks) % 20 == 0:  # to ask costs the gateway time
                    seen.append(pss(gateway.pid))
                return all(member.position > producer.published - len(TOPICS) for member in members)

            await until(all_there)
            seen.append(pss(gateway.pid))
            log = await whole_log(gateway.port)
            producer.close()
            for task in following:
                task.cancel()
        check_published(log, [producer])
        for member in members:
            member.check(log)
        grown = [f"{(each - before) / MIB:.1f}" for each in seen]
        assert max(seen) - before < ALLOWED, f"it grew by these MiB: {grown}"
