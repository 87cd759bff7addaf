"""What whoever operates the gateway looks at: health, readiness, metrics, connections, topics."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Final

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import metrics, pages
from gateway.auth.caller import ANYBODY, CALLER, Caller
from gateway.members.replicas import MAX_KEY
from gateway.problems import Problem
from gateway.query import read_query

if TYPE_CHECKING:
    from fanout.connection import Connection
    from gateway.app import Gateway

NO_STORE: Final = {"cache-control": "no-store"}


class Operate:
    """
    The endpoints for operators.

    Args:
        gateway: what they look into.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._registry = metrics.registry(gateway)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            Route("/v1/connections", self.connections),
            Route("/v1/connections/{name}", self.connection),
            Route("/v1/topics", self.topics),
            Route("/v1/replicas", self.replicas),
            Route("/v1/ring", self.ring),
            Route("/v1/route", self.route),
        ]

    async def healthz(self, _request: Request) -> Response:
        """The process is alive."""
        return json_response({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        """Tell whether clients may be sent here: 200, or 503 with the reasons, which are for operators."""
        reasons = self._gateway.not_ready()
        caller = request.scope.get(CALLER, ANYBODY)
        shown = reasons if caller is not None and caller.grants.admin else []
        return json_response({"ready": not reasons, "reasons": shown}, 503 if reasons else 200)

    async def metrics(self, _request: Request) -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(metrics.text(self._registry), media_type=CONTENT_TYPE_LATEST, headers=NO_STORE)

    async def connections(self, request: Request) -> Response:
        """Return how many connections there are, and those furthest behind first: at most `limit` (100)."""
        limit = read_limit(request)
        hub = self._gateway.hub
        behind = heapq.nsmallest(limit, hub.connections, key=hub.position)
        return json_response(
            {"total": len(hub.connections), "connections": [self._seen(each) for each in behind]}
        )

    async def connection(self, request: Request) -> Response:
        """Return one connection."""
        name = request.path_params["name"]
        for each in self._gateway.hub.connections:
            if each.name == name:
                return json_response(self._seen(each))
        raise Problem(404, f"there is no connection {name[:60]!a}")

    async def topics(self, request: Request) -> Response:
        """
        Return the topics in the window with their events, and the patterns with their subscribers; at most
        `limit` (100) each.
        """
        limit = read_limit(request)
        hub = self._gateway.hub
        topics = heapq.nlargest(limit, hub.window.topics().items(), key=lambda item: item[1])
        patterns = heapq.nlargest(limit, hub.subscriptions().items(), key=lambda item: item[1])
        return json_response(
            {
                "topics": [{"topic": topic, "events": number} for topic, number in topics],
                "subscriptions": [
                    {"pattern": pattern, "connections": number} for pattern, number in patterns
                ],
            }
        )

    async def replicas(self, _request: Request) -> Response:
        """Return the replicas that share the stream, with the part of all keys that each owns."""
        return json_response(self._gateway.replicas.shown())

    async def ring(self, _request: Request) -> Response:
        """Return who owns which bucket: of the replicas, and of the other groups."""
        return json_response(self._gateway.replicas.map())

    async def route(self, request: Request) -> Response:
        """Return the replica that the clients of a key belong to."""
        key = read_query(request.scope["query_string"], ("key",)).get("key", "")
        if not 1 <= len(key) <= MAX_KEY:
            raise Problem(422, f"say which key: ?key= with 1 to {MAX_KEY} characters")
        route = self._gateway.replicas.route(key)
        return json_response(
            {
                "key": key,
                "bucket": route.bucket,
                "owner": route.owner,
                "url": route.url or None,
                "ranks": route.ranks,
            }
        )

    def _seen(self, connection: Connection) -> dict[str, Any]:
        hub = self._gateway.hub
        position = hub.position(connection)
        return {
            "connection": connection.name,
            "wire": connection.wire.name.lower(),
            "state": connection.state.value,
            "key": connection.key,
            **_known(connection.caller),
            "topics": sorted(hub.patterns(connection)),
            "overflow": connection.overflow.value,
            "cursor": hub.window.cursor(position),
            "behind": hub.window.head - position,
            "delivered": hub.delivered(connection),
            "pauses": connection.pauses,
            "gaps": connection.gaps,
        }


def _known(caller: object) -> dict[str, Any]:
    """Return who a connection's caller is, where that is asked."""
    if not isinstance(caller, Caller) or not caller.is_known:
        return {}
    return {
        "subject": caller.subject,
        "token": caller.id,
        "tenant": caller.tenant or None,
        "expires": caller.ends,
    }


def read_limit(request: Request) -> int:
    """Return how much of a list is asked for; see `gateway.pages.read_limit`."""
    return pages.read_limit(request.query_params.get("limit"))


def json_response(value: object, status: int = 200) -> Response:
    """Return an answer that nobody caches."""
    return Response(
        msgspec.json.encode(value) + b"\n", status, media_type="application/json", headers=NO_STORE
    )
