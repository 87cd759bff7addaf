"""The lane against a plain store: whatever comes between, nothing is taken twice, and nothing overlooked."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from webhooks import lane as module
from webhooks.description import Description, Order
from webhooks.endpoint import Endpoint
from webhooks.keys import Keys
from webhooks.lane import MAX_QUEUE, NEVER, Lane
from webhooks.records import Due
from webhooks.signature import Scheme
from webhooks.target import parse_target

URL = "http://receiver.test/"


def made(**members: Any) -> Lane:
    """Return a lane."""
    description = Description(URL, ("#",), **members)
    endpoint = Endpoint("wh_1", description, Keys().completed([Scheme.V1], 0), lambda: 0.5, 0)
    return Lane(1, 1, 1, 0, endpoint, parse_target(URL))


class Machine(RuleBasedStateMachine):
    """A lane, and the store that it stands before."""

    def __init__(self) -> None:
        super().__init__()
        self.lane = made()
        self.now = 0
        self.count = 0
        self.pending: dict[int, int] = {}  # message to due, as committed
        self.untold: list[Due] = []
        self.in_flight: list[int] = []
        self.settling: list[tuple[int, int | None]] = []
        self.asked: tuple[int, list[Due]] | None = None

    @precondition(lambda self: not self.untold)
    @rule(many=st.integers(1, 200))
    def dispatch(self, many: int) -> None:
        """Rows are stored, which the store knows before whoever stored them."""
        for _ in range(many):
            self.count += 1
            self.pending[self.count] = self.now
            self.untold.append(Due(1, self.count, self.now, 0, 0))

    @precondition(lambda self: self.untold)
    @rule()
    def offer(self) -> None:
        """They are offered."""
        untold, self.untold = self.untold, []
        for due in untold:
            self.lane.offer(due)

    @rule(many=st.integers(1, 3))
    def others_add(self, many: int) -> None:
        """Rows are stored by somebody else, who says that there is something."""
        for _ in range(many):
            self.count += 1
            self.pending[self.count] = self.now
        self.lane.behind = self.lane.missed = True

    @precondition(lambda self: self.lane.queue)
    @rule(many=st.integers(1, 40))
    def begin(self, many: int) -> None:
        """Attempts begin: of what is pending only, and not under way."""
        for _ in range(min(many, len(self.lane.queue))):
            message = self.lane.queue.popleft().message
            assert message in self.pending
            assert message not in self.in_flight
            assert all(message != each for each, _ in self.settling)
            self.in_flight.append(message)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """An attempt ends; its outcome is not written down yet."""
        at = data.draw(st.integers(0, len(self.in_flight) - 1))
        again = data.draw(st.sampled_from([None, None, 5, 50]))
        self.settling.append((self.in_flight.pop(at), again))

    @precondition(lambda self: self.settling)
    @rule()
    def settle(self) -> None:
        """Outcomes are written down, then the lane is told."""
        for message, again in self.settling:
            if again is None:
                del self.pending[message]
            else:
                self.pending[message] = self.now + again
        done, self.settling = self.settling, []
        for message, again in done:
            self.lane.release(message)
            if again is not None:
                self.lane.due_at = min(self.lane.due_at, self.now + again)

    @precondition(lambda self: self.asked is None and self.lane.behind)
    @rule()
    def ask(self) -> None:
        """The store is asked; what it answers is how things are now."""
        limit = self.lane.ask()
        rows = sorted((due, message) for message, due in self.pending.items())[:limit]
        self.asked = limit, [Due(1, message, due, 0, 0) for due, message in rows]

    @precondition(lambda self: self.asked is not None)
    @rule()
    def answer(self) -> None:
        """The answer arrives."""
        assert self.asked is not None
        limit, rows = self.asked
        self.asked = None
        self.lane.due_at = min(self.lane.due_at, self.lane.take(rows, limit, self.now))

    @precondition(lambda self: self.asked is not None)
    @rule()
    def no_answer(self) -> None:
        """The store is away."""
        self.asked = None
        self.lane.stop_asking()
        self.lane.behind = True

    @rule()
    def empty(self) -> None:
        """What is queued is let go of."""
        self.lane.empty()

    @rule(passed=st.integers(1, 60))
    def time_passes(self, passed: int) -> None:
        """What is due is looked for when its time has come."""
        self.now += passed
        if self.lane.due_at <= self.now:
            self.lane.due_at = NEVER
            self.lane.behind = True

    @invariant()
    def nothing_twice(self) -> None:
        """What is queued is queued once, known, and not under way."""
        queued = [due.message for due in self.lane.queue]
        under_way = {*self.in_flight, *(message for message, _ in self.settling)}
        assert len(queued) == len(set(queued)) <= MAX_QUEUE
        assert not under_way.intersection(queued)
        assert self.lane.known == under_way.union(queued)

    @invariant()
    def nothing_overlooked(self) -> None:
        """What is due is in its hands, or it knows that there is something; or it will look in time."""
        if self.lane.behind or self.asked is not None:
            return
        untold = {due.message for due in self.untold}
        for message, due in self.pending.items():
            if message not in self.lane.known and message not in untold:
                assert due > self.now or self.lane.due_at <= self.now
                assert self.lane.due_at <= due


def test_a_lane_is_as_the_store() -> None:
    """Nothing is begun that is not pending, or under way; nothing that is due is overlooked."""
    run_state_machine_as_test(Machine, settings=settings(max_examples=150, stateful_step_count=60))


def test_a_time_from_another_clock_is_now() -> None:
    """A delivery that is due later than any wait could be is due."""
    lane = made(schedule=(10.0,))
    limit = lane.ask()
    assert lane.take([Due(1, 1, 1000 + lane.longest_wait, 0, 0)], limit, 1000) == 1000 + lane.longest_wait
    lane.ask()
    assert lane.take([Due(1, 1, 1001 + lane.longest_wait, 0, 0)], limit, 1000) == NEVER
    assert [due.message for due in lane.queue] == [1]


def test_fifo_takes_them_in_their_order_whatever_their_time() -> None:
    """For one that keeps the order `due` is a place, and the endpoint waits instead."""
    lane = made(order=Order.FIFO)
    limit = lane.ask()
    assert lane.take([Due(1, 1, 5000, 0, 0), Due(1, 2, 6000, 0, 0)], limit, 1000) == NEVER
    assert [due.message for due in lane.queue] == [1, 2]
    assert lane.room(1000) == 1
    lane.settling = 1
    assert lane.room(1000) == 0


def test_what_was_forgotten_is_not_sent() -> None:
    """A delivery whose message is gone leaves the queue."""
    lane = made()
    lane.behind = False
    lane.offer(Due(1, 1, 0, 0, 0))
    lane.offer(Due(1, 2, 0, 0, 0))
    lane.forget({1, 3})
    assert [due.message for due in lane.queue] == [2]
    assert lane.known == {2}
    assert module.MAX_QUEUE >= 100, "more than may be on their way"
