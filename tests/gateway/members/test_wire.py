"""Heartbeats on the wire: what is sent is what is read, and anything else is passed over."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.heartbeat import Heartbeat, State
from gateway.members.wire import MAX_BYTES, Facts, decode, encode

names = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())
numbers = st.integers(0, 2**53)
others = st.lists(st.tuples(names, numbers, numbers), max_size=3).map(tuple)
heartbeats = st.builds(
    Heartbeat,
    name=names,
    born=numbers,
    incarnation=numbers,
    number=numbers,
    state=st.sampled_from(State),
    version=numbers,
    digest=names,
    doubts=others,
    dead=others,
)
facts = st.builds(Facts, url=names, version=names, connections=numbers)


@given(names, heartbeats, facts)
def test_what_is_sent_is_what_is_read(group: str, heartbeat: Heartbeat, told: Facts) -> None:
    """Every member of it."""
    assert decode(encode(group, heartbeat, told)) == (group, heartbeat, told)


GOOD = json.loads(encode("replica", Heartbeat("a", 1, 0, 1, State.ALIVE, 1, "x"), Facts()))


def test_what_later_versions_add_is_passed_over() -> None:
    """As long as it is the same version, members that are not known do no harm."""
    assert decode(json.dumps({**GOOD, "more": 1}).encode()) is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b" " * (MAX_BYTES + 1),
        *(
            json.dumps({**GOOD, **odd}).encode()
            for odd in ({"v": 2}, {"state": "odd"}, {"born": "1"}, {"name": 1})
        ),
        *(
            json.dumps({key: GOOD[key] for key in GOOD if key != left}).encode()
            for left in ("v", "name", "group")
        ),
    ],
)
def test_what_is_no_heartbeat(body: bytes) -> None:
    """Of another version, of nobody, or of somebody who should not be there."""
    assert decode(body) is None
