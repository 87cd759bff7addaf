"""What a connection wants: patterns as a set, and patterns that began at different places."""

from __future__ import annotations

import pytest

from fanout import selection
from fanout.selection import Backfill, Selection
from tests.support.fakes import event_of


def test_a_selection_of_topics_says_which_they_are() -> None:
    """Without a wildcard the topics are known, in order and each once; with one they are not."""
    assert Selection(["b", "a", "b"]).topics == ("a", "b")
    assert Selection(["a", "b.*"]).topics is None
    assert Selection([]).topics == ()


def test_it_wants_what_any_pattern_matches() -> None:
    """An event is picked when at least one of the patterns matches its topic."""
    wanted = Selection(["a.*", "b", "#.z"])
    assert [topic for topic in ("a", "a.x", "a.x.y", "b", "c", "c.d.z") if wanted.wants(topic)] == [
        "a.x",
        "b",
        "c.d.z",
    ]
    assert wanted.picks(event_of(1, "a.x"))
    assert not wanted.picks(event_of(1, "a"))
    assert not Selection([]).wants("a")


def test_memory_for_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One selection remembers the answers for only so many topics, and forgets none of what it wants."""
    monkeypatch.setattr(selection, "MAX_REMEMBERED", 10)
    wanted = Selection(["a.*"])
    for number in range(100):
        assert wanted.wants(f"a.{number}")
        assert not wanted.wants(f"b.{number}")
        assert len(wanted._answers) <= 10


def test_a_backfill_picks_only_behind_each_patterns_start() -> None:
    """An event is picked when a pattern that matches it began before it, whatever the others did."""
    backfill = Backfill({"a": 10, "b": 4, "#": 20})
    picked = [
        (topic, position)
        for topic in ("a", "b", "c")
        for position in (4, 5, 10, 11, 20, 21)
        if backfill.picks(event_of(1, topic, position=position))
    ]
    assert picked == [
        ("a", 11),
        ("a", 20),
        ("a", 21),
        ("b", 5),
        ("b", 10),
        ("b", 11),
        ("b", 20),
        ("b", 21),
        ("c", 21),
    ]


def test_a_backfill_knows_its_topics() -> None:
    """A backfill of topics alone can be read from their runs, as a selection can."""
    assert Backfill({"b": 1, "a": 2}).topics == ("a", "b")
    assert Backfill({"b": 1, "a.#": 2}).topics is None


def test_how_far_a_backfill_has_come() -> None:
    """At a position, every pattern has begun there or later."""
    assert Backfill({"a": 10, "b": 4}).starts_at(7) == {"a": 10, "b": 7}
