"""
Topics and patterns, by AMQP's rules, and the index that answers "who wants this topic".

A topic is words joined by dots: `orders.42.created`. A pattern is a topic in which a word may be `*` (exactly
one word) or `#` (zero or more words). At most 255 bytes, as an AMQP routing key (AMQP 0-9-1, 4.2.5.3 short
strings).

One rule is not AMQP's but MQTT's (5.0, 4.7.2): topics that begin with `$` are *reserved*, and a pattern that
begins with a wildcard does not match them. So nobody gets what is reserved without having named it.

Tenants live in reserved topics: those of the tenant `acme` begin with `$tenant.acme.`, and readers see them
without that.

Strategy of the index: exact patterns live in a dict, the others in a trie of words; the answer is remembered
per topic. An exact pattern that comes or goes forgets one remembered answer, a wildcard pattern forgets all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

from fanout.errors import TopicError

MAX_TOPIC_BYTES: Final = 255
RESERVED: Final = "$"
"""How the topics begin that are matched only by patterns that begin so, too."""
TENANTS: Final = f"{RESERVED}tenant."
"""How the topics of all tenants begin; the next word is the tenant's name."""
MAX_REMEMBERED: Final = 65_536
"""Topics whose answer is remembered, for the index as a whole; the memory this costs is bounded by it."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TRICKY = re.compile(r"[*#\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|\.\.|^\.|\.$|^$")

Value = TypeVar("Value")


def check_topic(text: str) -> str:
    """
    Return `text` if it is a topic.

    Raises:
        TopicError: empty, over 255 bytes, an empty word, a control character, or a wildcard.
    """
    if len(text) * 4 > MAX_TOPIC_BYTES or _TRICKY.search(text):
        for word in _words(text, "topic"):
            if "*" in word or "#" in word:
                raise TopicError(f"the topic {_shown(text)} has a wildcard; only subscribers give patterns")
    return text


def check_pattern(text: str) -> str:
    """
    Return `text` if it is a pattern.

    Raises:
        TopicError: empty, over 255 bytes, an empty word, a control character, or a wildcard that is only part
        of a word.
    """
    for word in _words(text, "pattern"):
        if word not in ("*", "#") and ("*" in word or "#" in word):
            raise TopicError(
                f"in the pattern {_shown(text)} a wildcard is part of a word; it stands for whole ones"
            )
    return text


def is_exact(pattern: str) -> bool:
    """Tell whether a (checked) pattern is a topic, that is, has no wildcard."""
    return "*" not in pattern and "#" not in pattern


def matches(pattern: str, topic: str) -> bool:
    """Tell whether a (checked) pattern matches a topic. The plain form of what the index does."""
    if pattern == topic:
        return True
    if is_exact(pattern) or (topic.startswith(RESERVED) and pattern[0] in "*#"):
        return False
    return _matches(pattern.split("."), topic.split("."))


def routes(pattern: str, topic: str) -> bool:
    """Tell whether a topic exchange routes a message with this routing key: AMQP's rules, and no others."""
    return pattern == topic or (not is_exact(pattern) and _matches(pattern.split("."), topic.split(".")))


def tenant_of(topic: str) -> str:
    """Return the tenant in whose space a topic is; empty if it is in none."""
    if not topic.startswith(TENANTS):
        return ""
    name, dot, rest = topic[len(TENANTS) :].partition(".")
    return name if dot and rest else ""


def shown_topic(topic: str) -> str:
    """Return a topic as readers see it: without the prefix of a tenant's space."""
    tenant = tenant_of(topic)
    return topic[len(TENANTS) + len(tenant) + 1 :] if tenant else topic


def _matches(pattern: list[str], topic: list[str]) -> bool:
    """
    Match by words in linear space: `reached` holds the places in the pattern that the words so far can have
    led to.
    """
    reached = _through_hashes(pattern, {0})
    for word in topic:
        ahead = {
            at if pattern[at] == "#" else at + 1
            for at in reached
            if at < len(pattern) and pattern[at] in (word, "*", "#")
        }
        reached = _through_hashes(pattern, ahead)
    return len(pattern) in reached


def _through_hashes(pattern: list[str], places: set[int]) -> set[int]:
    """Add the places reached when each `#` stands for zero words; each place is looked at once."""
    for at in range(min(places, default=len(pattern)), len(pattern)):
        if at in places and pattern[at] == "#":
            places.add(at + 1)
    return places


def _words(text: str, kind: str) -> list[str]:
    if not text:
        raise TopicError(f"the {kind} is empty")
    if (control := _CONTROL.search(text)) is not None:
        raise TopicError(f"the {kind} {_shown(text)} has the character U+{ord(control[0]):04X}")
    if len(text.encode()) > MAX_TOPIC_BYTES:
        raise TopicError(f"the {kind} {_shown(text)} has more than {MAX_TOPIC_BYTES} bytes")
    words = text.split(".")
    if "" in words:
        raise TopicError(f"the {kind} {_shown(text)} has an empty word")
    return words


def _shown(text: str) -> str:
    """Return `text` short and in ASCII, fit for an error message and a log line."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


class _Node(Generic[Value]):
    """A place in the trie: the values of the patterns that end here, and where the next word leads."""

    __slots__ = ("branches", "swallows", "values")

    def __init__(self, *, swallows: bool = False) -> None:
        self.branches: dict[str, _Node[Value]] = {}
        self.values: dict[Value, None] = {}
        self.swallows = swallows  # behind a "#": any further word may lead back here


class PatternIndex(Generic[Value]):
    """Which values (anything hashable) have a pattern that matches a topic."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[Value, None]] = {}
        self._root: _Node[Value] = _Node()
        self._wildcards = 0
        self._remembered: dict[str, tuple[Value, ...]] = {}

    def add(self, pattern: str, value: Value) -> None:
        """Register `value` under a (checked) pattern. Doing it twice is doing it once."""
        if is_exact(pattern):
            self._exact.setdefault(pattern, {})[value] = None
            self._remembered.pop(pattern, None)
            return
        node = self._root
        for word in _normal(pattern):
            if word not in node.branches:
                node.branches[word] = _Node(swallows=word == "#")
            node = node.branches[word]
        self._wildcards += value not in node.values
        node.values[value] = None
        self._remembered.clear()

    def discard(self, pattern: str, value: Value) -> None:
        """Take `value` from under a pattern, if it is there."""
        if is_exact(pattern):
            values = self._exact.get(pattern, {})
            values.pop(value, None)
            if not values:
                self._exact.pop(pattern, None)
            self._remembered.pop(pattern, None)
            return
        path = [self._root]
        words = _normal(pattern)
        for word in words:
            if word not in path[-1].branches:
                return
            path.append(path[-1].branches[word])
        if value in path[-1].values:
            del path[-1].values[value]
            self._wildcards -= 1
            self._prune(path, words)
            self._remembered.clear()

    def match(self, topic: str) -> tuple[Value, ...]:
        """Return the values with a pattern that matches `topic`, each once."""
        found = self._remembered.get(topic)
        if found is None:
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            found = self._remembered[topic] = tuple(self._find(topic))
        return found

    def _find(self, topic: str) -> dict[Value, None]:
        found = dict(self._exact.get(topic, ()))
        if self._wildcards:
            for node in self._ends(topic.split(".")):
                found.update(node.values)
        return found

    def _ends(self, words: list[str]) -> Iterable[_Node[Value]]:
        """
        Return the nodes that `words` lead to: a walk of all ways through the trie at once, each node at most
        once a word.
        """
        if words[0].startswith(RESERVED):  # the first word must be named
            first = self._root.branches.get(words[0])
            if first is None:
                return ()
            ways, words = _with_hashes({id(first): first}), words[1:]
        else:
            ways = _with_hashes({id(self._root): self._root})
        for word in words:
            ahead: dict[int, _Node[Value]] = {}
            for node in ways.values():
                for branch in (word, "*"):
                    if (following := node.branches.get(branch)) is not None:
                        ahead[id(following)] = following
                if node.swallows:
                    ahead[id(node)] = node
            ways = _with_hashes(ahead)
        return ways.values()

    @staticmethod
    def _prune(path: list[_Node[Value]], words: list[str]) -> None:
        """Remove the nodes at the end of `path` that lead nowhere any more."""
        for at in range(len(words) - 1, -1, -1):
            node = path[at + 1]
            if node.values or node.branches:
                return
            del path[at].branches[words[at]]


def _with_hashes(ways: dict[int, _Node[Value]]) -> dict[int, _Node[Value]]:
    """Add the nodes reached when each `#` stands for zero words."""
    reached = dict(ways)
    for node in ways.values():
        if (following := node.branches.get("#")) is not None:
            reached[id(following)] = following
    return reached


def _normal(pattern: str) -> list[str]:
    """Return the pattern's words with runs of `#` as one: `a.#.#` means what `a.#` means."""
    words = pattern.split(".")
    return [word for at, word in enumerate(words) if word != "#" or words[at - 1 : at] != ["#"]]
