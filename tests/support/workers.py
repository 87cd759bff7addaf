"""The workers of a gateway in a child process, as the kernel lists them."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any, Final

from tests.support.clients import Address, Ended, Response, fetch
from tests.support.server import GatewayProcess

DEADLINE: Final = 30.0
ANSWER_SECONDS: Final = 3.0
"""How long a worker may take that waits a second for one that hangs."""


def pids_of(gateway: GatewayProcess) -> dict[int, int]:
    """Return the workers that run now: process to index."""
    found: dict[int, int] = {}
    children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children").read_text()
    for pid in map(int, children.split()):
        with contextlib.suppress(OSError):
            name, _, index = Path(f"/proc/{pid}/comm").read_text().strip().partition(":")
            if name == "sluice" and runs(pid):
                found[pid] = int(index)
    return found


def pid_of(gateway: GatewayProcess, index: int) -> int:
    """Return the process of a worker."""
    (pid,) = (pid for pid, each in pids_of(gateway).items() if each == index)
    return pid


def runs(pid: int) -> bool:
    """Return whether a process runs: it is there, and not only as something to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


async def ask(address: Address, path: str) -> Any:
    """Return the JSON, or the text of metrics, that a worker answers."""
    response = await fetch(address, path)
    assert response.status == 200, response
    return response.body.decode() if path == "/metrics" else response.json


async def ask_any(address: Address, path: str) -> Response:
    """Return the first answer of any worker: the kernel gives some of the questions to one that hangs."""
    async with asyncio.timeout(DEADLINE):
        while True:
            asked = [asyncio.ensure_future(fetch(address, path)) for _ in range(8)]
            try:
                for each in asyncio.as_completed(asked, timeout=ANSWER_SECONDS):
                    with contextlib.suppress(Ended, OSError):
                        return await each
            except TimeoutError:
                pass
            finally:
                for one in asked:
                    one.cancel()
                await asyncio.gather(*asked, return_exceptions=True)


class WorkersProcess(GatewayProcess):
    """
    One `sluice serve` with several workers, ready when all of them serve.

    Args:
        data: as for `GatewayProcess`. settings: as for `GatewayProcess`.
    """

    _launched = 0

    def launch(self) -> None:
        self._launched += 1
        self._environ["TMPDIR"] = self._folder.name  # what a killed supervisor leaves behind goes with it
        super().launch()

    def _is_ready(self) -> bool:
        if self.log_text().count("sluice: serving on ") < self._launched or not super()._is_ready():
            return False
        samples = self.get("/metrics")[1].decode().splitlines()
        return not any(each.startswith("sluice_log_trouble") and each.endswith(" 1.0") for each in samples)


class Impatient(WorkersProcess):
    """
    Workers whose supervisor kills who hangs after a second and a half.

    Args:
        data: as for `GatewayProcess`. settings: as for `GatewayProcess`.
    """

    @property
    def command(self) -> list[str]:
        _, _, _, *arguments = super().command
        program = (
            "import sys; from gateway.workers import supervisor; supervisor.HANG_SECONDS = 1.5; "
            "from gateway.__main__ import main; sys.exit(main())"
        )
        return [sys.executable, "-c", program, *arguments]
