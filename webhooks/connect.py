"""
Opening a link: name, guard, connection, guard again, encryption.

Strategy: the connection is made to the very address that the guard has let through; nothing looks the name
up a second time, so a name that means something else by then (DNS rebinding) gains nothing. What the socket
says it is connected to is checked once more before a byte is sent.

What is said about a failure is for the owner of the endpoint: it names the kind of an address that is
refused, never the address, which would tell him about our network.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import Final

from webhooks.attempt import Fault, Target
from webhooks.dial import dial
from webhooks.flight import Flight, Phase
from webhooks.guard import Guard
from webhooks.link import Link
from webhooks.resolve import Names, Unresolved

_FOREVER: Final = 3600.0
"""Seconds, for the event loop's own limit of a handshake: the attempt has a deadline that ends it earlier."""

_CLOSING_TURNS: Final = 10
"""Turns of the event loop; it takes one or two to close a socket."""


class Unreachable(Exception):
    """
    No link could be opened.

    Attributes:
        fault: why, in one word.
    """

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


class Connector:
    """
    Opens links.

    Args:
        guard: says what may be connected to.
        names: knows the addresses of names.
        trust: whose certificates are trusted.
    """

    def __init__(self, guard: Guard, names: Names, trust: ssl.SSLContext) -> None:
        self._guard = guard
        self._names = names
        self._trust = trust

    async def open(self, flight: Flight, link: Link) -> None:
        """
        Open `link` to the target of a flight, whose phase says how far it has come.

        Raises:
            Unreachable: it cannot be opened; its socket is closed.
        """
        sock = await self._connect(flight)
        try:
            if flight.target.scheme == "https":
                await self._encrypt(sock, flight, link)
            else:
                await asyncio.get_running_loop().create_connection(lambda: link, sock=sock)
        except BaseException:
            link.abort()
            await _closed(sock)
            raise

    async def _connect(self, flight: Flight) -> socket.socket:
        """Return a connection to an address that the guard lets through."""
        target = flight.target
        refusal = self._guard.refusal(target)  # it may be another guard than the one that admitted the URL
        if refusal is not None:
            raise Unreachable("blocked", refusal)
        flight.phase = Phase.RESOLVING
        addresses = await self._addresses(target)
        flight.phase = Phase.CONNECTING
        try:
            sock = await dial(addresses, target.port)
        except ConnectionRefusedError:
            raise Unreachable("refused", f"nobody listens at port {target.port}") from None
        except OSError as error:
            raise Unreachable("connect", f"no connection could be made: {_reason(error)}") from None
        self._check_peer(sock)
        return sock

    async def _addresses(self, target: Target) -> list[str]:
        """Return where a target may be reached."""
        if target.address is not None:
            return [target.host]
        try:
            found = await self._names.addresses(target.host)
        except Unresolved as error:
            raise Unreachable("dns", str(error)) from None
        if not found:
            raise Unreachable("dns", "the name has no address")
        kinds = [self._guard.kind_refused(address) for address in found]
        allowed = [address for address, kind in zip(found, kinds, strict=True) if kind is None]
        if not allowed:
            raise Unreachable(
                "blocked",
                f"the name leads to {kinds[0]}, which webhooks may reach only if its network is allowed",
            )
        return allowed

    def _check_peer(self, sock: socket.socket) -> None:
        """Close the connection if it leads elsewhere than the guard lets through."""
        try:
            kind = self._guard.kind_refused(sock.getpeername()[0])
        except OSError as error:
            sock.close()
            raise Unreachable("connect", f"the connection was closed at once: {_reason(error)}") from None
        if kind is not None:
            sock.close()
            raise Unreachable("blocked", f"the connection led to {kind}")

    async def _encrypt(self, sock: socket.socket, flight: Flight, link: Link) -> None:
        flight.phase = Phase.ENCRYPTING
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: link,
                sock=sock,
                ssl=self._trust,
                server_hostname=flight.target.host,
                ssl_handshake_timeout=_FOREVER,
            )
        except ssl.SSLCertVerificationError as error:
            raise Unreachable("tls", f"the certificate is not trusted: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise Unreachable("tls", f"the TLS handshake failed: {error.reason or error}") from None
        except OSError:
            raise Unreachable("tls", "the connection was closed during the TLS handshake") from None


async def _closed(sock: socket.socket) -> None:
    """Wait until the transport has closed its socket: that is said to nobody before the handshake is over."""
    for _ in range(_CLOSING_TURNS):
        if sock.fileno() < 0:
            return
        await asyncio.sleep(0)


def _reason(error: OSError) -> str:
    """Return the system's words for an error; its own text may name the address."""
    return os.strerror(error.errno) if error.errno else type(error).__name__
