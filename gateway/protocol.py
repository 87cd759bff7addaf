"""
One HTTP connection: uvicorn's, which can give its socket away and refuses what no honest client sends.

What it adds: an ASGI extension by which an endpoint takes the socket over; WebSocket upgrades arrive as the
ordinary GET requests they are; a request head has a size limit and a deadline; what a client sends ahead of
its answers takes no more memory than its bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import is_ssl

from gateway.arrival import Arrival, Comer
from gateway.limits.guard import Verdict
from gateway.limits.refusal import ComeBack
from gateway.limits.work import opens_stream, takes_memory
from gateway.problems import ClientGone, Problem
from gateway.proxies import TrustedProxies
from gateway.subscribe import DETACH

MAX_TARGET = 65_535
"""Bytes of a request's target; httptools reads no longer ones, whatever the limit of the head is."""

_NO_REQUEST = Problem(400, "this is no HTTP/1.1 request")
_OTHER_VERSION = Problem(505, "only HTTP/1.1 and HTTP/1.0 are spoken here", headers={"connection": "close"})

_OTHER_CODING = Problem(
    501, "of transfer codings only chunked, alone, is understood", headers={"connection": "close"}
)

MAX_PIPELINED = 16
"""Requests of one connection that wait for those before them; beyond it nothing more of it is parsed."""

PARSED_AT_ONCE = 4096
"""Bytes given to the parser at a time: as many requests as fit into them can come to wait as well."""


class _Flow(FlowControl):
    """uvicorn's, which reads on whenever an application asks for a body: not while the connection is held."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class HttpProtocol(Comer, HttpToolsProtocol):
    """One HTTP connection. Subclassed with its doorkeeper, because uvicorn makes the instances."""

    proxies: TrustedProxies | None = None  # whose word about the client is believed
    flow: _Flow

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._answering: RequestResponseCycle | None = None  # `cycle` is the one that was read last
        self._in_head = True  # the next bytes belong to a request's head
        self._head_bytes = 0
        self._aside = 0  # bytes since the last that were of a head or a body: trailers, chunk extensions
        self.url = b""
        self._upgraded = False  # an upgrade was asked for: what follows is no HTTP
        self._behind = b""  # … and is kept here until somebody takes the socket over
        self._ended = False  # what comes is not read any more: it cannot be told what it is
        self._later = b""  # received, but not parsed before fewer requests wait
        self.made = False  # a connection is made: in TLS, the handshake is over
        self._arrived = False
        self.address = None
        self.verdict = Verdict.IN
        self._asking: Hashable = None  # who asks by way of a proxy for what is being answered

    def arrive(self, transport: asyncio.Transport) -> bool:
        """See `Comer`."""
        self._arrived = True
        return super().arrive(transport)

    def follow(self, arrival: Arrival) -> None:
        """Go on with a connection that has arrived already."""
        self._arrived = True
        self.client, self.address, self.verdict = arrival.client, arrival.address, arrival.verdict

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected. (Not by way of uvicorn's own, which asks the kernel for our address.)"""
        if not self._arrived and not self.arrive(transport):
            return
        self.made = True
        self.connections.add(self)
        self.transport = transport
        self.flow = _Flow(transport)
        self.server = self.doorkeeper.address
        self.scheme = "https" if is_ssl(transport) else "http"
        self.doorkeeper.expect(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.part()
        self._answered()
        self._later = b""
        self.pipeline.clear()
        if (answering := self._answering) is not None and not answering.response_complete:
            answering.disconnected = True  # uvicorn tells only the request that was read last
            answering.message_event.set()
        super().connection_lost(exc)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.response_complete:
            # A request refers to its protocol. Left to the collector, the requests of a flood are freed by
            # the thousand, and then everybody waits.
            self.cycle = self.scope = self._answering = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Parse requests, or a part of one."""
        if not self._listens():
            return
        if self._later:
            self._later += data
            return
        self._unset_keepalive_if_required()
        at = 0
        while at < len(data) and self._listens():
            if self._upgraded:
                self._keep(data[at:])
                return
            if len(self.pipeline) >= MAX_PIPELINED:
                self._hold(data[at:])
                return
            piece = data[at : at + PARSED_AT_ONCE]
            at += len(piece)
            if instead := self._parse(piece):
                data, at = instead + data[at:], 0

    def _listens(self) -> bool:
        return not self._ended and not self.transport.is_closing()

    def _hold(self, data: bytes) -> None:
        """
        Leave the rest for when fewer requests wait.

        A request that waits takes a hundred times the memory of its bytes, so it is not enough to pause
        reading now and then, as uvicorn does.
        """
        self._later = data
        self.flow.pause_reading()
        self.flow.held = True
        # Of half a head the rest may be here: it is not the client who is slow.
        self.doorkeeper.complete(self)

    def _go_on(self) -> None:
        """Parse what was left for later."""
        if not self._later or self.transport.is_closing():
            return
        data, self._later = self._later, b""
        self.flow.held = False
        if self._in_head:
            self.doorkeeper.expect(self)
        self.data_received(data)
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """A request was answered: the next one begins."""
        self._answered()
        super().on_response_complete()
        if self._later and len(self.pipeline) < MAX_PIPELINED:
            self.loop.call_soon(self._go_on)

    def _parse(self, data: bytes) -> bytes:
        """Give `data` to the parser; return what is to be parsed instead of it, if anything."""
        if self._in_head:
            self._head_bytes += len(data)
        else:
            self._aside += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            behind = data[upgrade.args[0] :]
            if self._offers_another_protocol():
                return self._without_offer(behind)
            self._upgraded = True
            self.cycle.keep_alive = False  # whatever it was, we answer it once
            self._keep(behind)
        except httptools.HttpParserError:
            self._refuse(self._too_long() if len(self.url) > MAX_TARGET else _NO_REQUEST)
        else:
            if (self._head_bytes if self._in_head else self._aside) > self.doorkeeper.max_head:
                self._refuse(self._too_long() if len(self.url) > MAX_TARGET else self._too_large())
        return b""

    def _offers_another_protocol(self) -> bool:
        """Tell whether the request offers an upgrade that nobody here takes up: Java's clients offer h2c."""
        return self.parser.should_upgrade() and self._get_upgrade() not in (None, b"websocket")

    def _without_offer(self, behind: bytes) -> bytes:
        """
        Begin with the request at hand once more; return it without its offer, and what is behind it.

        A server may ignore an offer (RFC 9110 7.8), but the parser reads no body behind one.
        """
        line = b"%b %b HTTP/%b\r\n" % (
            self.parser.get_method(),
            self.url,
            self.parser.get_http_version().encode(),
        )
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn's: what comes behind a request that is the last must not cost it its answer.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._head_bytes = 0
        return b"".join((line, *fields, b"\r\n", behind))

    def _keep(self, data: bytes) -> None:
        self._behind += data
        if len(self._behind) > self.doorkeeper.max_head:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._aside = 0
        if not self._in_head:  # not the connection's first
            self._in_head = True
            self._head_bytes = 0
            self.doorkeeper.expect(self)
        self.scope["extensions"] = {DETACH: self}  # type: ignore[dict-item]  # uvicorn's type knows no objects here

    def on_headers_complete(self) -> None:
        """A request's head is complete: the application is started."""
        if self._offers_another_protocol():
            return
        self._in_head = False
        self.doorkeeper.arrived(self)
        if self.proxies is not None and self.client is not None:
            self._believe(self.proxies, self.client)
        super().on_headers_complete()

    def _believe(self, proxies: TrustedProxies, peer: tuple[str, int]) -> None:
        """Let the request be that of the client whom a proxy of ours names."""
        found = proxies.client(peer[0], self.headers)
        # Of the client's port nobody tells; an address that is not the peer's has none.
        self.scope["client"] = peer if found.address == peer[0] else (found.address, 0)
        if found.scheme is not None:
            self.scope["scheme"] = found.scheme

    def on_body(self, body: bytes) -> None:
        """A piece of a request's body."""
        self._aside = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        if not self._offers_another_protocol():
            self.doorkeeper.complete(self)
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        if self.doorkeeper.leaving:
            cycle.keep_alive = False
        if self._head_bytes > self.doorkeeper.max_head and self._size_of(cycle) > self.doorkeeper.max_head:
            app = self._too_large()
        elif cycle.scope["http_version"] not in ("1.1", "1.0"):
            app = _OTHER_VERSION
        elif cycle.scope["method"] != "GET" and not _is_understood(cycle.scope["headers"]):
            app = _OTHER_CODING
        elif (refusal := self._limited(cycle)) is not None:
            app = refusal
        if cycle.scope["method"] == "GET":
            self.doorkeeper.enter(partial(super()._start_asgi_task, cycle, app))
        else:
            super()._start_asgi_task(cycle, app)

    def _limited(self, cycle: RequestResponseCycle) -> ComeBack | None:
        """Return why a request is not let in by the limits; None if it is."""
        guard, scope = self.doorkeeper.guard, cycle.scope
        if self.verdict is not Verdict.IN:
            return guard.too_many(self.address, last=True)
        if guard.memory.reached and takes_memory(scope):
            return guard.no_memory()
        if self.proxies is None or self.address is not None or scope["client"] is None:
            return None
        asking = guard.address_of(scope["client"][0])
        if guard.enter(asking, counts=opens_stream(scope)) is not Verdict.IN:
            return guard.too_many(asking, last=False)
        self._asking = asking
        return None

    def _answered(self) -> None:
        """What somebody asked by way of a proxy is over."""
        if self._asking is not None:
            self.doorkeeper.guard.leave(self._asking)
            self._asking = None

    @staticmethod
    def _size_of(cycle: RequestResponseCycle) -> int:
        """Return the bytes of a request's head; the data it came in may have had a body behind it."""
        scope = cycle.scope
        fields = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        return len(scope["raw_path"]) + len(scope["query_string"]) + fields

    def _too_large(self) -> Problem:
        limit = self.doorkeeper.max_head
        return Problem(
            431, f"a request's line and headers may have {limit} bytes", headers={"connection": "close"}
        )

    @staticmethod
    def _too_long() -> Problem:
        return Problem(414, f"a request's target may have {MAX_TARGET} bytes")

    def _should_upgrade(self) -> bool:
        """Let upgrades reach the application as the GET requests they are; its endpoint answers 101."""
        return False

    def time_out(self) -> None:
        """The client takes too long over its request's head."""
        if self._head_bytes:
            self._refuse(Problem(408, "the request's head took too long"))
        else:
            self.transport.abort()

    def _refuse(self, problem: Problem) -> None:
        """Answer what is not, or not yet, a request, and close."""
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:  # it came whole, and may have been carried out: it gets its answer first
                cycle.keep_alive = False
                self._ended = True
                return
            if cycle is self._answering and not cycle.response_started:
                cycle.disconnected = True  # whoever waits for the body need not answer any more
                cycle.message_event.set()
                cycle = None
        if cycle is None or cycle.response_complete:
            body = problem.body()
            head = b"".join(b"%b: %b\r\n" % header for header in problem.raw_headers(body))
            status = b"HTTP/1.1 %d %b\r\n" % (problem.status, problem.title.encode())
            self.transport.write(status + head + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def detach(self) -> tuple[asyncio.Transport, bytes]:
        """
        Give up the socket; return its transport, and what the client sent behind its request.

        To be called by the endpoint that is answering the current request, before it has answered anything.
        uvicorn is made to believe that the response is complete, so its task ends in peace.

        Raises:
            ClientGone: there is nobody at the other end any more.
        """
        cycle = self._answering
        assert cycle is not None
        if self.transport.is_closing():
            cycle.disconnected = True  # uvicorn hears of it only now and then, and complains until it has
            raise ClientGone
        cycle.response_started = cycle.response_complete = True
        self._answering = None
        self.cycle = self.parser = None  # type: ignore[assignment]  # so that nothing is left to the collector
        self.connections.discard(self)
        self.doorkeeper.complete(self)  # the head of a further request may have begun to come
        self.doorkeeper.guard.hand_on(self.transport, self.address if self._asking is None else self._asking)
        self.pipeline.clear()  # behind a response without end nothing is ever answered
        self._later = b""
        self.flow.held = False
        self.flow.resume_reading()
        self._unset_keepalive_if_required()
        behind, self._behind = self._behind, b""
        return self.transport, behind


def _is_understood(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Tell whether a request's body is coded in no way that would have to be undone (RFC 9112 6.1)."""
    return all(value.strip().lower() == b"chunked" for name, value in headers if name == b"transfer-encoding")
