"""
What the store of webhooks promises, in plain dicts, and a machine that tries a real store beside it.

The machine does at random what dispatchers, senders, users and the clock do, in any order and also wrongly:
with owners whose time is up, places that are not where they were thought to be, revisions that are old. Both
must answer the same, and look the same from the outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from webhooks.operations import HIGHEST, Misplaced
from webhooks.ownership import Fenced
from webhooks.records import (
    BUCKETS,
    NOWHERE,
    Attempt,
    Delivery,
    Due,
    Message,
    Result,
    Standing,
    Status,
    Task,
    bucket_of,
    message_number,
)
from webhooks.store import Store
from webhooks.upkeep import CHORES, FIRST_OF_LOGS

T = TypeVar("T")
Key = tuple[int, int]  # endpoint, message

HOUR: Final = 3_600_000
LEASES: Final = {True: HOUR, False: -HOUR}
"""One that holds for the rest of the test, and one that was over before it began."""

SELDOM: Final = st.sampled_from([False, False, False, False, True])
PAGE: Final = 3
CLOSED: Final = (Status.PAUSED, Status.DISABLED, Status.GONE)
SKEW: Final = 2_000
"""Milliseconds by which the clock of the database may differ."""


@dataclass
class Entry:
    """A delivery."""

    due: int
    standing: Standing = Standing.PENDING
    tries: int = 0
    attempts: list[Attempt] = field(default_factory=list)


@dataclass
class Target:
    """An endpoint."""

    settings: bytes
    revision: int
    status: Status = Status.OPEN
    health: bytes = b""


@dataclass
class Work:
    """A job."""

    endpoint: int
    task: Task
    after: int
    last: int
    changed: int = 0
    finished: bool = False


class Model:
    """The whole store."""

    def __init__(self) -> None:
        self.targets: dict[int, Target] = {}
        self.messages: dict[int, Message] = {}
        self.entries: dict[Key, Entry] = {}
        self.owners: dict[int, bool] = {}  # whether the lease holds
        self.holders: dict[int, int] = {}  # of buckets; one that is no owner is none
        self.places = dict.fromkeys(range(BUCKETS), NOWHERE)
        self.jobs: dict[int, Work] = {}

    @property
    def buckets(self) -> set[int]:
        """Those that anything depends on."""
        return {CHORES, *map(bucket_of, self.targets)}

    def may(self, owner: int, buckets: Iterable[int]) -> bool:
        """Tell whether an owner passes the fence."""
        return owner in self.owners and all(self.holders.get(bucket) == owner for bucket in buckets)

    def of(self, endpoint: int, standing: Standing | None = None) -> list[tuple[int, Entry]]:
        """Return the deliveries of an endpoint that stand so, the oldest first."""
        return sorted(
            (
                (message, entry)
                for (each, message), entry in self.entries.items()
                if each == endpoint and standing in (None, entry.standing)
            ),
            key=lambda pair: pair[0],
        )

    def pending(self, endpoint: int) -> list[tuple[int, Entry]]:
        """Return the pending deliveries of an endpoint as they are due."""
        found = self.of(endpoint, Standing.PENDING)
        return sorted(found, key=lambda pair: (pair[1].due, pair[0]))


class StoreMachine(RuleBasedStateMachine):
    """
    A store beside the model.

    Args:
        store: the real one; started and empty.
        run: runs what is awaited.
        reopen: closes and opens the store again, or does nothing.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        reopen: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._store = store
        self._run = run
        self._reopen = reopen
        self.model = Model()
        self.log: list[Message] = []
        self.number = self.do(self.store.log_number("epoch1"))
        assert self.do(self.store.logs()) == {self.number: "epoch1"}

    @property
    def store(self) -> Store:
        return self._store()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the store do something."""
        result: T = self._run(work)
        return result

    def attempt(self, work: Coroutine[Any, Any, None], refused: type[Exception] | None) -> bool:
        """Have the store do something that is to be refused so; return whether it was done."""
        try:
            self.do(work)
        except (Fenced, Misplaced) as error:
            outcome: type[Exception] | None = type(error)
        else:
            outcome = None
        assert outcome is refused
        return outcome is None

    def pick(self, data: st.DataObject, items: Iterable[int]) -> int:
        return data.draw(st.sampled_from(sorted(items)))

    def some(self, data: st.DataObject, items: Iterable[T], least: int = 0) -> list[T]:
        known = sorted(items)  # type: ignore[type-var]  # the same
        if not known:
            return []
        return data.draw(st.lists(st.sampled_from(known), unique=True, min_size=least, max_size=6))

    def note_due(self, keys: Iterable[Key]) -> None:
        """Take over the time that the database gave deliveries, which has to be now."""
        now = time.time() * 1000
        for endpoint, message in keys:
            found = self.do(self.store.find_delivery(endpoint, message))
            assert found is not None
            assert abs(found.due - now) < SKEW
            self.model.entries[endpoint, message].due = found.due

    @initialize(data=st.data(), endpoints=st.integers(0, 3))
    def begin(self, data: st.DataObject, endpoints: int) -> None:
        """Begin where most of it can happen at once."""
        for _ in range(endpoints):
            self.add_endpoint(b"")
        self.join(lasting=True)
        (owner,) = self.model.owners
        self.take(owner, sorted(self.model.buckets), lasting=True)
        for _ in range(4):
            self.publish(1, "a", b"1")
        if endpoints:
            self.send_on(data, owner, sorted(self.model.buckets), NOWHERE)

    # --- endpoints

    @precondition(lambda self: len(self.model.targets) < 6)
    @rule(settings=st.binary(max_size=4))
    def add_endpoint(self, settings: bytes) -> None:
        added = self.do(self.store.add_endpoint(settings))
        assert added.id > max(self.model.targets, default=0)
        assert (added.bucket, added.status) == (bucket_of(added.id), Status.OPEN)
        assert (added.settings, added.health) == (settings, b"")
        assert abs(added.created - time.time() * 1000) < SKEW
        self.model.targets[added.id] = Target(settings, added.revision)

    @precondition(lambda self: self.model.targets)
    @rule(data=st.data(), stale=SELDOM, settings=st.binary(max_size=4), health=st.binary(max_size=4))
    def change_endpoint(self, data: st.DataObject, stale: bool, settings: bytes, health: bytes) -> None:
        id = self.pick(data, self.model.targets)
        status = data.draw(st.sampled_from([*[Status.OPEN] * 6, *CLOSED, Status.REMOVED]))
        target = self.model.targets[id]
        revision = target.revision - stale
        changed = self.do(self.store.change_endpoint(id, revision, status, settings, health))
        if stale or target.status is Status.REMOVED:
            assert changed is None
            return
        assert changed is not None
        assert changed.revision > max(each.revision for each in self.model.targets.values())
        self.model.targets[id] = Target(settings, changed.revision, status, health)

    # --- owners

    @precondition(lambda self: len(self.model.owners) < 4)
    @rule(lasting=st.booleans())
    def join(self, lasting: bool) -> None:
        owner = self.do(self.store.join(LEASES[lasting]))
        assert owner > max(self.model.owners, default=0)
        self.model.owners[owner] = lasting

    @rule(data=st.data(), lasting=st.booleans())
    def hold(self, data: st.DataObject, lasting: bool) -> None:
        owner = self.owner(data)
        wanted = self.some(data, self.model.buckets) if data.draw(SELDOM) else sorted(self.model.buckets)
        self.take(owner, wanted, lasting)

    def take(self, owner: int, wanted: list[int], lasting: bool) -> None:
        model = self.model
        try:
            held = self.do(self.store.hold(owner, wanted, LEASES[lasting]))
        except Fenced:
            assert owner not in model.owners
            return
        model.owners[owner] = lasting
        model.owners = {each: lasts for each, lasts in model.owners.items() if lasts or each == owner}
        for bucket in wanted:
            if model.holders.get(bucket) not in model.owners:
                model.holders[bucket] = owner
        own = [bucket for bucket, holder in model.holders.items() if holder == owner]
        assert held == {bucket: model.places[bucket] for bucket in own}

    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        owner, buckets = self.owner(data), self.some(data, self.model.buckets)[:1]
        self.do(self.store.give(owner, buckets))
        for bucket in buckets:
            if self.model.holders.get(bucket) == owner:
                del self.model.holders[bucket]

    @rule(data=st.data(), really=SELDOM)
    def leave(self, data: st.DataObject, really: bool) -> None:
        owner = self.owner(data) if really else 999
        self.do(self.store.leave(owner))
        self.model.owners.pop(owner, None)

    def owner(self, data: st.DataObject) -> int:
        """Return an owner, mostly one that holds something; now and then one that is none."""
        holding = set(self.model.holders.values()) & self.model.owners.keys()
        if holding and not data.draw(SELDOM):
            return self.pick(data, holding)
        return self.pick(data, {*self.model.owners, *self.model.holders.values(), 999})

    def buckets(self, data: st.DataObject, owner: int) -> list[int]:
        """Return some buckets, mostly of this owner."""
        own = {bucket for bucket, holder in self.model.holders.items() if holder == owner}
        if own and not data.draw(SELDOM):
            return self.some(data, own, least=1)
        return self.some(data, self.model.buckets, least=1)

    # --- dispatch

    @rule(gap=st.integers(1, 3), topic=st.sampled_from(["a", "a.b"]), body=st.binary(max_size=3))
    def publish(self, gap: int, topic: str, body: bytes) -> None:
        position = len(self.log) * 4 + gap
        number = message_number(self.number, position)
        self.log.append(Message(number, topic, f"e{position}", "t", position * 10, gap, body))

    @rule(data=st.data(), wrong=SELDOM)
    def dispatch(self, data: st.DataObject, wrong: bool) -> None:
        owner = self.owner(data)
        buckets = self.buckets(data, owner)
        after = self.model.places[buckets[0]]
        if not data.draw(SELDOM):
            buckets = [bucket for bucket in buckets if self.model.places[bucket] == after]
        self.send_on(data, owner, buckets, after + data.draw(st.sampled_from([-1, 1])) * wrong)

    def send_on(self, data: st.DataObject, owner: int, buckets: list[int], after: int) -> None:
        model = self.model
        messages = [each for each in self.log if each.number > after][:4]
        last = messages[-1].number if messages else after + 1
        wanted = [id for id in model.targets if bucket_of(id) in buckets]
        deliveries = [
            (id, each.number, each.time) for each in messages for id in wanted if not data.draw(SELDOM)
        ]
        refused: type[Exception] | None = None
        if not model.may(owner, buckets):
            refused = Fenced
        elif any(model.places[bucket] != after for bucket in buckets):
            refused = Misplaced
        if self.attempt(self.store.dispatch(owner, buckets, after, last, messages, deliveries), refused):
            model.places.update(dict.fromkeys(buckets, last))
            for each in messages:
                model.messages.setdefault(each.number, each)
            for id, number, due in deliveries:
                model.entries.setdefault((id, number), Entry(due))

    @precondition(lambda self: self.model.targets)
    @rule(data=st.data(), time=st.integers(0, 500))
    def enqueue(self, data: st.DataObject, time: int) -> None:
        id = self.pick(data, [*self.model.targets, 998])
        message = Message(0, "test", "e", "t", time, 0, b"test")
        number = self.do(self.store.enqueue(id, message))
        target = self.model.targets.get(id)
        if target is None or target.status is Status.REMOVED:
            assert number is None
            return
        assert number is not None
        assert max((each for each in self.model.messages if each < FIRST_OF_LOGS), default=0) < number
        assert number < FIRST_OF_LOGS
        self.model.messages[number] = Message(number, "test", "e", "t", time, 0, b"test")
        self.model.entries[id, number] = Entry(time)

    # --- sending

    @rule(data=st.data(), dice=st.randoms(use_true_random=False))
    def settle(self, data: st.DataObject, dice: Any) -> None:
        model, owner = self.model, self.owner(data)
        buckets = self.buckets(data, owner)
        keys = self.some(data, (key for key in model.entries if bucket_of(key[0]) in buckets), least=1)
        results = [self.result(key, dice) for key in keys]
        known = [id for id in model.targets if bucket_of(id) in buckets]
        health = {id: data.draw(st.binary(max_size=3)) for id in self.some(data, known)}
        closing = self.some(data, known)[:1] if data.draw(SELDOM) else []
        closed = {id: data.draw(st.sampled_from(CLOSED)) for id in closing}
        concerned = {bucket_of(id) for id in (*(key[0] for key in keys), *health, *closed)}
        refused = None if not concerned or model.may(owner, concerned) else Fenced
        if not concerned and owner not in model.owners:
            return  # nothing is asked, nothing is refused
        if not self.attempt(self.store.settle(owner, results, health, closed), refused):
            return
        for result in results:
            self.apply(result)
        for id, learnt in health.items():
            if model.targets[id].status is not Status.REMOVED:
                model.targets[id].health = learnt
        for id, status in closed.items():
            if model.targets[id].status is Status.OPEN:
                (found,) = [each for each in self.do(self.store.list_changed_endpoints(0)) if each.id == id]
                assert found.revision > max(each.revision for each in model.targets.values())
                model.targets[id].status, model.targets[id].revision = status, found.revision

    def result(self, key: Key, dice: Any) -> Result:
        """Make up what became of a delivery."""
        entry = self.model.entries[key]
        standing = dice.choice([*Standing, Standing.FAILED])
        attempt = None
        if dice.random() < 0.8:
            status, error = dice.choice([(200, None), (500, None), (None, "timeout")])
            attempt = Attempt(len(entry.attempts) + 1, dice.randrange(500), status, error, 7, b"no")
        return Result(*key, standing, dice.randrange(50) * 10, entry.tries + 1, attempt)

    def apply(self, result: Result) -> None:
        entry = self.model.entries[result.endpoint, result.message]
        if entry.standing is Standing.PENDING or result.standing is Standing.DELIVERED:
            entry.standing, entry.due = result.standing, result.due
        entry.tries = result.tries
        if result.attempt is not None:
            entry.attempts.append(result.attempt)

    @precondition(lambda self: self.model.entries)
    @rule(data=st.data(), now=st.sampled_from([10, 20, 50, 90, 130, 500]), room=st.integers(1, 4))
    def ask_due(self, data: st.DataObject, now: int, room: int) -> None:
        rooms = dict.fromkeys(self.model.targets, room)
        found = self.do(self.store.due(now, rooms))
        for id in rooms:
            expected = [
                Due(id, message, entry.due, entry.tries, len(entry.attempts))
                for message, entry in self.model.pending(id)
                if entry.due <= now
            ]
            assert [each for each in found if each.endpoint == id] == expected[:room]
        assert {each.endpoint for each in found} <= rooms.keys()

    @precondition(lambda self: self.model.entries)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        id = self.pick(data, self.model.targets)
        numbers = self.some(data, [*self.model.messages, 5])
        entries = {number: self.model.entries.get((id, number)) for number in numbers}
        expected = sorted(
            number
            for number, entry in entries.items()
            if entry is not None and entry.standing is not Standing.EXPIRED
        )
        assert self.do(self.store.repeat(id, numbers)) == expected
        for number in expected:
            entry = self.model.entries[id, number]
            entry.standing, entry.tries = Standing.PENDING, 0
        self.note_due((id, number) for number in expected)

    # --- jobs

    @precondition(lambda self: self.model.targets and len(self.model.jobs) < 6)
    @rule(data=st.data(), task=st.sampled_from(Task))
    def add_job(self, data: st.DataObject, task: Task) -> None:
        id = self.pick(data, [*self.model.targets, 998])
        failed = [message for message, _ in self.model.of(id, Standing.FAILED)]
        after, last = self.pick(data, [0, *failed]), self.pick(data, [HIGHEST, *failed])
        job = self.do(self.store.add_job(id, task, after, last))
        target = self.model.targets.get(id)
        if target is None or target.status is Status.REMOVED:
            assert job is None
        else:
            assert job is not None
            assert job.id > max(self.model.jobs, default=0)
            self.model.jobs[job.id] = Work(id, task, after, last)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), limit=st.integers(1, 3))
    def step_job(self, data: st.DataObject, limit: int) -> None:
        model, owner = self.model, self.owner(data)
        id = self.pick(data, model.jobs)
        work = model.jobs[id]
        (job,) = [each for each in self.do(self.store.list_jobs(work.endpoint)) if each.id == id]
        try:
            stepped = self.do(self.store.step_job(owner, job, limit))
        except Fenced:
            assert not model.may(owner, [bucket_of(work.endpoint)])
            return
        assert model.may(owner, [bucket_of(work.endpoint)])
        if not work.finished:
            self.step(work, limit)
        assert (stepped.after, stepped.changed, stepped.finished) == (work.after, work.changed, work.finished)

    def step(self, work: Work, limit: int) -> None:
        if work.task is Task.RECOVER:
            failed = self.model.of(work.endpoint, Standing.FAILED)
            found = [pair for pair in failed if work.after < pair[0] <= work.last][:limit]
        else:
            found = [pair for pair in self.model.pending(work.endpoint) if pair[0] <= work.last][:limit]
        for _, entry in found:
            if work.task is Task.RECOVER:
                entry.standing, entry.tries = Standing.PENDING, 0
            else:
                entry.standing = Standing.FAILED
        self.note_due((work.endpoint, message) for message, _ in found)
        work.after = max([work.after, *(message for message, _ in found)])
        work.changed += len(found)
        work.finished = len(found) < limit
        target = self.model.targets[work.endpoint]
        if work.finished and work.task is Task.SKIP and target.status in (Status.DISABLED, Status.GONE):
            row = self.do(self.store.find_endpoint(work.endpoint))
            assert row is not None
            assert row.revision > max(each.revision for each in self.model.targets.values())
            self.model.targets[work.endpoint] = Target(target.settings, row.revision)

    # --- upkeep

    @rule(data=st.data(), before=st.integers(0, 20).map(lambda tens: tens * 10), limit=st.integers(1, 4))
    def forget(self, data: st.DataObject, before: int, limit: int) -> None:
        model, owner = self.model, self.owner(data)
        try:
            gone = self.do(self.store.forget(owner, before, limit))
        except Fenced:
            assert not model.may(owner, [CHORES])
            return
        assert model.may(owner, [CHORES])
        old: list[int] = []
        for logged in (True, False):
            oldest = sorted(each for each in model.messages if (each >= FIRST_OF_LOGS) is logged)[:limit]
            for number in oldest:
                if model.messages[number].time >= before:
                    break
                old.append(number)
        assert gone == len(old)
        for number in old:
            del model.messages[number]
        model.entries = {key: entry for key, entry in model.entries.items() if key[1] in model.messages}

    @rule(data=st.data())
    def sweep(self, data: st.DataObject) -> None:
        model, owner = self.model, self.owner(data)
        buckets = self.some(data, model.buckets, least=1)
        refused = None if model.may(owner, buckets) else Fenced

        async def sweep() -> None:
            while await self.store.sweep(owner, buckets):
                pass

        if self.attempt(sweep(), refused):
            removed = {
                id
                for id, target in model.targets.items()
                if target.status is Status.REMOVED and bucket_of(id) in buckets
            }
            model.entries = {key: entry for key, entry in model.entries.items() if key[0] not in removed}
            model.jobs = {id: job for id, job in model.jobs.items() if job.endpoint not in removed}

    @rule(time=st.integers(0, 30).map(lambda tens: tens * 10))
    def find_time(self, time: int) -> None:
        found = self.do(self.store.find_time(time))
        for number, message in self.model.messages.items():
            if number >= FIRST_OF_LOGS:
                assert (message.time >= time) is (number > found)

    @rule()
    def reopen(self) -> None:
        self._reopen()

    # --- looking

    @invariant()
    def looks_alike(self) -> None:
        """What is due first is the same at all times."""
        expected = {
            id: pending[0][1].due
            for id, target in self.model.targets.items()
            if target.status is Status.OPEN and (pending := self.model.pending(id))
        }
        assert self.do(self.store.earliest(range(BUCKETS))) == expected

    @rule()
    def look_closely(self) -> None:
        """Everything that can be listed is the same, page by page."""
        self.look_at_endpoints()
        for id in self.model.targets:
            self.look_at_deliveries(id)
            jobs = self.do(self.store.list_jobs(id))
            assert [each.id for each in jobs] == sorted(
                (each for each, job in self.model.jobs.items() if job.endpoint == id), reverse=True
            )
        open_jobs = [each.id for each in self.do(self.store.list_open_jobs(range(BUCKETS)))]
        assert open_jobs == sorted(each for each, job in self.model.jobs.items() if not job.finished)
        assert self.do(self.store.find_messages([*self.model.messages, 4])) == self.model.messages

    def look_at_endpoints(self) -> None:
        there = {
            id: target for id, target in self.model.targets.items() if target.status is not Status.REMOVED
        }
        listed = self.pages(lambda last: self.store.list_endpoints(last.id if last is not None else 0, PAGE))
        assert [(each.id, each.status, each.settings, each.health, each.revision) for each in listed] == [
            (id, target.status, target.settings, target.health, target.revision)
            for id, target in sorted(there.items())
        ]
        changed = self.pages(
            lambda last: self.store.list_changed_endpoints(last.revision if last is not None else 0, PAGE)
        )
        assert [each.id for each in changed] == sorted(
            self.model.targets, key=lambda id: self.model.targets[id].revision
        )
        for id in self.model.targets:
            found = self.do(self.store.find_endpoint(id))
            assert found == (None if id not in there else next(each for each in listed if each.id == id))
            ever = self.do(self.store.find_endpoint(id, removed=True))
            assert ever == next(each for each in changed if each.id == id)

    def look_at_deliveries(self, id: int) -> None:
        for standing in (None, Standing.DELIVERED, Standing.FAILED, Standing.EXPIRED):
            listed = self.pages(
                lambda last, standing=standing: self.store.list_deliveries(  # type: ignore[misc]
                    id, standing, last.message if last is not None else HIGHEST, PAGE
                )
            )
            assert listed == [self.listed(id, *pair) for pair in reversed(self.model.of(id, standing))]
        pending = self.model.pending(id)
        listed = self.pages(
            lambda last: self.store.list_pending(
                id, (last.due, last.message) if last is not None else (-1, -1), PAGE
            )
        )
        assert listed == [self.listed(id, *pair) for pair in pending]
        for most in (1, 1000):
            assert self.do(self.store.backlog(id, most)) == min(len(pending), most)
        for message, entry in self.model.of(id):
            attempts = self.pages(
                lambda last, message=message: self.store.list_attempts(  # type: ignore[misc]
                    id, message, last.number if last is not None else 1000, PAGE
                )
            )
            assert attempts == entry.attempts[::-1]

    def listed(self, id: int, number: int, entry: Entry) -> Delivery:
        message = self.model.messages[number]
        return Delivery(
            *(id, number, entry.standing, entry.due, entry.tries, len(entry.attempts)),
            *(message.topic, message.event, message.time),
        )

    def pages(self, ask: Callable[[Any], Coroutine[Any, Any, list[T]]]) -> list[T]:
        """Return everything that is listed, page by page."""
        found: list[T] = []
        while page := self.do(ask(found[-1] if found else None)):
            assert len(page) <= PAGE
            found += page
        return found

    def teardown(self) -> None:
        self.look_closely()
