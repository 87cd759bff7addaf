"""
A delivery: one event for one endpoint, and what the outcome of an attempt makes of it.

Its states are a table. An endpoint that is closed to events holds its deliveries, so that nothing is lost by
an outage, however long: when it is opened again they are released, or skipped, as its owner says.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import Final

from webhooks.schedule import Dice, Schedule
from webhooks.verdict import Verdict


@unique
class State(Enum):
    """Where a delivery stands; the values are what users see."""

    PENDING = "pending"
    """It will be tried, or tried again."""
    DELIVERED = "delivered"
    FAILED = "failed"
    """It will not be tried again."""
    EXPIRED = "expired"
    """The event's time to live ended before an attempt succeeded."""
    HELD = "held"
    """It waits until its endpoint is opened again."""


@unique
class Signal(Enum):
    """What can happen to a delivery."""

    SUCCEEDED = "succeeded"
    POSTPONED = "postponed"
    """An attempt failed, and there will be another."""
    GIVEN_UP = "given_up"
    """The last attempt failed, or it was skipped when its endpoint was opened."""
    OUTLIVED = "outlived"
    """The event's time to live ends before the next attempt."""
    HELD = "held"
    """Its endpoint was closed."""
    RELEASED = "released"
    """Its endpoint was opened."""
    REPEATED = "repeated"
    """Its owner wants it to be tried from the beginning of its schedule."""


TRANSITIONS: Final[dict[State, dict[Signal, State]]] = {
    State.PENDING: {
        Signal.SUCCEEDED: State.DELIVERED,
        Signal.POSTPONED: State.PENDING,
        Signal.GIVEN_UP: State.FAILED,
        Signal.OUTLIVED: State.EXPIRED,
        Signal.HELD: State.HELD,
        Signal.REPEATED: State.PENDING,
    },
    # An attempt may be on its way when its endpoint is closed; its outcome counts.
    State.HELD: {
        Signal.SUCCEEDED: State.DELIVERED,
        Signal.POSTPONED: State.HELD,
        Signal.GIVEN_UP: State.FAILED,
        Signal.OUTLIVED: State.EXPIRED,
        Signal.HELD: State.HELD,
        Signal.RELEASED: State.PENDING,
    },
    State.DELIVERED: {Signal.REPEATED: State.PENDING},
    State.FAILED: {Signal.REPEATED: State.PENDING},
    State.EXPIRED: {},
}


@dataclass(frozen=True, slots=True)
class Decision:
    """
    What an outcome makes of a delivery.

    Attributes:
        signal: what happened to it.
        due: milliseconds since the Unix epoch at which it is tried again; 0 if it is not.
    """

    signal: Signal
    due: int = 0


def decide(
    verdict: Verdict,
    attempts: int,
    now: int,
    schedule: Schedule,
    dice: Dice,
    *,
    asked: int = 0,
    deadline: int,
    expires: int = 0,
) -> Decision:
    """
    Return what an outcome makes of a delivery.

    The schedule's own waits are always kept and all of its attempts made, however long the endpoint was shut;
    the deadline only bounds for how long a receiver can put them off.

    Args:
        verdict: of the attempt.
        attempts: made so far since the beginning of the schedule, this one included.
        now: milliseconds since the Unix epoch.
        schedule: the endpoint's.
        dice: spreads the waits.
        asked: milliseconds for which the receiver wants to be left alone.
        deadline: when the event is too old for the receiver to ask for more; see `deadline_of`.
        expires: when the event's time to live ends; 0 is never. Both in milliseconds since the epoch.
    """
    if verdict is Verdict.SUCCEEDED:
        return Decision(Signal.SUCCEEDED)
    if verdict is Verdict.GONE:
        return Decision(Signal.HELD)
    wait = schedule.wait_ms(attempts, dice)
    if wait is None:
        return Decision(Signal.GIVEN_UP)
    due = now + max(wait, min(asked, deadline - now))
    if is_outlived(due, expires):
        return Decision(Signal.OUTLIVED)
    return Decision(Signal.POSTPONED, due)


def deadline_of(accepted: int, schedule: Schedule) -> int:
    """Return the deadline of an event accepted then: the latest end that its schedule has by itself."""
    return accepted + schedule.longest_ms


def is_outlived(moment: int, expires: int) -> bool:
    """Say whether an event is not worth delivering any more at a moment, by its time to live."""
    return 0 < expires <= moment
