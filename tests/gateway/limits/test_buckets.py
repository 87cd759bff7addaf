"""Token buckets against a model that forgets nothing, and the bound of their table."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.buckets import FORGOTTEN_AT_ONCE, Buckets

KEYS = "abcdef"
STEP = 1 / 64  # of the clock: exact in floating point, as are the rates below

takes = st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 256)), max_size=80)
rates = st.sampled_from([1, 2, 8, 64])
bursts = st.integers(1, 8)


class Model:
    """One bucket that is reckoned from its whole history."""

    def __init__(self, rate: int, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self.tokens = Fraction(burst)
        self.at = Fraction(0)

    def take(self, now: Fraction) -> bool:
        self.tokens = min(Fraction(self.burst), self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@given(rates, bursts, takes)
def test_each_key_has_a_bucket_of_its_own(rate: int, burst: int, takes: list[tuple[str, int]]) -> None:
    """Whatever is forgotten meanwhile, each key is given what its own history gives it, and told the wait."""
    buckets = Buckets(rate, burst)
    models = {key: Model(rate, burst) for key in KEYS}
    now = 0
    for key, pause in takes:
        now += pause
        assert buckets.take(key, now * STEP) == models[key].take(Fraction(now, 64))
        missing = max(Fraction(0), 1 - models[key].tokens) / rate
        assert buckets.wait(key, now * STEP) == missing
        assert len(buckets) <= len(KEYS)


@given(rates, bursts, takes)
def test_no_more_than_burst_and_rate(rate: int, burst: int, takes: list[tuple[str, int]]) -> None:
    """In any stretch of time a key has at most what a full bucket holds, and the rate times the stretch."""
    buckets = Buckets(rate, burst)
    now, given_at = 0, dict[str, list[int]]()
    for key, pause in takes:
        now += pause
        if buckets.take(key, now * STEP):
            given_at.setdefault(key, []).append(now)
    for times in given_at.values():
        for first, begin in enumerate(times):
            for count, end in enumerate(times[first:], start=1):
                assert count <= burst + (end - begin) * STEP * rate


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=120), st.integers(1, 10))
def test_the_table_is_bounded(takes: list[tuple[int, int]], most: int) -> None:
    """However many keys come, only so many buckets are kept; the one that comes is among them."""
    buckets = Buckets(1, 4, most)
    now = 0
    for key, pause in takes:
        now += pause
        buckets.take(key, now)
        assert len(buckets) <= most
        assert buckets.take(key, now) or buckets.wait(key, now) > 0


def test_full_buckets_are_forgotten() -> None:
    """A crowd that came once is forgotten while others come, a few at each step; who is used stays."""
    buckets = Buckets(1, 2)
    for key in range(100):
        buckets.take(key, 0)
    for step in range(100):
        assert buckets.take("busy", 10 + step)
        assert len(buckets) == max(1, 101 - FORGOTTEN_AT_ONCE * (step + 1))


def test_the_longest_unused_is_forgotten_first() -> None:
    """Beyond the bound it is the key that was not used for the longest time that begins anew."""
    buckets = Buckets(1, 1, most=2)
    assert [buckets.take(key, 0) for key in "aba"] == [True, True, False]
    assert buckets.take("c", 0)  # `b` is forgotten
    assert not buckets.take("a", 0)
    assert buckets.take("b", 0)
