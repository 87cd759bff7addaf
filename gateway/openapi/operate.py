"""Describes what operators look at, from health to the ring, and the documents themselves. Pure."""

from __future__ import annotations

from typing import Final

from fanout.connection import Overflow, State
from fanout.frames import Wire
from fanout.heartbeat import State as MemberState
from gateway.members.replicas import MAX_KEY
from gateway.openapi.parts import (
    COUNT,
    FLAG,
    JSON,
    TEXT,
    TIME,
    Json,
    answer,
    listed,
    number,
    one_of,
    operation,
    optional,
    parameter,
    ref,
    refused,
    shape,
    text,
)
from gateway.pages import LISTED, MAX_LISTED
from gateway.settings import Settings

OPENAPI_PATH: Final = "/openapi.json"
ASYNCAPI_PATH: Final = "/asyncapi.json"

LIMIT: Final = parameter(
    "query",
    "limit",
    {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": LISTED},
    "How many entries the answer may have.",
)
PAGE: Final = parameter("query", "page", TEXT, "The `next` of the page before.")

_CACHED: Final = ["Cache-Control"]
_MISSING: Final = listed(COUNT)  # what workers did not answer; only where there are several
_RING: Final = shape("members owners", members=listed(TEXT), owners=listed(optional(COUNT)))
_MEMBER: Final = shape(
    "name state url version connections heard_seconds_ago",
    name=TEXT,
    state=one_of(*(each.value for each in MemberState)),
    url=optional(TEXT),
    version=TEXT,
    connections=COUNT,
    share=number(0, 1, "The part of all keys that it owns."),
    heard_seconds_ago={"type": "number"},
)

SCHEMAS: Final[dict[str, Json]] = {
    "Readiness": shape("ready reasons", ready=FLAG, reasons=listed(TEXT)),
    "Connection": shape(
        "connection wire state key topics overflow cursor behind delivered pauses gaps",
        connection=TEXT,
        wire=one_of(*(each.name.lower() for each in Wire)),
        state=one_of(*(each.value for each in State)),
        key=optional(TEXT),
        topics=listed(ref("Pattern")),
        overflow=one_of(*(each.value for each in Overflow)),
        cursor=ref("Cursor"),
        behind=COUNT,
        delivered=COUNT,
        pauses=COUNT,
        gaps=COUNT,
        subject={**optional(TEXT), "description": "Whose token it is by; this and the next, with keys."},
        token=optional(TEXT),
        tenant=optional(TEXT),
        expires=optional(TIME),
        worker={**COUNT, "description": "Where it is; only if there are several workers."},
    ),
    "Connections": shape(
        "total connections", total=COUNT, connections=listed(ref("Connection")), missing=_MISSING
    ),
    "Topics": shape(
        "topics subscriptions",
        topics=listed(shape("topic events", topic=ref("Topic"), events=COUNT)),
        subscriptions=listed(shape("pattern connections", pattern=ref("Pattern"), connections=COUNT)),
        missing=_MISSING,
    ),
    "Replicas": shape(
        "self owned view replicas groups",
        self=TEXT,
        owned=COUNT,
        view=shape(
            "version digest settled members",
            version=COUNT,
            digest=TEXT,
            settled=FLAG,
            members=listed(TEXT),
        ),
        replicas=listed(ref("Member")),
        groups={"type": "object", "additionalProperties": listed(ref("Member"))},
    ),
    "Member": _MEMBER,
    "Ring": shape(
        "replicas groups",
        replicas=_RING,
        groups={"type": "object", "additionalProperties": _RING},
    ),
    "Route": shape(
        "key bucket owner url ranks",
        key=TEXT,
        bucket=COUNT,
        owner=optional(TEXT),
        url={**optional(TEXT), "description": "`null`: go on where you are."},
        ranks=listed(TEXT),
    ),
}


def paths(_settings: Settings) -> Json:
    """Return the paths."""
    return {
        "/healthz": {
            "get": operation(
                "getHealth",
                "Whether the process is alive",
                {"200": _ok("It is.", shape("status", status={"const": "alive"})), **refused()},
            )
        },
        "/readyz": {
            "get": operation(
                "getReadiness",
                "Whether clients may be sent here",
                {
                    "200": _ok("They may.", ref("Readiness")),
                    "503": _ok("They may not, for these reasons.", ref("Readiness")),
                    **refused(),
                },
            )
        },
        "/metrics": {
            "get": operation(
                "getMetrics",
                "The metrics, in Prometheus' text format",
                {"200": answer("The metrics.", {"text/plain": TEXT}, _CACHED), **refused(503)},
            )
        },
        "/v1/connections": {
            "get": operation(
                "listConnections",
                "The connections that are furthest behind",
                {"200": _ok("They are these.", ref("Connections")), **refused(422, 503)},
                parameters=[LIMIT],
            )
        },
        "/v1/connections/{name}": {
            "get": operation(
                "getConnection",
                "One connection",
                {"200": _ok("It is this.", ref("Connection")), **refused(404, 503)},
                parameters=[parameter("path", "name", text(1, 255), "What its `welcome` calls it.")],
            )
        },
        "/v1/topics": {
            "get": operation(
                "listTopics",
                "The busiest topics in memory, and the patterns with most subscribers",
                {"200": _ok("They are these.", ref("Topics")), **refused(422, 503)},
                parameters=[LIMIT],
            )
        },
        "/v1/replicas": {
            "get": operation(
                "listReplicas",
                "The replicas that share the stream, and the other groups",
                {"200": _ok("They are these.", ref("Replicas")), **refused(503)},
            )
        },
        "/v1/ring": {
            "get": operation(
                "getRing",
                "Which member owns which bucket",
                {"200": _ok("The owner of each bucket.", ref("Ring")), **refused(503)},
            )
        },
        "/v1/route": {
            "get": operation(
                "getRoute",
                "The replica that the clients of a key belong to",
                {"200": _ok("It is this.", ref("Route")), **refused(422, 503)},
                parameters=[parameter("query", "key", text(1, MAX_KEY), "The key.", required=True)],
            )
        },
        OPENAPI_PATH: {"get": _document("getOpenapi", "This document")},
        ASYNCAPI_PATH: {"get": _document("getAsyncapi", "What WebSockets and streams carry, in AsyncAPI")},
    }


def _ok(description: str, schema: Json) -> Json:
    return answer(description, {JSON: schema}, _CACHED)


def _document(id: str, summary: str) -> Json:
    return operation(id, summary, {"200": _ok("The document.", {"type": "object"}), **refused(503)})
