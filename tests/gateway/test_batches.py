"""Batches: what is asked for while one is under way is the next one, and everybody hears the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from gateway import batches
from gateway.batches import Batches


class Store:
    """Deals with a batch when it is told to."""

    def __init__(self) -> None:
        self.batches: list[dict[str, int]] = []
        self.outcomes: list[asyncio.Future[Mapping[str, str | Exception]]] = []
        self._begun = asyncio.Condition()

    async def __call__(self, values: dict[str, int]) -> Mapping[str, str | Exception]:
        self.batches.append(dict(values))
        self.outcomes.append(asyncio.get_running_loop().create_future())
        async with self._begun:
            self._begun.notify_all()
        return await self.outcomes[len(self.batches) - 1]

    async def until(self, count: int) -> None:
        """Wait until so many batches were begun."""
        async with asyncio.timeout(5), self._begun:
            await self._begun.wait_for(lambda: len(self.batches) >= count)


@pytest.fixture
def store() -> Store:
    return Store()


async def test_who_is_ready_together_shares_a_batch(store: Store) -> None:
    """Of one key the last value counts, and all who gave one hear its outcome."""
    queue = Batches(store)
    first, second, other = queue.give("a", 1), queue.give("a", 2), queue.give("b", 3)
    await store.until(1)
    assert store.batches == [{"a": 2, "b": 3}]
    store.outcomes[0].set_result({"a": "done"})
    assert [await first, await second, await other] == ["done", "done", None]
    assert (queue.done, queue.failures) == (1, 0)


async def test_what_comes_meanwhile_is_the_next_batch(store: Store) -> None:
    """A batch under way takes nothing more; the last value that is not dealt with is known."""
    queue = Batches(store)
    first = queue.give("a", 1)
    await store.until(1)
    second = queue.give("a", 2)
    assert queue.pending("a") == 2
    store.outcomes[0].set_result({})
    await first
    assert not second.done()
    assert queue.pending("a") == 2
    await store.until(2)
    assert store.batches == [{"a": 1}, {"a": 2}]
    store.outcomes[1].set_result({})
    await second
    assert queue.pending("a") is None


async def test_a_failure_is_told_to_all_of_its_batch(store: Store) -> None:
    """What the store raises reaches everybody of that batch and nobody else; the next one is tried."""
    queue = Batches(store)
    failing = [queue.give("a", 1), queue.give("b", 1)]
    await store.until(1)
    later = queue.give("c", 1)
    store.outcomes[0].set_exception(ValueError("no"))
    assert [str(each) for each in await asyncio.gather(*failing, return_exceptions=True)] == ["no", "no"]
    await store.until(2)
    store.outcomes[1].set_result({"c": "fine"})
    assert await later == "fine"
    assert (queue.done, queue.failures) == (1, 1)


async def test_an_outcome_may_be_a_refusal(store: Store) -> None:
    """An exception among the outcomes is raised to who waits for that key alone."""
    queue = Batches(store)
    good, bad = queue.give("good", 1), queue.give("bad", 1)
    await store.until(1)
    store.outcomes[0].set_result({"good": "yes", "bad": KeyError("full")})
    assert await good == "yes"
    with pytest.raises(KeyError, match="full"):
        await bad


async def test_who_gives_up_disturbs_nobody(store: Store) -> None:
    """A caller that is cancelled while it waits costs nobody else an outcome, nor the store its work."""
    queue = Batches(store)
    first, second = queue.give("a", 1), queue.give("a", 2)
    await store.until(1)
    first.cancel()
    store.outcomes[0].set_result({"a": "done"})
    assert await second == "done"


async def test_a_batch_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowd is dealt with in parts, in the order in which it came."""
    monkeypatch.setattr(batches, "MOST", 2)
    queue = Batches(store)
    all_of_them = asyncio.gather(*(queue.give(key, 1) for key in "abcde"))
    for number in range(3):
        await store.until(number + 1)
        store.outcomes[number].set_result({})
    await all_of_them
    assert ["".join(batch) for batch in store.batches] == ["ab", "cd", "e"]


async def test_the_end_waits_for_all(store: Store) -> None:
    """`finished` returns once everything that was given is dealt with, and at once when nothing was."""
    queue = Batches(store)
    await queue.finished()
    given = queue.give("a", 1)
    ending = asyncio.ensure_future(queue.finished())
    await store.until(1)
    assert not ending.done()
    store.outcomes[0].set_result({})
    await ending
    assert given.done()
