"""The guard: what an address is, who is let in, who is told why not, and who is cut off."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.guard import GUARDED, TOLD_BURST, TOLD_RATE, Guard, Limits, Verdict
from gateway.proxies import TrustedProxies
from gateway.settings import FIELDS, Settings


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("no address", "10.0.0.1", False),
    ],
    ids=["same", "different", "mapped", "one network", "two networks", "with a zone", "unreadable"],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    """An IPv4 address is itself, an IPv6 one its first 64 bits."""
    guard = Guard()
    assert (guard.address_of(one) == guard.address_of(other)) is same
    assert guard.address_of(one) is not None


def test_a_trusted_proxy_is_no_address() -> None:
    """It is let in whatever the limits are, and counted nowhere."""
    guard = Guard(Limits(per_address=1, rate=1), TrustedProxies.parse("10.0.0.0/8,fd00::/8"), Clock())
    for host in ("10.1.2.3", "fd00::1", "::ffff:10.1.2.3"):
        assert guard.address_of(host) is None
    assert guard.address_of("11.0.0.1") is not None
    assert all(guard.enter(None) is Verdict.IN for _ in range(100))
    guard.leave(None)
    assert not guard.held
    assert not guard.refused


def test_without_limits_everybody_is_let_in() -> None:
    """The default costs no bookkeeping either."""
    guard = Guard(clock=Clock())
    assert all(guard.enter("a") is Verdict.IN for _ in range(1000))
    assert not guard.held


def test_by_default_only_waiting_and_memory_are_limited() -> None:
    """What an honest office would notice is off."""
    limits = Limits.of(Settings())
    assert (limits.per_address, limits.rate) == (0, 0)
    assert limits.waiting == 1000
    assert limits.memory > 0
    assert set(GUARDED) <= set(FIELDS)


@given(st.integers(1, 4), st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=60))
def test_so_many_of_each_address(most: int, steps: list[tuple[bool, str]]) -> None:
    """An address has no more than it may, whoever else comes and goes, and its places are free again."""
    guard = Guard(Limits(per_address=most), clock=Clock())
    inside: Counter[str] = Counter()
    for comes, address in steps:
        if comes:
            let_in = guard.enter(address) is Verdict.IN
            assert let_in is (inside[address] < most)
            inside[address] += let_in
        elif inside[address]:
            guard.leave(address)
            inside[address] -= 1
        assert guard.held == +inside
    for address, number in inside.items():
        for _ in range(number):
            guard.leave(address)
    assert not guard.held


def test_so_many_a_second() -> None:
    """Twice the rate at once, then the rate; each address by itself; what does not count takes nothing."""
    clock = Clock()
    guard = Guard(Limits(rate=5), clock=clock)
    assert [guard.enter("a") for _ in range(11)] == [Verdict.IN] * 10 + [Verdict.TOLD]
    assert guard.enter("b") is Verdict.IN
    assert guard.enter("a", counts=False) is Verdict.IN
    clock.now = 1
    assert [guard.enter("a") for _ in range(6)] == [Verdict.IN] * 5 + [Verdict.TOLD]
    assert guard.refused == {"connect_rate": 2}


def test_only_so_many_are_told() -> None:
    """Beyond that they are cut off without a word, and counted all the same."""
    clock = Clock()
    guard = Guard(Limits(per_address=1), clock=clock)
    guard.enter("a")
    verdicts = Counter(guard.enter("a") for _ in range(1000))
    assert verdicts == {Verdict.TOLD: TOLD_BURST, Verdict.CUT: 1000 - TOLD_BURST}
    clock.now = 1
    verdicts = Counter(guard.enter("a") for _ in range(1000))
    assert verdicts[Verdict.TOLD] == TOLD_RATE
    assert guard.refused == {"max_connections_per_ip": 2000}
    guard.enter("b")
    assert guard.enter("b") is Verdict.TOLD


def test_who_was_handed_on_leaves_when_the_transport_does() -> None:
    """A transport that was not handed on, or left already, changes nothing."""
    guard = Guard(Limits(per_address=1), clock=Clock())
    transport = object()
    guard.enter("a")
    guard.hand_on(transport, "a")
    guard.closed(object())
    assert guard.held == {"a": 1}
    guard.closed(transport)
    guard.closed(transport)
    assert not guard.held


def test_the_time_to_wait() -> None:
    """It is until there is a token again, and some jitter: 0.5 to 3 seconds, rounded up."""
    clock = Clock()
    guard = Guard(Limits(rate=1), clock=clock)
    while guard.enter("a") is Verdict.IN:
        pass
    for _ in range(50):
        told = guard.too_many("a", last=True)
        assert told.status == 429
        assert told.headers == {"connection": "close"}
        assert 1.5 <= (told.retry_after or 0) <= 4
        assert 0.5 <= (guard.too_many("b", last=False).retry_after or 0) <= 3
