"""
Our HTTP server: uvicorn's, with connections of our own, which tells them first when it goes away, and can
leave its port to others.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import uvicorn

from gateway.arrival import Arrival
from gateway.drain import Drain
from gateway.handshake import Handshake
from gateway.protocol import HttpProtocol
from gateway.tls import Tls

KEEP_ALIVE_SECONDS = 75
"""How long an idle keep-alive connection is kept: longer than the pauses between a client's polls."""

HEARING_SECONDS = 1.0
"""How long a server that leaves its port to others waits at least for requests on the connections it has."""

UNFINISHED_SECONDS = 5.0
"""How long a server that goes away waits for the rest of a request's body."""


class Server(uvicorn.Server):
    """
    uvicorn's server, with a drain before it closes anything.

    Args:
        config: uvicorn's.
        drain: tells the streaming connections to go, and waits until they have.
        tls: what the port is encrypted with; None if it is not.

    Attributes:
        on_open: called once connections are taken.
    """

    def __init__(self, config: uvicorn.Config, drain: Drain, tls: Tls | None = None) -> None:
        super().__init__(config)
        self._tls = tls
        self.on_open: Callable[[], None] = lambda: None
        self.hurried = False  # somebody pressed Ctrl+C and waits
        self._asked = asyncio.Event()
        self._drain = drain
        self._hear_until: float | None = (
            None  # others take the connections; those that it has may go on so long
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """
        Exit on SIGTERM and SIGINT; unlike uvicorn's, without raising the signal again, which would skip what
        comes after.
        """
        loop = asyncio.get_running_loop()
        handled = (signal.SIGTERM, signal.SIGINT)
        for number in handled:
            loop.add_signal_handler(number, self._asked_to_exit, number)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    def _asked_to_exit(self, number: int) -> None:
        self.hurried = number == signal.SIGINT
        self.handle_exit(number, None)
        self._asked.set()

    def exit(self) -> None:
        """Stop serving, as if told by a signal."""
        self.should_exit = True
        self._asked.set()

    def leave(self, seconds: float) -> None:
        """
        Take no more connections and stop serving: somebody else takes them, from the same sockets.

        Args:
            seconds: how long those that are kept may still be used, so that no request meets a closed one.
        """
        for each in self.servers:
            each.close()
        self._hear_until = asyncio.get_running_loop().time() + max(seconds, HEARING_SECONDS)
        self.exit()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections."""
        await self._listen(sockets or [])
        self.on_open()

    async def _listen(self, sockets: list[socket.socket]) -> None:
        """Do what uvicorn does, but see those who say nothing yet, or shake hands."""
        protocol = cast("type[HttpProtocol]", self.config.http_protocol_class)
        new = partial(protocol, self.config, self.server_state, self.lifespan.state)
        loop = asyncio.get_running_loop()
        doorkeeper = protocol.doorkeeper
        first: Callable[[], asyncio.Protocol] = partial(
            Arrival, new, doorkeeper, self.server_state.connections
        )
        if self._tls is not None:
            first = partial(Handshake, new, self._tls.context, doorkeeper.timeout)
        self.servers = [
            await loop.create_server(first, sock=sock, backlog=self.config.backlog) for sock in sockets
        ]
        self.started = True

    async def main_loop(self) -> None:
        """Wait until told to exit; uvicorn's own looks ten times a second, also on an idle machine."""
        await self.on_tick(0)
        await self._asked.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, unless a second SIGINT says that nobody wants to wait; then shut down as uvicorn does."""
        draining = asyncio.ensure_future(self._drain(hurried=self.hurried))
        while not draining.done() and not self.force_exit:
            await asyncio.wait((draining,), timeout=0.1)
        draining.cancel()
        if self._hear_until is not None:
            await self._hear_out(self._hear_until)
        dropping = asyncio.get_running_loop().call_later(UNFINISHED_SECONDS, self._drop_unfinished)
        await super().shutdown(sockets)
        dropping.cancel()

    async def _hear_out(self, until: float) -> None:
        """Wait until no connection is left that a request could come on, or the time is over."""
        now = asyncio.get_running_loop().time
        kept = self.server_state.connections
        while kept and now() < until and not self.force_exit:  # noqa: ASYNC110  # the set is uvicorn's
            await asyncio.sleep(0.02)

    def _drop_unfinished(self) -> None:
        """
        Drop the connections that still have not sent the whole of their request, or that were told goodbye in
        TLS and do not answer: who keeps a connection for later does not read.
        """
        for protocol in list(self.server_state.connections):
            cycle = getattr(protocol, "cycle", None)
            unfinished = cycle is not None and cycle.more_body and not cycle.response_complete
            transport = protocol.transport
            silent = (
                self._tls is not None and transport.is_closing() and not transport.get_write_buffer_size()
            )
            if unfinished or silent:
                transport.abort()
