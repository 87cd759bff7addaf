"""
Quotas: what one subject may have, of connections, events, polls and requests.

A subject is `Caller.owner`: the same for all its tokens, and another one in another tenant. Who has none is
not limited here: of a client that is not known only its address and its connection are. A token may bring
limits of its own (claim `limits`, `fanout.grants.Limits`), and whoever signs tokens is believed: they count
for its bearer in place of the settings, whether they are higher or lower. Only what the gateway holds for one
connection or message stays the most that there is.

Everything here is asked before anything is done, and what is refused has cost its subject nothing. It is
counted in this process alone, but for requests, which the log tells.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import UNSET, UnsetType

from gateway.auth.caller import Caller
from gateway.limits.debts import Debts
from gateway.limits.refusal import ComeBack

if TYPE_CHECKING:
    from gateway.settings import Settings

BURST_SECONDS: Final = 2.0
"""For how long a subject that was quiet may go at twice its rate: it has what comes in so long at once."""

FULL_SECONDS: Final = 5.0
"""Before which it is of no use to hand in a request again; no sooner than a full service is asked again."""

COUNTED: Final = (
    "max_connections_per_subject",
    "publish_rate",
    "publish_bytes",
    "poll_rate",
    "max_requests_per_subject",
)
"""The settings whose refusals are counted here."""

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class Limits:
    """
    The limits of a subject whose token names none; 0 is none.

    Attributes:
        connections: streams and waiting polls at a time.
        publish_rate: events a second.
        publish_bytes: bytes of bodies a second.
        polls: a second.
        requests: unfinished ones.
    """

    connections: int = 0
    publish_rate: float = 0
    publish_bytes: float = 0
    polls: float = 0
    requests: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return those of the settings."""
        return cls(
            settings.max_connections_per_subject,
            settings.publish_rate,
            settings.publish_bytes,
            settings.poll_rate,
            settings.max_requests_per_subject,
        )


class Quotas:
    """
    The quotas of one process.

    Args:
        limits: for those whose token names none.
        clock: seconds, never going back.

    Attributes:
        refused: how often each limit was reached, by the setting's name.
        held: connections by owner, where these are limited.
    """

    def __init__(self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits or Limits()
        self.refused: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self._clock = clock
        self._events = Debts(BURST_SECONDS)
        self._bytes = Debts(BURST_SECONDS)
        self._polls = Debts(BURST_SECONDS)
        self._holders: dict[object, str] = {}  # what holds a connection -> whose it is

    # --- by rate --------------------------------------------------------------------------------------------

    def publish(self, caller: Caller, events: int, size: int) -> None:
        """
        Let so many events be published at once, more than a bucket holds if it is not empty.

        Args:
            caller: whose they are.
            events: how many.
            size: bytes of the body that they came in.

        Raises:
            ComeBack: 429, those before used up what there is, and nothing was taken now.
        """
        if not caller.is_known:
            return
        claimed = caller.grants.limits
        rate = _either(claimed.publish_rate, self.limits.publish_rate)
        bytes_rate = _either(claimed.publish_bytes, self.limits.publish_bytes)
        owner = caller.owner if rate or bytes_rate else ""
        if not owner:
            return
        now = self._clock()
        if rate and (wait := self._events.wait(owner, now)) is not None:
            detail = f"you may publish {rate:g} events a second (publish_rate)"
            raise self._refusal("publish_rate", detail, wait)
        if bytes_rate and (wait := self._bytes.wait(owner, now)) is not None:
            detail = f"you may publish {bytes_rate:.0f} bytes a second (publish_bytes)"
            raise self._refusal("publish_bytes", detail, wait)
        if rate:
            self._events.take(owner, events / rate, now)
        if bytes_rate:
            self._bytes.take(owner, size / bytes_rate, now)

    def poll(self, caller: Caller) -> None:
        """
        Let somebody poll.

        Raises:
            ComeBack: 429, they do so too often.
        """
        rate = _either(caller.grants.limits.polls, self.limits.polls) if caller.is_known else 0
        owner = caller.owner if rate else ""
        if not owner:
            return
        now = self._clock()
        if (wait := self._polls.wait(owner, now)) is not None:
            raise self._refusal("poll_rate", f"you may poll {rate:g} times a second (poll_rate)", wait)
        self._polls.take(owner, 1 / rate, now)

    # --- by number ------------------------------------------------------------------------------------------

    def check_place(self, caller: Caller) -> None:
        """
        Check that somebody may have one connection more.

        Raises:
            ComeBack: 429, they have as many as they may.
        """
        most = self._connections(caller)
        if most and self.held[caller.owner] >= most:
            detail = f"you may have {most} connections at a time (max_connections_per_subject)"
            raise self._refusal("max_connections_per_subject", detail)

    def hold(self, holder: object, caller: Caller) -> None:
        """Count a connection, whose place was checked, until `left` is told its holder."""
        if self._connections(caller):
            self._holders[holder] = caller.owner
            self.held[caller.owner] += 1

    def left(self, holder: object) -> None:
        """A connection is gone, if it was counted. Idempotent."""
        owner = self._holders.pop(holder, None) if self._holders else None
        if owner is None:
            return
        self.held[owner] -= 1
        if not self.held[owner]:
            del self.held[owner]

    def check_request(self, caller: Caller, unfinished: Callable[[], int]) -> None:
        """
        Check that somebody may hand in one request more.

        Args:
            caller: who.
            unfinished: counts those of theirs that there are.

        Raises:
            ComeBack: 429, there are as many as there may be.
        """
        if not caller.owner:
            return
        most = _either(caller.grants.limits.requests, self.limits.requests)
        if most and unfinished() >= most:
            detail = f"you may have {most} unfinished requests (max_requests_per_subject)"
            raise self._refusal("max_requests_per_subject", detail, FULL_SECONDS)

    def _connections(self, caller: Caller) -> int:
        """Return how many connections somebody may have; 0 if they are not counted."""
        if not caller.is_known:
            return 0
        most = _either(caller.grants.limits.connections, self.limits.connections)
        return most if most and caller.owner else 0

    def _refusal(self, limit: str, detail: str, seconds: float = 0) -> ComeBack:
        self.refused[limit] += 1
        return ComeBack(429, detail, seconds)


def most_topics(caller: Caller, most: int) -> int:
    """
    Return how many patterns a connection of somebody may have.

    Args:
        caller: whose it is.
        most: what the gateway holds at most.
    """
    return min(most, _either(caller.grants.limits.subscriptions, most))


def most_bytes(caller: Caller, most: int) -> int:
    """
    Return how long a message or body of somebody may be, in bytes.

    Args:
        caller: whose it is.
        most: what the gateway holds at most.
    """
    return min(most, _either(caller.grants.limits.message_bytes, most))


def _either(claimed: _Number | UnsetType, ours: _Number) -> _Number:
    """Return what a token claims, or else our own."""
    return ours if claimed is UNSET else claimed
