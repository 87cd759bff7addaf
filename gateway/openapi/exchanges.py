"""
Describes the exchanges of the broker: what is published there are events, and what is published here goes to
the first. Pure. Where the broker is, and who may speak to it, is nobody's business who asks for a document.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.mint import DEFAULT_TYPE, MAX_TEXT
from gateway.openapi.parts import ANYTHING, JSON, Json, text
from gateway.settings import Settings

_BINDING: Final = "0.3.0"
"""The version of AsyncAPI's AMQP bindings."""

_KEY: Final = {**text(1, MAX_TEXT), "type": ["string", "integer"], "description": "What the event is about."}
_PROPERTIES: Final = (
    "The routing key is the `topic`. Properties: `message_id` is the `id`, `type` the `type` "
    f"(`{DEFAULT_TYPE}` if there is none), `timestamp` the `time`, and "
    "`expiration`, in milliseconds, the `ttl`."
)

MESSAGES: Final[dict[str, Json]] = {
    "published": {
        "summary": "What a producer publishes; no header and no property is needed",
        "description": f"{_PROPERTIES} The `content_type` says whether the body is JSON, text, or base64 in "
        "the event; without one it is the first of these that it can be. What cannot be an event goes to the "
        "dead letters.",
        "headers": {"type": "object", "properties": {"key": _KEY}},
        "payload": ANYTHING,
    },
    "passedOn": {
        "summary": "An event that was published over HTTP or WebSocket",
        "description": f"{_PROPERTIES} An `id` or `type` that is too long for a property is in the header of "
        "that name. The body is the event's data; with the content type `application/octet-stream` it was "
        "base64.",
        "contentType": JSON,
        "headers": {
            "type": "object",
            "required": ["sluice"],
            "properties": {
                "key": text(1, MAX_TEXT, "What the event is about."),
                "id": text(1, MAX_TEXT),
                "type": text(1, MAX_TEXT),
                "time": {"type": "string", "format": "date-time"},
                "sluice": {"type": "string", "description": "For the replicas."},
            },
        },
        "payload": ANYTHING,
    },
}
"""The messages on exchanges, by the names that `_NAMES` gives them in a document."""

_NAMES: Final = {"published": "amqpPublished", "passedOn": "amqpEvent"}


def describe(settings: Settings) -> dict[str, Json]:
    """Return what a document has more with a broker: `servers`, `channels`, `operations` and `messages`."""
    if not settings.backbone:
        return {"servers": {}, "channels": {}, "operations": {}, "messages": {}}
    from gateway.backbone import bindings  # noqa: PLC0415  (nobody else pays for it)

    patterns: dict[str, list[str]] = {}
    for exchange, pattern in bindings(settings.exchanges):
        patterns.setdefault(exchange, []).append(pattern)
    own, *_ = patterns
    protocol = settings.backbone.partition("://")[0]
    channels = {
        f"exchange{number}": _channel(exchange, bound, protocol, own=exchange == own)
        for number, (exchange, bound) in enumerate(patterns.items(), 1)
    }
    operations = {
        f"receive-{name}": _operation("receive", name, "published", {"mandatory": True}) for name in channels
    }
    operations["send-exchange1"] = _operation("send", "exchange1", "passedOn", {"deliveryMode": 2})
    return {
        "servers": {
            protocol: {
                "host": "{broker}",
                "protocol": protocol,
                "variables": {"broker": {"description": "Ask whoever runs the broker."}},
            }
        },
        "channels": channels,
        "operations": operations,
        "messages": {_NAMES[name]: message for name, message in MESSAGES.items()},
    }


def _channel(exchange: str, patterns: list[str], protocol: str, *, own: bool) -> Json:
    """Return the channel of an exchange; of those that are not our `own` only the name is known."""
    kind: dict[str, Any] = {"type": "topic", "durable": True} if own else {}
    names = [_NAMES["published"], *([_NAMES["passedOn"]] if own else [])]
    return {
        "address": "{topic}",
        "title": f"The exchange `{exchange}` of the broker; the address is the routing key",
        "parameters": {
            "topic": {"description": f"A topic. Events are those that match {' or '.join(patterns)}."}
        },
        "servers": [{"$ref": f"#/servers/{protocol}"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": exchange, **kind},
                "bindingVersion": _BINDING,
            }
        },
    }


def _operation(action: str, channel: str, message: str, binding: Json) -> Json:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{_NAMES[message]}"}],
        "bindings": {"amqp": {**binding, "bindingVersion": _BINDING}},
    }
