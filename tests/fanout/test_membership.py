"""Membership, step by step: what each heartbeat, silence and verdict does to one member."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import pytest

from fanout.heartbeat import (
    BURY_AFTER,
    DEAD_AFTER,
    FORGET_AFTER,
    HEARTBEAT,
    JOIN_AFTER,
    LEASE,
    PROMPT,
    SUSPECT_AFTER,
    TRANSITIONS,
    Heartbeat,
    Signal,
    State,
    digest_of,
)
from fanout.membership import Membership
from fanout.ring import ring_of

BUCKETS: Final = 16
EVERYTHING: Final = frozenset(range(BUCKETS))
BEGIN: Final = 1000.0
READY: Final = BEGIN + JOIN_AFTER + 2 * HEARTBEAT


def member(name: str = "a", born: int = 1, now: float = BEGIN) -> Membership:
    """Return a member that has just connected."""
    one = Membership(name, born, now, buckets=BUCKETS)
    one.connected(now)
    return one


def in_ring(one: Membership) -> tuple[str, ...]:
    """Return who is in the ring for a member."""
    return one.view.members


def stands(one: Membership, name: str) -> State:
    """Return where a member stands, or another for it."""
    return one.state if name == one.name else one.peers[name, 1].state


def tell(now: float, sender: Membership, *others: Membership, echo: bool = True) -> Heartbeat:
    """Have a member send a heartbeat that others hear, and with `echo` itself."""
    heartbeat = sender.beat(now)
    for each in (sender, *others) if echo else others:
        each.hear(heartbeat, now)
    return heartbeat


def live(members: Iterable[Membership], begin: float = BEGIN, end: float = READY) -> float:
    """Have members hear each other from one time to another; return when that ended."""
    members = list(members)
    now = begin
    while now <= end:
        for each in members:
            tell(now, each, *members)
        now += HEARTBEAT / 4
    return now - HEARTBEAT / 4


@pytest.fixture
def pair() -> tuple[Membership, Membership, float]:
    """Return two members that agree, and what time it is."""
    one, other = member("a"), member("b")
    now = live([one, other])
    assert in_ring(one) == in_ring(other) == ("a", "b")
    return one, other, now


# --- states -------------------------------------------------------------------------------------------------


def test_every_state_reaches_its_end_and_no_state_comes_back_from_it() -> None:
    """Whoever is told to leave has left, and stays so; nobody becomes alive but from joining."""
    for state, ways in TRANSITIONS.items():
        assert ways[Signal.LEFT] is State.DEAD
        assert State.SUSPECT not in ways.values()
        assert (State.ALIVE in ways.values()) == (state in (State.JOINING, State.ALIVE))
    assert set(TRANSITIONS[State.DEAD].values()) == {State.DEAD}
    assert set(TRANSITIONS) == set(State) - {State.SUSPECT}


def test_one_that_is_alone_owns_everything_for_good() -> None:
    """Without a broker there is nobody to hear, and nothing to wait for."""
    one = Membership("a", 1, BEGIN, alone=True, buckets=BUCKETS)
    assert one.owned(BEGIN) == EVERYTHING
    one.tick(BEGIN + 1e6)
    assert one.owned(BEGIN + 1e6) == EVERYTHING
    one.drain(BEGIN + 1e6)
    assert one.owned(BEGIN + 1e6) == frozenset()


def test_joining_takes_its_time() -> None:
    """A member owns nothing before it has heard itself for as long as others' leases may run."""
    one = member()
    assert stands(one, "a") is State.APART
    tell(BEGIN, one)
    assert stands(one, "a") is State.JOINING
    known = BEGIN + 0.1
    tell(known, one)
    live([one], known, known + JOIN_AFTER - 0.1)
    assert (one.state, one.owned(known)) == (State.JOINING, frozenset())
    tell(known + JOIN_AFTER, one)
    assert one.state is State.ALIVE
    assert one.owned(known + JOIN_AFTER) == EVERYTHING


def test_who_hears_nothing_back_stays_apart() -> None:
    """Sending is not enough, nor hearing others: whose own heartbeats do not come back has no part."""
    one, other = member("a"), member("b")
    for second in range(20):
        tell(BEGIN + second, other, one)
        tell(BEGIN + second, one, other, echo=False)
    assert one.state is State.APART
    assert in_ring(other) == ("b",)
    assert other.owned(BEGIN + 19) == EVERYTHING


# --- the lease ----------------------------------------------------------------------------------------------


def test_the_lease_counts_from_the_sending() -> None:
    """A heartbeat that was long on its way gives no more than is left of its lease."""
    one = member()
    now = live([one])
    beat = one.beat(now + 1)
    one.hear(beat, now + 3)
    assert one.lease == now + 1 + LEASE
    assert one.owns(0, now + 1 + LEASE - 0.01)
    assert not one.owns(0, now + 1 + LEASE)
    assert one.owned(now + 1 + LEASE) == frozenset()


def test_who_was_cut_off_begins_again() -> None:
    """When the lease is over a member is apart, as a new incarnation; what comes back late helps nothing."""
    one = member()
    now = live([one])
    late = one.beat(now + 1)
    one.hear(late, now + 1 + LEASE)
    assert (one.state, one.incarnation, in_ring(one)) == (State.APART, 1, ())
    assert one.due <= now + 1 + LEASE
    again = live([one], now + 6, now + 6 + JOIN_AFTER + HEARTBEAT)
    assert (one.state, one.owned(again)) == (State.ALIVE, EVERYTHING)


def test_a_new_connection_keeps_the_lease_and_forgives_silence() -> None:
    """Connected again in time nothing is lost; and nobody is buried for what the old connection had lost."""
    one, other = member("a"), member("b")
    now = live([one, other])
    one.connected(now + 2)
    assert one.owned(now + 2)
    live([one], now + 2, now + 2 + SUSPECT_AFTER - 0.1)
    assert one.state is State.ALIVE
    assert stands(one, "b") is State.ALIVE


# --- silence ------------------------------------------------------------------------------------------------


def test_silence_makes_suspect_and_then_dead(pair: tuple[Membership, Membership, float]) -> None:
    """A silent member is suspected, still owns what it had, and is buried; then its buckets are taken."""
    one, other, now = pair
    mine = one.owned(now)
    live([one], now, now + SUSPECT_AFTER)
    assert stands(one, "b") is State.SUSPECT
    assert one.owned(now + SUSPECT_AFTER) == mine
    live([one], now + SUSPECT_AFTER, now + DEAD_AFTER - 0.1)
    assert in_ring(one) == ("a", "b")
    assert other.owned(now + LEASE) == frozenset()
    end = live([one], now + DEAD_AFTER, now + DEAD_AFTER)
    assert stands(one, "b") is State.DEAD
    assert in_ring(one) == ("a",)
    assert one.owned(end) == EVERYTHING


def test_who_does_not_hear_itself_suspects_nobody(pair: tuple[Membership, Membership, float]) -> None:
    """Silence is measured up to the last heartbeat that came back, so a blocked process blames nobody."""
    one, _, now = pair
    beat = one.beat(now + 0.5)
    one.hear(beat, now + SUSPECT_AFTER + 0.2)
    assert stands(one, "b") is State.ALIVE
    one.tick(now + LEASE - 0.1)
    assert stands(one, "b") is State.ALIVE
    one.tick(now + 100)
    assert stands(one, "b") is State.ALIVE


def test_a_heartbeat_ends_suspicion(pair: tuple[Membership, Membership, float]) -> None:
    """Whoever is heard again is alive again."""
    one, other, now = pair
    end = live([one], now, now + SUSPECT_AFTER)
    tell(end, other, one)
    assert stands(one, "b") is State.ALIVE


def test_the_verdict_of_the_broker_hastens(pair: tuple[Membership, Membership, float]) -> None:
    """A member that the broker does not know any more is buried once its lease is over for certain."""
    one, _, now = pair
    one.gone("b", 1, now)
    one.gone("nobody", 1, now)
    live([one], now, now + BURY_AFTER - 0.1)
    assert in_ring(one) == ("a", "b")
    live([one], now + BURY_AFTER, now + BURY_AFTER)
    assert in_ring(one) == ("a",)


def test_the_dead_come_back_as_others_only(pair: tuple[Membership, Membership, float]) -> None:
    """A heartbeat of a buried incarnation changes nothing; one of the next does."""
    one, other, now = pair
    end = live([one], now, now + DEAD_AFTER)
    old = other.beat(now + 0.1)
    one.hear(old, end)
    assert in_ring(one) == ("a",)
    one.hear(replace(old, number=old.number + 1, incarnation=1), end)
    assert in_ring(one) == ("a", "b")


def test_the_dead_are_forgotten(pair: tuple[Membership, Membership, float]) -> None:
    """The dead are named to others for a while, then forgotten."""
    one, _, now = pair
    end = live([one], now, now + DEAD_AFTER)
    assert one.beat(end).dead == (("b", 1, 0),)
    end = live([one], end, end + FORGET_AFTER + 1)
    assert one.beat(end).dead == ()
    assert not one.peers


# --- what others say of oneself -----------------------------------------------------------------------------


def test_suspicion_is_refuted_at_once(pair: tuple[Membership, Membership, float]) -> None:
    """Who is suspected answers now, and until it was heard counts on what the other has heard."""
    one, other, now = pair
    at = now
    for quarter in range(1, 14):  # `b` does not hear `a`, which hears itself and `b`
        at = now + quarter / 4
        tell(at, one)
        tell(at, other, one)
    assert stands(other, "a") is State.SUSPECT
    assert one.lease == now + LEASE
    assert one.due <= at + PROMPT
    tell(at + 0.1, one, other)
    assert stands(other, "a") is State.ALIVE
    tell(at + 0.2, other, one)
    assert one.lease == at + 0.1 + LEASE


def test_suspicion_that_stays_ends_the_lease(pair: tuple[Membership, Membership, float]) -> None:
    """A member that another does not hear has stopped before that one takes over."""
    one, other, now = pair
    at = now
    while in_ring(other) == ("a", "b"):
        at += 0.25
        tell(at, one)
        tell(at, other, one)
        assert not one.owned(at) & other.owned(at)
    assert at - now >= DEAD_AFTER
    assert one.incarnation == 1


def test_one_that_died_with_its_suspicion_keeps_nobody_out() -> None:
    """Suspicion of one who is apart counts for nothing: it could not bury whoever said so and died."""
    one, other = member("a"), member("b")
    one.hear(replace(other.beat(BEGIN), doubts=(("a", 1, 1),)), BEGIN)
    live([one], BEGIN + DEAD_AFTER, BEGIN + 3 * DEAD_AFTER)
    assert one.owned(BEGIN + 3 * DEAD_AFTER) == EVERYTHING


def test_who_hears_of_its_own_death_gives_up(pair: tuple[Membership, Membership, float]) -> None:
    """Whoever was buried by anybody owns nothing from then on, and joins again as another incarnation."""
    one, other, now = pair
    said = replace(other.beat(now), dead=(("a", 1, 5), ("c", 1, 0)))
    one.hear(said, now)
    assert (one.state, one.incarnation, one.owned(now)) == (State.APART, 6, frozenset())
    assert in_ring(other) == ("a", "b")
    tell(now, one, other)
    assert in_ring(other) == ("b",)


def test_what_one_has_buried_all_bury() -> None:
    """A death is told on, so that all have the same view after a message."""
    one, other, third = member("a"), member("b"), member("c")
    now = live([one, other, third])
    told = replace(one.beat(now), dead=(("c", 1, 0),))
    other.hear(told, now)
    assert in_ring(other) == ("a", "b")
    assert other.beat(now).dead == (("c", 1, 0),)


def test_who_finds_another_under_its_name_ends(pair: tuple[Membership, Membership, float]) -> None:
    """A process that was started later under the same name replaces the earlier; an earlier one does not."""
    one, other, now = pair
    later = member("a", born=2, now=now)
    tell(now, one, later, other)
    assert not later.replaced
    tell(now, later, one, other)
    assert one.replaced
    assert (one.state, one.owned(now)) == (State.DEAD, frozenset())
    tell(now, one, other)
    assert in_ring(other) == ("b",)


# --- views --------------------------------------------------------------------------------------------------


def test_heartbeats_that_come_twice_or_late_change_nothing(
    pair: tuple[Membership, Membership, float],
) -> None:
    """Only a heartbeat with a greater number is news."""
    one, other, now = pair
    old = other.beat(now)
    other.drain(now)
    new = tell(now + 0.1, other, one)
    assert in_ring(one) == ("a",)
    view = one.view
    for stale in (old, new):
        one.hear(stale, now + 0.2)
        assert one.view == view


def test_nothing_is_taken_before_all_have_given(pair: tuple[Membership, Membership, float]) -> None:
    """One that joins gets nothing from a member that has not said that it has the same view."""
    one, other, now = pair
    third = member("c", now=now)
    end = live([one, other, third], now, now + JOIN_AFTER + HEARTBEAT / 2)
    while third.state is not State.ALIVE:
        end += 0.01
        tell(end, third, one)  # the last that it says `b` does not hear yet
    assert third.owned(end) == frozenset()
    assert "c" in in_ring(one)
    for _ in range(3):
        tell(end, one, other, third)
        tell(end, third, one)
        assert third.owned(end) == frozenset()
    assert other.owned(end)
    for each in (third, other, one, third):
        tell(end, each, one, other, third)
    assert third.owned(end) == ring_of(("a", "b", "c"), BUCKETS).owned("c")
    assert one.owned(end) | other.owned(end) | third.owned(end) == EVERYTHING


def test_a_view_that_comes_back_is_another_one(pair: tuple[Membership, Membership, float]) -> None:
    """What somebody said of the same members before they changed is no consent: it may have changed too."""
    one, other, now = pair
    before = one.view
    third = Heartbeat("c", 1, 0, 1, State.ALIVE, 0, "")
    one.hear(third, now)
    kept = one.owned(now)
    one.hear(replace(third, number=2, state=State.DRAINING), now)
    assert (one.view.version, in_ring(one)) == (before.version + 2, before.members)
    assert not one.settled
    assert one.owned(now) == kept
    assert kept < one.ring.owned("a")
    tell(now, one, other)
    tell(now, other, one)
    assert one.owned(now) == one.ring.owned("a")


def test_views_of_the_same_members_get_the_same_version(pair: tuple[Membership, Membership, float]) -> None:
    """Whoever has the same members under a lower version takes the higher; of other members it is not so."""
    one, other, now = pair
    other_view = replace(other.beat(now), version=50)
    one.hear(other_view, now)
    assert (one.view.version, one.settled) == (50, True)
    one.hear(replace(other_view, number=other_view.number + 1, version=70, digest=digest_of("x")), now)
    assert (one.view.version, one.settled) == (50, False)
    one.hear(replace(other_view, number=other_view.number + 2, version=70, state=State.DRAINING), now)
    assert (one.view.version, in_ring(one)) == (71, ("a",))


def test_who_drains_or_leaves_is_out_at_once(pair: tuple[Membership, Membership, float]) -> None:
    """A member that drains owns nothing any more; others take its buckets with the next heartbeat."""
    one, other, now = pair
    other.drain(now)
    assert (other.state, other.owned(now)) == (State.DRAINING, frozenset())
    tell(now, other, one)
    assert one.owned(now) == EVERYTHING
    other.leave(now)
    tell(now, other, one)
    assert stands(one, "b") is State.DEAD
    other.tick(now + 100)
    assert other.state is State.DEAD


def test_heartbeats_are_due_each_second_and_with_news(pair: tuple[Membership, Membership, float]) -> None:
    """Without news the next heartbeat is due in a second; a change is said at once, or nearly so."""
    one, other, now = pair
    one.beat(now)
    assert one.due == now + HEARTBEAT
    other.drain(now)
    one.hear(other.beat(now), now)
    assert one.due == now + PROMPT


def test_digests_tell_names_apart() -> None:
    """Names that look alike when they are joined are not mixed up."""
    assert digest_of(["ab", "c"]) == digest_of(["c", "ab"])
    assert len({digest_of(names) for names in (["ab", "c"], ["a", "bc"], ["abc"], ["a", "b", "c"], [])}) == 5
