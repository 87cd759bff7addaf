"""Events and control messages as bytes of each wire, spelled out."""

from __future__ import annotations

import random

import pytest

from fanout.frames import (
    DEFLATE_MIN_BYTES,
    LAST_CHUNK,
    SSE_WIRES,
    STREAM_WIRES,
    WEBSOCKET_WIRES,
    Wire,
    chunk,
    control_frame,
    event_frame,
    heartbeat_frame,
    sse_block,
    websocket_close,
    websocket_deflated,
    websocket_ping,
    websocket_text,
)

CURSOR = "abcdef-7-beef"
BODY = b'"topic":"a","id":"x","type":"message","time":"2026-11-23T16:46:00.123Z","data":1'
JSON = b'{"cursor":"abcdef-7-beef",' + BODY + b"}"


@pytest.mark.parametrize(
    ("wire", "frame"),
    [
        (Wire.JSON, JSON),
        (Wire.WEBSOCKET, b"\x81\x6b" + JSON),
        (Wire.WEBSOCKET_DEFLATE, b"\x81\x6b" + JSON),
        (Wire.SSE, b"id: abcdef-7-beef\ndata: " + JSON + b"\n\n"),
        (Wire.SSE_CHUNKED, b"85\r\nid: abcdef-7-beef\ndata: " + JSON + b"\n\n\r\n"),
        (Wire.NDJSON, JSON + b"\n"),
        (Wire.NDJSON_CHUNKED, b"6c\r\n" + JSON + b"\n\r\n"),
    ],
)
def test_an_event(wire: Wire, frame: bytes) -> None:
    """An event is its cursor spliced into its JSON, with what each wire puts around it and nothing else."""
    assert event_frame(wire, CURSOR, BODY) == frame


def test_an_event_is_no_named_event_of_an_event_stream() -> None:
    """An EventSource hands events to `onmessage`: only control messages have an `event` field."""
    assert b"event:" not in event_frame(Wire.SSE, CURSOR, BODY)
    assert control_frame(Wire.SSE, "gap", b"", CURSOR).startswith(b"event: sluice.gap\n")


@pytest.mark.parametrize(
    ("wire", "frame"),
    [
        (Wire.WEBSOCKET, b'\x81\x1c{"control":"gap","x":"y\\"z"}'),
        (Wire.WEBSOCKET_DEFLATE, b'\x81\x1c{"control":"gap","x":"y\\"z"}'),
        (Wire.SSE, b'event: sluice.gap\nretry: 500\nid: abcdef-7-beef\ndata: {"x":"y\\"z"}\n\n'),
        (
            Wire.SSE_CHUNKED,
            b'43\r\nevent: sluice.gap\nretry: 500\nid: abcdef-7-beef\ndata: {"x":"y\\"z"}\n\n\r\n',
        ),
        (Wire.NDJSON, b'{"control":"gap","x":"y\\"z"}\n'),
        (Wire.NDJSON_CHUNKED, b'1d\r\n{"control":"gap","x":"y\\"z"}\n\r\n'),
    ],
)
def test_a_control_message(wire: Wire, frame: bytes) -> None:
    """A control message has its name and members; an event stream's also the cursor and the time to wait."""
    assert control_frame(wire, "gap", b'"x":"y\\"z"', CURSOR, 500) == frame


def test_a_control_message_without_members() -> None:
    """A control message that says only its name is an object with that alone."""
    assert control_frame(Wire.NDJSON, "pong", b"") == b'{"control":"pong"}\n'
    assert control_frame(Wire.SSE, "pong", b"") == b"event: sluice.pong\ndata: {}\n\n"


@pytest.mark.parametrize(
    ("wire", "frame"),
    [
        (Wire.WEBSOCKET, b'\x81\x30{"control":"heartbeat","cursor":"abcdef-7-beef"}'),
        (Wire.SSE, b"id: abcdef-7-beef\n\n"),
        (Wire.SSE_CHUNKED, b"13\r\nid: abcdef-7-beef\n\n\r\n"),
        (Wire.NDJSON, b'{"control":"heartbeat","cursor":"abcdef-7-beef"}\n'),
    ],
)
def test_a_heartbeat(wire: Wire, frame: bytes) -> None:
    """A heartbeat moves the cursor; on an event stream by an id without data, which wakes no listener."""
    assert heartbeat_frame(wire, CURSOR) == frame


def test_every_wire_has_every_frame() -> None:
    """No wire was forgotten in any encoder, and each belongs to one family."""
    for wire in STREAM_WIRES:
        for frame in (
            event_frame(wire, CURSOR, BODY),
            control_frame(wire, "gap", b"", CURSOR),
            heartbeat_frame(wire, CURSOR),
        ):
            assert CURSOR.encode() in frame or b'"gap"' in frame
    assert set(STREAM_WIRES) == set(Wire) - {Wire.JSON}
    assert not SSE_WIRES & WEBSOCKET_WIRES


def test_an_sse_block_with_nothing() -> None:
    """A block without fields is an empty line, which a reader passes over."""
    assert sse_block(None, None) == b"\n"
    assert sse_block(None, None, retry_ms=2000) == b"retry: 2000\n\n"


def test_small_messages_are_not_compressed() -> None:
    """A message too small to gain, or that does not shrink, goes as it is, which RFC 7692 6 allows."""
    small = b"x" * (DEFLATE_MIN_BYTES - 1)
    assert websocket_deflated(small) == websocket_text(small)
    noise = random.Random(0).randbytes(1000)
    assert websocket_deflated(noise) == websocket_text(noise)
    assert websocket_deflated(b"x" * DEFLATE_MIN_BYTES)[0] == 0xC1


def test_a_close_frame() -> None:
    """A close frame has its code and at most 123 bytes of reason, cut between characters (RFC 6455 5.5)."""
    assert websocket_close(1012, "draining") == b"\x88\x0a\x03\xf4draining"
    frame = websocket_close(1000, "ü" * 100)
    assert frame[:2] == b"\x88\x7c"  # 2 bytes of code and 122 of reason: the 62nd ü does not fit whole
    assert frame[4:].decode() == "ü" * 61


def test_a_ping_frame() -> None:
    """A ping frame is empty, or has what the pong is to bring back."""
    assert websocket_ping() == b"\x89\x00"
    assert websocket_ping(b"abc") == b"\x89\x03abc"


def test_chunks() -> None:
    """A chunk is its size in hexadecimal and its bytes; the last one is empty (RFC 9112 7.1)."""
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert LAST_CHUNK == b"0\r\n\r\n"
