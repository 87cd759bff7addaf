"""What a request would begin, told by its head."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.limits.work import LEASES, opens_stream, takes_memory, transport_of
from gateway.requests import door
from gateway.subscription import Transport

SSE = (b"accept", b"text/event-stream")
UPGRADE = (b"upgrade", b"websocket")


def scope_of(method: str, target: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {"method": method, "path": path, "query_string": query.encode(), "headers": list(headers)}


@pytest.mark.parametrize(
    ("scope", "stream", "memory"),
    [
        (scope_of("GET", "/v1/events?topic=a", SSE), True, True),
        (scope_of("GET", "/v1/events?topic=a", (b"accept", b"application/x-ndjson")), True, True),
        (scope_of("GET", "/v1/events", UPGRADE), True, True),
        (scope_of("GET", "/v1/events?topic=a"), False, False),
        (scope_of("GET", "/v1/events?topic=a&wait=0"), False, False),
        (scope_of("GET", "/v1/events?wait=0.000&topic=a"), False, False),
        (scope_of("GET", "/v1/events?wait=30&topic=a"), False, True),
        (scope_of("GET", "/v1/events?topic=a&wait=0.5"), False, True),
        (scope_of("GET", "/v1/events?topic=await=5"), False, False),
        (scope_of("HEAD", "/v1/events?topic=a", SSE), False, False),
        (scope_of("POST", "/v1/events"), False, True),
        (scope_of("POST", "/v1/topics/a"), False, True),
        (scope_of("POST", "/v1/requests/s"), False, True),
        (scope_of("POST", "/v1/requests/s:lease"), False, True),
        (scope_of("POST", "/v1/leases/a:complete"), False, False),
        (scope_of("GET", "/v1/requests/t?wait=5"), False, True),
        (scope_of("GET", "/v1/requests/t"), False, False),
        (scope_of("GET", "/healthz"), False, False),
        (scope_of("GET", "/metrics", SSE), False, False),
        (scope_of("GET", "/", (b"accept", b"text/html")), False, False),
    ],
    ids=lambda value: f"{value['method']} {value['path']}" if isinstance(value, dict) else str(value),
)
def test_what_a_request_begins(scope: dict[str, Any], stream: bool, memory: bool) -> None:
    """Streams, waits and what stores something take memory; looking does not, nor does a worker's report."""
    assert (opens_stream(scope), takes_memory(scope)) == (stream, memory)


def test_the_transport_is_that_of_the_subscription() -> None:
    """Headers that are repeated are joined, as they are there."""
    scope = scope_of("GET", "/v1/events", (b"accept", b"application/json;q=0.1"), SSE)
    assert transport_of(scope) is Transport.SSE
    assert transport_of(scope_of("GET", "/healthz", SSE)) is None


def test_the_path_of_workers() -> None:
    """It is where the door has their leases."""
    assert f"{door.LEASES}/" == LEASES
