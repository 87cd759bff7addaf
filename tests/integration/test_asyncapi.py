"""What comes on WebSockets and in streams is of the form that `/asyncapi.json` describes."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator
from websockets.asyncio.client import connect

from gateway.openapi import asyncapi
from gateway.openapi.parts import Json
from gateway.settings import Settings
from tests.support.clients import DEADLINE, Address, Message, Topics, open_subscriber, publish

pytestmark = pytest.mark.integration

DOCUMENT: Final = asyncapi.describe(Settings(data="memory:"))
OTHER_LOG: Final = "zzzzzz-1-0000"


def validator(name: str) -> Draft202012Validator:
    """Return what checks a message against its description, and that it has no other members."""
    payload = dict(DOCUMENT["components"]["messages"][name]["payload"])
    if "$ref" in payload:
        payload = dict(DOCUMENT["components"]["schemas"][payload["$ref"].rpartition("/")[2]])
    schema: Json = {**payload, "additionalProperties": False, "components": DOCUMENT["components"]}
    return Draft202012Validator(schema)


def check(channel: str, name: str, message: Any) -> None:
    """Check a message that came on a channel."""
    assert name in DOCUMENT["channels"][channel]["messages"]
    validator(name).validate(message)


OPERATIONS: Final[dict[str, Message]] = {
    "subscribe": {"topics": ["{topic}.#"], "cursor": OTHER_LOG},
    "publish": {"topic": "{topic}.1", "data": [1], "key": "k"},
    "ack": {"cursor": "{cursor}"},
    "ping": {},
    "unsubscribe": {"topic": "{topic}.#"},
}


async def test_websockets_carry_what_is_described(own: Address, topics: Topics) -> None:
    """Each operation is answered by the message described for it, and what comes between is described too."""
    topic = topics()
    async with (
        asyncio.timeout(DEADLINE),
        connect(f"{own.websocket_url}?consumer={topic}", proxy=None) as client,
    ):
        welcome = json.loads(await client.recv())
        check("webSocket", "welcome", welcome)
        seen = []
        for name, members in OPERATIONS.items():
            text = json.dumps({"op": name, "ref": {"n": name}, **members})
            text = text.replace("{topic}", topic).replace("{cursor}", welcome["cursor"])
            check("webSocket", name, json.loads(text))
            (reply, _) = DOCUMENT["operations"][name]["reply"]["messages"]
            await client.send(text)
            answered = ""
            while True:
                message = json.loads(await client.recv())
                kind = message.get("control", "event")
                check("webSocket", kind, message)
                seen.append(kind)
                if "ref" in message:
                    answered = kind
                # An event may come before its publisher is answered, or, to who is catching up, after.
                if answered and (name != "publish" or "event" in seen):
                    break
            assert answered == reply["$ref"].rpartition("/")[2]
        await client.send('{"op":"ack","ref":1,"cursor":"none"}')
        check("webSocket", "error", json.loads(await client.recv()))
    assert {"gap", "event"} <= set(seen)


@pytest.mark.parametrize("transport", ["ndjson", "sse"])
async def test_streams_carry_what_is_described(own: Address, topics: Topics, transport: str) -> None:
    """Greeting, gap and event of a stream are as described for its channel."""
    channel = {"ndjson": "lines", "sse": "eventStream"}[transport]
    topic = topics()
    async with open_subscriber(own, transport, topic, cursor=OTHER_LOG) as subscriber:
        gap = await subscriber.control("gap")
        check(channel, "gap" if transport == "ndjson" else "sseGap", told(gap, transport))
        await publish(own, {"topic": topic, "data": 1})
        (event,) = await subscriber.events(1)
        check(channel, "event", event)


def told(message: Message, transport: str) -> Message:
    """Return a control message as the wire has it: on event streams its name is a field of its own."""
    return message if transport == "ndjson" else {k: v for k, v in message.items() if k != "control"}
