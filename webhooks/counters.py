"""What webhooks did since they started, for whoever operates the gateway."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Final

BOUNDS: Final = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000)
"""Milliseconds: the upper bounds of the parts into which attempts are sorted by how long they took."""


class Counters:
    """
    Plain numbers.

    Attributes:
        attempts: by outcome: `2xx` and so on, or the fault because of which there was no answer.
        parts: attempts by how long they took, one for each of `BOUNDS` and one beyond.
        spent: milliseconds that all attempts took together.
        ended: deliveries that ended, by how: `delivered`, `failed`, `expired`.
        events: events of the log that were looked at.
        dispatched: deliveries that were made.
        gaps: stretches of the log that could not be read.
        announced: operational events.
        unannounced: operational events that could not be published.
        overtaken: outcomes that were not written down, because another replica had taken over.
    """

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()
        self.parts = [0] * (len(BOUNDS) + 1)
        self.spent = 0
        self.ended: Counter[str] = Counter()
        self.events = 0
        self.dispatched = 0
        self.gaps = 0
        self.announced = 0
        self.unannounced = 0
        self.overtaken = 0

    def attempt(self, outcome: str, duration: int) -> None:
        """Count an attempt that took so many milliseconds."""
        self.attempts[outcome] += 1
        self.parts[bisect_left(BOUNDS, duration)] += 1
        self.spent += duration
