"""Matching, held to the definition in AMQP's own words, and the index to a list of patterns."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fanout.topics import PatternIndex, check_pattern, check_topic, matches, routes

words = st.sampled_from(("a", "b", "$c"))
topics = st.lists(words, min_size=1, max_size=6).map(".".join)
patterns = st.lists(st.sampled_from(("a", "b", "$c", "*", "#")), min_size=1, max_size=6).map(".".join)


def plainly(pattern: Sequence[str], topic: Sequence[str]) -> bool:
    """AMQP 0-9-1, 3.1.3.3: `*` is one word, `#` is zero or more; by trying everything."""
    if not pattern:
        return not topic
    first, *rest = pattern
    if first == "#":
        return plainly(rest, topic) or (bool(topic) and plainly(pattern, topic[1:]))
    return bool(topic) and first in ("*", topic[0]) and plainly(rest, topic[1:])


@settings(max_examples=1000)
@given(patterns, topics)
def test_matching_is_as_defined(pattern: str, topic: str) -> None:
    """The plain form agrees with the definition for any pattern and topic, but for what is reserved."""
    defined = plainly(pattern.split("."), topic.split("."))
    assert routes(check_pattern(pattern), check_topic(topic)) == defined
    hidden = topic.startswith("$") and pattern[0] in "*#"
    assert matches(pattern, topic) == (defined and not hidden)


def normal(pattern: str) -> str:
    """Return the shortest spelling of a pattern: to the index `a.#.#` and `a.#` are one pattern, not two."""
    words = pattern.split(".")
    return ".".join(word for at, word in enumerate(words) if word != "#" or words[at - 1 : at] != ["#"])


class Index(RuleBasedStateMachine):
    """An index beside a list of what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.index: PatternIndex[int] = PatternIndex()
        self.pairs: list[tuple[str, int]] = []

    @rule(pattern=patterns, value=st.integers(0, 4))
    def add(self, pattern: str, value: int) -> None:
        self.index.add(pattern, value)
        if (normal(pattern), value) not in self.pairs:
            self.pairs.append((normal(pattern), value))

    @rule(at=st.integers(0, 30))
    def discard(self, at: int) -> None:
        if at < len(self.pairs):
            self.index.discard(*self.pairs.pop(at))

    @rule(pattern=patterns, value=st.integers(0, 4))
    def discard_whatever(self, pattern: str, value: int) -> None:
        self.index.discard(pattern, value)
        if (normal(pattern), value) in self.pairs:
            self.pairs.remove((normal(pattern), value))

    @rule(at=st.integers(0, 30))
    def add_again(self, at: int) -> None:
        """The same once more, in another spelling."""
        if at < len(self.pairs):
            pattern, value = self.pairs[at]
            self.index.add(pattern.replace("#", "#.#"), value)

    @rule(topic=topics)
    def match(self, topic: str) -> None:
        found = self.index.match(topic)
        assert len(set(found)) == len(found)
        split = topic.split(".")
        assert set(found) == {
            value
            for pattern, value in self.pairs
            if plainly(pattern.split("."), split) and not (topic.startswith("$") and pattern[0] in "*#")
        }

    @invariant()
    def nothing_is_left_behind(self) -> None:
        """When all are gone, no node and no value remains, not even in a remembered answer."""
        if self.pairs:
            return
        assert self.index._exact == {}
        assert self.index._root.branches == {}
        assert self.index._wildcards == 0
        assert not any(self.index._remembered.values())

    def teardown(self) -> None:
        for pattern, value in self.pairs:
            self.index.discard(pattern, value)
        self.pairs.clear()
        self.nothing_is_left_behind()


TestIndex = Index.TestCase
TestIndex.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
