"""
The connection: one client as the fan-out sees it. It has a sink for bytes and a place in the log, and no
queue.

Its states are a table. A client that reads is LIVE and gets every batch at once; one that does not is PAUSED
and costs a position; once it drains it is CATCHING_UP until it reaches the head.
"""

from __future__ import annotations

from enum import Enum, unique
from typing import TYPE_CHECKING, Final, Protocol

from fanout.frames import Wire

if TYPE_CHECKING:
    from fanout.closing import CloseReason
    from fanout.hub import Cohort
    from fanout.selection import Backfill


@unique
class State(Enum):
    """Where a connection stands."""

    CATCHING_UP = "catching_up"
    """Drained, but behind the head: the catch-up feeds it from the window or the log."""
    LIVE = "live"
    """Drained and at the head: the hub writes to it."""
    PAUSED = "paused"
    """Its buffer is full: nothing is written until it drains."""
    CLOSED = "closed"
    """Gone; nothing is written any more."""


@unique
class Signal(Enum):
    """What can happen to a connection."""

    FULL = "full"
    DRAINED = "drained"
    CAUGHT_UP = "caught_up"
    REWOUND = "rewound"
    """It subscribed to something from an earlier cursor."""
    ENDED = "ended"


TRANSITIONS: Final[dict[State, dict[Signal, State]]] = {
    State.CATCHING_UP: {
        Signal.FULL: State.PAUSED,
        Signal.CAUGHT_UP: State.LIVE,
        Signal.REWOUND: State.CATCHING_UP,
        Signal.ENDED: State.CLOSED,
    },
    State.LIVE: {Signal.FULL: State.PAUSED, Signal.REWOUND: State.CATCHING_UP, Signal.ENDED: State.CLOSED},
    State.PAUSED: {
        Signal.FULL: State.PAUSED,
        Signal.DRAINED: State.CATCHING_UP,
        Signal.REWOUND: State.PAUSED,
        Signal.ENDED: State.CLOSED,
    },
    State.CLOSED: {Signal.DRAINED: State.CLOSED, Signal.ENDED: State.CLOSED, Signal.FULL: State.CLOSED},
}


@unique
class Overflow(Enum):
    """What happens to a connection that fell behind, once it drains."""

    CATCHUP = "catchup"
    """It gets everything it missed, from window or log."""
    LATEST = "latest"
    """It gets a gap and the newest event of each key, and goes on at the head."""
    DISCONNECT = "disconnect"
    """It is told to reconnect, and closed."""


class Sink(Protocol):
    """Where a connection's bytes go."""

    def write(self, data: bytes) -> bool:
        """
        Take `data`, all of it; return whether there is room for more right now.

        After False nothing may be written but control frames until the sink reports that it has drained.
        Never raises: a dead peer is reported later, as the end of the connection.
        """

    def close(self, reason: CloseReason) -> None:
        """Say goodbye in the wire's own way, flush what was written, and close."""


class Connection:
    """
    One client.

    Args:
        name: what logs, metrics and the client call it; unique in this process.
        sink: takes its bytes.
        wire: what its bytes look like.
        overflow: what happens when it falls behind.
        key: by which it belongs to a replica; None if it belongs nowhere.

    Attributes:
        caller: who it is, to whoever looks after that; None if nobody does.
    """

    __slots__ = (
        "backfill",
        "caller",
        "cohort",
        "delivered",
        "fell_behind",
        "gaps",
        "key",
        "name",
        "overflow",
        "pauses",
        "position",
        "sink",
        "state",
        "wire",
    )

    def __init__(
        self,
        name: str,
        sink: Sink,
        wire: Wire,
        overflow: Overflow = Overflow.CATCHUP,
        key: str | None = None,
    ) -> None:
        self.name = name
        self.caller: object = None
        self.key = key
        self.sink = sink
        self.wire = wire
        self.overflow = overflow
        self.state = State.CATCHING_UP
        self.position = 0  # it has everything up to here; while LIVE the hub's head stands for it
        self.cohort: Cohort | None = None
        self.backfill: Backfill | None = None  # while its patterns started at different places
        self.delivered = 0  # events written; while LIVE relative to the cohort's count
        self.pauses = 0
        self.gaps = 0
        self.fell_behind = False  # live once, then too slow: its overflow policy decides when it drains

    def fire(self, signal: Signal) -> None:
        """
        Move to the state that `signal` leads to.

        Raises:
            KeyError: the table has no such transition; that is a mistake in the caller.
        """
        self.state = TRANSITIONS[self.state][signal]
