"""Every path has a door that somebody chose for it."""

from __future__ import annotations

import re

import pytest
from starlette.routing import Route

from gateway.app import Gateway
from gateway.auth.doors import Door, door_of
from gateway.settings import Settings

NAMES = re.compile(r"\{[^}]+\}")


def test_every_route_has_a_door() -> None:
    """None is left to chance, and no more of them are open to everybody than have to be."""
    gateway = Gateway(Settings(data="memory:", services="reports"))
    paths = {NAMES.sub("x", each.path) for each in gateway.application().routes if isinstance(each, Route)}
    assert "/v1/webhooks/x/deliveries" in paths
    assert [path for path in sorted(paths) if door_of("GET", path) is None] == []
    opened = {path for path in paths if door_of("GET", path) is Door.OPEN}
    assert opened <= {
        "/",
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/asyncapi.json",
        "/.well-known/jwks.json",
    }


@pytest.mark.parametrize(
    ("method", "path", "door"),
    [
        ("GET", "/metrics", Door.OPERATOR),
        ("GET", "/v1/connections", Door.OPERATOR),
        ("GET", "/v1/connections/x", Door.OPERATOR),
        ("POST", "/v1/connections/x/token", Door.KNOWN),
        ("GET", "/v1/topics", Door.OPERATOR),
        ("POST", "/v1/topics/a", Door.KNOWN),
        ("GET", "/v1/requests", Door.OPERATOR),
        ("POST", "/v1/requests/x:retry", Door.OPERATOR),
        ("POST", "/v1/requests/reports", Door.KNOWN),
        ("POST", "/v1/keys", Door.OPERATOR),
        ("POST", "/healthz", Door.KNOWN),
        ("GET", "/v1/eventsx", None),
        ("GET", "/v1/events/", None),
        ("GET", "//v1/events", None),
        ("GET", "/admin", None),
        ("GET", "/metrics\n", None),
        ("POST", "/v1/requests/x:retry\n", None),
        ("POST", "/v1/requests/x\n:retry", Door.OPERATOR),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_doors(method: str, path: str, door: Door | None) -> None:
    """Each is where it is expected, and what only looks like a path has none."""
    assert door_of(method, path) is door
