"""
What supervisor and worker say to each other.

They share a channel, a pair of sockets that keeps messages apart (SOCK_SEQPACKET, unix(7)). The first message
is the charge, which makes a new process a worker. From then on a worker says how far it is and, every second,
that it is alive; the supervisor says two things.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.settings import Settings

# A worker says:
SERVING: Final = b"serving"  # it takes connections
READY: Final = b"ready"  # its log is open: clients may be sent to it
ALIVE: Final = b"alive"
REFUSED: Final = b"refused: "  # … and why, before it ends

# The supervisor says:
OPEN: Final = b"open"  # take connections although you are not ready: nobody is, and somebody must say why
LEAVE: Final = b"leave"  # another takes its connections from now on; it is to drain and to end

ALIVE_SECONDS: Final = 1.0
MAX_MESSAGE: Final = 1 << 18


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """
    Everything that a process must know to be a worker.

    Attributes:
        index: which worker it is, counted from 0.
        workers: how many there are.
        supervisor: the process that it is not to outlive.
        listeners: descriptors of bound sockets to take connections from.
        door: descriptor of a bound Unix socket, on which it answers its siblings.
        folder: where the doors of all workers are.
        store: folder of the store that all workers share.
        restarts: how often this worker was restarted because it fell.
        settings: the settings of the gateway.
    """

    index: int
    workers: int
    supervisor: int
    listeners: list[int]
    door: int
    folder: str
    store: str
    restarts: int
    settings: Settings

    def encode(self) -> bytes:
        """Return it as a message."""
        return msgspec.json.encode(self)

    @staticmethod
    def decode(message: bytes) -> Charge:
        """Return the charge that a message is."""
        return msgspec.json.decode(message, type=Charge)


def door_name(index: int) -> str:
    """Return the name of a worker's door in the folder."""
    return f"{index}.sock"


LEAVING: Final = ".leaving"
"""What is put behind the name of a door whose worker is on its way out while another took its place."""

COMING: Final = ".coming"
"""What is put behind the name of a door whose worker is to take the place of one that still serves."""
