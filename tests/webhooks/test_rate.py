"""The rate: never more than allowed over any stretch of time, and never less than that for no reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.rate import MAX_RATE, MIN_RATE, Bucket, Unlimited

NOW = 1_795_452_360_123

rates = st.floats(MIN_RATE, MAX_RATE)


def drain(bucket: Bucket, now: int) -> int:
    """Take all there is."""
    room = bucket.room(now)
    bucket.take(now, room)
    return room


def test_a_second_begins_full() -> None:
    """As many at once as in one second, and then one by one."""
    bucket = Bucket(10, NOW)
    assert drain(bucket, NOW) == 10
    assert bucket.ready(NOW) == NOW + 100
    assert drain(bucket, NOW + 99) == 0
    assert drain(bucket, NOW + 100) == 1


def test_less_than_one_a_second() -> None:
    bucket = Bucket(0.5, NOW)
    assert drain(bucket, NOW) == 1
    assert bucket.ready(NOW) == NOW + 2000
    assert drain(bucket, NOW + 1999) == 0
    assert drain(bucket, NOW + 2000) == 1


def test_a_pause_saves_up_one_second() -> None:
    bucket = Bucket(10, NOW)
    drain(bucket, NOW)
    assert drain(bucket, NOW + 86_400_000) == 10


def test_more_than_there_is_cannot_be_taken() -> None:
    with pytest.raises(AssertionError):
        Bucket(10, NOW).take(NOW, 11)


def test_a_clock_that_is_set_back() -> None:
    """It goes on filling from the new time on, and nothing is lost."""
    bucket = Bucket(10, NOW)
    drain(bucket, NOW)
    assert drain(bucket, NOW - 86_400_000) == 0
    assert drain(bucket, NOW - 86_400_000 + 100) == 1


def test_no_limit() -> None:
    rate = Unlimited()
    rate.take(NOW, 1_000_000)
    assert rate.room(NOW) > 1_000_000
    assert rate.ready(NOW) == NOW


@given(rates, st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 100)), max_size=50))
def test_never_more_than_allowed(rate: float, steps: list[tuple[int, int]]) -> None:
    """Over any stretch no more is taken than a full bucket and what flows in meanwhile."""
    bucket = Bucket(rate, NOW)
    now, taken = NOW, [(NOW, 0)]
    for pause, wanted in steps:
        now += pause
        granted = min(wanted, bucket.room(now))
        bucket.take(now, granted)
        taken.append((now, granted))
    flow, full = rate + 0.0005, max(rate + 0.0005, 1)
    for begin, (start, _) in enumerate(taken):
        total = 0
        for moment, granted in taken[begin:]:
            total += granted
            assert total <= full + (moment - start) * flow / 1000


@given(rates, st.lists(st.integers(0, 5000), max_size=20))
def test_ready_is_exact(rate: float, pauses: list[int]) -> None:
    """At the moment it names there is room, and a millisecond before there is none."""
    bucket = Bucket(rate, NOW)
    now = NOW
    for pause in pauses:
        now += pause
        drain(bucket, now)
        ready = bucket.ready(now)
        assert ready > now
        assert bucket.room(ready - 1) == 0
        assert bucket.room(ready) >= 1
        now = ready
