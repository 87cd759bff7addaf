"""
Who a client is when a proxy stands in between: its address and scheme, as far as they can be believed.

Pure. A header counts only if the peer of the connection is one of ours, and in `X-Forwarded-For` each address
only because the proxy to its right wrote it: read from the right, the first that is not one of ours is the
client. What stands left of it anybody can have made up. `Forwarded` (RFC 7239) is not read: a proxy that does
not write it passes on what the client wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from webhooks.guard import parse_networks

MAX_PROXIES: Final = 32
"""Proxies in a row that are believed; more are a loop, or somebody who wants to see us count."""

_WITH_PORT: Final = re.compile(r"\[([^\[\]]*)\](?::\d{1,5})?|(\d+\.\d+\.\d+\.\d+):\d{1,5}", re.ASCII)
_MAPPED: Final = IPv6Network("::ffff:0:0/96")

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Client:
    """
    Who asks.

    Attributes:
        address: in canonical form, an IPv4 address inside an IPv6 one as the former.
        scheme: `http` or `https`; None if no proxy said it.
    """

    address: str
    scheme: str | None


class TrustedProxies:
    """
    The networks whose word is believed.

    Args:
        networks: in which our proxies are.
    """

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        self._networks = tuple(map(_unmapped, networks))

    @classmethod
    def parse(cls, text: str) -> TrustedProxies:
        """
        Read networks as people list them, `10.0.0.0/8,fd00::/8`; an address alone is a network of one.

        Raises:
            ValueError: the text is no such list.
        """
        return cls(parse_networks(text))

    def __contains__(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)

    def client(self, peer: str, headers: Iterable[Header]) -> Client:
        """
        Return who asks, by a request's headers (names in lower case) if its peer is one of our proxies.

        Args:
            peer: address of the other end of the connection.
            headers: of the request.
        """
        found = _address(peer)
        if found is None:
            return Client(peer, None)
        if found not in self:
            return Client(str(found), None)
        forwarded: list[bytes] = []
        scheme: bytes = b""
        for name, value in headers:
            if name == b"x-forwarded-for":
                forwarded.append(value)
            elif name == b"x-forwarded-proto":
                scheme = value  # the last is of the nearest proxy
        return Client(str(self._first(found, b",".join(forwarded))), _scheme(scheme))

    def _first(self, peer: IPv4Address | IPv6Address, forwarded: bytes) -> IPv4Address | IPv6Address:
        """Return the first address from the right that is not ours, or the leftmost; the peer for garbage."""
        found = peer
        for count, text in enumerate(reversed(forwarded.decode("latin-1").split(","))):
            if not text.strip(" \t"):
                continue  # an empty element of a list is nothing (RFC 9110 5.6.1)
            address = _address(text.strip(" \t"))
            if address is None or count >= MAX_PROXIES:
                return peer
            found = address
            if found not in self:
                break
        return found


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a text is, with a port or in brackets or neither; None if it is none."""
    match = _WITH_PORT.fullmatch(text)
    try:
        address = ip_address((match[1] or match[2] or "") if match else text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:  # it means something on the machine that wrote it, if anywhere
            return None
        return address.ipv4_mapped or address
    return address


def _scheme(value: bytes) -> str | None:
    """Return the scheme that the nearest proxy named."""
    last = value.rpartition(b",")[2].strip(b" \t").lower()
    return last.decode() if last in (b"http", b"https") else None


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Return the IPv4 network that one of mapped addresses is; any other as it is."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96))
    return network
