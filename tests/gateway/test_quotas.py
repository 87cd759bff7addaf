"""Quotas: whose limit counts, who is another subject, and that a refusal costs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from fanout.grants import Grants
from fanout.grants import Limits as Claimed
from gateway.auth.caller import ANYBODY, Caller, Kind
from gateway.limits.refusal import ComeBack
from gateway.quotas import BURST_SECONDS, COUNTED, Limits, Quotas, most_bytes, most_topics
from gateway.settings import FIELDS, Settings
from tests.support.tokens import SECRET

ALL = Limits(connections=2, publish_rate=4, publish_bytes=100, polls=2, requests=3)

Use = Callable[[Quotas, Caller], None]


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def caller(subject: str | None = "ada", /, tenant: str | None = None, **limits: Any) -> Caller:
    """Return somebody with a token that names limits."""
    grants = Grants(publish=["#"], subscribe=["#"], tenant=tenant, limits=Claimed(**limits))
    return Caller(grants, Kind.TOKEN, subject)


def connect(quotas: Quotas, caller: Caller) -> None:
    quotas.check_place(caller)
    quotas.hold(object(), caller)


# How one is used up: the setting, the member of `Limits`, a use that costs 1, and what the burst is.
USES: dict[str, tuple[str, Use, float]] = {
    "max_connections_per_subject": ("connections", connect, 1),
    "publish_rate": ("publish_rate", lambda quotas, who: quotas.publish(who, 1, 0), BURST_SECONDS),
    "publish_bytes": ("publish_bytes", lambda quotas, who: quotas.publish(who, 1, 1), BURST_SECONDS),
    "poll_rate": ("polls", lambda quotas, who: quotas.poll(who), BURST_SECONDS),
}
every_use = pytest.mark.parametrize("setting", USES)


def uses(quotas: Quotas, setting: str, who: Caller, most: int = 1000) -> int:
    """Use it up; return how often it could be used."""
    _, use, _ = USES[setting]
    done = 0
    try:
        while done < most:
            use(quotas, who)
            done += 1
    except ComeBack as refusal:
        return done if refusal.status == 429 and setting in refusal.detail else -1
    return done


def _claim(setting: str, limit: int) -> dict[str, Any]:
    return {USES[setting][0]: limit}


def only(setting: str, limit: int) -> Limits:
    return Limits(**{USES[setting][0]: limit})


@every_use
def test_the_setting_counts(setting: str) -> None:
    """Each subject has the limit to itself, in each tenant; the refusals are counted."""
    quotas = Quotas(only(setting, 4), Clock())
    expected = 4 * USES[setting][2]
    for who in (caller(), caller("bob"), caller(tenant="one"), caller(tenant="two")):
        assert uses(quotas, setting, who) == expected
    assert uses(quotas, setting, caller()) == 0, "another token of the same subject"
    assert quotas.refused == Counter({setting: 5})


@every_use
@pytest.mark.parametrize("claimed", [1, 8], ids=["lower", "higher"])
def test_the_claim_counts_in_place_of_the_setting(setting: str, claimed: int) -> None:
    """In both directions."""
    quotas = Quotas(only(setting, 4), Clock())
    who = caller(**_claim(setting, claimed))
    assert uses(quotas, setting, who) == claimed * USES[setting][2]


@every_use
def test_a_claim_counts_where_there_is_no_setting(setting: str) -> None:
    """Without either there is no limit, and nothing is remembered."""
    quotas = Quotas(clock=Clock())
    assert uses(quotas, setting, caller(), 500) == 500
    assert not quotas.held
    assert not len(quotas._events) + len(quotas._bytes) + len(quotas._polls)
    assert uses(quotas, setting, caller(**_claim(setting, 4))) == 4 * USES[setting][2]


@every_use
@pytest.mark.parametrize("who", [ANYBODY, caller(None)], ids=["not known", "no subject"])
def test_who_is_nobody_has_no_limit(setting: str, who: Caller) -> None:
    """There is nobody to count it for."""
    assert uses(Quotas(only(setting, 1), Clock()), setting, who, 50) == 50


def test_a_batch_may_overdraw() -> None:
    """What is larger than a bucket can be published, but not behind something else; then it is paid back."""
    clock = Clock()
    quotas = Quotas(Limits(publish_rate=4), clock)
    quotas.publish(caller(), 100, 0)
    with pytest.raises(ComeBack) as refused:
        quotas.publish(caller(), 1, 0)
    wait = (100 - 4 * BURST_SECONDS) / 4
    assert wait + 0.5 <= (refused.value.retry_after or 0) <= wait + 3
    clock.now = wait
    with pytest.raises(ComeBack):
        quotas.publish(caller(), 1, 0)
    clock.now = wait + 0.5  # the least that anybody is told to wait beyond
    quotas.publish(caller(), 1, 0)


def test_a_refusal_costs_nothing() -> None:
    """Neither of what it was refused for nor of the other."""
    clock = Clock()
    quotas = Quotas(Limits(publish_rate=128, publish_bytes=10), clock)
    quotas.publish(caller(), 1, 50)
    for _ in range(1000):
        with pytest.raises(ComeBack, match="publish_bytes"):
            quotas.publish(caller(), 1, 50)
    clock.now = 3.5  # 50 bytes less 20 at once are 3 seconds
    assert uses(quotas, "publish_rate", caller(publish_bytes=2**30)) == 256


@pytest.mark.parametrize("rate", [5e-324, 1e-300, 1e300], ids=str)
def test_rates_that_nobody_means_do_no_harm(rate: float) -> None:
    """Of a token: whatever it says, there is an answer."""
    quotas = Quotas(clock=Clock())
    quotas.publish(caller(publish_rate=rate), 10_000, 1)
    if rate < 1:
        with pytest.raises(ComeBack) as refused:
            quotas.publish(caller(publish_rate=rate), 1, 1)
        assert dict(refused.value.raw_headers(b""))[b"retry-after"].isdigit()


def test_places_are_given_back() -> None:
    """Once, however often it is said; what was not counted is nobody's."""
    quotas = Quotas(Limits(connections=1))
    first, unknown = object(), object()
    quotas.hold(unknown, ANYBODY)
    quotas.check_place(caller())
    quotas.hold(first, caller())
    with pytest.raises(ComeBack, match="max_connections_per_subject"):
        quotas.check_place(caller())
    quotas.left(unknown)
    assert quotas.held == {caller().owner: 1}
    quotas.left(first)
    quotas.left(first)
    quotas.check_place(caller())
    assert not quotas.held


@pytest.mark.parametrize(
    ("claimed", "most"),
    [({}, 3), ({"requests": 1}, 1), ({"requests": 5}, 5)],
    ids=["setting", "lower", "higher"],
)
def test_requests_are_bounded(claimed: dict[str, Any], most: int) -> None:
    """By how many are unfinished."""
    quotas = Quotas(ALL)
    quotas.check_request(caller(**claimed), lambda: most - 1)
    with pytest.raises(ComeBack, match="max_requests_per_subject") as refused:
        quotas.check_request(caller(**claimed), lambda: most)
    assert (refused.value.retry_after or 0) >= 5
    quotas.check_request(ANYBODY, lambda: 100)
    assert quotas.refused == {"max_requests_per_subject": 1}


def test_what_the_gateway_holds_is_the_most() -> None:
    """Of one connection and of one message a token may have less than all, and not more."""
    for claimed, most in ((3, 3), (30, 10)):
        assert most_topics(caller(subscriptions=claimed), 10) == most
        assert most_bytes(caller(message_bytes=claimed), 10) == most
    for who in (caller(), ANYBODY):
        assert (most_topics(who, 10), most_bytes(who, 10)) == (10, 10)


def test_the_settings_are_the_limits() -> None:
    """Each is a setting, and none is on by itself."""
    assert set(COUNTED) <= FIELDS.keys()
    assert Limits.of(Settings(data="memory:")) == Limits()
    given: dict[str, Any] = dict(zip(COUNTED, range(1, 6), strict=True))
    settings = Settings(data="memory:", jwt_key=SECRET, **given)
    assert Limits.of(settings) == Limits(connections=1, publish_rate=2, publish_bytes=3, polls=4, requests=5)


@pytest.mark.parametrize("setting", COUNTED)
def test_without_keys_a_limit_of_subjects_is_refused(setting: str) -> None:
    """There are no subjects, so it would say nothing."""
    given: dict[str, Any] = {setting: 1}
    with pytest.raises(ValueError, match=f"{setting}: nobody is asked who they are"):
        Settings(data="memory:", **given)
