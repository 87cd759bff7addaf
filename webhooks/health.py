"""
The health of an endpoint: how much is sent to it at a time, and when nothing is.

Four things answer to how attempts end, all for the whole endpoint and not for one delivery:

- *The cap* is how many attempts may be on their way together. It is halved when the receiver is overloaded
  and grows by one for every cap's worth of successes, as TCP does: so it finds what the receiver can take.
- *The breaker* opens when attempts keep failing. Nothing is sent while it is open, so that no delivery uses
  up attempts on a receiver that is down; then one attempt probes. Each probe that fails makes the next wait
  twice as long; one success closes it, and the cap grows from 1, so that a receiver that has just come back
  is not run over by what has gathered.
- *The wait* that a receiver asked for (`Retry-After`).
- *The failing*: when nothing has succeeded for days, it is time to close the endpoint.

The clock may jump. Into the future it ends waits early; into the past, waits are cut to the longest that
there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import Final

from webhooks.retry_after import LONGEST_MS
from webhooks.schedule import SPREAD, Dice, spread_ms
from webhooks.verdict import Verdict

HOUR_MS: Final = 3_600_000

BREAKER_FAILURES: Final = 5
BREAKER_MS: Final = 10_000
"""The breaker opens when so many attempts in a row have failed, and did so for so long."""
FIRST_OPEN: Final = 15.0
LONGEST_OPEN: Final = 300.0
"""Seconds. The longest is how late it is noticed at worst that a receiver is back."""

FAILING_MS: Final = 120 * HOUR_MS
FAILING_ATTEMPTS: Final = 10
FAILING_SPREAD_MS: Final = 12 * HOUR_MS
"""
An endpoint is given up when nothing has succeeded for so long, in so many attempts, of which those before the
last were not all made in one go: one bad hour, and one bad attempt five days later, are no outage of five
days.
"""

_ROUNDING_MS: Final = 1000  # by which the beginning of an attempt, worked out from its duration, may be wrong
_LONGEST_OPEN_MS: Final = round(LONGEST_OPEN * (1 + SPREAD) * 1000)


@unique
class Breaker(Enum):
    """Where a breaker stands."""

    CLOSED = "closed"
    """Attempts are made."""
    OPEN = "open"
    """None is."""
    HALF_OPEN = "half_open"
    """One at a time is, to find out."""


@dataclass(slots=True)
class Record:
    """
    What has to outlive a restart; times are in milliseconds since the Unix epoch, 0 is none.

    Attributes:
        failures: attempts that failed since the last success.
        first_failure: when the first of them ended.
        last_failure: when the last of them did.
        openings: how often the breaker has opened since the last success.
        open_until: the breaker is open until then, and half open after that until an attempt succeeds.
        wait_until: until then the receiver wants to be left alone.
    """

    failures: int = 0
    first_failure: int = 0
    last_failure: int = 0
    openings: int = 0
    open_until: int = 0
    wait_until: int = 0


class Health:
    """
    The health of one endpoint.

    Args:
        ceiling: how many attempts may be on their way together when all is well.
        dice: spreads the breaker's waits.
        record: what was known of it before a restart.
    """

    def __init__(self, ceiling: int, dice: Dice, record: Record | None = None) -> None:
        self.record = Record() if record is None else record
        self.cap = 1 if self.record.open_until else ceiling
        self._ceiling = ceiling
        self._dice = dice
        self._grown = 0  # successes since the cap last changed
        self._halved = 0  # when that was

    @property
    def ceiling(self) -> int:
        return self._ceiling

    @ceiling.setter
    def ceiling(self, ceiling: int) -> None:
        """Set another one; the cap grows up to it by and by."""
        self._ceiling = ceiling
        self.cap = min(self.cap, ceiling)

    def breaker(self, now: int) -> Breaker:
        """Return where the breaker stands."""
        if not self.record.open_until:
            return Breaker.CLOSED
        return Breaker.OPEN if now < self._opens(now) else Breaker.HALF_OPEN

    def opens(self, now: int) -> int:
        """Return when attempts can be made again, by breaker and wait; a time in the past is now."""
        return max(self._opens(now), self._wait(now))

    def room(self, now: int, in_flight: int) -> int:
        """Return how many more attempts may begin, with so many on their way."""
        if now < self.opens(now):
            return 0
        return max(self.cap - in_flight, 0)  # 1 while the breaker is half open: see `_open`

    def note(self, verdict: Verdict, duration: int, asked: int, now: int) -> bool:
        """
        Take in how an attempt ended, and return whether the endpoint has been failing for too long.

        Args:
            verdict: of the attempt.
            duration: how long it took, milliseconds.
            asked: milliseconds for which the receiver wants to be left alone.
            now: milliseconds since the Unix epoch.
        """
        if verdict is Verdict.SUCCEEDED:
            self._succeeded()
            return False
        if asked:
            self.record.wait_until = max(self._wait(now), now + asked)
        if verdict is Verdict.OVERLOADED:
            self._halve(duration, now)
        return self._failed(duration, now)

    def postpone(self, until: int) -> None:
        """Leave the endpoint alone until then, at most for the longest that a receiver can ask for."""
        self.record.wait_until = max(self.record.wait_until, until)

    def reset(self) -> None:
        """Forget how attempts ended: the endpoint's owner says that all is well again."""
        self.record = Record()

    def _succeeded(self) -> None:
        self.record = Record(wait_until=self.record.wait_until)
        self._grown += 1
        if self._grown >= self.cap:
            self._grown = 0
            self.cap = min(self.cap + 1, self._ceiling)

    def _halve(self, duration: int, now: int) -> None:
        """Halve the cap, once for all attempts that were on their way together."""
        self._halved = min(self._halved, now)
        if now - duration >= self._halved:
            self._halved = now
            self._grown = 0
            self.cap = max(self.cap // 2, 1)

    def _failed(self, duration: int, now: int) -> bool:
        """Count a failure; return whether it is one too many."""
        record = self.record
        first = min(record.first_failure, now) or now
        before = min(record.last_failure, now)
        record.failures += 1
        record.first_failure, record.last_failure = first, now
        if not record.open_until:
            if record.failures >= BREAKER_FAILURES and now - first >= BREAKER_MS:
                self._open(now)
        elif now - duration + _ROUNDING_MS >= self._opens(now):  # else it began before the breaker opened
            self._open(now)
        return (
            record.failures >= FAILING_ATTEMPTS
            and now - first >= FAILING_MS
            and before - first >= FAILING_SPREAD_MS
        )

    def _open(self, now: int) -> None:
        seconds = min(FIRST_OPEN * 2.0 ** min(self.record.openings, 10), LONGEST_OPEN)
        self.record.openings += 1
        self.record.open_until = now + spread_ms(seconds, self._dice)
        self.cap = 1
        self._grown = 0

    def _opens(self, now: int) -> int:
        """Return until when the breaker is open; one that is open for too long saw another clock."""
        self.record.open_until = min(self.record.open_until, now + _LONGEST_OPEN_MS)
        return self.record.open_until

    def _wait(self, now: int) -> int:
        """Return until when the receiver wants to be left alone, cut in the same way."""
        self.record.wait_until = min(self.record.wait_until, now + LONGEST_MS)
        return self.record.wait_until
