"""
What a request would begin, by its head alone: a stream, work that takes memory, or neither.

Pure, and no more exact than it must be: a request that turns out to be wrong costs nothing by being refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gateway.subscription import Transport, choose_transport

EVENTS: Final = "/v1/events"

_CHOOSING: Final = (b"upgrade", b"accept")
_WAITS: Final = re.compile(rb"(?:^|&)wait=(?!0*(?:\.0*)?(?:&|$))")
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
LEASES: Final = "/v1/leases/"
"""What workers say of requests that they have; `gateway.requests.door` imports too much to be asked."""

Headers = Iterable[tuple[bytes, bytes]]


def transport_of(scope: Mapping[str, Any]) -> Transport | None:
    """Return how a request wants its events; None if it asks for no events."""
    return wanted_by(scope) if scope["path"] == EVENTS and scope["method"] == "GET" else None


def wanted_by(scope: Mapping[str, Any]) -> Transport:
    """Return the transport that the headers of a request for events choose."""
    chosen: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in _CHOOSING:
            chosen[name] = chosen[name] + b", " + value if name in chosen else value
    return choose_transport(chosen)


def opens_stream(scope: Mapping[str, Any]) -> bool:
    """Tell whether a request opens a stream or a WebSocket."""
    return transport_of(scope) not in (None, Transport.POLL)


def takes_memory(scope: Mapping[str, Any]) -> bool:
    """
    Tell whether a request begins what takes memory for a while: a stream, a wait, something to be stored.

    What a worker says of a request that it has is none of these: it ends what was begun.
    """
    if scope["method"] not in _READING:
        return not scope["path"].startswith(LEASES)
    return _WAITS.search(scope["query_string"]) is not None or opens_stream(scope)
