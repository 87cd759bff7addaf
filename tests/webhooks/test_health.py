"""Health: the cap finds what a receiver takes, the breaker saves attempts, and days of failing are enough."""

from __future__ import annotations

from copy import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from webhooks.health import (
    BREAKER_FAILURES,
    BREAKER_MS,
    FAILING_ATTEMPTS,
    FAILING_MS,
    FAILING_SPREAD_MS,
    HOUR_MS,
    Breaker,
    Health,
    Record,
)
from webhooks.retry_after import LONGEST_MS
from webhooks.verdict import Verdict

NOW = 1_795_452_360_123
CEILING = 16
LONGEST_OPEN_MS = 300_000 * 1.2


def middle() -> float:
    """Dice that spread nothing."""
    return 0.5


def made(ceiling: int = CEILING, record: Record | None = None) -> Health:
    return Health(ceiling, middle, record)


def note(health: Health, verdict: Verdict, now: int, duration: int = 10, asked: int = 0) -> bool:
    return health.note(verdict, duration, asked, now)


def broken(now: int = NOW) -> Health:
    """Return one whose breaker opens at `now`."""
    health = made()
    for at in range(BREAKER_FAILURES):
        note(health, Verdict.FAILED, now - BREAKER_MS + at * BREAKER_MS // (BREAKER_FAILURES - 1))
    return health


def test_the_cap_is_room() -> None:
    """As many attempts may begin as the cap leaves."""
    health = made()
    assert [health.room(NOW, in_flight) for in_flight in (0, 15, 16, 17)] == [16, 1, 0, 0]


def test_overload_halves_the_cap_down_to_one() -> None:
    health = made()
    caps = []
    for step in range(6):
        note(health, Verdict.OVERLOADED, NOW + step * 100)
        caps.append(health.cap)
    assert caps == [8, 4, 2, 1, 1, 1]


def test_what_failed_together_halves_once() -> None:
    """Attempts that were on their way when the cap was halved say nothing about the new cap."""
    health = made()
    for step in range(10):
        note(health, Verdict.OVERLOADED, NOW + step, duration=1000)
    assert health.cap == 8
    note(health, Verdict.OVERLOADED, NOW + 2000, duration=1000)
    assert health.cap == 4


def test_other_failures_leave_the_cap_alone() -> None:
    """A receiver that says 404 is not too busy."""
    health = made()
    for step in range(4):
        note(health, Verdict.FAILED, NOW + step)
    assert health.cap == CEILING


def test_the_cap_grows_by_one_for_every_round() -> None:
    """From 1 it takes one success to 2, two more to 3, and so on up to the ceiling, and no further."""
    health = made()
    health.cap = 1
    caps = []
    for _ in range(sum(range(1, CEILING)) + 100):
        note(health, Verdict.SUCCEEDED, NOW)
        caps.append(health.cap)
    assert caps[:10] == [2, 2, 3, 3, 3, 4, 4, 4, 4, 5]
    assert caps.index(CEILING) + 1 == sum(range(1, CEILING))
    assert caps[-1] == CEILING


def test_another_ceiling() -> None:
    """A lower one holds at once, a higher one is grown into."""
    health = made()
    health.ceiling = 4
    assert health.room(NOW, 0) == 4
    health.ceiling = 6
    assert health.room(NOW, 0) == 4
    for _ in range(4):
        note(health, Verdict.SUCCEEDED, NOW)
    assert health.room(NOW, 0) == 5


def test_a_burst_of_failures_does_not_open_the_breaker() -> None:
    """Many failures at once are one incident."""
    health = made()
    for step in range(100):
        note(health, Verdict.FAILED, NOW + step)
    assert health.breaker(NOW + 100) is Breaker.CLOSED


def test_a_success_in_between_keeps_it_closed() -> None:
    health = made()
    for step in range(100):
        verdict = Verdict.SUCCEEDED if step % BREAKER_FAILURES == 0 else Verdict.FAILED
        note(health, verdict, NOW + step * BREAKER_MS)
        assert health.breaker(NOW + step * BREAKER_MS) is Breaker.CLOSED


def test_the_breaker_opens_and_probes() -> None:
    """Open, nothing is sent; then one attempt at a time, until one succeeds."""
    health = broken()
    assert health.breaker(NOW) is Breaker.OPEN
    assert health.opens(NOW) == NOW + 15_000
    assert health.room(NOW + 14_999, 0) == 0
    assert health.breaker(NOW + 15_000) is Breaker.HALF_OPEN
    assert [health.room(NOW + 15_000, in_flight) for in_flight in (0, 1, 2)] == [1, 0, 0]
    note(health, Verdict.SUCCEEDED, NOW + 15_010)
    assert health.breaker(NOW + 15_010) is Breaker.CLOSED
    assert health.room(NOW + 15_010, 0) == 2, "it begins again from 1"
    assert health.record == Record()


def test_each_probe_that_fails_doubles_the_wait() -> None:
    health = broken()
    now, waits = NOW, []
    for _ in range(7):
        opens = health.opens(now)
        waits.append((opens - now) // 1000)
        now = opens + 10
        note(health, Verdict.FAILED, now)
    assert waits == [15, 30, 60, 120, 240, 300, 300]


def test_late_failures_do_not_prolong_it() -> None:
    """What was on its way when the breaker opened is no probe, whenever it ends."""
    health = broken()
    opens = health.opens(NOW)
    note(health, Verdict.FAILED, NOW + 10)
    note(health, Verdict.FAILED, opens + 100, duration=opens + 100 - NOW)
    assert health.opens(opens + 100) == opens


def test_a_late_success_closes_it() -> None:
    """A receiver that answers is not down."""
    health = broken()
    note(health, Verdict.SUCCEEDED, NOW + 10, duration=20)
    assert health.breaker(NOW + 10) is Breaker.CLOSED


def test_an_open_breaker_saves_attempts() -> None:
    """A receiver that is down for a day costs a few hundred attempts, however much waits for it."""
    health = made()
    now, attempts = NOW, 0
    while now < NOW + 24 * HOUR_MS:
        if health.room(now, 0):
            attempts += 1
            now += 10
            note(health, Verdict.OVERLOADED, now)
        else:
            now = health.opens(now)
    assert 24 * 12 <= attempts <= 24 * 12 + BREAKER_MS // 10 + 10


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.OVERLOADED, Verdict.GONE])
def test_the_receivers_wish_holds_for_all(verdict: Verdict) -> None:
    """Retry-After closes the endpoint, and a success of an earlier attempt does not open it."""
    health = made()
    note(health, verdict, NOW, asked=60_000)
    note(health, verdict, NOW, asked=10_000)
    note(health, Verdict.SUCCEEDED, NOW + 10, asked=90_000)
    assert health.opens(NOW + 10) == NOW + 60_000
    assert health.room(NOW + 59_999, 0) == 0
    assert health.room(NOW + 60_000, 0) > 0


def failing(health: Health, *moments: int) -> list[bool]:
    """Return what is said of failures at these moments, in milliseconds from now."""
    return [note(health, Verdict.FAILED, NOW + moment) for moment in moments]


def test_days_of_failing_are_too_long() -> None:
    """Every hour an attempt, none succeeds: after 120 hours, not before, it is time to give up."""
    said = failing(made(), *range(0, FAILING_MS + HOUR_MS, HOUR_MS))
    assert said == [False] * 120 + [True]


def test_few_attempts_are_no_proof() -> None:
    few = range(0, FAILING_MS + 1, FAILING_MS // (FAILING_ATTEMPTS - 2))
    assert len(few) == FAILING_ATTEMPTS - 1
    assert not any(failing(made(), *few))


def test_one_bad_hour_and_a_straggler_are_no_outage() -> None:
    """Twenty failures on Monday and one on Saturday, with nothing sent in between, do not close it."""
    monday = range(0, HOUR_MS, HOUR_MS // 20)
    health = made()
    assert not any(failing(health, *monday, FAILING_MS + HOUR_MS))
    assert failing(health, FAILING_MS + 2 * HOUR_MS) == [True]


def test_a_success_begins_the_days_anew() -> None:
    health = made()
    assert not any(failing(health, *range(0, FAILING_MS, HOUR_MS)))
    note(health, Verdict.SUCCEEDED, NOW + FAILING_MS)
    assert not any(failing(health, *range(FAILING_MS, 2 * FAILING_MS, HOUR_MS)))


def test_its_owner_can_say_that_all_is_well() -> None:
    health = broken()
    health.reset()
    assert (health.breaker(NOW), health.record) == (Breaker.CLOSED, Record())


def test_a_restart_forgets_nothing_that_counts() -> None:
    """Breaker, wait and days go on where they were; a half open breaker is still half open."""
    before = broken()
    note(before, Verdict.FAILED, NOW, asked=3_600_000)
    after = made(record=copy(before.record))
    assert after.breaker(NOW) is Breaker.OPEN
    assert after.opens(NOW) == NOW + 3_600_000
    assert [after.room(NOW + 3_600_000, in_flight) for in_flight in (0, 1)] == [1, 0]


def test_a_clock_that_is_set_back_shuts_nothing_for_long() -> None:
    """However far: the breaker opens within minutes, a wait ends within a day, days begin anew."""
    for back in (HOUR_MS, 100 * HOUR_MS, NOW - 1):
        health = broken()
        now = NOW - back
        opens = health.opens(now)
        assert opens <= now + LONGEST_OPEN_MS
        assert health.room(opens, 0) == 1
        assert not note(health, Verdict.FAILED, opens + 10)
        assert health.record.first_failure == opens + 10
        note(health, Verdict.OVERLOADED, NOW, asked=LONGEST_MS)
        assert health.opens(now) == now + LONGEST_MS
        assert health.room(now + LONGEST_MS, 0) == 1


def test_a_clock_that_is_set_back_still_lets_the_cap_be_halved() -> None:
    health = made()
    note(health, Verdict.OVERLOADED, NOW)
    note(health, Verdict.OVERLOADED, NOW - HOUR_MS)
    note(health, Verdict.OVERLOADED, NOW - HOUR_MS + 100)
    assert health.cap == CEILING // 4


def test_a_clock_that_jumps_ahead_closes_nothing() -> None:
    """Five days that never were, among failures within an hour, are no outage."""
    moments = [*range(0, HOUR_MS, HOUR_MS // 20), *range(FAILING_MS, FAILING_MS + 1)]
    assert not any(failing(made(), *moments))


VERDICTS = (Verdict.SUCCEEDED, Verdict.FAILED, Verdict.OVERLOADED)


class Endpoint(RuleBasedStateMachine):
    """A health beside all that ever happened, from which what it should say is worked out by definition."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.health = made()
        self.ends: list[tuple[Verdict, int]] = []
        self.wait = 0

    @rule(pause=st.sampled_from((0, 1, 999, 4_000, 11_000, 200_000, 30 * HOUR_MS)))
    def time_passes(self, pause: int) -> None:
        self.now += pause

    @rule(
        verdict=st.sampled_from(VERDICTS),
        duration=st.integers(0, 15_000),
        asked=st.sampled_from((0, 0, 0, 5000, LONGEST_MS)),
    )
    def an_attempt_ends(self, verdict: Verdict, duration: int, asked: int) -> None:
        said = self.health.note(verdict, duration, asked, self.now)
        row = self.failures()
        self.ends.append((verdict, self.now))
        if verdict is not Verdict.SUCCEEDED:
            self.wait = max(self.wait, self.now + asked)
        assert said is (
            verdict is not Verdict.SUCCEEDED
            and len(row) + 1 >= FAILING_ATTEMPTS
            and self.now - row[0] >= FAILING_MS
            and row[-1] - row[0] >= FAILING_SPREAD_MS
        )

    @rule()
    def it_restarts(self) -> None:
        self.health = made(record=copy(self.health.record))

    def failures(self) -> list[int]:
        """Return when the attempts since the last success failed."""
        row: list[int] = []
        for verdict, end in self.ends:
            row = [] if verdict is Verdict.SUCCEEDED else [*row, end]
        return row

    @invariant()
    def the_breaker_is_as_defined(self) -> None:
        """It is closed unless enough attempts in a row failed, over long enough."""
        row = self.failures()
        opened = any(
            count >= BREAKER_FAILURES and end - row[0] >= BREAKER_MS for count, end in enumerate(row, 1)
        )
        breaker = self.health.breaker(self.now)
        assert (breaker is not Breaker.CLOSED) is opened
        assert self.health.record.open_until <= self.now + LONGEST_OPEN_MS

    @invariant()
    def room_is_bounded(self) -> None:
        """There is none while it is shut, and otherwise never more than cap, ceiling and breaker allow."""
        room = self.health.room(self.now, 0)
        assert 1 <= self.health.cap <= CEILING
        shut = self.now < self.wait or self.health.breaker(self.now) is Breaker.OPEN
        if shut:
            assert room == 0
            assert self.health.opens(self.now) > self.now
        elif self.health.breaker(self.now) is Breaker.HALF_OPEN:
            assert room == 1
        else:
            assert room == self.health.cap
        assert self.health.room(self.now, CEILING) == 0


TestEndpoint = Endpoint.TestCase
TestEndpoint.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.sampled_from(VERDICTS), st.integers(0, 3000), st.integers(0, 3000))))
def test_the_cap_is_that_of_tcp(history: list[tuple[Verdict, int, int]]) -> None:
    """Plainly: halved by an overload that began after the last halving, one more after a cap of successes."""
    health = made()
    now, cap, grown, halved = NOW, float(CEILING), 0, 0
    for verdict, pause, duration in history:
        now += pause
        note(health, verdict, now, duration)
        if health.record.open_until:
            return  # the breaker has a test of its own
        if verdict is Verdict.SUCCEEDED:
            grown += 1
            if grown >= cap:
                cap, grown = min(cap + 1, CEILING), 0
        elif verdict is Verdict.OVERLOADED and now - duration >= halved:
            cap, grown, halved = max(cap // 2, 1), 0, now
        assert health.cap == cap
