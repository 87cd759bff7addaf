"""
A receiver of webhooks in Node, which verifies by the libraries that npm has for it.

The libraries are those of `node/package-lock.json`, installed beside it once and kept.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

FOLDER: Final = Path(__file__).parent / "node"
LIBRARIES: Final = ("standardwebhooks", "svix")
DEADLINE: Final = 60.0
"""Seconds; installing from a registry takes most of them."""


def install() -> None:
    """Install what the lock file names, unless that was done before; one process at a time."""
    lock, done = FOLDER / "package-lock.json", FOLDER / "node_modules" / ".sluicegate"
    with (FOLDER / "package.json").open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if done.exists() and done.read_bytes() == lock.read_bytes():
            return
        npm = subprocess.run(
            [_tool("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
        )
        assert npm.returncode == 0, f"npm could not install the libraries: {npm.stderr}"
        done.write_bytes(lock.read_bytes())


class NodeReceiver:
    """A running receiver; use it with `with`."""

    def __init__(self) -> None:
        install()
        self._child = subprocess.Popen(
            [_tool("node"), str(FOLDER / "receiver.mjs")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._child.stdout is not None
        port = self._child.stdout.readline()
        assert port, "the receiver did not start; what it said is above"
        self.port = int(port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.terminate()
        self._child.communicate(timeout=DEADLINE)

    def verify(self, library: str, secret: str, headers: bytes, body: bytes) -> str:
        """
        Deliver a webhook, and return what the library has against its v1 signature: nothing if it is good.

        Args:
            library: one of `LIBRARIES`.
            secret: the receiver's.
            headers: lines of a request's head, each with its line break.
            body: what is sent.
        """
        return self._post(f"/{library}?secret={quote(secret, safe='')}", headers, body)

    def verify_jwk(self, jwk: object, headers: bytes, body: bytes) -> str:
        """As `verify`, of the v1a signature, by Node's own cryptography and a JSON Web Key."""
        return self._post(f"/jwk?key={quote(json.dumps(jwk), safe='')}", headers, body)

    def _post(self, target: str, headers: bytes, body: bytes) -> str:
        """Send a request byte for byte; return the text of a refusal."""
        head = f"POST {target} HTTP/1.1\r\nHost: receiver\r\nConnection: close\r\n".encode()
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        with socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE) as connection:
            connection.sendall(head + headers + length + body)
            with connection.makefile("rb") as answer:
                status, _, rest = answer.read().partition(b"\r\n")
        if status.startswith(b"HTTP/1.1 204 "):
            return ""
        assert status.startswith(b"HTTP/1.1 400 "), status
        return rest.partition(b"\r\n\r\n")[2].decode()


def _tool(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is missing: `make test` installs it"
    return found
