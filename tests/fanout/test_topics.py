"""The grammar of topics and patterns, what matches what, and the index."""

from __future__ import annotations

import time

import pytest

from fanout import topics
from fanout.errors import TopicError
from fanout.topics import MAX_TOPIC_BYTES, PatternIndex, check_pattern, check_topic, is_exact, matches


@pytest.mark.parametrize(
    "text", ["a", "orders.42.created", "Größe.ß", "a b.c", "-._.~", "a" * MAX_TOPIC_BYTES, "é" * 127]
)
def test_topics(text: str) -> None:
    """Words of any printable characters, joined by dots, up to 255 bytes, are a topic and a pattern."""
    assert check_topic(text) == text
    assert check_pattern(text) == text
    assert is_exact(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (".", "empty word"),
        ("a..b", "empty word"),
        (".a", "empty word"),
        ("a.", "empty word"),
        ("a\nb", "U+000A"),
        ("a\rb", "U+000D"),
        ("a\0", "U+0000"),
        ("a\x7f", "U+007F"),
        ("a\x85b", "U+0085"),
        ("a\u2028b", "U+2028"),
        ("a\ud800", "U+D800"),
        ("a" * 256, "more than 255 bytes"),
        ("é" * 128, "more than 255 bytes"),
    ],
)
def test_what_is_neither_topic_nor_pattern(text: str, said: str) -> None:
    """Empty words, control characters and more than 255 bytes are refused in a sentence of plain ASCII."""
    for check in (check_topic, check_pattern):
        with pytest.raises(TopicError) as refused:
            check(text)
        assert said in str(refused.value)
        assert str(refused.value).isascii()
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 500


@pytest.mark.parametrize("text", ["*", "#", "a.*", "*.a.#", "#.#", "a.#.b.*"])
def test_patterns_with_wildcards(text: str) -> None:
    """A wildcard is a word of its own in a pattern, and has no place in a topic."""
    assert check_pattern(text) == text
    assert not is_exact(text)
    with pytest.raises(TopicError, match="wildcard"):
        check_topic(text)


@pytest.mark.parametrize("text", ["a*", "*a", "**", "a.#b", "##", "a.b#.c"])
def test_a_wildcard_is_a_whole_word(text: str) -> None:
    """A wildcard inside a word is refused: AMQP gives it no meaning."""
    for check in (check_pattern, check_topic):
        with pytest.raises(TopicError, match=r"wildcard"):
            check(text)


@pytest.mark.parametrize(
    ("pattern", "matched", "passed_over"),
    [
        ("a.b", ["a.b"], ["a", "a.b.c", "b.a"]),
        ("*", ["a", "b"], ["a.b"]),
        ("a.*", ["a.b"], ["a", "a.b.c", "b.b"]),
        ("*.b", ["a.b"], ["b", "a.b.b"]),
        ("#", ["a", "a.b", "a.b.c"], []),
        ("a.#", ["a", "a.b", "a.b.c"], ["b", "b.a"]),
        ("#.c", ["c", "b.c", "a.b.c"], ["c.b", "a"]),
        ("a.#.c", ["a.c", "a.b.c", "a.b.b.c", "a.c.c"], ["a", "c", "a.c.b"]),
        ("#.a.#", ["a", "b.a", "a.b", "b.a.b", "a.a"], ["b", "b.b"]),
        ("*.#", ["a", "a.b", "a.b.c"], []),
        ("#.*", ["a", "a.b", "a.b.c"], []),
        ("*.#.*", ["a.b", "a.b.c"], ["a"]),
        ("#.#", ["a", "a.b"], []),
        ("a.#.#.b", ["a.b", "a.x.b"], ["a", "b"]),
    ],
)
def test_matching(pattern: str, matched: list[str], passed_over: list[str]) -> None:
    """`*` stands for exactly one word and `#` for zero or more, for the plain form and the index alike."""
    index: PatternIndex[str] = PatternIndex()
    index.add(pattern, "it")
    for topic in matched:
        assert matches(pattern, topic)
        assert index.match(topic) == ("it",)
    for topic in passed_over:
        assert not matches(pattern, topic)
        assert index.match(topic) == ()


def test_a_value_is_found_once() -> None:
    """However many of a value's patterns match, and however often it was added, it is returned once."""
    index: PatternIndex[str] = PatternIndex()
    for pattern in ("a.b", "a.b", "a.*", "#", "#.b", "a.#", "*.*"):
        index.add(pattern, "it")
    assert index.match("a.b") == ("it",)


def test_an_answer_is_remembered_until_it_may_change() -> None:
    """The answer for a topic changes at once when a pattern comes or goes, exact or not."""
    index: PatternIndex[str] = PatternIndex()
    assert index.match("a.b") == ()
    index.add("a.b", "exact")
    assert index.match("a.b") == ("exact",)
    index.add("a.*", "wild")
    assert set(index.match("a.b")) == {"exact", "wild"}
    assert index.match("a.b") is index.match("a.b")
    index.discard("a.b", "exact")
    assert index.match("a.b") == ("wild",)
    index.discard("a.*", "wild")
    assert index.match("a.b") == ()


def test_discarding_what_is_not_there_changes_nothing() -> None:
    """A pattern or value that was never added can be discarded."""
    index: PatternIndex[str] = PatternIndex()
    index.add("a.*", "it")
    index.add("a.b", "it")
    for pattern in ("a.*", "a.b", "a.#", "a.*.c", "c"):
        index.discard(pattern, "other")
    index.discard("a.#", "it")
    assert index.match("a.b") == ("it",)


def test_memory_for_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the topics that were asked for, only so many answers are remembered."""
    monkeypatch.setattr(topics, "MAX_REMEMBERED", 10)
    index: PatternIndex[str] = PatternIndex()
    index.add("#", "it")
    for number in range(100):
        assert index.match(f"a.{number}") == ("it",)
        assert len(index._remembered) <= 10


def test_a_pattern_of_many_hashes_is_no_burden() -> None:
    """
    The worst pattern that fits into 255 bytes is matched against the longest topic in one pass over its
    words.
    """
    pattern, topic = ".".join(["#", "a"] * 64)[:255], ".".join(["a"] * 127 + ["b"])
    index: PatternIndex[str] = PatternIndex()
    index.add(check_pattern(pattern), "it")
    assert index.match(check_topic(topic)) == ()
    assert not matches(pattern, topic)


def test_many_hashes_cost_little() -> None:
    """A pattern of nothing but `#` is matched in a moment: who subscribes to it must not hold up the rest."""
    pattern, topic = ".".join("#" * 128), ".".join("a" * 128)
    begin = time.process_time()
    assert all(matches(pattern, topic) for _ in range(100))
    assert time.process_time() - begin < 2, "it took 8 s when each `#` was followed from each before it"
