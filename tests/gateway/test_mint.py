"""The mint: what it makes up for an event is what everybody else would."""

from __future__ import annotations

from fanout.event import tag_of
from gateway.mint import Mint


def test_the_tag_is_that_of_the_id() -> None:
    """Also the rare id that would have the tag "not known" has the tag that other replicas read from it."""
    mint = Mint(1000, "p-")
    events = [mint.event(1, "a", b"1") for _ in range(71_200)]
    ids = [event.body.split(b'"id":"')[1].split(b'"')[0].decode() for event in events]
    assert "p-11608" in ids, "the id whose check value ends with sixteen zeros"
    assert [event.tag for event in events] == [tag_of(id) for id in ids]
