"""The endpoint: its states, what it wants, and what outcomes bring about for it and its deliveries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.mint import Mint
from webhooks import delivery
from webhooks.delivery import Decision, deadline_of
from webhooks.description import MEMBERS, Description, changed, created
from webhooks.endpoint import CLOSED, TRANSITIONS, Endpoint, Signal, State
from webhooks.envelope import Message
from webhooks.errors import Invalid
from webhooks.health import FAILING_MS, HOUR_MS, Breaker
from webhooks.keys import Keys
from webhooks.signature import Scheme

NOW = 1_795_452_360_123
DEADLINE = NOW + 1_000_000_000

OWNERS = (Signal.PAUSED, Signal.RESUMED, Signal.ENABLED)
"""What an owner can ask for."""

mint = Mint(1_000_000, "prefix")


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt."""

    status: int | None = None
    error: str | None = None
    duration_ms: int = 10
    retry_after: str | None = None


DELIVERED, BROKEN, GONE = Outcome(204), Outcome(500), Outcome(410)


def middle() -> float:
    """Dice that spread nothing."""
    return 0.5


def described(**members: Any) -> Description:
    given = {"url": "https://example.com/hook", "topics": ["#"], **members}
    return created(MEMBERS.decode(json.dumps(given).encode()), lambda _: None)[0]


def made(state: State = State.ACTIVE, **members: Any) -> Endpoint:
    description = described(**members)
    keys = Keys().completed(description.signatures, NOW)
    return Endpoint("wh_1", description, keys, middle, NOW, state)


def settle(endpoint: Endpoint, outcome: Outcome, now: int = NOW, attempts: int = 1) -> Decision:
    return endpoint.settle(outcome, attempts, now, deadline=DEADLINE)


def message(data: bytes = b"1", type: str = "t") -> Message:
    return Message("msg_1", "abcdef-1-0001", mint.event(NOW, "a", data, type=type).body)


def test_it_wants_what_its_owner_wants() -> None:
    """By type and by data; with neither, everything."""
    assert made().wants(message())
    assert made(types=["s", "t"]).wants(message())
    assert not made(types=["s"]).wants(message())
    assert made(filter={"$gte": 1}).wants(message())
    assert not made(filter={"$gt": 1}).wants(message())
    assert not made(types=["t"], filter={"$gt": 1}).wants(message())


def test_a_success_is_delivered() -> None:
    endpoint = made()
    assert settle(endpoint, DELIVERED) == Decision(delivery.Signal.SUCCEEDED)
    assert endpoint.state is State.ACTIVE


def test_a_failure_is_tried_again_by_its_own_schedule() -> None:
    endpoint = made(schedule=[1, 60])
    assert settle(endpoint, BROKEN, attempts=1).due == NOW + 1000
    assert settle(endpoint, BROKEN, attempts=2).due == NOW + 60_000
    assert settle(endpoint, BROKEN, attempts=3).signal is delivery.Signal.GIVEN_UP


@pytest.mark.parametrize("status", [429, 503, 400, 302])
def test_retry_after_holds_for_the_whole_endpoint(status: int) -> None:
    """The delivery waits for as long as was asked for, and so do all others."""
    endpoint = made()
    assert settle(endpoint, Outcome(status, retry_after="60")).due == NOW + 60_000
    assert endpoint.room(NOW + 59_999, 0) == 0
    assert endpoint.ready(NOW) == NOW + 60_000
    assert endpoint.room(NOW + 60_000, 0) > 0


def test_retry_after_with_a_success_means_nothing() -> None:
    endpoint = made()
    settle(endpoint, Outcome(202, retry_after="60"))
    assert endpoint.room(NOW, 0) == 16


def test_gone_closes_it() -> None:
    """410 ends the endpoint, and its deliveries are held, that one too."""
    endpoint = made()
    assert settle(endpoint, GONE) == Decision(delivery.Signal.HELD)
    assert endpoint.state is State.GONE
    assert endpoint.is_closed
    assert endpoint.room(NOW, 0) == 0


def test_days_of_failing_disable_it() -> None:
    """The failure that disables it holds its delivery, and so do those that were on their way."""
    endpoint = made()
    for now in range(NOW, NOW + FAILING_MS, HOUR_MS):
        assert settle(endpoint, BROKEN, now).signal is delivery.Signal.POSTPONED
        assert endpoint.state is State.ACTIVE
    now = NOW + FAILING_MS
    assert settle(endpoint, BROKEN, now) == Decision(delivery.Signal.HELD)
    assert endpoint.is_closed
    assert settle(endpoint, BROKEN, now + 1) == Decision(delivery.Signal.HELD)
    assert settle(endpoint, BROKEN, now + 2, attempts=10) == Decision(delivery.Signal.GIVEN_UP)
    assert settle(endpoint, DELIVERED, now + 3) == Decision(delivery.Signal.SUCCEEDED)
    assert endpoint.is_closed, "only its owner opens it"


def test_its_owner_opens_it_again() -> None:
    """Enabled, it begins afresh: no breaker, no wait, no days."""
    endpoint = made()
    for now in range(NOW, NOW + FAILING_MS + 1, HOUR_MS):
        settle(endpoint, Outcome(503, retry_after="3600"), now)
    assert endpoint.is_closed
    endpoint.ask(Signal.ENABLED)
    now = NOW + FAILING_MS
    assert endpoint.state is State.ACTIVE
    assert endpoint.room(now, 0) == 1
    assert endpoint.health.breaker(now) is Breaker.CLOSED
    settle(endpoint, BROKEN, now)
    assert endpoint.state is State.ACTIVE


def test_a_paused_one_takes_no_attempts() -> None:
    endpoint = made()
    endpoint.ask(Signal.PAUSED)
    assert endpoint.room(NOW, 0) == 0
    assert settle(endpoint, BROKEN).signal is delivery.Signal.POSTPONED
    endpoint.ask(Signal.RESUMED)
    assert endpoint.room(NOW, 0) > 0


def test_the_pause_does_not_count_as_failing() -> None:
    """What failed before and after a pause of a week is no week of failing."""
    endpoint = made()
    for now in range(NOW, NOW + FAILING_MS // 2, HOUR_MS):
        settle(endpoint, BROKEN, now)
    endpoint.ask(Signal.PAUSED)
    endpoint.ask(Signal.RESUMED)
    settle(endpoint, BROKEN, NOW + 2 * FAILING_MS)
    assert endpoint.state is State.ACTIVE


@pytest.mark.parametrize(
    ("state", "signal", "remedy"),
    [
        (State.PAUSED, Signal.ENABLED, "the endpoint is paused: resume it first"),
        (State.DISABLED, Signal.RESUMED, "the endpoint is disabled: enable it first"),
        (State.DISABLED, Signal.PAUSED, "the endpoint is disabled: enable it first"),
        (State.GONE, Signal.RESUMED, "the endpoint is gone: enable it first"),
        (State.GONE, Signal.PAUSED, "the endpoint is gone: enable it first"),
    ],
)
def test_what_an_owner_cannot_ask_for(state: State, signal: Signal, remedy: str) -> None:
    """It is refused with what to do instead, and changes nothing."""
    endpoint = made(state)
    with pytest.raises(Invalid, match=remedy):
        endpoint.ask(signal)
    assert endpoint.state is state


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_left_by_its_owner(state: State) -> None:
    """From everywhere a wish leads back to active, and what it can ask for may be asked for twice."""
    assert State.ACTIVE in (TRANSITIONS[state].get(signal) for signal in OWNERS)
    for signal in OWNERS:
        if (following := TRANSITIONS[state].get(signal)) is not None:
            assert TRANSITIONS[following][signal] is following


@pytest.mark.parametrize("state", State)
def test_attempts_can_end_in_any_state(state: State) -> None:
    """Whatever an attempt on its way brings about is in the table; nothing but a wish opens it."""
    assert Signal.GONE in TRANSITIONS[state]
    assert Signal.FAILING in TRANSITIONS[state]
    for outcome in (DELIVERED, BROKEN, GONE):
        endpoint = made(state)
        settle(endpoint, outcome)
        assert endpoint.state is (State.GONE if outcome is GONE else state)
        if state in CLOSED:
            assert endpoint.is_closed


def test_the_rate_bounds_attempts() -> None:
    endpoint = made(rate=2, in_flight=10)
    assert endpoint.room(NOW, 0) == 2
    endpoint.rate.take(NOW, 2)
    assert endpoint.room(NOW, 0) == 0
    assert endpoint.ready(NOW) == NOW + 500


def test_in_order_means_one_at_a_time() -> None:
    endpoint = made(order="fifo", in_flight=10)
    assert [endpoint.room(NOW, in_flight) for in_flight in (0, 1)] == [1, 0]


def change(endpoint: Endpoint, **members: Any) -> None:
    given = MEMBERS.decode(json.dumps(members).encode())
    endpoint.change(changed(endpoint.description, given, lambda _: None), NOW)


def test_a_change_holds_at_once() -> None:
    """Filter, types, headers, schedule, bounds and signatures."""
    endpoint = made()
    change(
        endpoint,
        filter={"$gt": 1},
        headers={"X-A": "1"},
        schedule=[7],
        in_flight=3,
        signatures=["v1", "v1a"],
    )
    assert not endpoint.wants(message())
    assert endpoint.lines.endswith(b"\r\nX-A: 1\r\n")
    assert endpoint.room(NOW, 0) == 3
    assert settle(endpoint, BROKEN).due == NOW + 7000
    assert {secret.scheme for secret in endpoint.secrets(NOW)} == set(Scheme)
    change(endpoint, signatures=["v1"], filter=None, types=["s"])
    assert [secret.scheme for secret in endpoint.secrets(NOW)] == [Scheme.V1]
    assert not endpoint.wants(message())


def test_a_change_of_something_else_keeps_the_rate() -> None:
    """A full bucket is not to be had by changing the description."""
    endpoint = made(rate=1)
    endpoint.rate.take(NOW, 1)
    change(endpoint, description="x")
    assert endpoint.room(NOW, 0) == 0
    change(endpoint, rate=5)
    assert endpoint.room(NOW, 0) == 5


def test_another_url_is_another_receiver() -> None:
    """What the old one did is not held against the new one."""
    endpoint = made()
    settle(endpoint, Outcome(503, retry_after="3600"))
    change(endpoint, description="x")
    assert endpoint.room(NOW, 0) == 0
    change(endpoint, url="https://example.com/other")
    assert endpoint.room(NOW, 0) > 0


def test_a_restart_keeps_what_was_known() -> None:
    """State and record come from the store: a closed endpoint stays closed, a wait goes on."""
    before = made()
    settle(before, Outcome(503, retry_after="3600"))
    after = Endpoint("wh_1", before.description, before.keys, middle, NOW, before.state, before.health.record)
    assert after.ready(NOW) == NOW + 3_600_000


def test_the_deadline_is_that_of_its_schedule() -> None:
    """A receiver that asks for a day each time gets what the schedule can last, and then its waits."""
    endpoint = made(schedule=[10, 10])
    deadline = deadline_of(NOW, endpoint.schedule)
    outcome = Outcome(429, retry_after="86400")
    first = endpoint.settle(outcome, 1, NOW, deadline=deadline)
    assert first.due == NOW + 24_000
    assert endpoint.settle(outcome, 2, first.due, deadline=deadline).due == NOW + 34_000


def test_an_event_that_outlived_itself() -> None:
    endpoint = made()
    decision = endpoint.settle(BROKEN, 1, NOW, deadline=DEADLINE, expires=NOW + 1)
    assert decision.signal is delivery.Signal.OUTLIVED
