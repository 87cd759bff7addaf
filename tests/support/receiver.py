"""
Receivers of webhooks that follow a script, byte by byte, and what a test wants to know about the other side.

A script is a coroutine for one connection; it reads requests and writes whatever it likes. When it returns
the connection is closed. The first connection gets the first script, and so on; the last one repeats.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from webhooks.resolve import Unresolved

DEADLINE = 20.0
"""Seconds for anything to happen that must happen."""

TASK_NAME = "receiver"
"""Of the tasks that are a receiver's."""

HEAD = b"HTTP/1.1 200 OK\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Received:
    """One request, as it came."""

    line: str
    headers: dict[str, str]
    body: bytes


def with_status(status: int, *lines: str) -> bytes:
    """Return an answer with a status, further headers, and a short body."""
    return "\r\n".join([f"HTTP/1.1 {status} X", *lines, "Content-Length: 2", "", "ok"]).encode()


class Peer:
    """One connection to a receiver, in the hands of its script."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, found: Receiver) -> None:
        self.reader = reader
        self.writer = writer
        self._found = found

    async def request(self) -> Received:
        """Read a whole request."""
        async with asyncio.timeout(DEADLINE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
            headers = dict(each.split(": ", 1) for each in lines)
            assert len(headers) == len(lines), "a header came twice"
            body = await self.reader.readexactly(int(headers["Content-Length"]))
        received = Received(line, headers, body)
        self._found.requests.append(received)
        self._found.arrived.release()
        return received

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the other side has closed."""
        async with asyncio.timeout(DEADLINE):
            with suppress(ConnectionError, ssl.SSLError):
                assert await self.reader.read(1) == b"", "more was sent than a request"

    def reset(self) -> None:
        """Close with a reset, not with an end."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class Receiver:
    """
    A receiver that is listening.

    Attributes:
        connections: how many were made.
        requests: all that came whole.
        arrived: counts them, to be waited for.
    """

    port: int
    scheme: str
    connections: int = 0
    requests: list[Received] = field(default_factory=list)
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    errors: list[BaseException] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hook"

    def named(self, host: str) -> str:
        """Return the URL with a name for the host."""
        return f"{self.scheme}://{host}:{self.port}/hook"


@asynccontextmanager
async def receiver(
    *scripts: Script, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", backlog: int = 100
) -> AsyncIterator[Receiver]:
    """Listen on a free port; a script that fails, fails the test."""
    found = Receiver(0, "https" if tls else "http")
    running: set[asyncio.Task[None]] = set()

    async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name(TASK_NAME)
        running.add(task)
        script = scripts[min(found.connections, len(scripts) - 1)]
        found.connections += 1
        try:
            await script(Peer(reader, writer, found))
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, asyncio.CancelledError):
            pass  # the sender went away, or the test ends
        except (AssertionError, TimeoutError) as error:
            found.errors.append(error)
        finally:
            running.discard(task)
            writer.close()

    server = await asyncio.start_server(follow, host, 0, ssl=tls, limit=1 << 22, backlog=backlog)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    assert not found.errors, found.errors


def answers(*data: bytes, then: Callable[[Peer], None] | None = None, close: bool = False) -> Script:
    """Return a script: answer each request with the next of `data`, then close or wait for the other side."""

    async def script(peer: Peer) -> None:
        for each in data:
            await peer.request()
            await peer.send(each)
        if then is not None:
            then(peer)
        elif not close:
            await peer.gone()

    return script


async def always(peer: Peer) -> None:
    """A script: answer every request with 200."""
    while True:
        await peer.request()
        await peer.send(OK)


async def silent(peer: Peer) -> None:
    """A script: take a request and say nothing."""
    await peer.request()
    await peer.gone()


class FixedNames:
    """Names that lead where a test says: each look-up gets the next of a name's answers, the last repeats."""

    def __init__(self, **answers: list[tuple[str, ...]]) -> None:
        self._answers = {host.replace("_", "."): list(each) for host, each in answers.items()}
        self.asked: list[str] = []

    async def addresses(self, host: str) -> tuple[str, ...]:
        self.asked.append(host)
        answers = self._answers.get(host)
        if answers is None:
            raise Unresolved("the name does not exist, or has no address")
        return answers.pop(0) if len(answers) > 1 else answers[0]


def sockets_to(port: int) -> int:
    """Return how many of this process's sockets are connected, or connecting, to a port."""
    inodes = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            match = re.fullmatch(r"socket:\[(\d+)\]", str(path.readlink()))
            if match is not None:
                inodes.add(match[1])
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
    ]
    return sum(row[9] in inodes and int(row[2].rpartition(":")[2], 16) == port for row in rows)


@contextmanager
def full_backlog() -> Iterator[int]:
    """Yield a port at which no connection is ever completed: its backlog is full and nobody accepts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting: list[socket.socket] = []
        try:
            for _ in range(20):
                sock = socket.socket()
                waiting.append(sock)
                sock.settimeout(0.3)
                try:
                    sock.connect(listener.getsockname())
                except TimeoutError:
                    break
            else:
                raise AssertionError("the backlog does not fill up")
            yield listener.getsockname()[1]
        finally:
            for sock in waiting:
                sock.close()


async def until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
    """Wait for a condition."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.002)
