"""The place of one worker: what stays when its process is another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from gateway.listening import Port, close_all
from gateway.settings import Settings
from gateway.workers.charge import COMING, LEAVING, Charge, door_name
from gateway.workers.endings import Pauses
from gateway.workers.process import Heard, Process


class Seat:
    """
    A seat, with its listening sockets and its door.

    Args:
        index: which worker it is of, counted from 0.
        workers: how many there are.
        port: what they all serve on.
        folder: where the doors are.
        store: folder of the store that they share.

    Attributes:
        process: the one that serves here.
        served: whether one has been ready here.
        restarts: how often another was started because one fell.
        pauses: before those.
        turn: held by whoever puts another process here.
    """

    def __init__(self, index: int, workers: int, port: Port, folder: Path, store: Path) -> None:
        self.index = index
        self.process: Process | None = None
        self.served = False
        self.restarts = 0
        self.pauses = Pauses()
        self.turn = asyncio.Lock()
        self._workers = workers
        self._port = port
        self._store = store
        self._folder = folder
        self._listeners: list[socket.socket] = []

    def start(self, settings: Settings, heard: Heard) -> Process:
        """
        Return a new process that is to sit here; if another does, it listens on the same sockets.

        Raises:
            OSError: it cannot be started.
        """
        if not self._listeners:
            self._listeners = self._port.share()
        replaces = self.process is not None and not self.process.gone.is_set()
        with self._bound_door(COMING if replaces else "") as door:
            charge = Charge(
                index=self.index,
                workers=self._workers,
                supervisor=os.getpid(),
                listeners=[each.fileno() for each in self._listeners],
                door=door.fileno(),
                folder=str(self._folder),
                store=str(self._store),
                restarts=self.restarts,
                settings=settings,
            )
            return Process(charge, heard)

    def replace(self, process: Process) -> Process:
        """Seat another process, whom the siblings find from now on; return the one that sat here."""
        old, self.process = self.process, process
        assert old is not None
        door, coming, leaving = self._door(), self._door(COMING), self._door(LEAVING)
        if coming.exists():  # else the old one had fallen before, and the new one has its door
            leaving.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):  # the old one fell meanwhile
                leaving.hardlink_to(door)
            coming.replace(door)
        return old

    def left(self) -> None:
        """Forget the door of a process that was replaced and has ended."""
        self._door(LEAVING).unlink(missing_ok=True)

    def fall(self) -> None:
        """Nobody sits here: the kernel is to send nobody here, unless somebody is about to sit down."""
        if not self.turn.locked():
            self.close()
            self._door().unlink(missing_ok=True)

    def close(self) -> None:
        """Take no more part in the port; who sits here may go on with it. Idempotent."""
        close_all(self._listeners)

    def _door(self, suffix: str = "") -> Path:
        return self._folder / (door_name(self.index) + suffix)

    @contextlib.contextmanager
    def _bound_door(self, suffix: str) -> Iterator[socket.socket]:
        """Make a door for a process that is to have it alone."""
        path = self._door(suffix)
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.bind(str(path))
            yield door
