"""
WebSocket on a detached connection.

Incoming bytes go to websockets' sans-I/O protocol, which is made when the first of them come in and dropped
again when nothing is pending, so a connection that only listens keeps none. A pong alone is recognised
without it. Outgoing events are frames made once and shared; control messages are text frames of our own.

Sources: RFC 6455 (4.2.2 handshake, 5.5 control frames, 7.1.7 failing, 8.1 UTF-8), RFC 7692
(permessage-deflate).
"""

from __future__ import annotations

import asyncio
import binascii
import codecs
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from types import GeneratorType
from typing import TYPE_CHECKING, Final, Protocol

from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.headers import parse_extension
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from fanout.closing import CLIENT_LEFT, PROTOCOL_ERROR, CloseReason
from fanout.frames import DEFLATE_WINDOW_BITS, Wire, websocket_close, websocket_ping
from gateway.detached import Detached, goodbye
from gateway.problems import Problem

if TYPE_CHECKING:
    from websockets.extensions import Extension
    from websockets.typing import ExtensionParameter

    from gateway.streams import Streams

READ_SLICE: Final = 16 * 1024
"""Bytes given to the parser at a time, so that answers are not produced faster than the client takes them."""

_PING: Final = websocket_ping()
_AT_EOF: Final = StreamReader.at_eof.__code__

_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
_SWITCHING: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-accept: %b\r\n%b\r\n"
)

MAX_CONTROL: Final = 125
"""Bytes that a control frame may carry (RFC 6455 5.5)."""

CLOSE_SECONDS: Final = 5.0
"""How long a client may take to answer a close frame."""


class Inbox(Protocol):
    """Takes the messages that a client sends."""

    def received(self, message: str | bytes) -> None:
        """Take a whole message."""

    def busy(self) -> bool:
        """Tell whether no more messages should be read for now."""

    def closed(self) -> None:
        """The connection is over."""


class DetachedWebSocket(Detached):
    """
    A WebSocket after its handshake.

    Args:
        streams: what all streaming connections share.
        transport: taken over from uvicorn.
        max_message: bytes a message may have.
        deflate: whether permessage-deflate was negotiated.
    """

    __slots__ = (
        "awaits_pong",
        "deflate",
        "inbox",
        "max_message",
        "message",
        "protocol",
        "reading_paused",
        "told_head",
        "unread",
    )

    def __init__(
        self, streams: Streams, transport: asyncio.Transport, max_message: int, *, deflate: bool
    ) -> None:
        super().__init__(streams, transport)
        self.inbox: Inbox  # to be set before the transport is taken over
        self.max_message = max_message
        self.deflate = deflate
        self.awaits_pong = False
        self.told_head = -1
        self.protocol: ServerProtocol | None = None  # only while something is pending in it
        self.message: _Fragments | None = None  # of the message at hand
        self.unread = b""  # received, but not parsed yet
        self.reading_paused = False

    # --- coming in ------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent."""
        if self.closing:  # nothing is answered any more; it is read only so that the client's end is seen
            return
        self.awaits_pong = False
        if self.protocol is None and not self.unread and _is_pong(data):
            return
        self.unread += data
        self.read_on()

    def read_on(self) -> None:
        """Parse what is there, as long as the client takes the answers and the inbox takes the messages."""
        while self.unread and not self.closing:
            if self.full or self.inbox.busy():
                break
            piece, self.unread = self.unread[:READ_SLICE], self.unread[READ_SLICE:]
            self._parse(piece)
        if self.unread:
            self._stop_reading()
        else:
            self._start_reading()

    def resumed(self) -> None:
        """The inbox or the buffer has room again."""
        if self.unread:
            self.read_on()

    def _stop_reading(self) -> None:
        if not self.reading_paused and not self.transport.is_closing():
            self.reading_paused = True
            self.transport.pause_reading()

    def _start_reading(self) -> None:
        if self.reading_paused and not self.transport.is_closing():
            self.reading_paused = False
            self.transport.resume_reading()

    def _parse(self, data: bytes) -> None:
        protocol = self.protocol
        if protocol is None:
            protocol = self.protocol = self._new_protocol()
        protocol.receive_data(data)
        self._flush(protocol)
        if protocol.state is not OPEN:
            self._close_handshake(protocol)
        elif self.message is None and _is_between_frames(protocol):
            self.protocol = None

    def _new_protocol(self) -> ServerProtocol:
        protocol = _FrameByFrame(self._frame, self.max_message)
        if self.deflate:
            protocol.extensions = [_deflate_extension()]
        return protocol

    def _frame(self, protocol: ServerProtocol, frame: Frame) -> None:
        """
        Take one frame.

        Raises:
            UnicodeDecodeError: it cannot be part of a text; the protocol fails with 1007 (RFC 6455 8.1).
        """
        if frame.opcode is Opcode.PING:
            self._flush(protocol)  # the pong, before the answers to what follows
            return
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self.message = _Fragments(text=frame.opcode is Opcode.TEXT)
        elif frame.opcode is not Opcode.CONT:
            return
        if self.message is not None:
            message = self.message.add(frame.data, last=frame.fin)
            if message is not None:
                self.message = None
                self.inbox.received(message)

    def _flush(self, protocol: ServerProtocol) -> None:
        """Write what the protocol wants written: pongs and close frames."""
        for data in protocol.data_to_send():
            if data:
                self.send(data)

    def _close_handshake(self, protocol: ServerProtocol) -> None:
        """
        The client closed, or broke the protocol: our close frame is out, the connection ends (RFC 6455
        7.1.1).
        """
        if not self.closing:
            self.closing = True
            failed = protocol.parser_exc is not None or protocol.close_rcvd is None
            self.streams.closing(self, PROTOCOL_ERROR if failed else CLIENT_LEFT, CLOSE_SECONDS)
            self.inbox.closed()
            self.hang_up()

    def hang_up(self) -> None:
        """
        End our side; the client's end, or the keepalive's deadline, then closes the connection.

        Closing at once, with bytes of the client's unread, would be a reset, and that can overtake the close
        frame.
        """
        self.unread = b""
        self._start_reading()
        if not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()
        else:  # TLS has no half of a connection to end
            self.transport.close()

    # --- going out ------------------------------------------------------------------------------------------

    def heartbeat(self, frame: bytes, head: int) -> bool:
        """
        Ping, and move the client's cursor if the log went on; a client that did not answer the ping before
        is dead.
        """
        if self.awaits_pong:
            return self.reading_paused  # if we do not read, no pong can be seen
        self.awaits_pong = True
        self.send(_PING if self.told_head == head else _PING + frame)
        self.told_head = head
        return True

    def farewell(self, reason: CloseReason) -> bytes:
        """Return the reconnect advice and a close frame."""
        wire = Wire.WEBSOCKET
        advice = goodbye(wire, reason, self.streams.cursor_of(self.connection), self.streams.retry_ms())
        return advice + websocket_close(reason.code, reason.name)

    def _drained(self) -> None:
        super()._drained()
        self.resumed()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is closed."""
        super().connection_lost(exc)
        self.unread = b""
        self.protocol = None
        self.inbox.closed()


class _FrameByFrame(ServerProtocol):
    """
    websockets' protocol, with each frame handed on the moment it has been read.

    Collected and handed on later, messages in front of a broken frame would be lost, and pongs overtaken.

    Args:
        take: is given this protocol and the frame.
        max_message: bytes a message may have.
    """

    def __init__(self, take: Callable[[ServerProtocol, Frame], None], max_message: int) -> None:
        super().__init__(state=OPEN, max_size=max_message)
        self._take = take

    def recv_frame(self, frame: Frame) -> None:
        """Process a frame."""
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None  # it may come between fragments, as any control frame (RFC 6455 5.4)
        super().recv_frame(frame)
        self.events.clear()
        self._take(self, frame)


class _Fragments:
    """
    The fragments of one message.

    They are joined as they come: a list of them would cost far more than their bytes if they are tiny, and
    empty ones without end would cost memory without end.
    """

    __slots__ = ("_bytes", "_utf8")

    def __init__(self, *, text: bool) -> None:
        self._bytes = bytearray()
        self._utf8 = codecs.getincrementaldecoder("utf-8")() if text else None

    def add(self, data: bytes | bytearray | memoryview, *, last: bool) -> str | bytes | None:
        """
        Take one more; return the message if it is the last.

        Raises:
            UnicodeDecodeError: it cannot be part of a text, whatever follows.
        """
        self._bytes += data
        if self._utf8 is not None:
            self._utf8.decode(data, last)
        if not last:
            return None
        return bytes(self._bytes) if self._utf8 is None else self._bytes.decode()


def _is_between_frames(protocol: ServerProtocol) -> bool:
    """
    Tell whether the parser holds nothing: no byte, no part of a frame's header, no message.

    The header's first bytes are kept in the parser's generator and nowhere else: what it waits in tells.
    """
    waits_in = protocol.parser.gi_yieldfrom  # type: ignore[attr-defined]  # a generator, typed as less
    return (
        protocol.current_size is None and isinstance(waits_in, GeneratorType) and waits_in.gi_code is _AT_EOF
    )


def _is_pong(data: bytes) -> bool:
    """Tell whether `data` is exactly one masked pong frame, what a listening browser answers to each ping."""
    size = len(data) - 6
    return 0 <= size <= MAX_CONTROL and data[0] == 0x8A and data[1] == 0x80 | size  # RFC 6455 5.2


# --- the handshake
# ----------------------------------------------------------------------------------------------------


def accept(headers: Mapping[bytes, bytes], *, allow_deflate: bool) -> tuple[bytes, bool]:
    """
    Check an opening handshake (RFC 6455 4.2.1) and return the answer's head, and whether permessage-deflate
    is on.

    Args:
        headers: the request's, names in lower case, repeated ones joined by a comma.
        allow_deflate: whether to take up an offer to compress.

    Raises:
        Problem: 400 for a bad handshake, 426 for another version than 13.
    """
    if headers.get(b"sec-websocket-version", b"").strip() != b"13":
        raise Problem(
            426,
            "only WebSocket version 13 is spoken here",
            headers={"sec-websocket-version": "13", "upgrade": "websocket"},
        )
    if b"upgrade" not in map(bytes.strip, headers.get(b"connection", b"").lower().split(b",")):
        raise Problem(400, "Connection must name the upgrade")
    key = headers.get(b"sec-websocket-key", b"").strip()
    if not _KEY.fullmatch(key):
        raise Problem(400, "Sec-WebSocket-Key must be 16 bytes in base64")
    proof = binascii.b2a_base64(hashlib.sha1(key + _GUID, usedforsecurity=False).digest(), newline=False)
    offers = headers.get(b"sec-websocket-extensions", b"") if allow_deflate else b""
    extensions = _negotiate(offers) if offers else ""
    extra = f"sec-websocket-extensions: {extensions}\r\n".encode() if extensions else b""
    return _SWITCHING % (proof, extra), bool(extensions)


def _negotiate(offers: bytes) -> str:
    """
    Return the extension header that answers `offers`, empty for none.

    The server never keeps context, because its compressed frames are shared (see `fanout.frames`); the client
    is asked not to, so that its decoder costs no memory between messages. An offer that limits the server's
    window below ours is passed over.
    """
    try:
        parsed = parse_extension(offers.decode("latin-1"))
    except InvalidHeader:
        return ""
    for name, parameters in parsed:
        given = dict(parameters)
        window = given.get("server_max_window_bits")
        if name != "permessage-deflate" or not _is_valid(parameters) or not _window_fits(window):
            continue
        answer = ["permessage-deflate", "server_no_context_takeover", "client_no_context_takeover"]
        if window is not None:
            answer.append(f"server_max_window_bits={window}")
        return "; ".join(answer)
    return ""


def _is_valid(parameters: Sequence[ExtensionParameter]) -> bool:
    """Tell whether an offer's parameters are known, given once and within their ranges (RFC 7692 7.1)."""
    try:
        ServerPerMessageDeflateFactory().process_request_params(parameters, [])
    except NegotiationError:
        return False
    return True


def _window_fits(window: str | None) -> bool:
    """Tell whether a peer that decodes with at most this window (bits) can read our shared frames."""
    return window is None or int(window) >= DEFLATE_WINDOW_BITS


def _deflate_extension() -> Extension:
    factory = ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True)
    return factory.process_request_params([("client_no_context_takeover", None)], [])[1]
