"""
The rows about webhooks: what it costs to send them, and whether one endpoint can be in the way of others.

Method, as in `bench.rows` but for this: beside the load client, the other core has a receiver in C
(`catch.c`), and PostgreSQL where that is the store. Events are published over HTTP by the load client and
written to the log; each becomes a durable delivery for every endpoint, is signed and sent, and what came of
it is durable as well before the round ends. All of that is in the figure, divided by the deliveries. A round
that lacks one delivery gives no figure.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.children import Catch, Caught, Load
from bench.lab import Lab
from bench.rows import Row
from bench.table import Result
from gateway.postgres.address import Address
from gateway.postgres.database import Database
from webhooks.description import Description
from webhooks.keys import Keys
from webhooks.postgres_store import PART, PostgresStore
from webhooks.records import message_number
from webhooks.signature import Scheme
from webhooks.sqlite_store import SqliteStore
from webhooks.store import Store
from webhooks.stored import settings

TOPIC = "bench"
SETTLE = 0.3
"""Seconds after the last delivery in which its outcome is written down."""
SECONDS = 60
HANGING, FAILING = 4000, 4032  # see catch.c


@dataclass(frozen=True, slots=True)
class Round:
    """What one round found."""

    caught: Caught
    deliveries: int
    cpu: float
    seconds: float

    @property
    def per_cpu(self) -> float:
        return self.deliveries / self.cpu

    @property
    def per_second(self) -> float:
        return self.deliveries / self.seconds


async def _fill(folder: Path, url: str, targets: Sequence[tuple[str, str]]) -> list[int]:
    """Add endpoints, each a URL and a pattern, to a store that nobody has open; return their ids."""
    if not url:
        store = SqliteStore(folder)
        await store.start()
        try:
            return await _add(store, targets)
        finally:
            await store.close()
    database = Database(Address.parse(url), [PART])
    await database.start()
    try:
        return await _add(PostgresStore(database), targets)
    finally:
        await database.close()


async def _add(store: Store, targets: Sequence[tuple[str, str]]) -> list[int]:
    keys = Keys().completed([Scheme.V1], 0)
    since = message_number(1, 0)  # the beginning of the first log
    ids = []
    for url, pattern in targets:
        description = Description(url, (pattern,), in_flight=64 if len(targets) == 1 else 16)
        ids.append((await store.add_endpoint(settings(description, keys, since))).id)
    return ids


def start(lab: Lab, endpoints: int, store: str = "") -> tuple[Load, Catch]:
    """Start a gateway whose endpoints all get the topic of the bench."""
    catch = lab.catch()
    targets = [(catch.url(number), TOPIC) for number in range(endpoints)]
    more = ("--store", store) if store else ()

    def prepare(folder: Path) -> None:
        asyncio.run(_fill(folder, store, targets))

    return lab.load(lab.gateway("--webhooks-allow", "127.0.0.0/8", *more, prepare=prepare)), catch


def once(load: Load, catch: Catch, endpoints: int, events: int, array: int, k: int) -> Round:
    """Publish so many events, and see all deliveries arrive."""
    catch.reset()
    before, began = load.server.cpu_seconds(), time.monotonic()
    load.publish(array=array, k=k, lead=k * array, count=events // array, topic=TOPIC)
    accepted = load.halt(finish=True, timeout=SECONDS).accepted
    caught = catch.all(accepted * endpoints, SECONDS)
    seconds = time.monotonic() - began
    time.sleep(SETTLE)
    return Round(caught, accepted * endpoints, load.server.cpu_seconds() - before, seconds)


def rounds(
    lab: Lab, load: Load, catch: Catch, endpoints: int, events: int, array: int, k: int
) -> list[Round]:
    """Measure several rounds, after a warm-up."""
    once(load, catch, endpoints, max(events // 5, array), array, k)
    return [once(load, catch, endpoints, events, array, k) for _ in range(lab.rounds)]


def note(found: Sequence[Round]) -> str:
    """Say what a reader should know of some rounds."""
    again = sum(each.caught.requests - each.caught.different for each in found)
    return (
        f"{median(each.cpu / each.deliveries * 1e6 for each in found):.0f} µs of CPU and "
        f"{median(each.per_second for each in found):,.0f}/s, p99 from publish to receiver "
        f"{median(each.caught.p99 for each in found) / 1e6:.0f} ms, {again} sent twice"
    )


def many(lab: Lab, row: str, store: str, target: float) -> list[Result]:
    """Ten endpoints for each event, by the CPU that a delivery costs."""
    load, catch = start(lab, 10, lab.database() if store else "")
    found = rounds(lab, load, catch, 10, lab.scaled(2500), 10, 2)
    figure = median(each.per_cpu for each in found)
    what = f"webhooks per second of CPU, 10 endpoints an event, {store or 'SQLite'}"
    return [
        Result(row, what, figure, "/s", None, "", None, f"≥ {target:,.0f} /s", figure >= target, note(found))
    ]


def single(lab: Lab, row: str) -> list[Result]:
    """One endpoint, and events one by one over 16 connections."""
    load, catch = start(lab, 1)
    found = rounds(lab, load, catch, 1, lab.scaled(10_000), 1, 16)
    figure = median(each.per_second for each in found)
    what = "webhooks per second, 1 endpoint, published singly over 16 connections, SQLite"
    return [Result(row, what, figure, "/s", None, "", None, "≥ 3,000 /s", figure >= 3000, note(found))]


DUE = 200_000
OTHERS = 47


def fair(lab: Lab, row: str) -> list[Result]:
    """The others' latency beside an endpoint that hangs, one that fails, and one that is far behind."""
    alone, beside = _crowd(lab, trouble=False), _crowd(lab, trouble=True)
    quiet: list[Caught] = []
    loud: list[Caught] = []
    for _ in range(lab.rounds):
        for (load, catch), found in ((alone, quiet), (beside, loud)):
            found.append(_paced(load, catch, lab.scaled(250)))
    figure, base = (median(each.p99 for each in found) / 1e6 for found in (loud, quiet))
    what, ratio = f"p99 of {OTHERS} endpoints beside three in trouble", figure / base
    middles = [median(each.p50 for each in found) / 1e6 for found in (loud, quiet)]
    about = f"p50 {middles[0]:.1f} ms, without them {middles[1]:.1f} ms"
    return [Result(row, what, figure, "ms", base, "without them", ratio, "≤ 1.1 x", ratio <= 1.1, about)]


def _crowd(lab: Lab, *, trouble: bool) -> tuple[Load, Catch]:
    catch = lab.catch()
    targets = [(catch.url(number), TOPIC) for number in range(OTHERS)]
    if trouble:
        targets += [(catch.url(HANGING), TOPIC), (catch.url(FAILING), TOPIC), (catch.url(OTHERS), "none")]

    def prepare(folder: Path) -> None:
        ids = asyncio.run(_fill(folder, "", targets))
        if trouble:
            fall_behind(folder, ids[-1], DUE)

    return lab.load(lab.gateway("--webhooks-allow", "127.0.0.0/8", prepare=prepare)), catch


def _paced(load: Load, catch: Catch, count: int) -> Caught:
    """Publish fifty events a second and return what came of them."""
    catch.reset()
    load.publish(rate=50, array=1, count=count, topic=TOPIC)
    load.halt(finish=True, timeout=SECONDS)
    time.sleep(SETTLE)
    return catch.report()


def fall_behind(folder: Path, endpoint: int, count: int) -> None:
    """Let an endpoint in a folder's store have so many deliveries that are due."""
    numbers = f"WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
    body = b'"topic":"none","id":"x","type":"message","time":"2026-01-01T00:00:00.000Z","data":0'
    now = int(time.time() * 1000)
    connection = sqlite3.connect(folder / "webhooks.db")
    with connection:
        connection.execute(
            f"{numbers} INSERT INTO messages SELECT i, 'none', 'x', 'message', {now}, 0, ? FROM n", (body,)
        )
        connection.execute(
            f"{numbers} INSERT INTO deliveries (endpoint, message, due, standing, tries, attempts) "
            f"SELECT {endpoint}, i, {now}, 0, 0, 0 FROM n"
        )
        connection.execute("UPDATE counters SET value = ? WHERE name = 'message'", (count,))
    connection.close()


ROWS = (
    Row("webhooks", 25, lambda lab, row: many(lab, row, "", 8000), beside_floor=False),
    Row("webhooks-singles", 20, single, beside_floor=False),
    Row("webhooks-postgres", 30, lambda lab, row: many(lab, row, "PostgreSQL", 4500), beside_floor=False),
    Row("webhooks-fair", 40, fair, beside_floor=False),
)
