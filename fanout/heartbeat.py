"""
The heartbeat: what members say to each other, once a second and whenever something changed.

    APART ──▶ JOINING ──▶ ALIVE ──▶ DRAINING ──▶ DEAD        and from the first three back to APART
                                                             when nothing is heard back any more

SUSPECT and DEAD are also what one member thinks of another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, unique
from typing import Final

HEARTBEAT: Final = 1.0
"""Seconds from one heartbeat to the next, when there is nothing new to say."""

PROMPT: Final = 0.02
"""Seconds at least between two heartbeats, however much there is to say."""

SUSPECT_AFTER: Final = 3.0
"""Seconds of silence after which a member is suspected: nobody is sent to it any more."""

LEASE: Final = 4.0
"""
Seconds for which a heartbeat that its sender heard back lets it own anything, from when it was *sent*. Three
may be lost in a row.
"""

MARGIN: Final = 1.0
"""
Seconds that others wait longer than that: for clocks that do not run equally fast, and for what a broker does
not do at once for all its queues.
"""

BURY_AFTER: Final = LEASE + MARGIN
"""Seconds of silence after which a member is dead of which the broker says that it is gone."""

DEAD_AFTER: Final = BURY_AFTER + 1.0
"""Seconds of silence after which it is dead in any case: a frozen process keeps its connection."""

JOIN_AFTER: Final = LEASE + MARGIN
"""Seconds for which one who comes hears itself before it owns anything; then all who may own know it."""

FORGET_AFTER: Final = 60.0
"""Seconds for which the dead are remembered, and named to others."""


@unique
class State(Enum):
    """Where a member stands."""

    APART = "apart"
    """It does not hear its own heartbeats (yet, or any more), and has no part in anything."""
    JOINING = "joining"
    """It hears itself, and waits until all who may own something know it."""
    ALIVE = "alive"
    """It is in the ring."""
    SUSPECT = "suspect"
    """It is in the ring, but has been silent for some time. Only others say that of it."""
    DRAINING = "draining"
    """It has left the ring and finishes what it had begun."""
    DEAD = "dead"
    """It has left; or its silence was so long that it cannot own anything any more."""


@unique
class Signal(Enum):
    """What can happen to a member, as it sees itself."""

    HEARD_BACK = "heard_back"
    KNOWN = "known"
    """All who may own something have heard of it."""
    CUT_OFF = "cut_off"
    """What it heard back is too old, or somebody counts it among the dead."""
    DRAINED = "drained"
    """It was told to drain."""
    LEFT = "left"
    """It was told to leave, or another process has its name."""


TRANSITIONS: Final[dict[State, dict[Signal, State]]] = {
    State.APART: {
        Signal.HEARD_BACK: State.JOINING,
        Signal.CUT_OFF: State.APART,
        Signal.DRAINED: State.DEAD,
        Signal.LEFT: State.DEAD,
    },
    State.JOINING: {
        Signal.HEARD_BACK: State.JOINING,
        Signal.KNOWN: State.ALIVE,
        Signal.CUT_OFF: State.APART,
        Signal.DRAINED: State.DRAINING,
        Signal.LEFT: State.DEAD,
    },
    State.ALIVE: {
        Signal.HEARD_BACK: State.ALIVE,
        Signal.CUT_OFF: State.APART,
        Signal.DRAINED: State.DRAINING,
        Signal.LEFT: State.DEAD,
    },
    State.DRAINING: {
        Signal.HEARD_BACK: State.DRAINING,
        Signal.CUT_OFF: State.DEAD,  # there is nothing to come back for
        Signal.DRAINED: State.DRAINING,
        Signal.LEFT: State.DEAD,
    },
    State.DEAD: {
        Signal.HEARD_BACK: State.DEAD,
        Signal.CUT_OFF: State.DEAD,
        Signal.DRAINED: State.DEAD,
        Signal.LEFT: State.DEAD,
    },
}


def digest_of(members: Iterable[str]) -> str:
    """Return what stands for a set of members: equal exactly where they are."""
    text = "".join(f"{len(name)}:{name}" for name in sorted(members))
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """
    What a member says.

    Attributes:
        name: of the member.
        born: which process it is; one that is started later under the same name has a greater number.
        incarnation: which life of that process; grows whenever it was cut off.
        number: grows with each heartbeat of the process.
        state: as it sees itself.
        version: of its view.
        digest: of the members of its view.
        doubts: whom it suspects: name, birth and the number of the last heartbeat heard.
        dead: whom it has buried not long ago: name, birth and incarnation.
    """

    name: str
    born: int
    incarnation: int
    number: int
    state: State
    version: int
    digest: str
    doubts: tuple[tuple[str, int, int], ...] = ()
    dead: tuple[tuple[str, int, int], ...] = ()
