"""Serves the documents. They are made when somebody first asks: most gateways are never asked."""

from __future__ import annotations

from functools import lru_cache

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.openapi import asyncapi, document
from gateway.openapi.operate import ASYNCAPI_PATH, OPENAPI_PATH
from gateway.openapi.parts import JSON, Json
from gateway.settings import Settings

_HEADERS = {"cache-control": "no-cache"}  # after an upgrade they are of the new version at once


def routes(settings: Settings, *, auth: bool = False) -> list[Route]:
    """
    Return the routes.

    Args:
        settings: what the gateway serves.
        auth: whether it wants tokens.
    """

    @lru_cache(8)
    def openapi(root: str) -> bytes:
        return _written(document.describe(settings, auth=auth, root=root))

    @lru_cache(1)
    def events() -> bytes:
        return _written(asyncapi.describe(settings))

    async def show_openapi(request: Request) -> Response:
        return Response(openapi(request.scope.get("root_path", "")), media_type=JSON, headers=_HEADERS)

    async def show_asyncapi(_request: Request) -> Response:
        return Response(events(), media_type=JSON, headers=_HEADERS)

    return [Route(OPENAPI_PATH, show_openapi), Route(ASYNCAPI_PATH, show_asyncapi)]


def _written(described: Json) -> bytes:
    return msgspec.json.encode(described) + b"\n"
