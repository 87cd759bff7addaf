"""What `make serve-rabbitmq` runs, as a child process on free ports."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.server import clean_environment, free_port

CHECKOUT: Final = Path(__file__).parents[2]
START_DEADLINE: Final = 120.0
STOP_DEADLINE: Final = 60.0


class Trial:
    """
    A trial with a private broker and two replicas.

    Args:
        flags: its own, or those of the replicas.
        by_make: start it by `make serve-rabbitmq`, which is then the process that is ended.
    """

    def __init__(self, *flags: str, by_make: bool = False) -> None:
        self.port = _two_free_ports()
        self.amqp_port = free_port()
        self._flags = [f"--port={self.port}", f"--amqp-port={self.amqp_port}", *flags]
        self._by_make = by_make
        self._folder = tempfile.TemporaryDirectory(prefix="sluice-test-")
        self._said = Path(self._folder.name) / "said"
        self._child: subprocess.Popen[bytes] | None = None

    def said(self) -> str:
        """Return what it said so far."""
        return self._said.read_text(errors="replace") if self._said.exists() else ""

    def launch(self) -> None:
        """Start it, and do not wait for it."""
        words = [sys.executable, "-m", "deploy.trial", *self._flags]
        if self._by_make:
            words = ["make", "serve-rabbitmq", f"ARGS={' '.join(self._flags)}"]
        environ = {**clean_environment(), "TMPDIR": self._folder.name}
        with self._said.open("wb") as said:
            self._child = subprocess.Popen(words, cwd=CHECKOUT, env=environ, stdout=said, stderr=said)

    def start(self) -> None:
        """Start it, and return when it says what to type."""
        self.launch()
        deadline = time.monotonic() + START_DEADLINE
        while "Ctrl-C ends it all." not in self.said():
            assert self._child is not None
            assert self._child.poll() is None, f"it ended and said:\n{self.said()}"
            assert time.monotonic() < deadline, f"it is not ready and said:\n{self.said()}"
            time.sleep(0.05)

    def wait(self) -> int:
        """Wait for its end, and return the exit code."""
        assert self._child is not None, "it was never started"
        return self._child.wait(STOP_DEADLINE)

    def interrupt(self) -> int:
        """Press Ctrl-C, and return the exit code."""
        assert self._child is not None, "it was never started"
        self._child.send_signal(signal.SIGINT)
        return self.wait()

    def kill(self) -> None:
        """End it by SIGKILL; what it started is not this method's business."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def left(self) -> list[str]:
        """Return what is left of it: folders, and the command lines of processes."""
        root = self._folder.name
        found = [path.name for path in Path(root).iterdir() if path != self._said]
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if f"TMPDIR={root}\0".encode() in (folder / "environ").read_bytes():
                        found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def close(self) -> None:
        """End it, and remove its folder."""
        if self._child is not None and self._child.poll() is None:
            self.interrupt()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"The trial said:\n{self.said()[-5000:]}")
        self.close()


def _two_free_ports() -> int:
    """Return a port that is free, as is the next."""
    while True:
        port = free_port()
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port + 1))
            return port
