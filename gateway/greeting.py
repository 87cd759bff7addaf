"""The first frames of a connection: its name, where it begins, whether its cursor was of another history."""

from __future__ import annotations

import secrets
from itertools import count
from typing import TYPE_CHECKING

from fanout.catchup import gap_frame
from fanout.frames import SSE_WIRES, Wire, chunk, control_frame, sse_block
from gateway.auth.caller import expiry_of

if TYPE_CHECKING:
    from fanout.connection import Connection
    from gateway.starts import Place
    from gateway.streams import Streams

_names = count(1)
_process = secrets.token_hex(3)


def connection_name() -> str:
    """Return a name for a connection: unique, short, and not another process's."""
    return f"{_process}-{next(_names)}"


def greeting_of(streams: Streams, connection: Connection, place: Place) -> bytes:
    """Return the first frames of a connection that begins at `place`."""
    wire = connection.wire
    cursor = place.cursor or streams.hub.window.cursor(place.position)
    begin = place.reset or cursor  # until it has read of the reset, a client keeps the cursor that it had
    expires = expiry_of(connection.caller)
    members = b'"connection":"%b","cursor":"%b"' % (connection.name.encode(), begin.encode())
    members += b"," + expires if expires else b""
    if wire in SSE_WIRES:
        # Only who has to renew a token there needs to know the connection's name.
        data, name = (b"{%b}" % members, "sluice.welcome") if expires else (None, None)
        block = sse_block(begin, data, name, streams.retry_ms())
        greeting = chunk(block) if wire is Wire.SSE_CHUNKED else block
    else:
        greeting = control_frame(wire, "welcome", members)
    if place.reset is not None:
        streams.count_gap(connection, place.reason)
        greeting += gap_frame(wire, place.reason, place.reset, cursor)
    return greeting
