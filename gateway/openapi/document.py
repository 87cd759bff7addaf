"""Puts the OpenAPI document together: what a gateway with these settings serves."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from gateway.auth.doors import Door, door_of
from gateway.auth.gate import COOKIE
from gateway.openapi import events, operate, requests, webhooks
from gateway.openapi.parts import Json, refusals, refused
from gateway.settings import Settings

OPENAPI: Final = "3.1.0"

_ABOUT: Final = (
    "Publish events, and receive them by WebSocket, Server-Sent Events, lines of JSON, polls and webhooks. "
    "HEAD is answered wherever GET is, by the same head. Every refusal is a problem of RFC 9457. "
    "What WebSockets and streams carry is described by `/asyncapi.json`."
)
_SCHEMES: Final[Json] = {
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
}


def describe(settings: Settings, *, auth: bool, root: str = "") -> Json:
    """
    Return the OpenAPI document of a gateway.

    Args:
        settings: what it serves depends on them.
        auth: whether it wants tokens.
        root: the path at which it is mounted in another application; empty if it is not.
    """
    schemas: Json = {}
    paths: Json = {
        **events.paths(settings),
        **requests.paths(settings),
        **webhooks.paths(settings),
        **operate.paths(settings),
    }
    if auth:
        from gateway.openapi import access  # noqa: PLC0415  (nobody else pays for it)

        paths |= access.paths()
        schemas = access.SCHEMAS
    components: Json = {
        "schemas": {
            **events.SCHEMAS,
            **requests.schemas(settings),
            **webhooks.schemas(settings),
            **operate.SCHEMAS,
            **schemas,
        },
        "responses": refusals(),
    }
    document: Json = {
        "openapi": OPENAPI,
        "info": {"title": "Sluicegate", "version": version("sluicegate"), "description": _ABOUT},
        "servers": [{"url": root or "/"}],
        "paths": {
            path: {
                method: _secured(operation)
                if auth and door_of(method.upper(), path) is not Door.OPEN
                else operation
                for method, operation in methods.items()
            }
            for path, methods in paths.items()
        },
        "components": components,
    }
    if auth:
        components["securitySchemes"] = _SCHEMES
    return document


def _secured(operation: Json) -> Json:
    """Return an operation with what it is if a token is wanted."""
    return {
        **operation,
        "security": [{name: list[str]()} for name in _SCHEMES],
        "responses": dict(sorted({**operation["responses"], **refused(401, 503)}.items())),
    }
