"""
Messages and events: what an event is on the backbone, and which event a message is. Pure.

An event travels as an AMQP message that any consumer understands: routing key = topic, body = data,
`message_id`, `type`, `timestamp`, `expiration`, `content_type`, header `key`. What only replicas need is one
header, `sluice`: the exact time, whether the producer chose the id, and who published it.

A message without that header comes from somebody who knows nothing of us; the same properties are read from
it, and what it lacks is made up the same way by every replica: its id from epoch and position.

*Marks* are messages of the replicas themselves, published to the stream alone; see `gateway.stream_marks`.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from fanout.event import Event
from gateway.amqp.frames import Delivery
from gateway.amqp.properties import (
    OFFSET,
    Properties,
    PropertiesError,
    encode,
    encode_headers,
    timestamp,
    usual,
)
from gateway.mint import DATA, MAX_TYPES, Mint, time_text
from gateway.payloads import content_type, payload
from gateway.problems import Problem

HEADER: Final = b"sluice"
STAMP: Final = b"timestamp_in_ms"
"""
What a broker adds that was told to stamp messages (`message_interceptors.incoming.set_header_timestamp`).
"""
DAY_MS: Final = 86_400_000
SECOND_MS: Final = 1000
EVENT: Final = b"e1"
BCC: Final = b"BCC"
"""What the broker routes a message by as well, and takes out of it."""
MARK: Final = b"m1"
JSON: Final = b"application/json"
BINARY: Final = b"application/octet-stream"
MAX_SHORT: Final = 255
"""Bytes of a short string: longer ids and types travel in headers."""

_MEMBERS = re.compile(
    rb'"topic":"(?:[^"\\]|\\.)*","id":("(?:[^"\\]|\\.)*"),"type":("(?:[^"\\]|\\.)*"),"time":"([^"]*)",'
    rb'(?:"key":"(?:[^"\\]|\\.)*",)?"data(_base64)?":',
    re.DOTALL,
)
_EVENT = re.compile(rb"%b;([0-9]{1,14});([mg]);([^;]*);([0-9]{1,18})" % EVENT)
_MARK = re.compile(rb"%b;([a-z]*);([0-9a-z]*);([0-9a-z,]*)" % MARK)
_TIME = re.compile(rb"[0-9T:.Zz+-]{1,40}")
"""What a time may have in it: it goes into the JSON as it is."""
_VALUE = msgspec.json.Decoder(msgspec.Raw)
_NUMBER = re.compile(rb"[0-9]{1,15}")


Copies = Callable[[Event], tuple[str, Mapping[bytes, int]] | None]
"""Says by which routing key an event goes to a queue as well, and with which headers; None if it does not."""


class NoEvent(ValueError):
    """A message that cannot be an event; the sentence says why."""


class Mark:
    """
    A message of the replicas themselves.

    Args:
        kind: what it says; see `gateway.stream_marks`.
        epoch: the epoch it speaks of, empty if none.
        nonce: its own name.
    """

    __slots__ = ("epoch", "kind", "nonce")

    def __init__(self, kind: str, epoch: str, nonce: str) -> None:
        self.kind = kind
        self.epoch = epoch
        self.nonce = nonce

    def properties(self) -> bytes:
        """Return the message's properties; its body is `null`."""
        text = b";".join((MARK, self.kind.encode(), self.epoch.encode(), self.nonce.encode()))
        return encode(JSON, encode_headers({HEADER: text}), type=b"sluice.mark")


class Outgoing:
    """
    Makes messages of events.

    Args:
        origin: the name of this process on the stream; no `;` in it.

    Attributes:
        copies: asked for events that have a key; see `Copies`.
    """

    def __init__(self, origin: str) -> None:
        self.origin = origin.encode()
        self.copies: Copies | None = None
        self._types: dict[bytes, bytes] = {}
        self._now = -1
        self._time = b""
        self._seconds = b""  # of the same moment, as the property `timestamp`

    def message(self, event: Event, number: int) -> tuple[bytes, bytes, bytes]:
        """Return routing key, properties and body of an event, the `number`th of this process."""
        members = _MEMBERS.match(event.body)
        assert members is not None, "the mint made it otherwise"
        id, type, time, base64 = members.groups()
        if event.time != self._now:
            self._now = event.time
            self._time = time_text(event.time)
            self._seconds = timestamp(event.time // 1000)
        given = event.given_id
        own = b"%b;%d;%c;%b;%d" % (EVENT, event.time, b"mg"[given is not None], self.origin, number)
        name = id[1:-1] if given is None else given.encode()
        kind = self._types.get(type) or self._kind(type)
        data = event.body[members.end() :]
        topic = event.topic.encode()
        if (
            event.key is None
            and not event.expires
            and time == self._time
            and not base64
            and len(name) <= MAX_SHORT
            and len(kind) <= MAX_SHORT
        ):
            return topic, usual(JSON, HEADER, own, name, self._seconds, kind), data
        properties = self._properties(event, own, name, kind, time, BINARY if base64 else JSON)
        return topic, properties, b64decode(data[1:-1]) if base64 else data

    def _properties(
        self, event: Event, own: bytes, name: bytes, kind: bytes, time: bytes, content_type: bytes
    ) -> bytes:
        """Return the properties of an event that has something special."""
        headers: dict[bytes, Any] = {HEADER: own}
        if event.key is not None:
            headers[b"key"] = event.key.encode()
            copy = None if self.copies is None else self.copies(event)
            if copy is not None:
                headers[BCC] = [copy[0].encode()]
                headers.update(copy[1])
        if time != self._time:
            headers[b"time"] = time
        if len(name) > MAX_SHORT:
            headers[b"id"] = name
        if len(kind) > MAX_SHORT:
            headers[b"type"] = kind
        return encode(
            content_type,
            encode_headers(headers),
            expiration=b"%d" % (event.expires - event.time) if event.expires else None,
            message_id=name if len(name) <= MAX_SHORT else None,
            timestamp=event.time // 1000,
            type=kind if len(kind) <= MAX_SHORT else None,
        )

    def _kind(self, type: bytes) -> bytes:
        """Return a type of which the JSON is given, and remember it."""
        if len(self._types) >= MAX_TYPES:
            self._types.clear()
        kind = self._types[type] = (
            type[1:-1] if b"\\" not in type else msgspec.json.decode(type, type=str).encode()
        )
        return kind


class Received(Properties):
    """
    One message of the stream: its offset, and what it says. Of its properties only those up to the headers
    are read; who makes an event of it reads the rest (`complete`).

    Args:
        delivery: the message.

    Raises:
        PropertiesError: its properties are damaged, or it is from no stream.
    """

    __slots__ = ("delivery", "mark", "minted", "number", "offset", "origin", "time")

    def __init__(self, delivery: Delivery) -> None:
        self.begin(delivery.header)
        self.delivery = delivery
        headers = self.headers
        offset = headers.get(OFFSET)
        if type(offset) is not int:
            raise PropertiesError("it has no offset")
        self.offset = offset
        self.mark: Mark | None = None
        self.minted = False  # the id is ours: nobody publishes it twice
        self.origin: bytes | None = None  # which replica published it, None for others' messages
        self.number = 0
        self.time = 0  # when the replica took it in
        if len(headers) > 1 and (ours := headers.get(HEADER)) is not None:
            self._read_ours(ours)

    def _read_ours(self, ours: Any) -> None:
        """Read our own header; one that is not as we write it counts as no header."""
        if not isinstance(ours, bytes):
            return
        if (event := _EVENT.fullmatch(ours)) is not None:
            time, given, self.origin, number = event.groups()
            self.time = int(time)
            self.minted = given == b"m"
            self.number = int(number)
        elif not self.delivery.exchange and (mark := _MARK.fullmatch(ours)) is not None:
            self.mark = Mark(*(part.decode() for part in mark.groups()))


class Incoming:
    """
    Makes events of messages.

    Args:
        max_event_bytes: how long an event's JSON may be.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._mint = Mint(max_event_bytes, "", own=True)

    def event(self, received: Received, epoch: str, earliest: int, latest: int) -> Event:
        """
        Return the event that a message is.

        Args:
            received: the message.
            epoch: that of the log.
            earliest: the time of the event before it, in ms: times never decrease along the log.
            latest: when the message was in the stream at the latest; a producer's clock does not lead.

        Raises:
            NoEvent: it cannot be one.
        """
        try:
            return self._event(received, epoch, earliest, latest)
        except Problem as problem:
            raise NoEvent(problem.detail) from None
        except PropertiesError as problem:
            raise NoEvent(str(problem)) from None
        except UnicodeDecodeError as problem:
            raise NoEvent(f"one of its texts is not UTF-8: {problem.reason}") from None

    def _event(self, received: Received, epoch: str, earliest: int, latest: int) -> Event:
        delivery, headers = received.delivery, received.headers
        received.complete(delivery.header)
        ours = received.origin is not None
        if delivery.size != len(delivery.body):
            raise NoEvent(f"its body has {delivery.size} bytes, more than an event may have")
        name, kind = received.message_id, received.type
        key: Any = None
        time = received.time or latest
        shown: bytes | None = None
        left = 0
        if len(headers) > 1:
            name = name or headers.get(b"id")
            key = headers.get(b"key")
            if ours:
                kind = kind or headers.get(b"type")
                shown = _shown(headers.get(b"time"))
            elif isinstance(stamped := headers.get(STAMP), int) and 0 < stamped < latest + DAY_MS:
                time, shown = stamped, time_text(stamped)
        if shown is None and not ours and received.timestamp is not None:
            time, shown = _told(received.timestamp, latest)
            left = SECOND_MS - 1 if time % SECOND_MS == 0 else 0  # it may be any moment of that second
        now = time if earliest <= time <= latest else max(min(time, latest), earliest)
        if shown is None and now != time:
            shown = time_text(time)
        member, data = self._data(received, delivery.body, ours=ours)
        position = received.offset + 1
        event = self._mint.event(
            now,
            delivery.key.decode(),
            data,
            _text(name, "message_id") if name else f"{epoch}-{position}",
            _text(kind, "type") if kind else None,
            None if key is None or key == b"" else _text(key, "key"),
            time=shown,
            member=member,
        )
        event.position = position
        if received.minted or not name:
            event.given_id = None
        if received.expiration is not None:
            event.expires = time + left + _expiration(received.expiration)
        return event

    def _data(self, properties: Properties, body: bytes, *, ours: bool) -> tuple[bytes, bytes | msgspec.Raw]:
        """Return the member and the JSON value of a body."""
        kind = properties.content_type
        if kind == JSON and body.isascii() and (ours or properties.content_encoding is None):
            try:  # the usual case; checked also if a replica published it
                return DATA, _VALUE.decode(body)
            except (msgspec.DecodeError, RecursionError) as problem:
                raise NoEvent(f"its body is no JSON: {problem}") from None
        if properties.content_encoding not in (None, b"", b"utf-8", b"UTF-8", b"identity"):
            kind = BINARY  # compressed: passed on as it is
        try:
            return payload(content_type(kind), body)
        except Problem:
            if kind is not None and kind.startswith(b"application/"):
                raise
            # A text with a charset nobody knows, or that it does not have.
            return payload(content_type(BINARY), body)


def _shown(time: Any) -> bytes | None:
    """Return the time that a replica wrote beside that of the log."""
    if time is None or (isinstance(time, bytes) and _TIME.fullmatch(time)):
        return time
    raise NoEvent("its time is none")


def _told(timestamp: int, latest: int) -> tuple[int, bytes | None]:
    """Return a producer's timestamp (seconds; some write milliseconds) as ms and as readers see it."""
    time = timestamp * 1000 if timestamp < 100_000_000_000 else timestamp
    if not 0 <= time < 253_402_300_800_000:  # beyond the year 9999: no time at all
        return latest, None
    return time, time_text(time)


def _text(value: Any, what: str) -> str:
    """Return a property or header that must be text."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise NoEvent(f"its {what} is no text")


def _expiration(text: bytes) -> int:
    """Return a time to live in ms."""
    if not _NUMBER.fullmatch(text):
        raise NoEvent("its expiration is no number of milliseconds")
    return max(1, int(text))
