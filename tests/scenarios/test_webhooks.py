"""Webhooks through crashes: every delivery is made, none is made up, and nobody waits for somebody else."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.postgres.address import Address
from gateway.postgres.database import Database
from tests.support.crowd import Got, Producer, check_published, more_accepted, pss, ready, until, whole_log
from tests.support.postgres import Postgres
from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess
from tests.support.sink import Arrival, Sink
from tests.support.workers import WorkersProcess, pid_of
from tests.support.zygote import Zygote
from webhooks.description import IN_FLIGHT, Description, Order
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
STILL: Final = 10.0
"""Seconds in which something has to come; longer than any wait of the schedule."""


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
            publishing = [tasks.create_task(producer.publish_until(done, 0.02)) for producer in producers]
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

            await _all_arrived(sink, endpoints, len(log))
    return log, KILLS + 1


async def _all_arrived(sink: Sink, endpoints: int, events: int) -> None:
    """Wait until every endpoint has taken every event; however long that takes, as long as it goes on."""
    total, since = -1, time.monotonic()
    while True:
        counts = sink.counts()
        if len(counts) == endpoints and min(counts.values()) >= events:
            return
        if sum(counts.values()) != total:
            total, since = sum(counts.values()), time.monotonic()
        elif time.monotonic() - since > STILL:
            raise AssertionError(f"nothing comes any more; of {events} there are {counts}")
        await asyncio.sleep(STILL / 40)


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


# --- replicas -----------------------------------------------------------------------------------------------

SHARED: Final = 20
TAKE_OVER: Final = 10.0
"""Seconds within which the endpoints of a replica that is gone go on."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker(niceness=0) as node:
        yield node


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as one:
        yield one


@asynccontextmanager
async def two_replicas(
    broker: Broker, server: Postgres, sink: Sink, tmp_path: Path, name: str
) -> AsyncIterator[list[GatewayProcess]]:
    """Run two replicas that share endpoints `ok/0` … out evenly."""
    url = server.make()
    async with store_at(tmp_path, url) as store:
        await add(store, [Description(sink.url(f"ok/{n}"), ("orders.#",)) for n in range(SHARED)])
    more: dict[str, Any] = {"backbone": broker.url, "stream": name, "exchanges": f"{name}:#", "store": url}
    with ExitStack() as stack:
        two = [GatewayProcess(webhooks_allow="127.0.0.0/8", **more) for _ in range(2)]
        for each in two:
            stack.callback(each.close)
            each.launch()
        for each in two:
            await asyncio.to_thread(each.wait_ready)
        await until(lambda: _share(two))
        yield two


def _share(two: list[GatewayProcess]) -> bool:
    """Tell whether each has some of the endpoints and together they have all: it is buckets that are even."""
    numbers = [number(each, "sluice_webhook_endpoints") for each in two]
    return min(numbers) > 0 and sum(numbers) == SHARED


def number(gateway: GatewayProcess, metric: str) -> float:
    """Return the value of a metric without labels; -1 if nobody answers."""
    try:
        text = gateway.get("/metrics")[1].decode()
    except OSError:
        return -1
    return next((float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{metric} ")), -1)


async def test_a_killed_replica_leaves_its_endpoints_to_the_other(
    broker: Broker, server: Postgres, tmp_path: Path
) -> None:
    """The endpoints of a replica that is killed go on within ten seconds, and nothing is lost."""
    with Sink() as sink:
        async with (
            two_replicas(broker, server, sink, tmp_path, "killed") as two,
            asyncio.TaskGroup() as tasks,
        ):
            producer = Producer([two[1].port], "p", ("orders.1",))
            done = asyncio.Event()
            publishing = tasks.create_task(producer.publish_until(done, 0.05))
            await until(lambda: min(sink.counts().values(), default=0) > 20)
            killed = time.time()
            two[0].kill()
            before = producer.published
            await until(lambda: min(sink.counts().values()) > before + 5)
            done.set()
            await publishing
            await until(lambda: set(sink.counts().values()) == {producer.published})
            quiet = [_longest_silence(arrivals, killed) for arrivals in sink.account().values()]
            print(f"the longest that an endpoint was left alone: {max(quiet):.1f} s")
            assert max(quiet) < TAKE_OVER
            assert number(two[1], "sluice_webhook_endpoints") == SHARED


def _longest_silence(arrivals: list[Arrival], since: float) -> float:
    """Return for how many seconds nothing came, at most, around and after a time."""
    times = [each.time for each in arrivals]
    return max(after - before for before, after in pairwise(times) if after > since)


async def test_a_replica_that_stood_still_sends_nothing_more(
    broker: Broker, server: Postgres, tmp_path: Path
) -> None:
    """Its endpoints go on elsewhere; when it goes on itself it begins no attempt but for its new share."""
    with Sink() as sink:
        async with two_replicas(broker, server, sink, tmp_path, "still") as two, asyncio.TaskGroup() as tasks:
            producer = Producer([two[1].port], "p", ("orders.1",), batch=1)
            done = asyncio.Event()
            publishing = tasks.create_task(producer.publish_until(done, 0.01))
            await until(lambda: min(sink.counts().values(), default=0) > 20)
            two[0].freeze()
            before = producer.published  # and one more may be on its way
            await until(lambda: min(sink.counts().values()) > before + 50)
            two[0].thaw()
            await until(lambda: _share(two))
            done.set()
            await publishing
            await until(lambda: set(sink.counts().values()) == {producer.published})
            repeated = [
                each
                for arrivals in sink.account().values()
                for at, each in enumerate(arrivals)
                if any(other.id == each.id for other in arrivals[:at])
            ]
            # What it had begun when it stopped is sent by the other one as well, and nothing else is.
            late = [each for each in repeated if each.data[1] > before]
            assert not late, f"{len(late)} came twice although they are from behind {before}: {late[:3]}"
            print(f"{len(repeated)} sent again because a replica stood still")
            assert len(repeated) <= SHARED * IN_FLIGHT


async def test_of_several_workers_one_sends_and_another_takes_over(broker: Broker, tmp_path: Path) -> None:
    """In a file that workers share one has all endpoints; when it falls another one has them."""
    with Sink() as sink:
        async with store_at(tmp_path, "") as store:
            await add(store, [Description(sink.url(f"ok/{n}"), ("orders.#",)) for n in range(SHARED)])
        gateway = WorkersProcess(
            tmp_path,
            workers=2,
            backbone=broker.url,
            stream="workers",
            exchanges="workers:#",
            webhooks_allow="127.0.0.0/8",
        )
        async with gateway, asyncio.TaskGroup() as tasks:
            await until(lambda: sorted(_of_workers(gateway)) == [0, SHARED])
            producer = Producer(gateway.port, "p", ("orders.1",))
            done = asyncio.Event()
            publishing = tasks.create_task(producer.publish_until(done, 0.05))
            await until(lambda: min(sink.counts().values(), default=0) > 20)
            os.kill(pid_of(gateway, _of_workers(gateway).index(SHARED)), signal.SIGKILL)
            before = producer.published
            await until(lambda: min(sink.counts().values()) > before + 20)
            done.set()
            await publishing
            await until(lambda: set(sink.counts().values()) == {producer.published})


def _of_workers(gateway: GatewayProcess) -> list[float]:
    """Return how many endpoints each worker looks after."""
    text = gateway.get("/metrics")[1].decode()
    found = re.findall(r'^sluice_webhook_endpoints{worker="\d+"} (\S+)$', text, re.MULTILINE)
    return [float(each) for each in found]


# --- fairness -----------------------------------------------------------------------------------------------

DUE: Final = int(os.environ.get("SLUICE_TEST_DUE", "200000"))


async def test_nobody_waits_for_somebody_else(tmp_path: Path) -> None:
    """Beside an endpoint that hangs, one that fails and one that is far behind, all others get theirs."""
    paths = [*(f"ok/{n}" for n in range(47)), "hang/0", "fail/0"]
    with Sink() as sink:
        async with store_at(tmp_path, "") as store:
            await add(store, [Description(sink.url(path), ("orders.#",)) for path in paths])
            late = await store.add_endpoint(
                settings(Description(sink.url("late/0"), ("none",)), KEYS, message_number(1, 0))
            )
        _fall_behind(tmp_path, late.id, DUE)
        with GatewayProcess(tmp_path, webhooks_allow="127.0.0.0/8") as gateway:
            before = pss(gateway.pid)
            producer = Producer(gateway.port, "p", ("orders.1",), batch=5)
            for _ in range(100):
                await producer.publish()
            producer.close()

            def arrived() -> int:
                counts = sink.counts()
                return min(counts.get(path, 0) for path in paths[:47])

            await until(lambda: arrived() == producer.published)
            counts = sink.counts()
            print(
                f"{counts['late/0']} of {DUE} had come by then, {(pss(gateway.pid) - before) >> 20} MiB more"
            )
            assert 0 < counts["late/0"] < DUE, "it was not behind for long enough, or did not go on"
            account = sink.account()
            assert len(account["hang/0"]) <= 16
            # Once each, and by its schedule once more before the breaker opens.
            assert len(account["fail/0"]) <= 2 * producer.published
            assert pss(gateway.pid) - before < 100 << 20
            for path in (*paths[:47], "late/0"):
                ids = [each.id for each in account[path]]
                assert len(ids) == len(set(ids)), f"something came twice at {path}"


def _fall_behind(folder: Path, endpoint: int, count: int) -> None:
    """Let an endpoint have so many deliveries that are due."""
    with sqlite3.connect(folder / "webhooks.db") as connection:
        numbers = f"WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
        body = '"topic":"none","id":"x","type":"message","time":"2026-01-01T00:00:00.000Z","data":0'
        now = int(time.time() * 1000)
        connection.execute(
            f"{numbers} INSERT INTO messages SELECT i, 'none', 'x', 'message', {now}, 0, ? FROM n",
            (body.encode(),),
        )
        connection.execute(
            f"{numbers} INSERT INTO deliveries (endpoint, message, due, standing, tries, attempts) "
            f"SELECT {endpoint}, i, {now}, 0, 0, 0 FROM n"
        )
        connection.execute("UPDATE counters SET value = ? WHERE name = 'message'", (count,))
    connection.close()
