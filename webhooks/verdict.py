"""
Verdicts: what the outcome of an attempt says about the delivery and about the endpoint.

Only a 2xx is a success. A redirect is none: the event did not arrive where it was meant to go, and whoever
answers with one has to give the new URL himself.
"""

from __future__ import annotations

from enum import Enum, unique
from typing import Final

OVERLOAD_STATUSES: Final = frozenset({408, 429, *range(500, 600)})
OVERLOAD_ERRORS: Final = frozenset({"refused", "connect", "timeout", "reset"})
"""Error classes that a receiver can cause by having too much to do."""


@unique
class Verdict(Enum):
    """What became of an attempt."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OVERLOADED = "overloaded"
    """It failed in a way that asks for fewer attempts at a time."""
    GONE = "gone"
    """The receiver wants no more: it said 410."""


def judge(status: int | None, error: str | None) -> Verdict:
    """
    Return what an outcome says.

    Args:
        status: of the answer, None if there was none.
        error: the class of what went wrong; whatever the status, an attempt with one did not succeed.
    """
    if error is not None:
        return Verdict.OVERLOADED if error in OVERLOAD_ERRORS else Verdict.FAILED
    if status is not None and 200 <= status < 300:
        return Verdict.SUCCEEDED
    if status == 410:  # Standard Webhooks 1.0, "Delivery"; CloudEvents webhooks section 2.2
        return Verdict.GONE
    return Verdict.OVERLOADED if status in OVERLOAD_STATUSES else Verdict.FAILED
