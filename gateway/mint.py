"""
The mint: makes an event of what a producer said, or refuses it. Only here is an event's JSON written.

Strategy: the data is spliced in as it came; the parts that most events share (topic, type, time) are checked
and encoded once and remembered. All remembering is bounded: a producer who never repeats himself costs time.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final
from zlib import crc32

import msgspec

from fanout.cursor import EPOCH_ALPHABET
from fanout.errors import TopicError
from fanout.event import Event, tag_of
from fanout.topics import check_topic, shown_topic
from gateway.problems import Problem

DEFAULT_TYPE: Final = "message"
OWN: Final = "sluice."
"""How the types of events begin that only the gateway makes: what they say is so."""
MAX_TEXT: Final = 255
"""Characters that an id, a type or a key may have."""
MAX_TTL: Final = 10 * 365 * 86_400.0
"""Seconds: ten years. Whoever wants longer wants no limit."""
MAX_TOPICS: Final = 16_384
"""Topics whose encoded form is remembered: at most about 10 MB."""
MAX_TYPES: Final = 1_024
"""Types whose encoded form is remembered."""

DATA: Final = b'"data":'
DATA_BASE64: Final = b'"data_base64":'

# What would break a log line, a terminal or an SSE field, or that UTF-8 cannot carry. Topics refuse the same.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_encode = msgspec.json.encode


def random_prefix() -> str:
    """Return the beginning of the ids that one process gives: 50 random bits, so it has it for itself."""
    return "".join(secrets.choice(EPOCH_ALPHABET) for _ in range(10))


class Mint:
    """
    Makes events.

    Args:
        max_event_bytes: how long an event's JSON may be.
        prefix: the beginning of every id it gives; see `random_prefix`.
        own: whether it makes events of the gateway's own; only they may have a type that begins with `OWN`.

    Attributes:
        takes: says whether the log takes events of a topic.
    """

    def __init__(self, max_event_bytes: int, prefix: str, *, own: bool = False) -> None:
        self.max_event_bytes = max_event_bytes
        self._own = own
        self._prefix = prefix.encode()
        self.takes: Callable[[str], bool] = lambda _: True
        self._count = 0
        self._topics: dict[str, bytes] = {}
        self._types: dict[str, bytes] = {}
        self._now = -1  # the millisecond whose text is `_time`
        self._time = b""

    def event(
        self,
        now: int,
        topic: str,
        data: bytes | msgspec.Raw,
        id: str | None = None,
        type: str | None = None,
        key: str | None = None,
        ttl: float | None = None,
        *,
        time: bytes | None = None,
        member: bytes = DATA,
    ) -> Event:
        """
        Return a new event, with an id of its own unless `id` is given.

        Args:
            now: milliseconds since the Unix epoch; the caller sees to it that they never decrease.
            topic: checked here, like all the texts that follow.
            data: one JSON value in UTF-8; that it is one is for the caller to know.
            id: makes publishing idempotent.
            type: `message` unless given.
            key: the entity the event is about.
            ttl: seconds for which it is worth delivering.
            time: the `time` that readers see, RFC 3339 text, if it is not `now`.
            member: `DATA_BASE64` if `data` is a JSON string of base64.

        Raises:
            Problem: 422 for what breaks a rule, 413 for an event too long; `pointer` says which member.
        """
        if id is None:
            self._count += 1
            name = b"%b%x" % (self._prefix, self._count)
            tag = crc32(name) & 0xFFFF or 1  # as `tag_of`, without decoding
            name = b'"%b"' % name
        else:
            name = _encode(_text(id, "id"))
            tag = tag_of(id)
        kind = DEFAULT_TYPE if type is None else type
        body = b"".join(
            (
                self._topics.get(topic) or self._topic(topic),
                name,
                self._types.get(kind) or self._type(kind),
                time or (self._time if now == self._now else self._tell(now)),
                b'",' if key is None else b'","key":%b,' % _encode(_text(key, "key")),
                member,
                data,
            )
        )
        if 10 in body or 13 in body:  # LF or CR, by their numbers: five times as fast as by their bytes
            body = _on_one_line(body)
        if len(body) > self.max_event_bytes:
            size = f"{len(body)} bytes, more than the {self.max_event_bytes} an event may have"
            raise Problem(413, f"its JSON has {size}")
        return Event(topic, body, now, tag, key, 0 if ttl is None else now + _milliseconds(ttl), id)

    def _topic(self, topic: str) -> bytes:
        """Check a topic and remember the part of an event's JSON that ends before the id."""
        try:
            check_topic(topic)
        except TopicError as error:
            raise Problem(422, str(error), members={"pointer": "/topic"}) from None
        if not self.takes(topic):
            detail = f"the topic {topic!a} is none of those that this gateway takes (setting: exchanges)"
            raise Problem(422, detail, members={"pointer": "/topic"})
        if len(self._topics) >= MAX_TOPICS:
            self._topics.clear()
        part = self._topics[topic] = b'"topic":%b,"id":' % _encode(shown_topic(topic))
        return part

    def _type(self, type: str) -> bytes:
        """Check a type and remember the part of an event's JSON between id and time."""
        _text(type, "type")
        if type.startswith(OWN) and not self._own:
            detail = f"types that begin with {OWN} are the gateway's own"
            raise Problem(422, detail, members={"pointer": "/type"})
        if len(self._types) >= MAX_TYPES:
            self._types.clear()
        part = self._types[type] = b',"type":%b,"time":"' % _encode(type)
        return part

    def _tell(self, now: int) -> bytes:
        """Return `now` as text and remember it: most events share their millisecond with others."""
        self._now = now
        self._time = time_text(now)
        return self._time


def now_ms() -> int:
    """Return milliseconds since the Unix epoch."""
    return int(time.time() * 1000)


def time_text(time_ms: int) -> bytes:
    """Return milliseconds since the Unix epoch as RFC 3339 text in UTC."""
    seconds, milliseconds = divmod(time_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z".encode()


def _text(text: str, member: str) -> str:
    """Return an id, type or key if it may be one."""
    if not 0 < len(text) <= MAX_TEXT:
        detail = f"the {member} has {len(text)} characters: it must have 1 to {MAX_TEXT}"
    elif (control := _CONTROL.search(text)) is not None:
        detail = f"the {member} has the character U+{ord(control[0]):04X}"
    else:
        return text
    raise Problem(422, detail, members={"pointer": f"/{member}"})


def _milliseconds(ttl: float) -> int:
    """Return a time to live as milliseconds, at least 1."""
    if not 0 < ttl <= MAX_TTL:  # not a number is refused as well
        detail = f"the ttl is {ttl:g}: it must be more than 0 and at most {MAX_TTL:.0f} seconds"
        raise Problem(422, detail, members={"pointer": "/ttl"})
    return max(1, round(ttl * 1000))


def _on_one_line(body: bytes) -> bytes:
    """Return the members without the line breaks (and other white space) of pretty-printed data."""
    try:
        return msgspec.json.format(b"{%b}" % body, indent=-1)[1:-1]
    except RecursionError:
        raise Problem(422, "the JSON is nested too deeply") from None
