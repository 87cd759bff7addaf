"""
A receiver of webhooks in a process of its own, which outlives every gateway and keeps what it got.

    with Sink() as sink:
        sink.url("ok/1")          # answers 200
        sink.url("flaky/1")       # answers every tenth request 503
        sink.url("fail/1")        # answers 500
        sink.url("hang/1")        # never answers
        sink.account()            # what came, by path

What it does is said by the first word of the path.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from tests.support.server import free_port

START_DEADLINE: Final = 20.0
FLAKY: Final = 10
"""One request of so many is refused."""


class Arrival(msgspec.Struct, frozen=True, array_like=True):
    """
    A request that came.

    Attributes:
        id: its `webhook-id`.
        data: the event's.
        time: seconds since the Unix epoch.
        status: what it was answered; 0 for nothing.
    """

    id: str
    data: Any
    time: float
    status: int

    @property
    def position(self) -> int:
        """The event's position in the log."""
        return int(self.id.split("-")[1])


class Sink:
    """The process; a context manager."""

    def __init__(self) -> None:
        self.port = free_port()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.sink", str(self.port)], stdin=subprocess.PIPE
        )
        deadline = time.monotonic() + START_DEADLINE
        while True:
            try:
                self.account()
            except OSError:
                assert time.monotonic() < deadline, "the receiver does not come up"
                time.sleep(0.02)
            else:
                break

    def url(self, path: str) -> str:
        """Return the URL of a path."""
        return f"http://127.0.0.1:{self.port}/{path}"

    def account(self) -> dict[str, list[Arrival]]:
        """Return what came, by path, in the order in which it came."""
        return msgspec.json.decode(self._get("account"), type=dict[str, list[Arrival]])

    def counts(self) -> dict[str, int]:
        """Return how many different messages were answered 200, by path."""
        return msgspec.json.decode(self._get("counts"), type=dict[str, int])

    def _get(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url(path), timeout=START_DEADLINE) as answer:
            found: bytes = answer.read()
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.communicate()  # the end of its input ends it


# --- the process


_HEAD = re.compile(rb"(\w+) /(\S*) HTTP/1.1\r\n.*?\r\n\r\n", re.DOTALL)
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n")
_ID = re.compile(rb"\r\nwebhook-id: (\S+)\r\n")


class _Data(msgspec.Struct):
    data: Any = None


_DATA: Final = msgspec.json.Decoder(_Data)


class _Book:
    """What came."""

    def __init__(self) -> None:
        self.arrivals: dict[str, list[Arrival]] = {}
        self.taken: dict[str, set[str]] = {}

    def status(self, path: str, count: int) -> int:
        """Return what a request is answered; 0 for nothing."""
        match path.partition("/")[0]:
            case "hang":
                return 0
            case "fail":
                return 500
            case "flaky":
                return 503 if count % FLAKY == 0 else 200
        return 200

    def take(self, path: str, id: str, body: bytes) -> int:
        """Write down a request, and return what it is answered."""
        arrivals = self.arrivals.setdefault(path, [])
        status = self.status(path, len(arrivals) + 1)
        arrivals.append(Arrival(id, _DATA.decode(body).data, time.time(), status))
        if status == 200:
            self.taken.setdefault(path, set()).add(id)
        return status

    def tell(self, path: str) -> bytes:
        """Return what somebody wants to know."""
        if path == "counts":
            return msgspec.json.encode({name: len(ids) for name, ids in self.taken.items()})
        return msgspec.json.encode(self.arrivals)


class _Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, book: _Book) -> None:
        self._book = book
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (head := _HEAD.match(self._buffer)) is not None:
            length = _LENGTH.search(self._buffer, 0, head.end())
            end = head.end() + (int(length[1]) if length else 0)
            if len(self._buffer) < end:
                return
            body, path, text = self._buffer[head.end() : end], head[2].decode(), head[0]
            self._buffer = self._buffer[end:]
            self._answer(head[1], path, text, body)

    def _answer(self, method: bytes, path: str, head: bytes, body: bytes) -> None:
        if method == b"GET":
            told = self._book.tell(path)
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(told), told))
            return
        id = _ID.search(head)
        assert id is not None, "a request without webhook-id"
        status = self._book.take(path, id[1].decode(), body)
        if status:
            self._transport.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)


async def _main(port: int) -> None:
    loop = asyncio.get_running_loop()
    book = _Book()
    server = await loop.create_server(lambda: _Connection(book), "127.0.0.1", port, backlog=1000)
    async with server:
        await loop.run_in_executor(None, sys.stdin.read)


def by_path(account: Mapping[str, list[Arrival]], path: str) -> list[Arrival]:
    """Return what came at a path."""
    return account.get(path, [])


if __name__ == "__main__":
    import uvloop

    uvloop.run(_main(int(sys.argv[1])))
