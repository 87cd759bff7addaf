"""A worker as it sees itself: one of several, with a supervisor that it reports to and does not outlive."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.listening import tune
from gateway.workers import charge as words
from gateway.workers.charge import Charge

PR_SET_PDEATHSIG: Final = 1  # prctl(2)


class Worker:
    """
    This process, one of the workers of a gateway.

    Args:
        charge: what it is to do.
        channel: the way to its supervisor.

    Attributes:
        index: which worker it is, counted from 0.
        workers: how many there are.
        folder: where the doors of all workers are.
        store: folder of the store that all workers share.
        told_to_open: set when it is to take connections although it is not ready.
        leaving: whether another has taken its place.
        restarts: how often this worker was restarted because it fell.
        settings: the settings of the gateway.
    """

    def __init__(self, charge: Charge, channel: socket.socket) -> None:
        self.index = charge.index
        self.workers = charge.workers
        self.folder = Path(charge.folder)
        self.store = Path(charge.store)
        self.told_to_open = asyncio.Event()
        self.leaving = False
        self.restarts = charge.restarts
        self.settings = charge.settings
        self._charge = charge
        self._channel = channel
        self._leave: Callable[[], None] = lambda: None

    def listeners(self) -> list[socket.socket]:
        """Return the sockets to take connections from, tuned for streaming."""
        sockets = [socket.socket(fileno=each) for each in self._charge.listeners]
        for each in sockets:
            tune(each, self.settings.notsent_lowat, int(self.settings.stall_timeout * 1000))
            each.settimeout(0)
        return sockets

    def door(self) -> socket.socket:
        """Return the Unix socket on which the siblings ask."""
        door = socket.socket(fileno=self._charge.door)
        door.settimeout(0)
        return door

    def attend(self, leave: Callable[[], None]) -> None:
        """From now on hear what the supervisor says, and show it that the event loop turns."""
        self._leave = leave
        self._channel.settimeout(0)
        asyncio.get_running_loop().add_reader(self._channel, self._hear)
        self._beat()

    def serving(self) -> None:
        """Tell that connections are taken."""
        self._say(words.SERVING)

    def ready(self) -> None:
        """Tell that clients may be sent here."""
        self._say(words.READY)

    def refuse(self, sentence: str) -> None:
        """Tell why it cannot serve; the supervisor says it once for all."""
        self._say(words.REFUSED + sentence.encode())

    def _hear(self) -> None:
        try:
            message = self._channel.recv(words.MAX_MESSAGE)
        except OSError:
            message = b""
        if message == words.LEAVE:
            self.leaving = True
            self._leave()
        elif message == words.OPEN:
            self.told_to_open.set()
        elif not message:  # the supervisor is gone, and so shall we be in a moment
            asyncio.get_running_loop().remove_reader(self._channel)

    def _beat(self) -> None:
        self._say(words.ALIVE)
        asyncio.get_running_loop().call_later(words.ALIVE_SECONDS, self._beat)

    def _say(self, message: bytes) -> None:
        with contextlib.suppress(
            OSError
        ):  # nobody there, or nobody listens: nothing to be done about it here
            self._channel.send(message)


def receive(channel: socket.socket) -> Worker:
    """
    Become a worker: take the charge from a channel, and arrange to die with the supervisor.

    The kernel does that, so it holds whatever this process is doing then: also when its event loop hangs.

    Raises:
        OSError: that cannot be arranged, or the supervisor is gone already.
    """
    charge = Charge.decode(channel.recv(words.MAX_MESSAGE))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "the end of the supervisor cannot be watched")
    if os.getppid() != charge.supervisor:
        raise ProcessLookupError("the supervisor is gone")
    with contextlib.suppress(OSError):  # for `top` and `ps`; nothing depends on it
        Path("/proc/self/comm").write_text(f"sluice:{charge.index}")
    return Worker(charge, channel)
