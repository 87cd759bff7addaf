"""
Gateways that start at once: forked from a process that has imported everything, for tests that kill one
after another.

    with Zygote(GatewayProcess(window_events=100)) as zygote:
        zygote.start()
        zygote.kill()

What runs in the child is `sluice serve`, as on the command line.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import TracebackType
from typing import Self

from tests.support.server import GatewayProcess


class Zygote:
    """
    A process with one child at a time.

    Args:
        gateway: what it is a child like, with the same command line, folder and log; never started itself.
    """

    def __init__(self, gateway: GatewayProcess) -> None:
        arguments = gateway.command[gateway.command.index("serve") :]
        with gateway._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.zygote", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=gateway._environ,
            )
        self._gateway = gateway
        self._pid = 0

    def start(self) -> None:
        """Fork a child; it is not ready yet."""
        self._pid = int(self._ask(b"start\n"))

    def kill(self) -> None:
        """End the child at once (SIGKILL), whatever it is doing, and wait until it is gone."""
        os.kill(self._pid, signal.SIGKILL)
        assert self._ask(b"wait\n") == b"-9\n", "the child had ended before it was killed"

    def _ask(self, question: bytes) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(question)
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._process.communicate()  # the end of its input ends it, and its child
        if error is not None:
            error.add_note(f"The gateways said:\n{self._gateway.log_text()[-5000:]}")
        self._gateway.close()


def _main() -> None:
    """Fork a child for each `start`, answer with its pid; answer `wait` with its exit code."""
    from gateway.__main__ import main  # noqa: PLC0415  # only the zygote has to have it
    from gateway.serving import serve  # noqa: F401, PLC0415  # … and all that a start needs

    pid = 0
    for line in sys.stdin:
        if line == "start\n":
            pid = os.fork()
            if not pid:
                os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
                os._exit(main())
            print(pid, flush=True)  # noqa: T201
        else:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            pid = 0
            print(status, flush=True)  # noqa: T201
    if pid:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _main()
