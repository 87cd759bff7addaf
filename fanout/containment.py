"""
Containment: whether a pattern, or a set of them, covers another pattern, that is, matches every topic that
the other one matches. A grant is decided by it: who may listen to `orders.#` may listen to
`orders.*.created`.

Strategy: instead of all topics that a pattern matches, look at the worst. There is always a word that no
pattern names, a *strange* one, and only wildcards match it. So if the topics with strange words in the places
of the other pattern's wildcards are matched, all are. What remains open is how many words each `#` of it
stands for.

- For *one* covering pattern that can be told on the way, word by word (`covers`). The pattern is a row of
  literal runs between gaps, `a.*.*.#.b` being `a`, a gap of two words or more, and `b`, and the earliest
  place for each run is the best. While a gap still lacks words, a `#` of the other does most harm as no words
  at all. While a run is looked for, it does most harm as more words than the run has, which undo any part of
  it that was found. One pass, a fixed number of operations on small integers for each word.
- For a *set*, of which none need cover alone (`*` and `*.*.#` cover `#`), all numbers of words are followed
  at once: the subset construction (Rabin and Scott 1959), kept to the least sets, because what goes on from a
  set goes on from a larger one too. That may take long for patterns made for it, so its steps are counted,
  and beyond a limit the answer is no.

Topics have at least one word, so `*.#` covers `#`. That they have at most 255 bytes is not made use of: a
pattern that nothing so short can match counts like the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Final

MAX_STEPS: Final = 10_000
"""Operations that one answer about a set may take, each on integers with a bit for each word of the set."""

_STRANGE: Final = ""
"""A word that no pattern has."""


def covers(pattern: str, other: str) -> bool:
    """
    Tell whether `pattern` matches every topic that `other` matches; exact, in one pass over both.

    Args:
        pattern: a (checked) pattern or topic.
        other: a (checked) pattern or topic.
    """
    return _covers(_planned(pattern), _worst(other))


def overlaps(pattern: str, other: str) -> bool:
    """
    Tell whether there is a topic that both match.

    Args:
        pattern: a (checked) pattern or topic.
        other: a (checked) pattern or topic.
    """
    mine, yours = pattern.split("."), other.split(".")
    reached = {0}  # places in `yours` that topics which lead to the place at hand in `mine` can lead to
    for word in mine:
        reached = _through(yours, reached, word)
        if not reached:
            return False
    return len(yours) in _behind_hashes(yours, reached)


def _through(words: list[str], places: set[int], word: str) -> set[int]:
    """Return the places that one word of a pattern can lead to, from any of some places in another."""
    places = _behind_hashes(words, places)
    if word == "#":  # whatever follows, or nothing
        return set(range(min(places), len(words) + 1))
    return {
        at if words[at] == "#" else at + 1
        for at in places
        if at < len(words) and (words[at] in ("*", "#", word) or word == "*")
    }


def _behind_hashes(words: list[str], places: set[int]) -> set[int]:
    """Add the places behind each `#`, which may stand for nothing."""
    found = set(places)
    for place in sorted(places):
        at = place
        while at < len(words) and words[at] == "#":
            at += 1
            found.add(at)
    return found


@dataclass(frozen=True, slots=True)
class _Run:
    """
    What stands between two `#` of a pattern: literal words and single `*`, and a gap behind them.

    Attributes:
        words: begin and end with a literal word; but the first run begins, and the last one ends, as it is
            written, and these two may be empty.
        gap: how many words the gap has at least.
        masks: see `_masks`.
    """

    words: list[str]
    gap: int
    masks: dict[str, int]


def _planned(pattern: str) -> list[_Run]:
    """Return the runs of a pattern; there is a `#` between any two."""
    runs: list[list[str]] = [[]]
    for word in _canonical(pattern):
        if word == "#":
            runs.append([])
        else:
            runs[-1].append(word)
    lengths = [*map(_length_without_gap, runs[:-1]), len(runs[-1])]
    return [
        _Run(run[:length], len(run) - length, _masks(run[:length]))
        for run, length in zip(runs, lengths, strict=True)
    ]


def _covers(runs: list[_Run], words: list[str]) -> bool:
    """Tell whether the runs of a pattern are found, one behind the other, in all that `words` stand for."""
    first, *rest = runs
    if len(first.words) > len(words) or not all(map(_stands_for, first.words, words)):
        return False
    if not rest:
        return len(first.words) == len(words)
    at, lacking = len(first.words), first.gap
    for run in rest[:-1]:
        at = _behind(run, lacking, words, at)
        if not at:
            return False
        lacking = run.gap
    return _ends(rest[-1], lacking, words, at)


def _behind(run: _Run, lacking: int, words: list[str], at: int) -> int:
    """
    Look for a run behind a gap of `lacking` words or more, in the worst of what `words` stand for from a
    place on. Return the place behind the earliest that is always there, or 0 if there is none.

    What is found of it is held as bits: bit n is set if the words so far end with the first n+1 of the run.
    """
    whole = 1 << len(run.words) - 1
    found = 0
    for place in range(at, len(words)):
        word = words[place]
        if lacking:
            lacking -= word != "#"
            continue
        found = 0 if word == "#" else (found << 1 | 1) & run.masks.get(word, run.masks[_STRANGE])
        if found & whole:
            return place + 1
    return 0


def _ends(run: _Run, lacking: int, words: list[str], at: int) -> bool:
    """Tell whether `words` always end with the last run, behind a gap of `lacking` words or more."""
    length = len(run.words)
    before = words[at : len(words) - length]
    behind = words[len(words) - length :]
    return (
        at + length <= len(words)
        and sum(word != "#" for word in before) >= lacking
        and all(map(_stands_for, run.words, behind))
    )


def _stands_for(mine: str, word: str) -> bool:
    """Tell whether a word of a pattern, no `#`, matches whatever a word of another stands for."""
    return mine == word or (mine == "*" and word != "#")


def _canonical(pattern: str) -> list[str]:
    """
    Return the words of a pattern with each run of wildcards in one order: `#.*.#.*` means what `*.*.#` means,
    two words or more.
    """
    words: list[str] = []
    for wild, run in groupby(pattern.split("."), lambda word: word in ("*", "#")):
        these = list(run)
        words += ["*"] * these.count("*") + ["#"] if wild and "#" in these else these
    return words


def _worst(pattern: str) -> list[str]:
    """Return the words of a pattern to be covered: `#` alone is one word or more, as no topic is empty."""
    words = _canonical(pattern)
    return words if words != ["#"] else ["*", "#"]


def _length_without_gap(run: list[str]) -> int:
    """Return how long a run is without the `*` at its end: before a `#` they are the least of the gap."""
    length = len(run)
    while length and run[length - 1] == "*":
        length -= 1
    return length


def _masks(words: Iterable[str]) -> dict[str, int]:
    """Return for each word of a pattern, and for a strange one, the places that match it, as bits."""
    words = list(words)
    any_word = sum(1 << at for at, word in enumerate(words) if word == "*")
    masks = {_STRANGE: any_word, "*": any_word}
    for at, word in enumerate(words):
        if word not in ("*", "#", _STRANGE):
            masks[word] = masks.get(word, any_word) | 1 << at
    return masks


class Cover:
    """
    A set of patterns, and what they cover together.

    Args:
        patterns: (checked) patterns.
    """

    __slots__ = ("_machine", "_plans", "patterns")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(dict.fromkeys(patterns))
        self._plans = [_planned(pattern) for pattern in self.patterns]
        self._machine: _Machine | None = None  # made when it is first needed, which is seldom

    def covers(self, pattern: str) -> bool:
        """
        Tell whether every topic that a (checked) pattern matches is matched by one of the set.

        Exact if one of the set covers it alone, or `MAX_STEPS` are enough; else False, though it may be
        covered.
        """
        words = _worst(pattern)
        return any(_covers(plan, words) for plan in self._plans) or (
            "#" in words and self.decide(pattern)[0] is True
        )

    def decide(self, pattern: str, limit: int = MAX_STEPS) -> tuple[bool | None, int]:
        """
        Return whether the set covers a (checked) pattern, by the subset construction alone, and the steps
        that took. None: it takes more than `limit`.
        """
        if len(self.patterns) < 2 or "#" not in pattern:
            # Without a `#` there is one worst topic only, and whichever pattern matches that covers alone.
            words = _worst(pattern)
            return any(_covers(plan, words) for plan in self._plans), 0
        if self._machine is None:
            self._machine = _Machine(self.patterns)
        return _decide(self._machine, _worst(pattern), limit)


class _Machine:
    """
    All patterns of a set as one nondeterministic automaton: a state is an integer with a bit for each place
    in each pattern that the words so far can have led to.
    """

    __slots__ = ("ends", "hashes", "masks", "start")

    def __init__(self, patterns: Iterable[str]) -> None:
        words: list[str] = []
        self.start = self.ends = 0
        for pattern in patterns:
            self.start |= 1 << len(words)
            words += _canonical(pattern)
            self.ends |= 1 << len(words)
            words.append(_STRANGE)  # the place behind the last word, which leads nowhere
        self.hashes = sum(1 << at for at, word in enumerate(words) if word == "#")
        self.masks = _masks(words)
        self.start |= (self.start & self.hashes) << 1

    def step(self, state: int, word: str) -> int:
        """Return the state behind one more word; `*` stands for a strange one."""
        ahead = (state & self.masks.get(word, self.masks[_STRANGE])) << 1 | state & self.hashes
        return ahead | (ahead & self.hashes) << 1


def _decide(machine: _Machine, words: list[str], limit: int) -> tuple[bool | None, int]:
    """Follow all worst topics of a pattern through the machine; steps are transitions and comparisons."""
    states = [machine.start]
    steps = 0
    for word in words:
        reached: list[int] = []
        for state in states:
            for following in _unrolled(machine, state) if word == "#" else (machine.step(state, word),):
                if not following:
                    return False, steps + 1  # a topic that no pattern of the set can match any more
                steps += 1 + len(reached)
                if steps > limit:
                    return None, limit
                if not any(kept & following == kept for kept in reached):
                    reached = [kept for kept in reached if kept & following != following]
                    reached.append(following)
        states = reached
    return all(state & machine.ends for state in states), steps


def _unrolled(machine: _Machine, state: int) -> Iterable[int]:
    """Yield the states behind zero, one, two … strange words until one repeats, at most one a word."""
    seen = set()
    while state not in seen:
        seen.add(state)
        yield state
        state = machine.step(state, "*")
