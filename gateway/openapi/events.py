"""Describes publishing and subscribing: `/v1/events` and `/v1/topics/{topic}`. Pure."""

from __future__ import annotations

from typing import Final

from fanout.connection import Overflow
from gateway.formats import CLOUD_BATCH, CLOUD_EVENT, JSON, LINES
from gateway.members.replicas import MAX_KEY
from gateway.members.sticky import HOP
from gateway.openapi.parts import (
    ANYTHING,
    BODY,
    FLAG,
    TEXT,
    Json,
    answer,
    body,
    listed,
    number,
    one_of,
    operation,
    parameter,
    ref,
    refused,
    shape,
    text,
)
from gateway.openapi.schemas import EVENTS, ID, KEY, PUBLISHING, TTL, TYPE
from gateway.settings import Settings
from gateway.subscription import DEFAULT_LIMIT, MAX_LIMIT, MAX_WAIT

START: Final = (
    "Where to begin: `latest`, `earliest`, `-N` for the last N events, an RFC 3339 time, or a cursor."
)
CONSUMER: Final[Json] = {**text(1, 128), "pattern": "^[A-Za-z0-9._~:@-]+$"}

SCHEMAS: Final[dict[str, Json]] = {
    **EVENTS,
    **PUBLISHING,
    "Poll": shape(
        "events cursor more",
        events=listed(ref("Event"), most=MAX_LIMIT),
        cursor=ref("Cursor"),
        more={**FLAG, "description": "Whether there is more to be had at once."},
        gap=ref("Gap"),
    ),
}


def paths(settings: Settings) -> Json:
    """Return the paths."""
    return {
        "/v1/events": {"get": _subscribe(settings), "post": _publish(settings)},
        "/v1/topics/{topic}": {"post": _publish_topic(settings)},
    }


def subscription(settings: Settings) -> list[Json]:
    """Return the parameters of a subscription, whatever its transport."""
    single = {
        "cursor": (text(1, 64), START),
        "overflow": (
            one_of(*(each.value for each in Overflow)),
            "What happens when the client falls behind.",
        ),
        "consumer": (CONSUMER, "The name of a durable subscription."),
        "wait": (number(0, MAX_WAIT), "Seconds that a poll may wait for an event."),
        "limit": (
            {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
            "How many events a poll may answer.",
        ),
        "key": (text(1, MAX_KEY), "By what the client belongs to a replica; the `consumer` if left out."),
        HOP: ({"type": "integer", "minimum": 0}, "Another replica sent the request on, and told this."),
    }
    return [
        parameter(
            "query",
            "topic",
            listed(ref("Pattern"), 1, settings.max_topics),
            "Patterns of the topics that are wanted. Only on WebSocket there may be none.",
            required=True,
            explode=True,
        ),
        *(parameter("query", name, schema, what) for name, (schema, what) in single.items()),
        parameter("header", "Last-Event-ID", TEXT, "A cursor; wins over the others."),
        parameter("header", "If-None-Match", TEXT, "A cursor; wins over that of the query."),
    ]


def _subscribe(settings: Settings) -> Json:
    stream = "The events as they come; see `/asyncapi.json`."
    return operation(
        "subscribe",
        "Receive events, by the transport that the request's headers choose",
        {
            "101": answer("`Upgrade: websocket` was asked for; see `/asyncapi.json`."),
            "200": answer(
                "A poll's events; or a stream, if `Accept` prefers one.",
                {
                    JSON: ref("Poll"),
                    "text/event-stream": {**TEXT, "description": stream},
                    LINES: {**TEXT, "description": stream},
                },
                ["Cache-Control"],
                ["ETag", "Retry-After", "Vary"],
            ),
            "304": answer(
                "A poll by `If-None-Match` found nothing new.",
                None,
                ["ETag", "Cache-Control", "Retry-After", "Vary"],
            ),
            "307": answer("The client belongs to another replica (`sticky=redirect`).", None, ["Location"]),
            **refused(422, 426, 501, 503),
        },
        parameters=subscription(settings),
    )


def _publish(settings: Settings) -> Json:
    many = listed(ref("NewEvent"), most=settings.max_batch_events)
    lines: Json = {
        **TEXT,
        "description": "One event, in JSON, on each line.",
        "examples": ['{"topic":"orders.42","data":1}\n{"topic":"orders.43","data":2}\n'],
    }
    return operation(
        "publishEvents",
        "Publish one event or several",
        {"202": answer("All events are durable.", {JSON: ref("Receipt")}), **refused(*BODY, 422, 503)},
        parameters=_cloud_headers(),
        body=body(
            {
                JSON: {"anyOf": [ref("NewEvent"), many]},
                LINES: lines,
                "application/ndjson": lines,
                "application/jsonl": lines,
                CLOUD_EVENT: ref("CloudEvent"),
                CLOUD_BATCH: listed(ref("CloudEvent"), most=settings.max_batch_events),
            },
            "Without a content type it is JSON. With a header `ce-specversion` it is the data of a "
            "CloudEvent, of any content type.",
            required=True,
        ),
    )


def _publish_topic(settings: Settings) -> Json:
    return operation(
        "publishToTopic",
        "Publish one event, whose data is the body",
        {"202": answer("The event is durable.", {JSON: ref("Receipt")}), **refused(*BODY, 404, 422, 503)},
        parameters=[
            parameter("path", "topic", ref("Topic"), "Where to publish."),
            parameter("query", "id", ID, "That of the event."),
            parameter("query", "type", TYPE, "That of the event."),
            parameter("query", "key", KEY, "That of the event."),
            parameter("query", "ttl", TTL, "That of the event."),
            *_cloud_headers(),
        ],
        body=body(
            {
                JSON: ANYTHING,
                "text/plain": TEXT,
                "application/octet-stream": {},
                CLOUD_EVENT: ref("CloudEvent"),
                CLOUD_BATCH: listed(ref("CloudEvent"), most=settings.max_batch_events),
            },
            "Any content type: JSON and text become `data`, anything else `data_base64`.",
        ),
    )


def _cloud_headers() -> list[Json]:
    """Return the headers of a CloudEvent in binary mode; the first one says that it is one."""
    attributes = ("id", "source", "type", "subject", "time", "topic", "partitionkey")
    return [
        parameter("header", "ce-specversion", one_of("1.0"), "The body is the data of a CloudEvent."),
        *(
            parameter("header", f"ce-{name}", TEXT, "That of the CloudEvent, percent-encoded.")
            for name in attributes
        ),
    ]
