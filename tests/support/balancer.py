"""The load balancers of `deploy/`, run as they are there, with the addresses of a test."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx

from tests.support.clients import Address
from tests.support.rabbitmq import accepts
from tests.support.server import GatewayFailed, free_port

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
PATH: Final = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
DEADLINE: Final = 30.0


class Balancer:
    """
    HAProxy or nginx.

    Args:
        kind: `haproxy` or `nginx`.
        replicas: what it stands before, in the place of replica1, replica2 and so on.
        idle: seconds in the place of the 75 after which a silent connection is closed.
    """

    def __init__(self, kind: str, replicas: Sequence[Address], idle: int = 75) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=f"sluice-{kind}-")
        self._kind = kind
        self.address = Address("127.0.0.1", free_port())
        name = {"haproxy": "haproxy.cfg", "nginx": "nginx.conf"}[kind]
        text = (DEPLOY / name).read_text()
        for number, replica in enumerate(replicas, 1):
            text, found = re.subn(rf"\breplica{number}:8000\b", f"{replica.host}:{replica.port}", text)
            assert found, f"{name} has no replica{number}"
        text, found = re.subn(r"\b75s\b", f"{idle}s", text)
        assert found, f"{name} closes nothing after 75 s"
        self._config = Path(self._folder.name) / name
        self._config.write_text(getattr(self, f"_{kind}")(text))
        self._child: subprocess.Popen[bytes] | None = None

    def _haproxy(self, text: str) -> str:
        changed, found = re.subn(r"bind :8080\b", f"bind 127.0.0.1:{self.address.port}", text)
        assert found == 1
        return changed

    def _nginx(self, text: str) -> str:
        changed, found = re.subn(r"listen 8080\b", f"listen 127.0.0.1:{self.address.port}", text)
        assert found == 1
        folder = self._folder.name
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        changed = changed.replace("http {\n", f"http {{\naccess_log off;\n{temporary}", 1)
        return f"daemon off;\npid {folder}/pid;\nerror_log {folder}/errors;\n{changed}"

    @property
    def command(self) -> list[str]:
        program = shutil.which(self._kind, path=PATH)
        assert program is not None, f"{self._kind} is missing: `make test` installs it"
        if self._kind == "haproxy":
            return [program, "-db", "-f", str(self._config)]
        return [program, "-e", f"{self._folder.name}/errors", "-c", str(self._config)]

    def log_text(self) -> str:
        """Return what it said."""
        return "\n".join(path.read_text() for path in Path(self._folder.name).glob("*") if path.is_file())

    async def apublish(self, *events: Mapping[str, Any]) -> dict[str, Any]:
        """
        Publish events in one request and return the answer.

        Raises:
            GatewayFailed: the answer was not 202.
            OSError: there was no answer.
        """
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as client:
                answer = await client.post(f"{self.address.url}/v1/events", json=list(events))
        except httpx.HTTPError as error:
            raise OSError(str(error)) from error
        if answer.status_code != 202:
            raise GatewayFailed(f"publishing was answered {answer.status_code}: {answer.text}")
        result: dict[str, Any] = answer.json()
        return result

    def __enter__(self) -> Self:
        with (Path(self._folder.name) / "said").open("wb") as said:
            self._child = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        deadline = time.monotonic() + DEADLINE
        while not (accepts(self.address.port) and self._serves()):
            if self._child.poll() is not None or time.monotonic() > deadline:
                text = self.log_text()
                self.close()
                raise AssertionError(f"{self._kind} does not serve; it said:\n{text}")
            time.sleep(0.05)
        return self

    def _serves(self) -> bool:
        try:
            return httpx.get(f"{self.address.url}/readyz", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"The balancer said:\n{self.log_text()[-5000:]}")
        self.close()

    def close(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.terminate()
            self._child.wait(DEADLINE)
        self._folder.cleanup()
