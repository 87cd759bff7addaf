"""Webhooks when something else is in trouble: the store away or full, links of the chain that fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.app import Gateway
from gateway.log import LogUnavailable, StoreUnavailable
from tests.support.hooks import added, got, hooks, numbers, published, running, stand
from tests.support.postgres import Postgres
from tests.support.receiver import OK, Peer, always, receiver, silent, until
from webhooks.asking import Operation
from webhooks.logbook import Logbook
from webhooks.records import LOG_BITS, Standing, Task, message_number
from webhooks.sqlite_store import SqliteStore

pytestmark = pytest.mark.integration

DELIVERED, PENDING, FAILED = Standing.DELIVERED, Standing.PENDING, Standing.FAILED


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres({"fsync": "off"}) as one:
        yield one


async def test_in_postgres_it_is_the_same(server: Postgres, tmp_path: Path) -> None:
    """With a store in PostgreSQL events arrive, are tried again, and survive a restart."""
    stuck = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if json.loads(request.body)["data"] % 2 and not stuck.is_set():
                await peer.gone()
                return
            await peer.send(OK)

    url = server.make()
    async with receiver(script) as found:
        async with running(tmp_path, store=url) as gateway:
            endpoint = await added(gateway, found.url)
            for number in range(10):
                await published(gateway, "a", number)
            await got(found, 10)
        stuck.set()
        async with running(tmp_path, store=url) as gateway:
            await stand(gateway, endpoint, *[DELIVERED] * 10)
            store = hooks(gateway).store
            await store.repeat(endpoint.id, [message_number(1, 1)])
            await store.add_job(endpoint.id, Task.RECOVER, 0, message_number(1, 10))
            hooks(gateway).look()
            await until(lambda: numbers(found).count(0) == 2, "it was not repeated")
        assert [numbers(found).count(number) for number in range(1, 10)] == [2, 1, 2, 1, 2, 1, 2, 1, 2]


async def test_another_gateway_with_its_own_log_is_told(server: Postgres, tmp_path: Path) -> None:
    """Two logs cannot share a store's webhooks: the second gateway says so, and is not ready."""
    url = server.make()
    async with running(tmp_path / "a", store=url) as first:
        await until(lambda: not first.not_ready(), "the first is not ready")
        async with running(tmp_path / "b", store=url) as second:
            await until(
                lambda: any("another gateway" in each for each in second.not_ready()), "it does not say so"
            )


async def test_a_store_that_is_away_is_waited_for(server: Postgres, tmp_path: Path) -> None:
    """Publishing goes on, readiness says what is wrong, and everything is sent when the store is back."""
    url = server.make()
    async with receiver(always) as found, running(tmp_path, store=url) as gateway:
        endpoint = await added(gateway, found.url)
        await published(gateway, "a", 0)
        await stand(gateway, endpoint, DELIVERED)
        await asyncio.to_thread(server.kill)
        for number in range(1, 20):
            await published(gateway, "a", number)
        await until(lambda: bool(gateway.not_ready()), "it says it is ready")
        assert numbers(found) == [0]
        await asyncio.to_thread(server.start)
        await until(lambda: not gateway.not_ready(), "it does not become ready")
        await stand(gateway, endpoint, *[DELIVERED] * 20)
        assert sorted(numbers(found)) == list(range(20))


class Failing(SqliteStore):
    """A store that may not grow now and then; or of which it is not known whether a commit happened."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(path)
        self.doubtful = False

    async def limit(self, pages: int) -> None:
        """Let SQLite say that the disk is full when it has so many pages, and not fewer than now."""
        assert self._file is not None
        connection = self._file.connection
        await self._worker.call(lambda: connection.execute(f"PRAGMA max_page_count = {pages}").fetchall())

    async def _write(self, operation: Operation[Any]) -> Any:
        found = await super()._write(operation)
        if self.doubtful:
            raise StoreUnavailable("there was no answer", 1)
        return found


@asynccontextmanager
async def failing() -> AsyncIterator[tuple[Gateway, Failing]]:
    """Run a gateway with such a store."""
    async with running() as other:  # its parts are used, with another store
        store = Failing(None)
        webhooks = hooks(other)
        await webhooks.close()
        again = type(webhooks)(store, webhooks._source, webhooks._publish, webhooks.guard)
        other.webhooks = again
        await again.start()
        await until(lambda: again.ready is None, "it is not ready")
        yield other, store


async def test_a_full_store_loses_nothing() -> None:
    """While nothing can be written nothing is begun; what was on its way is written down afterwards, once."""
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await gate.wait()
            await peer.send(OK)

    async with receiver(script) as found, failing() as (gateway, store):
        endpoint = await added(gateway, found.url, in_flight=5)
        for number in range(10):
            await published(gateway, "a", number)
        await got(found, 5)
        await store.limit(1)
        gate.set()
        for number in range(10, 20):
            await published(gateway, "a", number, padding=100_000)
        await until(lambda: "full" in (hooks(gateway).ready or ""), "it says that all is well")
        await store.limit(1 << 30)
        await stand(gateway, endpoint, *[DELIVERED] * 20)
        assert sorted(numbers(found)) == list(range(20))


async def test_a_commit_in_doubt_is_looked_at() -> None:
    """If it is not known whether rows were stored, they are neither made twice nor forgotten."""
    async with receiver(always) as found, failing() as (gateway, store):
        endpoint = await added(gateway, found.url)
        await published(gateway, "a", 0)
        await stand(gateway, endpoint, DELIVERED)
        store.doubtful = True
        for number in range(1, 10):
            await published(gateway, "a", number)
        await until(lambda: hooks(gateway).ready is not None, "nobody noticed")
        store.doubtful = False
        await stand(gateway, endpoint, *[DELIVERED] * 10)
        assert sorted(set(numbers(found))) == list(range(10))


async def test_what_cannot_be_announced_is_written_down_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While nothing can be published an outcome waits for a moment, not for ever."""
    monkeypatch.setattr("webhooks.announcing.WAIT_SECONDS", 0.01)

    async def refuse(_: object) -> None:
        raise LogUnavailable("the log is full", 1)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")

    async with receiver(script) as found, running() as gateway:
        parts = hooks(gateway)._parts
        assert parts is not None
        monkeypatch.setattr(parts.announcing, "_publish", refuse)
        endpoint = await added(gateway, found.url, schedule=())
        await published(gateway, "a", 1)
        await stand(gateway, endpoint, FAILED)
        assert hooks(gateway).counters.unannounced == 1


async def test_an_end_does_not_wait_for_a_receiver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not end in time is given up, without an outcome."""
    monkeypatch.setattr("webhooks.service.FINISH_SECONDS", 0.1)
    async with receiver(silent) as found:
        async with running() as gateway:
            await added(gateway, found.url)
            await published(gateway, "a", 1)
            await got(found, 1)
        assert not hooks(gateway).counters.attempts


async def test_old_deliveries_are_forgotten(tmp_path: Path) -> None:
    """Retention takes messages with all that belongs to them."""
    async with receiver(always) as found, running(tmp_path, webhooks_retention_seconds=0.2) as gateway:
        endpoint = await added(gateway, found.url)
        await published(gateway, "a", 1)
        await got(found, 1)
        store = hooks(gateway).store
        for _ in range(2000):
            if not await store.list_deliveries(endpoint.id):
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("it is still there")


async def test_what_is_pending_is_counted(server: Postgres, tmp_path: Path) -> None:
    """In both stores, up to a bound."""
    for settings in ({}, {"store": server.make()}):
        async with receiver(silent) as found, running(None, **settings) as gateway:
            await until(lambda gateway=gateway: not gateway.not_ready(), "it is not ready")  # type: ignore[misc]
            endpoint = await added(gateway, found.url, in_flight=1)
            for number in range(5):
                await published(gateway, "a", number)
            await stand(gateway, endpoint, *[PENDING] * 5)
            store = hooks(gateway).store
            assert await store.count_pending([endpoint.bucket], 100) == 5
            assert await store.count_pending([endpoint.bucket], 3) == 3
            assert await store.count_pending([endpoint.bucket + 1], 100) == 0


async def test_the_logbook_numbers_logs() -> None:
    """A log keeps its number; one that lost its end, or comes back behind another, gets a new one."""
    store = SqliteStore(None)
    await store.start()
    try:
        book = Logbook(store)
        assert await book.number("aaaaaa") == 1
        assert await book.number("bbbbbb") == 2
        assert await book.number("aaaaaa", seen=1) == 1
        assert await book.epoch(2) == "bbbbbb"
        assert await book.epoch(0) is None
        assert await book.replace("aaaaaa", 1) == 3
        assert await book.number("aaaaaa") == 3
        assert await Logbook(store).number("aaaaaa") == 3
        assert await Logbook(store).replace("aaaaaa", 1) == 3  # whoever else notices
        assert await book.number("bbbbbb", seen=3) == 4
        assert await Logbook(store).epoch(4) == "bbbbbb"
        assert message_number(4, 0) == 4 << LOG_BITS
    finally:
        await store.close()
