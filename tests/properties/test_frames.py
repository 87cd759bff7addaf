"""Frames, read by others: websockets' frame class, zlib as browsers use it, readers cut at any byte."""

from __future__ import annotations

import json
import zlib
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Close, Frame, Opcode

from fanout.catchup import gap_frame
from fanout.frames import (
    LAST_CHUNK,
    STREAM_WIRES,
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
from tests.support.readers import ChunkedReader, Message, NdjsonReader, reader_of

LENGTHS = (0, 1, 125, 126, 127, 65_535, 65_536, 65_537, 200_000)
"""Both sides of every boundary between the forms of a frame's length (RFC 6455 5.2)."""

payloads = st.one_of(st.binary(max_size=300), st.binary(min_size=30, max_size=100).map(lambda part: part * 5))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def body_of(data: Any, *, ascii_only: bool) -> bytes:
    """Return an event's members with `data`, in one of the two ways in which JSON spells text."""
    text = json.dumps({"topic": "a.b", "id": "x", "data": data}, ensure_ascii=ascii_only)
    return text[1:-1].encode("utf-8", "surrogatepass" if ascii_only else "replace")


bodies = st.builds(body_of, json_values, ascii_only=st.booleans())


def parsed(frame: bytes, *extensions: Extension) -> tuple[Frame, bytes]:
    """Read one frame with websockets' own parser; return it and what is left."""
    buffer = bytearray(frame)

    def read_exact(count: int) -> Generator[None, None, bytes]:
        yield from ()
        taken = bytes(buffer[:count])
        del buffer[:count]
        return taken

    parser = Frame.parse(read_exact, mask=False, extensions=extensions)
    with pytest.raises(StopIteration) as done:
        next(parser)
    return done.value.value, bytes(buffer)


@given(payloads)
def test_text_frames_are_those_of_the_library(payload: bytes) -> None:
    """A text frame is byte for byte what websockets makes of the same message."""
    assert websocket_text(payload) == Frame(Opcode.TEXT, payload).serialize(mask=False)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_form_of_the_length(length: int) -> None:
    """On both sides of each boundary the length has its shortest form, as the RFC demands."""
    assert websocket_text(b"x" * length) == Frame(Opcode.TEXT, b"x" * length).serialize(mask=False)


@given(st.binary(max_size=125), st.sampled_from((1000, 1001, 1012, 1013, 3000, 4999)), st.text())
def test_control_frames_are_those_of_the_library(payload: bytes, code: int, reason: str) -> None:
    """
    Pings are byte for byte websockets' own; close frames are read back with the code and as much reason as
    fits.
    """
    assert websocket_ping(payload) == Frame(Opcode.PING, payload).serialize(mask=False)
    frame, rest = parsed(websocket_close(code, reason.encode(errors="replace").decode()))
    closed = Close.parse(frame.data)
    assert (frame.opcode, rest, closed.code) == (Opcode.CLOSE, b"", code)
    assert reason.encode(errors="replace").decode().startswith(closed.reason)
    assert len(closed.reason.encode()) > 119 or closed.reason == reason.encode(errors="replace").decode()


@settings(max_examples=200, deadline=None)
@given(st.lists(payloads, min_size=1, max_size=5))
def test_shared_compressed_frames_suit_every_decoder(messages: list[bytes]) -> None:
    """
    Compressed and plain messages in any order are read by decoders that keep their context and by those
    that do not.
    """
    keeping = zlib.decompressobj(wbits=-15)  # a peer that allows the server context takeover
    library = ClientPerMessageDeflateFactory().process_response_params(
        [("server_no_context_takeover", None)], []
    )
    for message in messages:
        frame = websocket_deflated(message)
        decoded, rest = parsed(frame, library)
        assert (decoded.data, rest) == (message, b"")
        if frame[0] & 0x40:
            packed = frame[2 if frame[1] < 126 else 4 :] + b"\0\0\xff\xff"
            fresh = zlib.decompressobj(wbits=-12)  # a peer with the smallest window that is taken
            assert keeping.decompress(packed) == fresh.decompress(packed) == message
            assert len(frame) < len(websocket_text(message))


@given(bodies)
@example(b'"data":"\xe2\x80\xa8\xe2\x80\xa9\xc2\x85\xef\xbb\xbf\\u0000\\r\\n"')
def test_events_are_read_back_on_every_wire(body: bytes) -> None:
    """What a producer sent arrives on every wire as it was, with a cursor, whatever characters it has."""
    sent = json.loads(b"{%b}" % body)
    for wire in STREAM_WIRES:
        (message,) = reader_of(wire).feed(event_frame(wire, "abcdef-5-beef", body))
        assert message.text == b'{"cursor":"abcdef-5-beef",%b}' % body
        assert json.loads(message.text) == {"cursor": "abcdef-5-beef", **sent}
        assert message.cursor == "abcdef-5-beef"


def stream_of(wire: Wire, bodies: list[bytes]) -> tuple[bytes, list[tuple[str, str | None]]]:
    """Return all sorts of frames of one wire, one behind the other, with what each is."""
    data = b""
    expected: list[tuple[str, str | None]] = []
    for number, body in enumerate(bodies):
        data += event_frame(wire, f"abcdef-{number}-beef", body)
        data += gap_frame(wire, "expired", f"abcdef-{number}-0000", f"abcdef-{number + 1}-0000")
        data += heartbeat_frame(wire, f"abcdef-{number + 1}-0001")
        data += control_frame(wire, "error", b'"detail":"no"')
        expected += [("event", f"abcdef-{number}-beef"), ("gap", f"abcdef-{number + 1}-0000")]
        expected += [("heartbeat", f"abcdef-{number + 1}-0001"), ("error", None)]
    return data, expected


@settings(deadline=None)
@given(st.sampled_from(STREAM_WIRES), st.lists(bodies, min_size=1, max_size=3), st.data())
def test_a_stream_is_read_back_from_pieces(wire: Wire, bodies: list[bytes], data: st.DataObject) -> None:
    """All frames of a wire, joined and then cut at any bytes, are the same messages again, in order."""
    stream, expected = stream_of(wire, bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = reader_of(wire)
    messages: list[Message] = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        messages += reader.feed(stream[begin:end])
    assert [(message.kind, message.cursor) for message in messages] == expected
    assert not reader.partial()


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=4))
def test_chunks_are_read_back(parts: list[bytes]) -> None:
    """Chunks carry any bytes, whatever they look like, and end with the last one."""

    class Whole:
        def __init__(self) -> None:
            self.data = b""

        def feed(self, data: bytes) -> list[Message]:
            self.data += data
            return []

        def partial(self) -> bool:
            return False

    whole = Whole()
    reader = ChunkedReader(whole)
    ends = reader.feed(b"".join(map(chunk, parts)) + LAST_CHUNK)
    assert whole.data == b"".join(parts)
    assert [message.kind for message in ends] == ["end"]


@given(st.integers(0, 100_000), st.booleans())
def test_a_retry_is_digits_alone(retry_ms: int, with_cursor: bool) -> None:
    """A reader takes a `retry` field only if it is ASCII digits (HTML 9.2.6)."""
    block = sse_block("abcdef-5-beef" if with_cursor else None, None, retry_ms=retry_ms)
    assert block.splitlines()[0] == b"retry: " + str(retry_ms).encode()
    assert block.endswith(b"\n\n")


def test_the_readers_are_strict() -> None:
    """What the standards do not allow is not read: else the tests above would prove nothing."""
    for wire, data in [
        (Wire.WEBSOCKET, b"\x81\x7e\x00\x05{...}"),  # a length that has a shorter form
        (Wire.WEBSOCKET, b"\x81\x85\0\0\0\0{...}"),  # masked
        (Wire.WEBSOCKET, b"\x01\x02{}"),  # a fragment
        (Wire.WEBSOCKET, b"\xc1\x02{}"),  # compressed, but that was not agreed upon
        (Wire.SSE, b"id: x\rdata: {}\n\n"),
        (Wire.SSE, b"data: {}\ndata: {}\n\n"),
        (Wire.SSE, b'id: x\ndata: {"cursor":"y"}\n\n'),
        (Wire.NDJSON, b"[]\n"),
        (Wire.NDJSON, b"\n"),
        (Wire.SSE_CHUNKED, b"0x5\r\nid: x\r\n"),
        (Wire.NDJSON_CHUNKED, b"3\r\n{}\n..."),
        (Wire.NDJSON_CHUNKED, b"0\r\n\r\n3\r\n{}\n\r\n"),
    ]:
        with pytest.raises(AssertionError):
            reader_of(wire).feed(data)
    assert NdjsonReader().feed(b'{"a"') == []
