"""
Consent: asking a receiver whether it agrees before anything is sent to it.

For owners who want it, when they give an endpoint an origin: a request with the method OPTIONS says who wants
to send and how much. Only an answer that says yes in headers of its own is consent; whatever else a server
makes of OPTIONS is none. The rate that it allows bounds the endpoint's.

Source: CloudEvents 1.0, "HTTP 1.1 Web Hooks for Event Delivery", section 4 (abuse protection).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import ceil
from typing import Final, Protocol

from msgspec.structs import replace

from webhooks.attempt import Outcome, Target
from webhooks.description import Description
from webhooks.errors import Invalid
from webhooks.headers import own_lines
from webhooks.rate import MAX_RATE, MIN_RATE
from webhooks.target import parse_target

_ORIGIN: Final = b"webhook-allowed-origin"
_RATE: Final = b"webhook-allowed-rate"


class Sends(Protocol):
    """Makes one request; see `webhooks.sender.Sender.send`."""

    async def send(
        self,
        target: Target,
        headers: bytes,
        body: bytes = b"",
        *,
        method: str = "POST",
        wanted: Iterable[bytes] = (),
    ) -> Outcome: ...


async def agreed(description: Description, sender: Sends) -> Description:
    """
    Ask the receiver of an endpoint with an origin, and return its description at the rate that is allowed.

    Raises:
        Invalid: the receiver did not agree.
    """
    assert description.origin is not None
    lines = own_lines(description.headers, description.origin)
    if description.rate is not None:
        lines += b"WebHook-Request-Rate: %d\r\n" % ceil(description.rate * 60)
    outcome = await sender.send(
        parse_target(description.url), lines, method="OPTIONS", wanted=(_ORIGIN, _RATE)
    )
    if outcome.status is None:
        raise _refused(f"did not answer: {outcome.detail or outcome.error}")
    answer = dict(outcome.headers)
    allowed = answer.get(_ORIGIN.decode(), "").strip()
    if allowed != "*" and allowed.lower() != description.origin.lower():
        raise _refused(f"answered {outcome.status} without a WebHook-Allowed-Origin that names the origin")
    return replace(description, rate=_allowed(answer.get(_RATE.decode(), "*").strip(), description.rate))


def _allowed(text: str, wanted: float | None) -> float | None:
    """Return the rate, in attempts a second, that a receiver allows in requests a minute."""
    if text == "*":
        return wanted
    if not re.fullmatch("[1-9][0-9]{0,8}", text, re.ASCII):
        raise _refused("has a WebHook-Allowed-Rate that is neither * nor a number of requests a minute")
    rate = min(max(int(text) / 60, MIN_RATE), MAX_RATE)
    return rate if wanted is None else min(rate, wanted)


def _refused(what: str) -> Invalid:
    return Invalid(f"the receiver was asked whether it agrees to webhooks, and {what}", "/origin")
