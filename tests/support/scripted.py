"""Gateways that follow a script, for what a real one does only in trouble: 503, hanging up, advice to go."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve

HANG_UP: Any = None
"""A step of a script: take the request and close the connection without an answer."""


@dataclass
class Answer:
    """A step of a script: answer with this."""

    status: int = 202
    body: Any = field(default_factory=lambda: {"accepted": 1, "duplicates": 0, "cursor": "abcdef-1-0000"})
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class ScriptedHttp:
    """A server that took these requests: the URL of it, and the JSON bodies it was sent."""

    url: str
    bodies: list[Any]


@contextmanager
def scripted_http(*steps: Answer) -> Iterator[ScriptedHttp]:
    """Serve HTTP on a free port: the first request gets the first step, and so on; the last step repeats."""
    bodies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            step = steps[min(len(bodies), len(steps)) - 1]
            if step is HANG_UP:
                self.close_connection = True
                return
            body = step.body if isinstance(step.body, bytes) else json.dumps(step.body).encode()
            self.send_response(step.status)
            for name, value in step.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield ScriptedHttp(f"http://127.0.0.1:{server.server_port}", bodies)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Close:
    """The end of one connection's script: close it so."""

    code: int = 1000
    reason: str = ""


@dataclass
class ScriptedWebSocket:
    """A server that was asked for these cursors and topics, one entry per connection."""

    url: str
    cursors: list[str]
    topics: list[list[str]]
    connected: asyncio.Event  # somebody has


@asynccontextmanager
async def scripted_websocket(
    *connections: Sequence[dict[str, Any] | Close], port: int = 0
) -> AsyncIterator[ScriptedWebSocket]:
    """
    Serve WebSocket: the first connection gets the messages of the first script, and so on.

    A script that ends without `Close` drops the connection without a close frame; a connection beyond the
    last script stays open and gets nothing.
    """
    asked = ScriptedWebSocket("", [], [], asyncio.Event())

    async def follow(connection: ServerConnection) -> None:
        assert connection.request is not None
        query = parse_qs(urlsplit(connection.request.path).query)
        asked.cursors.append(query["cursor"][0])
        asked.topics.append(query["topic"])
        asked.connected.set()
        number = len(asked.cursors) - 1
        if number >= len(connections):
            await connection.wait_closed()
            return
        for step in connections[number]:
            if isinstance(step, Close):
                await connection.close(step.code, step.reason)
                return
            await connection.send(json.dumps(step))
        connection.transport.abort()

    async with serve(follow, "127.0.0.1", port) as server:
        asked.url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        yield asked
