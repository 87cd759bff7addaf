"""What takes bytes from clients, driven without sockets: the WebSocket's and HTTP's protocol classes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import uvicorn
from uvicorn.server import ServerState

from fanout.closing import CloseReason
from gateway.doorkeeper import Doorkeeper
from gateway.protocol import MAX_PIPELINED, PARSED_AT_ONCE, HttpProtocol
from gateway.websocket import DetachedWebSocket
from tests.support.clients import Frame, Head

MAX_MESSAGE: Final = 1000
MAX_HEAD: Final = 64 * 1024

Message = MutableMapping[str, Any]


class FakeTransport(asyncio.Transport):
    """A transport without a socket that keeps what is written; TLS, so that everything goes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self.ended = False
        self.paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"ssl_object": True, "sslcontext": True, "peername": ("127.0.0.1", 1)}.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended, "written to behind the end of our side"
        if not self.closed:
            self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


# --- WebSocket ----------------------------------------------------------------------------------------------


@dataclass
class _Streams:
    """As much of `Streams` as a WebSocket tells."""

    reasons: list[str] = field(default_factory=list)

    def closing(self, _sink: object, reason: CloseReason, _patience: float = 0) -> None:
        self.reasons.append(reason.name)

    def full(self, _sink: object) -> None:
        pass

    def drained(self, _sink: object) -> None:
        pass


@dataclass
class _Inbox:
    """Keeps what it is given."""

    messages: list[str | bytes] = field(default_factory=list)
    ended: int = 0

    def received(self, message: str | bytes) -> None:
        assert not self.ended, "a message behind the end"
        self.messages.append(message)

    def busy(self) -> bool:
        return False

    def closed(self) -> None:
        self.ended += 1


@dataclass(frozen=True)
class Heard:
    """What came of bytes: messages, what was written, and whether the connection is over."""

    messages: list[str | bytes]
    written: bytes
    over: bool


def masked(frame: Frame, key: bytes = b"\x01\x02\x03\x04") -> bytes:
    """Return a client's frame, the same each time."""
    plain = frame.encode(mask=False)
    head = len(plain) - len(frame.payload)
    payload = bytes(byte ^ key[at % 4] for at, byte in enumerate(frame.payload))
    return bytes((plain[0], plain[1] | 0x80)) + plain[2:head] + key + payload


def websocket(pieces: Iterable[bytes], *, deflate: bool) -> Heard:
    """Give pieces to a WebSocket, whose client takes every answer at once."""
    transport, inbox, streams = FakeTransport(), _Inbox(), _Streams()
    sink = DetachedWebSocket(cast("Any", streams), transport, MAX_MESSAGE, deflate=deflate)
    sink.inbox = inbox
    for piece in pieces:
        sink.data_received(piece)
        while sink.full and not sink.closing:
            sink.resume_writing()
        held = len(sink.unread) + (len(sink.message._bytes) if sink.message is not None else 0)
        assert held <= MAX_MESSAGE, "a message is held beyond its limit"
        assert not transport.paused, "it reads no more, although nothing is in its way"
    assert sink.closing == transport.ended, "neither open nor closed in order"
    assert len(streams.reasons) == inbox.ended == sink.closing
    assert all(len(each) <= MAX_MESSAGE for each in inbox.messages)
    if sink.closing:
        assert b"\x88" in transport.written, "ended without a close frame"
    return Heard(inbox.messages, bytes(transport.written), sink.closing)


# --- HTTP ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """What came of bytes: the requests that were served whole, and the answers."""

    requests: list[tuple[str, bytes, bytes]]
    statuses: list[int]
    over: bool


_config: Final = uvicorn.Config(
    app="",
    ws="none",
    interface="asgi3",
    lifespan="off",
    access_log=False,
    log_config=None,
    proxy_headers=False,
)


def _application(served: list[tuple[str, bytes, bytes]]) -> Any:
    """Return an application that reads each body whole, keeps the request, and says 200."""

    async def application(
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        served.append((scope["method"], scope["raw_path"], body))
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    return application


async def http(pieces: Iterable[bytes]) -> Served:
    """Give pieces to an HTTP connection in front of an application that reads each body and says 200."""
    served: list[tuple[str, bytes, bytes]] = []
    _config.loaded, _config.loaded_app, _config.ws_protocol_class = True, _application(served), None
    doorkeeper = Doorkeeper(("127.0.0.1", 80), MAX_HEAD, 10)
    transport = FakeTransport()
    bound = cast("type[HttpProtocol]", type("Bound", (HttpProtocol,), {"doorkeeper": doorkeeper}))
    protocol = bound(config=_config, server_state=ServerState(), app_state={})
    protocol.connection_made(transport)
    with _no_complaints():
        for piece in pieces:
            for _ in range(1000):
                if not transport.paused:
                    break
                await asyncio.sleep(0)
            if transport.closed:
                break
            assert not transport.paused, "it never reads on"
            protocol.data_received(piece)
            await asyncio.sleep(0)
            assert len(protocol.pipeline) < MAX_PIPELINED + PARSED_AT_ONCE / 16
        for _ in range(20 + 10 * len(protocol.pipeline)):
            await asyncio.sleep(0)
        statuses = _statuses(bytes(transport.written))
        over = transport.closed
        transport.closed = True
        protocol.connection_lost(None)
        await asyncio.gather(*protocol.tasks)
    return Served(served, statuses, over)


class _Keeping(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.ERROR)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


class _no_complaints:  # noqa: N801  # used as a function
    """Fails if uvicorn logs an error: an exception that reached it."""

    def __enter__(self) -> None:
        self._records: list[logging.LogRecord] = []
        self._handler = _Keeping(self._records)
        logging.getLogger("uvicorn.error").addHandler(self._handler)

    def __exit__(self, kind: object, *rest: object) -> None:
        logging.getLogger("uvicorn.error").removeHandler(self._handler)
        if kind is None:
            assert not self._records, [each.getMessage() for each in self._records]


def _statuses(written: bytes) -> list[int]:
    """Return the statuses of responses, each of which must be well formed."""
    statuses = []
    while written:
        head, separator, rest = written.partition(b"\r\n\r\n")
        assert separator, f"half a head: {head[:200]!r}"
        parsed = Head.parse(head + separator)
        statuses.append(parsed.status)
        if parsed.status < 200:
            written = rest
            continue
        length = int(parsed["content-length"])
        assert len(rest) >= length or not rest, "a body is cut off"  # HEAD has none
        written = rest[length:]
    return statuses
