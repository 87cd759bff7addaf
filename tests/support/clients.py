"""
Raw clients for every transport: sockets, bytes, and readers written from the specifications.

Nothing here is shared with the gateway, so that what it writes is checked by somebody else's reading of the
rules: HTTP/1.1 (RFC 9112), event streams (HTML 9.2.6), WebSocket (RFC 6455), permessage-deflate (RFC 7692).
They are strict: what a tolerant client would let pass fails the test. Every wait has one deadline.

`open_subscriber` gives the same face to all of them: a *message* is a dict, either an event as clients see
it, or `{"control": …}` in the names that NDJSON uses, whatever the transport calls it.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import contextlib
import hashlib
import json
import os
import re
import socket
import ssl
import struct
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote, urlencode

DEADLINE = 20.0
"""Seconds for anything to happen that must happen; most of it takes milliseconds."""

Message = dict[str, Any]


class Refused(Exception):
    """
    A request that should have opened something was answered with a refusal.

    Attributes:
        response: the whole answer.
    """

    def __init__(self, response: Response) -> None:
        super().__init__(f"{response.status}: {response.body!r}")
        self.response = response


class Ended(AssertionError):
    """A connection ended where more was expected; the text says what came last."""


@dataclass(frozen=True)
class Address:
    """
    Where a gateway is.

    Attributes:
        host: of it.
        port: of it.
        prefix: the path it is mounted at.
        tls: what a client encrypts with; None if the port is not encrypted.
        source: the address that a client connects from; empty is any.
    """

    host: str
    port: int
    prefix: str = ""
    tls: ssl.SSLContext | None = None
    source: str = ""

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}{self.prefix}"

    @property
    def websocket_url(self) -> str:
        return f"ws{'s' if self.tls else ''}://{self.host}:{self.port}{self.prefix}/v1/events"

    def target(self, path: str, query: Iterable[tuple[str, str]] = ()) -> str:
        """Return the request target of a path below the prefix."""
        encoded = urlencode(list(query), quote_via=quote)
        return f"{self.prefix}{path}" + (f"?{encoded}" if encoded else "")


# --- TCP ---------------------------------------------------------------------------------------------------


class Tcp:
    """A connection as bytes. Every read fails after `DEADLINE`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def open(cls, address: Address, *, receive_buffer: int | None = None) -> AsyncIterator[Self]:
        """Connect; with `receive_buffer` bytes (SO_RCVBUF) for a client that is to stall soon."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            if address.source:
                sock.bind((address.source, 0))
            async with asyncio.timeout(DEADLINE):
                await asyncio.get_running_loop().sock_connect(sock, (address.host, address.port))
        except BaseException:
            sock.close()
            raise
        tcp = cls(*await cls._streams(sock, address))
        try:
            yield tcp
        finally:
            await tcp.aclose()

    @staticmethod
    async def _streams(
        sock: socket.socket, address: Address
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        name = address.host if address.tls is not None else None
        async with asyncio.timeout(DEADLINE):
            return await asyncio.open_connection(
                sock=sock, limit=1 << 24, ssl=address.tls, server_hostname=name
            )

    async def send(self, data: bytes) -> None:
        """Send `data`; returns when the kernel or the buffer has it."""
        self._writer.write(data)
        async with asyncio.timeout(DEADLINE):
            await self._writer.drain()

    async def exactly(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        async with asyncio.timeout(DEADLINE):
            try:
                return await self._reader.readexactly(count)
            except asyncio.IncompleteReadError as error:
                raise Ended(f"the connection ended behind {error.partial[-200:]!r}") from None

    async def until(self, separator: bytes) -> bytes:
        """Return the bytes up to and including `separator`."""
        async with asyncio.timeout(DEADLINE):
            try:
                return await self._reader.readuntil(separator)
            except asyncio.IncompleteReadError as error:
                raise Ended(f"the connection ended behind {error.partial[-200:]!r}") from None

    async def some(self) -> bytes:
        """Return what is there, at least one byte; b"" at the end."""
        async with asyncio.timeout(DEADLINE):
            return await self._reader.read(1 << 16)

    async def rest(self) -> bytes:
        """Return everything up to the end of the connection, whether it was closed or reset."""
        parts = []
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionError):
                while part := await self._reader.read(1 << 16):
                    parts.append(part)
        return b"".join(parts)

    def stall(self) -> None:
        """Stop reading from the socket; the window closes once the kernel's buffer is full."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]  # a Transport, not typed as one

    async def sip(self, least: int = 200_000) -> None:
        """
        Take so many bytes of what waits in the kernel, while reading is stalled. The window opens only when
        there is room for a segment, and on loopback those have 64 KiB.
        """
        loop, taken = asyncio.get_running_loop(), 0
        with socket.socket(fileno=os.dup(self._writer.get_extra_info("socket").fileno())) as twin:
            twin.setblocking(False)
            async with asyncio.timeout(DEADLINE):
                while taken < least:
                    data = await loop.sock_recv(twin, 4096)
                    assert data, "the connection ended"
                    self._reader.feed_data(data)
                    taken += len(data)

    def go_on(self) -> None:
        """Read again after `stall`."""
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]

    def end_sending(self) -> None:
        """Send a FIN and go on reading."""
        self._writer.write_eof()

    def reset(self) -> None:
        """End the connection with a RST."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def aclose(self) -> None:
        """Close, whatever state it is in. Idempotent."""
        self._writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


# --- HTTP --------------------------------------------------------------------------------------------------

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [\t\x20-\x7e\x80-\xff]*\r\n")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*\r\n")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,16})\r\n")


@dataclass(frozen=True)
class Head:
    """The head of a response: its status, and its fields with names in lower case."""

    status: int
    fields: tuple[tuple[str, str], ...]

    def __getitem__(self, name: str) -> str:
        """Return the value of a field that is there exactly once."""
        values = [value for each, value in self.fields if each == name]
        assert len(values) == 1, f"{name} is there {len(values)} times in {self.fields}"
        return values[0]

    def __contains__(self, name: str) -> bool:
        return any(each == name for each, _ in self.fields)

    @classmethod
    def parse(cls, raw: bytes) -> Head:
        """Parse a head strictly: no bare LF, no folding, no space before a colon."""
        status = _STATUS_LINE.match(raw)
        assert status, f"no status line: {raw[:200]!r}"
        at = status.end()
        fields = []
        while raw[at:] != b"\r\n":
            match = _FIELD.match(raw, at)
            assert match, f"no header field: {raw[at : at + 200]!r}"
            fields.append((match[1].decode().lower(), match[2].decode("latin-1")))
            at = match.end()
        return cls(int(status[1]), tuple(fields))


@dataclass(frozen=True)
class Response:
    """A whole response."""

    head: Head
    body: bytes

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> Message:
        """The problem it is (RFC 9457), after checking that it is a well-formed one."""
        assert self.head["content-type"] == "application/problem+json", self.head
        problem: Message = self.json
        assert problem["type"] == "about:blank"
        assert problem["status"] == self.status
        assert problem["title"]
        assert problem["detail"]
        return problem


def request_bytes(
    method: str,
    target: str,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes | None = None,
    *,
    version: str = "1.1",
) -> bytes:
    """Return a request as bytes; with Host, and Content-Length if there is a body."""
    lines = [
        f"{method} {target} HTTP/{version}",
        "Host: localhost",
        *(f"{n}: {v}" for n, v in headers),
    ]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class Body:
    """The body of a response, piece by piece: chunked, of a length, or up to the connection's end."""

    def __init__(self, tcp: Tcp, head: Head) -> None:
        self._tcp = tcp
        self._chunked = head["transfer-encoding"] == "chunked" if "transfer-encoding" in head else False
        self._left = int(head["content-length"]) if "content-length" in head else None
        assert not (self._chunked and self._left is not None), "both framings (RFC 9112 6.2)"
        self.complete = False  # it ended as its framing says, not by accident

    async def some(self) -> bytes:
        """Return the next bytes; b"" at the end, whether `complete` or not."""
        if self.complete:
            return b""
        if self._chunked:
            return await self._chunk()
        if self._left is None:
            data = await self._tcp.some()
            self.complete = not data
            return data
        if not self._left:
            self.complete = True
            return b""
        data = await self._tcp.exactly(min(self._left, 1 << 16))
        self._left -= len(data)
        return data

    async def whole(self) -> bytes:
        """Return all of it; it must be complete."""
        parts = []
        while part := await self.some():
            parts.append(part)
        assert self.complete, f"the body was cut off behind {b''.join(parts)[-200:]!r}"
        return b"".join(parts)

    async def _chunk(self) -> bytes:
        try:
            line = await self._tcp.until(b"\r\n")
        except (Ended, ConnectionError):
            return b""
        size = _CHUNK_SIZE.fullmatch(line)
        assert size, f"no chunk size: {line[:200]!r}"
        data = await self._tcp.exactly(int(size[1], 16))
        assert await self._tcp.exactly(2) == b"\r\n", "a chunk does not end with CRLF"
        self.complete = not data
        return data


async def read_head(tcp: Tcp) -> Head:
    """Read the head of a response."""
    return Head.parse(await tcp.until(b"\r\n\r\n"))


async def read_response(tcp: Tcp, *, method: str = "GET") -> Response:
    """Read a whole response."""
    head = await read_head(tcp)
    bodiless = method == "HEAD" or head.status in (204, 304) or head.status < 200
    return Response(head, b"" if bodiless else await Body(tcp, head).whole())


async def exchange(tcp: Tcp, request: bytes) -> Response:
    """Send a request and read the response to it."""
    await tcp.send(request)
    return await read_response(tcp, method=request.split(b" ", 1)[0].decode())


async def fetch(
    address: Address,
    path: str,
    query: Iterable[tuple[str, str]] = (),
    headers: Sequence[tuple[str, str]] = (),
    *,
    method: str = "GET",
    body: bytes | None = None,
) -> Response:
    """Make one request on a connection of its own."""
    async with Tcp.open(address) as tcp:
        return await exchange(tcp, request_bytes(method, address.target(path, query), headers, body))


async def publish(address: Address, *events: Message) -> Message:
    """Publish events in one request; return the answer, which must be 202."""
    headers = [("Content-Type", "application/json")]
    response = await fetch(
        address, "/v1/events", (), headers, method="POST", body=json.dumps(events).encode()
    )
    assert response.status == 202, response
    answer: Message = response.json
    return answer


async def metric(address: Address, name: str) -> float:
    """Return the value of a metric that has no labels."""
    lines = (await fetch(address, "/metrics")).body.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


# --- event streams -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SseBlock:
    """
    What one block of an event stream does.

    Attributes:
        type: of the event it dispatches.
        data: of that event; None if it dispatches none.
        id: the last event id after it.
        retry: the reconnection time it sets, in ms.
    """

    type: str
    data: str | None
    id: str
    retry: int | None


class SseReader:
    """
    An event stream interpreted as HTML 9.2.6 says, byte by byte.

    Unlike a browser it also returns blocks that dispatch nothing, because they move the last event id.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._text = ""
        self._begun = False
        self._id = ""
        self._clear()

    def _clear(self) -> None:
        self._type = ""
        self._data: list[str] = []
        self._retry: int | None = None
        self._fields = 0

    def feed(self, data: bytes) -> list[SseBlock]:
        """Take bytes as they come; return the blocks that they complete."""
        self._text += self._decoder.decode(data)
        if not self._begun and self._text:
            self._text = self._text.removeprefix("\ufeff")
            self._begun = True
        *lines, self._text = self._lines(self._text)
        return [block for line in lines if (block := self._line(line)) is not None]

    @property
    def pending(self) -> str:
        """The text behind the last line end."""
        return self._text

    @staticmethod
    def _lines(text: str) -> list[str]:
        """Split at CR LF, LF and CR; a CR at the very end may be half of a CR LF and is left for later."""
        held = "\r" if text.endswith("\r") else ""
        lines = re.split("\r\n|\n|\r", text[: len(text) - len(held)])
        lines[-1] += held
        return lines

    def _line(self, line: str) -> SseBlock | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        self._fields += 1
        if name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            self._retry = int(value)
        return None

    def _dispatch(self) -> SseBlock | None:
        data = "\n".join(self._data) if self._data else None
        block = SseBlock(self._type or "message", data, self._id, self._retry)
        fields = self._fields
        self._clear()
        return block if fields else None


# --- subscribers -------------------------------------------------------------------------------------------


class Subscriber(ABC):
    """
    One client on some transport.

    Attributes:
        cursor: of the last message it took; what it resumes from.
        heartbeats: how many it was sent.
    """

    transport: str

    def __init__(self) -> None:
        self.cursor = ""
        self.heartbeats = 0

    @abstractmethod
    async def receive(self) -> Message:
        """Return the next message of any kind."""

    async def next(self) -> Message:
        """Return the next message that is no heartbeat."""
        async with asyncio.timeout(DEADLINE):
            while True:
                message = await self.receive()
                if "cursor" in message:
                    self.cursor = message["cursor"]
                elif message.get("control") == "gap":
                    self.cursor = message["to"]
                if message.get("control") != "heartbeat":
                    return message
                self.heartbeats += 1

    async def heartbeat(self) -> Message:
        """Return the next message, which must be a heartbeat."""
        message = await self.receive()
        assert message.get("control") == "heartbeat", message
        self.cursor = message["cursor"]
        return message

    async def events(self, count: int) -> list[Message]:
        """Return the next `count` messages, which must be events."""
        messages = [await self.next() for _ in range(count)]
        for message in messages:
            assert "control" not in message, message
        return messages

    async def data(self, count: int) -> list[Any]:
        """Return the data of the next `count` messages, which must be events."""
        return [event["data"] for event in await self.events(count)]

    async def control(self, name: str) -> Message:
        """Return the next message, which must be this control message."""
        message = await self.next()
        assert message.get("control") == name, message
        return message


class StreamSubscriber(Subscriber):
    """SSE or NDJSON."""

    def __init__(self, tcp: Tcp, head: Head) -> None:
        super().__init__()
        self.tcp = tcp
        self.head = head
        self.body = Body(tcp, head)
        self._messages: deque[Message] = deque()

    async def receive(self) -> Message:
        while not self._messages:
            data = await self.body.some()
            if not data:
                how = "in order" if self.body.complete else "by accident"
                raise Ended(f"the {self.transport} stream ended {how} at {self.cursor!r}")
            self._messages.extend(self.take(data))
        return self._messages.popleft()

    async def end(self) -> None:
        """Read to the end of the stream, which must come in order and with nothing more in it."""
        while data := await self.body.some():
            self._messages.extend(self.take(data))
        assert self.body.complete, "the body was cut off"
        assert all(message.get("control") == "heartbeat" for message in self._messages), self._messages

    @abstractmethod
    def take(self, data: bytes) -> list[Message]:
        """Return the messages that these bytes of the body complete."""


class Sse(StreamSubscriber):
    """An EventSource."""

    transport = "sse"

    def __init__(self, tcp: Tcp, head: Head) -> None:
        super().__init__(tcp, head)
        assert head["content-type"].partition(";")[0] == "text/event-stream", head
        self._reader = SseReader()
        self._greeted = False
        self.retry: int | None = None
        self.blocks: list[SseBlock] = []

    def take(self, data: bytes) -> list[Message]:
        blocks = self._reader.feed(data)
        self.blocks += blocks
        return [self._message(block) for block in blocks]

    def _message(self, block: SseBlock) -> Message:
        self.retry = block.retry if block.retry is not None else self.retry
        if block.data is None:
            greeting, self._greeted = not self._greeted, True
            return {"control": "welcome" if greeting else "heartbeat", "cursor": block.id}
        self._greeted = True
        message: Message = json.loads(block.data)
        if block.type == "message":
            assert message["cursor"] == block.id, f"the id {block.id} is not the cursor of {message}"
            return message
        assert block.type.startswith("sluice."), block
        assert message.get("to", message.get("cursor", block.id)) == block.id, block
        return {"control": block.type.removeprefix("sluice."), **message}


class Ndjson(StreamSubscriber):
    """A reader of lines."""

    transport = "ndjson"

    def __init__(self, tcp: Tcp, head: Head) -> None:
        super().__init__(tcp, head)
        assert head["content-type"] == "application/x-ndjson", head
        self._pending = b""

    def take(self, data: bytes) -> list[Message]:
        *lines, self._pending = (self._pending + data).split(b"\n")
        return [json.loads(line) for line in lines]


class Poll(Subscriber):
    """Somebody who asks again and again, on one connection."""

    transport = "poll"
    wait: str | None = None

    def __init__(self, tcp: Tcp, address: Address, query: Query) -> None:
        super().__init__()
        self.tcp = tcp
        self._address = address
        self._query = query
        self._messages: deque[Message] = deque()
        self.answers: list[Response] = []

    async def ask(self, *extra: tuple[str, str]) -> Message:
        """Poll once, from where it stands; return the answer."""
        request = self._query.request(self._address, extra=extra)
        response = await exchange(self.tcp, request)
        if response.status != 200:
            raise Refused(response)
        self.answers.append(response)
        answer: Message = response.json
        assert response.head["etag"] == f'"{answer["cursor"]}"'
        assert response.head["cache-control"] == "no-store"
        assert answer.keys() <= {"events", "cursor", "more", "gap"}
        self._query = self._query.at(answer["cursor"])
        return answer

    async def open(self) -> None:
        """Make the first request, whose answer stands for the welcome of the other transports."""
        answer = await self.ask()
        at = answer["gap"]["to"] if "gap" in answer else answer["cursor"]
        self._messages.append({"control": "welcome", "cursor": at})
        self._take(answer)

    async def receive(self) -> Message:
        async with asyncio.timeout(DEADLINE):
            while not self._messages:
                answer = await self.ask(*([("wait", self.wait)] if self.wait else []))
                self._take(answer)
                if not self._messages and not self.wait:
                    await asyncio.sleep(0.01)  # the interval of the poll
        return self._messages.popleft()

    def _take(self, answer: Message) -> None:
        if "gap" in answer:
            self._messages.append({"control": "gap", **answer["gap"]})
        self._messages.extend(answer["events"])


class LongPoll(Poll):
    """The same, held until there is something."""

    transport = "longpoll"
    wait = "10"


# --- WebSocket ---------------------------------------------------------------------------------------------

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass(frozen=True)
class Frame:
    """A frame as it lies on the wire (RFC 6455 5.2)."""

    opcode: int
    payload: bytes
    fin: bool = True
    reserved: int = 0

    def encode(self, *, mask: bool = True, length_bytes: int | None = None) -> bytes:
        """Return its bytes; `length_bytes` (0, 2, 8) forces a form of the length, also a wrong one."""
        size = len(self.payload)
        if length_bytes is None:
            length_bytes = 0 if size < 126 else 2 if size < 65_536 else 8
        short = size if length_bytes == 0 else 126 if length_bytes == 2 else 127
        first = self.fin << 7 | self.reserved << 4 | self.opcode
        head = bytes((first, mask << 7 | short)) + (
            size.to_bytes(length_bytes, "big") if length_bytes else b""
        )
        if not mask:
            return head + self.payload
        key = os.urandom(4)
        return head + key + _masked(self.payload, key)


def _masked(payload: bytes, key: bytes) -> bytes:
    repeated = (key * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(payload), "big")


class Closed(Exception):
    """The server closed: its code (1005 if it gave none, 1006 without a close frame) and reason."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


def handshake_bytes(
    address: Address,
    query: Iterable[tuple[str, str]] = (),
    headers: Sequence[tuple[str, str]] = (),
    *,
    key: str = "dGhlIHNhbXBsZSBub25jZQ==",
    replace: dict[str, str | None] | None = None,
) -> bytes:
    """Return an opening handshake; `replace` changes or (None) leaves out headers."""
    own: dict[str, str | None] = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Version": "13",
        **(replace or {}),
    }
    given = [(name, value) for name, value in own.items() if value is not None]
    return request_bytes("GET", address.target("/v1/events", query), [*given, *headers])


class WebSocket(Subscriber):
    """A WebSocket client."""

    transport = "websocket"

    def __init__(self, tcp: Tcp, head: Head) -> None:
        super().__init__()
        self.tcp = tcp
        self.head = head
        self.deflate = "sec-websocket-extensions" in head
        self.answers_pings = True
        self.closing = False  # we have sent a close frame of our own
        self.frames: list[Frame] = []

    @classmethod
    async def handshake(
        cls,
        tcp: Tcp,
        address: Address,
        query: Iterable[tuple[str, str]] = (),
        headers: Sequence[tuple[str, str]] = (),
    ) -> Self:
        """Open a WebSocket on a connection; raise Refused if the server would not."""
        key = base64.b64encode(os.urandom(16)).decode()
        await tcp.send(handshake_bytes(address, query, headers, key=key))
        head = await read_head(tcp)
        if head.status != 101:
            raise Refused(Response(head, await Body(tcp, head).whole()))
        assert head["upgrade"].lower() == "websocket"
        assert head["connection"].lower() == "upgrade"
        accept = base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()
        assert head["sec-websocket-accept"] == accept
        return cls(tcp, head)

    # Frames

    async def send_frame(self, frame: Frame) -> None:
        await self.tcp.send(frame.encode())

    async def read_frame(self) -> Frame:
        """Return the next frame; pings are answered if `answers_pings`."""
        first, second = await self.tcp.exactly(2)
        assert not second & 0x80, "a server's frame is masked (RFC 6455 5.1)"
        size = second & 0x7F
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(await self.tcp.exactly(width), "big")
            assert size >= (126 if width == 2 else 65_536), (
                "a length is longer than it need be (RFC 6455 5.2)"
            )
        frame = Frame(first & 0xF, await self.tcp.exactly(size), bool(first & 0x80), first >> 4 & 7)
        assert frame.fin or frame.opcode < 8, "a control frame is fragmented (RFC 6455 5.5)"
        assert size < 126 or frame.opcode < 8, "a control frame is too long"
        self.frames.append(frame)
        if frame.opcode == PING and self.answers_pings:
            await self.send_frame(Frame(PONG, frame.payload))
        return frame

    async def pong(self) -> Frame:
        """Return the next pong, passing over the server's own pings and heartbeats, and nothing else."""
        while (frame := await self.read_frame()).opcode != PONG:
            assert frame.opcode == PING or b'"control":"heartbeat"' in frame.payload, frame
        return frame

    async def close(self, code: int = 1000) -> None:
        """Close in order: our close frame, the server's with the same code, the connection's end."""
        self.closing = True
        await self.send_frame(Frame(CLOSE, code.to_bytes(2, "big")))
        closed = await self.closed()
        assert closed.code == code, closed

    async def closed(self) -> Closed:
        """Read up to the close frame and the end of the connection, passing over what comes before."""
        while True:
            try:
                await self.receive()
            except Closed as closed:
                return closed

    # Messages

    async def receive(self) -> Message:
        text = await self.receive_text()
        message: Message = json.loads(text)
        return message

    async def receive_text(self) -> str:
        """Return the next text message; raise Closed at the end."""
        while True:
            try:
                frame = await self.read_frame()
            except (Ended, ConnectionError) as error:
                raise Closed(1006, str(error)) from None
            if frame.opcode == CLOSE:
                if not self.closing:
                    with contextlib.suppress(ConnectionError):
                        await self.send_frame(Frame(CLOSE, frame.payload[:2]))
                assert await self.tcp.rest() == b"", "bytes behind the close frame"
                await self.tcp.aclose()
                code = int.from_bytes(frame.payload[:2], "big") if frame.payload else 1005
                raise Closed(code, frame.payload[2:].decode())
            if frame.opcode in (PING, PONG):
                continue
            assert frame.opcode == TEXT, frame
            assert frame.fin, "the gateway sends each message in one frame"
            return self._payload(frame).decode()

    def _payload(self, frame: Frame) -> bytes:
        if not frame.reserved:
            return frame.payload
        assert frame.reserved == 0b100, frame
        assert self.deflate, "compressed, though that was not negotiated"
        decoder = zlib.decompressobj(wbits=-15)
        return decoder.decompress(frame.payload + b"\x00\x00\xff\xff")

    async def send(self, operation: Message | str | bytes) -> None:
        """Send a message: an operation as JSON, or a text or binary message as it is."""
        if isinstance(operation, bytes):
            await self.send_frame(Frame(BINARY, operation))
            return
        text = operation if isinstance(operation, str) else json.dumps(operation)
        await self.send_frame(Frame(TEXT, text.encode()))

    async def ask(self, operation: Message) -> Message:
        """Send an operation and return its answer; what comes before it must be no event."""
        await self.send(operation)
        message = await self.next()
        assert "control" in message, message
        return message


# --- opening -----------------------------------------------------------------------------------------------

TRANSPORTS = ("websocket", "sse", "ndjson", "longpoll", "poll")
STREAMS = ("websocket", "sse", "ndjson")
_ACCEPT = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}


@dataclass(frozen=True)
class Query:
    """
    What a subscriber asks for.

    Attributes:
        transport: one of `TRANSPORTS`.
        topics: its patterns.
        cursor: where it begins; None says nothing.
        via: how the cursor is given: "query", or the name of a header.
        extra: further parameters.
        headers: further headers.
        version: of HTTP.
    """

    transport: str
    topics: tuple[str, ...]
    cursor: str | None = None
    via: str = "query"
    extra: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    version: str = "1.1"

    def at(self, cursor: str) -> Query:
        """Return the same from another cursor."""
        return Query(self.transport, self.topics, cursor, self.via, self.extra, self.headers, self.version)

    def parameters(self) -> list[tuple[str, str]]:
        given = [("topic", topic) for topic in self.topics]
        if self.cursor is not None and self.via == "query":
            given.append(("cursor", self.cursor))
        return [*given, *self.extra]

    def fields(self) -> list[tuple[str, str]]:
        given = list(self.headers)
        if self.transport in _ACCEPT:
            given.append(("Accept", _ACCEPT[self.transport]))
        if self.cursor is not None and self.via != "query":
            value = f'"{self.cursor}"' if self.via.lower() == "if-none-match" else self.cursor
            given.append((self.via, value))
        return given

    def request(self, address: Address, *, extra: Sequence[tuple[str, str]] = ()) -> bytes:
        """Return the request as bytes (not for WebSocket)."""
        target = address.target("/v1/events", [*self.parameters(), *extra])
        return request_bytes("GET", target, self.fields(), version=self.version)


@asynccontextmanager
async def open_subscriber(
    address: Address,
    transport: str,
    *topics: str,
    cursor: str | None = None,
    via: str = "query",
    headers: Sequence[tuple[str, str]] = (),
    version: str = "1.1",
    receive_buffer: int | None = None,
    welcomed: bool = True,
    **extra: str,
) -> AsyncIterator[Any]:
    """
    Open a subscriber on some transport, close it at the end.

    Args:
        address: of the gateway.
        transport: one of `TRANSPORTS`.
        topics: its patterns.
        cursor: where it begins.
        via: "query", or the header that carries the cursor.
        headers: further request headers.
        version: of HTTP.
        receive_buffer: bytes (SO_RCVBUF), small for one that is to stall.
        welcomed: whether to read the first message, which must be the welcome.
        extra: further parameters of the request.

    Raises:
        Refused: the gateway answered with a refusal.
    """
    query = Query(transport, topics, cursor, via, tuple(extra.items()), tuple(headers), version)
    async with Tcp.open(address, receive_buffer=receive_buffer) as tcp:
        subscriber = await _opened(tcp, address, query)
        if welcomed:
            await subscriber.control("welcome")
        yield subscriber


async def _opened(tcp: Tcp, address: Address, query: Query) -> Subscriber:
    if query.transport == "websocket":
        return await WebSocket.handshake(tcp, address, query.parameters(), query.fields())
    if query.transport in ("poll", "longpoll"):
        poll = (LongPoll if query.transport == "longpoll" else Poll)(tcp, address, query)
        await poll.open()
        return poll
    await tcp.send(query.request(address))
    head = await read_head(tcp)
    if head.status != 200:
        raise Refused(Response(head, await Body(tcp, head).whole()))
    return (Sse if query.transport == "sse" else Ndjson)(tcp, head)


@dataclass
class Topics:
    """Topics that no other test uses: `topics("orders")` is always the same, and only this test's."""

    prefix: str
    known: dict[str, str] = field(default_factory=dict)

    def __call__(self, name: str = "t") -> str:
        return self.known.setdefault(name, f"{self.prefix}.{name}")


async def until(condition: Any, what: str) -> None:
    """Wait until an async condition holds; fail, saying `what` did not happen, after the deadline."""
    try:
        async with asyncio.timeout(DEADLINE):
            while not await condition():  # noqa: ASYNC110  # it is asked of another process
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it did not happen within {DEADLINE} s: {what}") from None
