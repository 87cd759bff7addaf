"""Describes who may come in: API keys, revocations, tickets, the cookie, newer tokens. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.auth.api import MAX_SECONDS, MAX_TEXT
from gateway.auth.tokens import MAX_NAME, MAX_TOKEN_BYTES
from gateway.openapi.operate import LIMIT, PAGE
from gateway.openapi.parts import (
    BODY,
    JSON,
    TEXT,
    TIME,
    Json,
    answer,
    body,
    listed,
    number,
    operation,
    optional,
    parameter,
    ref,
    refused,
    shape,
    taken,
    text,
)

_CACHED: Final = ["Cache-Control"]
_NAME: Final = text(1, MAX_NAME)
_SECONDS: Final = optional(number(1, MAX_SECONDS, "How long it lasts; for ever if this is left out."))
_CLAIMS: Final[Json] = {"type": "object", "description": "What it grants: the claims of a token."}

_KEY: Final[dict[str, Json]] = {
    "id": TEXT,
    "begins": {**TEXT, "description": "How its text begins."},
    "subject": TEXT,
    "claims": _CLAIMS,
    "description": TEXT,
    "created": TIME,
    "expires": optional(TIME),
}
_ALWAYS: Final = "id begins subject claims description created expires"

SCHEMAS: Final[dict[str, Json]] = {
    "ApiKey": shape(_ALWAYS, **_KEY),
    "NewApiKey": shape("id key", **_KEY, key={**TEXT, "description": "Its text, which is shown here only."}),
    "WantedApiKey": taken(
        "subject",
        subject=_NAME,
        claims=optional(_CLAIMS),
        description=optional(text(0, MAX_TEXT)),
        seconds=_SECONDS,
    ),
    "Revocation": shape(
        "id subject token tenant topic before expires reason",
        id=TEXT,
        subject=optional(TEXT),
        token=optional(TEXT),
        tenant=optional(TEXT),
        topic=optional(TEXT),
        before={**TIME, "description": "Tokens that were made before that are meant."},
        expires=optional(TIME),
        reason=TEXT,
    ),
    "WantedRevocation": {
        **taken(
            subject=optional(_NAME),
            token=optional(_NAME),
            tenant=optional(_NAME),
            topic=optional(ref("Pattern")),
            before=optional(TIME),
            seconds=_SECONDS,
            reason=optional(text(0, MAX_TEXT)),
        ),
        "description": "All that it names must be so of a token; it names something.",
    },
    "Ticket": shape("ticket seconds", ticket=TEXT, seconds=number(0, 3600)),
    "Renewed": shape("connection expires", connection=TEXT, expires=optional(TIME)),
    "WantedToken": taken("token", token=text(1, MAX_TOKEN_BYTES)),
}


def paths() -> Json:
    """Return the paths."""
    connection = parameter("path", "name", TEXT, "What its `welcome` calls it.")
    return {
        **_kept(
            "key",
            "Key",
            "ApiKey",
            "NewApiKey",
            {
                "list": "API keys, without what makes them work",
                "create": "Make an API key",
                "get": "One API key",
                "delete": "Have an API key open nothing any more",
            },
        ),
        **_kept(
            "revocation",
            "Revocation",
            "Revocation",
            "Revocation",
            {
                "list": "What was revoked",
                "create": "Revoke tokens, or their right to topics",
                "get": "One revocation",
                "delete": "Take a revocation back",
            },
        ),
        "/v1/tickets": {
            "post": operation(
                "createTicket",
                "Get a ticket, by which an EventSource or a WebSocket can be opened once",
                {"201": _ok("It is made.", ref("Ticket")), **refused(*BODY, 422, 503)},
            )
        },
        "/v1/session": {
            "post": operation("createSession", "Put the token into a cookie", _gone()),
            "delete": operation("deleteSession", "Take the cookie back", _gone()),
        },
        "/v1/connections/{name}/token": {
            "post": operation(
                "renewConnection",
                "Go on with a newer token",
                {
                    "200": _ok("The connection goes on.", ref("Renewed")),
                    "202": _ok("Another replica may have it, and is told.", ref("Renewed")),
                    **refused(*BODY, 401, 404, 409, 422, 503),
                },
                parameters=[connection],
                body=body({JSON: ref("WantedToken")}, required=True),
            )
        },
    }


def _kept(name: str, id: str, shown: str, made: str, summaries: Mapping[str, str]) -> Json:
    """
    Return the paths of what operators make, look at and remove.

    Args:
        name: of one, as in the path.
        id: of one, as in the names of operations.
        shown: the schema by which one is shown.
        made: that by which one is that was just made.
        summaries: what each operation does.
    """
    some, one = f"{name}s", parameter("path", name, TEXT, f"The `id` of one, as `list{id}s` shows it.")
    page = shape(some, **{some: listed(ref(shown)), "next": TEXT})
    return {
        f"/v1/{some}": {
            "get": operation(
                f"list{id}s",
                summaries["list"],
                {"200": _ok("They are these.", page), **refused(422, 503)},
                parameters=[LIMIT, PAGE],
            ),
            "post": operation(
                f"create{id}",
                summaries["create"],
                {"201": _made("It is made.", ref(made)), **refused(*BODY, 403, 409, 422, 503)},
                body=body({JSON: ref(f"Wanted{shown}")}, required=True),
            ),
        },
        f"/v1/{some}/{{{name}}}": {
            "get": operation(
                f"get{id}",
                summaries["get"],
                {"200": _ok("It is this.", ref(shown)), **refused(404, 422, 503)},
                parameters=[one],
            ),
            "delete": operation(f"delete{id}", summaries["delete"], _gone(), parameters=[one]),
        },
    }


def _ok(description: str, schema: Json) -> Json:
    return answer(description, {JSON: schema}, _CACHED)


def _made(description: str, schema: Json) -> Json:
    return answer(description, {JSON: schema}, [*_CACHED, "Location"])


def _gone() -> Json:
    return {"204": answer("It is done."), **refused(*BODY, 404, 422, 503)}
