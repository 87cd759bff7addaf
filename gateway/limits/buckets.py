"""
Token buckets, one for each key: how often something may happen.

Pure. A bucket that is full again is as good as none, so it is forgotten: the table holds those that were used
lately, and never more than it may.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final

MOST: Final = 65_536
"""Buckets that are kept at most, some 200 bytes each: 13 MB."""

FORGOTTEN_AT_ONCE: Final = 2
"""Full buckets that a step forgets at most: more than it adds, so that the table shrinks, and little work."""


class Buckets:
    """
    Buckets that all hold the same.

    Args:
        rate: tokens that each gets a second.
        burst: tokens that it holds; at least 1.
        most: buckets that are kept. Beyond it the one is forgotten that was not used for the longest time:
            its key begins anew with a full one.
    """

    def __init__(self, rate: float, burst: float, most: int = MOST) -> None:
        self._rate = rate
        self._burst = burst
        self._most = most
        self._held: dict[Hashable, tuple[float, float]] = {}  # tokens, and when; used last comes last

    def __len__(self) -> int:
        return len(self._held)

    def take(self, key: Hashable, now: float) -> bool:
        """
        Take a token if there is one; return whether there was.

        Args:
            key: whose.
            now: seconds by a clock that does not go back.
        """
        tokens = self._tokens(key, now)
        taken = tokens >= 1
        self._held.pop(key, None)
        self._held[key] = (tokens - 1 if taken else tokens, now)
        forget(self._held, self._most, lambda each: self._tokens(each, now) >= self._burst)
        return taken

    def wait(self, key: Hashable, now: float) -> float:
        """Return the seconds until there is a token."""
        return max(0.0, (1 - self._tokens(key, now)) / self._rate)

    def _tokens(self, key: Hashable, now: float) -> float:
        tokens, at = self._held.get(key, (self._burst, now))
        return min(self._burst, tokens + (now - at) * self._rate)


def forget(held: dict[Hashable, Any], most: int, is_full: Callable[[Hashable], bool]) -> None:
    """
    Forget some buckets that are full, from those on that were not used for the longest time; and those beyond
    what is kept.

    Args:
        held: the buckets, used last comes last; not empty.
        most: buckets that are kept.
        is_full: says of one whether it is.
    """
    for _ in range(FORGOTTEN_AT_ONCE):
        key = next(iter(held))
        if len(held) <= most and not is_full(key):
            return
        del held[key]
        if not held:
            return
