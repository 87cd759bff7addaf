"""The memory of ids: what is a duplicate, for how long, and on whose outcome it depends."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from fanout.event import Event
from gateway.dedup import Dedup
from gateway.log import LogUnavailable


def event(id: str | None, time: int = 0) -> Event:
    return Event("a", b"", time, 0, given_id=id)


def ids(events: list[Event]) -> list[str | None]:
    return [event.given_id for event in events]


async def stored(dedup: Dedup, *events: Event, now: int = 0) -> list[str | None]:
    """Sift and store events as the intake does; return the ids that were no duplicates."""
    fresh, _ = dedup.sift(events, now)
    outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    dedup.pend(fresh, outcome)
    outcome.set_result(None)
    await asyncio.sleep(0)  # the callbacks of a future run in the loop's next turn
    return ids(fresh)


def test_what_is_known_can_be_forgotten() -> None:
    """Once the log has lost its events their ids are new again."""
    dedup = Dedup(300, 1000)
    dedup.restore([event("a", 0)])
    dedup.clear()
    assert not len(dedup)


async def test_an_id_is_a_duplicate_until_its_window_ends() -> None:
    """An id counts as published for the window after its event's time, and is new again at the end of it."""
    dedup = Dedup(5, 10)
    assert await stored(dedup, event("x", 1_000), now=1_000) == ["x"]
    assert await stored(dedup, event("x", 5_999), now=5_999) == []
    assert await stored(dedup, event("x", 6_000), now=6_000) == ["x"]


async def test_an_event_without_an_id_is_never_a_duplicate() -> None:
    """Only an id that the producer chose makes publishing idempotent, and only those cost memory."""
    dedup = Dedup(5, 10)
    assert await stored(dedup, event(None), event(None)) == [None, None]
    assert len(dedup) == 0


async def test_an_id_twice_in_one_call_is_stored_once() -> None:
    """Within one call the first of several events with one id wins."""
    dedup = Dedup(5, 10)
    assert await stored(dedup, event("x"), event("y"), event("x")) == ["x", "y"]


@pytest.mark.parametrize("dedup", [Dedup(0, 10), Dedup(5, 0)])
async def test_it_can_be_switched_off(dedup: Dedup) -> None:
    """Without a window or room nothing is a duplicate and nothing is remembered."""
    assert await stored(dedup, event("x"), event("x")) == ["x", "x"]
    assert await stored(dedup, event("x")) == ["x"]
    dedup.restore([event("x")])
    assert len(dedup) == 0


async def test_the_oldest_ids_go_when_there_are_too_many() -> None:
    """Memory is bounded by a count: beyond it the oldest ids are forgotten early, and that is counted."""
    dedup = Dedup(5, 3)
    await stored(dedup, *(event(id) for id in "abcde"))
    assert (len(dedup), dedup.forgotten) == (3, 2)
    assert await stored(dedup, *(event(id) for id in "cdeab")) == ["a", "b"]


async def test_ids_leave_memory_with_their_window() -> None:
    """However long it runs, no more than the window and a part of it is remembered."""
    dedup = Dedup(0.8, 1_000)
    for now in range(0, 10_000, 10):
        assert await stored(dedup, event(f"{now}", now), now=now) == [f"{now}"]
        assert len(dedup) <= 80 + 10
        assert dedup.sift([event(f"{max(now - 790, 0)}")], now)[0] == []
    assert dedup.forgotten == 0


async def test_many_ids_in_few_calls_are_bounded_too() -> None:
    """The bound holds for large calls and keeps the newest of them, about an eighth less than the most."""
    dedup = Dedup(5, 80)
    for call in range(5):
        await stored(dedup, *(event(f"{call}-{number}") for number in range(37)))
        assert len(dedup) <= 80
    fresh, _ = dedup.sift([event(f"4-{number}") for number in range(37)], 0)
    assert fresh == []
    assert len(dedup) > 60


async def test_ids_are_restored_from_the_log() -> None:
    """After a restart the ids of the log's last events are known, each until its own window ends."""
    dedup = Dedup(5, 10)
    dedup.restore([event("old", 1_000), event(None, 2_000), event("new", 3_000), event("new", 3_500)])
    assert await stored(dedup, event("old"), event("new"), now=6_000) == ["old"]


async def test_a_duplicate_of_a_pending_event_waits_for_the_same_outcome() -> None:
    """While the original is on its way, a duplicate is given the original's future to wait for."""
    dedup = Dedup(5, 10)
    outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    dedup.pend([event("x"), event("y"), event(None)], outcome)
    fresh, originals = dedup.sift([event("x"), event("y"), event("z")], 0)
    assert ids(fresh) == ["z"]
    assert originals == {outcome}
    outcome.set_result(None)
    assert dedup.sift([event("x")], 0) == ([], {outcome})  # done, though its callback has not run yet
    await asyncio.sleep(0)
    assert dedup.sift([event("x")], 0) == ([], set())


@pytest.mark.parametrize("cancelled", [False, True])
async def test_the_ids_of_a_failed_append_are_taken_back(cancelled: bool) -> None:
    """What was not stored can be published again, at once, and the late callback does not harm the retry."""
    dedup = Dedup(5, 10)
    loop = asyncio.get_running_loop()
    first: asyncio.Future[None] = loop.create_future()
    second: asyncio.Future[None] = loop.create_future()
    dedup.pend([event("x"), event("y")], first)
    if cancelled:
        first.cancel()
    else:
        first.set_exception(LogUnavailable("disk full", 1))
    assert ids(dedup.sift([event("x")], 0)[0]) == ["x"]  # before the callback of the failure has run
    dedup.pend([event("x")], second)
    await asyncio.sleep(0)
    assert dedup.sift([event("x")], 0) == ([], {second})
    assert ids(dedup.sift([event("y")], 0)[0]) == ["y"]
    assert len(dedup) == 1


class DedupMachine(RuleBasedStateMachine):
    """It agrees with the plainest model, a list of (id, end), whatever is published, fails or takes time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.dedup = Dedup(0.01, 4)
        self.known: list[tuple[str, int]] = []
        self.pending: list[tuple[list[str], asyncio.Future[None], int]] = []
        self.now = 0

    @rule(names=st.lists(st.sampled_from("abcdefg"), max_size=4), milliseconds=st.integers(0, 6))
    def publish(self, names: list[str], milliseconds: int) -> None:
        self.now += milliseconds
        self.known = [(id, end) for id, end in self.known if end > self.now]
        taken = {id for id, _ in self.known} | {id for ids, _, _ in self.pending for id in ids}
        expected = [id for id in dict.fromkeys(names) if id not in taken]
        fresh, originals = self.dedup.sift([event(id, self.now) for id in names], self.now)
        assert ids(fresh) == expected
        assert originals == {future for ids, future, _ in self.pending if set(ids) & set(names)}
        future: asyncio.Future[None] = self.loop.create_future()
        self.dedup.pend(fresh, future)
        self.pending.append((expected, future, self.now))

    @rule(failed=st.booleans())
    def settle(self, failed: bool) -> None:
        if not self.pending:
            return
        names, future, time = self.pending.pop(0)
        if failed:
            future.set_exception(LogUnavailable("disk full", 1))
        else:
            future.set_result(None)
            self.known = [*self.known, *((id, time + 10) for id in names)][-4:]
        self.loop.run_until_complete(asyncio.sleep(0))
        if failed:
            assert future.exception() is not None

    @rule()
    def restart(self) -> None:
        """The pending ones are lost, the known ones come back from the log."""
        self.pending = []
        self.dedup = Dedup(0.01, 4)
        self.dedup.restore([event(id, end - 10) for id, end in self.known])

    def teardown(self) -> None:
        self.loop.close()


TestDedup = DedupMachine.TestCase
TestDedup.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
