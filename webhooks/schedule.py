"""
The schedule: when a delivery that failed is tried again.

The first attempt is made at once; each failed one is followed by a wait, each longer than the last. Waits are
spread by a fifth in both directions, so that what failed together does not come back together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from webhooks.errors import Invalid, step

HOUR: Final = 3600.0
DEFAULT: Final = (5.0, 300.0, 1800.0, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR)
"""Seconds between attempts, of which there are ten in 75 hours: the example of Standard Webhooks 1.0."""

MAX_WAITS: Final = 30
MIN_WAIT: Final = 0.1
MAX_WAIT: Final = 7 * 24 * HOUR
MAX_TOTAL: Final = 30 * 24 * HOUR
"""Seconds. An event has to be kept for as long as it may be sent again."""

SPREAD: Final = 0.2

Dice = Callable[[], float]
"""Gives a number from 0 up to, but not including, 1; another one each time."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """
    The waits between the attempts of one delivery, in seconds.

    Raises:
        Invalid: there are too many, or one is out of bounds.
    """

    waits: tuple[float, ...] = DEFAULT

    def __post_init__(self) -> None:
        if len(self.waits) > MAX_WAITS:
            raise Invalid(f"there are {len(self.waits)} waits: there may be {MAX_WAITS}")
        for index, wait in enumerate(self.waits):
            if not MIN_WAIT <= wait <= MAX_WAIT:  # not a number is refused as well
                raise Invalid(f"a wait must have {MIN_WAIT} to {MAX_WAIT:.0f} seconds", step(index))
        if sum(self.waits) > MAX_TOTAL:
            raise Invalid(f"the waits must have at most {MAX_TOTAL:.0f} seconds together")

    @property
    def attempts(self) -> int:
        """How many there are at most."""
        return len(self.waits) + 1

    @property
    def longest_ms(self) -> int:
        """How long the waits can last altogether, as chance has it."""
        return round(sum(self.waits) * (1 + SPREAD) * 1000)

    def wait_ms(self, attempts: int, dice: Dice) -> int | None:
        """Return the wait after so many failed attempts; None if that was the last."""
        if attempts > len(self.waits):
            return None
        return spread_ms(self.waits[max(attempts, 1) - 1], dice)


def spread_ms(seconds: float, dice: Dice) -> int:
    """Return about so many seconds as milliseconds: up to a fifth less or more."""
    return round(seconds * (1 - SPREAD + 2 * SPREAD * dice()) * 1000)
