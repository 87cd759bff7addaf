"""
Bad input from subscribers: each gets its error, and the healthy client beside it notices nothing.

Every test here runs beside `healthy`, a subscriber that must still get its events afterwards, and at the end
of the module the gateway has logged no traceback and holds no connection that nobody has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.support.clients import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    STREAMS,
    TEXT,
    Address,
    Closed,
    Frame,
    Refused,
    Sse,
    Tcp,
    Topics,
    WebSocket,
    fetch,
    handshake_bytes,
    open_subscriber,
    publish,
    read_head,
    read_response,
    request_bytes,
    until,
)
from tests.support.host import HostProcess, address_of
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration

SSE = ("Accept", "text/event-stream")


@pytest.fixture(scope="module")
def process() -> Iterator[GatewayProcess]:
    """A gateway with short patience, whose log must stay free of tracebacks."""
    settings: dict[str, Any] = {"max_message_bytes": 100_000, "websocket_deflate": True}
    with GatewayProcess(header_timeout=1, body_timeout=1, **settings) as process:
        yield process
        assert process.alive
        listed = json.loads(process.get("/v1/connections")[1])
        assert listed["total"] == 0, listed
        assert "Traceback" not in process.log_text(), process.log_text()


@pytest.fixture
def address(process: GatewayProcess) -> Address:
    return address_of(process)


@pytest.fixture(params=["own", "mounted"])
def either(request: pytest.FixtureRequest) -> Address:
    """The gateway with short patience, and one in somebody else's application."""
    return address_of(request.getfixturevalue("process" if request.param == "own" else "mounted_process"))


@contextlib.asynccontextmanager
async def unaffected(address: Address) -> AsyncIterator[None]:
    """Hold subscribers of every stream open meanwhile; they must get everything that is published."""
    topic = f"healthy.{os.urandom(4).hex()}"
    async with contextlib.AsyncExitStack() as stack:
        healthy = [
            await stack.enter_async_context(open_subscriber(address, transport, topic))
            for transport in STREAMS
        ]
        await publish(address, {"topic": topic, "data": 1})
        yield
        await publish(address, {"topic": topic, "data": 2})
        for subscriber in healthy:
            assert await subscriber.data(2) == [1, 2]


@pytest.fixture(autouse=True)
async def _healthy_meanwhile(address: Address) -> AsyncIterator[None]:
    async with unaffected(address):
        yield


# --- requests ----------------------------------------------------------------------------------------------

BAD_REQUESTS = {
    "no topic": ("", 422, "topic"),
    "empty topic": ("topic=", 422, ""),
    "empty word": ("topic=a..b", 422, "a..b"),
    "dot at the end": ("topic=a.", 422, ""),
    "long topic": ("topic=" + "x" * 256, 422, "255"),
    "long in bytes": ("topic=" + "%C3%A4" * 128, 422, "255"),
    "control character": ("topic=a%00b", 422, ""),
    "line break": ("topic=a%0Ab", 422, ""),
    "wildcard in a word": ("topic=a*.b", 422, "wildcard"),
    "no utf-8": ("topic=%FF", 400, "UTF-8"),
    "unknown parameter": ("topic=a&foo=1", 422, "foo"),
    "misspelt parameter": ("topics=a", 422, "did you mean topic"),
    "repeated cursor": ("topic=a&cursor=earliest&cursor=latest", 422, "cursor"),
    "two names of the cursor": ("topic=a&cursor=earliest&last_event_id=latest", 422, "once"),
    "repeated wait": ("topic=a&wait=1&wait=2", 422, "wait"),
    "wait too long": ("topic=a&wait=61", 422, "60"),
    "wait negative": ("topic=a&wait=-1", 422, "wait"),
    "wait not finite": ("topic=a&wait=inf", 422, "wait"),
    "wait not a number": ("topic=a&wait=nan", 422, "wait"),
    "wait in arabic digits": ("topic=a&wait=%D9%A1", 422, "wait"),
    "wait empty": ("topic=a&wait=", 422, "wait"),
    "limit zero": ("topic=a&limit=0", 422, "limit"),
    "limit too large": ("topic=a&limit=1001", 422, "1000"),
    "limit broken": ("topic=a&limit=1.5", 422, "limit"),
    "overflow unknown": ("topic=a&overflow=drop", 422, "disconnect"),
    "consumer with a space": ("topic=a&consumer=a%20b", 422, "consumer"),
    "consumer empty": ("topic=a&consumer=", 422, "consumer"),
    "consumer too long": ("topic=a&consumer=" + "c" * 129, 422, "128"),
    "cursor garbage": ("topic=a&cursor=garbage", 400, "garbage"),
    "cursor empty": ("topic=a&cursor=", 400, "cursor"),
    "cursor of nothing": ("topic=a&cursor=-0", 400, "cursor"),
    "cursor of too many": ("topic=a&cursor=-1000001", 400, "cursor"),
    "cursor without a tag": ("topic=a&cursor=aaaaaa-5", 400, "cursor"),
    "cursor beyond numbers": ("topic=a&cursor=aaaaaa-9999999999999999999-0000", 400, "cursor"),
    "cursor with a line break": ("topic=a&cursor=aaaaaa-5-0000%0A", 400, "cursor"),
    "cursor with a nul": ("topic=a&cursor=%00", 400, "cursor"),
    "time that is none": ("topic=a&cursor=2026-13-01T00:00:00Z", 400, "time"),
    "time without offset": ("topic=a&cursor=2026-12-01T00:00:00", 400, "cursor"),
    "long cursor": ("topic=a&cursor=" + "c" * 5000, 400, "cursor"),
    "too many topics": ("&".join(f"topic=t{number}" for number in range(101)), 422, "100"),
    "too many parameters": ("&".join(["_=1"] * 1101), 422, "1100"),
}


@pytest.mark.parametrize("transport", [*STREAMS, "poll"])
@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_a_bad_request_is_refused_with_its_reason(either: Address, name: str, transport: str) -> None:
    """Each mistake has its status and a sentence that names it, the same on every transport."""
    query, status, hint = BAD_REQUESTS[name]
    target = f"{either.prefix}/v1/events?{query}"
    async with Tcp.open(either) as tcp:
        if transport == "websocket":
            if name == "no topic":
                return  # a WebSocket may subscribe later
            plain = handshake_bytes(either).decode().replace(f"{either.prefix}/v1/events", target, 1)
            await tcp.send(plain.encode())
        else:
            accept = {"sse": "text/event-stream", "ndjson": "application/x-ndjson", "poll": "*/*"}[transport]
            await tcp.send(request_bytes("GET", target, [("Accept", accept)]))
        response = await read_response(tcp)
    assert response.status == status, response
    assert hint in response.problem["detail"]


@pytest.mark.parametrize("header", ["Last-Event-ID", "If-None-Match"])
@pytest.mark.parametrize("value", ["garbage", "a" * 3000, "\xff\xfe", "earliest, earliest", "-", '"'])
async def test_garbage_in_a_cursor_header_is_refused(address: Address, header: str, value: str) -> None:
    """What is no cursor is none in a header either."""
    response = await fetch(address, "/v1/events", [("topic", "a")], [(header, value)])
    assert response.status == 400
    assert "cursor" in response.problem["detail"]


async def test_an_empty_last_event_id_is_none(address: Address) -> None:
    """An EventSource that has received no id yet sends an empty header, or none."""
    response = await fetch(address, "/v1/events", [("topic", "a")], [("Last-Event-ID", "")])
    assert response.status == 200


async def test_ten_thousand_topics_are_refused(address: Address) -> None:
    """10,000 `topic=` parameters are too long a target; where they are short enough, too many parameters."""
    query = "&".join(["topic=a"] * 10_000)
    async with Tcp.open(address) as tcp:
        await tcp.send(request_bytes("GET", f"/v1/events?{query}"))
        assert (await read_response(tcp)).status == 414
        assert await tcp.rest() == b""
    with GatewayProcess(max_header_bytes="1MiB", max_topics=10_000) as process:
        generous = address_of(process)
        async with unaffected(generous), Tcp.open(generous) as tcp:
            await tcp.send(request_bytes("GET", "/v1/events?" + "&".join(["topic"] * 10_000)))
            response = await read_response(tcp)
            assert response.status == 422
            assert "parameters" in response.problem["detail"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_a_method_that_is_none_of_its_is_refused(either: Address, method: str) -> None:
    """The answer names the methods that there are (RFC 9110 15.5.6)."""
    response = await fetch(either, "/v1/events", [("topic", "a")], method=method)
    assert response.status == 405
    assert response.head["allow"] == "GET, HEAD, POST"


# --- broken HTTP -------------------------------------------------------------------------------------------

NO_HTTP = {
    "garbage": b"\x00\x01\x02\x03\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown method": b"SUBSCRIBE!! / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "space before the colon": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "nul in a header": b"GET / HTTP/1.1\r\nHost: localhost\r\nA: b\0c\r\n\r\n",
    "both framings": b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
    b"Content-Length: 4\r\n\r\nabcd",
    "negative length": b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "websocket over nothing": b"\x81\x85\x00\x00\x00\x00hello",
}


@pytest.mark.parametrize("name", NO_HTTP)
async def test_what_is_no_http_is_answered_400_and_closed(address: Address, name: str) -> None:
    """Bytes that are no HTTP/1.1 request get 400 at the first of them that cannot be, and the end."""
    async with Tcp.open(address) as tcp:
        await tcp.send(NO_HTTP[name])
        response = await read_response(tcp)
        assert response.status == 400
        assert response.head["connection"] == "close"
        assert await tcp.rest() == b""


@pytest.mark.parametrize("line", ["GET /v1/events?topic=a", "GET /v1/events?topic=a HTTP/2.0"])
async def test_another_version_of_http_is_refused(address: Address, line: str) -> None:
    """HTTP/0.9, which has no version in its line, and HTTP/2 without its framing get 505."""
    async with Tcp.open(address) as tcp:
        await tcp.send(f"{line}\r\n\r\n".encode())
        assert (await read_response(tcp)).status == 505


@pytest.mark.parametrize("piece", [b"X: y\r\n", b"X", b": ", b"a"])
async def test_an_endless_head_is_refused(address: Address, piece: bytes) -> None:
    """A head that goes on and on is refused when it passes the limit, not kept."""
    async with Tcp.open(address) as tcp:
        await tcp.send(
            b"GET /v1/events?topic=a HTTP/1.1\r\nHost: localhost\r\n" + (b"X-A" if piece == b": " else b"")
        )
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 20:
                await tcp.send(piece * 8192)
                sent += len(piece) * 8192
        answer = await tcp.rest()
    assert answer == b"" or answer.split(b" ", 2)[1] in (b"431", b"400")


async def test_a_giant_target_is_refused(address: Address) -> None:
    """A request line beyond the limit gets 431, one beyond what can be read at all 414."""
    for size, status in ((65_000, 431), (100_000, 414)):
        async with Tcp.open(address) as tcp:
            await tcp.send(request_bytes("GET", "/v1/events?topic=" + "a" * size, [("X", "y" * 600)]))
            response = await read_response(tcp)
        assert response.status == status
        assert response.problem["detail"]


@pytest.mark.parametrize("sent", [b"GET /v1/ev", b"GET /v1/events?topic=a HTTP/1.1\r\nHost: localhost\r\n"])
async def test_half_a_request_is_not_waited_for_for_ever(address: Address, sent: bytes) -> None:
    """A head that does not come to its end within `header_timeout` is answered 408 and closed."""
    async with Tcp.open(address) as tcp:
        await tcp.send(sent)
        response = await read_response(tcp)
        assert response.status == 408
        assert await tcp.rest() == b""


async def test_a_head_that_trickles_is_not_waited_for_for_ever(address: Address) -> None:
    """Sending a byte now and then does not prolong the time that a head may take."""
    async with Tcp.open(address) as tcp:
        await tcp.send(b"GET /v1/events?topic=a HTTP/1.1\r\n")
        reading = asyncio.ensure_future(tcp.rest())
        with contextlib.suppress(ConnectionError):
            while not reading.done():
                await tcp.send(b"X")
                await asyncio.sleep(0.1)  # the trickle
        assert b" 408 " in await reading


async def test_a_silent_connection_is_closed(address: Address) -> None:
    """A client that connects and says nothing is closed without an answer."""
    async with Tcp.open(address) as tcp:
        assert await tcp.rest() == b""


async def test_a_hundred_half_requests_hold_nobody_up(address: Address) -> None:
    """Beside a hundred clients with half a request others are answered, and the hundred end."""
    async with contextlib.AsyncExitStack() as stack:
        halves = [await stack.enter_async_context(Tcp.open(address)) for _ in range(100)]
        for tcp in halves:
            await tcp.send(b"GET /v1/events?topic=a HTTP/1.1\r\nHost: localhost\r\n")
        assert (await fetch(address, "/v1/events", [("topic", "a")])).status == 200
        answers = await asyncio.gather(*(tcp.rest() for tcp in halves))
    assert all(b" 408 " in answer for answer in answers)


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"],
    ids=["length", "chunked"],
)
async def test_half_a_body_is_not_waited_for_for_ever(address: Address, framing: bytes) -> None:
    """A body that does not go on within `body_timeout` is answered 408 and closed."""
    async with Tcp.open(address) as tcp:
        head = b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        await tcp.send(head + framing + b"5\r\n[{   ")
        response = await read_response(tcp)
        assert response.status == 408
        assert await tcp.rest() == b""


ENDLESS = {
    "trailers": (b"0\r\n", b"X-Trailer: " + b"y" * 100 + b"\r\n"),
    "one trailer": (b"0\r\nX: ", b"y" * 100),
    "chunk extension": (b"5;x=", b"y" * 100),
    "chunk size": (b"", b"0" * 100),
    "line ends between requests": (b"0\r\n\r\n", b"\r\n" * 50),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_what_surrounds_a_body_is_not_kept_without_end(
    process: GatewayProcess, address: Address, name: str
) -> None:
    """Trailers, chunk extensions and empty lines that never end are cut off, and cost no memory."""
    begin, piece = ENDLESS[name]
    before = memory_of(process)
    async with Tcp.open(address) as tcp:
        head = b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n"
        await tcp.send(head + begin)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(20):
                while True:
                    await tcp.send(piece * 1000)
        await tcp.rest()
    assert memory_of(process) - before < 4_000_000


async def test_many_small_chunks_are_a_body(address: Address, topics: Topics) -> None:
    """A large body in chunks of a few bytes, with extensions, is no attack."""
    body = json.dumps({"topic": topics(), "data": "x" * 100_000}).encode()
    chunks = b"".join(
        b"%x;ext=%b\r\n%b\r\n" % (len(body[at : at + 7]), b"e" * 20, body[at : at + 7])
        for at in range(0, len(body), 7)
    )
    head = b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with Tcp.open(address) as tcp:
        await tcp.send(head + chunks + b"0\r\nX-Trailer: y\r\n\r\n")
        assert (await read_response(tcp)).status == 202


UPLOAD = b"POST /v1/topics/t HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("chunk", [b"x\r\n", b"+1\r\n1\r\n", b"1\r\n12\r\n", b"1\n1\n"])
async def test_a_body_in_broken_chunks_is_answered(address: Address, chunk: bytes) -> None:
    """A client whose chunks are wrong is told so; a mere end is a 502 to whoever stands in between."""
    async with Tcp.open(address) as tcp:
        await tcp.send(UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
        response = await read_response(tcp)
        assert (response.status, response.head["connection"]) == (400, "close")
        assert await tcp.rest() == b""


@pytest.mark.parametrize("coding", ["gzip, chunked", "identity, chunked", "deflate,chunked"])
async def test_a_coding_that_is_not_undone_is_refused(address: Address, coding: str) -> None:
    """What is coded in more than chunks would be stored as it came (RFC 9112 6.1)."""
    async with Tcp.open(address) as tcp:
        await tcp.send(UPLOAD + f"Transfer-Encoding: {coding}\r\n\r\n0\r\n\r\n".encode())
        assert (await read_response(tcp)).status == 501
        assert await tcp.rest() == b""


@pytest.mark.parametrize(
    "head",
    [
        UPLOAD + b"Content-Length: 2\r\n\r\n",
        UPLOAD + b"Connection: close, upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n",
    ],
    ids=["plain", "the last, with an offer"],
)
async def test_garbage_behind_a_request_does_not_cost_its_answer(address: Address, head: bytes) -> None:
    """What was published is said to be, or it would be published again; then the connection ends."""
    async with Tcp.open(address) as tcp:
        await tcp.send(head + b"{}" + b"\0garbage\r\n\r\n")
        assert (await read_response(tcp)).status == 202
        assert await tcp.rest() == b""


async def test_a_poll_does_not_wait_for_its_body(address: Address) -> None:
    """A GET that announces a body which never comes is answered."""
    async with Tcp.open(address) as tcp:
        await tcp.send(b"GET /v1/events?topic=t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        assert (await read_response(tcp)).status == 200


# --- behind a stream ---------------------------------------------------------------------------------------

POLL = request_bytes("GET", "/v1/events?topic=other")


def stream_request(topic: str) -> bytes:
    return request_bytes("GET", f"/v1/events?topic={topic}", [SSE])


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    "behind",
    [POLL, POLL * 20, stream_request("other"), POLL[:20], b"garbage\0\r\n\r\n", b"\r\n" * 100],
    ids=["poll", "polls", "stream", "half", "garbage", "line ends"],
)
async def test_requests_behind_a_stream_are_not_answered(
    address: Address, topics: Topics, behind: bytes, together: bool
) -> None:
    """
    What a client pipelines behind the request for a stream never gets an answer into the stream.

    Garbage that comes in one piece with the request may end the connection, for no answer to it can be told
    from the stream's; but nothing else.
    """
    async with Tcp.open(address) as tcp:
        await tcp.send(stream_request(topics()) + (behind if together else b""))
        try:
            head = await read_head(tcp)
        except (AssertionError, ConnectionError):
            assert together
            assert b"garbage" in behind
            return
        stream = Sse(tcp, head)
        await stream.control("welcome")
        if not together:
            await tcp.send(behind)
        for number in range(3):
            await publish(address, {"topic": topics(), "data": number}, {"topic": "other", "data": "no"})
            assert await stream.data(1) == [number]
        await patience_is_over(address)
        await publish(address, {"topic": topics(), "data": "still"})
        assert await stream.data(1) == ["still"]


async def patience_is_over(address: Address) -> None:
    """Wait until the gateway has lost its patience with half a request that was begun now."""
    async with Tcp.open(address) as tcp:
        await tcp.send(b"GET / HT")
        assert b" 408 " in await tcp.rest()


async def test_a_stream_behind_other_requests_is_a_stream(address: Address, topics: Topics) -> None:
    """Polls before a pipelined stream are answered first, in order; what follows it is not."""
    await publish(address, {"topic": topics(), "data": 0})
    first = request_bytes("GET", f"/v1/events?topic={topics()}&cursor=earliest")
    async with Tcp.open(address) as tcp:
        await tcp.send(first + POLL + stream_request(topics()) + POLL + first)
        assert [event["data"] for event in (await read_response(tcp)).json["events"]] == [0]
        assert (await read_response(tcp)).json["events"] == []
        stream = Sse(tcp, await read_head(tcp))
        await stream.control("welcome")
        await publish(address, {"topic": topics(), "data": 1})
        assert await stream.data(1) == [1]


async def test_a_websocket_behind_other_requests_is_a_websocket(address: Address, topics: Topics) -> None:
    """A handshake pipelined behind a poll, with frames right behind it, is answered in its turn."""
    handshake = handshake_bytes(address, [("topic", topics())])
    frames = Frame(TEXT, b'{"op":"ping","ref":1}').encode() + Frame(PING, b"x").encode()
    async with Tcp.open(address) as tcp:
        await tcp.send(POLL + handshake + frames)
        assert (await read_response(tcp)).status == 200
        head = await read_head(tcp)
        assert head.status == 101
        socket = WebSocket(tcp, head)
        await socket.control("welcome")
        assert await socket.next() == {"control": "pong", "ref": 1}
        assert await socket.pong() == Frame(PONG, b"x")


async def test_a_flood_behind_a_stream_ends_it(process: GatewayProcess, address: Address) -> None:
    """A client that keeps sending behind its request is cut off; nothing of it is kept."""
    async with open_subscriber(address, "sse", "t") as subscriber:
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                await subscriber.tcp.send(b"x" * 65_536)
        await subscriber.tcp.rest()


async def test_a_body_behind_the_request_for_a_stream_is_ignored(address: Address, topics: Topics) -> None:
    """A GET with a small body is a GET."""
    async with Tcp.open(address) as tcp:
        await tcp.send(request_bytes("GET", f"/v1/events?topic={topics()}", [SSE], b"{}" * 100))
        stream = Sse(tcp, await read_head(tcp))
        await stream.control("welcome")
        await publish(address, {"topic": topics(), "data": 1})
        assert await stream.data(1) == [1]


@pytest.mark.parametrize("transport", [*STREAMS, "longpoll"])
async def test_a_client_that_hangs_up_in_the_middle_leaves_nothing(address: Address, transport: str) -> None:
    """A reset right behind the request, also while the log is asked where to begin, leaves no connection."""
    query = [("topic", "#"), ("cursor", "2020-01-01T00:00:00Z"), ("consumer", "c")]
    accept = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}.get(transport, "*/*")
    wait = [("wait", "20")] if transport == "longpoll" else []
    request = (
        handshake_bytes(address, query)
        if transport == "websocket"
        else request_bytes("GET", address.target("/v1/events", query + wait), [("Accept", accept)])
    )
    for number in range(60):
        async with Tcp.open(address) as tcp:
            await tcp.send(request)
            for _ in range(number % 6):  # at various moments
                await asyncio.sleep(0)
            tcp.reset()
    healthy = len(STREAMS)
    await until(lambda: connections_are(address, healthy), "only the healthy clients are left")


async def connections_are(address: Address, number: int) -> bool:
    """Tell whether the gateway has so many connections."""
    response = await fetch(address, "/v1/connections")
    return bool(response.json["total"] == number)


# --- WebSocket handshakes ----------------------------------------------------------------------------------

BAD_HANDSHAKES: dict[str, tuple[dict[str, str | None], int]] = {
    "old version": ({"Sec-WebSocket-Version": "8"}, 426),
    "no version": ({"Sec-WebSocket-Version": None}, 426),
    "version twice": ({"Sec-WebSocket-Version": "13, 13"}, 426),
    "no key": ({"Sec-WebSocket-Key": None}, 400),
    "short key": ({"Sec-WebSocket-Key": "c2hvcnQ="}, 400),
    "long key": ({"Sec-WebSocket-Key": "A" * 100}, 400),
    "key that is no base64": ({"Sec-WebSocket-Key": "?" * 24}, 400),
    "key with a space": ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBu b25jZQ=="}, 400),
    "no connection": ({"Connection": None}, 400),
    "connection kept": ({"Connection": "keep-alive"}, 400),
}


@pytest.mark.parametrize("name", BAD_HANDSHAKES)
async def test_a_bad_handshake_is_refused(address: Address, name: str) -> None:
    """Each lack has its status; 426 names the version that is spoken (RFC 6455 4.2.1, 4.4)."""
    replace, status = BAD_HANDSHAKES[name]
    async with Tcp.open(address) as tcp:
        await tcp.send(handshake_bytes(address, [("topic", "t")], replace=replace))
        response = await read_response(tcp)
    assert response.status == status
    assert response.problem["detail"]
    if status == 426:
        assert response.head["sec-websocket-version"] == "13"


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT"])
async def test_a_handshake_is_a_get(address: Address, method: str) -> None:
    """Another method with an upgrade never opens a WebSocket (RFC 6455 4.1)."""
    async with Tcp.open(address) as tcp:
        await tcp.send(handshake_bytes(address, [("topic", "t")]).replace(b"GET", method.encode(), 1))
        head = await read_head(tcp)
    assert head.status in (400, 405)


async def test_a_handshake_needs_http_1_1(address: Address) -> None:
    """HTTP/1.0 knows no upgrade."""
    async with Tcp.open(address) as tcp:
        await tcp.send(handshake_bytes(address, [("topic", "t")]).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        assert (await read_head(tcp)).status in (200, 400)


@pytest.mark.parametrize(
    "connection", ["Upgrade", "upgrade", "keep-alive, Upgrade", "keep-alive,upgrade", "Upgrade, keep-alive"]
)
async def test_the_connection_header_is_a_list(address: Address, connection: str) -> None:
    """Firefox says `keep-alive, Upgrade`."""
    async with Tcp.open(address) as tcp:
        await tcp.send(handshake_bytes(address, replace={"Connection": connection}))
        assert (await read_head(tcp)).status == 101


# --- broken frames -----------------------------------------------------------------------------------------


def close_payload(code: int, reason: bytes = b"") -> bytes:
    return code.to_bytes(2, "big") + reason


BROKEN_FRAMES: dict[str, tuple[bytes, int]] = {
    "unmasked": (Frame(TEXT, b"{}").encode(mask=False), 1002),
    "unmasked control": (Frame(PING, b"").encode(mask=False), 1002),
    "unmasked pong": (Frame(PONG, b"").encode(mask=False), 1002),
    "reserved bit 1": (Frame(TEXT, b"{}", reserved=0b001).encode(), 1002),
    "reserved bit 2": (Frame(TEXT, b"{}", reserved=0b010).encode(), 1002),
    "compressed, not negotiated": (Frame(TEXT, b"{}", reserved=0b100).encode(), 1002),
    "compressed control": (Frame(PING, b"", reserved=0b100).encode(), 1002),
    "opcode 3": (Frame(3, b"").encode(), 1002),
    "opcode 7": (Frame(7, b"x").encode(), 1002),
    "opcode 11": (Frame(11, b"").encode(), 1002),
    "opcode 15": (Frame(15, b"x").encode(), 1002),
    "continuation of nothing": (Frame(CONTINUATION, b"x").encode(), 1002),
    "text within a text": (
        Frame(TEXT, b"a", fin=False).encode() + Frame(TEXT, b"b").encode(),
        1002,
    ),
    "binary within a text": (
        Frame(TEXT, b"a", fin=False).encode() + Frame(BINARY, b"b", fin=False).encode(),
        1002,
    ),
    "fragmented ping": (Frame(PING, b"", fin=False).encode(), 1002),
    "fragmented close": (Frame(CLOSE, b"", fin=False).encode(), 1002),
    "fragmented pong": (Frame(PONG, b"", fin=False).encode(), 1002),
    "long ping": (Frame(PING, b"x" * 126).encode(), 1002),
    "long pong": (Frame(PONG, b"x" * 126).encode(), 1002),
    "long close": (Frame(CLOSE, close_payload(1000, b"x" * 124)).encode(), 1002),
    "close of one byte": (Frame(CLOSE, b"\x03").encode(), 1002),
    "close code 0": (Frame(CLOSE, close_payload(0)).encode(), 1002),
    "close code 999": (Frame(CLOSE, close_payload(999)).encode(), 1002),
    "close code 1004": (Frame(CLOSE, close_payload(1004)).encode(), 1002),
    "close code 1005": (Frame(CLOSE, close_payload(1005)).encode(), 1002),
    "close code 1006": (Frame(CLOSE, close_payload(1006)).encode(), 1002),
    "close code 1015": (Frame(CLOSE, close_payload(1015)).encode(), 1002),
    "close code 1016": (Frame(CLOSE, close_payload(1016)).encode(), 1002),
    "close code 2999": (Frame(CLOSE, close_payload(2999)).encode(), 1002),
    "close code 5000": (Frame(CLOSE, close_payload(5000)).encode(), 1002),
    "close reason no utf-8": (Frame(CLOSE, close_payload(1000, b"\xff\xfe")).encode(), 1007),
    "close reason cut": (Frame(CLOSE, close_payload(1000, b"\xe2\x82")).encode(), 1007),
    "text no utf-8": (Frame(TEXT, b'{"op":"\xff"}').encode(), 1007),
    "text with a surrogate": (Frame(TEXT, b'"\xed\xa0\x80"').encode(), 1007),
    "text overlong": (Frame(TEXT, b"\xc0\xaf").encode(), 1007),
    "text beyond unicode": (Frame(TEXT, b"\xf4\x90\x80\x80").encode(), 1007),
    "text cut": (Frame(TEXT, b"\xe2\x82").encode(), 1007),
    "text cut in fragments": (
        Frame(TEXT, b"\xe2", fin=False).encode() + Frame(CONTINUATION, b"\x82").encode(),
        1007,
    ),
    "bad utf-8 in the first fragment": (Frame(TEXT, b"\xff", fin=False).encode(), 1007),
    "too long": (Frame(TEXT, b"x" * 100_001).encode(), 1009),
    "said to be too long": (Frame(TEXT, b"x" * 100_001).encode()[:14], 1009),
    "said to be endless": (b"\x82\xff\x7f" + b"\xff" * 7 + b"\0\0\0\0", 1009),
    "length with its highest bit": (b"\x82\xff\xff" + b"\xff" * 7 + b"\0\0\0\0", 1009),
    "too long in fragments": (
        Frame(BINARY, b"x" * 60_000, fin=False).encode() + Frame(CONTINUATION, b"x" * 60_000).encode(),
        1009,
    ),
}


@pytest.mark.parametrize("piecemeal", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("name", BROKEN_FRAMES)
async def test_a_broken_frame_fails_the_connection(address: Address, name: str, piecemeal: bool) -> None:
    """Each breach of RFC 6455 closes with its code (7.4.1), whether it comes at once or byte by byte."""
    data, code = BROKEN_FRAMES[name]
    async with open_subscriber(address, "websocket", "t") as socket:
        if piecemeal:
            for at in range(min(len(data), 200)):
                await socket.tcp.send(data[at : at + 1])
            await socket.tcp.send(data[200:])
        else:
            await socket.tcp.send(data)
        closed = await socket.closed()
    assert closed.code == code, closed
    await until(lambda: connections_are(address, len(STREAMS)), "the broken connection is gone")


TOLERATED: dict[str, bytes] = {
    "a length longer than it need be": Frame(TEXT, b'{"op":"ping"}').encode(length_bytes=2)
    + Frame(PONG, b"").encode(),
    "pongs unasked for": Frame(PONG, b"x").encode() * 50,
    "empty fragments": Frame(TEXT, b"", fin=False).encode()
    + Frame(CONTINUATION, b"", fin=False).encode() * 1000
    + Frame(CONTINUATION, b'{"op":"ping"}').encode(),
    "control frames between fragments": Frame(TEXT, b'{"op":', fin=False).encode()
    + Frame(PONG, b"").encode()
    + Frame(CONTINUATION, b'"ping"}').encode(),
    "a character in two fragments": Frame(TEXT, b'{"op":"ping","ref":"\xe2', fin=False).encode()
    + Frame(CONTINUATION, b'\x82\xac"}').encode(),
}


@pytest.mark.parametrize("name", TOLERATED)
async def test_what_is_odd_but_allowed_is_taken(address: Address, name: str) -> None:
    """Fragments, empty ones too, and control frames between them are as good as whole messages."""
    async with open_subscriber(address, "websocket", "t") as socket:
        await socket.tcp.send(TOLERATED[name])
        if b"ping" in TOLERATED[name] or "pong" not in name:
            assert (await socket.next())["control"] == "pong"
        await socket.send({"op": "ping", "ref": "end"})
        assert await socket.next() == {"control": "pong", "ref": "end"}
        await socket.close()


async def test_endless_empty_fragments_cost_nothing(process: GatewayProcess, address: Address) -> None:
    """A message that never ends, in fragments without content, takes no memory."""
    async with open_subscriber(address, "websocket", "t") as socket:
        await socket.send_frame(Frame(TEXT, b"", fin=False))
        flood = Frame(CONTINUATION, b"", fin=False).encode() * 10_000
        await socket.tcp.send(flood)
        await socket.send_frame(Frame(PING, b"warm"))
        assert await socket.pong() == Frame(PONG, b"warm")
        before = memory_of(process)
        for _ in range(30):
            await socket.tcp.send(flood)
        await socket.send_frame(Frame(PING, b"done"))
        assert await socket.pong() == Frame(PONG, b"done")
        assert memory_of(process) - before < 1_500_000, "300,000 fragments are not kept"


def memory_of(process: GatewayProcess) -> int:
    """Return the private memory of a child in bytes."""
    with open(f"/proc/{process.pid}/smaps_rollup") as lines:  # noqa: PTH123  # no file, the kernel's answer
        fields = dict(line.split(":", 1) for line in lines if ":" in line and "-" not in line.split()[0])
    return (int(fields["Private_Dirty"].split()[0]) + int(fields["Private_Clean"].split()[0])) * 1024


async def test_a_message_in_tiny_fragments_costs_its_size(process: GatewayProcess, address: Address) -> None:
    """A message of the largest size, two bytes a fragment, takes about its size in memory, and is read."""
    async with open_subscriber(address, "websocket", "t") as socket:
        before = memory_of(process)
        await socket.send_frame(Frame(TEXT, b'{"op":"ping","ref":"', fin=False))
        fragments = Frame(CONTINUATION, b"xy", fin=False).encode() * 1000
        for _ in range(40):
            await socket.tcp.send(fragments)
        await socket.send_frame(Frame(PING, b"done"))
        assert await socket.pong() == Frame(PONG, b"done")
        assert memory_of(process) - before < 1_500_000
        await socket.send_frame(Frame(CONTINUATION, b'"}'))
        assert await socket.next() == {"control": "pong", "ref": "xy" * 40_000}


async def test_a_compressed_bomb_is_refused(process: GatewayProcess, address: Address) -> None:
    """A small message that inflates beyond the limit closes with 1009, and is never inflated whole."""
    packer = zlib.compressobj(9, wbits=-15)
    block = bytes(1 << 20)
    bomb = b"".join(packer.compress(block) for _ in range(80)) + packer.flush(zlib.Z_SYNC_FLUSH)
    bomb = bomb[:-4]
    assert len(bomb) < 100_000
    offer = [("Sec-WebSocket-Extensions", "permessage-deflate")]
    async with open_subscriber(address, "websocket", "t", headers=offer) as socket:
        assert socket.deflate
        before = memory_of(process)
        await socket.send_frame(Frame(BINARY, bomb, reserved=0b100))
        assert (await socket.closed()).code == 1009
        assert memory_of(process) - before < 8_000_000


@pytest.mark.parametrize("payload", [b"\xff" * 50, b"\x00", b"\x07", b""], ids=["ff", "00", "07", "empty"])
async def test_what_cannot_be_inflated_is_refused(address: Address, payload: bytes) -> None:
    """A compressed message that is none closes the connection, or is an empty text."""
    offer = [("Sec-WebSocket-Extensions", "permessage-deflate")]
    async with open_subscriber(address, "websocket", "t", headers=offer) as socket:
        await socket.send_frame(Frame(TEXT, payload, reserved=0b100))
        await socket.send("nonsense")
        try:
            assert (await socket.next())["control"] == "error", "it was an empty text"
        except Closed as closed:
            code = closed.code
        else:
            code = 1007
        assert code in (1002, 1007)


async def send_for_ever(tcp: Tcp, data: bytes) -> None:
    while True:
        await tcp.send(data)


async def test_a_client_that_sends_and_never_reads_is_not_read_for_ever(
    process: GatewayProcess, address: Address
) -> None:
    """Pings whose pongs nobody reads are left in the client's own socket, not collected in the gateway."""
    async with Tcp.open(address, receive_buffer=4096) as tcp:
        socket = await WebSocket.handshake(tcp, address, [("topic", "t")])
        await socket.control("welcome")
        tcp.stall()
        before = memory_of(process)
        ping = Frame(PING, b"x" * 125).encode() * 1000
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send_for_ever(tcp, ping), 1.5)
        assert memory_of(process) - before < 4_000_000


# --- operations --------------------------------------------------------------------------------------------

BAD_OPERATIONS: dict[str, tuple[Any, int]] = {
    "no json": ("nonsense", 400),
    "empty": ("", 400),
    "half json": ('{"op":', 400),
    "binary": (b'{"op":"ping"}', 422),
    "binary garbage": (b"\xff\x00", 422),
    "a number": ("1", 422),
    "an array": ("[]", 422),
    "no op": ({"ref": 1}, 422),
    "unknown op": ({"op": "fly", "ref": 1}, 422),
    "unknown member": ({"op": "ping", "ref": 1, "x": 1}, 422),
    "op of a wrong type": ({"op": 1, "ref": 1}, 422),
    "subscribe to nothing": ({"op": "subscribe", "ref": 1}, 422),
    "subscribe to an empty list": ({"op": "subscribe", "ref": 1, "topics": []}, 422),
    "subscribe to a number": ({"op": "subscribe", "ref": 1, "topics": [1]}, 422),
    "subscribe to a text": ({"op": "subscribe", "ref": 1, "topics": "a"}, 422),
    "subscribe to no pattern": ({"op": "subscribe", "ref": 1, "topics": ["a", "b..c"]}, 422),
    "subscribe to too much": ({"op": "subscribe", "ref": 1, "topics": [f"t{n}" for n in range(101)]}, 422),
    "subscribe to a surrogate": ('{"op":"subscribe","ref":1,"topics":["\\ud800"]}', 400),
    "subscribe from garbage": ({"op": "subscribe", "ref": 1, "topics": ["a"], "cursor": "x"}, 400),
    "subscribe from a number": ({"op": "subscribe", "ref": 1, "topics": ["a"], "cursor": 5}, 422),
    "unsubscribe from what it has not": ({"op": "unsubscribe", "ref": 1, "topics": ["other"]}, 422),
    "unsubscribe from nothing": ({"op": "unsubscribe", "ref": 1}, 422),
    "publish without topic": ({"op": "publish", "ref": 1, "data": 1}, 422),
    "publish to a pattern": ({"op": "publish", "ref": 1, "topic": "a.*", "data": 1}, 422),
    "publish to no topic": ({"op": "publish", "ref": 1, "topic": "a..b", "data": 1}, 422),
    "publish with a bad ttl": ({"op": "publish", "ref": 1, "topic": "a", "data": 1, "ttl": -1}, 422),
    "publish with a number as id": ({"op": "publish", "ref": 1, "topic": "a", "data": 1, "id": 5}, 422),
    "ack without consumer": ({"op": "ack", "ref": 1, "cursor": "aaaaaa-1-0000"}, 422),
    "ack of nothing": ({"op": "ack", "ref": 1}, 422),
}


@pytest.mark.parametrize("name", BAD_OPERATIONS)
async def test_a_bad_operation_is_answered_and_changes_nothing(
    either: Address, topics: Topics, name: str
) -> None:
    """A mistake gets an `error` with its status, its `ref` where it has one, and the connection goes on."""
    operation, status = BAD_OPERATIONS[name]
    async with open_subscriber(either, "websocket", topics()) as socket:
        await socket.send(operation)
        error = await socket.control("error")
        assert error["status"] == status, error
        assert error["title"]
        assert error["detail"]
        if isinstance(operation, dict):
            assert error["ref"] == 1
        assert await socket.ask({"op": "ping", "ref": 2}) == {"control": "pong", "ref": 2}
        await publish(either, {"topic": topics(), "data": 1})
        assert await socket.data(1) == [1]


async def test_deeply_nested_json_is_refused(address: Address) -> None:
    """Nesting that would exhaust a parser's stack is answered, not crashed on."""
    for text in ("[" * 50_000, '{"op":"ping","ref":' + "[" * 40_000 + "]" * 40_000 + "}"):
        async with open_subscriber(address, "websocket", "t") as socket:
            await socket.send(text)
            answer = await socket.next()
            assert answer["control"] in ("error", "pong")
            assert await socket.ask({"op": "ping", "ref": 2}) == {"control": "pong", "ref": 2}


async def test_a_flood_of_mistakes_costs_the_flooder_alone(address: Address) -> None:
    """Ten thousand bad operations in one go are each answered in order."""
    async with open_subscriber(address, "websocket", "t") as socket:
        sending = asyncio.ensure_future(socket.tcp.send(Frame(TEXT, b"nonsense").encode() * 10_000))
        for _ in range(10_000):
            await socket.control("error")
        await sending
        assert await socket.ask({"op": "ping", "ref": 2}) == {"control": "pong", "ref": 2}


async def test_a_flood_of_publishes_and_a_reset_leave_nothing(address: Address, topics: Topics) -> None:
    """A client that publishes thousands of events and resets the connection is forgotten at once."""
    operation = json.dumps({"op": "publish", "topic": topics(), "data": "x" * 50}).encode()
    for _ in range(5):
        async with open_subscriber(address, "websocket", topics()) as socket:
            await socket.tcp.send(Frame(TEXT, operation).encode() * 2000)
            await socket.next()
            socket.tcp.reset()
    await until(lambda: connections_are(address, len(STREAMS)), "the flooders are forgotten")


async def test_refusals_in_the_mounted_shell_leave_it_healthy(mounted_process: HostProcess) -> None:
    """In somebody else's application a refused handshake is an answer, not an exception."""
    address = address_of(mounted_process)
    async with unaffected(address):
        for query in ([("topic", "a..b")], [("foo", "1")], [("topic", "a"), ("cursor", "x")]):
            with pytest.raises(Refused):
                async with Tcp.open(address) as tcp:
                    await WebSocket.handshake(tcp, address, query)
    assert "Traceback" not in mounted_process.log_text(), mounted_process.log_text()
