"""
Token buckets that may be overdrawn: whoever has something left may take more than that, and pays it back
before he takes again.

Pure. Of a bucket only one number is kept: when it will be full again. So it does not matter at which rate it
fills, and each taking may say its own. One that is full is as good as none and is forgotten; the table holds
those that were used lately, and never more than it may.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from gateway.limits.buckets import MOST, forget

LONGEST: Final = 43_200.0
"""Seconds that the largest debt takes to pay back; what goes beyond is let off."""


class Debts:
    """
    Buckets that all hold what comes in so many seconds.

    Args:
        seconds: how long an empty one takes to be full; whatever its rate, that is what it holds.
        most: buckets that are kept. Beyond it the one is forgotten that was not used for the longest time:
            its key begins anew with a full one.
    """

    def __init__(self, seconds: float, most: int = MOST) -> None:
        self._seconds = seconds
        self._most = most
        self._full_at: dict[Hashable, float] = {}  # used last comes last

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, key: Hashable, now: float) -> float | None:
        """
        Return the seconds until there is something in a bucket; None if there is.

        Args:
            key: whose.
            now: seconds by a clock that does not go back.
        """
        empty_for = self._full_at.get(key, now) - now - self._seconds
        return None if empty_for < 0 else empty_for

    def take(self, key: Hashable, seconds: float, now: float) -> None:
        """
        Take from a bucket, whether it has so much or not.

        Args:
            key: whose.
            seconds: in which so much comes: the tokens divided by the rate.
            now: as for `wait`.
        """
        full_at = max(self._full_at.pop(key, now), now) + seconds
        self._full_at[key] = min(full_at, now + self._seconds + LONGEST)
        forget(self._full_at, self._most, lambda each: self._full_at[each] <= now)
