"""
AMQP 0-9-1 frames for the event path: from bytes to deliveries, from an event's parts to bytes. Pure.

An AMQP client library spends a hundred microseconds and more on a message: a task, a queue, an object for
each frame. Here one loop walks over everything a read brought. Only what carries events is taken apart
(deliveries, and on the other side publications); any other frame is handed on as it came, for `pamqp`.

Sources: AMQP 0-9-1 specification 4.2 (framing), 1.8.3 (class basic).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct, error
from typing import Final, NamedTuple

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
HEARTBEAT: Final = 8
FRAME_END: Final = 0xCE
OVERHEAD: Final = 8
"""Bytes of a frame beside its payload: type, channel, size and the end octet."""

HEARTBEAT_FRAME: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"

DELIVER: Final = b"\x00\x3c\x00\x3c"
RETURN: Final = b"\x00\x3c\x00\x32"
ACK: Final = b"\x00\x3c\x00\x50"
NACK: Final = b"\x00\x3c\x00\x78"
PUBLISH: Final = b"\x00\x3c\x00\x28\x00\x00"  # with the reserved short
MANDATORY: Final = b"\x01"
CLASS_BASIC: Final = 60 << 16  # with the weight, which is 0

_head = Struct(">BHI")
_u16 = Struct(">H")
_u64 = Struct(">Q")
_content_head = Struct(">BHIIQ")  # of a header frame, with class and weight as one number


class FrameError(Exception):
    """The peer does not speak AMQP 0-9-1, or a frame is longer than agreed."""


class Delivery(NamedTuple):
    """
    One message as the broker delivered it.

    `header` is the property flags and list, undecoded. `body` is empty, unlike `size`, if it was longer than
    the inbox takes.
    """

    channel: int
    tag: int
    exchange: bytes
    key: bytes
    header: bytes
    body: bytes
    size: int


class Frame(NamedTuple):
    """Any other frame; of a returned message the method alone."""

    kind: int
    channel: int
    payload: bytes


class _Content:
    """A message of which the body is not complete yet."""

    __slots__ = ("body", "header", "left", "method", "size")

    def __init__(self, method: bytes) -> None:
        self.method = method
        self.header = b""
        self.size = 0
        self.left = 0
        self.body: list[bytes] = []


class Inbox:
    """
    Turns what a connection receives into deliveries and other frames.

    Args:
        max_frame: the longest frame that was agreed on.
        max_body: a longer body is counted but not kept.
    """

    def __init__(self, max_frame: int = 1 << 17, max_body: int = 1 << 27) -> None:
        self.max_frame = max_frame
        self.max_body = max_body
        self._rest = b""
        self._contents: dict[int, _Content] = {}  # by channel

    def feed(self, data: bytes) -> tuple[list[Delivery], list[Frame]]:
        """
        Take in bytes; return what is complete now.

        Raises:
            FrameError: the bytes are no frames; the connection is of no more use.
        """
        try:
            return self._feed(data)
        except (error, IndexError):
            raise FrameError("a frame is shorter than what it should hold") from None

    def _feed(  # noqa: C901, PLR0912  (a call for each frame would cost as much as the frame)
        self, data: bytes
    ) -> tuple[list[Delivery], list[Frame]]:
        if self._rest:
            data = self._rest + data
        deliveries: list[Delivery] = []
        others: list[Frame] = []
        contents = self._contents
        at, end = 0, len(data)
        while end - at >= OVERHEAD:
            kind, channel, size = _head.unpack_from(data, at)
            stop = at + 7 + size
            if stop >= end:
                if size + OVERHEAD > self.max_frame:
                    raise self._refusal(data[at : at + OVERHEAD], size)
                break
            if data[stop] != FRAME_END:
                raise self._refusal(data[at : at + OVERHEAD], size)
            if kind == BODY:
                content = contents.get(channel)
                if content is None:
                    raise FrameError(f"a body came on channel {channel} without a message")
                content.left -= size
                if content.size <= self.max_body:
                    content.body.append(data[at + 7 : stop])
                if content.left <= 0:
                    del contents[channel]
                    _finish(content, channel, deliveries, others)
            elif kind == HEADER:
                content = contents.get(channel)
                if content is None:
                    raise FrameError(f"a header came on channel {channel} without a message")
                (content.size,) = _u64.unpack_from(data, at + 11)
                content.left = content.size
                content.header = data[at + 19 : stop]
                if not content.left:
                    del contents[channel]
                    _finish(content, channel, deliveries, others)
            elif kind == METHOD and (method := data[at + 7 : at + 11]) in (DELIVER, RETURN):
                if method == DELIVER and (behind := self._whole(data, at, stop, end, deliveries)):
                    at = behind
                    continue
                contents[channel] = _Content(data[at + 7 : stop])
            else:
                others.append(Frame(kind, channel, data[at + 7 : stop]))
            at = stop + 1
        self._rest = data[at:]
        return deliveries, others

    def _whole(self, data: bytes, at: int, stop: int, end: int, deliveries: list[Delivery]) -> int:
        """
        Take a delivery of which method, header and body lie behind each other, as nearly all do.

        Args:
            data: what was received.
            at: where the method frame begins.
            stop: where it ends.
            end: where the data end.
            deliveries: takes the delivery.

        Returns:
            Where the next frame begins; 0 if it is not all there, or is not as usual: then nothing was taken.
        """
        header = stop + 1
        if header + 29 > end:
            return 0
        kind, channel, header_size, _, size = _content_head.unpack_from(data, header)
        body = header + 8 + header_size
        behind: int = body + 8 + size
        if (
            kind != HEADER
            or not 0 < size <= self.max_body
            or behind > end
            or header_size + OVERHEAD > self.max_frame
            or _head.unpack_from(data, body) != (BODY, channel, size)
            or data[body - 1] != FRAME_END
            or data[behind - 1] != FRAME_END
        ):
            return 0
        # Behind the class and method: consumer tag, delivery tag, redelivered, exchange, routing key.
        tag = at + 12 + data[at + 11]
        exchange = tag + 10
        key = exchange + data[tag + 9]
        deliveries.append(
            Delivery(
                channel,
                _u64.unpack_from(data, tag)[0],
                data[exchange:key],
                data[key + 1 : key + 1 + data[key]],
                data[header + 19 : body - 1],
                data[body + 7 : behind - 1],
                size,
            )
        )
        return behind

    def forget(self, channel: int) -> None:
        """Drop what came in part on a channel that is closed."""
        self._contents.pop(channel, None)

    def _refusal(self, start: bytes, size: int) -> FrameError:
        if start == PROTOCOL_HEADER or start.startswith(b"AMQP"):
            return FrameError("it speaks another version of AMQP than 0-9-1")
        if start.startswith(b"HTTP/"):
            return FrameError("it speaks HTTP")
        if size + OVERHEAD > self.max_frame:
            return FrameError(f"a frame of {size} bytes is longer than agreed, or this is no AMQP")
        return FrameError("a frame does not end where it should")


def _finish(content: _Content, channel: int, deliveries: list[Delivery], others: list[Frame]) -> None:
    """Put a complete message into its list."""
    method = content.method
    if method[:4] != DELIVER:
        others.append(Frame(METHOD, channel, method))
        return
    at = 5 + method[4]  # behind the consumer tag
    exchange = at + 10
    key = exchange + method[at + 9]
    body = content.body
    deliveries.append(
        Delivery(
            channel,
            _u64.unpack_from(method, at)[0],
            method[exchange:key],
            method[key + 1 : key + 1 + method[key]],
            content.header,
            body[0] if len(body) == 1 else b"".join(body),
            content.size,
        )
    )


@dataclass(frozen=True, slots=True)
class Confirm:
    """A publisher confirm: whether the broker has the message `tag`, or all up to it."""

    tag: int
    multiple: bool
    positive: bool


def confirm_of(payload: bytes) -> Confirm | None:
    """Return the confirm that a method frame is, None if it is another method."""
    method = payload[:4]
    if method not in (ACK, NACK):
        return None
    return Confirm(_u64.unpack_from(payload, 4)[0], bool(payload[12] & 1), method == ACK)


def ack(channel: int, tag: int) -> bytes:
    """Return the frame that acknowledges every delivery up to `tag`, which gives the broker credit."""
    return _head.pack(METHOD, channel, 13) + ACK + _u64.pack(tag) + b"\x01\xce"


def short(text: bytes) -> bytes:
    """Return a short string (4.2.5.3); it must have at most 255 bytes."""
    return b"%c%b" % (len(text), text)


class Publications:
    """
    Builds publications to one exchange.

    Args:
        channel: the channel they go out on.
        exchange: its name.
        max_frame: the longest frame that was agreed on.
    """

    def __init__(self, channel: int, exchange: str, max_frame: int) -> None:
        self._channel = channel
        self._method = PUBLISH + short(exchange.encode())
        self._room = max_frame - OVERHEAD
        self._methods: dict[bytes, bytes] = {}  # routing key -> the whole method frame and the header's start

    def frames(self, key: bytes, properties: bytes, body: bytes) -> list[bytes]:
        """
        Return the frames of one message in parts, to be joined with those of others.

        Args:
            key: the routing key.
            properties: the property flags and list.
            body: all of it; cut where a frame would be too long.
        """
        size = len(body)
        parts = [
            self._methods.get(key) or self._start(key),
            _content_head.pack(HEADER, self._channel, 12 + len(properties), CLASS_BASIC, size),
            properties,
            b"\xce",
        ]
        if size <= self._room:
            if size:
                parts += (_head.pack(BODY, self._channel, size), body, b"\xce")
            return parts
        for at in range(0, size, self._room):
            piece = body[at : at + self._room]
            parts += (_head.pack(BODY, self._channel, len(piece)), piece, b"\xce")
        return parts

    def _start(self, key: bytes) -> bytes:
        """Return the method frame for a routing key, and remember it."""
        payload = self._method + short(key) + MANDATORY
        if len(self._methods) >= 16_384:
            self._methods.clear()
        frame = self._methods[key] = _head.pack(METHOD, self._channel, len(payload)) + payload + b"\xce"
        return frame


def joined(frames: Iterable[list[bytes]]) -> bytes:
    """Return the frames of several messages as bytes for one write."""
    return b"".join([part for parts in frames for part in parts])
