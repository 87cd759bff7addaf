"""
What a subscriber asks for: one parser of `GET /v1/events` for all transports.

Everything is checked before anything is opened, so a bad request costs a refusal and nothing else.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, unique
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl

from fanout.connection import Overflow
from fanout.cursor import Start, parse_start
from fanout.errors import CursorError, TopicError
from fanout.topics import check_pattern
from gateway.members.replicas import MAX_KEY
from gateway.members.sticky import HOP
from gateway.problems import Problem

MAX_WAIT: Final = 60.0
MAX_LIMIT: Final = 1000
DEFAULT_LIMIT: Final = 100
MAX_PARAMETERS: Final = 1100
MAX_REMEMBERED: Final = 2048
"""Requests that are remembered …"""
MAX_REMEMBERED_BYTES: Final = 512
"""… each of at most this length."""

_HEADERS: Final = (b"upgrade", b"accept", b"last-event-id", b"if-none-match")
_NAMES: Final = ("topic", "cursor", "wait", "limit", "overflow", "consumer", "key", HOP)
_CONSUMER: Final = re.compile(r"[A-Za-z0-9._~:@-]{1,128}", re.ASCII)


@unique
class Transport(Enum):
    """How the events reach the client."""

    WEBSOCKET = "websocket"
    SSE = "sse"
    NDJSON = "ndjson"
    POLL = "poll"


@dataclass(frozen=True, slots=True)
class Request:
    """
    A subscriber's request.

    Attributes:
        transport: chosen by the request's headers.
        patterns: what it wants; may be empty on WebSocket, which can subscribe later.
        start: where it begins; None if it said nothing.
        overflow: what happens when it falls behind.
        consumer: the name under which the server remembers its acknowledged cursor.
        wait: seconds a poll may wait for an event.
        limit: events a poll may answer.
        conditional: whether it is a poll by `If-None-Match`, which is answered 304 when there is nothing new.
        key: by which the client belongs to a replica: what it gave, else its consumer's name.
        hop: the version of the view by which another replica sent it here; 0 if none did.
    """

    transport: Transport
    patterns: tuple[str, ...]
    start: Start | None
    overflow: Overflow
    consumer: str | None
    wait: float
    limit: int
    conditional: bool
    key: str | None = None
    hop: int = 0


def parse(query: bytes, headers: Mapping[bytes, bytes], max_topics: int) -> Request:
    """
    Read a request for events; short ones are remembered, because thousands of clients ask for the same.

    Args:
        query: the raw query string.
        headers: names in lower case, repeated ones joined by a comma.
        max_topics: the most patterns one subscription may have.

    Raises:
        Problem: 400 or 422, with a sentence that names the parameter.
    """
    asked = (query, *(headers.get(name, b"") for name in _HEADERS))
    if sum(map(len, asked)) <= MAX_REMEMBERED_BYTES:
        return _parse_remembered(asked, max_topics)
    return _parse(query, headers, max_topics)


@lru_cache(MAX_REMEMBERED)
def _parse_remembered(asked: tuple[bytes, ...], max_topics: int) -> Request:
    query, *values = asked
    return _parse(query, dict(zip(_HEADERS, values, strict=True)), max_topics)


def _parse(query: bytes, headers: Mapping[bytes, bytes], max_topics: int) -> Request:
    transport = choose_transport(headers)
    given = _parameters(query)
    patterns = check_patterns(given.pop("topic", []), max_topics)
    if not patterns and transport is not Transport.WEBSOCKET:
        raise Problem(422, "say what to subscribe to: ?topic=PATTERN, several if you like")
    single = {name: _only(name, values) for name, values in given.items()}
    cursor, conditional = _cursor(single.get("cursor"), headers)
    return Request(
        transport=transport,
        patterns=patterns,
        start=read_start(cursor) if cursor is not None else None,
        overflow=_overflow(single.get("overflow", "catchup")),
        consumer=_consumer(single.get("consumer")),
        wait=_number("wait", single.get("wait", "0"), MAX_WAIT),
        limit=int(_number("limit", single.get("limit", str(DEFAULT_LIMIT)), MAX_LIMIT, least=1, whole=True)),
        conditional=conditional and transport is Transport.POLL,
        key=_key(single.get("key"), single.get("consumer")),
        hop=_hop(single.get(HOP)),
    )


def choose_transport(headers: Mapping[bytes, bytes]) -> Transport:
    """
    Choose the transport as HTTP means it: an upgrade, else the stream type the client prefers to JSON, else
    a poll.
    """
    if headers.get(b"upgrade", b"").strip().lower() == b"websocket":
        return Transport.WEBSOCKET
    accept = headers.get(b"accept", b"").lower()
    if b"text/event-stream" not in accept and b"ndjson" not in accept:
        return Transport.POLL
    quality = _qualities(accept.decode("latin-1"))
    best = max(
        (quality.get("text/event-stream", 0.0), Transport.SSE),
        (quality.get("application/x-ndjson", 0.0), Transport.NDJSON),
        (quality.get("application/json", 0.0), Transport.POLL),
        key=lambda option: option[0],
    )
    return best[1] if best[0] > 0 else Transport.POLL


def check_patterns(patterns: list[str], max_topics: int) -> tuple[str, ...]:
    """
    Return the patterns, each once, in the order given.

    Raises:
        Problem: 422: one is no pattern, or there are too many.
    """
    if len(patterns) > max_topics:
        raise Problem(422, f"a subscription may have {max_topics} topics, not {len(patterns)}")
    try:
        return tuple(dict.fromkeys(map(check_pattern, patterns)))
    except TopicError as error:
        raise Problem(422, str(error)) from None


def read_start(text: str) -> Start:
    """
    Return the start that `text` names.

    Raises:
        Problem: 400: it names none.
    """
    try:
        return parse_start(text)
    except CursorError as error:
        raise Problem(400, str(error)) from None


def _parameters(query: bytes) -> dict[str, list[str]]:
    """Split the query; names that begin with an underscore are left out, cache busters use them."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
        )
    except UnicodeDecodeError:
        raise Problem(400, "the query is not percent-encoded UTF-8") from None
    except ValueError:
        raise Problem(422, f"the query has more than {MAX_PARAMETERS} parameters") from None
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if name.startswith("_"):
            continue
        known = {"last_event_id": "cursor", "lastEventId": "cursor"}.get(name, name)
        if known not in _NAMES:
            close = difflib.get_close_matches(name[:40], _NAMES, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(_NAMES)}"
            raise Problem(422, f"unknown parameter {name[:40]!a}{hint}")
        given.setdefault(known, []).append(value)
    return given


def _only(name: str, values: list[str]) -> str:
    if len(values) > 1:
        raise Problem(422, f"{name} may be given once, not {len(values)} times")
    return values[0]


def _cursor(parameter: str | None, headers: Mapping[bytes, bytes]) -> tuple[str | None, bool]:
    """
    Return the cursor given, and whether it came as `If-None-Match`.

    A header beats the parameter: an EventSource that reconnects repeats its URL and adds where it has come
    to.
    """
    last = headers.get(b"last-event-id", b"").decode("utf-8", "replace")
    if last:
        return last, False
    match = headers.get(b"if-none-match", b"").decode("utf-8", "replace").strip()
    if match and match != "*":
        return match.removeprefix("W/").strip('"'), True  # RFC 9110 13.1.2: the comparison is weak
    return parameter, False


def _overflow(text: str) -> Overflow:
    try:
        return Overflow(text)
    except ValueError:
        raise Problem(422, f"overflow is catchup, latest or disconnect, not {text[:40]!a}") from None


def _consumer(text: str | None) -> str | None:
    if text is not None and not _CONSUMER.fullmatch(text):
        raise Problem(422, "a consumer's name has 1 to 128 letters, digits and . _ ~ : @ -")
    return text


def _key(given: str | None, consumer: str | None) -> str | None:
    if given is not None and not 1 <= len(given) <= MAX_KEY:
        raise Problem(422, f"a key has 1 to {MAX_KEY} characters")
    return given if given is not None else consumer


def _hop(text: str | None) -> int:
    if text is not None and not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        raise Problem(422, f"{HOP} is a number, as a replica told it")
    return 0 if text is None else int(text)


def _number(name: str, text: str, most: float, *, least: float = 0, whole: bool = False) -> float:
    pattern = r"[0-9]{1,9}" if whole else r"[0-9]{1,9}(\.[0-9]{1,9})?"
    if not re.fullmatch(pattern, text, re.ASCII) or not least <= float(text) <= most:
        kind = "a whole number" if whole else "a number of seconds"
        raise Problem(422, f"{name} is {kind} from {least:g} to {most:g}, not {text[:40]!a}")
    return float(text)


def _qualities(accept: str) -> dict[str, float]:
    """
    Return the media types of an Accept header with their quality (RFC 9110 12.5.1); one that cannot be read
    counts 0.
    """
    qualities: dict[str, float] = {}
    for part in accept.split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                quality = float(parameter[2:]) if re.fullmatch(r"[01](\.[0-9]{0,3})?", parameter[2:]) else 0.0
        qualities["application/x-ndjson" if kind == "application/ndjson" else kind] = quality
    return qualities
