"""The ring keeps its promises for any members, and is the one table that they describe."""

from __future__ import annotations

import hashlib
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.ring import BUCKETS, UNBOUNDED, Ring, moved

SETTINGS: Final = settings(max_examples=60, deadline=None)

names = st.text(min_size=1, max_size=12)
members = st.sets(names, min_size=1, max_size=9)
buckets = st.integers(1, 300)
bounds = st.integers(100, 200)


def score(member: str, bucket: int) -> bytes:
    """Return a score as the ring's description has it."""
    stream = hashlib.shake_128(member.encode(errors="surrogatepass")).digest(8 * bucket + 8)
    return stream[-8:]


def model(names: set[str], buckets: int, limit: int) -> list[str | None]:
    """Return the table in the plainest way: of all pairs the one that scores highest, then the next."""
    pairs = [(score(name, bucket), name, bucket) for name in names for bucket in range(buckets)]
    owners: list[str | None] = [None] * buckets
    room = dict.fromkeys(names, limit)
    for _, name, bucket in sorted(pairs, reverse=True):
        if owners[bucket] is None and room[name]:
            owners[bucket] = name
            room[name] -= 1
    return owners


@SETTINGS
@given(members, st.integers(1, 80), bounds)
def test_it_is_the_table_of_the_model(names: set[str], buckets: int, bound: int) -> None:
    """The table is what giving out the highest scores first makes of them."""
    ring = Ring(names, buckets=buckets, bound=bound)
    assert [ring.owner_of(bucket) for bucket in range(buckets)] == model(names, buckets, ring.limit)


@SETTINGS
@given(members, buckets, bounds, st.randoms(use_true_random=False))
def test_all_agree(names: set[str], buckets: int, bound: int, random: object) -> None:
    """In whatever order members are named, and named twice, the table is the same."""
    shuffled = [*names, *names]
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis has no name for its type
    assert (
        moved(Ring(names, buckets=buckets, bound=bound), Ring(shuffled, buckets=buckets, bound=bound)) == []
    )


@SETTINGS
@given(members, buckets, bounds)
def test_every_bucket_has_an_owner_within_the_bound(names: set[str], buckets: int, bound: int) -> None:
    """Every bucket is owned by a member, and none has more than the bound or the mean rounded up."""
    ring = Ring(names, buckets=buckets, bound=bound)
    loads = ring.loads()
    assert sum(loads.values()) == buckets
    assert max(loads.values()) <= max(-(-buckets // len(names)), bound * buckets / (100 * len(names)))
    for name in names:
        assert len(ring.owned(name)) == loads[name]


@SETTINGS
@given(members, names, buckets)
def test_without_a_bound_only_the_leaver_moves(names: set[str], leaver: str, buckets: int) -> None:
    """Where the bound never acts, exactly the leaver's buckets move, each to the next in rank."""
    before = Ring({*names, leaver}, buckets=buckets, bound=UNBOUNDED)
    after = Ring(names - {leaver}, buckets=buckets, bound=UNBOUNDED)
    assert moved(before, after) == sorted(before.owned(leaver))
    for bucket in before.owned(leaver):
        ranks = before.ranks(bucket)
        assert ranks[0] == leaver
        assert ranks[1:2] == after.ranks(bucket, most=1)


@settings(max_examples=25, deadline=None)
@given(st.sets(names, min_size=8, max_size=8), st.integers(0, 7))
def test_one_of_eight_moves_little(names: set[str], at: int) -> None:
    """Whatever eight members are called, one that leaves moves at most 14 % of the buckets."""
    leaver = sorted(names)[at]
    assert len(moved(Ring(names), Ring(names - {leaver}))) <= 0.14 * BUCKETS
