"""
The doors: for each path, who may knock. What is behind a door looks closer.

A path that is not listed is not there for anybody: so a new endpoint is closed until somebody has thought
about it.
"""

from __future__ import annotations

import re
from enum import Enum, unique
from typing import Final


@unique
class Door(Enum):
    """Who may come in."""

    OPEN = "open"
    """Everybody: it shows nothing that is anybody's."""
    KNOWN = "known"
    """Who is known; what they may do there, the endpoint asks their token."""
    OPERATOR = "operator"
    """Operators."""


_SAFE: Final = ("GET", "HEAD")
_ALL: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

# The first that fits counts.
_DOORS: Final[tuple[tuple[tuple[str, ...], re.Pattern[str], Door], ...]] = tuple(
    (methods, re.compile(path, re.DOTALL), door)
    for methods, path, door in (
        (_SAFE, r"/(healthz|readyz|openapi\.json|asyncapi\.json|\.well-known/jwks\.json)?", Door.OPEN),
        (("POST",), r"/demo/receiver/[^/]+", Door.OPEN),  # a webhook says by its signature who sends it
        (_ALL, r"/demo/receiver/[^/]+", Door.KNOWN),
        (_SAFE, r"/demo/.*", Door.OPEN),
        (("DELETE",), r"/v1/session", Door.OPEN),
        (_ALL, r"/v1/(events|tickets|session|route|services)", Door.KNOWN),
        (_ALL, r"/v1/topics/.*", Door.KNOWN),
        (("POST",), r"/v1/connections/[^/]+/token", Door.KNOWN),
        (_ALL, r"/v1/requests/[^/]+:retry", Door.OPERATOR),
        (_ALL, r"/v1/requests/[^/]+", Door.KNOWN),
        (_ALL, r"/v1/(webhooks|deliveries|services|leases)(/.*)?", Door.KNOWN),
        (_ALL, r"/metrics", Door.OPERATOR),
        (_ALL, r"/v1/(connections|topics|replicas|ring|requests|keys|revocations)(/.*)?", Door.OPERATOR),
    )
)


def door_of(method: str, path: str) -> Door | None:
    """Return the door of a path, without that under which the gateway is mounted; None if there is none."""
    if path == "/v1/events" and method in _ALL:  # what nearly all ask for
        return Door.KNOWN
    if path.endswith("\n"):
        return None  # a route's `$` passes over a last line break: another door than ours would open
    for methods, pattern, door in _DOORS:
        if method in methods and pattern.fullmatch(path):
            return door
    # A method that a path does not have is answered behind the door of its others.
    return Door.KNOWN if any(pattern.fullmatch(path) for _, pattern, _ in _DOORS) else None
