"""Clients that do not read, or slowly: they cost a cursor, the others nothing, and miss nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Final

import pytest

from fanout.catchup import SHARED_BYTES
from gateway.sqlite_log import CACHE_BYTES
from tests.support.crowd import (
    DEADLINE,
    PAUSE,
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

KIB: Final = 1 << 10
MIB: Final = 1 << 20

TOPICS: Final = tuple(f"load.{number}" for number in range(8))
WATCHED: Final = 3
"""The topic of the slow, by its number: an eighth of the load is more than a connection's buffers hold."""

KEYS: Final = 8 * 5
"""Five keys for each topic."""

OVERFLOWS: Final = ("catchup", "latest", "disconnect")
KINDS: Final = tuple(itertools.product(STREAMS, OVERFLOWS))
STALLED_EACH: Final = 4

BATCH: Final = 40
PADDING: Final = 8000
WARM: Final = 12 * MIB
GROWTH: Final = 52 * MIB
WINDOW: Final = 8 * MIB

EACH: Final = 80 * KIB
"""What a stalled client may cost."""

NOISE: Final = 4 * MIB
"""What the allocator may keep, and the ids of the events that were published."""


class Crowd:
    """
    Clients of three sorts on all transports.

    The fast read everything. The stalled, with each policy, read nothing, and the slow little at a time, of
    one topic, until they are told to go.

    Args:
        port: of the gateway.
    """

    def __init__(self, port: int) -> None:
        self.go = asyncio.Event()
        topic = TOPICS[WATCHED]
        self.fast = [_member(port, "earliest", transport, "catchup", "#", None) for transport in STREAMS]
        self.stalled = [
            _member(port, "earliest", *kind, topic, self._stall)
            for kind in KINDS
            for _ in range(STALLED_EACH)
        ]
        self.slow = [_member(port, "latest", *kind, topic, self._dawdle) for kind in KINDS]

    async def _stall(self) -> None:
        await self.go.wait()

    async def _dawdle(self) -> None:
        if not self.go.is_set():
            await asyncio.sleep(PAUSE)

    @property
    def everybody(self) -> list[Member]:
        return [*self.fast, *self.stalled, *self.slow]

    async def publish(self, producer: Producer, size: int) -> None:
        """Publish `size` bytes in parts, each when all fast clients have the one before."""
        end = producer.published + size // PADDING
        while producer.published < end:
            for _ in range(4):
                await producer.publish()
            await asyncio.gather(*(member.reaches(producer.published) for member in self.fast))


def _member(
    port: int,
    start: str,
    transport: str,
    overflow: str,
    pattern: str,
    pace: Callable[[], Awaitable[None]] | None,
) -> Member:
    transports = itertools.repeat(transport).__next__
    return Member(port, [pattern], transports, start=start, overflow=overflow, pace=pace)


async def test_whoever_does_not_read_costs_a_cursor() -> None:
    """While the log grows by 50 MB the stalled cost no more and the fast get all; then all get theirs."""
    async with GatewayProcess(
        window_bytes=WINDOW, heartbeat_seconds=60, stall_timeout=120, log_level="warning"
    ) as gateway:
        crowd = Crowd(gateway.port)
        producer = Producer(gateway.port, "p", TOPICS, batch=BATCH, padding=PADDING, keys=KEYS)
        async with asyncio.timeout(2 * DEADLINE), asyncio.TaskGroup() as tasks:
            empty = pss(gateway.pid)
            following = [tasks.create_task(member.follow()) for member in [*crowd.fast, *crowd.stalled]]
            await until(lambda: all(member.connections for member in [*crowd.fast, *crowd.stalled]))
            await crowd.publish(producer, WARM)
            warm = pss(gateway.pid)
            await crowd.publish(producer, GROWTH)
            grown = pss(gateway.pid)
            following += [tasks.create_task(member.follow()) for member in crowd.slow]
            await until(lambda: all(member.began >= 0 for member in crowd.slow))
            await crowd.publish(producer, GROWTH // 2)
            read = pss(gateway.pid)
            assert all(member.position < 0 for member in crowd.stalled)
            behind = [producer.published - member.position for member in crowd.slow]
            crowd.go.set()
            last = producer.published - len(TOPICS) + WATCHED + 1
            await asyncio.gather(*(member.reaches(last) for member in crowd.everybody))
            drained = pss(gateway.pid)
            log = await whole_log(gateway.port)
            producer.close()
            for task in following:
                task.cancel()

    check_published(log, [producer])
    buffers = (len(crowd.stalled) + len(crowd.slow)) * EACH
    caches = CACHE_BYTES + SHARED_BYTES
    assert warm - empty < WINDOW + buffers + NOISE
    assert grown - warm < NOISE, "the log's growth costs memory although nobody reads it"
    assert read - warm < buffers + caches + NOISE
    assert drained - warm < buffers + caches + NOISE
    for member in crowd.everybody:
        member.check(log, gaps=member.overflow == "latest")
    for member in crowd.fast:
        assert (member.connections, len(member.got)) == (1, len(log))
    for member in [*crowd.stalled, *crowd.slow]:
        assert (member.farewells > 0) == (member.overflow == "disconnect")
        assert bool(member.gaps) == (member.overflow == "latest")
        assert [event.position for event in member.got[-5:]] == [
            last - 32,
            last - 24,
            last - 16,
            last - 8,
            last,
        ]
    assert min(behind) > 0
