"""
The properties of an AMQP message: from the bytes of a content header to values, and back. Pure.

Written out flag by flag and type by type, because it runs for every event.

Source: AMQP 0-9-1 specification 4.2.6.1 (property flags), 4.2.5 (tables), and RabbitMQ's errata for the types
of fields (https://www.rabbitmq.com/amqp-0-9-1-errata).
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct, error
from typing import Any, Final

from gateway.amqp.frames import short

CONTENT_TYPE: Final = 0x8000
CONTENT_ENCODING: Final = 0x4000
HEADERS: Final = 0x2000
DELIVERY_MODE: Final = 0x1000
PRIORITY: Final = 0x0800
CORRELATION_ID: Final = 0x0400
REPLY_TO: Final = 0x0200
EXPIRATION: Final = 0x0100
MESSAGE_ID: Final = 0x0080
TIMESTAMP: Final = 0x0040
TYPE: Final = 0x0020
_BEHIND_HEADERS: Final = CORRELATION_ID | REPLY_TO | EXPIRATION | MESSAGE_ID | TIMESTAMP | TYPE

_u16 = Struct(">H")
_u32 = Struct(">I")
_u64 = Struct(">Q")
_i64 = Struct(">q")
_STRING, _LONG, _BOOLEAN = b"Slt"

_NUMBERS: Final = {
    ord(kind): Struct(form)
    for kind, form in {
        "b": ">b",
        "B": ">B",
        "s": ">h",
        "u": ">H",
        "I": ">i",
        "i": ">I",
        "L": ">q",
        "f": ">f",
        "d": ">d",
        "T": ">Q",
    }.items()
}
"""Fields of fixed size, but for those that are common enough to have a line of their own."""

OFFSET: Final = b"x-stream-offset"
_ONLY_OFFSET: Final = _u32.pack(1 + len(OFFSET) + 1 + 8) + short(OFFSET) + b"l"
"""How the table begins that is nothing but the offset: that of a plain producer's message in a stream."""

DECIMAL_BYTES: Final = 5
NO_HEADERS: Final[dict[bytes, Any]] = {}
COMPOUND: Final = object()
"""What stands for a value that no event is made of: a decimal, a byte array, a list or a table in a table."""


class PropertiesError(ValueError):
    """The content header is not what AMQP says it is."""


class Properties:
    """
    The properties that mean something to an event; None or empty where the message has none.

    Args:
        header: flags and property list.

    Raises:
        PropertiesError: they are damaged.
    """

    __slots__ = (
        "_at",
        "_flags",
        "content_encoding",
        "content_type",
        "expiration",
        "headers",
        "message_id",
        "timestamp",
        "type",
    )

    def __init__(self, header: bytes) -> None:
        self.begin(header)
        self.complete(header)

    def begin(self, header: bytes) -> None:
        """Read up to the headers; the rest is left for `complete`, which many a message does not need."""
        self.content_type: bytes | None = None
        self.content_encoding: bytes | None = None
        self.headers: dict[bytes, Any] = NO_HEADERS
        try:
            self._flags = flags = header[0] << 8 | header[1]
            at = 2
            if flags & CONTENT_TYPE:
                end = at + 1 + header[at]
                self.content_type = header[at + 1 : end]
                at = end
            if flags & CONTENT_ENCODING:
                end = at + 1 + header[at]
                self.content_encoding = header[at + 1 : end]
                at = end
            if flags & HEADERS and header.startswith(_ONLY_OFFSET, at):
                at += len(_ONLY_OFFSET)
                self.headers = {OFFSET: _i64.unpack_from(header, at)[0]}
                at += 8
            elif flags & HEADERS:
                end = at + 4 + _u32.unpack_from(header, at)[0]
                self.headers = table(header, at, end)
                at = end
            self._at = at
        except (error, IndexError, ValueError) as problem:
            raise _unreadable(problem) from None

    def complete(self, header: bytes) -> None:
        """Read what stands behind the headers."""
        self.expiration: bytes | None = None
        self.message_id: bytes | None = None
        self.timestamp: int | None = None
        self.type: bytes | None = None
        flags = self._flags
        if flags & _BEHIND_HEADERS:
            try:
                # Delivery mode and priority have one byte each.
                self._read_rest(flags, header, self._at + (flags >> 12 & 1) + (flags >> 11 & 1))
            except (error, IndexError) as problem:
                raise _unreadable(problem) from None

    def _read_rest(self, flags: int, header: bytes, at: int) -> None:
        if flags & (CORRELATION_ID | REPLY_TO):
            if flags & CORRELATION_ID:
                at += 1 + header[at]
            if flags & REPLY_TO:
                at += 1 + header[at]
        if flags & EXPIRATION:
            end = at + 1 + header[at]
            self.expiration = header[at + 1 : end]
            at = end
        if flags & MESSAGE_ID:
            end = at + 1 + header[at]
            self.message_id = header[at + 1 : end]
            at = end
        if flags & TIMESTAMP:
            (self.timestamp,) = _u64.unpack_from(header, at)
            at += 8
        if flags & TYPE:
            end = at + 1 + header[at]
            self.type = header[at + 1 : end]


def _unreadable(problem: Exception) -> PropertiesError:
    return PropertiesError(f"its properties cannot be read: {problem}")


def table(data: bytes, at: int, end: int) -> dict[bytes, Any]:
    """
    Return the table at `at`, with its size in front; strings in it are bytes, as is every name.

    Of fields with the same name the first counts: it is the one that a broker overwrites with its own.
    """
    at += 4
    found: dict[bytes, Any] = {}
    twice: list[tuple[bytes, Any]] = []
    while at < end:
        stop = at + 1 + data[at]
        name = data[at + 1 : stop]
        kind = data[stop]
        at = stop + 1
        if name in found:
            twice.append((name, found[name]))
        if kind == _LONG:
            (found[name],) = _i64.unpack_from(data, at)
            at += 8
        elif kind == _STRING:
            stop = at + 4 + _u32.unpack_from(data, at)[0]
            found[name] = data[at + 4 : stop]
            at = stop
        elif kind == _BOOLEAN:
            found[name] = bool(data[at])
            at += 1
        else:
            found[name], at = _field(data, kind, at)
    if at != end:
        raise PropertiesError("a table does not end where it says")
    found.update(reversed(twice))
    return found


def _field(data: bytes, kind: int, at: int) -> tuple[Any, int]:
    """Return the value of a rarer kind at `at`, and where it ends."""
    number = _NUMBERS.get(kind)
    if number is not None:
        return number.unpack_from(data, at)[0], at + number.size
    if kind == ord("V"):
        return None, at
    if kind == ord("D"):
        return COMPOUND, at + DECIMAL_BYTES
    if kind in b"AFx":
        return COMPOUND, at + 4 + _u32.unpack_from(data, at)[0]
    raise PropertiesError(f"a field has the unknown type {chr(kind)!a}")


def encode_headers(headers: Mapping[bytes, bytes | int | list[bytes]]) -> bytes:
    """Return a table of strings (bytes), whole numbers and lists of strings, with its size in front."""
    parts: list[bytes] = []
    for name, value in headers.items():
        if isinstance(value, int):
            parts += (short(name), b"l", _i64.pack(value))
        elif isinstance(value, list):
            items = b"".join([b"S%b%b" % (_u32.pack(len(each)), each) for each in value])
            parts += (short(name), b"A", _u32.pack(len(items)), items)
        else:
            parts += (short(name), b"S", _u32.pack(len(value)), value)
    body = b"".join(parts)
    return _u32.pack(len(body)) + body


def encode(
    content_type: bytes,
    headers: bytes,
    *,
    expiration: bytes | None = None,
    message_id: bytes | None = None,
    timestamp: int | None = None,
    type: bytes | None = None,
) -> bytes:
    """
    Return flags and list of properties for a persistent message.

    Args:
        content_type: at most 255 bytes, like every text here.
        headers: as `encode_headers` returns them.
        expiration: milliseconds, as decimal text.
        message_id: names the message.
        timestamp: seconds since the Unix epoch.
        type: what kind of message it is.
    """
    flags = CONTENT_TYPE | HEADERS | DELIVERY_MODE
    parts = [short(content_type), headers, b"\x02"]
    if expiration is not None:
        flags |= EXPIRATION
        parts.append(short(expiration))
    if message_id is not None:
        flags |= MESSAGE_ID
        parts.append(short(message_id))
    if timestamp is not None:
        flags |= TIMESTAMP
        parts.append(_u64.pack(timestamp))
    if type is not None:
        flags |= TYPE
        parts.append(short(type))
    return _u16.pack(flags) + b"".join(parts)


def timestamp(seconds: int) -> bytes:
    """Return the property of that name, for `usual`."""
    return _u64.pack(seconds)


def usual(
    content_type: bytes, name: bytes, value: bytes, message_id: bytes, timestamp: bytes, type: bytes
) -> bytes:
    """
    Return the same as `encode` for what most messages have: one header that is a string, and no lifetime.

    Args:
        content_type: at most 255 bytes, like every other text but the header's value.
        name: that of the header.
        value: that of the header.
        message_id: names the message.
        timestamp: see `timestamp`.
        type: what kind of message it is.
    """
    return b"%b%c%b%b%c%bS%b%b\x02%c%b%b%c%b" % (
        _USUAL,
        len(content_type),
        content_type,
        _u32.pack(len(name) + len(value) + 6),
        len(name),
        name,
        _u32.pack(len(value)),
        value,
        len(message_id),
        message_id,
        timestamp,
        len(type),
        type,
    )


_USUAL: Final = _u16.pack(CONTENT_TYPE | HEADERS | DELIVERY_MODE | MESSAGE_ID | TIMESTAMP | TYPE)
