"""
A connection before it says anything: an address, a place in the waiting room, and nothing else.

What speaks HTTP on it is made when the first byte comes. So a flood of connections that never say anything
costs a third of what it would, and those that are held open a tenth of the memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, cast

from gateway.limits.guard import Verdict

if TYPE_CHECKING:
    from gateway.doorkeeper import Doorkeeper
    from gateway.protocol import HttpProtocol


class Comer:
    """
    A connection as the doorkeeper sees it.

    Attributes:
        doorkeeper: who lets it in.
        transport: it.
        client: address and port of the peer; None if it has none.
        address: what that counts as; None if it is not counted.
        verdict: what the guard said.
    """

    __slots__ = ("address", "client", "doorkeeper", "transport", "verdict")
    doorkeeper: Doorkeeper
    transport: asyncio.Transport
    client: tuple[str, int] | None
    address: Hashable
    verdict: Verdict

    def arrive(self, transport: asyncio.Transport) -> bool:
        """A client connected, and may have yet to shake hands; return False if it was cut off at once."""
        self.transport = transport
        peer = transport.get_extra_info("peername")
        if not isinstance(peer, tuple):
            return True
        self.client = (peer[0], peer[1])
        guard = self.doorkeeper.guard
        self.address = guard.address_of(peer[0])
        self.verdict = guard.enter(self.address)
        if self.verdict is Verdict.CUT:
            self.part()
            transport.abort()
            return False
        self.doorkeeper.wait(self)
        return True

    def part(self) -> None:
        """The connection is gone. Idempotent."""
        self.doorkeeper.complete(self)
        if self.verdict is Verdict.IN:
            self.doorkeeper.guard.leave(self.address)
        self.address = None

    def time_out(self) -> None:
        """It takes too long over its request."""
        raise NotImplementedError


class Arrival(Comer, asyncio.Protocol):
    """
    The protocol of a connection until its first byte comes.

    Args:
        new: makes what speaks HTTP on it then.
        doorkeeper: who lets it in.
        connections: all connections of the server, which it tells to go when it goes.
    """

    __slots__ = ("_connections", "_new")

    def __init__(
        self, new: Callable[[], HttpProtocol], doorkeeper: Doorkeeper, connections: set[Any]
    ) -> None:
        self.doorkeeper = doorkeeper
        self.client = None
        self.address = None
        self.verdict = Verdict.IN
        self._new = new
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        if self.arrive(cast("asyncio.Transport", transport)):
            self._connections.add(self)
            self.doorkeeper.expect(self)

    def data_received(self, data: bytes) -> None:
        """The first bytes are here."""
        self._connections.discard(self)
        self.doorkeeper.complete(self)
        protocol = self._new()
        protocol.follow(self)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        protocol.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left, or was dropped."""
        self._connections.discard(self)
        self.part()

    def shutdown(self) -> None:
        """The server goes away."""
        self.transport.close()

    def time_out(self) -> None:
        """It says nothing for too long."""
        self.transport.abort()
