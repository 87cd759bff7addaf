"""
Hostile clients: whatever they do, the others get their events, and the gateway stays as small as it was.

Each test here ends with an honest client that gets an event in time, a child that runs and has logged no
traceback, and a bound on its memory. `test_bad_input.py` has what is wrong by accident.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from random import Random
from typing import Any, Final

import pytest

from tests.support.clients import (
    CONTINUATION,
    PING,
    STREAMS,
    TEXT,
    Address,
    Closed,
    Ended,
    Frame,
    Tcp,
    WebSocket,
    fetch,
    handshake_bytes,
    open_subscriber,
    publish,
    request_bytes,
    until,
)
from tests.support.host import address_of
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration

MIB: Final = 1 << 20
GROWTH: Final = 24 * MIB
"""What one hostile client may cost while it is there: a few buffers, one message, one body."""

IN_TIME: Final = 10.0
"""Seconds within which the honest client has its event; a second on an idle machine is far too much."""

FOR: Final = 0.6
"""Seconds for which something without an end is sent."""

PUBLISH: Final = b"POST /v1/topics/hostile HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def process() -> Iterator[GatewayProcess]:
    """A gateway with short patience and small bounds."""
    settings: dict[str, Any] = {
        "max_message_bytes": MIB,
        "max_body_bytes": 2 * MIB,
        "websocket_deflate": True,
    }
    with GatewayProcess(header_timeout=1, body_timeout=1, stall_timeout=2, **settings) as process:
        yield process


@pytest.fixture
def address(process: GatewayProcess) -> Address:
    return address_of(process)


def memory_of(process: GatewayProcess) -> int:
    """Return what of a child is in memory, in bytes (VmRSS)."""
    with open(f"/proc/{process.pid}/status") as lines:  # noqa: PTH123  # no file, the kernel's answer
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@pytest.fixture(autouse=True)
async def _others_notice_nothing(process: GatewayProcess, address: Address) -> AsyncIterator[None]:
    before, said = memory_of(process), len(process.log_text())
    topic = f"honest.{os.urandom(4).hex()}"
    async with contextlib.AsyncExitStack() as stack:
        honest = [
            await stack.enter_async_context(open_subscriber(address, transport, topic))
            for transport in STREAMS
        ]
        yield
        async with asyncio.timeout(IN_TIME):
            await publish(address, {"topic": topic, "data": "here"})
            for each in honest:
                assert await each.data(1) == ["here"]
    assert process.alive
    assert memory_of(process) - before < GROWTH
    assert "Traceback" not in process.log_text()[said:], process.log_text()[said:]


async def send_on(tcp: Tcp, piece: bytes | Callable[[], bytes], seconds: float = FOR) -> None:
    """Send the same again and again for a time, or until the connection ends or takes no more."""
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                await tcp.send(piece if isinstance(piece, bytes) else piece())
                await asyncio.sleep(0)


# --- bombs --------------------------------------------------------------------------------------------------


def squeezed(size: int) -> bytes:
    """Return a permessage-deflate message that inflates to so many zeros."""
    packer = zlib.compressobj(9, wbits=-15)
    block = bytes(MIB)
    return (b"".join(packer.compress(block) for _ in range(size // MIB)) + packer.flush(zlib.Z_SYNC_FLUSH))[
        :-4
    ]


@pytest.mark.parametrize("pieces", [1, 7, 1000], ids=["whole", "in seven", "in a thousand"])
async def test_a_message_that_inflates_to_100_mb(address: Address, pieces: int) -> None:
    """It ends its connection with 1009, however it is cut into fragments."""
    bomb = squeezed(100 * MIB)
    size = len(bomb) // pieces + 1
    parts = [bomb[at : at + size] for at in range(0, len(bomb), size)]
    offer = [("Sec-WebSocket-Extensions", "permessage-deflate")]
    async with open_subscriber(address, "websocket", "t", headers=offer) as socket:
        frames = [
            Frame(TEXT if not at else CONTINUATION, part, at == len(parts) - 1, 0 if at else 0b100).encode()
            for at, part in enumerate(parts)
        ]
        await socket.tcp.send(b"".join(frames))
        assert (await socket.closed()).code == 1009


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip", "x-gzip", "identity, gzip"])
async def test_a_body_that_inflates_to_100_mb(address: Address, coding: str) -> None:
    """A compressed body is refused by its head, and never inflated."""
    body = gzip.compress(bytes(100 * MIB))
    headers = [("Content-Encoding", coding), ("Content-Type", "application/json")]
    response = await fetch(address, "/v1/events", (), headers, method="POST", body=body)
    assert response.status == 415


# --- too many -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", [1, 100], ids=["one by one", "a hundred at a time"])
async def test_ten_thousand_subscriptions_on_one_connection(address: Address, each: int) -> None:
    """Beyond `max_topics` every further one is refused, and those there are work on."""
    async with open_subscriber(address, "websocket") as socket:
        operations = [
            Frame(
                TEXT,
                json.dumps({"op": "subscribe", "topics": [f"t{at + n}.#" for n in range(each)]}).encode(),
            )
            for at in range(0, 10_000, each)
        ]
        sending = asyncio.ensure_future(socket.tcp.send(b"".join(one.encode() for one in operations)))
        answers = [(await socket.receive())["control"] for _ in operations]
        await sending
        assert answers.count("subscribed") == 100 // each
        assert answers.count("error") == len(operations) - 100 // each
        await publish(address, {"topic": "t7.x", "data": 1})
        assert await socket.data(1) == [1]


async def test_subscribing_and_unsubscribing_without_end_leaves_nothing(address: Address) -> None:
    """Ten thousand wildcards that come and go are forgotten."""
    async with open_subscriber(address, "websocket") as socket:
        for at in range(0, 10_000, 100):
            topics = [f"{n}.*.{'x' * 200}.#" for n in range(at, at + 100)]
            await socket.tcp.send(
                Frame(TEXT, json.dumps({"op": "subscribe", "topics": topics}).encode()).encode()
                + Frame(TEXT, json.dumps({"op": "unsubscribe", "topics": topics}).encode()).encode()
            )
            assert (await socket.control("subscribed"))["topics"] == topics
            await socket.control("unsubscribed")


@pytest.mark.parametrize(
    "fields",
    [
        b"X: " + b"y" * (10 * MIB),
        b"a: b\r\n" * 200_000,
        b"X-%b: y\r\n" % (b"n" * 60_000) * 20,
        b"a:\r\n" * 16_000,
    ],
    ids=["one giant", "many", "giant names", "many within the limit"],
)
async def test_giant_and_many_headers(address: Address, fields: bytes) -> None:
    """They are refused, or ignored where they are within the limit."""
    async with Tcp.open(address) as tcp:
        with contextlib.suppress(ConnectionError):
            await tcp.send(
                b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\nConnection: close\r\n\r\n"
            )
        answer = await tcp.rest()
    assert not answer or answer[9:12] in (b"200", b"400", b"431")


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize(
    "request_",
    [
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /v1/events?topic=t HTTP/1.1\r\n\r\n",
        PUBLISH + b"Content-Length: 1\r\n\r\n1",
        b"GET /v1/events?topic=t&wait=3 HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n\r\n",
    ],
    ids=["health", "polls", "publishes", "long polls", "options"],
)
async def test_pipelined_requests_by_the_hundred_thousand(
    process: GatewayProcess, address: Address, request_: bytes, read: bool
) -> None:
    """No more is taken than is answered: they wait in the client's own socket."""
    before = memory_of(process)
    async with Tcp.open(address) as tcp:
        reading = asyncio.ensure_future(tcp.rest()) if read else None
        if not read:
            tcp.stall()
        await send_on(tcp, request_ * 2000, 1.5)
        assert memory_of(process) - before < GROWTH
        if reading is not None:
            reading.cancel()


# --- bodies -------------------------------------------------------------------------------------------------

ENDLESS: Final = {
    "chunks of one byte": (b"", b"1\r\n1\r\n" * 5000),
    "chunks with giant extensions": (b"", b"1;x=" + b"y" * 60_000 + b"\r\n1\r\n"),
    "one chunk extension": (b"1;x=", b"y" * 60_000),
    "chunk of any size": (b"fffffffffffffff\r\n", b"1" * 60_000),
    "trailers": (b"1\r\n1\r\n0\r\n", b"X-Trailer: y\r\n" * 5000),
    "trailer": (b"1\r\n1\r\n0\r\nX: ", b"y" * 60_000),
    "nothing but line ends": (b"1\r\n1\r\n0\r\n\r\n", b"\r\n" * 30_000),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_a_body_without_end(address: Address, name: str) -> None:
    """It is refused when it passes its limit, or what surrounds it passes that of a head."""
    begin, piece = ENDLESS[name]
    async with Tcp.open(address) as tcp:
        await tcp.send(PUBLISH + b"Transfer-Encoding: chunked\r\n\r\n" + begin)
        await send_on(tcp, piece, 20)
        answer = await tcp.rest()
    assert not answer or answer[9:12] in (b"202", b"400", b"413", b"431"), answer[:200]


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"G",
        PUBLISH,
        PUBLISH + b"Content-Length: 1000\r\n\r\n",
        PUBLISH + b"Transfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["nothing", "a letter", "half a head", "a body to come", "chunks to come"],
)
async def test_two_hundred_clients_that_never_go_on(address: Address, begin: bytes) -> None:
    """Each is answered or closed when its time is over; meanwhile others are served."""
    async with contextlib.AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(Tcp.open(address)) for _ in range(200)]
        for tcp in slow:
            await tcp.send(begin)
        assert (await fetch(address, "/healthz")).status == 200
        answers = await asyncio.gather(*(tcp.rest() for tcp in slow))
    assert all(not answer or b" 408 " in answer for answer in answers)


async def test_a_body_that_trickles(address: Address) -> None:
    """A byte now and then does not prolong for ever the time that a body may take."""
    async with Tcp.open(address) as tcp:
        await tcp.send(PUBLISH + b"Transfer-Encoding: chunked\r\n\r\n")
        reading = asyncio.ensure_future(tcp.rest())
        with contextlib.suppress(ConnectionError):
            while not reading.done():
                await tcp.send(b"1\r\n1\r\n")
                await asyncio.sleep(0.1)  # the trickle
        assert b" 408 " in await reading


# --- ends ---------------------------------------------------------------------------------------------------


async def test_resets_in_the_middle_of_everything(address: Address) -> None:
    """Wherever a client is cut off, nothing of it is left."""
    random = Random(1)
    whole = [
        request_bytes("POST", "/v1/topics/hostile", (), b"x" * 5000),
        request_bytes("GET", "/v1/events?topic=hostile&cursor=earliest", [("Accept", "text/event-stream")]),
        request_bytes("GET", "/v1/events?topic=none&wait=30"),
        request_bytes("GET", "/healthz") * 30,
        handshake_bytes(address, [("topic", "#"), ("cursor", "earliest")])
        + Frame(TEXT, b'{"op":"publish","topic":"hostile","data":1}').encode() * 50,
    ]
    for _ in range(300):
        data = random.choice(whole)
        async with Tcp.open(address) as tcp:
            await tcp.send(data[: random.randrange(len(data) + 1)])
            for _ in range(random.randrange(6)):  # at various moments
                await asyncio.sleep(0)
            tcp.reset()
    await until(lambda: connections_are(address, len(STREAMS)), "only the honest clients are left")


async def connections_are(address: Address, number: int) -> bool:
    """Tell whether the gateway has so many connections."""
    return bool((await fetch(address, "/v1/connections")).json["total"] == number)


async def test_half_open_sockets(address: Address) -> None:
    """A client that ended its side and asks for a stream, or is idle, is served to its end or closed."""
    request = request_bytes("GET", "/v1/events?topic=t&wait=1")
    async with contextlib.AsyncExitStack() as stack:
        ended = [await stack.enter_async_context(Tcp.open(address)) for _ in range(100)]
        for number, tcp in enumerate(ended):
            await tcp.send((b"", request, request[:20], request * 50)[number % 4])
            tcp.end_sending()
        await asyncio.gather(*(tcp.rest() for tcp in ended))


# --- WebSocket ----------------------------------------------------------------------------------------------

FLOODS: Final = {
    "pings": Frame(PING, b"x" * 125).encode() * 500,
    "empty pings": Frame(PING, b"").encode() * 5000,
    "operations": Frame(TEXT, b'{"op":"ping"}').encode() * 2000,
    "mistakes": Frame(TEXT, b"{").encode() * 2000,
    "publishes": Frame(TEXT, b'{"op":"publish","topic":"hostile","data":1}').encode() * 500,
    "acks": Frame(TEXT, b'{"op":"ack","cursor":"aaaaaa-1-0000"}').encode() * 1000,
}


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood(process: GatewayProcess, address: Address, name: str, read: bool) -> None:
    """Whether the answers are read or not, no more is taken in than is answered."""
    before = memory_of(process)
    async with Tcp.open(address, receive_buffer=None if read else 4096) as tcp:
        socket = await WebSocket.handshake(tcp, address, [("topic", "t"), ("consumer", "hostile")])
        await socket.control("welcome")
        reading = asyncio.ensure_future(tcp.rest()) if read else None
        if not read:
            tcp.stall()
        await send_on(tcp, FLOODS[name])
        assert memory_of(process) - before < GROWTH
        if reading is not None:
            reading.cancel()


@pytest.mark.parametrize("payload", [b"", b"x"], ids=["empty", "of one byte"])
async def test_fragments_without_end(address: Address, payload: bytes) -> None:
    """They cost their bytes, up to the limit of a message."""
    async with open_subscriber(address, "websocket", "t") as socket:
        await socket.send_frame(Frame(TEXT, payload, fin=False))
        await send_on(socket.tcp, Frame(CONTINUATION, payload, fin=False).encode() * 5000)


DEEP: Final = 100_000
TEXTS: Final[dict[str, tuple[bytes, bytes]]] = {
    "nested arrays": (b"[" * DEEP, b"]" * DEEP),
    "nested arrays without end": (b"[" * DEEP, b""),
    "nested objects": (b'{"a":' * DEEP + b"1", b"}" * DEEP),
    "a number of 100,000 digits": (b"1" * DEEP, b""),
    "a fraction of 100,000 digits": (b"0." + b"1" * DEEP, b""),
    "an exponent of 100,000 digits": (b"1e" + b"1" * DEEP, b""),
    "NUL": (b'"\0"', b""),
    "NUL, escaped": (b'"\\u0000"', b""),
    "overlong": (b'"\xc0\xaf"', b""),
    "surrogate": (b'"\xed\xa0\x80"', b""),
    "surrogate, escaped": (b'"\\ud800"', b""),
    "surrogates the wrong way round": (b'"\\udc00\\ud800"', b""),
    "beyond Unicode": (b'"\xf4\x90\x80\x80"', b""),
    "duplicate names": (b"{" + b'"a":1,' * 50_000 + b'"a":2', b"}"),
    "many names": (b"{" + b",".join(b'"%d":1' % n for n in range(50_000)), b"}"),
    "white space": (b" " * DEEP + b"1", b""),
    "line breaks": (b"\r\n" * DEEP + b"1", b""),
    "NaN": (b"NaN", b""),
}
PLACES: Final[dict[str, bytes]] = {
    "data": b'{"op":"publish","topic":"hostile","data":%b}',
    "ref": b'{"op":"ping","ref":%b}',
    "id": b'{"op":"publish","topic":"hostile","id":%b}',
    "ttl": b'{"op":"publish","topic":"hostile","ttl":%b}',
    "topics": b'{"op":"subscribe","topics":%b}',
    "all": b"%b",
}


@pytest.mark.parametrize("name", TEXTS)
async def test_json_that_breaks_parsers(address: Address, name: str) -> None:
    """In every place of every body and operation it is taken or refused, and what is delivered is JSON."""
    text = b"".join(TEXTS[name])
    async with open_subscriber(address, "websocket", "hostile") as listener:
        for place in PLACES.values():
            await _as_operation(address, place % text)
            body = (place % text).replace(b'"op":"publish",', b"")
            for path, kind in (
                ("/v1/events", "application/json"),
                ("/v1/events", "application/x-ndjson"),
                ("/v1/events", "application/cloudevents+json"),
                ("/v1/topics/hostile", "application/json"),
                ("/v1/topics/hostile", "text/plain"),
            ):
                answer = await fetch(address, path, (), [("Content-Type", kind)], method="POST", body=body)
                assert answer.status in (202, 400, 413, 422), answer
        await publish(address, {"topic": "hostile", "data": "end", "id": os.urandom(8).hex()})
        while b'"data":"end"' not in (event := (await listener.receive_text()).encode()):
            assert b"\n" not in event
            assert not any(bad in event for bad in (b"NaN,", b"\0", b'\\ud800"')), event[:300]


async def _as_operation(address: Address, text: bytes) -> None:
    """Send a text as an operation: it is answered, or ends the connection if it is no UTF-8."""
    async with open_subscriber(address, "websocket", "t") as socket:
        await socket.tcp.send(Frame(TEXT, text).encode())
        try:
            answer = await socket.receive_text()
        except (Closed, Ended):
            with pytest.raises(UnicodeDecodeError):
                text.decode()
        else:
            assert answer.startswith('{"control":"'), answer[:200]
