"""HTTP servers that write down what they are asked, headers and all, and answer as a test says."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request: header names in lower case, each value that it was sent with."""

    method: str
    path: str
    headers: dict[str, list[str]]
    body: bytes


@dataclass(frozen=True)
class Said:
    """An answer."""

    body: bytes = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Recorder:
    """A server: where it is, what it was asked so far, and how it answers from now on."""

    url: str
    answer: Callable[[Asked], Said]
    asked: list[Asked] = field(default_factory=list)

    def credentials(self) -> list[list[str]]:
        """Return what each request had in `Authorization`."""
        return [each.headers.get("authorization", []) for each in self.asked]


@contextmanager
def recording(answer: Callable[[Asked], Said], tls: ssl.SSLContext | None = None) -> Iterator[Recorder]:
    """Serve HTTP on a free port."""
    recorder = Recorder("", answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            headers: dict[str, list[str]] = {}
            for name, value in self.headers.items():
                headers.setdefault(name.lower(), []).append(value)
            asked = Asked(self.command, self.path, headers, body)
            recorder.asked.append(asked)
            said = recorder.answer(asked)
            with suppress(ConnectionError):  # it has seen enough
                self.say(said)

        def say(self, said: Said) -> None:
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            if said.status != 204:
                self.send_header("Content-Length", str(len(said.body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(said.body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.respond)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    recorder.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
