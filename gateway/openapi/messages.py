"""The messages of WebSockets and streams: operations, what answers them, and what is told. Pure."""

from __future__ import annotations

from typing import Final

from fanout import closing
from gateway.openapi.events import SCHEMAS, START
from gateway.openapi.parts import (
    ANYTHING,
    COUNT,
    TEXT,
    TIME,
    Json,
    listed,
    number,
    one_of,
    optional,
    ref,
    shape,
    taken,
)
from gateway.openapi.schemas import ID, KEY, TTL, TYPE
from gateway.settings import Settings

_REF: Final[Json] = {"description": "Any JSON; it comes back in the answer."}
_REASONS: Final = [
    each.name for each in vars(closing).values() if isinstance(each, closing.CloseReason) and each.reconnect
]
_END: Final[dict[str, Json]] = {
    "reason": {"type": "string", "enum": _REASONS},
    "detail": TEXT,
    "cursor": ref("Cursor"),
    "after_ms": {**COUNT, "description": "Milliseconds to wait before coming back."},
    "url": {**TEXT, "description": "Where to go on; only if the reason is `moved`."},
    "hop": {**COUNT, "description": "What to say there."},
}
_ENDS: Final = "reason detail cursor after_ms"
_WELCOME: Final[dict[str, Json]] = {
    "connection": TEXT,
    "cursor": ref("Cursor"),
    "expires": {**TIME, "description": "When the token is over; if it ever is."},
}
_GAP: Final = SCHEMAS["Gap"]["properties"]


def operations_of(settings: Settings) -> dict[str, tuple[Json, str, str]]:
    """Return what a client can say on a WebSocket: its schema, what it does, and what answers it."""
    topics: dict[str, Json] = {
        "topics": optional(listed(ref("Pattern"), 1, settings.max_topics)),
        "topic": optional(ref("Pattern")),
    }
    event: dict[str, Json] = {
        "topic": ref("Topic"),
        "data": ANYTHING,
        "id": optional(ID),
        "type": optional(TYPE),
        "key": optional(KEY),
        "ttl": optional(TTL),
    }
    cursor: Json = {"type": "string", "default": "latest", "description": START}
    return {
        "subscribe": (
            {
                **taken("op", op={"const": "subscribe"}, ref=_REF, **topics, cursor=cursor),
                "anyOf": [{"required": ["topics"]}, {"required": ["topic"]}],
            },
            "Add patterns, from a cursor on",
            "subscribed",
        ),
        "unsubscribe": (
            {
                **taken("op", op={"const": "unsubscribe"}, ref=_REF, **topics),
                "anyOf": [{"required": ["topics"]}, {"required": ["topic"]}],
            },
            "Take patterns away",
            "unsubscribed",
        ),
        "publish": (
            taken("op topic", op={"const": "publish"}, ref=_REF, **event),
            "Publish one event",
            "published",
        ),
        "ack": (
            taken("op cursor", op={"const": "ack"}, ref=_REF, cursor=ref("Cursor")),
            "Have a cursor remembered for the durable subscription",
            "acked",
        ),
        "auth": (
            taken("op token", op={"const": "auth"}, ref=_REF, token=TEXT),
            "Go on by a newer token of the same subject",
            "authorized",
        ),
        "ping": (taken("op", op={"const": "ping"}, ref=_REF), "Ask for a sign of life", "pong"),
    }


def _control(name: str, required: str = "", /, **members: Json) -> Json:
    """Return the schema of a control message."""
    return shape(f"control {required}".strip(), control={"const": name}, **members)


_TOPICS: Final = listed(ref("Pattern"), 1)
ANSWERS: Final[dict[str, tuple[Json, str]]] = {
    "subscribed": (
        _control("subscribed", "topics cursor", ref=_REF, topics=_TOPICS, cursor=ref("Cursor")),
        "The patterns are added; they begin at the cursor",
    ),
    "unsubscribed": (
        _control("unsubscribed", "topics", ref=_REF, topics=_TOPICS),
        "The patterns are taken away",
    ),
    "published": (
        _control(
            "published",
            "accepted duplicates cursor",
            ref=_REF,
            accepted=COUNT,
            duplicates=COUNT,
            cursor=ref("Cursor"),
        ),
        "The event is durable",
    ),
    "acked": (_control("acked", "cursor", ref=_REF, cursor=ref("Cursor")), "The cursor is remembered"),
    "authorized": (
        _control("authorized", ref=_REF, expires=TIME),
        "The connection goes on, until the newer token is over",
    ),
    "pong": (_control("pong", ref=_REF), "The answer to `ping`"),
    "error": (
        _control(
            "error",
            "status title detail",
            ref=_REF,
            status={"type": "integer", "minimum": 400, "maximum": 599},
            title=TEXT,
            detail=TEXT,
            retry_after=number(0, 86_400, "Seconds after which trying again makes sense."),
        ),
        "An operation was refused; nothing has changed",
    ),
}
"""What answers an operation: its schema, and what it says."""

TOLD: Final[dict[str, tuple[Json, str]]] = {
    "welcome": (
        _control("welcome", "connection cursor", **_WELCOME),
        "The first message: the name of the connection, and where it begins",
    ),
    "heartbeat": (
        _control("heartbeat", "cursor", cursor=ref("Cursor")),
        "The log went on without an event for this client",
    ),
    "gap": (
        _control("gap", "reason from to", **_GAP),
        "Everything behind `from`, up to and including `to`, is skipped",
    ),
    "expiring": (_control("expiring", "expires", expires=TIME), "The token will soon be over"),
    "reconnect": (_control("reconnect", _ENDS, **_END), "The gateway ends the connection; come back"),
}
"""What is told on WebSockets and in streams of lines: its schema, and what it says."""

BLOCKS: Final[dict[str, tuple[Json, str, str]]] = {
    "sseGap": (ref("Gap"), "sluice.gap", "A gap; its `id:` is `to`"),
    "sseReconnect": (shape(_ENDS, **_END), "sluice.reconnect", "The gateway ends the stream; come back"),
    "sseWelcome": (
        shape("connection cursor expires", **_WELCOME),
        "sluice.welcome",
        "The name of the connection; only if the token will be over",
    ),
    "sseExpiring": (shape("expires", expires=TIME), "sluice.expiring", "The token will soon be over"),
    "sseError": (
        shape("reason detail", reason=one_of("expired", "revoked"), detail=TEXT),
        "sluice.error",
        "The gateway ends the stream: the token is over, or was revoked",
    ),
}
"""The `data:` of event streams that is no event, with its `event:`, and what it says."""
