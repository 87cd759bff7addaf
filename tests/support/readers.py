"""
What a client does with the bytes of each wire: readers that take them in pieces of any size and give
messages.

Written against the standards, not against `fanout.frames`, and strict: what no client would understand is an
error. RFC 6455 5.2 (frames), RFC 7692 7.2.2 (inflating), RFC 9112 7.1 (chunks), HTML 9.2.6 (event streams).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from fanout.frames import Wire

_decode: Final = msgspec.json.decode


class ReadError(AssertionError):
    """The bytes are not what the wire's standard allows."""


@dataclass(frozen=True, slots=True)
class Message:
    """
    One thing that a client was told.

    Attributes:
        kind: `event`, the name of a control message (`heartbeat` also for SSE's), `hello` for the first
            block of an event stream, or `ping`, `pong`, `close`, `end` of the wire itself.
        cursor: what the client would resume with now; None if the message does not say.
        members: the JSON, without `control`.
        text: the JSON as it came.
    """

    kind: str
    cursor: str | None
    members: dict[str, Any]
    text: bytes = b""


class Reader(Protocol):
    """Takes the bytes of one connection."""

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that are complete now."""

    def partial(self) -> bool:
        """Tell whether a message has begun and not ended."""


def _object(text: bytes) -> dict[str, Any]:
    try:
        members = _decode(text)
    except msgspec.DecodeError as error:
        raise ReadError(f"no JSON: {text[:200]!r}") from error
    if not isinstance(members, dict):
        raise ReadError(f"no JSON object: {text[:200]!r}")
    return members


def message_of(text: bytes) -> Message:
    """Return the message that a line of NDJSON, or a text message of WebSocket, says."""
    members = _object(text)
    control = members.pop("control", None)
    if control is None:
        return Message("event", members["cursor"], members, text)
    cursor = members.get("to") if control == "gap" else members.get("cursor")
    return Message(control, cursor, members, text)


class NdjsonReader:
    """Lines, each a JSON object."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [message_of(line) for line in lines]

    def partial(self) -> bool:
        return bool(self._rest)


class SseReader:
    """Blocks of an event stream, as an EventSource would read them."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        return [self._block(block) for block in blocks]

    def partial(self) -> bool:
        return bool(self._rest)

    def _block(self, block: bytes) -> Message:
        fields: dict[bytes, bytes] = {}
        for line in block.split(b"\n"):
            name, colon, value = line.partition(b": ")
            if not colon or name not in (b"event", b"data", b"id", b"retry") or b"\r" in line:
                raise ReadError(f"no field of an event stream: {line[:200]!r}")
            if name in fields:
                raise ReadError(f"two lines of {name!r} in one block: {block[:200]!r}")
            fields[name] = value
        cursor = fields[b"id"].decode() if b"id" in fields else None
        if b"data" not in fields:
            return Message("hello" if b"retry" in fields else "heartbeat", cursor, {})
        members = _object(fields[b"data"])
        if b"event" in fields:
            return Message(fields[b"event"].decode().removeprefix("sluice."), cursor, members)
        if members["cursor"] != cursor:
            raise ReadError(f"the id is not the event's cursor: {block[:200]!r}")
        return Message("event", cursor, members, fields[b"data"])


class ChunkedReader:
    """A chunked body around another wire's bytes."""

    _SIZE = re.compile(rb"[0-9a-fA-F]{1,15}")

    def __init__(self, inner: Reader) -> None:
        self._inner = inner
        self._rest = bytearray()
        self.ended = False

    def feed(self, data: bytes) -> list[Message]:
        self._rest += data
        messages: list[Message] = []
        while (payload := self._chunk()) is not None:
            messages += self._inner.feed(payload) if payload else [Message("end", None, {})]
        return messages

    def partial(self) -> bool:
        return bool(self._rest) or self._inner.partial()

    def _chunk(self) -> bytes | None:
        """Take the next whole chunk; None if it is not all there."""
        line = self._rest.find(b"\r\n", 0, 32)
        if line < 0:
            return None
        if self.ended or not self._SIZE.fullmatch(self._rest[:line]):
            raise ReadError(f"no chunk, or one behind the last: {bytes(self._rest[:40])!r}")
        size = int(self._rest[:line], 16)
        end = line + 2 + size
        if len(self._rest) < end + 2:
            return None
        if self._rest[end : end + 2] != b"\r\n":
            raise ReadError("a chunk does not end where it said")
        payload = bytes(self._rest[line + 2 : end])
        del self._rest[: end + 2]
        self.ended = not size
        return payload


class WebSocketReader:
    """
    Unmasked frames of a server; every message in one frame.

    Args:
        deflate: whether permessage-deflate was negotiated (without context takeover of the server).
    """

    _CONTROL: Final = {8: "close", 9: "ping", 10: "pong"}

    def __init__(self, *, deflate: bool = False) -> None:
        self._deflate = deflate
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        self._rest += data
        return [self._message(first, payload) for first, payload in iter(self._frame, None)]

    def partial(self) -> bool:
        return bool(self._rest)

    def _frame(self) -> tuple[int, bytes] | None:
        """Take the next whole frame; None if it is not all there."""
        rest = self._rest
        if len(rest) < 2:
            return None
        size, begin = rest[1], 2
        if size in (126, 127):
            begin = 4 if size == 126 else 10
            if len(rest) < begin:
                return None
            size, least = int.from_bytes(rest[2:begin], "big"), 126 if size == 126 else 65_536
            if size < least:
                raise ReadError("a length is not in its shortest form")
        elif size > 127:
            raise ReadError("a server's frame is masked")
        if len(rest) < begin + size:
            return None
        frame = rest[0], bytes(rest[begin : begin + size])
        del rest[: begin + size]
        return frame

    def _message(self, first: int, payload: bytes) -> Message:
        if first == 0x81:
            return message_of(payload)
        if first == 0xC1 and self._deflate:
            return message_of(zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff"))
        if first & 0xF0 == 0x80 and first & 0x0F in self._CONTROL and len(payload) <= 125:
            return Message(self._CONTROL[first & 0x0F], None, {}, payload)
        raise ReadError(f"no frame that this server sends: {first:#x} {payload[:100]!r}")


def reader_of(wire: Wire) -> Reader:
    """Return a new reader for the bytes of `wire`."""
    match wire:
        case Wire.WEBSOCKET | Wire.WEBSOCKET_DEFLATE:
            return WebSocketReader(deflate=wire is Wire.WEBSOCKET_DEFLATE)
        case Wire.SSE:
            return SseReader()
        case Wire.NDJSON:
            return NdjsonReader()
        case Wire.SSE_CHUNKED:
            return ChunkedReader(SseReader())
        case Wire.NDJSON_CHUNKED:
            return ChunkedReader(NdjsonReader())
        case Wire.JSON:
            raise AssertionError("a poll's answer is no stream")


def messages_in(wire: Wire, data: bytes) -> Iterator[Message]:
    """Return the messages in `data`, which must be whole."""
    reader = reader_of(wire)
    yield from reader.feed(data)
    if reader.partial():
        raise ReadError("the data ends in the middle of a message")
