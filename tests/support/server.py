"""
A real gateway in a child process, for every test that needs sockets, signals, crashes and restarts.

    with GatewayProcess(window_events=100) as gateway:       # any setting, as in `Settings`
        gateway.publish({"topic": "orders.1", "data": 1})
        gateway.kill()                                       # SIGKILL, as a power cut would
        gateway.restart()                                    # same port, same data

    async with GatewayProcess(data=tmp_path) as gateway:     # the same, without blocking the event loop
        await gateway.arestart()

Every wait has a deadline, and what a failed child said is part of the failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gateway.settings import FIELDS

START_DEADLINE = 30.0
"""Seconds for a child to become ready; it takes less than one on an idle machine."""

STOP_DEADLINE = 30.0
"""Seconds for a child to end after SIGTERM, beyond its `drain_seconds`."""


class GatewayFailed(AssertionError):
    """The child did not do what was expected; the text has what it logged."""


def free_port() -> int:
    """
    Return a port of this machine that nobody listens on now.

    It lies below the ports that the kernel gives to outgoing connections: while a gateway is down between two
    starts, a client that keeps trying would in time be given the very port, and connect to itself.
    """
    while True:
        port = random.randrange(16_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def clean_environment() -> dict[str, str]:
    """Return the environment without the gateway's own variables, so that a developer's steer no test."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}


class GatewayProcess:
    """
    One `sluice serve` child on a free port.

    Args:
        data: folder of its log, `"memory:"`, or None for a temporary folder that goes away at the end.
        environ: variables added to its environment.
        tls: what to encrypt with, if the settings have it serve TLS.
        settings: any field of `Settings`; `port` is chosen if not given, and `drain_seconds` is 0, so that
            stopping is quick.
    """

    def __init__(
        self,
        data: Path | str | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        **settings: Any,
    ) -> None:
        unknown = settings.keys() - FIELDS.keys()
        assert not unknown, f"no such settings: {', '.join(unknown)}"
        self.tls = tls
        self._folder = tempfile.TemporaryDirectory(prefix="sluice-test-")
        self.data = str(data) if data is not None else str(Path(self._folder.name) / "data")
        self.host = str(settings.pop("host", "127.0.0.1"))
        self.port = int(settings.pop("port", 0)) or free_port()
        self._settings: dict[str, Any] = {"drain_seconds": 0, **settings}
        self._environ = {**clean_environment(), **(environ or {})}
        self._log = Path(self._folder.name) / "log"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What it was given."""
        return dict(self._settings)

    @property
    def url(self) -> str:
        """Address of the gateway, without a slash at the end."""
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}"

    @property
    def websocket_url(self) -> str:
        """Address of its events for a WebSocket client."""
        return f"ws{'s' if self.tls else ''}://{self.host}:{self.port}/v1/events"

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def command(self) -> list[str]:
        """The command line of the child."""
        settings = {"host": self.host, "port": self.port, "data": self.data, **self._settings}
        return [
            sys.executable,
            "-m",
            "gateway",
            "serve",
            *(_flag(name, value) for name, value in settings.items()),
        ]

    def log_text(self) -> str:
        """Everything the children said so far, over all restarts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    # Starting and ending

    def start(self) -> None:
        """
        Start the child and return when it is ready.

        Raises:
            GatewayFailed: it ended, or was not ready before the deadline.
        """
        self.launch()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until a child that was launched is ready; see `start`."""
        deadline = time.monotonic() + START_DEADLINE
        while not self._is_ready():
            child = self._running()
            if time.monotonic() > deadline:
                child.kill()
                child.wait()
                raise GatewayFailed(f"not ready after {START_DEADLINE} s; it said:\n{self.log_text()}")
            time.sleep(0.02)

    def launch(self) -> None:
        """Start the child and do not wait for it."""
        assert not self.alive, "it is running already"
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environ
            )

    def stop(self) -> int:
        """Ask the child to end (SIGTERM), wait until it has, and return its exit code."""
        child = self._running()
        child.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, seconds: float = STOP_DEADLINE) -> int:
        """Wait for the child's end and return its exit code."""
        assert self._child is not None, "it was never started"
        try:
            return self._child.wait(seconds + float(self._settings["drain_seconds"]))
        except subprocess.TimeoutExpired:
            self.kill()
            raise GatewayFailed(f"still running after {seconds} s; it said:\n{self.log_text()}") from None

    def kill(self) -> None:
        """End the child at once (SIGKILL), whatever it is doing. Idempotent."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def freeze(self) -> None:
        """Let the child stand still (SIGSTOP): its sockets stay open and nothing answers."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen child go on."""
        self._running().send_signal(signal.SIGCONT)

    def restart(self, **settings: Any) -> None:
        """Stop the child if it runs, then start one on the same port and data, with `settings` changed."""
        if self.alive:
            self.stop()
        self._settings.update(settings)
        self.start()

    async def astart(self) -> None:
        """As `start`, without blocking the event loop."""
        await asyncio.to_thread(self.start)

    async def astop(self) -> int:
        """As `stop`, without blocking the event loop."""
        return await asyncio.to_thread(self.stop)

    async def arestart(self, **settings: Any) -> None:
        """As `restart`, without blocking the event loop."""
        await asyncio.to_thread(lambda: self.restart(**settings))

    def close(self) -> None:
        """End the child and remove its temporary folder. Idempotent."""
        self.kill()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._annotate(error)
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, where)

    # Talking to it

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Return status and body of a GET; any status is an answer."""
        return self._request(urllib.request.Request(self.url + path, headers=dict(headers or {})))

    def publish(self, *events: Mapping[str, Any]) -> dict[str, Any]:
        """
        Publish events in one request and return the answer, `{"accepted", "duplicates", "cursor"}`.

        Raises:
            GatewayFailed: the answer was not 202.
            OSError: there was no answer; what became of the events is not known.
        """
        body = json.dumps(events).encode()
        headers = {"Content-Type": "application/json"}
        status, answer = self._request(urllib.request.Request(self.url + "/v1/events", body, headers))
        if status != 202:
            raise GatewayFailed(f"publishing was answered {status}: {answer.decode(errors='replace')}")
        result: dict[str, Any] = json.loads(answer)
        return result

    async def apublish(self, *events: Mapping[str, Any]) -> dict[str, Any]:
        """As `publish`, without blocking the event loop."""
        return await asyncio.to_thread(self.publish, *events)

    def _request(self, request: urllib.request.Request) -> tuple[int, bytes]:
        # Never through a proxy that the environment names: this is loopback.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.tls)
        )
        try:
            with opener.open(request, timeout=START_DEADLINE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/readyz")[0] == 200
        return False

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._child is not None, "it was never started"
        if self._child.poll() is not None:
            raise GatewayFailed(
                f"it ended with exit code {self._child.returncode}; it said:\n{self.log_text()}"
            )
        return self._child

    def _annotate(self, error: BaseException | None) -> None:
        if error is not None:
            error.add_note(f"The gateway said:\n{self.log_text()[-5000:]}")


def _flag(name: str, value: object) -> str:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return flag if value else "--no-" + flag[2:]
    return f"{flag}={value}"
