"""
What to do when a worker ends; pure: no process, no clock.

A worker that is sent away is gone, and that is all. One that falls is put up again, after a pause that grows
while it keeps falling. One that says it cannot start says so for all: they have the same settings, the same
broker and the same store. But only at the start. Once a worker of that number has served, the others serve on
while it tries again, because what it lacks may come back.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gateway.cli.ending import CANNOT, REFUSED

PAUSE: Final = (0.2, 30.0)
"""Seconds before the first and, doubled each time, before later starts of one that falls; half is random."""

STEADY_SECONDS: Final = 60.0
"""Who ran so long did not fall because of how it started: its next pause is the first again."""


class Verdict(Enum):
    """What becomes of a worker's place."""

    GONE = "gone"
    RESTART = "restart"
    STOP = "stop"  # of all of them, with its exit code


@dataclass(frozen=True, slots=True)
class Ending:
    """
    How a process ended.

    Attributes:
        code: its exit code, or the negative number of the signal that ended it.
        seconds: how long it ran.
        asked: whether it was told to go.
        ready: whether it had been ready.
    """

    code: int
    seconds: float
    asked: bool
    ready: bool

    def __str__(self) -> str:
        if self.code >= 0:
            return f"exit code {self.code}"
        try:
            return f"signal {signal.Signals(-self.code).name}"
        except ValueError:  # a real-time signal has no name
            return f"signal {-self.code}"

    @property
    def orderly(self) -> bool:
        """Whether it ended as it should; told to go before it was ready, it may have refused as well."""
        before_it_began = (-signal.SIGTERM, -signal.SIGINT, CANNOT, REFUSED)
        return self.code == 0 or (self.asked and not self.ready and self.code in before_it_began)


def judge(ending: Ending, *, served: bool) -> Verdict:
    """
    Return what to do.

    Args:
        ending: how a worker ended.
        served: whether a worker of its number has ever been ready.
    """
    if ending.asked:
        return Verdict.GONE
    if ending.code in (CANNOT, REFUSED) and not served:
        return Verdict.STOP
    return Verdict.RESTART


class Pauses:
    """The pauses before the restarts of one worker."""

    def __init__(self) -> None:
        self._falls = 0  # in a row

    def after(self, seconds: float, chance: float) -> float:
        """
        Return how many seconds to wait.

        Args:
            seconds: how long the worker ran.
            chance: a random number from 0 to 1, so that workers that fell together do not start together.
        """
        self._falls = 1 if seconds >= STEADY_SECONDS else self._falls + 1
        least, most = PAUSE
        pause = min(most, least * 2.0 ** min(self._falls - 1, 30))
        return pause * (1 + chance) / 2
