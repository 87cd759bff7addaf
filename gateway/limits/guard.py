"""
The guard: says of each connection whether its address may have it, and counts what is refused.

An address is an IPv4 address, or the first 64 bits of an IPv6 one: whoever has one address of such a network
has all of them (RFC 6177). Proxies that are trusted have no address here: behind them each request is its
client's. Who is refused is told so, but only so many times a second; the rest are cut off without a word,
because a flood of refusals is a flood as well.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from gateway.limits.buckets import Buckets
from gateway.limits.memory import Memory, limit_of
from gateway.limits.refusal import ComeBack

if TYPE_CHECKING:
    from gateway.proxies import TrustedProxies
    from gateway.settings import Settings

BURST_SECONDS: Final = 2.0
"""For how long an address that was quiet may come at twice its rate: it has the connections of so long."""

TOLD_RATE: Final = 10.0
"""Refusals a second that an address is told of, and …"""

TOLD_BURST: Final = 20.0
"""… at once."""

GUARDED: Final = ("max_connections_per_ip", "connect_rate", "max_waiting", "memory_limit")
"""The settings whose refusals are counted here."""

REMEMBERED: Final = 4096
"""Addresses of which it is remembered what they count as."""


class Verdict(Enum):
    """What becomes of a connection, or of a request that comes by way of a proxy."""

    IN = "in"
    TOLD = "told"  # it is refused, with an answer to its request
    CUT = "cut"  # it is cut off


@dataclass(frozen=True, slots=True)
class Limits:
    """
    The limits; 0 is none.

    Attributes:
        per_address: connections of one address.
        rate: new connections of one address a second.
        waiting: connections that have sent no complete request.
        memory: bytes in memory above which nothing new begins.
    """

    per_address: int = 0
    rate: int = 0
    waiting: int = 0
    memory: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return those of the settings."""
        return cls(
            settings.max_connections_per_ip,
            settings.connect_rate,
            settings.max_waiting,
            limit_of(settings.memory_limit, settings.workers),
        )


class Guard:
    """
    The guard of one replica.

    Args:
        limits: what it sees to.
        proxies: whose connections are not their own.
        clock: seconds, never going back; that of the event loop if None.

    Attributes:
        memory: what this process has.
        refused: how often each limit was reached, by the setting's name.
        held: connections by address, where these are limited.
        cut: how many connections were cut off without a word; they are in `refused` as well.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        proxies: TrustedProxies | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.memory = Memory(self.limits.memory)
        self.refused: Counter[str] = Counter()
        self.held: Counter[Hashable] = Counter()
        self._proxies = proxies
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        burst = max(1.0, BURST_SECONDS * self.limits.rate)
        self._rate = Buckets(max(1, self.limits.rate), burst)
        self._told = Buckets(TOLD_RATE, TOLD_BURST)
        self._gone: dict[object, Hashable] = {}  # transports that were handed on, and whose they are
        self.address_of = lru_cache(REMEMBERED)(self._address_of)

    def _address_of(self, host: str) -> Hashable:
        """Return what an address counts as; None if it is not counted."""
        try:
            address = ip_address(host)
        except ValueError:
            return host
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        if self._proxies is not None and address in self._proxies:
            return None
        if isinstance(address, IPv6Address):
            return int(address) >> 64
        return str(address)

    # --- by address -----------------------------------------------------------------------------------------

    def enter(self, address: Hashable, *, counts: bool = True) -> Verdict:
        """
        Say what becomes of a connection; one that is let in is to `leave` again.

        Args:
            address: as `address_of` returned it; None is let in.
            counts: whether it counts for the rate.
        """
        if address is None:
            return Verdict.IN
        limits = self.limits
        if limits.rate and counts and not self._rate.take(address, self._clock()):
            return self._refuse("connect_rate", address)
        if limits.per_address:
            if self.held[address] >= limits.per_address:
                return self._refuse("max_connections_per_ip", address)
            self.held[address] += 1
        return Verdict.IN

    def _refuse(self, limit: str, address: Hashable) -> Verdict:
        self.refused[limit] += 1
        return Verdict.TOLD if self._told.take(address, self._clock()) else Verdict.CUT

    def leave(self, address: Hashable) -> None:
        """A connection that was let in is gone."""
        if address is None or not self.limits.per_address:
            return
        self.held[address] -= 1
        if not self.held[address]:
            del self.held[address]

    def hand_on(self, transport: object, address: Hashable) -> None:
        """A connection's transport belongs to somebody else now, who calls `closed` when it is gone."""
        if address is not None and self.limits.per_address:
            self._gone[transport] = address

    def closed(self, transport: object) -> None:
        """A transport that was handed on is gone."""
        if self._gone:
            self.leave(self._gone.pop(transport, None))

    def too_many(self, address: Hashable, *, last: bool) -> ComeBack:
        """
        Return what an address is told that is refused.

        Args:
            address: whose connection it is.
            last: whether it is closed behind that.
        """
        wait = self._rate.wait(address, self._clock()) if self.limits.rate else 0.0
        return ComeBack(429, "too many connections from your address", wait, last=last)

    # --- of the replica -------------------------------------------------------------------------------------

    def no_memory(self) -> ComeBack:
        """Count that something was refused for want of memory; return the answer."""
        self.refused["memory_limit"] += 1
        return ComeBack(503, "there is no memory for more now")
