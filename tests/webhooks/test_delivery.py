"""Deliveries: every outcome leads where the table says, wishes are honoured, and nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.delivery import TRANSITIONS, Decision, Signal, State, deadline_of, decide, is_outlived
from webhooks.schedule import Schedule
from webhooks.verdict import Verdict, judge

NOW = 1_795_452_360_123
FAILURES = (Verdict.FAILED, Verdict.OVERLOADED)


def middle() -> float:
    """Dice that spread nothing."""
    return 0.5


def decided(
    verdict: Verdict = Verdict.FAILED,
    attempts: int = 1,
    waits: tuple[float, ...] = (5.0, 300.0),
    asked: int = 0,
    deadline: int = NOW + 1_000_000,
    expires: int = 0,
) -> Decision:
    return decide(
        verdict, attempts, NOW, Schedule(waits), middle, asked=asked, deadline=deadline, expires=expires
    )


@pytest.mark.parametrize(
    ("status", "error", "verdict"),
    [
        *[(status, None, Verdict.SUCCEEDED) for status in (200, 201, 202, 204, 206, 299)],
        *[(status, None, Verdict.FAILED) for status in (100, 199, 300, 301, 302, 304, 307, 308, 399)],
        *[(status, None, Verdict.FAILED) for status in (400, 401, 403, 404, 409, 413, 422, 451, 600, 999)],
        *[(status, None, Verdict.OVERLOADED) for status in (408, 429, 500, 501, 502, 503, 504, 599)],
        (410, None, Verdict.GONE),
        (None, None, Verdict.FAILED),
        *[(None, error, Verdict.FAILED) for error in ("dns", "tls", "protocol", "too_large", "blocked")],
        *[(None, error, Verdict.OVERLOADED) for error in ("refused", "connect", "timeout", "reset")],
        (None, "a new one", Verdict.FAILED),
        (200, "too_large", Verdict.FAILED),
        (410, "reset", Verdict.OVERLOADED),
    ],
)
def test_what_outcomes_say(status: int | None, error: str | None, verdict: Verdict) -> None:
    """Only a 2xx whose answer came in whole is a success, and only a whole 410 ends an endpoint."""
    assert judge(status, error) is verdict


def test_a_success_delivers() -> None:
    assert decided(Verdict.SUCCEEDED, attempts=3) == Decision(Signal.SUCCEEDED)


def test_the_end_of_an_endpoint_holds() -> None:
    """What an endpoint that is gone did not get is there if its owner opens it again."""
    assert decided(Verdict.GONE) == Decision(Signal.HELD)


@pytest.mark.parametrize("verdict", FAILURES)
def test_a_failure_is_tried_again(verdict: Verdict) -> None:
    """After each attempt comes its wait; after the last comes none."""
    assert decided(verdict, attempts=1) == Decision(Signal.POSTPONED, NOW + 5000)
    assert decided(verdict, attempts=2) == Decision(Signal.POSTPONED, NOW + 300_000)
    assert decided(verdict, attempts=3) == Decision(Signal.GIVEN_UP)


def test_the_receivers_wish_is_honoured() -> None:
    """It is waited for as long as the receiver asks, if that is longer than the schedule's wait."""
    assert decided(asked=60_000).due == NOW + 60_000
    assert decided(asked=1000).due == NOW + 5000


def test_the_deadline_bounds_wishes() -> None:
    """A receiver cannot put deliveries off for ever, and not shorten the schedule either."""
    assert decided(asked=60_000, deadline=NOW + 20_000).due == NOW + 20_000
    assert decided(asked=60_000, deadline=NOW - 1).due == NOW + 5000


def test_an_event_is_not_sent_behind_its_time() -> None:
    """When the next attempt would come too late there is none."""
    assert decided(expires=NOW + 5000) == Decision(Signal.OUTLIVED)
    assert decided(expires=NOW + 5001) == Decision(Signal.POSTPONED, NOW + 5000)
    assert decided(asked=10_000, expires=NOW + 5001) == Decision(Signal.OUTLIVED)
    assert decided(attempts=3, expires=NOW + 1) == Decision(Signal.GIVEN_UP)


def test_time_to_live() -> None:
    assert not is_outlived(NOW, 0)
    assert not is_outlived(NOW - 1, NOW)
    assert is_outlived(NOW, NOW)


def walk(schedule: Schedule, dice: list[float], wishes: list[int]) -> list[int]:
    """Return the moments of all attempts of a delivery that always fails, with what the receiver asks for."""
    now, moments = NOW, [NOW]
    deadline = deadline_of(NOW, schedule)
    for attempts, (die, wish) in enumerate(zip(dice, wishes, strict=True), 1):
        roll = iter([die])
        decision = decide(
            Verdict.FAILED, attempts, now, schedule, roll.__next__, asked=wish, deadline=deadline
        )
        if decision.signal is Signal.GIVEN_UP:
            return moments
        assert decision.signal is Signal.POSTPONED
        assert decision.due > now
        now = decision.due
        moments.append(now)
    raise AssertionError("it never ends")


@given(
    st.lists(st.floats(0.1, 604_800), max_size=4),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=5, max_size=5),
    st.lists(st.integers(0, 86_400_000), min_size=5, max_size=5),
)
def test_every_attempt_is_made(waits: list[float], dice: list[float], wishes: list[int]) -> None:
    """Whatever the receiver asks for, there are as many attempts as scheduled, and the end is bounded."""
    schedule = Schedule(tuple(waits))
    moments = walk(schedule, dice, wishes)
    assert len(moments) == schedule.attempts
    assert moments[-1] - NOW <= 2 * schedule.longest_ms + len(waits)


def test_every_state_but_the_last_can_be_left() -> None:
    """From pending and held every end can be reached; what has ended is only repeated by its owner's wish."""
    assert set(TRANSITIONS) == set(State)
    for state in (State.PENDING, State.HELD):
        assert {State.DELIVERED, State.FAILED, State.EXPIRED} <= set(TRANSITIONS[state].values())
    for state in (State.DELIVERED, State.FAILED):
        assert TRANSITIONS[state] == {Signal.REPEATED: State.PENDING}
    assert TRANSITIONS[State.EXPIRED] == {}


@pytest.mark.parametrize("state", [State.PENDING, State.HELD])
@pytest.mark.parametrize("verdict", Verdict)
def test_every_outcome_is_in_the_table(state: State, verdict: Verdict) -> None:
    """Whatever is decided on can happen to a delivery that an attempt was made of, held meanwhile or not."""
    for attempts in (1, 3):
        for expires in (0, NOW + 1):
            assert decided(verdict, attempts=attempts, expires=expires).signal in TRANSITIONS[state]
