"""
The guard: where webhooks may be sent to, so that nobody reaches through us what he cannot reach himself.

Strategy: an address is refused unless it is known to be routable on the whole internet. The check is made on
the address that is connected to and not on a name, which may mean something else a moment later; whoever
connects (`webhooks.connect`) uses exactly the address that was checked. Forms that carry an IPv4 address
inside an IPv6 one are refused as such, but for the two that honest networks use: mapped ones, which are the
IPv4 address, and those of NAT64, by which hosts without IPv4 reach those without IPv6.

The tables are our own: `ipaddress.is_global` knows of no address inside another, and what it says changes
with the version of Python.

Source: IANA's IPv4 and IPv6 Special-Purpose Address Registries; RFC 4291 2.5.5 (mapped, compatible), RFC 6052
and 8215 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 5214 (ISATAP); the Fetch Standard's "port blocking".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from webhooks.attempt import Target
from webhooks.target import UrlRefused, parse_target

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_PRIVATE: Final = "a private address"
_DOCUMENTATION: Final = "an address for documentation"

# What is first in a table counts.
_REFUSED_4: Final = tuple(
    (IPv4Network(network), what)
    for network, what in (
        ("0.0.0.0/32", "the unspecified address"),
        ("0.0.0.0/8", 'an address of "this network"'),
        ("10.0.0.0/8", _PRIVATE),
        ("100.64.0.0/10", "an address of a carrier's own network"),
        ("127.0.0.0/8", "a loopback address"),
        ("168.63.129.16/32", "the address of Azure's platform"),  # public, yet each machine there has its own
        ("169.254.0.0/16", "a link-local address"),
        ("172.16.0.0/12", _PRIVATE),
        ("192.0.0.0/24", "an address reserved for protocols"),
        ("192.0.2.0/24", _DOCUMENTATION),
        ("192.88.99.0/24", "an address of 6to4 relays"),
        ("192.168.0.0/16", _PRIVATE),
        ("198.18.0.0/15", "an address for benchmarks"),
        ("198.51.100.0/24", _DOCUMENTATION),
        ("203.0.113.0/24", _DOCUMENTATION),
        ("224.0.0.0/4", "a multicast address"),
        ("255.255.255.255/32", "the broadcast address"),
        ("240.0.0.0/4", "a reserved address"),
    )
)

_REFUSED_6: Final = tuple(
    (IPv6Network(network), what)
    for network, what in (
        ("::/128", "the unspecified address"),
        ("::1/128", "a loopback address"),
        ("::/96", "an IPv4-compatible address"),
        ("::ffff:0:0:0/96", "an IPv4-translated address"),
        ("64:ff9b:1::/48", "an address of a network's own NAT64"),
        ("100::/64", "an address that discards everything"),
        ("2001::/32", "a Teredo address"),
        ("2001:2::/48", "an address for benchmarks"),
        ("2001:db8::/32", _DOCUMENTATION),
        ("2001::/23", "an address reserved for protocols"),
        ("2002::/16", "a 6to4 address"),
        ("3fff::/20", _DOCUMENTATION),
        ("fc00::/7", _PRIVATE),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a site-local address"),
        ("ff00::/8", "a multicast address"),
    )
)

_GLOBAL_6: Final = IPv6Network("2000::/3")
"""All that has ever been given out for use on the whole internet (RFC 4291 2.4)."""
_NAT64: Final = IPv6Network("64:ff9b::/96")
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
"""The third quarter of an address that ends in an IPv4 address of some private site (RFC 5214 6.1)."""

_OTHER_PROTOCOLS: Final = frozenset(
    {1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, *range(6665, 6670), 6679, 6697, 10080}
)
"""Ports above 1023 that browsers connect to for nobody: those behind them may take HTTP for orders."""


@dataclass(frozen=True, slots=True)
class Ports:
    """
    The ports that may be connected to.

    The default is what receivers use: 80 and 443, and from 1024 on (3000, 8080, 8443 …) what browsers connect
    to as well. The rest are a system's own services, where a POST may be taken for a mail or for orders to a
    printer, and is never a webhook.
    """

    ranges: tuple[range, ...] = (range(80, 81), range(443, 444), range(1024, 65536))
    but: frozenset[int] = _OTHER_PROTOCOLS

    @classmethod
    def parse(cls, text: str) -> Ports:
        """
        Read ports as people list them, `443,8000-8999`: these and no others.

        Raises:
            ValueError: the text is no such list.
        """
        ranges = []
        for part in text.split(","):
            match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part, re.ASCII)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
            if not 0 < first <= last < 65536:
                raise ValueError(f"{part.strip()[:20]!r} is no port and no range like 8000-8999")
            ranges.append(range(first, last + 1))
        return cls(tuple(ranges), frozenset())

    def __contains__(self, port: int) -> bool:
        return port not in self.but and any(port in each for each in self.ranges)


def parse_networks(text: str) -> tuple[Network, ...]:
    """
    Read networks as people list them, `10.0.0.0/8,fd00::/8`; an address alone is a network of one.

    Raises:
        ValueError: the text is no such list.
    """
    networks = []
    for part in text.split(","):
        try:
            networks.append(ip_network(part.strip()))
        except ValueError:
            raise ValueError(
                f"{part.strip()[:50]!r} is no network: one looks like 10.0.0.0/8, "
                "with nothing but zeros behind its prefix"
            ) from None
    return tuple(networks)


@dataclass(frozen=True, slots=True)
class Guard:
    """
    What may be connected to.

    Attributes:
        allow: networks that may be, although they are not routable on the whole internet.
        ports: that may be connected to, wherever.
        https_only: whether targets must be encrypted.
    """

    allow: tuple[Network, ...] = ()
    ports: Ports = Ports()
    https_only: bool = False

    def admit(self, url: str) -> Target:
        """
        Return the target of a URL that may be sent to, as far as the URL tells: a name says nothing yet.

        Raises:
            UrlRefused: it may not, or is no URL.
        """
        target = parse_target(url)
        refusal = self.refusal(target)
        if refusal is not None:
            raise UrlRefused(refusal)
        return target

    def refusal(self, target: Target) -> str | None:
        """Return why nothing may be sent to a target, as far as its URL tells; None if it may."""
        if self.https_only and target.scheme != "https":
            return "webhooks are sent to https:// only"
        if target.port not in self.ports:
            return f"no webhooks are sent to port {target.port}"
        if target.address is None:
            return None
        kind = self.kind_refused(target.address)
        return kind and f"{target.host} is {kind}, which webhooks may reach only if its network is allowed"

    def kind_refused(self, address: Address | str) -> str | None:
        """
        Return what kind of address this is, in words, if it may not be connected to; None if it may.

        Takes text as well, as sockets give it.
        """
        try:
            address = ip_address(address)
        except ValueError:
            return "no address"
        if isinstance(address, IPv6Address):
            if address.scope_id is not None:
                return "an address with a zone"
            address = address.ipv4_mapped or address
        if any(address in network for network in self.allow):
            return None
        return self._kind_6(address) if isinstance(address, IPv6Address) else _kind_4(address)

    def _kind_6(self, address: IPv6Address) -> str | None:
        if address in _NAT64:
            kind = self.kind_refused(IPv4Address(int(address) & 0xFFFF_FFFF))
            return kind and f"{kind} behind NAT64"
        for network, what in _REFUSED_6:
            if address in network:
                return what
        if int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:
            return "an ISATAP address"
        return None if address in _GLOBAL_6 else "an address that is not routable on the internet"


def _kind_4(address: IPv4Address) -> str | None:
    return next((what for network, what in _REFUSED_4 if address in network), None)
