"""
`GET /v1/events`: one URL, the transport chosen by the request.

On our own server a stream or WebSocket leaves the ASGI world here: its socket is handed to a detached
connection and the task ends. In any other ASGI server the same request is served through plain ASGI
(`gateway.asgi`). Polls are answered by `gateway.polling`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from starlette.types import Receive, Scope, Send

from fanout.closing import DRAINING, OVERLOADED
from fanout.connection import Connection
from fanout.cursor import Cursor, Start, parse_start
from fanout.frames import Wire
from fanout.selection import Selection
from gateway.asgi import AsgiSubscriber
from gateway.auth.caller import CORS, CREDENTIAL, Caller, caller_of
from gateway.consumers import Consumers
from gateway.detached import Detached, DetachedStream
from gateway.greeting import connection_name, greeting_of
from gateway.host import HostWatch
from gateway.limits.refusal import ComeBack, turn_away
from gateway.log import LogError
from gateway.members.sticky import HOP, Sticky
from gateway.mint import now_ms
from gateway.polling import Poller
from gateway.problems import ClientGone, Problem, deny, method_not_allowed, unreadable
from gateway.quotas import most_bytes, most_topics
from gateway.session import Services, Session
from gateway.starts import Place
from gateway.streams import Streams
from gateway.subscription import Request, Transport, parse
from gateway.websocket import MAX_CONTROL, DetachedWebSocket, accept

if TYPE_CHECKING:
    from gateway.auth.authority import Authority

DETACH: Final = "sluicegate.detach"
"""The ASGI extension by which our server offers its socket: an object with `detach()`."""

STREAM_WIRES: Final = {
    (Transport.SSE, "1.1"): Wire.SSE_CHUNKED,
    (Transport.NDJSON, "1.1"): Wire.NDJSON_CHUNKED,
    (Transport.SSE, "1.0"): Wire.SSE,
    (Transport.NDJSON, "1.0"): Wire.NDJSON,
}

_NO_CACHE: Final = (
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"vary", b"accept, authorization"),
)
_CONTENT_TYPES: Final = {Transport.SSE: b"text/event-stream", Transport.NDJSON: b"application/x-ndjson"}
_STREAM_FIELDS: Final = {
    transport: b"".join(b"%b: %b\r\n" % field for field in ((b"content-type", kind), *_NO_CACHE))
    for transport, kind in _CONTENT_TYPES.items()
}


class Detachable(Protocol):
    """A server's side of a connection whose socket can be taken over."""

    def detach(self) -> tuple[asyncio.Transport, bytes]:
        """Give up the transport; return it with what the client sent behind its request."""


def header_map(scope: Scope) -> dict[bytes, bytes]:
    """Return the request's headers, repeated ones joined by a comma (RFC 9110 5.3)."""
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


@dataclass(frozen=True, slots=True)
class SubscribeLimits:
    """
    Limits of subscribing.

    Attributes:
        max_topics: patterns of one connection.
        max_connections: streaming connections of this replica; 0 is no limit.
        max_message: bytes of one WebSocket message.
        deflate: whether permessage-deflate is offered.
    """

    max_topics: int
    max_connections: int
    max_message: int
    deflate: bool


_HOP: Final = f"{HOP}=".encode()


class Subscribe:
    """
    The endpoint.

    Args:
        services: what sessions and connections work with.
        poller: answers polls.
        consumers: remembered cursors.
        limits: what a client may ask for.
        sticky: sends clients where they belong; None if all are served here.
        tickets: makes tickets that the other replicas take; None if they do not.
    """

    def __init__(
        self,
        services: Services,
        poller: Poller,
        consumers: Consumers,
        limits: SubscribeLimits,
        sticky: Sticky | None,
        tickets: Authority | None = None,
    ) -> None:
        self._services = services
        self._streams: Streams = services.streams
        self._poller = poller
        self._consumers = consumers
        self._limits = limits
        self._sticky = sticky
        self._tickets = tickets
        self.asgi = AsgiSubscriber(services)
        self._host = HostWatch(services.tasks, self._leave)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if DETACH in scope.get("extensions", ()):
            await self._answer(header_map(scope), scope, receive, send)
            return
        with self._host:
            if scope["type"] == "websocket":
                await self._answer_handshake(scope, receive, send)
            else:
                await self._answer(header_map(scope), scope, receive, send)

    def _leave(self) -> None:
        """The server we are mounted in is going away: send everybody off, and let nobody in."""
        self._streams.draining = True
        self._poller.drain()
        for sink in list(self._streams.sinks):
            sink.close(DRAINING)

    async def _answer_handshake(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a WebSocket's opening handshake on a server that opens WebSockets itself."""
        headers = {**header_map(scope), b"upgrade": b"websocket"}
        try:
            await self._answer(headers, scope, receive, send)
        except Problem as problem:
            await deny(problem, scope, send)

    async def _answer(
        self, headers: Mapping[bytes, bytes], scope: Scope, receive: Receive, send: Send
    ) -> None:
        caller = caller_of(scope)
        most = most_topics(caller, self._limits.max_topics)
        request = _granted(parse(scope["query_string"], headers, most), caller)
        url = self._elsewhere(request, scope, headers)
        if url and request.transport is not Transport.WEBSOCKET:
            await self._send_on(url, scope, send)
            return
        try:
            if request.transport is Transport.POLL:
                await self._poll(request, caller, scope, receive, send)
            else:
                await self._stream(request, caller, headers, scope, receive, send, url)
        except ComeBack as refusal:
            if request.transport is not Transport.SSE:
                raise
            await turn_away(send, refusal.retry_after or 0)

    async def _poll(
        self, request: Request, caller: Caller, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a poll; one that may wait is a connection of its caller's as long as it takes."""
        quotas, holder = self._services.quotas, object()
        if request.wait:
            quotas.check_place(caller)
        quotas.poll(caller)
        if request.wait:
            quotas.hold(holder, caller)
        try:
            place = await self._place(request, caller)
            await self._poller.answer(request, place, scope, receive, send)
        finally:
            quotas.left(holder)

    async def _stream(
        self,
        request: Request,
        caller: Caller,
        headers: Mapping[bytes, bytes],
        scope: Scope,
        receive: Receive,
        send: Send,
        url: str,
    ) -> None:
        """Open a stream or a WebSocket; with `url`, one that is sent there."""
        self._services.quotas.check_place(caller)  # before a consumer's place is moved …
        place = await self._place(request, caller)
        self._services.quotas.check_place(caller)  # … and when others may have come meanwhile
        if self._is_full():
            await self._turn_away(request, send)
            return
        if scope["type"] == "http" and request.transport is Transport.WEBSOCKET:
            _check_upgradable(scope)
        if scope.get("method") == "HEAD":
            await _send_head(request.transport, send)
            return
        offer: Detachable | None = scope.get("extensions", {}).get(DETACH)
        if offer is None:
            await self.asgi.serve(request, place, scope, receive, send)
            return
        with contextlib.suppress(ClientGone):
            if request.transport is Transport.WEBSOCKET:
                self._detach_websocket(request, caller, place, headers, offer, url)
            else:
                self._detach_stream(request, caller, place, scope, offer)

    def _elsewhere(self, request: Request, scope: Scope, headers: Mapping[bytes, bytes]) -> str:
        """
        Return where a client is to be sent; empty if it is served here.

        A page of another origin is: its browser follows a redirect, but then keeps the answer from it (Fetch
        standard, "tainted origin"). So is who said by a header or a cookie who they are: browsers and other
        clients leave that out when they follow a redirect to another origin. An EventSource can be given a
        ticket instead, where replicas know each other's.
        """
        if self._sticky is None:
            return ""
        if request.transport is not Transport.WEBSOCKET:
            if b"origin" in headers:
                return ""
            if CREDENTIAL in scope and not (self._tickets and request.transport is Transport.SSE):
                return ""
        return self._sticky.elsewhere(request.key, request.hop)

    async def _send_on(self, url: str, scope: Scope, send: Send) -> None:
        """Answer where else the client belongs (RFC 9110, 15.4.8); it repeats its request there."""
        assert self._sticky is not None
        query = b"&".join(each for each in scope["query_string"].split(b"&") if not each.startswith(_HOP))
        location = b"%b/v1/events?%b&%b%d" % (url.encode(), query, _HOP, self._sticky.version)
        if CREDENTIAL in scope and self._tickets is not None:
            location += b"&ticket=%b" % (await self._tickets.ticket(scope[CREDENTIAL])).encode()
        self._sticky.sent_on += 1
        headers = [(b"location", location), (b"cache-control", b"no-store"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 307, "headers": headers})
        await send({"type": "http.response.body"})

    async def _place(self, request: Request, caller: Caller) -> Place:
        """
        Return where the request begins, in the log as it is when this returns.

        Raises:
            Problem: 503, the log cannot be read.
        """
        window = self._streams.hub.window
        while True:
            restarts = window.restarts
            try:
                place = await self._locate(request, caller)
            except LogError as error:
                raise unreadable(error) from error
            if window.restarts == restarts:
                return place

    async def _locate(self, request: Request, caller: Caller) -> Place:
        """Return where the request begins: where it says, else where its consumer was, else at the head."""
        start, consumer = request.start, request.consumer
        if consumer is not None and start is None:
            remembered = await self._consumers.recall(consumer)
            start = parse_start(remembered) if remembered is not None else None
        if start is None:
            place = Place(self._streams.hub.window.head)
        else:
            oldest = caller.grants.reaches_back_to(now_ms())
            place = await self._services.locator.reach(start, Selection(request.patterns), oldest)
        if consumer is not None and _acknowledges(request, start, place):
            cursor = place.cursor or self._streams.hub.window.cursor(place.position)
            await self._consumers.remember(consumer, cursor)
        return place

    def _is_full(self) -> bool:
        return self._streams.draining or 0 < self._limits.max_connections <= len(self._streams.sinks)

    async def _turn_away(self, request: Request, send: Send) -> None:
        """Refuse a connection too many."""
        self._streams.ended[OVERLOADED.name] += 1
        self._streams.turned_away += not self._streams.draining
        if request.transport is not Transport.SSE:
            raise Problem(
                503, "no more connections are taken now", retry_after=self._streams.retry_ms() / 1000
            )
        await turn_away(send, self._streams.retry_ms() / 1000)

    # --- detached -------------------------------------------------------------------------------------------

    def _detach_stream(
        self, request: Request, caller: Caller, place: Place, scope: Scope, offer: Detachable
    ) -> None:
        """Hand the socket to a stream connection."""
        wire = STREAM_WIRES[request.transport, "1.0" if scope["http_version"] == "1.0" else "1.1"]
        transport, _ = offer.detach()
        sink = DetachedStream(self._streams, transport, wire)
        connection = Connection(connection_name(), sink, wire, request.overflow, request.key)
        connection.caller = caller
        head = _stream_head(request.transport, wire, scope.get(CORS, ()))
        self._open(sink, connection, caller, request, place, head)

    def _detach_websocket(
        self,
        request: Request,
        caller: Caller,
        place: Place,
        headers: Mapping[bytes, bytes],
        offer: Detachable,
        url: str,
    ) -> None:
        """Answer the handshake and hand the socket to a WebSocket connection; with `url`, send it there."""
        head, deflate = accept(headers, allow_deflate=self._limits.deflate)
        transport, early = offer.detach()
        most = max(MAX_CONTROL, most_bytes(caller, self._limits.max_message))
        sink = DetachedWebSocket(self._streams, transport, most, deflate=deflate)
        wire = Wire.WEBSOCKET_DEFLATE if deflate else Wire.WEBSOCKET
        connection = Connection(connection_name(), sink, wire, request.overflow, request.key)
        connection.caller = caller
        sink.inbox = Session(self._services, sink, connection, request.consumer, sink)
        self._open(sink, connection, caller, request, place, head)
        if url and self._sticky is not None:
            self._sticky.sent_on += 1
            sink.close(self._sticky.moved_to(url))
        elif early:
            sink.data_received(early)

    def _open(
        self,
        sink: Detached,
        connection: Connection,
        caller: Caller,
        request: Request,
        place: Place,
        head: bytes,
    ) -> None:
        self._services.quotas.hold(sink, caller)
        sink.take_over()
        greeting = head + greeting_of(self._streams, connection, place)
        self._streams.open(sink, connection, request.patterns, place.position, greeting)


def _granted(request: Request, caller: Caller) -> Request:
    """
    Return a request with what it names as it is stored.

    Raises:
        Problem: 403, something is not granted.
    """
    if not caller.is_known:
        return request
    patterns = caller.listen(request.patterns)
    consumer = None if request.consumer is None else caller.scoped(request.consumer)
    if patterns == request.patterns and consumer == request.consumer:
        return request
    return replace(request, patterns=tuple(dict.fromkeys(patterns)), consumer=consumer)


def _stream_head(transport: Transport, wire: Wire, more: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the response head of a stream."""
    chunked = wire in (Wire.SSE_CHUNKED, Wire.NDJSON_CHUNKED)
    framing = b"transfer-encoding: chunked" if chunked else b"connection: close"
    fields = b"".join(b"%b: %b\r\n" % field for field in more)
    return b"HTTP/1.1 200 OK\r\n%b%b%b\r\n\r\n" % (_STREAM_FIELDS[transport], fields, framing)


def _acknowledges(request: Request, start: Start | None, place: Place) -> bool:
    """
    Tell whether a consumer's request moves what is remembered for it.

    A cursor seen before, when handed in, says that everything up to it has been dealt with; `earliest`, a
    time and the like only look back. A new consumer's place is remembered at once, so that it can come back.
    """
    return start is None or (isinstance(request.start, Cursor) and place.reset is None)


async def _send_head(transport: Transport, send: Send) -> None:
    """Answer HEAD: the head that GET would get."""
    headers = [(b"content-type", _CONTENT_TYPES[transport]), *_NO_CACHE]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body"})


def _check_upgradable(scope: Scope) -> None:
    """
    Check what `gateway.websocket.accept` cannot see of a handshake that came as an ordinary request.

    Raises:
        Problem: it is no GET of HTTP/1.1 (RFC 6455 4.1), or the server cannot hand over its socket.
    """
    if scope["method"] != "GET":
        raise method_not_allowed("GET")
    if scope["http_version"] == "1.0":
        raise Problem(400, "a WebSocket is opened with HTTP/1.1")
    if DETACH not in scope.get("extensions", {}):
        raise Problem(501, "the server in front of this gateway opens no WebSockets")
