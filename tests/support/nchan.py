"""
Debian's Nchan beside our gateway: two implementations of one small interface, so that one test runs against
both.

`Peer` is what both can do: publish a text to a channel, subscribe on a transport from the oldest message or
from now on, count who waits. A private nginx is started on a free port with a configuration and folder of its
own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.clients import (
    DEADLINE,
    Address,
    Body,
    Response,
    SseReader,
    Tcp,
    WebSocket,
    exchange,
    fetch,
    handshake_bytes,
    open_subscriber,
    read_head,
    request_bytes,
    until,
)
from tests.support.server import free_port

MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
TRANSPORTS = ("longpoll", "eventsource", "websocket", "chunked")

CONFIGURATION = """
load_module {module};
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/log warn;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_max_body_size 16m;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  nchan_shared_memory_size 128M;
  nchan_max_channel_id_length 16384;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location = /ready {{ return 204; }}
    location ~ ^/pub/(.+)$ {{
      nchan_publisher http; nchan_channel_id $1;
      nchan_message_buffer_length 10000; nchan_message_timeout 1h;
    }}
    location ~ ^/short/(.+)$ {{
      nchan_publisher http; nchan_channel_id $1;
      nchan_message_buffer_length 10000; nchan_message_timeout 1s;
    }}
    location ~ ^/few/(.+)$ {{
      nchan_publisher http; nchan_channel_id $1;
      nchan_message_buffer_length 3; nchan_message_timeout 1h;
    }}
    location ~ ^/sub/oldest/(.+)$ {{
      nchan_subscriber websocket eventsource longpoll chunked;
      nchan_channel_id $1; nchan_channel_id_split_delimiter ",";
      nchan_subscriber_first_message oldest;
    }}
    location ~ ^/sub/newest/(.+)$ {{
      nchan_subscriber websocket eventsource longpoll chunked;
      nchan_channel_id $1; nchan_channel_id_split_delimiter ",";
      nchan_subscriber_first_message newest;
    }}
    location ~ ^/sub/timeout/(.+)$ {{
      nchan_subscriber longpoll; nchan_channel_id $1; nchan_subscriber_timeout 1;
    }}
    location ~ ^/sub/interval/(.+)$ {{
      nchan_subscriber intervalpoll; nchan_channel_id $1;
    }}
  }}
}}
"""


class Reader(ABC):
    """A subscriber's messages."""

    @abstractmethod
    async def messages(self, count: int) -> list[str]:
        """Return the next `count` messages."""


class Peer(ABC):
    """Something that channels can be published to and subscribed at."""

    name: str

    @abstractmethod
    async def publish(self, channel: str, text: str, *, seconds: int | None = None) -> None:
        """Publish a text; with `seconds` it is gone after that time."""

    @abstractmethod
    def subscribe(self, transport: str, *channels: str, oldest: bool = False) -> Any:
        """Subscribe, from the oldest message or from now on: an async context manager of a `Reader`."""

    @abstractmethod
    async def waiting(self, channel: str) -> int:
        """Return how many subscribers a channel has."""


# --- ours --------------------------------------------------------------------------------------------------


class OurReader(Reader):
    """Our subscriber; a message is the data of an event."""

    def __init__(self, subscriber: Any) -> None:
        self._subscriber = subscriber

    async def messages(self, count: int) -> list[str]:
        return [event["data"] for event in await self._subscriber.events(count)]


class OurGateway(Peer):
    """
    Our gateway; a channel is a topic.

    Args:
        address: where it is.
    """

    name = "sluicegate"

    def __init__(self, address: Address) -> None:
        self.address = address

    async def publish(self, channel: str, text: str, *, seconds: int | None = None) -> None:
        response = await fetch(
            self.address,
            f"/v1/topics/{quote(channel, safe='')}",
            [("ttl", str(seconds))] if seconds is not None else [],
            [("Content-Type", "text/plain; charset=utf-8")],
            method="POST",
            body=text.encode(),
        )
        assert response.status == 202, response

    @asynccontextmanager
    async def subscribe(self, transport: str, *channels: str, oldest: bool = False) -> AsyncIterator[Reader]:
        ours = {"eventsource": "sse", "chunked": "ndjson"}.get(transport, transport)
        cursor = "earliest" if oldest else "latest"
        async with open_subscriber(self.address, ours, *channels, cursor=cursor) as subscriber:
            yield OurReader(subscriber)

    async def waiting(self, channel: str) -> int:
        listed = (await fetch(self.address, "/v1/topics", [("limit", "1000")])).json["subscriptions"]
        return sum(each["connections"] for each in listed if each["pattern"] == channel)


# --- Nchan -------------------------------------------------------------------------------------------------


class NchanLongPoll(Reader):
    """One message a request, walking on by `Last-Modified` and `Etag`."""

    def __init__(self, tcp: Tcp, target: str) -> None:
        self._tcp = tcp
        self._target = target
        self.cursor: list[tuple[str, str]] = []

    async def ask(self) -> Response:
        """Make one request."""
        response = await exchange(self._tcp, request_bytes("GET", self._target, self.cursor))
        if response.status == 200:
            head = response.head
            self.cursor = [("If-Modified-Since", head["last-modified"]), ("If-None-Match", head["etag"])]
        return response

    async def messages(self, count: int) -> list[str]:
        bodies = []
        for _ in range(count):
            response = await self.ask()
            assert response.status == 200, response
            bodies.append(response.body.decode())
        return bodies


class NchanEventSource(Reader):
    """One block a message."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._reader = SseReader()
        self._ready: list[str] = []

    async def messages(self, count: int) -> list[str]:
        async with asyncio.timeout(DEADLINE):
            while len(self._ready) < count:
                data = await self._body.some()
                assert data, "the stream ended"
                self._ready += [block.data for block in self._reader.feed(data) if block.data is not None]
        taken, self._ready = self._ready[:count], self._ready[count:]
        return taken


class NchanChunks(Reader):
    """One chunk a message, which is how Nchan's `chunked` subscribers tell them apart."""

    def __init__(self, body: Body) -> None:
        self._body = body

    async def messages(self, count: int) -> list[str]:
        return [(await self._body.some()).decode() for _ in range(count)]


class NchanWebSocket(Reader):
    """One text message a message."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def messages(self, count: int) -> list[str]:
        return [await self._socket.receive_text() for _ in range(count)]


class Nchan(Peer):
    """
    Nchan.

    Args:
        address: where its nginx is.
    """

    name = "nchan"

    def __init__(self, address: Address) -> None:
        self.address = address

    async def publish(self, channel: str, text: str, *, seconds: int | None = None) -> None:
        assert seconds in (None, 1), "the configuration has one location for a second"
        await self.post("pub" if seconds is None else "short", channel, text)

    async def post(self, location: str, channel: str, text: str) -> Response:
        """Publish at one of the configuration's locations."""
        headers = [("Content-Type", "text/plain")]
        path = f"/{location}/{quote(channel, safe='')}"
        response = await fetch(self.address, path, (), headers, method="POST", body=text.encode())
        assert response.status in (201, 202), response
        return response

    @asynccontextmanager
    async def subscribe(self, transport: str, *channels: str, oldest: bool = False) -> AsyncIterator[Any]:
        where = "oldest" if oldest else "newest"
        target = f"/sub/{where}/" + ",".join(quote(channel, safe="") for channel in channels)
        async with Tcp.open(self.address) as tcp:
            if transport == "longpoll":
                yield NchanLongPoll(tcp, target)
            elif transport == "websocket":
                request = handshake_bytes(self.address).replace(b"GET /v1/events ", f"GET {target} ".encode())
                await tcp.send(request)
                head = await read_head(tcp)
                assert head.status == 101, head
                yield NchanWebSocket(WebSocket(tcp, head))
            else:
                chosen = {"eventsource": ("Accept", "text/event-stream"), "chunked": ("TE", "chunked")}
                await tcp.send(request_bytes("GET", target, [chosen[transport]]))
                body = Body(tcp, await read_head(tcp))
                yield NchanEventSource(body) if transport == "eventsource" else NchanChunks(body)

    async def waiting(self, channel: str) -> int:
        headers = [("Accept", "text/json")]
        response = await fetch(self.address, f"/pub/{quote(channel, safe='')}", (), headers)
        return int(response.json["subscribers"]) if response.status == 200 else 0


@contextmanager
def running_nchan() -> Iterator[Address]:
    """Run a private nginx with Nchan; end it at the end."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None or not MODULE.exists():
        pytest.fail(
            "nginx with Nchan is needed: install the packages nginx and libnginx-mod-nchan, or `make test`"
        )
    with tempfile.TemporaryDirectory(prefix="sluice-nchan-") as folder:
        port = free_port()
        configuration = Path(folder) / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""  # or its worker could not use our folder
        configuration.write_text(CONFIGURATION.format(module=MODULE, folder=folder, port=port, user=user))
        command = [nginx, "-p", folder, "-c", str(configuration), "-e", f"{folder}/log"]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            address = Address("127.0.0.1", port)
            asyncio.run(until(lambda: _answers(address, child), "nginx answers"))
            yield address
        finally:
            child.terminate()
            _, errors = child.communicate(timeout=DEADLINE)
            assert child.returncode == 0, errors.decode()


async def _answers(address: Address, child: subprocess.Popen[bytes]) -> bool:
    assert child.poll() is None, f"nginx ended: {child.communicate()[1].decode()}"
    try:
        return (await fetch(address, "/ready")).status == 204
    except OSError:
        return False
