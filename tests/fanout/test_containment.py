"""What covers what: examples."""

from __future__ import annotations

import pytest

from fanout.containment import Cover, covers


@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        ("a.b", ["a.b"], ["a", "a.*", "a.#", "#", "*.b", "a.b.#"]),
        ("a.*", ["a.b", "a.*"], ["a", "a.#", "*.*", "#", "a.*.*", "a.*.#"]),
        ("a.#", ["a", "a.*", "a.#", "a.b.*.c", "a.#.b.#", "a.#.#"], ["#", "*", "*.a", "#.a", "*.#"]),
        ("*", ["a", "*"], ["#", "a.b", "*.*", "#.*", "*.#"]),
        ("#", ["a", "*", "#", "#.a.#", "*.*"], []),
        ("*.#", ["a", "*", "#", "#.#", "#.*", "a.#"], []),
        ("#.*.#.*", ["*.*", "*.*.#", "a.#.b", "#.a.*"], ["*", "a", "#", "a.#"]),
        ("#.c", ["c", "*.c", "a.#.c", "#.c"], ["c.*", "c.#", "#", "#.c.*"]),
        ("a.#.c", ["a.c", "a.*.c", "a.b.#.c", "a.#.#.c"], ["a.#", "#.c", "a", "a.#.c.#"]),
        ("#.b.#", ["b", "*.b", "b.*", "a.#.b.#", "#.b"], ["#", "*.*", "a.#"]),
        # A run that begins before a `#` of the other and ends behind it is only there for some topics.
        ("#.a.*.b", ["a.*.b", "#.a.c.b"], ["a.#.b", "#.a.#.b"]),
        # A gap may be filled by what a `#` of the other stands for only if it is never empty.
        ("a.*.#", ["a.b", "a.*.#", "a.#.b", "a.#.*"], ["a", "a.#"]),
    ],
)
def test_one_pattern(pattern: str, covered: list[str], not_covered: list[str]) -> None:
    """A pattern covers another only if it matches every topic of it, not just some that look alike."""
    assert [other for other in covered if not covers(pattern, other)] == []
    assert [other for other in not_covered if covers(pattern, other)] == []


@pytest.mark.parametrize(
    ("patterns", "covered", "not_covered"),
    [
        ([], [], ["a", "#"]),
        (["a", "b"], ["a", "b"], ["*", "#", "a.b"]),
        (["a", "a.*.#"], ["a.#", "a", "a.b.#"], ["#", "*"]),
        (["*", "*.*", "*.*.*.#"], ["#", "a.#", "#.a"], []),
        (["*", "*.*.*.#"], ["*", "a.*.b.#"], ["#", "*.*", "a.#"]),
        (["a.#", "*.b"], ["a.*", "a.b", "*.b"], ["#", "*.*", "#.b"]),
    ],
)
def test_a_set(patterns: list[str], covered: list[str], not_covered: list[str]) -> None:
    """A set covers what its patterns cover together, also if none does alone."""
    cover = Cover(patterns)
    assert [other for other in covered if not cover.covers(other)] == []
    assert [other for other in not_covered if cover.covers(other)] == []
