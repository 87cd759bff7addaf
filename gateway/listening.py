"""
The sockets that a gateway listens on: one for each address that its host stands for.

A gateway of one process binds them for itself (`listen`). One of several workers has a `Port`, reserved once
by their supervisor, of which every worker gets a share: sockets of its own on the same addresses
(SO_REUSEPORT, socket(7)), among which the kernel spreads the connections.
"""

from __future__ import annotations

import socket
from typing import Any


def listen(host: str, port: int, notsent_lowat: int, dead_peer_ms: int) -> list[socket.socket]:
    """
    Return sockets bound to every address that `host` stands for, tuned for streaming.

    Raises:
        OSError: an address is in use, not ours, or the name is unknown.
    """
    listeners: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            listener = _new(family)
            listeners.append(listener)
            tune(listener, notsent_lowat, dead_peer_ms)
            listener.bind(address)
            listener.settimeout(0)
    except OSError:
        close_all(listeners)
        raise
    return listeners


def tune(listener: socket.socket, notsent_lowat: int, dead_peer_ms: int) -> None:
    """
    Keep the kernel's part of the buffers small, and let it notice peers that are gone; accepted sockets
    inherit both.

    TCP_NOTSENT_LOWAT: without it a stalled peer takes megabytes of kernel memory before anyone notices.
    TCP_USER_TIMEOUT (RFC 5482): unacknowledged data for that long means the peer is dead.
    """
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, notsent_lowat)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, dead_peer_ms)


def close_all(sockets: list[socket.socket]) -> None:
    """Close sockets, and forget them."""
    for each in sockets:
        each.close()
    sockets.clear()


class Port:
    """
    A port that is ours as long as this object is open, whether or not anybody listens on it.

    Args:
        host: name or address.
        port: its number; 0 takes a free one.

    Raises:
        OSError: an address is in use, not ours, or the name is unknown.
    """

    def __init__(self, host: str, port: int) -> None:
        self._holders: list[socket.socket] = []
        try:
            for family, address in _addresses(host, port):
                self._holders.append(_reserve(family, address))
        except OSError:
            self.close()
            raise

    @property
    def address(self) -> tuple[str, int]:
        """The first address, with its port."""
        host, port = self._holders[0].getsockname()[:2]
        return host, port

    def share(self) -> list[socket.socket]:
        """
        Return sockets of one's own, bound to every address and not listening yet.

        Raises:
            OSError: somebody else took an address after all.
        """
        sockets: list[socket.socket] = []
        try:
            for holder in self._holders:
                sock = _new(holder.family)
                sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind(holder.getsockname())
        except OSError:
            close_all(sockets)
            raise
        return sockets

    def close(self) -> None:
        """Give the port up. Idempotent."""
        close_all(self._holders)


def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    """Return family and address for every address that `host` stands for."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _new(family: int) -> socket.socket:
    """Return a socket that does not mind what is left of the connections of an earlier process."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _reserve(family: int, address: Any) -> socket.socket:
    """
    Return a socket that keeps an address for those of our user who share it, and never listens.

    Only listening without SO_REUSEPORT finds out whether somebody is there. From then on SO_REUSEADDR, which
    was needed for that, would let another gateway bind the address while nobody listens: so it is taken off.
    """
    holder = _new(family)
    try:
        with _new(family) as chooser:
            chooser.bind(address)
            holder.bind(chooser.getsockname())  # a port that the kernel chose would be lost by the shutdown
            holder.listen()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        holder.shutdown(socket.SHUT_RDWR)  # it listens no more, and stays bound
    except OSError:
        holder.close()
        raise
    return holder
