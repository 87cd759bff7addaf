"""What a connection wants: a set of patterns, with the answer for each topic remembered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from fanout.event import Event
from fanout.topics import is_exact, matches

MAX_REMEMBERED: Final = 10_000
"""Topics whose answer one selection remembers."""


class Filter(Protocol):
    """Picks events out of a stretch of the log."""

    topics: tuple[str, ...] | None
    """The topics it is made of when it has no wildcard, else None."""

    def picks(self, event: Event) -> bool:
        """Tell whether the connection wants this event."""


class Selection:
    """The patterns of a connection, as a set. Shared by all connections with the same set."""

    __slots__ = ("_answers", "patterns", "topics")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = frozenset(patterns)
        exact = all(map(is_exact, self.patterns))
        self.topics = tuple(sorted(self.patterns)) if exact else None
        self._answers: dict[str, bool] = {}

    def wants(self, topic: str) -> bool:
        """Tell whether any pattern matches `topic`."""
        if self.topics is not None:
            return topic in self.patterns
        answer = self._answers.get(topic)
        if answer is None:
            if len(self._answers) >= MAX_REMEMBERED:
                self._answers.clear()
            answer = self._answers[topic] = any(matches(pattern, topic) for pattern in self.patterns)
        return answer

    def picks(self, event: Event) -> bool:
        """Tell whether any pattern matches the event's topic."""
        return self.wants(event.topic)


class Backfill:
    """
    Patterns that started at different places: each picks only events behind its own start.

    A WebSocket that subscribes to one more topic *from an earlier cursor* goes back there for the new topic
    alone: what only its other topics match is not sent again.
    """

    __slots__ = ("starts", "topics")

    def __init__(self, starts: dict[str, int]) -> None:
        self.starts = starts
        self.topics = tuple(sorted(starts)) if all(map(is_exact, starts)) else None

    def picks(self, event: Event) -> bool:
        """Tell whether a pattern that started before the event matches its topic."""
        return any(
            start < event.position and matches(pattern, event.topic) for pattern, start in self.starts.items()
        )

    def starts_at(self, position: int) -> dict[str, int]:
        """
        Return the patterns with their starts, none before `position`: how far a connection that read up to
        there has come.
        """
        return {pattern: max(start, position) for pattern, start in self.starts.items()}
