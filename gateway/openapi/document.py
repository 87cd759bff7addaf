"""Puts the OpenAPI document together: what a gateway with these settings serves."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from gateway.openapi import events, operate, requests, webhooks
from gateway.openapi.parts import Json, refusals, refused
from gateway.settings import Settings

OPENAPI: Final = "3.1.0"
COOKIE: Final = "sluice_token"
"""The name of the cookie that a browser's token may be in."""
OPEN: Final = frozenset({"/healthz", "/readyz"})
"""What is answered to everybody."""

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
    paths: Json = {
        **events.paths(settings),
        **requests.paths(settings),
        **webhooks.paths(settings),
        **operate.paths(settings),
    }
    components: Json = {
        "schemas": {
            **events.SCHEMAS,
            **requests.schemas(settings),
            **webhooks.schemas(settings),
            **operate.SCHEMAS,
        },
        "responses": refusals(),
    }
    document: Json = {
        "openapi": OPENAPI,
        "info": {"title": "Sluicegate", "version": version("sluicegate"), "description": _ABOUT},
        "servers": [{"url": root or "/"}],
        "paths": {
            path: _secured(methods) if auth and path not in OPEN else methods
            for path, methods in paths.items()
        },
        "components": components,
    }
    if auth:
        components["securitySchemes"] = _SCHEMES
    return document


def _secured(methods: Json) -> Json:
    """Return the operations of a path with what they are if a token is wanted."""
    security = [{name: list[str]()} for name in _SCHEMES]
    return {
        method: {
            **operation,
            "security": security,
            "responses": dict(sorted({**operation["responses"], **refused(401, 403)}.items())),
        }
        for method, operation in methods.items()
    }
