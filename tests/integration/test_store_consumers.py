"""Cursors of durable subscriptions in the store: the same for all replicas, bounded, and durable."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from gateway.consumers import ConsumersFull
from gateway.log import StoreUnavailable
from tests.support.postgres import Postgres
from tests.support.quick import quickest
from tests.support.stores import consumers

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as one:
        yield one


@pytest.fixture
def url(server: Postgres) -> str:
    """The address of a new, empty database."""
    return server.make()


async def test_what_one_replica_remembers_another_recalls(url: str) -> None:
    """Names of every kind keep their latest cursor, on every replica and over a restart."""
    names = ["plain", "with space", 'quote"', "back\\slash", "é€😀", "$1", "'", ",", "", "{}", "NULL"]
    async with consumers(url) as one, consumers(url) as two:
        await asyncio.gather(*[one.remember(name, f"c{index}") for index, name in enumerate(names)])
        await two.remember("plain", "newer")
        expected = ["newer", *[f"c{index}" for index in range(1, len(names))]]
        for each in (one, two):
            assert [await each.recall(name) for name in names] == expected
        assert await one.recall("unknown") is None
    async with consumers(url) as three:
        assert await asyncio.gather(*(three.recall(name) for name in names)) == expected


async def test_acknowledgements_are_merged(url: str) -> None:
    """Of acknowledgements that are ready together the latest of each name is stored, in one commit."""
    async with consumers(url) as one:
        await asyncio.gather(*[one.remember("ab"[index % 2], str(index)) for index in range(1000)])
        assert one.statistics().commits == 1
        assert await one.recall("a") == "998"
        assert await one.recall("b") == "999"
        assert one.statistics().commit_seconds > 0


async def test_a_cursor_on_its_way_is_recalled(url: str) -> None:
    """What was acknowledged here is known here at once."""
    async with consumers(url) as one:
        first = one.remember("a", "1")
        assert await one.recall("a") == "1"
        second = one.remember("a", "2")
        assert await one.recall("a") == "2"
        await asyncio.gather(first, second)


async def test_the_bound_holds_for_all_replicas_together(url: str) -> None:
    """Replicas that add names at the same time add as many as there is room for; known names go on."""
    async with (
        consumers(url, max_consumers=50) as one,
        consumers(url, max_consumers=50) as two,
        consumers(url, max_consumers=50) as three,
    ):
        replicas = (one, two, three)
        outcomes: list[object] = []
        for round_ in range(10):
            outcomes += await asyncio.gather(
                *(
                    each.remember(f"{number}-{round_}-{index}", "1")
                    for number, each in enumerate(replicas)
                    for index in range(3)
                ),
                *(each.remember("shared", str(round_)) for each in replicas),
                return_exceptions=True,
            )
        refused = [outcome for outcome in outcomes if outcome is not None]
        assert {type(outcome) for outcome in refused} == {ConsumersFull}
        assert len(refused) == 10 * 9 + 1 - 50
        assert await three.recall("shared") == "9"
        await one.remember("shared", "10")
        with pytest.raises(ConsumersFull, match="there are 50 durable subscriptions already"):
            await two.remember("new", "1")
        assert await two.recall("new") is None


async def test_replicas_with_the_same_names_do_not_block_each_other(url: str) -> None:
    """Two replicas that store the same names in opposite orders, again and again, never fail each other."""
    names = [f"name-{index}" for index in range(300)]
    async with consumers(url) as one, consumers(url) as two:
        for round_ in range(20):
            await asyncio.gather(
                *(one.remember(name, f"one-{round_}") for name in names),
                *(two.remember(name, f"two-{round_}") for name in reversed(names)),
            )
        found = {await one.recall(name) for name in names}
        assert found <= {"one-19", "two-19"}
        assert one.statistics().failures == two.statistics().failures == 0


async def test_nothing_that_was_answered_is_lost_in_a_crash(server: Postgres, url: str) -> None:
    """The database is killed under load: what was said to be durable is there, the rest failed clearly."""
    durable: dict[str, int] = {}
    async with consumers(url) as one:

        async def acknowledge(name: str) -> int:
            failures = 0
            for number in range(100):
                try:
                    await one.remember(name, str(number))
                    durable[name] = number
                except StoreUnavailable:
                    failures += 1
                await asyncio.sleep(0.01)
            return failures

        working = [asyncio.ensure_future(acknowledge(f"n{index}")) for index in range(20)]
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        failures = await asyncio.gather(*working)
        assert sum(failures) > 0
        assert one.statistics().failures > 0
    async with consumers(url) as two:
        for name, number in durable.items():
            assert int(await two.recall(name) or -1) >= number


async def test_a_store_that_is_away_fails_at_once_and_comes_back(server: Postgres, url: str) -> None:
    """While the database is away remembering and recalling fail with a time to wait, and work afterwards."""
    async with consumers(url) as one:
        await one.remember("a", "1")
        await asyncio.to_thread(server.stop)
        with pytest.raises(StoreUnavailable):
            await one.remember("a", "2")

        async def refused() -> None:
            for work in (one.remember("a", "3"), one.recall("a"), one.recall("b")):
                with pytest.raises(StoreUnavailable, match="the store at") as caught:
                    await work
                assert caught.value.retry_after > 0

        assert await quickest(refused) < 1
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(20):
            while True:
                try:
                    await one.remember("b", "1")
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
        assert await one.recall("a") == "1"


async def test_a_closed_store_takes_nothing(url: str) -> None:
    """What was given before the end is stored; nothing is taken afterwards."""
    async with consumers(url) as one:
        waiting = one.remember("a", "1")
        await asyncio.gather(one.close(), one.close())
        assert waiting.done()
        with pytest.raises(StoreUnavailable, match="the store is closed"):
            await one.remember("a", "2")
        with pytest.raises(StoreUnavailable, match="the store is closed"):
            await one.recall("a")
    async with consumers(url) as two:
        assert await two.recall("a") == "1"
