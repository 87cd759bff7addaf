"""
Marks: how replicas agree on the epoch of a stream without asking each other. Pure.

A stream has no name for its incarnation that a client could read, and a queue beside it could outlive it. So
the epoch lies in the stream itself, and goes when it goes. Replicas publish marks to it:

- `barrier` says nothing. Who reads back its own has seen everything that was in the stream before.
- `proposal` names an epoch. Written by a replica that read the whole stream and found none. The *first* one
  in the stream counts, so replicas that create a stream together agree on one.
- `buried` names messages that were sent to the dead letters; see `gateway.stream_dead`.
- `renewal` repeats the epoch that counts. Written after a proposal was settled, at every start, and again
  whenever much followed the last, or long ago (`Renewal`), so that retention never removes the only one and
  a start finds it near the end. Any renewal is right.

A stream that was deleted and made anew has no marks, so it gets a new epoch. So does one in which retention
removed every mark because producers went on for long while no replica ran; then every cursor is too old
anyway.
"""

from __future__ import annotations

import random
from math import inf
from secrets import choice
from typing import Final

from fanout.cursor import EPOCH_ALPHABET, EPOCH_LENGTH
from gateway.stream_messages import Mark

BARRIER: Final = "barrier"
BURIED: Final = "buried"
PROPOSAL: Final = "proposal"
RENEWAL: Final = "renewal"

RENEW_EVENTS: Final = 20_000
"""Offsets behind the last renewal after which another is written …"""

RENEW_SEGMENT: Final = 0.25
"""… or this part of a segment, of which at least the newest is retained …"""

RENEW_AGE: Final = 0.1
"""… or this part of the age up to which is retained, if anything followed at all."""


def random_epoch() -> str:
    """Return a name for a stream."""
    return "".join(choice(EPOCH_ALPHABET) for _ in range(EPOCH_LENGTH))


class Renewal:
    """
    When the epoch is to be written down again.

    Args:
        segment_bytes: retention goes by segments of this size.
        max_age_seconds: … that are as old as this; 0 is any age.

    Attributes:
        bytes: how much was read since the last renewal.
    """

    def __init__(self, segment_bytes: int, max_age_seconds: int) -> None:
        self.bytes = 0
        self._most_bytes = segment_bytes * RENEW_SEGMENT
        self._most_seconds = max_age_seconds * RENEW_AGE or inf
        self._offset = 0  # of the last renewal
        self._time = 0.0  # when it was read

    def renewed(self, offset: int, now: float) -> None:
        """There is a renewal at an offset, or will be behind it; `now` in seconds, of any clock."""
        self._offset, self._time, self.bytes = offset, now, 0

    def due(self, reached: int, now: float) -> bool:
        """
        Say whether it is time for another, with the stream read up to offset `reached`.

        One replica is enough, so each waits for another time.
        """
        patience = random.uniform(1, 2)
        return reached > self._offset and (
            reached - self._offset > RENEW_EVENTS * patience
            or self.bytes > self._most_bytes * patience
            or now - self._time > self._most_seconds * patience
        )


class EpochSearch:
    """What the marks read so far say; they are given in the order of the stream from some place on."""

    def __init__(self) -> None:
        self._proposed: str | None = None
        self._renewed: str | None = None

    def note(self, mark: Mark) -> None:
        """Take a mark into account."""
        if len(mark.epoch) != EPOCH_LENGTH or not set(mark.epoch) <= set(EPOCH_ALPHABET):
            return
        if mark.kind == RENEWAL and self._renewed is None:
            self._renewed = mark.epoch
        elif mark.kind == PROPOSAL and self._proposed is None:
            self._proposed = mark.epoch

    def epoch(self, *, complete: bool) -> str | None:
        """Return the epoch, if it is known; a proposal counts only if the stream was read `complete`ly."""
        if self._renewed is not None:
            return self._renewed
        return self._proposed if complete else None
