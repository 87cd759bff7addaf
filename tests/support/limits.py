"""The limits of what is published, small enough for a test to reach them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SmallLimits:
    """A `gateway.intake.Limits`."""

    max_event_bytes: int = 1_000
    max_batch_events: int = 100
    max_body_bytes: int = 10_000
    body_timeout: float = 30.0
