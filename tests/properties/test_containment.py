"""Containment, held to all topics over a small alphabet, and what it costs, counted in steps."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fanout import containment
from fanout.containment import MAX_STEPS, Cover, covers, overlaps
from fanout.topics import MAX_TOPIC_BYTES, check_pattern, matches

ALPHABET = ("a", "b", "z")
"""`z` is in no pattern of these tests: it is the word that only wildcards match."""
WORDS = ("a", "b", "*", "#")
LENGTH = 5
"""Words of the longest pattern; two such patterns are told apart by a topic of twice as many words."""

patterns = st.lists(st.sampled_from(WORDS), min_size=1, max_size=LENGTH).map(".".join)
sets = st.lists(patterns, min_size=1, max_size=4)


@st.composite
def like(draw: st.DrawFn) -> tuple[str, str]:
    """Draw a pattern and another that was made from it, by words that are replaced, added or left out."""
    words = draw(st.lists(st.sampled_from(WORDS), min_size=2, max_size=LENGTH + 1))
    if draw(st.booleans()):
        words = ["#", *words[:LENGTH], "#"]
    other: list[str] = []
    for word in words:
        other += draw(st.sampled_from(([word], [word], [word], ["#", word], ["*", word], ["a"], ["#"], [])))
    if other.count("#") > 4:
        other = [word for word in other if word != "#"]
    return ".".join(words), ".".join(other or ["a"])


@cache
def topics(most: int) -> tuple[str, ...]:
    """Return all topics of up to `most` words."""
    return tuple(
        ".".join(words)
        for length in range(1, most + 1)
        for words in itertools.product(ALPHABET, repeat=length)
    )


@cache
def language(pattern: str, most: int) -> frozenset[str]:
    """Return the topics of up to `most` words that a pattern matches."""
    return frozenset(topic for topic in topics(most) if matches(pattern, topic))


def all_patterns(most: int) -> list[str]:
    return [
        ".".join(words) for length in range(1, most + 1) for words in itertools.product(WORDS, repeat=length)
    ]


def test_all_small_pairs() -> None:
    """For all pairs of patterns of up to three words the answer is that of trying all topics up to seven."""
    for pattern, other in itertools.product(all_patterns(3), repeat=2):
        expected = language(other, 7) <= language(pattern, 7)
        assert covers(pattern, other) == expected, (pattern, other)


def test_overlaps_of_all_small_pairs() -> None:
    """Two patterns overlap if and only if some topic is matched by both."""
    for pattern, other in itertools.product(all_patterns(3), repeat=2):
        expected = not language(other, 7).isdisjoint(language(pattern, 7))
        assert overlaps(pattern, other) == expected, (pattern, other)


@settings(max_examples=1000)
@given(like())
def test_overlaps_of_patterns_that_look_alike(pair: tuple[str, str]) -> None:
    """A topic that both match is among the short ones, or there is none."""
    pattern, other = pair
    both = any(matches(pattern, topic) and matches(other, topic) for topic in topics(7))
    assert overlaps(pattern, other) == overlaps(other, pattern)
    if both:
        assert overlaps(pattern, other)
    elif len(pattern.split(".")) + len(other.split(".")) <= 7:
        assert not overlaps(pattern, other)


def worst_topics(pattern: str, longest: int) -> set[str]:
    """
    Return the topics of a pattern with `z` for every wildcard, and every number of them up to `longest` for
    each `#`: another way to look at all topics, which reaches longer ones.
    """
    choices = [
        [["z"] * count for count in range(longest + 1)] if word == "#" else [["z" if word == "*" else word]]
        for word in pattern.split(".")
    ]
    made = (".".join(itertools.chain.from_iterable(parts)) for parts in itertools.product(*choices))
    return {topic for topic in made if topic}


@settings(max_examples=1500)
@given(patterns, patterns)
@example("*.#", "#")
@example("#", "#")
@example("a.#.b.#", "a.b")
@example("#.a.*.b", "#.a.#.b")
@example("#.a.*.*.#.b", "#.a.#.a.#.b.b")
def test_one_pattern(pattern: str, other: str) -> None:
    """One pattern covers another exactly if it matches all of the other's worst topics."""
    expected = all(matches(pattern, topic) for topic in worst_topics(other, LENGTH + 1))
    assert covers(check_pattern(pattern), check_pattern(other)) == expected


@settings(max_examples=2000)
@given(like())
@example(("#.a.b.#", "a.#.b"))
@example(("#.a.*.*.b.#", "#.a.*.#.b"))
@example(("a.#.a.*.b.#.b", "a.a.#.b.b.b"))
def test_one_pattern_and_one_like_it(pair: tuple[str, str]) -> None:
    """The same for patterns that resemble each other, where it is a near thing."""
    pattern, other = pair
    expected = all(matches(pattern, topic) for topic in worst_topics(other, LENGTH + 2))
    assert covers(pattern, other) == expected


@settings(max_examples=600)
@given(sets, patterns)
@example(["*", "*.*.#"], "#")
@example(["a", "a.*", "a.*.*.#"], "a.#")
@example(["a.#", "b.#", "*"], "*.#")
@example(["#.a", "#.b"], "#")
def test_a_set(granted: list[str], other: str) -> None:
    """A set covers a pattern exactly if every topic of it is matched by one of the set."""
    expected = all(
        any(matches(pattern, topic) for pattern in granted) for topic in worst_topics(other, LENGTH + 1)
    )
    assert Cover(granted).covers(other) == expected
    assert Cover(granted).decide(other)[0] == expected
    if expected:
        assert language(other, 5) <= frozenset().union(*(language(pattern, 5) for pattern in granted))


@settings(max_examples=200)
@given(st.lists(patterns, min_size=2, max_size=4), patterns)
def test_that_the_worst_topics_are_worst(granted: list[str], other: str) -> None:
    """The model above is right: a pattern whose worst topics are covered has no other topic that is not."""
    union = frozenset().union(*(language(pattern, 5) for pattern in granted))
    worst = worst_topics(other, 5) & set(topics(5))
    assert (worst <= union) == (language(other, 5) <= union)


@given(patterns, patterns, patterns)
def test_order(one: str, two: str, three: str) -> None:
    """Every pattern covers itself, and what is covered by what is covered is covered."""
    assert covers(one, one)
    if covers(one, two) and covers(two, three):
        assert covers(one, three)


def hostile() -> list[Sequence[str]]:
    """Return patterns of the full length, made to have many ways."""
    dice = random.Random(7)
    shapes: list[Sequence[str]] = [
        ["#", "a"] * 64,
        ["#", "*"] * 64,
        ["#", "a", *["*"] * 120],
        ["#", "a", "*"] * 42,
        ["a", "#", "*", "b"] * 32,
        ["*", "#"] * 64,
        ["#"] * 128,
    ]
    shapes += [dice.choices(("a", "b", "*", "#"), k=128) for _ in range(12)]
    return shapes


def spelled(words: Sequence[str]) -> str:
    return check_pattern(".".join(words)[:MAX_TOPIC_BYTES].rstrip("."))


class Counted(dict[str, int]):
    """Masks that count how often they are asked for: once for each word of a pass."""

    asked = 0

    def get(self, key: str, default: int = 0) -> int:  # type: ignore[override]
        Counted.asked += 1
        return super().get(key, default)


def test_one_pattern_takes_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many `#` there are, each word of the other pattern is looked for in a run at most once."""
    most = 0
    plain: Callable[[Sequence[str]], dict[str, int]] = containment._masks
    monkeypatch.setattr(containment, "_masks", lambda words: Counted(plain(words)))
    for pattern, other in itertools.product(map(spelled, hostile()), repeat=2):
        Counted.asked = 0
        covers(pattern, other)
        assert Counted.asked <= len(other.split("."))
        most = max(most, Counted.asked)
    assert most > 100, "no case is long enough, so nothing was counted"


def test_a_set_takes_bounded_steps() -> None:
    """The steps of a set are bounded, whatever is in it; beyond that the answer is no, not a longer wait."""
    shapes = hostile()
    taken = []
    for seed in range(40):
        dice = random.Random(seed)
        size = dice.choice((2, 5, 20, 100))
        cover = Cover(spelled(dice.choice(shapes)) for _ in range(size))
        for words in shapes:
            answer, steps = cover.decide(spelled(words))
            assert steps <= MAX_STEPS
            assert (answer is None) <= (steps == MAX_STEPS)
            taken.append(steps)
    assert max(taken) == MAX_STEPS, "no case reaches the bound, so it was not tested"


def test_beyond_the_bound_one_that_covers_alone_is_still_found() -> None:
    """The bound is for what a set covers together; a single pattern that covers is found anyway."""
    other = spelled(["#", "a", "*"] * 42)
    rest = ["#.a.*.b.#.*.a", "#.b.*.*.a.#", "#.a.*.*.*.*.*.*.a"]
    assert Cover([*rest, other]).covers(other)
    assert Cover([*rest, "#"]).covers(other)
    assert Cover(["*", "*.*.#"]).decide("#", limit=1) == (None, 1)
