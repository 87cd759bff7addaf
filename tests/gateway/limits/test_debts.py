"""Buckets that may be overdrawn against a model that forgets nothing, and the bound of their table."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.buckets import FORGOTTEN_AT_ONCE
from gateway.limits.debts import LONGEST, Debts

KEYS = "abcdef"
STEP = 1 / 64  # of the clock: exact in floating point, as are the rates and costs below
SECONDS = 2

tries = st.tuples(
    st.sampled_from(KEYS), st.integers(0, 256), st.integers(1, 300), st.sampled_from([1, 2, 8, 64])
)


class Model:
    """One bucket as its definition has it: what is in it, in tokens of a rate, from its whole history."""

    def __init__(self) -> None:
        self.filled = Fraction(SECONDS)  # in seconds, so that takings at different rates add up
        self.at = Fraction(0)

    def take(self, cost: int, rate: int, now: Fraction) -> Fraction | None:
        """Take if anything is in it; return how long it is empty otherwise."""
        self.filled = min(Fraction(SECONDS), self.filled + now - self.at)
        self.at = now
        if self.filled <= 0:
            return -self.filled
        self.filled -= Fraction(cost, rate)
        return None


@given(st.lists(tries, max_size=80))
def test_each_key_has_a_bucket_of_its_own(tries: list[tuple[str, int, int, int]]) -> None:
    """Whatever is forgotten meanwhile, each key may take what its own history leaves it, and is told when."""
    debts = Debts(SECONDS)
    models = {key: Model() for key in KEYS}
    now = 0
    for key, pause, cost, rate in tries:
        now += pause
        expected = models[key].take(cost, rate, Fraction(now, 64))
        assert debts.wait(key, now * STEP) == expected
        if expected is None:
            debts.take(key, cost / rate, now * STEP)
        assert len(debts) <= len(KEYS)


@given(st.lists(st.tuples(st.integers(0, 256), st.integers(1, 300)), max_size=80), st.sampled_from([1, 8]))
def test_no_more_than_burst_rate_and_the_last_one(tries: list[tuple[int, int]], rate: int) -> None:
    """
    In any stretch of time there is at most what a full bucket holds, the rate times the stretch, and what
    overdrew it last.
    """
    debts = Debts(SECONDS)
    now, taken = 0, list[tuple[int, int]]()
    for pause, cost in tries:
        now += pause
        if debts.wait("a", now * STEP) is None:
            debts.take("a", cost / rate, now * STEP)
            taken.append((now, cost))
    for first, (begin, _) in enumerate(taken):
        total = 0
        for end, cost in taken[first:]:
            assert total < SECONDS * rate + (end - begin) * STEP * rate
            total += cost


@given(st.integers(0, 64), st.integers(1, 300))
def test_it_is_over_when_it_was_said(pause: int, cost: int) -> None:
    """Before that there is nothing to be had, and behind it there is."""
    debts = Debts(SECONDS)
    debts.take("a", cost, 0)
    now = pause * STEP
    wait = debts.wait("a", now)
    if wait is None:
        assert cost < SECONDS + now
        return
    assert debts.wait("a", now + wait) == 0
    assert debts.wait("a", now + wait + STEP) is None


def test_the_largest_debt_is_bounded() -> None:
    """A huge batch at a tiny rate is paid back within half a day."""
    debts = Debts(SECONDS)
    debts.take("a", float("inf"), 5)
    assert debts.wait("a", 5) == LONGEST
    assert debts.wait("a", 5 + LONGEST + STEP) is None


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=120), st.integers(1, 10))
def test_the_table_is_bounded(takes: list[tuple[int, int]], most: int) -> None:
    """However many keys come, only so many are kept; the one that comes is among them."""
    debts = Debts(SECONDS, most)
    now = 0
    for key, pause in takes:
        now += pause
        debts.take(key, 3, now)
        assert len(debts) <= most
        assert debts.wait(key, now) is not None


def test_full_buckets_are_forgotten() -> None:
    """A crowd that came once is forgotten while others come, a few at each step; who is used stays."""
    debts = Debts(SECONDS)
    for key in range(100):
        debts.take(key, 1, 0)
    for step in range(100):
        debts.take("busy", 1, 10 + step)
        assert len(debts) == max(1, 101 - FORGOTTEN_AT_ONCE * (step + 1))


def test_the_longest_unused_is_forgotten_first() -> None:
    """Beyond the bound it is the key that was not used for the longest time that begins anew."""
    debts = Debts(SECONDS, most=2)
    for key in "aba":
        debts.take(key, 3, 0)
    debts.take("c", 3, 0)  # `b` is forgotten
    assert debts.wait("a", 0) == 4
    assert debts.wait("b", 0) is None
