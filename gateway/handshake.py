"""
A connection before its handshake in TLS: it has an address and a place in the waiting room already.

A server that encrypts by itself tells its protocol of a connection only when the handshake is over. Until
then nobody could say whose it is, refuse it before it costs the work of a signature, or drop it when too many
wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

# What uvloop's own server has between socket and protocol; of the same form as that of `asyncio.sslproto`.
from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]

from gateway.tls import SHUTDOWN_SECONDS

if TYPE_CHECKING:
    from ssl import SSLContext

    from gateway.protocol import HttpProtocol


class Handshake(asyncio.Protocol):
    """
    The protocol of a connection until it is clear that it may shake hands.

    Args:
        new: makes what speaks HTTP on it then.
        context: what it is encrypted with.
        timeout: seconds that shaking hands may take.
    """

    def __init__(self, new: Callable[[], HttpProtocol], context: SSLContext, timeout: float) -> None:
        self._new = new
        self._context = context
        self._timeout = timeout

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        raw = cast("asyncio.Transport", transport)
        protocol = self._new()
        if not protocol.arrive(raw):
            return
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        over.add_done_callback(lambda _: _over(over, protocol))
        encrypted = SSLProtocol(
            loop,
            protocol,
            self._context,
            over,
            server_side=True,
            ssl_handshake_timeout=self._timeout,
            ssl_shutdown_timeout=SHUTDOWN_SECONDS,
        )
        raw.set_protocol(encrypted)
        encrypted.connection_made(raw)


def _over(over: asyncio.Future[None], protocol: HttpProtocol) -> None:
    """The handshake is over, or the connection is, and then its protocol may not hear of it otherwise."""
    if over.cancelled() or over.exception() is not None or not protocol.made:
        protocol.part()
