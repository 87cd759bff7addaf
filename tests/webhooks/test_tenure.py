"""Who looks after which buckets: shares, leases and their ends, on real stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.receiver import until
from webhooks.ownership import Survey
from webhooks.records import BUCKETS
from webhooks.sqlite_store import SqliteStore
from webhooks.store import Store
from webhooks.tenure import Predecessor, Sharing, Tenure, shares


@given(st.integers(1, 9), st.randoms())
def test_shares_become_even(owners: int, dice: Any) -> None:
    """Whoever looks first, after a few looks of each all buckets are held, evenly."""
    held: dict[int, set[int]] = {owner: set() for owner in range(1, owners + 1)}
    for _ in range(2):
        for owner in dice.sample(sorted(held), owners):
            wanted, surplus = shares(owner, held[owner], _survey(held))
            taken = set().union(*held.values())
            held[owner] |= {bucket for bucket in wanted if bucket not in taken}
            held[owner] -= set(surplus)
    for owner in list(held):  # what was given last may be free still
        wanted, surplus = shares(owner, held[owner], _survey(held))
        assert not surplus
        held[owner] |= set(wanted)
    sizes = [len(buckets) for buckets in held.values()]
    assert sum(sizes) == len(set().union(*held.values())) == BUCKETS
    assert max(sizes) - min(sizes) <= 1


def _survey(held: dict[int, set[int]]) -> Survey:
    return Survey(tuple(held), {bucket: owner for owner, buckets in held.items() for bucket in buckets})


@given(st.sets(st.integers(0, BUCKETS - 1)), st.integers(1, 9))
def test_nobody_takes_more_than_its_share(held: set[int], others: int) -> None:
    """What is taken is free, and with what there is no more than a share."""
    owners = tuple(range(1, others + 2))
    wanted, surplus = shares(1, held, Survey(owners, dict.fromkeys(held, 1)))
    share = -(-BUCKETS // len(owners))
    assert not held.intersection(wanted)
    assert held.issuperset(surplus)
    assert len(held) - len(surplus) + len(wanted) <= share


class Seat:
    """A tenure, and what it told."""

    def __init__(self, store: Store, sharing: Sharing, before: Predecessor) -> None:
        self.places: dict[int, int] = {}
        self.losses = 0
        self.renewals = 0
        self.tenure = Tenure(
            store,
            sharing,
            before,
            taken=self._taken,
            leaving=self._leaving,
            lost=self._lost,
            renewed=self._renewed,
        )

    async def _taken(self, places: dict[int, int]) -> None:
        self.places |= places

    async def _leaving(self, buckets: Collection[int]) -> None:
        for bucket in buckets:
            self.places.pop(bucket, None)  # all may have been lost meanwhile

    def _lost(self) -> None:
        self.losses += 1
        self.places.clear()

    def _renewed(self) -> None:
        self.renewals += 1


class Remembered:
    """Knows who was there before."""

    def __init__(self, owner: int) -> None:
        self.owner = owner

    def recall(self) -> int:
        return self.owner

    def remember(self, owner: int) -> None:
        self.owner = owner


@asynccontextmanager
async def seats(store: Store, *made: Callable[[], Seat]) -> AsyncIterator[list[Seat]]:
    """Run tenures on a store."""
    async with asyncio.TaskGroup() as tasks:
        found = []
        running = []
        for make in made:
            seat = make()
            found.append(seat)
            running.append(tasks.create_task(seat.tenure.run(tasks)))
            await until(lambda seat=seat: bool(seat.renewals), "no lease")  # type: ignore[misc]
        try:
            yield found
        finally:
            for task in running:
                task.cancel()


@asynccontextmanager
async def opened() -> AsyncIterator[Store]:
    store = SqliteStore(None)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def test_alone_it_has_all_at_once() -> None:
    """On a store of its own, whoever died before is of no concern."""
    async with opened() as store:
        dead = await store.join(1_000_000)
        await store.hold(dead, range(BUCKETS), 1_000_000)
        async with seats(store, lambda: Seat(store, Sharing.ALONE, Remembered(0))) as (seat,):
            await until(lambda: len(seat.places) == BUCKETS, "it has not all")
            assert seat.tenure.holds()


async def test_a_restart_goes_on_at_once() -> None:
    """Who knows who it was does not wait for its own lease to end."""
    async with opened() as store:
        dead = await store.join(1_000_000)
        await store.hold(dead, range(BUCKETS), 1_000_000)
        before = Remembered(dead)
        async with seats(store, lambda: Seat(store, Sharing.STANDBY, before)) as (seat,):
            await until(lambda: len(seat.places) == BUCKETS, "it has not all")
            assert before.owner == seat.tenure.owner != dead


@pytest.mark.integration
async def test_who_stands_by_takes_over() -> None:
    """The first has all; when it leaves, the other one has."""
    async with opened() as store:

        def make() -> Seat:
            return Seat(store, Sharing.STANDBY, Remembered(0))

        async with seats(store, make, make) as (first, second):
            await until(lambda: len(first.places) == BUCKETS, "it has not all")
            assert not second.places
            await store.leave(first.tenure.owner)
            await until(lambda: len(first.places) + len(second.places) == BUCKETS and first.losses == 1, "")


@pytest.mark.integration
async def test_evenly_each_has_its_share() -> None:
    """The first gives half of its buckets to the second; when one is fenced it begins again."""
    async with opened() as store:

        def make() -> Seat:
            return Seat(store, Sharing.EVEN, Remembered(0))

        async with seats(store, make, make) as (first, second):
            half = BUCKETS // 2
            await until(lambda: len(first.places) == len(second.places) == half, "they do not share")
            assert not first.places.keys() & second.places.keys()
            await store.leave(second.tenure.owner)
            await until(lambda: bool(second.losses), "it did not notice")
            await until(lambda: len(first.places) == len(second.places) == half, "they do not share again")


class Late(SqliteStore):
    """A store whose answers about buckets are late."""

    async def hold(self, owner: int, wanted: Collection[int], lease_ms: int) -> dict[int, int]:
        found = await super().hold(owner, wanted, lease_ms)
        await asyncio.sleep(0.01)
        return found


@pytest.mark.integration
async def test_nobody_has_what_another_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late an answer is, a bucket that was given away is not taken for one's own."""
    monkeypatch.setattr("webhooks.tenure.RENEW_SECONDS", 0.005)
    store = Late(None)
    await store.start()
    made: list[Seat] = []
    conflicts: list[dict[int, int]] = []
    ousted: list[Seat] = []  # who was, and does not know it yet: others may have its buckets

    class Watched(Seat):
        async def _taken(self, places: dict[int, int]) -> None:
            conflicts.extend(
                each.places
                for each in made
                if each is not self and each not in ousted and each.places.keys() & places.keys()
            )
            await super()._taken(places)

        async def _leaving(self, buckets: Collection[int]) -> None:
            await asyncio.sleep(0.008)  # until an answer is on its way
            await super()._leaving(buckets)

    def make() -> Seat:
        made.append(Watched(store, Sharing.EVEN, Remembered(0)))
        return made[-1]

    try:
        async with seats(store, make, make, make) as found:
            for _ in range(5):
                await until(
                    lambda: sorted(len(seat.places) for seat in found) == [21, 21, 22], "they do not share"
                )
                ousted.append(found[0])
                losses = found[0].losses
                await store.leave(found[0].tenure.owner)
                await until(lambda: found[0].losses > losses, "it did not notice")  # noqa: B023  (called here)
                ousted.clear()
        assert not conflicts
    finally:
        await store.close()
