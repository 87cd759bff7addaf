"""
The rate of an endpoint: a bucket of tokens, of which every attempt takes one.

Strategy: it counts in millionths of a token and in whole milliseconds, so that nothing is rounded: what may
be taken now may be taken, and not one more over any stretch of time.
"""

from __future__ import annotations

from typing import Final, Protocol

MIN_RATE: Final = 0.01
MAX_RATE: Final = 10_000.0
"""Attempts a second; kept to a thousandth."""

_TOKEN: Final = 1_000_000


class Rate(Protocol):
    """Bounds how many attempts begin."""

    def room(self, now: int) -> int:
        """Return how many attempts may begin now (milliseconds since the Unix epoch)."""

    def take(self, now: int, attempts: int) -> None:
        """Count attempts that begin now; no more than there is room for."""

    def ready(self, now: int) -> int:
        """Return when the next attempt may begin, in milliseconds since the epoch; at least `now`."""


class Unlimited:
    """No bound at all."""

    def room(self, now: int) -> int:
        return 1 << 30

    def take(self, now: int, attempts: int) -> None:
        pass

    def ready(self, now: int) -> int:
        return now


class Bucket:
    """
    So many attempts a second, and as many at once as in one second (at least one).

    It begins full. A clock that is set back stops it for no longer than it takes to notice.

    Args:
        rate: attempts a second, `MIN_RATE` to `MAX_RATE`.
        now: milliseconds since the Unix epoch.
    """

    def __init__(self, rate: float, now: int) -> None:
        self._filling = max(round(rate * 1000), 1)  # millionths of a token a millisecond
        self._full = max(self._filling * 1000, _TOKEN)
        self._tokens = self._full
        self._now = now

    def room(self, now: int) -> int:
        passed = max(now - self._now, 0)
        self._now = now
        self._tokens = min(self._tokens + passed * self._filling, self._full)
        return self._tokens // _TOKEN

    def take(self, now: int, attempts: int) -> None:
        assert attempts <= self.room(now), "who asks for the room takes no more"
        self._tokens -= attempts * _TOKEN

    def ready(self, now: int) -> int:
        if self.room(now):
            return now
        return now + -(-(_TOKEN - self._tokens) // self._filling)
