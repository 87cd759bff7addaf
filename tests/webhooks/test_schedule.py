"""The schedule: ten attempts in 75 hours unless the user says otherwise, spread by a fifth."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.errors import Invalid
from webhooks.schedule import MAX_TOTAL, MAX_WAIT, MAX_WAITS, MIN_WAIT, Schedule, spread_ms


def middle() -> float:
    """Dice that spread nothing."""
    return 0.5


def test_the_default() -> None:
    """The example of Standard Webhooks 1.0: ten attempts, the last after 75:35:05."""
    schedule = Schedule()
    waits = [schedule.wait_ms(attempts, middle) for attempts in range(1, 10)]
    assert [wait and wait / 1000 for wait in waits] == [
        5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600,
    ]  # fmt: skip
    assert sum(filter(None, waits)) == ((75 * 60 + 35) * 60 + 5) * 1000
    assert schedule.attempts == 10
    assert schedule.wait_ms(10, middle) is None


def test_a_schedule_without_waits() -> None:
    """With no wait there is one attempt."""
    schedule = Schedule(())
    assert (schedule.attempts, schedule.wait_ms(1, middle), schedule.longest_ms) == (1, None, 0)


def test_a_schedule_that_was_shortened() -> None:
    """A delivery with more attempts than its schedule has now has had its last."""
    assert Schedule((1.0,)).wait_ms(7, middle) is None


@pytest.mark.parametrize(
    ("waits", "pointer", "said"),
    [
        ((1.0, 0.0), "/1", "a wait must have 0.1 to 604800 seconds"),
        ((-5.0,), "/0", "a wait must"),
        ((MAX_WAIT + 1,), "/0", "a wait must"),
        ((math.nan,), "/0", "a wait must"),
        ((math.inf,), "/0", "a wait must"),
        ((1.0,) * (MAX_WAITS + 1), "", "there are 31 waits: there may be 30"),
        ((MAX_WAIT,) * 5, "", "at most 2592000 seconds together"),
    ],
)
def test_absurd_schedules_are_refused(waits: tuple[float, ...], pointer: str, said: str) -> None:
    with pytest.raises(Invalid, match=said) as caught:
        Schedule(waits)
    assert caught.value.pointer == pointer


dice = st.floats(0, 1, exclude_max=True)
waits = st.lists(st.floats(MIN_WAIT, MAX_WAIT), max_size=MAX_WAITS).filter(
    lambda given: sum(given) <= MAX_TOTAL
)


@given(st.floats(MIN_WAIT, MAX_WAIT), dice)
def test_waits_are_spread_by_a_fifth(seconds: float, die: float) -> None:
    """Whatever the dice say, a wait is within a fifth of what it should be."""
    assert 800 * seconds - 1 <= spread_ms(seconds, lambda: die) <= 1200 * seconds + 1


@given(waits, st.lists(dice, min_size=MAX_WAITS, max_size=MAX_WAITS))
def test_the_longest_is_the_longest(waits: list[float], dice: list[float]) -> None:
    """All waits together never last longer than the schedule says they can."""
    schedule = Schedule(tuple(waits))
    lasted = 0
    for attempts, die in zip(range(1, schedule.attempts), dice, strict=False):
        wait = schedule.wait_ms(attempts, iter([die]).__next__)
        assert wait is not None
        lasted += wait
    assert lasted <= schedule.longest_ms + len(waits)
    assert schedule.wait_ms(schedule.attempts, middle) is None
