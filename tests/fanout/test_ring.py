"""The ring: one table for one set of members, balanced, and moved as little as can be."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Final

import pytest

from fanout.ring import BOUND, BUCKETS, UNBOUNDED, Ring, moved, ring_of

EIGHT: Final = tuple(f"gateway-{number}" for number in range(8))
KEYS: Final = [f"user-{number}" for number in range(100_000)]

PINNED: Final = "c7319b30329c89ff3183a257f2f4eeb12e0b2b5a262409afdaabb47905c66526"
"""The digest of the table of `a`, `b` and `c`."""


def digest(ring: Ring) -> str:
    """Return a digest of a whole table."""
    owners = "".join(str(ring.owner_of(bucket)) for bucket in range(ring.buckets))
    return hashlib.sha256(owners.encode()).hexdigest()


# --- the same everywhere ------------------------------------------------------------------------------------


def test_the_table_is_this_one() -> None:
    """Fixed names have a fixed table: whoever changes it makes replicas of two versions disagree."""
    ring = Ring(["a", "b", "c"])
    assert digest(ring) == PINNED
    assert ring.loads() == {"a": 1347, "b": 1364, "c": 1385}
    assert ring.bucket("alice") == 2697
    assert [ring.owner(f"k{number}") for number in range(12)] == list("babbacacacac")
    assert ring.ranks(0) == ("b", "c", "a")


@pytest.mark.parametrize("salt", ["0", "1", "random"])
def test_another_process_makes_the_same_table(salt: str) -> None:
    """The table does not depend on the process, however that salts its own hashes."""
    program = "from tests.fanout.test_ring import *; print(digest(Ring({'c', 'a', 'b'})))"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": salt},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert answer.stdout.strip() == PINNED


# --- balance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [2, 3, 5, 8, 13, 32])
def test_load_is_bounded(members: int) -> None:
    """No member has more than 105 % of the mean in buckets, nor more than 115 % of it in keys."""
    ring = Ring(f"replica-{number}" for number in range(members))
    assert max(ring.loads().values()) * 100 * members <= BOUND * BUCKETS
    keys = Counter(ring.owner(key) for key in KEYS)
    assert max(keys.values()) <= 1.15 * len(KEYS) / members


def test_without_a_bound_everything_is_where_it_scores_highest() -> None:
    """With a bound that never acts each bucket is with the same member whoever else is there."""
    ring = Ring(EIGHT, bound=UNBOUNDED)
    for one, other in combinations(EIGHT, 2):
        alone = Ring([one, other], bound=UNBOUNDED)
        assert all(
            alone.owner_of(bucket) == ring.owner_of(bucket)
            for bucket in range(BUCKETS)
            if ring.owner_of(bucket) in (one, other)
        )


# --- movement -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaver", EIGHT)
def test_one_of_eight_leaves(leaver: str) -> None:
    """Not more than 14 % of the keys move, and of those hardly one that the leaver did not have."""
    before = Ring(EIGHT)
    after = Ring(set(EIGHT) - {leaver})
    owners = [(before.owner(key), after.owner(key)) for key in KEYS]
    changed = [was for was, now in owners if was != now]
    assert len(changed) <= 0.14 * len(KEYS)
    assert sum(was != leaver for was in changed) <= 0.01 * len(KEYS)


@pytest.mark.parametrize("joiner", EIGHT)
def test_one_joins_seven(joiner: str) -> None:
    """Joining is leaving, backwards: as much moves, nearly all of it to the joiner."""
    before, after = Ring(set(EIGHT) - {joiner}), Ring(EIGHT)
    changed = moved(before, after)
    assert len(changed) <= 0.14 * BUCKETS
    assert sum(after.owner_of(bucket) != joiner for bucket in changed) <= 0.01 * BUCKETS


def test_a_change_that_is_none_moves_nothing() -> None:
    """The same members have the same table, and it is made once."""
    assert moved(Ring(EIGHT), Ring(reversed(EIGHT))) == []
    assert ring_of(EIGHT) is ring_of(EIGHT)


# --- ranks --------------------------------------------------------------------------------------------------


def test_the_next_in_rank_mostly_takes_over() -> None:
    """The owner comes first; when it leaves, the next has nearly all of its buckets."""
    ring = Ring(EIGHT)
    without = {gone: Ring(set(EIGHT) - {gone}) for gone in EIGHT}
    followed = 0
    for bucket in range(BUCKETS):
        owner, heir, third = ring.ranks(bucket)
        assert owner == ring.owner_of(bucket)
        assert len({owner, heir, third}) == 3
        followed += without[owner].owner_of(bucket) == heir
    assert followed >= 0.95 * BUCKETS


def test_ranks_are_as_many_as_asked_for() -> None:
    """There are no more ranks than asked for, and no more than members."""
    ring = Ring(EIGHT, buckets=16)
    assert sorted(ring.ranks(3, most=100)) == sorted(EIGHT)
    assert ring.ranks(3, most=1) == (ring.owner_of(3),)
    assert Ring([]).ranks(3) == ()


# --- edges --------------------------------------------------------------------------------------------------


def test_nobody_owns_anything() -> None:
    """Without members nothing has an owner."""
    ring = Ring([])
    assert ring.owner("k") is None
    assert ring.loads() == {}
    assert ring.owned("a") == frozenset()


def test_one_owns_everything() -> None:
    """A member that is alone has every bucket."""
    assert Ring(["a"]).owned("a") == frozenset(range(BUCKETS))


def test_more_members_than_buckets() -> None:
    """Where there are not enough buckets, nobody has two."""
    ring = Ring(EIGHT, buckets=5)
    assert sorted(ring.loads().values()) == [0, 0, 0, 1, 1, 1, 1, 1]


def test_any_text_is_a_key() -> None:
    """Keys come from clients: an empty one, one of any script and half a surrogate have an owner as well."""
    for key in ("", "ключ", "\ud800", "x" * 10_000):
        assert Ring(EIGHT).owner(key) in EIGHT
