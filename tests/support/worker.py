"""
A real `sluice worker` in a child process, with a handler of the test's own.

    with WorkerProcess(gateway.url, "reports", "def handle(request): return request.data") as worker:
        worker.kill()                                   # SIGKILL
        worker.start()
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.command import sluice_command
from tests.support.server import clean_environment

STOP_DEADLINE = 30.0
"""Seconds for a worker to end after SIGTERM."""


class WorkerProcess:
    """
    One worker.

    Args:
        url: of its gateway, or of its broker.
        service: whose requests it works on.
        code: of a module that has `handle`.
        flags: further ones, as `concurrency=4`.
    """

    def __init__(self, url: str, service: str, code: str, **flags: object) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sluice-worker-")
        self._path = Path(self._folder.name)
        (self._path / "handler_of_test.py").write_text(code)
        more = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
        source = f"--backbone={url}" if url.startswith("amqp") else f"--gateway={url}"
        self.command = sluice_command(
            "worker", "handler_of_test:handle", f"--service={service}", source, *more
        )
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._running().pid

    def log_text(self) -> str:
        """Return everything it said so far, over all starts."""
        path = self._path / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start it; it works as soon as its gateway lets it."""
        with (self._path / "log").open("ab") as log:
            self._child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._path,
                env=clean_environment(),
            )

    def stop(self) -> int:
        """Ask it to end (SIGTERM), wait until it has, and return its exit code."""
        self._running().send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended by itself; return its exit code."""
        return self._running().wait(STOP_DEADLINE)

    def kill(self) -> None:
        """End it at once (SIGKILL). Idempotent."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def freeze(self) -> None:
        """Let it stand still (SIGSTOP)."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._running().send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder. Idempotent."""
        self.kill()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"the worker said:\n{self.log_text()[-4000:]}")
        self.close()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._child is not None, "it was never started"
        return self._child
