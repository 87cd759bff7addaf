"""The schemas that both documents share: problems, cursors, topics, events. Pure."""

from __future__ import annotations

from typing import Final

from fanout.topics import MAX_TOPIC_BYTES
from gateway.mint import DEFAULT_TYPE, MAX_TEXT, MAX_TTL, OWN
from gateway.openapi.parts import ANYTHING, TEXT, TIME, Json, one_of, optional, ref, shape, taken, text

# As the code has it: what would break a log line, a terminal or an SSE field. Lone surrogates are
# no characters to a JSON schema.
_CONTROL: Final = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
_WORD: Final = rf"[^.*#{_CONTROL}]+"
_WORD_OR_WILDCARD: Final = rf"({_WORD}|\*|#)"

TOPIC: Final[Json] = {
    **text(1, MAX_TOPIC_BYTES, f"Words joined by dots; at most {MAX_TOPIC_BYTES} bytes of UTF-8."),
    "pattern": rf"^{_WORD}(\.{_WORD})*$",
    "examples": ["orders.42"],
}
PATTERN: Final[Json] = {
    **text(1, MAX_TOPIC_BYTES, "A topic in which a word may be `*`, exactly one word, or `#`, any number."),
    "pattern": rf"^{_WORD_OR_WILDCARD}(\.{_WORD_OR_WILDCARD})*$",
    "examples": ["orders.*", "orders.#"],
}

_NAME: Final[Json] = {**text(1, MAX_TEXT), "pattern": rf"^[^{_CONTROL}]*$"}
ID: Final[Json] = {**_NAME, "description": "The same again soon is a duplicate, and not stored."}
TYPE: Final[Json] = {
    **_NAME,
    "pattern": rf"^(?!{OWN.replace('.', '[.]')})[^{_CONTROL}]*$",
    "description": f"`{DEFAULT_TYPE}` if left out. Those that begin with `{OWN}` are the gateway's own.",
}
KEY: Final[Json] = {**_NAME, "description": "What the event is about."}
TTL: Final[Json] = {
    "type": "number",
    "exclusiveMinimum": 0,
    "maximum": MAX_TTL,
    "description": "Seconds after which the event is not delivered any more.",
}


def _cloud_event() -> Json:
    """Return CloudEvents' JSON format, as much of it as is looked at; other attributes are allowed."""
    attribute = text(1, 2048)
    return {
        **shape(
            "specversion id source type",
            specversion=one_of("1.0"),
            id=attribute,
            source={**attribute, "format": "uri-reference"},
            type=_NAME,
            subject=optional(TEXT),
            time=optional(TIME),
            datacontenttype=optional(TEXT),
            data=ANYTHING,
            data_base64=optional({"type": "string", "contentEncoding": "base64"}),
            topic={**optional(TEXT), "description": "Where to publish, unless the path says it."},
            partitionkey=optional(KEY),
        ),
        # What is null is not there (JSON format, section 2.2).
        "not": {"required": ["data", "data_base64"], "properties": {"data_base64": {"type": "string"}}},
        "description": "The topic is the extension `topic`, else `subject`, else `type`.",
    }


EVENTS: Final[dict[str, Json]] = {
    "Cursor": {
        "type": "string",
        "minLength": 1,
        "description": "Names a place in the log. Opaque: keep it and hand it in.",
        "examples": ["gjj573-1-6750"],
    },
    "Topic": TOPIC,
    "Pattern": PATTERN,
    "Event": {
        **shape(
            "cursor topic id type time",
            cursor=ref("Cursor"),
            topic=ref("Topic"),
            id=TEXT,
            type=TEXT,
            time=TIME,
            key=KEY,
            data=ANYTHING,
            data_base64={"type": "string", "contentEncoding": "base64"},
        ),
        "oneOf": [{"required": ["data"]}, {"required": ["data_base64"]}],
        "description": "An event, as it looks on every transport. Members may be added.",
    },
    "Gap": {
        **shape(
            "reason from to",
            reason=one_of("expired", "reset", "overflow", "history"),
            **{"from": ref("Cursor"), "to": ref("Cursor")},
        ),
        "description": "Everything behind `from`, up to and including `to`, is skipped.",
    },
    "Receipt": {
        **shape(
            "accepted duplicates cursor",
            accepted={"type": "integer", "minimum": 0},
            duplicates={"type": "integer", "minimum": 0},
            cursor=ref("Cursor"),
        ),
        "description": "What became of a publish: every event of it is durable, or known already.",
    },
}
"""Schemas of events, for both documents."""

PUBLISHING: Final[dict[str, Json]] = {
    "Problem": {
        **shape(
            "type title status detail",
            type={"const": "about:blank"},
            title=TEXT,
            status={"type": "integer", "minimum": 400, "maximum": 599},
            detail={**TEXT, "description": "What is wrong, in a sentence."},
            index={"type": "integer", "minimum": 0, "description": "The bad event of several."},
            pointer={**TEXT, "format": "json-pointer", "description": "The member that is wrong."},
        ),
        "description": "A refusal (RFC 9457).",
    },
    "NewEvent": taken(
        "topic",
        topic=ref("Topic"),
        data=ANYTHING,
        id=optional(ID),
        type=optional(TYPE),
        key=optional(KEY),
        ttl=optional(TTL),
    ),
    "CloudEvent": _cloud_event(),
}
"""Schemas of what is published, and of refusals."""
