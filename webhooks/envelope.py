"""
The envelope: what an attempt sends, body and headers, in the form that the endpoint wants.

Strategy: most of a request is the same for many. The body, and what the headers say of the event, are made
once for an event and form; the endpoint's own lines once for an endpoint. An attempt adds its time and its
signature, and joins the three.

Sources: Standard Webhooks 1.0; CloudEvents 1.0 with its JSON format and HTTP protocol binding.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, unique
from typing import Any, Final
from urllib.parse import quote

import msgspec

from fanout.frames import event_json
from webhooks.filters import read
from webhooks.operators import MISSING
from webhooks.signature import check_id

SOURCE: Final = "/v1/events"
"""CloudEvents' `source` of an event that was not published with one: where it can be read."""

JSON: Final = b"application/json"
BINARY: Final = b"application/octet-stream"
CLOUD_EVENT: Final = b"application/cloudevents+json"

# What CloudEvents' HTTP binding (section 3.1.3.2) leaves as it is: printable ASCII but space, `"` and `%`.
_PLAIN: Final = "!#$&'()*+,/:;<=>?@[\\]^`{|}~"
# The characters of a URI reference (RFC 3986).
_REFERENCE: Final = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", re.ASCII)
_ABSENT: Final = msgspec.Raw(b"")
_encode = msgspec.json.encode


@unique
class Form(Enum):
    """The forms in which an event is sent."""

    EVENT = "event"
    """Its JSON, as on every other transport."""
    CLOUDEVENTS = "cloudevents"
    """A CloudEvent in structured mode: attributes and data in the body."""
    CLOUDEVENTS_BINARY = "cloudevents-binary"
    """A CloudEvent in binary mode: attributes in the headers, the data in the body."""
    RAW = "raw"
    """The data alone."""


@dataclass(frozen=True, slots=True)
class Content:
    """
    What all attempts for one event in one form have in common.

    Attributes:
        lines: of the request's head, each with its line break.
        body: what is sent, and signed.
    """

    lines: bytes
    body: bytes


class _Members(msgspec.Struct, gc=False):
    """An event's JSON in its parts; the cursor is not among them."""

    topic: str
    id: str
    type: str
    time: str
    key: str | None = None
    data: msgspec.Raw = _ABSENT
    data_base64: str | None = None


_MEMBERS: Final = msgspec.json.Decoder(_Members)


class Message:
    """
    One event, to be sent to any number of endpoints.

    Args:
        id: the value of `webhook-id`, the same for every attempt; see `message_id`.
        cursor: the event's.
        event: its JSON as `fanout.event.Event.body` has it.

    Raises:
        ValueError: the id cannot be one.
    """

    __slots__ = ("_contents", "_data", "_members", "cursor", "event", "id")

    def __init__(self, id: str, cursor: str, event: bytes) -> None:
        self.id = check_id(id)
        self.cursor = cursor
        self.event = event
        self._contents: dict[Form, Content] = {}
        self._members: _Members | None = None
        self._data: tuple[Any] | None = None

    @property
    def topic(self) -> str:
        return self._parts().topic

    @property
    def type(self) -> str:
        return self._parts().type

    @property
    def is_own(self) -> bool:
        """Whether it tells about webhooks; see `webhooks.announcing`."""
        return self.topic.startswith("$webhooks.")

    @property
    def event_id(self) -> str:
        return self._parts().id

    @property
    def data(self) -> Any:
        """Its data as filters read it, decoded once."""
        if self._data is None:
            parts = self._parts()
            self._data = (MISSING if parts.data is _ABSENT else read(bytes(parts.data)),)
        return self._data[0]

    def content(self, form: Form) -> Content:
        """Return what is sent of it in a form, made once."""
        content = self._contents.get(form)
        if content is None:
            if form is Form.EVENT:
                content = self._content(JSON, event_json(self.cursor, self.event))
            else:
                content = _MAKERS[form](self, self._parts())
            self._contents[form] = content
        return content

    def _parts(self) -> _Members:
        if self._members is None:
            self._members = _MEMBERS.decode(b"{%b}" % self.event)
        return self._members

    def _content(self, type: bytes, body: bytes, lines: bytes = b"") -> Content:
        head = b"Content-Type: %b\r\n%bwebhook-id: %b\r\n" % (type, lines, self.id.encode())
        return Content(head, body)

    def _structured(self, parts: _Members) -> Content:
        attributes = self._attributes(parts)
        attributes["datacontenttype"] = _data_type(parts).decode()
        members = b",".join(b'"%b":%b' % (name.encode(), _encode(text)) for name, text in attributes.items())
        if parts.data_base64 is None:
            body = b'{%b,"data":%b}' % (members, bytes(parts.data))
        else:
            body = b'{%b,"data_base64":%b}' % (members, _encode(parts.data_base64))
        return self._content(CLOUD_EVENT, body)

    def _binary(self, parts: _Members) -> Content:
        lines = "".join(
            f"ce-{name}: {quote(text, safe=_PLAIN)}\r\n" for name, text in self._attributes(parts).items()
        )
        return self._content(_data_type(parts), _data(parts), lines.encode("ascii"))

    def _raw(self, parts: _Members) -> Content:
        return self._content(_data_type(parts), _data(parts))

    def _attributes(self, parts: _Members) -> dict[str, str]:
        """Return the attributes that it has as a CloudEvent, but for that of its data."""
        source, id = _origin(parts.id)
        attributes = {
            "specversion": "1.0",
            "id": id,
            "source": source,
            "type": parts.type,
            "subject": parts.topic,
            "time": parts.time,
            "topic": parts.topic,
            "cursor": self.cursor,
        }
        if parts.key is not None:
            attributes["partitionkey"] = parts.key
        return attributes


_MAKERS: Final[dict[Form, Callable[[Message, _Members], Content]]] = {
    Form.CLOUDEVENTS: Message._structured,  # noqa: SLF001  # the table belongs to the class
    Form.CLOUDEVENTS_BINARY: Message._binary,  # noqa: SLF001
    Form.RAW: Message._raw,  # noqa: SLF001
}


def message_id(cursor: str) -> str:
    """
    Return the `webhook-id` of the event at a cursor.

    It is made of nothing else: whoever finds the event in the log again, after whatever accident, gives it
    the same id, by which receivers know that they have it.
    """
    return f"msg_{cursor}"


def head(own: bytes, content: Content, timestamp: int, signature: bytes) -> bytes:
    """
    Return the lines of an attempt's head: all but those that the connection needs.

    Args:
        own: those of the endpoint; see `webhooks.headers.own_lines`.
        content: what is sent.
        timestamp: seconds since the Unix epoch.
        signature: over it; see `webhooks.signature`.
    """
    return b"%b%bwebhook-timestamp: %d\r\nwebhook-signature: %b\r\n" % (
        own,
        content.lines,
        timestamp,
        signature,
    )


def _origin(id: str) -> tuple[str, str]:
    """
    Return source and id as a CloudEvent has them.

    An event that was published as a CloudEvent has both in its id, with a space between
    (`gateway.cloudevents`); it goes out as it came in.
    """
    source, space, rest = id.partition(" ")
    if space and rest and _REFERENCE.fullmatch(source):
        return source, rest
    return SOURCE, id


def _data_type(parts: _Members) -> bytes:
    return JSON if parts.data_base64 is None else BINARY


def _data(parts: _Members) -> bytes:
    """Return the data as bytes: JSON, or what was published as something else."""
    return bytes(parts.data) if parts.data_base64 is None else b64decode(parts.data_base64)
