"""
The AsyncAPI document: what WebSockets and streams carry, which OpenAPI cannot say.

There is a channel for each transport that stays open; all have one address, and the head of the request says
which it is. With a broker there is one for each exchange as well. The document speaks of the gateway: it
*sends* events, and *receives* operations.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from gateway.formats import LINES
from gateway.openapi import exchanges
from gateway.openapi.events import SCHEMAS, subscription
from gateway.openapi.messages import ANSWERS, BLOCKS, TOLD, operations_of
from gateway.openapi.parts import JSON, Json, ref
from gateway.settings import Settings

ASYNCAPI: Final = "3.0.0"
ADDRESS: Final = "/v1/events"


def describe(settings: Settings) -> Json:
    """Return the AsyncAPI document of a gateway."""
    operations = operations_of(settings)
    broker = exchanges.describe(settings)
    messages = {
        "event": _message(ref("Event"), "An event"),
        **{name: _message(schema, summary) for name, (schema, summary, _) in operations.items()},
        **{name: _message(schema, summary) for name, (schema, summary) in {**ANSWERS, **TOLD}.items()},
        **{
            name: {**_message(schema, summary), "description": f"`event: {field}`"}
            for name, (schema, field, summary) in BLOCKS.items()
        },
        **broker["messages"],
    }
    carried = {
        "webSocket": ["event", *TOLD, *ANSWERS, *operations],
        "eventStream": ["event", *BLOCKS],
        "lines": ["event", *TOLD],
    }
    sent = {
        "webSocket": ["event", *TOLD],
        "eventStream": carried["eventStream"],
        "lines": carried["lines"],
    }
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "Sluicegate",
            "version": version("sluicegate"),
            "description": "What WebSockets and streams carry. The rest of the API is in `/openapi.json`.",
        },
        "defaultContentType": JSON,
        "servers": {
            protocol: {
                "host": "{host}",
                "protocol": protocol,
                "variables": {"host": {"default": f"127.0.0.1:{settings.port}"}},
            }
            for protocol in ("ws", "http")
        }
        | broker["servers"],
        "channels": {
            **{name: _channel(name, messages, settings) for name, messages in carried.items()},
            **broker["channels"],
        },
        "operations": {
            **{f"send-{name}": _sending(name, messages) for name, messages in sent.items()},
            **{name: _receiving(name, reply) for name, (_, _, reply) in operations.items()},
            **broker["operations"],
        },
        "components": {
            "messages": messages,
            "schemas": {name: SCHEMAS[name] for name in ("Cursor", "Topic", "Pattern", "Event", "Gap")},
        },
    }


def _message(schema: Json, summary: str) -> Json:
    return {"summary": summary, "payload": schema}


def _channel(name: str, messages: list[str], settings: Settings) -> Json:
    """Return a channel: one transport of `ADDRESS`."""
    titles = {
        "webSocket": "WebSocket: `Upgrade: websocket`; each message is a text message",
        "eventStream": "Server-Sent Events: `Accept: text/event-stream`; each is the `data:` of a block",
        "lines": f"A stream of lines: `Accept: {LINES}`; each message is a line",
    }
    asked = [each for each in subscription(settings) if each["in"] == "query"]
    query = {
        "type": "object",
        "properties": {each["name"]: each["schema"] for each in asked},
        "required": [] if name == "webSocket" else ["topic"],
    }
    binding = {"ws": {"method": "GET", "query": query}} if name == "webSocket" else {}
    return {
        "address": ADDRESS,
        "title": titles[name],
        "servers": [{"$ref": f"#/servers/{'ws' if name == 'webSocket' else 'http'}"}],
        "messages": {each: {"$ref": f"#/components/messages/{each}"} for each in messages},
        **({"bindings": binding} if binding else {}),
    }


def _sending(channel: str, messages: list[str]) -> Json:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [_carried(channel, each) for each in messages],
    }


def _receiving(name: str, reply: str) -> Json:
    """Return an operation of a client's: the gateway receives it, and answers in turn."""
    channel = "webSocket"
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [_carried(channel, name)],
        "reply": {
            "channel": {"$ref": f"#/channels/{channel}"},
            "messages": [_carried(channel, reply), _carried(channel, "error")],
        },
    }


def _carried(channel: str, message: str) -> Json:
    return {"$ref": f"#/channels/{channel}/messages/{message}"}
