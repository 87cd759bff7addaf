"""
Close reasons: every way in which the gateway ends a connection, with what each wire is told.

Nobody else writes a close code. `reconnect` is the advice: come back with your cursor, or do not.
Codes: RFC 6455 7.4.1 and the registry it opened (1012 service restart, 1013 try again later, 3000
unauthorized).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CloseReason:
    """
    Why a connection ends.

    Attributes:
        name: what logs, metrics and clients call it.
        code: the WebSocket close code.
        detail: a sentence for the client.
        reconnect: whether it should come back.
        url: of the gateway where it should; empty is where it was.
        hop: what it says there, so that it is not sent back.
    """

    name: str
    code: int
    detail: str
    reconnect: bool
    url: str = ""
    hop: int = 0


CLIENT_LEFT: Final = CloseReason("client_left", 1000, "the client closed the connection", reconnect=False)
DRAINING: Final = CloseReason(
    "draining", 1012, "this replica is going away; reconnect with your cursor", reconnect=True
)
MOVED: Final = CloseReason(
    "moved", 1012, "this client belongs to another replica; reconnect there, with your cursor", reconnect=True
)
FELL_BEHIND: Final = CloseReason(
    "fell_behind", 1013, "the client fell behind; reconnect with your cursor", reconnect=True
)
OVERLOADED: Final = CloseReason("overloaded", 1013, "too many connections; try again later", reconnect=True)
STALLED: Final = CloseReason("stalled", 1006, "the client made no progress for too long", reconnect=True)
UNRESPONSIVE: Final = CloseReason("unresponsive", 1006, "the client did not answer pings", reconnect=True)
LOG_FAILED: Final = CloseReason(
    "log_failed", 1011, "the log could not be read; reconnect with your cursor", reconnect=True
)
INTERNAL: Final = CloseReason(
    "internal", 1011, "the gateway made a mistake; reconnect with your cursor", reconnect=True
)
EXPIRED: Final = CloseReason("expired", 3000, "the token is over; come back with a new one", reconnect=False)
REVOKED: Final = CloseReason("revoked", 3000, "the token is not good any more", reconnect=False)
PROTOCOL_ERROR: Final = CloseReason("protocol_error", 1002, "the client broke the protocol", reconnect=False)
LOST: Final = CloseReason("lost", 1006, "the connection was lost", reconnect=True)
