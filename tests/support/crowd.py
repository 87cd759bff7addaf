"""
Many clients in one event loop, for scenarios: members that hold on to their patterns, producers that never
give up.

A `Member` is what the design wants a client to be: it has a cursor, and goes on from there on whatever
transport, whenever its connection ends. It reads strictly, each event once, in order, with the cursor going
up, and keeps what it got, to be compared with the log. It opens bare sockets and reads with
`tests.support.readers`.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from fanout.cursor import Cursor
from fanout.frames import Wire
from fanout.topics import matches
from tests.support.readers import Message, reader_of

WIRES: Final = {"websocket": Wire.WEBSOCKET, "sse": Wire.SSE_CHUNKED, "ndjson": Wire.NDJSON_CHUNKED}
STREAMS: Final = tuple(WIRES)
TRANSPORTS: Final = (*STREAMS, "longpoll", "poll")

PAUSE: Final = 0.02
"""Seconds between two attempts to reach a gateway that is not there."""

SLOW_BYTES: Final = 8192
"""What a slow client takes off its socket at a time, and what its kernel keeps for it."""

DEADLINE: Final = 60.0
"""Seconds for what must happen."""


class Unavailable(Exception):
    """The gateway cannot serve now: it is starting, or going away."""


@dataclass(frozen=True, slots=True)
class Got:
    """An event as a client got it: number `number` of a producer."""

    position: int
    topic: str
    producer: str
    number: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch that a client was told it cannot have: behind `begin`, up to `end`."""

    reason: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a response."""

    status: int
    headers: dict[bytes, bytes]


class Member:
    """
    A client that follows patterns across outages.

    Args:
        port: of the gateway, on loopback.
        patterns: what it wants.
        transports: says which to use for the next connection.
        start: where it begins.
        overflow: what it asks for in case it falls behind.
        events_each: says behind how many events it drops its next connection by itself; None for never.
        pace: is waited for before each read of a stream, of which a slow client takes little at a time.
    """

    def __init__(
        self,
        port: int,
        patterns: Sequence[str],
        transports: Callable[[], str],
        *,
        start: str = "latest",
        overflow: str = "catchup",
        events_each: Callable[[], int | None] = lambda: None,
        pace: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.patterns = tuple(patterns)
        self.transport = ""  # of the connection at hand
        self.connections = 0
        self.farewells = 0  # how often it was told to come back
        self.cursor: str | None = None
        self.position = -1  # of the cursor
        self.began = -1  # the first position it was told
        self.got: list[Got] = []
        self.gaps: list[Gap] = []
        self.overflow = overflow
        self._port = port
        self._transports = transports
        self._start = start
        self._events_each = events_each
        self._pace = pace

    # --- its life -------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Follow until cancelled, on one connection after another."""
        while True:
            try:
                await self.connect(self._transports())
            except (OSError, asyncio.IncompleteReadError, Unavailable):
                await asyncio.sleep(PAUSE)

    async def connect(self, transport: str) -> None:
        """Follow on one connection, until it ends."""
        self.transport = transport
        self.connections += 1
        async with self._opened() as (incoming, outgoing):
            await (self._stream if transport in WIRES else self._poll)(incoming, outgoing)

    async def reaches(self, position: int) -> None:
        """Wait until it has everything up to `position`."""
        await until(lambda: self.position >= position)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        sock = socket.socket()
        sock.setblocking(False)
        if self._pace is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BYTES)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        except BaseException:  # whoever is cancelled as well
            sock.close()
            raise
        limit = SLOW_BYTES if self._pace is not None else 1 << 16
        incoming, outgoing = await asyncio.open_connection(sock=sock, limit=limit)
        try:
            yield incoming, outgoing
        finally:
            outgoing.transport.abort()

    def _topics(self) -> str:
        return "&".join(f"topic={pattern.replace('#', '%23')}" for pattern in self.patterns)

    # --- streams --------------------------------------------------------------------------------------------

    async def _stream(self, incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter) -> None:
        left = self._events_each()
        outgoing.write(self.request())
        head = await read_head(incoming)
        if head.status not in (101, 200):
            raise Unavailable
        reader = reader_of(WIRES[self.transport])
        while data := await self._some(incoming):
            for message in reader.feed(data):
                self.take(message)
                if message.kind == "ping":
                    outgoing.write(masked_pong(message.text))
                if left is not None and message.kind == "event":
                    left -= 1
                    if left <= 0:
                        return  # in the middle of whatever is on its way

    async def _some(self, incoming: asyncio.StreamReader) -> bytes:
        if self._pace is not None:
            await self._pace()
        return await incoming.read(1 << 16)

    def request(self, transport: str | None = None) -> bytes:
        """Return the request for a stream that goes on where it is."""
        query = f"{self._topics()}&overflow={self.overflow}&cursor={self.cursor or self._start}"
        head = f"GET /v1/events?{query} HTTP/1.1\r\nHost: localhost\r\n"
        match transport or self.transport:
            case "websocket":
                key = base64.b64encode(os.urandom(16)).decode()
                head += "Connection: Upgrade\r\nUpgrade: websocket\r\n"
                head += f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            case "sse":
                head += "Accept: text/event-stream\r\n"
            case "ndjson":
                head += "Accept: application/x-ndjson\r\n"
        return f"{head}\r\n".encode()

    def take(self, message: Message) -> None:
        """Take in a message of a stream."""
        match message.kind:
            case "event":
                self._event(message.members)
            case "gap":
                self._gap(message.members)
            case "welcome" | "hello" if self.cursor is None:
                self._adopt(str(message.cursor))
                self.began = self.position
            case "heartbeat":
                self._adopt(str(message.cursor))
            case "reconnect":
                self._adopt(str(message.cursor))
                self.farewells += 1

    # --- polls ----------------------------------------------------------------------------------------------

    async def _poll(self, incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter) -> None:
        """Poll some times over one connection."""
        for _ in range(self._events_each() or 10):
            outgoing.write(self._poll_request())
            head = await read_head(incoming)
            body = await incoming.readexactly(int(head.headers.get(b"content-length", b"0")))
            if head.status not in (200, 304):
                raise Unavailable
            if head.status == 200:
                self._answer(msgspec.json.decode(body))
                continue
            self._adopt(head.headers[b"etag"].decode().strip('"'))
            if self.transport == "poll":
                await asyncio.sleep(PAUSE)

    def _poll_request(self) -> bytes:
        query = f"{self._topics()}&limit=1000" + ("&wait=5" if self.transport == "longpoll" else "")
        if self.cursor is None and self._start != "latest":
            query += f"&cursor={self._start}"
        condition = f'If-None-Match: "{self.cursor}"\r\n' if self.cursor else ""
        return f"GET /v1/events?{query} HTTP/1.1\r\nHost: localhost\r\n{condition}\r\n".encode()

    def _answer(self, answer: dict[str, Any]) -> None:
        if self.began < 0:  # its first answer: it asked for what comes from now on, or for everything
            first = answer["events"][0]["cursor"] if answer["events"] else answer["cursor"]
            self.began = (
                Cursor.parse(first).position - bool(answer["events"]) if self._start == "latest" else 0
            )
        if "gap" in answer:
            self._gap(answer["gap"])
        for event in answer["events"]:
            self._event(event)
        self._adopt(answer["cursor"])

    # --- what it is told ------------------------------------------------------------------------------------

    def _event(self, members: dict[str, Any]) -> None:
        position = Cursor.parse(members["cursor"]).position
        assert position > self.position, f"twice, or out of order: {members['cursor']} behind {self.cursor}"
        self._adopt(members["cursor"])
        self.got.append(Got(position, members["topic"], *members["data"][:2]))

    def _gap(self, members: dict[str, Any]) -> None:
        begin, end = Cursor.parse(members["from"]).position, Cursor.parse(members["to"]).position
        assert self.position <= begin < end, f"a gap that leads back: {members} at {self.cursor}"
        self.gaps.append(Gap(members["reason"], begin, end))
        self._adopt(members["to"])

    def _adopt(self, text: str) -> None:
        position = Cursor.parse(text).position
        assert position >= self.position, f"led back from {self.cursor} to {text}"
        self.cursor, self.position = text, position

    # --- comparing ------------------------------------------------------------------------------------------

    def check(self, log: Iterable[Got], *, gaps: bool = False) -> None:
        """
        Check that it got exactly what it has a right to.

        Args:
            log: all events of the log, in order.
            gaps: whether it may have been told of gaps instead.
        """
        assert gaps or not self.gaps, f"gaps: {self.gaps}"
        due = [
            event
            for event in log
            if event.position > self.began and any(matches(pattern, event.topic) for pattern in self.patterns)
        ]
        have = {event.position for event in self.got}
        missing = [
            event
            for event in due
            if event.position not in have
            and not any(gap.begin < event.position <= gap.end for gap in self.gaps)
        ]
        assert not missing, f"{len(missing)} lost without a word, the first is {missing[0]}"
        assert self.got == [event for event in due if event.position in have]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; fail if that takes too long."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in another process
            await asyncio.sleep(PAUSE / 4)


def pss(pid: int) -> int:
    """Return the memory that a process has to itself, with its share of what it shares, in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not say how much memory a process has")


# --- bare HTTP and WebSocket --------------------------------------------------------------------------------


async def read_head(incoming: asyncio.StreamReader) -> Head:
    """Read the head of a response."""
    status, *lines = (await incoming.readuntil(b"\r\n\r\n")).split(b"\r\n")[:-2]
    fields = (line.split(b":", 1) for line in lines)
    return Head(int(status.split(b" ")[1]), {name.lower(): value.strip() for name, value in fields})


def masked_pong(payload: bytes) -> bytes:
    """Return a client's answer to a ping; its mask is all zeros."""
    return bytes((0x8A, 0x80 | len(payload))) + bytes(4) + payload


async def ready(port: int) -> None:
    """Wait until a gateway serves."""
    while True:
        if await _is_ready(port):
            return
        await asyncio.sleep(PAUSE / 4)


async def _is_ready(port: int) -> bool:
    try:
        incoming, outgoing = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        outgoing.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return (await read_head(incoming)).status == 200
    except (OSError, asyncio.IncompleteReadError):
        return False
    finally:
        outgoing.transport.abort()


# --- producing ----------------------------------------------------------------------------------------------


class Producer:
    """
    Publishes numbers, in batches, each again and again until a gateway said 202.

    Args:
        port: of the gateway, on loopback; of several, it goes to the next when one fails.
        name: its own: the data of its events is `[name, number]`, and their id says the same.
        topics: the topics of the events, in turn.
        batch: events in one request.
        padding: characters added to each event.
        keys: how many keys the events have, in turn; 0 for none.

    Attributes:
        published: numbers below this were answered 202.
        retries: how often it had to ask again.
        slowest: how many seconds it waited for an answer at most.
    """

    def __init__(
        self,
        port: int | Sequence[int],
        name: str,
        topics: Sequence[str],
        *,
        batch: int = 5,
        padding: int = 0,
        keys: int = 0,
    ) -> None:
        self.name = name
        self.published = 0
        self.retries = 0
        self.slowest = 0.0
        self._ports = itertools.cycle([port] if isinstance(port, int) else port)
        self._port = next(self._ports)
        self._topics = tuple(topics)
        self._batch = batch
        self._padding = ["x" * padding] if padding else []
        self._keys = keys
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def publish_until(self, done: asyncio.Event, pause: float = 0.0) -> None:
        """Publish batches until `done`; the last one is complete."""
        try:
            while not done.is_set():
                await self.publish()
                await asyncio.sleep(pause)
        finally:
            self.close()

    async def publish(self) -> None:
        """Publish the next batch."""
        numbers = range(self.published, self.published + self._batch)
        body = b"[%b]" % b",".join(map(self._event, numbers))
        while (status := await self._post(body)) != 202:
            assert status in (0, 429, 503), f"publishing was answered {status}"
            self.retries += 1
            self.close()
            self._port = next(self._ports)
            await asyncio.sleep(PAUSE)
        self.published += self._batch

    def _event(self, number: int) -> bytes:
        event: dict[str, Any] = {
            "topic": self._topics[number % len(self._topics)],
            "id": f"{self.name}-{number}",
            "data": [self.name, number, *self._padding],
        }
        if self._keys:
            event["key"] = f"{self.name}-{number % self._keys}"
        return msgspec.json.encode(event)

    async def _post(self, body: bytes) -> int:
        """Send a request; return the answer's status, 0 if there was none."""
        head = b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: %d"
        began = asyncio.get_running_loop().time()
        try:
            if self._connection is None:
                self._connection = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
            incoming, outgoing = self._connection
            outgoing.write(head % len(body) + b"\r\n\r\n" + body)
            answer = await read_head(incoming)
            await incoming.readexactly(int(answer.headers[b"content-length"]))
        except (OSError, asyncio.IncompleteReadError):
            return 0
        finally:
            self.slowest = max(self.slowest, asyncio.get_running_loop().time() - began)
        return answer.status

    def close(self) -> None:
        """Drop the connection."""
        if self._connection is not None:
            self._connection[1].transport.abort()
            self._connection = None


async def more_accepted(producers: Sequence[Producer], events: int) -> None:
    """Wait until so many more events were accepted."""

    def accepted() -> int:
        return sum(producer.published for producer in producers)

    goal = accepted() + events
    await until(lambda: accepted() >= goal)


async def whole_log(port: int) -> list[Got]:
    """Return all events of a gateway's log that it still has."""
    head = Member(port, ["#"], lambda: "poll", events_each=lambda: 1)
    reader = Member(port, ["#"], lambda: "poll", start="earliest")
    await head.connect("poll")
    while reader.position < head.position:
        await reader.connect("poll")
    return reader.got


def check_published(log: Iterable[Got], producers: Iterable[Producer]) -> None:
    """Check that the log has every event of each producer exactly once, in the order of its publishing."""
    numbers: dict[str, list[int]] = {}
    for event in log:
        numbers.setdefault(event.producer, []).append(event.number)
    for producer in producers:
        found = numbers.get(producer.name, [])
        assert found == list(range(producer.published)), (
            f"of {producer.published} events of {producer.name} accepted the log has {len(found)}, "
            f"{len(set(found))} different ones"
        )
