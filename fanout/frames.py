"""
Frames: an event or a control message as bytes of one wire.

Strategy: an event's JSON is cursor and body spliced together, and every frame is a header and a trailer
around it. Server frames of WebSocket carry no mask, and an SSE or NDJSON chunk no per-connection state, so
the bytes are the same for every connection on that wire and can be shared.

Sources: RFC 6455 5.2 (frame header), RFC 7692 7.2.1 (compressed message), RFC 9112 7.1 (chunked coding),
HTML Living Standard 9.2.5 (event stream format).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from enum import IntEnum, unique
from typing import Final

DEFLATE_WINDOW_BITS: Final = 12
"""
Window of the shared compressed frames: every browser's decoder (15) takes it, and compressing costs little
memory.
"""

DEFLATE_MIN_BYTES: Final = 256
"""Smaller messages are sent as they are, which RFC 7692 6 allows: compressing them gains next to nothing."""


@unique
class Wire(IntEnum):
    """What bytes a connection gets; the chunked forms are HTTP/1.1's, the plain ones end by closing."""

    JSON = 0
    """The event's JSON alone: poll answers put them in an array."""
    WEBSOCKET = 1
    """One text message an event."""
    WEBSOCKET_DEFLATE = 2
    """The same, compressed, for connections that negotiated permessage-deflate."""
    SSE = 3
    SSE_CHUNKED = 4
    NDJSON = 5
    NDJSON_CHUNKED = 6

    __hash__ = int.__hash__  # Enum's own is Python code, and a wire is looked up for every event


SSE_WIRES: Final = frozenset({Wire.SSE, Wire.SSE_CHUNKED})
STREAM_WIRES: Final = tuple(wire for wire in Wire if wire is not Wire.JSON)
WEBSOCKET_WIRES: Final = frozenset({Wire.WEBSOCKET, Wire.WEBSOCKET_DEFLATE})


def event_json(cursor: str, body: bytes) -> bytes:
    """Return an event as clients see it."""
    return b'{"cursor":"%b",%b}' % (cursor.encode(), body)


def websocket_text(payload: bytes) -> bytes:
    """Return an unmasked, final text frame (RFC 6455 5.2)."""
    return _websocket_header(0x81, len(payload)) + payload


def websocket_deflated(payload: bytes) -> bytes:
    """
    Return a compressed text frame that every connection can share, or a plain one if compressing does not
    pay.

    The compressor is fresh for each message, so no connection's decoder needs context from an earlier one:
    right for peers with and without context takeover, as long as the server never uses a compressor that
    remembers.
    """
    if len(payload) < DEFLATE_MIN_BYTES:
        return websocket_text(payload)
    compressor = zlib.compressobj(wbits=-DEFLATE_WINDOW_BITS)
    packed = (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[
        :-4
    ]  # RFC 7692 7.2.1: drop 00 00 ff ff
    if len(packed) >= len(payload):
        return websocket_text(payload)
    return _websocket_header(0xC1, len(packed)) + packed


def _websocket_header(first: int, length: int) -> bytes:
    if length < 126:
        return bytes((first, length))
    if length < 65_536:
        return bytes((first, 126)) + length.to_bytes(2, "big")
    return bytes((first, 127)) + length.to_bytes(8, "big")


def websocket_ping(payload: bytes = b"") -> bytes:
    """Return a ping frame; its payload (at most 125 bytes) comes back in the pong."""
    return _websocket_header(0x89, len(payload)) + payload


def websocket_close(code: int, reason: str) -> bytes:
    """Return a close frame (RFC 6455 5.5.1); the reason is cut to 123 bytes."""
    payload = code.to_bytes(2, "big") + reason.encode()[:123].decode(errors="ignore").encode()
    return _websocket_header(0x88, len(payload)) + payload


def chunk(payload: bytes) -> bytes:
    """Return `payload` as one chunk of a chunked body (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


LAST_CHUNK: Final = b"0\r\n\r\n"
"""Ends a chunked body in an orderly way, so that the client does not take the end for an accident."""


def sse_block(
    cursor: str | None, data: bytes | None, event: str | None = None, retry_ms: int | None = None
) -> bytes:
    """
    Return one block of an event stream; without `data` it only moves the reader's last event id.

    `data` must have no line breaks (JSON on one line never does).
    """
    lines = []
    if event is not None:
        lines.append(b"event: %b\n" % event.encode())
    if retry_ms is not None:
        lines.append(b"retry: %d\n" % retry_ms)
    if cursor is not None:
        lines.append(b"id: %b\n" % cursor.encode())
    if data is not None:
        lines.append(b"data: %b\n" % data)
    return b"".join(lines) + b"\n"


def _sse(cursor: str, body: bytes) -> bytes:
    encoded = cursor.encode()
    return b'id: %b\ndata: {"cursor":"%b",%b}\n\n' % (encoded, encoded, body)


def _ndjson(cursor: str, body: bytes) -> bytes:
    return b'{"cursor":"%b",%b}\n' % (cursor.encode(), body)


_ENCODERS: Final[dict[Wire, Callable[[str, bytes], bytes]]] = {
    Wire.JSON: event_json,
    Wire.WEBSOCKET: lambda cursor, body: websocket_text(event_json(cursor, body)),
    Wire.WEBSOCKET_DEFLATE: lambda cursor, body: websocket_deflated(event_json(cursor, body)),
    Wire.SSE: _sse,
    Wire.SSE_CHUNKED: lambda cursor, body: chunk(_sse(cursor, body)),
    Wire.NDJSON: _ndjson,
    Wire.NDJSON_CHUNKED: lambda cursor, body: chunk(_ndjson(cursor, body)),
}


def event_frame(wire: Wire, cursor: str, body: bytes) -> bytes:
    """Return an event as bytes of `wire`."""
    return _ENCODERS[wire](cursor, body)


def control_frame(
    wire: Wire, name: str, members: bytes, cursor: str | None = None, retry_ms: int | None = None
) -> bytes:
    """
    Return a control message as bytes of `wire`.

    Args:
        wire: the connection's.
        name: `gap`, `error`, `reconnect`, `heartbeat`, … (the design's control messages).
        members: further JSON members, without braces; may be empty.
        cursor: where it leaves the client; SSE carries it as `id:`, the others have it in `members`.
        retry_ms: how long an SSE reader waits before it reconnects from now on.
    """
    if wire in SSE_WIRES:
        block = sse_block(cursor, b"{%b}" % members, f"sluice.{name}", retry_ms)
        return chunk(block) if wire is Wire.SSE_CHUNKED else block
    message = b'{"control":"%b"%b%b}' % (name.encode(), b"," if members else b"", members)
    if wire in WEBSOCKET_WIRES:
        return websocket_text(message)
    return chunk(message + b"\n") if wire is Wire.NDJSON_CHUNKED else message + b"\n"


def heartbeat_frame(wire: Wire, cursor: str) -> bytes:
    """Return what moves a quiet client's cursor and proves the connection alive."""
    if wire in SSE_WIRES:
        block = sse_block(cursor, None)
        return chunk(block) if wire is Wire.SSE_CHUNKED else block
    return control_frame(wire, "heartbeat", b'"cursor":"%b"' % cursor.encode())
