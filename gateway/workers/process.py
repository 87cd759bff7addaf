"""A worker as its supervisor sees it: a child process, and the channel to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.workers import charge as words
from gateway.workers.charge import Charge
from gateway.workers.endings import Ending

_ROOT: Final = Path(__file__).resolve().parents[2]
"""The folder from which the package is imported."""


Heard = Callable[["Process"], None]
"""Called when a worker has come further: it takes connections, or is ready."""


class Process:
    """
    A child that was given a charge.

    Args:
        charge: what it is to do; the descriptors in it are those of this process, and are handed down.
        heard: told when it has come further.

    Attributes:
        opened: set once it takes connections.
        ready: set once it is ready.
        gone: set once it has ended; then `ending` says how.
        asked: whether it was told to go.
        refusal: the sentence with which it said that it cannot start; empty if it did not.

    Raises:
        OSError: no process could be started.
    """

    def __init__(self, charge: Charge, heard: Heard) -> None:
        self.index = charge.index
        self.opened = asyncio.Event()
        self.ready = asyncio.Event()
        self.gone = asyncio.Event()
        self.ending: Ending | None = None
        self.asked = False
        self.refusal = ""
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._alive: float | None = None  # when it last gave a sign of life
        self._heard = heard
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._channel.settimeout(0)
                self._channel.send(charge.encode())
                self._child = subprocess.Popen(  # noqa: S603  (this program)
                    command(charge.index, theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), charge.door, *charge.listeners),
                    process_group=0,  # the terminal's Ctrl+C comes to us alone, who pass it on
                )
            except BaseException:
                self._channel.close()
                raise
        self._loop.add_reader(self._channel, self.hear)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def up(self) -> bool:
        """Whether it serves clients."""
        return self.opened.is_set() and self.ready.is_set() and not self.gone.is_set()

    def silence(self) -> float:
        """Return for how many seconds it gave no sign of life; 0 before its first."""
        if self.gone.is_set():
            return 0.0
        self.hear()
        return 0.0 if self._alive is None else self._loop.time() - self._alive

    def hear(self) -> None:
        """Take what it said."""
        while True:
            try:
                message = self._channel.recv(words.MAX_MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:  # it has closed its end
                self._loop.remove_reader(self._channel)
                return
            self._take(message)

    def _take(self, message: bytes) -> None:
        self._alive = self._loop.time()
        if message == words.SERVING:
            self.opened.set()
            self._heard(self)
        elif message == words.READY:
            self.ready.set()
            self._heard(self)
        elif message.startswith(words.REFUSED):
            self.refusal = message.removeprefix(words.REFUSED).decode()

    def open(self) -> None:
        """Tell it to take connections, if it does not yet, although it is not ready."""
        if not self.opened.is_set():
            self._tell(words.OPEN)

    def leave(self) -> None:
        """Tell it to let its connections go and to end, while another takes new ones."""
        self.asked = True
        if self.opened.is_set():
            self._tell(words.LEAVE)
        else:
            self.signal(signal.SIGTERM)

    def _tell(self, word: bytes) -> None:
        with contextlib.suppress(OSError):  # it is gone, or does not listen: that shows otherwise
            self._channel.send(word)

    def signal(self, number: int) -> None:
        """Tell it to go, by a signal."""
        self.asked = True
        self._child.send_signal(number)

    def kill(self) -> None:
        """End it at once, whatever it is doing. That is no way of asking."""
        self._child.kill()

    def reap(self) -> bool:
        """Find out whether it has ended; return whether that is news."""
        if self.gone.is_set() or (code := self._child.poll()) is None:
            return False
        self.hear()  # its last words may have come with its end
        self._loop.remove_reader(self._channel)
        self._channel.close()
        seconds = self._loop.time() - self._began
        self.ending = Ending(code, seconds, asked=self.asked, ready=self.ready.is_set())
        self.gone.set()
        return True

    async def come_up(self, seconds: float) -> bool:
        """Wait until it serves clients; return False if it ended, or the time was over, before."""
        waits = [asyncio.ensure_future(self._is_up()), asyncio.ensure_future(self.gone.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        return self.up

    async def _is_up(self) -> None:
        await self.opened.wait()
        await self.ready.wait()

    async def end_within(self, seconds: float) -> bool:
        """Wait until it has ended; kill it if the time is over, and return False then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.gone.wait()
        in_time = self.gone.is_set()
        if not in_time:
            self.kill()
            await self.gone.wait()
        return in_time


def command(index: int, channel: int) -> list[str]:
    """
    Return the command line of a worker.

    The package is looked for where this process found it: in the working directory only if that is so here.
    """
    here = bool(sys.path) and Path(sys.path[0] or os.curdir).resolve() == _ROOT
    isolated = [] if here else ["-P"]
    return [sys.executable, *isolated, "-m", "gateway.workers", str(index), str(channel)]
