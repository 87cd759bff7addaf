"""The intake: what a producer is told, when, and what the log gets to see."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from fanout.cursor import Cursor
from fanout.event import Event
from gateway.dedup import Dedup
from gateway.intake import Budget, Intake, Receipt
from gateway.log import LogUnavailable
from gateway.problems import Problem
from tests.support.limits import SmallLimits
from tests.support.memory_log import MemoryLog


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def intake(log: MemoryLog, clock: Clock) -> Intake:
    return Intake(log, Dedup(300, 1_000), SmallLimits(), clock)


async def publish(intake: Intake, *events: str | dict[str, Any]) -> Receipt:
    """Publish events given as JSON objects, or by their id alone."""
    bodies = [{"topic": "a", "id": event} if isinstance(event, str) else event for event in events]
    return await intake.publish(intake.formats.events(None, json.dumps(bodies).encode(), intake.now()))


def failure() -> LogUnavailable:
    return LogUnavailable("the disk is full", 5.0)


async def settled() -> None:
    """Let the loop run everything that is ready, and what that makes ready."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_cursor_is_that_of_the_last_event(intake: Intake, log: MemoryLog) -> None:
    """The receipt counts the events and names the last one's place in the log."""
    await publish(intake, {"topic": "before"})
    receipt = await publish(intake, {"topic": "a"}, {"topic": "b"})
    assert (receipt.accepted, receipt.duplicates) == (2, 0)
    assert Cursor.parse(receipt.cursor) == Cursor(log.epoch, 3, log.events[2].tag)
    assert [event.topic for event in log.events] == ["before", "a", "b"]


async def test_the_answer_waits_until_the_events_are_durable(intake: Intake, log: MemoryLog) -> None:
    """No receipt is given before the log's commit."""
    log.hold()
    publishing = asyncio.create_task(publish(intake, "x"))
    await settled()
    assert not publishing.done()
    log.release()
    assert (await publishing).accepted == 1


async def test_a_duplicate_is_answered_with_a_cursor_behind_its_original(
    intake: Intake, log: MemoryLog
) -> None:
    """A repeated call stores nothing and is answered as the first one was."""
    first = await publish(intake, "x", "y")
    again = await publish(intake, "x", "y")
    assert again == Receipt(0, 2, first.cursor)
    mixed = await publish(intake, "x", "z", "z")
    assert mixed == Receipt(1, 2, str(Cursor(log.epoch, 3, log.head_tag)))
    assert len(log.events) == 3
    assert (intake.accepted, intake.duplicates) == (3, 4)


async def test_a_duplicate_of_an_event_in_flight_waits_for_it(intake: Intake, log: MemoryLog) -> None:
    """The retry of a call that is not durable yet is not answered before the original is."""
    log.hold()
    original = asyncio.create_task(publish(intake, "x"))
    await settled()
    retry = asyncio.create_task(publish(intake, "x"))
    await settled()
    assert not retry.done()
    log.release()
    first, again = await original, await retry
    assert again == Receipt(0, 1, first.cursor)


async def test_a_producer_is_not_kept_waiting(
    intake: Intake, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the log stands still a producer is told to ask again, and asking again stores nothing twice."""
    monkeypatch.setattr("gateway.intake.ANSWER_SECONDS", 0.01)
    log.hold()
    for _ in range(2):
        with pytest.raises(Problem, match="not durable after") as caught:
            await publish(intake, "x", "y")
        assert (caught.value.status, caught.value.retry_after) == (503, 1.0)
    log.release()
    assert (await publish(intake, "x", "y")).duplicates == 2
    assert [event.given_id for event in log.events] == ["x", "y"]
    assert intake.unavailable == 2


async def test_a_duplicate_of_an_event_in_flight_fails_with_it(intake: Intake, log: MemoryLog) -> None:
    """If the original is not stored, its duplicate is not confirmed either, and the id is free again."""
    log.hold()
    original = asyncio.create_task(publish(intake, "x"))
    await settled()
    retry = asyncio.create_task(publish(intake, "x"))
    await settled()
    log.fail(failure())
    log.release()
    for task in (original, retry):
        with pytest.raises(Problem) as caught:
            await task
        assert (caught.value.status, caught.value.retry_after) == (503, 5.0)
        assert "the disk is full" in caught.value.detail
    log.fail(None)
    assert (await publish(intake, "x")).accepted == 1


async def test_a_retry_right_behind_a_failure_is_stored(intake: Intake, log: MemoryLog) -> None:
    """A retry that comes between the failed commit and the news of it is an event, not a duplicate."""
    log.hold()
    original = asyncio.create_task(publish(intake, "x"))
    await settled()
    log.fail(failure())
    log._held = False
    log.commit()  # the failure is there, but nobody has been woken by it yet
    log.fail(None)
    assert (await publish(intake, "x")).accepted == 1
    with pytest.raises(Problem):
        await original
    assert (await publish(intake, "x")).duplicates == 1


async def test_a_call_fails_if_only_its_duplicates_original_failed(intake: Intake, log: MemoryLog) -> None:
    """202 means that every event of the call is durable, also those that others published."""
    log.hold()
    original = asyncio.create_task(publish(intake, "x"))
    await settled()
    ahead, log._queue = log._queue, []
    mixed = asyncio.create_task(publish(intake, "x", "y"))
    await settled()
    log.release()
    await settled()
    assert [event.given_id for event in log.events] == ["y"]
    assert not mixed.done()
    ahead[0][1].set_exception(failure())
    for task in (original, mixed):
        with pytest.raises(Problem):
            await task
    assert await publish(intake, "x", "y") == Receipt(1, 1, str(Cursor(log.epoch, 2, log.head_tag)))


async def test_a_cancelled_publisher_leaves_the_outcome_to_the_log(intake: Intake, log: MemoryLog) -> None:
    """Whose publisher went away is stored all the same, and its id is known."""
    log.hold()
    publishing = asyncio.create_task(publish(intake, "x"))
    await settled()
    publishing.cancel()
    await settled()
    assert publishing.cancelled()
    log.release()
    assert (await publish(intake, "x")).duplicates == 1
    assert len(log.events) == 1


async def test_a_full_queue_is_503_and_takes_nothing(clock: Clock) -> None:
    """When the log's queue is full the producer is told when to come back, and may use its ids again."""
    log = MemoryLog(max_queued=2)
    intake = Intake(log, Dedup(300, 1_000), SmallLimits(), clock)
    log.hold()
    first = asyncio.create_task(publish(intake, "x", "y"))
    await settled()
    with pytest.raises(Problem) as caught:
        await publish(intake, "z")
    assert (caught.value.status, caught.value.retry_after, intake.busy) == (503, 1.0, 1)
    log.release()
    await first
    assert (await publish(intake, "z")).accepted == 1


async def test_an_unavailable_log_is_503(intake: Intake, log: MemoryLog) -> None:
    """A log that cannot store is answered with its reason, and all is well when it can again."""
    log.fail(failure())
    with pytest.raises(Problem) as caught:
        await publish(intake, {"topic": "a"})
    assert (caught.value.status, caught.value.detail, intake.unavailable) == (503, "the disk is full", 1)
    log.fail(None)
    assert (await publish(intake, {"topic": "a"})).accepted == 1


async def test_nothing_is_a_receipt_for_the_head(intake: Intake, log: MemoryLog) -> None:
    """An empty call is answered with the head's cursor, also on an empty log, and needs no commit."""
    assert await publish(intake) == Receipt(0, 0, str(Cursor(log.epoch, 0, 0)))
    receipt = await publish(intake, "x")
    assert await publish(intake) == Receipt(0, 0, receipt.cursor)
    assert log.commits == 1


async def test_time_never_decreases(intake: Intake, log: MemoryLog, clock: Clock) -> None:
    """Events keep the order of their times when the machine's clock is set back."""
    await publish(intake, "x")
    clock.seconds -= 500
    await publish(intake, "y")
    clock.seconds += 600
    await publish(intake, "z")
    assert [event.time for event in log.events] == [1_000_000, 1_000_000, 1_100_000]


async def test_a_restart_knows_the_ids_and_the_time(intake: Intake, log: MemoryLog, clock: Clock) -> None:
    """After a restart retries are still duplicates within the window, and time goes on from the log's."""
    await publish(intake, "old")
    clock.seconds += 200
    await publish(intake, "new", {"topic": "a"})
    clock.seconds += 150
    restarted = Intake(MemoryLog(events=log.events), Dedup(300, 1_000), SmallLimits(), clock)
    await restarted.restore()
    receipt = await publish(restarted, "old", "new")
    assert (receipt.accepted, receipt.duplicates) == (1, 1)

    clock.seconds -= 10_000
    restarted = Intake(MemoryLog(events=log.events), Dedup(300, 1_000), SmallLimits(), clock)
    await restarted.restore()
    assert restarted.now() == log.events[-1].time
    assert (await publish(restarted, "new")).duplicates == 1


async def test_a_restart_reads_no_more_than_it_can_remember(clock: Clock) -> None:
    """However busy the last minutes were, the start reads at most as many events as ids are remembered."""
    events = [Event("a", b"", 1_000_000, 0, given_id=f"{number}") for number in range(5_000)]
    log = MemoryLog(events=events)
    dedup = Dedup(300, 100)
    await Intake(log, dedup, SmallLimits(), clock).restore()
    assert (len(dedup), dedup.forgotten) == (100, 0)

    clock.seconds -= 10
    forgetful = Intake(log, Dedup(0, 0), SmallLimits(), clock)
    await forgetful.restore()
    assert forgetful.now() == 1_000_000  # the time is the log's also without a memory of ids


async def test_one_event_by_its_fields(intake: Intake, log: MemoryLog) -> None:
    """Whoever has no body but fields publishes one event, by the same rules."""
    receipt = await intake.publish_one("a.b", b'{"x":1}', "id", "type", "key", 2)
    assert receipt.accepted == 1
    assert b'"data":{"x":1}' in log.events[0].body
    assert (log.events[0].given_id, log.events[0].key, log.events[0].expires) == ("id", "key", 1_002_000)
    for fields in ({"topic": "a.*"}, {"topic": "a", "ttl": 0}):
        with pytest.raises(Problem) as caught:
            await intake.publish_one(**{"data": b"1", **fields})  # type: ignore[arg-type]  # mixed on purpose
        assert caught.value.status == 422


def test_a_budget_refuses_what_is_too_much() -> None:
    """Bytes are taken and given back; beyond the limit it is 503, and nothing is taken."""
    budget = Budget(10)
    budget.take(6)
    with pytest.raises(Problem) as caught:
        budget.take(5)
    assert (caught.value.status, budget.used) == (503, 6)
    assert caught.value.retry_after is not None
    budget.take(4)
    budget.give(10)
    assert budget.used == 0
