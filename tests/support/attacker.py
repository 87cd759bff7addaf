"""
An attacker: connections that ask for nothing, a flood of new ones, and requests that come byte by byte.

    async with Attacker() as attacker:
        damage = await attacker.attack(port, seconds=5)      # from a process of its own, niced down
    async with acceptor() as port:                           # takes what an attacker does, and nothing else

Run as a program it is that process: `python -m tests.support.attacker attack|accept`. It is written for
little work on its side, because it shares the machine with whom it attacks: bare sockets and one epoll.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import os
import resource
import select
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Final, Self, cast

import uvloop

ADDRESSES: Final = tuple(f"127.0.0.{number}" for number in range(100, 110))
"""Where it attacks from."""

NICE: Final = 5
OPENING_SECONDS: Final = 2.0
PATIENCE: Final = 3
"""How many times as long as it should an attack may take, on a machine that has other things to do."""

DROP_BYTE: Final = 2.0
"""Seconds between two bytes of a slow client."""

IP_BIND_ADDRESS_NO_PORT: Final = 24  # ip(7): the port is chosen by `connect`, for one target
_ASKING: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_SLOW: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"y" * 4000
_TICK: Final = 0.002
_AT_ONCE: Final = 100


@dataclass
class Damage:
    """
    What an attack came to.

    Attributes:
        seconds: how long it took.
        opened: connections that it opened, of all sorts.
        established: those of them that were taken by the kernel of the other side.
        held: connections that ask for nothing which it had at most.
        dropped: connections that ask for nothing which were closed by the other side.
        slow_dropped: slow clients that were closed by the other side; each comes again.
        answers: statuses of the requests that were answered, and `closed` for those that were not.
        cpu: seconds of the processor that it took.
    """

    seconds: float = 0
    opened: int = 0
    established: int = 0
    held: int = 0
    dropped: int = 0
    slow_dropped: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    cpu: float = 0

    @property
    def rate(self) -> float:
        """New connections a second."""
        return self.opened / self.seconds


class _Attack:
    """
    One attack.

    Args:
        port: of whom, on loopback.
        idle: connections that ask for nothing, opened in the first `OPENING_SECONDS`.
        slow: clients that send a byte now and then.
        rate: new connections a second: half are closed at once, a quarter ask, a quarter are held as well.
    """

    def __init__(self, port: int, idle: int, slow: int, rate: int) -> None:
        self.damage = Damage()
        self._port = port
        self._idle = idle
        self._slow = slow
        self._rate = rate
        self._epoll = select.epoll()
        self._holding: OrderedDict[int, socket.socket] = OrderedDict()
        self._asking: dict[int, socket.socket] = {}
        self._slowly: dict[int, socket.socket] = {}
        self._sent: dict[int, int] = {}  # bytes that each of these has sent
        self._due: list[tuple[float, int, int]] = []  # when which of them is to send its byte of which number

    def run(self, seconds: float) -> Damage:
        """Attack for so long; longer, if that is what so many connections take."""
        begin = time.monotonic()
        used = _cpu()
        for number in range(self._slow):
            self._dawdle(begin + DROP_BYTE * number / self._slow)
        flood, idle, now = 0, 0, time.monotonic()
        flooding = now
        most = int(self._rate * seconds)
        while now < flooding + seconds or (flood < most and now < flooding + PATIENCE * seconds):
            due = min(int((now - flooding) * self._rate), most, flood + _AT_ONCE) - flood
            for _ in range(due):
                self._one(flood)
                flood += 1
            due = (
                min(int((now - flooding) * self._idle / OPENING_SECONDS), self._idle, idle + _AT_ONCE) - idle
            )
            for _ in range(due):
                self._hold()
                idle += 1
            self._trickle(now)
            for number, _events in self._epoll.poll(_TICK, 512):
                self._happened(number)
            self.damage.held = max(self.damage.held, len(self._holding))
            now = time.monotonic()
        self.damage.seconds = time.monotonic() - begin
        self.damage.cpu = _cpu() - used
        for sock in (*self._holding.values(), *self._asking.values(), *self._slowly.values()):
            sock.close()
        self._epoll.close()
        return self.damage

    def _open(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((ADDRESSES[self.damage.opened % len(ADDRESSES)], 0))
        self.damage.opened += 1
        sock.connect_ex(("127.0.0.1", self._port))
        return sock

    def _one(self, number: int) -> None:
        if number % 4 < 2:
            sock = self._open()
            with contextlib.suppress(OSError):
                sock.getpeername()
                self.damage.established += 1
            sock.close()
        elif number % 4 == 2:
            sock = self._open()
            self._asking[sock.fileno()] = sock
            self._epoll.register(sock, select.EPOLLOUT)
        else:
            self._hold()

    def _hold(self) -> None:
        sock = self._open()
        self._holding[sock.fileno()] = sock
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP)
        if len(self._holding) > self._idle:
            self._holding.popitem(last=False)[1].close()

    def _dawdle(self, due: float) -> None:
        sock = self._open()
        self._slowly[sock.fileno()] = sock
        self._sent[sock.fileno()] = 0
        heapq.heappush(self._due, (due, sock.fileno(), 0))
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP)

    def _trickle(self, now: float) -> None:
        """Send the bytes that are due."""
        while self._due and self._due[0][0] <= now:
            _, number, sent = heapq.heappop(self._due)
            sock = self._slowly.get(number)
            if sock is None or self._sent.get(number) != sent:
                continue  # it was dropped, and perhaps another has its number
            with contextlib.suppress(OSError):
                sock.send(_SLOW[sent : sent + 1])
            self._sent[number] = sent + 1
            heapq.heappush(self._due, (now + DROP_BYTE, number, sent + 1))

    def _happened(self, number: int) -> None:
        if (sock := self._asking.get(number)) is not None:
            self._asked(number, sock)
        elif (sock := self._holding.pop(number, None)) is not None:
            self.damage.dropped += 1
            self.damage.established += 1
            sock.close()
        elif (sock := self._slowly.pop(number, None)) is not None:
            self.damage.slow_dropped += 1
            sock.close()
            self._dawdle(time.monotonic() + DROP_BYTE)

    def _asked(self, number: int, sock: socket.socket) -> None:
        try:
            answer = sock.recv(4096)
        except BlockingIOError:  # connected, and nothing sent yet
            with contextlib.suppress(OSError):
                sock.send(_ASKING)
            self.damage.established += 1
            self._epoll.modify(sock, select.EPOLLIN)
            return
        except OSError:
            answer = b""
        status = answer[9:12].decode() or "closed"
        self.damage.answers[status] = self.damage.answers.get(status, 0) + 1
        del self._asking[number]
        sock.close()


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _attack_on_command() -> None:
    """Attack as each line of the input says, and answer it with a line."""
    os.nice(NICE)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for line in sys.stdin:
        asked = json.loads(line)
        seconds = asked.pop("seconds")
        damage = _Attack(**asked).run(seconds)
        sys.stdout.write(json.dumps(asdict(damage)) + "\n")
        sys.stdout.flush()


class _Taking(asyncio.Protocol):
    """Takes a connection, answers whatever comes, and drops the oldest when there are too many."""

    many: ClassVar[OrderedDict[_Taking, None]] = OrderedDict()
    MOST: Final = 1000

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        transport.get_extra_info("peername")
        self.many[self] = None
        if len(self.many) > self.MOST:
            self.many.popitem(last=False)[0].transport.abort()

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.many.pop(self, None)


async def _accept() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = await asyncio.get_running_loop().create_server(_Taking, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


# --- from outside -------------------------------------------------------------------------------------------


async def _child(what: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.attacker",
        what,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.kill()
    await child.communicate()


@asynccontextmanager
async def acceptor() -> AsyncIterator[int]:
    """Give the port of a process that takes connections as a gateway would, and has nothing else to do."""
    child = await _child("accept")
    try:
        assert child.stdout is not None
        yield int(await child.stdout.readline())
    finally:
        await _end(child)


class Attacker:
    """A process that attacks when it is told to."""

    def __init__(self) -> None:
        self._child: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._child = await _child("attack")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._child is not None
        await _end(self._child)

    async def attack(self, port: int, seconds: float, *, idle: int, slow: int, rate: int) -> Damage:
        """Attack a port of loopback for some seconds; return what came of it."""
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        asked = {"port": port, "seconds": seconds, "idle": idle, "slow": slow, "rate": rate}
        self._child.stdin.write(json.dumps(asked).encode() + b"\n")
        line = await self._child.stdout.readline()
        return Damage(**json.loads(line))


if __name__ == "__main__":
    if sys.argv[1] == "attack":
        _attack_on_command()
    else:
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(_accept())
