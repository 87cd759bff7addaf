"""
Streams through plain ASGI, for when the gateway is mounted in somebody's application or runs on another
server.

The same subscription, cursor and overflow code as on our own server, behind another sink: one that hands its
bytes to a task, which sends them through Starlette's `WebSocket`, sse-starlette's `EventSourceResponse` or a
`StreamingResponse`. At ordinary speed: a task per connection, an `await` per write.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any, Final

from sse_starlette import EventSourceResponse
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from fanout.connection import Connection
from fanout.frames import Wire
from gateway.auth.caller import caller_of
from gateway.detached import goodbye
from gateway.greeting import connection_name, greeting_of
from gateway.quotas import most_bytes
from gateway.session import Session
from gateway.streams import GOODBYE_SECONDS
from gateway.subscription import Transport

if TYPE_CHECKING:
    from fanout.closing import CloseReason
    from gateway.session import Services
    from gateway.starts import Place
    from gateway.streams import Streams
    from gateway.subscription import Request

_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no", "vary": "accept, authorization"}
_NDJSON: Final = "application/x-ndjson"

TOO_BIG: Final = 1009
"""The code by which a WebSocket ends whose message is too long (RFC 6455 7.4.1)."""


class AsgiSink:
    """
    A sink whose bytes a task takes and sends.

    Args:
        streams: what all streaming connections share.
        wire: what its bytes look like.
        buffer_bytes: how much it holds before it is full (one write may go beyond).
    """

    def __init__(self, streams: Streams, wire: Wire, buffer_bytes: int) -> None:
        self.connection: Connection | None = None
        self.full = False
        self.ended = False  # nothing comes any more, once what is held has been taken
        self.reason: CloseReason | None = None
        self.aborted = asyncio.Event()
        self._streams = streams
        self._wire = wire
        self._buffer_bytes = buffer_bytes
        self._held: list[bytes] = []
        self._bytes = 0
        self._taken = 0
        self._ready = asyncio.Event()
        self.restarts = streams.hub.window.restarts  # when its place was found

    def write(self, data: bytes) -> bool:
        """Hold `data`; return whether there is room for more."""
        self._held.append(data)
        self._bytes += len(data)
        self._ready.set()
        if self._bytes >= self._buffer_bytes and not self.full:
            self.full = True
            self._streams.full(self)
        return not self.full

    def send(self, data: bytes) -> None:
        """Hold a control frame, also while full."""
        if not self.ended:
            self.write(data)

    def close(self, reason: CloseReason) -> None:
        """Say goodbye and end."""
        if self.ended:
            return
        self.write(
            goodbye(self._wire, reason, self._streams.cursor_of(self.connection), self._streams.retry_ms())
        )
        self.ended = True
        self.reason = reason
        self._ready.set()
        self._streams.closing(self, reason)

    def heartbeat(self, frame: bytes, head: int) -> bool:
        """Send a sign of life; whether the peer is alive, the server finds out."""
        self.send(frame)
        return True

    def abort(self) -> None:
        """End now, with all that is held."""
        self.ended = True
        self.aborted.set()
        self._ready.set()

    def progress(self) -> object:
        """Return something that changes when the server takes bytes."""
        return self._taken

    def check_drained(self) -> bool:
        """Return whether to look again: never, `take` reports by itself."""
        return False

    async def take(self) -> bytes | None:
        """Wait for bytes to send; None at the end. What was taken before has been sent by now."""
        while not self._held:
            if self.full:
                self.full = False
                self._streams.drained(self)
            elif self.ended:
                return None
            else:
                self._ready.clear()
                await self._ready.wait()
        data = b"".join(self._held)
        self._held = []
        self._bytes = 0
        self._taken += 1
        return data


class AsgiSubscriber:
    """
    Serves streams through plain ASGI.

    Args:
        services: what connections and sessions work with.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._streams = services.streams

    async def serve(self, request: Request, place: Place, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request until either side ends it."""
        wire = Wire.SSE if request.transport is Transport.SSE else Wire.NDJSON
        sink = AsgiSink(self._streams, wire, self._streams.hub.buffer_bytes)
        connection = Connection(connection_name(), sink, wire, request.overflow, request.key)
        connection.caller = caller_of(scope)
        self._services.quotas.hold(sink, caller_of(scope))  # before anything is waited for
        try:
            await self._until_aborted(
                sink, self._served(request, place, sink, connection, scope, receive, send)
            )
        finally:  # not in the body's generator: a server that fails to send may leave that suspended
            self._streams.lost(sink)

    async def _served(
        self, request: Request, place: Place, sink: AsgiSink, connection: Connection,
        scope: Scope, receive: Receive, send: Send,
    ) -> None:  # fmt: skip
        if request.transport is Transport.WEBSOCKET:
            await self._websocket(request, place, sink, connection, scope, receive, send)
            return
        body = self._body(request, place, sink, connection)
        response: Response
        if request.transport is Transport.SSE:
            response = EventSourceResponse(
                body,
                headers=_HEADERS,
                ping=0,  # the keepalive sends heartbeats
                shutdown_grace_period=GOODBYE_SECONDS,  # `gateway.host` says goodbye
            )
        else:
            response = StreamingResponse(body, headers=_HEADERS, media_type=_NDJSON)
        await response(scope, receive, send)

    def _open(self, request: Request, place: Place, sink: AsgiSink, connection: Connection) -> None:
        # Not at the head of now: the response's head may have been on its way for a while, and with it the
        # promise that everything accepted since arrives.
        if self._streams.hub.window.restarts != sink.restarts:  # the place means nothing any more
            sink.abort()
            return
        greeting = greeting_of(self._streams, connection, place)
        self._streams.open(sink, connection, request.patterns, place.position, greeting)

    async def _body(
        self, request: Request, place: Place, sink: AsgiSink, connection: Connection
    ) -> AsyncIterator[bytes]:
        """Yield the bytes of a stream, which begins when the server asks for the first of them."""
        self._open(request, place, sink, connection)
        while (data := await sink.take()) is not None:
            yield data

    async def _websocket(
        self, request: Request, place: Place, sink: AsgiSink, connection: Connection,
        scope: Scope, receive: Receive, send: Send,
    ) -> None:  # fmt: skip
        websocket = WebSocket(scope, receive, send)
        await websocket.accept()
        reader = _Reader(websocket, most_bytes(caller_of(scope), sys.maxsize))
        session = reader.session = Session(self._services, sink, connection, request.consumer, reader)
        self._open(request, place, sink, connection)
        reading = asyncio.ensure_future(reader.read())
        writing = asyncio.ensure_future(_write(websocket, sink))
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            session.closed()
            await _finish(reading, writing)
        if websocket.application_state is WebSocketState.CONNECTED and sink.reason is not None:
            await websocket.close(sink.reason.code, sink.reason.name)

    async def _until_aborted(self, sink: AsgiSink, serving: Awaitable[None]) -> None:
        """Serve until it is done, or until the keepalive aborts a connection that makes no progress."""
        served = asyncio.ensure_future(serving)
        aborted = asyncio.ensure_future(sink.aborted.wait())
        try:
            await asyncio.wait((served, aborted), return_when=asyncio.FIRST_COMPLETED)
        finally:
            done = served.done()
            await _finish(served, aborted)
        if done:
            served.result()


class _Reader:
    """
    Gives the messages of a Starlette WebSocket to a session, no faster than that takes them.

    Args:
        websocket: where they come from.
        most: bytes that the token at the other end allows for one; what the server allows, is its affair.
    """

    def __init__(self, websocket: WebSocket, most: int) -> None:
        self.session: Session | None = None
        self._most = most
        self._websocket = websocket
        self._go = asyncio.Event()

    def resumed(self) -> None:
        """The session can take messages again."""
        self._go.set()

    def _is_too_long(self, message: str | bytes) -> bool:
        if len(message) * 4 <= self._most:  # no character has more bytes in UTF-8
            return False
        return len(message if isinstance(message, bytes) else message.encode()) > self._most

    async def read(self) -> None:
        """Read until the client leaves, or sends more than it may."""
        session = self.session
        assert session is not None
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                text = message.get("text")
                given = text if text is not None else message["bytes"]
                if self._is_too_long(given):
                    await self._websocket.close(TOO_BIG)
                    return
                session.received(given)
                while session.busy():
                    self._go.clear()
                    await self._go.wait()


async def _write(websocket: WebSocket, sink: AsgiSink) -> None:
    """Send what the sink holds, one message a line, until it ends."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client left while we were sending
        while (data := await sink.take()) is not None:
            for line in data.splitlines():
                await websocket.send_text(line.decode())


async def _finish(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what is still running, and wait until it has ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
