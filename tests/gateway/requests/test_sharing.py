"""What a replica does with messages that come before, after or without what the log says of a request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from msgspec import Raw

from gateway.handling.consumer import Consumer, Held
from gateway.requests import sharing
from gateway.requests.book import Book
from gateway.requests.changes import Change, State, Trouble, new_token
from gateway.requests.sharing import Feed, Later, Ours, SharedQueue
from tests.support.requests import Changes

FAR = datetime(2100, 1, 1, tzinfo=UTC)
SOON = datetime(2026, 1, 1, tzinfo=UTC)
SERVICE = "reports"


@dataclass(eq=False)
class Message:
    """A message of a bucket, without a broker: it remembers what was done with it."""

    token: str
    change: Change | None
    consumer: Any
    bucket: int = 0
    lost: bool = False
    fate: list[str] = field(default_factory=list)

    async def acknowledge(self) -> None:
        self.fate.append("done")

    async def put_back(self) -> None:
        self.fate.append("back")


class Taker:
    """Takes part in a service, without a broker."""

    def __init__(self) -> None:
        self.service = SERVICE
        self.busy = 0
        self.buckets = frozenset(range(16))
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True

    async def run(self) -> None:
        await asyncio.Event().wait()


class World:
    """A feed with a log of changes, and messages that come when the test says so."""

    def __init__(self) -> None:
        self.book = Book(60_000)
        self.queue = SharedQueue(self.book)
        self.changes = Changes()
        self.taker = Taker()
        self.leased: set[str] = set()
        self.feed = Feed(
            self.book,
            self.queue,
            lambda *_: cast("Consumer", self.taker),
            lambda _: None,
            self.leased.__contains__,
            lambda _: 0,
            self._catch_up,
        )
        self.token = new_token()
        self.complete = True

    async def _catch_up(self) -> bool:
        return self.complete

    def say(self, state: State, **members: Any) -> Change:
        """The log says something of the request."""
        change = Change(state=state, service=SERVICE, **members)
        request = self.book.apply(self.changes.event(self.token, change))
        if request is not None:
            if request.state.final:
                self.feed.over(self.token)
            self.queue.add(request)
            self.feed.changed(request)
        return change

    def come(self, change: Change | None) -> Message:
        """A message comes."""
        message = Message(self.token, change, self.taker)
        self.feed._arrived(cast("Held", message))
        return message

    def take(self) -> int:
        """Lease what can be leased."""
        return len(self.queue.take(SERVICE, 10, self.changes.now))

    async def settle(self) -> None:
        """Let what is to be done with messages be done."""
        task = asyncio.create_task(self.feed.run())
        await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def begun(**members: Any) -> dict[str, Any]:
    return {"expires": FAR, "data": Raw(b"1"), **members}


@pytest.fixture
def world() -> World:
    return World()


async def test_a_message_waits_for_its_log(world: World) -> None:
    """It comes first, then what the log says; only then is there something to lease, and once."""
    message = world.come(Change(state=State.QUEUED, service=SERVICE, **begun()))
    assert world.take() == 0
    world.say(State.QUEUED, **begun())
    assert world.take() == 1
    assert world.take() == 0
    await world.settle()
    assert message.fate == []


async def test_without_its_message_nothing_is_leased(world: World) -> None:
    """What the log says is queued is leased where its message is."""
    change = world.say(State.QUEUED, **begun())
    assert world.take() == 0
    world.come(change)
    assert world.take() == 1


async def test_a_second_message_is_done_with(world: World) -> None:
    """Unless the first was lost with its connection: then it is the same one, again."""
    change = world.say(State.QUEUED, **begun())
    first, second = world.come(change), world.come(change)
    await world.settle()
    assert (first.fate, second.fate) == ([], ["done"])
    world = World()
    change = world.say(State.QUEUED, **begun())
    first = world.come(change)
    first.lost = True
    second = world.come(change)
    assert world.take() == 1
    world.leased.add(world.token)
    world.say(State.DONE, attempt=1, result=Raw(b"1"))
    await world.settle()
    assert (first.fate, second.fate) == ([], ["done"])


async def test_what_is_over_is_done_with(world: World) -> None:
    """Also if it was tried again before, and ended."""
    change = world.say(State.QUEUED, **begun())
    world.say(State.FAILED, attempt=1, failures=1, error=Trouble("error"))
    message = world.come(change)
    again = world.say(State.QUEUED, attempt=1, retry=True, expires=FAR)
    world.say(State.RUNNING, attempt=2)
    world.say(State.FAILED, attempt=2, failures=1, error=Trouble("error"))
    late = world.come(again)
    await world.settle()
    assert (message.fate, late.fate) == (["done"], ["done"])


async def test_one_that_is_tried_again_may_come_before_the_log_says_so(world: World) -> None:
    """It must not be taken for a late one."""
    world.say(State.QUEUED, **begun())
    world.say(State.FAILED, attempt=2, failures=2, error=Trouble("error"))
    again = Change(state=State.QUEUED, service=SERVICE, attempt=2, retry=True, **begun())
    message = world.come(again)
    assert world.take() == 0
    world.say(State.QUEUED, attempt=2, retry=True, expires=FAR)
    assert world.take() == 1
    assert message.fate == []


async def test_one_that_is_due_may_come_before_the_log_says_so(world: World) -> None:
    """And the one of the try before is done with."""
    first = world.say(State.QUEUED, **begun())
    world.say(State.QUEUED, attempt=1, failures=1, next=FAR, error=Trouble("error"))
    stale = world.come(first)
    due = Change(state=State.QUEUED, service=SERVICE, attempt=1, failures=1, **begun())
    message = world.come(due)
    assert world.take() == 0
    world.say(State.QUEUED, attempt=1, failures=1)
    assert world.take() == 1
    world.leased.add(world.token)
    await world.settle()
    assert (stale.fate, message.fate) == (["done"], [])


async def test_a_lease_that_ends_goes_with_its_message(world: World) -> None:
    """The next message of the request may come before the old one is done with."""
    change = world.say(State.QUEUED, **begun())
    old = world.come(change)
    assert world.take() == 1
    message = world.feed.ending(world.token)
    world.queue.taken.discard(world.token)
    again = world.say(State.QUEUED, attempt=1)
    new = world.come(again)
    world.feed.ended(message)
    assert world.take() == 1
    world.leased.add(world.token)
    await world.settle()
    assert (old.fate, new.fate) == (["done"], [])


async def test_the_next_message_may_come_before_the_lease_is_known_to_have_ended(world: World) -> None:
    """It ended at another replica, and the log is slower than the queue."""
    old = world.come(world.say(State.QUEUED, **begun()))
    assert world.take() == 1
    world.leased.add(world.token)
    world.say(State.RUNNING, attempt=1)
    new = world.come(Change(state=State.QUEUED, service=SERVICE, attempt=1, **begun()))
    world.leased.discard(world.token)
    world.queue.taken.discard(world.token)
    world.feed.over(world.token)
    world.say(State.QUEUED, attempt=1)
    assert world.take() == 1
    world.leased.add(world.token)
    await world.settle()
    assert (old.fate, new.fate) == (["done"], [])


async def test_a_lease_that_could_not_end_keeps_its_message(world: World) -> None:
    """The log could not store what came of it."""
    world.come(world.say(State.QUEUED, **begun()))
    assert world.take() == 1
    world.leased.add(world.token)
    message = world.feed.ending(world.token)
    world.feed.goes_on(world.token, message)
    world.say(State.DONE, attempt=1, result=Raw(b"1"))
    await world.settle()
    assert cast("Message", message).fate == ["done"]


async def test_what_nobody_knows_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, and only when the log was read to its end."""
    monkeypatch.setattr(sharing, "UNKNOWN_SECONDS", 0.0)
    monkeypatch.setattr(sharing, "LOOK_SECONDS", 0.001)
    world.complete = False
    message = world.come(Change(state=State.QUEUED, service=SERVICE, **begun()))
    task = asyncio.create_task(world.feed.run())
    await asyncio.sleep(0.05)
    assert message.fate == []
    world.complete = True
    async with asyncio.timeout(10):
        while not message.fate:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    task.cancel()
    assert message.fate == ["done"]


def test_later_ones_are_ripe_in_their_order() -> None:
    """And only those that still wait."""
    book, changes, later = Book(60_000), Changes(), Later()
    tokens = [new_token() for _ in range(4)]
    for number, token in enumerate(tokens):
        due = datetime.fromtimestamp(100 - number, UTC)
        change = Change(state=State.QUEUED, service=SERVICE, next=due, **begun())
        request = book.apply(changes.event(token, change))
        assert request is not None
        later.changed(request)
    gone = book.apply(changes.event(tokens[1], Change(state=State.CANCELLED, service=SERVICE)))
    assert gone is not None
    later.changed(gone)
    assert later.ripe(99_500) == [tokens[3], tokens[2]]
    assert later.ripe(1_000_000) == [tokens[3], tokens[2], tokens[0]]
    later.clear()
    assert later.ripe(1_000_000) == []


def test_a_bucket_is_ours_when_it_was_for_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not any more at once."""
    owned = frozenset({1, 2})
    ours = Ours(lambda: owned)
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    ours.look(now)
    assert 1 not in ours
    now += sharing.SETTLE_SECONDS + 0.1
    assert 1 in ours
    owned = frozenset({2, 3})
    assert 1 not in ours
    ours.look(now)
    assert (2 in ours, 3 in ours) == (True, False)
    now += sharing.SETTLE_SECONDS + 0.1
    assert (1 in ours, 2 in ours, 3 in ours) == (False, True, True)
