"""Webhooks through crashes: every delivery is made, none is made up, and nobody waits for somebody else."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.postgres.address import Address
from gateway.postgres.database import Database
from tests.support.crowd import Got, Producer, check_published, more_accepted, ready, until, whole_log
from tests.support.postgres import Postgres
from tests.support.server import GatewayProcess
from tests.support.sink import Arrival, Sink
from tests.support.zygote import Zygote
from webhooks.description import Description, Order
from webhooks.keys import Keys
from webhooks.postgres_store import PART, PostgresStore
from webhooks.records import message_number
from webhooks.signature import Scheme
from webhooks.sqlite_store import SqliteStore
from webhooks.store import Store
from webhooks.stored import settings

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(600)]

KILLS: Final = int(os.environ.get("SLUICE_TEST_KILLS", "100"))
EVENTS: Final = int(os.environ.get("SLUICE_TEST_EVENTS", "5000"))
UP: Final = 0.25
"""Seconds at most for which a gateway may send before it is killed."""
SCHEDULE: Final = (0.1, 0.2, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
KEYS: Final = Keys().completed([Scheme.V1], 0)
DEADLINE: Final = 120.0


@asynccontextmanager
async def store_at(folder: Path, url: str) -> AsyncIterator[Store]:
    """Open a store that no gateway has open: that in a folder, or in a database."""
    if not url:
        store = SqliteStore(folder)
        await store.start()
        try:
            yield store
        finally:
            await store.close()
        return
    database = Database(Address.parse(url), [PART])
    await database.start()
    try:
        yield PostgresStore(database)
    finally:
        await database.close()


async def add(store: Store, descriptions: Sequence[Description]) -> None:
    """Add endpoints that get all of the log."""
    for each in descriptions:
        await store.add_endpoint(settings(each, KEYS, message_number(1, 0)))


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_kill_9_loses_no_delivery(kind: str, tmp_path: Path) -> None:
    """Through 100 kills every endpoint gets every event, under one id; and in order where it wants that."""
    with Sink() as sink, Postgres() as server:
        url = server.make() if kind == "postgres" else ""
        paths = [
            f"{word}/{n}" for word, count in (("ok", 14), ("fifo", 3), ("flaky", 3)) for n in range(count)
        ]
        async with store_at(tmp_path, url) as store:
            await add(
                store,
                [
                    Description(
                        sink.url(path),
                        ("orders.#",),
                        order=Order.FIFO if path.startswith("fifo") else Order.NONE,
                        schedule=SCHEDULE,
                    )
                    for path in paths
                ],
            )
        more: dict[str, Any] = {"store": url} if url else {}
        gateway = GatewayProcess(tmp_path, webhooks_allow="127.0.0.0/8", log_level="warning", **more)
        log, starts = await _kill_again_and_again(gateway, sink, len(paths))
        _check(sink.account(), paths, log, starts)


async def _kill_again_and_again(gateway: GatewayProcess, sink: Sink, endpoints: int) -> tuple[list[Got], int]:
    """Publish while the gateway is killed, until all has arrived; return the log and the number of starts."""
    dice = random.Random(5)
    producers = [
        Producer(gateway.port, f"p{n}", ("orders.1", "orders.2.x"), batch=n * 3 + 1) for n in range(3)
    ]
    with Zygote(gateway) as zygote:
        zygote.start()
        async with asyncio.timeout(500), asyncio.TaskGroup() as tasks:
            await ready(gateway.port)
            done = asyncio.Event()
            publishing = [tasks.create_task(producer.publish_until(done, 0.005)) for producer in producers]
            for _ in range(KILLS):
                await more_accepted(producers, EVENTS // KILLS)
                await asyncio.sleep(dice.random() * UP)  # so that it is hit in the middle of anything
                zygote.kill()
                zygote.start()
                await ready(gateway.port)
            done.set()
            await asyncio.gather(*publishing)
            log = await whole_log(gateway.port)
            check_published(log, producers)

            def all_arrived() -> bool:
                counts = sink.counts()
                return len(counts) == endpoints and min(counts.values()) >= len(log)

            await until(all_arrived)
    return log, KILLS + 1


def _check(account: dict[str, list[Arrival]], paths: list[str], log: list[Got], starts: int) -> None:
    """Compare what arrived with the log, exactly."""
    events = {each.position: [each.producer, each.number] for each in log}
    total = repeated = 0
    assert account.keys() == set(paths)
    for path, arrivals in account.items():
        ids: dict[int, set[str]] = {}
        taken: set[int] = set()
        for each in arrivals:
            assert events[each.position] == each.data, "the wrong event under an id"
            ids.setdefault(each.position, set()).add(each.id)
            if each.status == 200:
                taken.add(each.position)
        assert taken == events.keys(), f"{path} lacks {len(events.keys() - taken)}"
        assert all(len(names) == 1 for names in ids.values()), "an event under two ids"
        total += len(arrivals)
        repeated += len(arrivals) - len(events) - sum(each.status != 200 for each in arrivals)
        if path.startswith("fifo"):
            _check_order([each.position for each in arrivals])
    print(
        f"{len(log)} events, {len(paths)} endpoints, {starts} starts: {total} arrivals, "
        f"{repeated} of them again after a crash"
    )


def _check_order(positions: list[int]) -> None:
    """Check that no event comes before one that was before it, nor anything but the last one again."""
    last = 0
    for position in positions:
        assert position in (last, last + 1), f"{position} came behind {last}"
        last = position
