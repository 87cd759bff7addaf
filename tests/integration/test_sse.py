"""
Server-sent events, in every shell: the bytes, and what independent readers make of them.

Two readers: `SseReader`, written here from HTML 9.2.6, and `httpx-sse`, which is somebody else's. Both must
dispatch the same events, whatever the data has in it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse

from tests.support.clients import (
    Address,
    Body,
    Sse,
    SseReader,
    Tcp,
    Topics,
    fetch,
    open_subscriber,
    publish,
    read_head,
    request_bytes,
    until,
)
from tests.support.host import address_of
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration

ACCEPT = [("Accept", "text/event-stream")]

AWKWARD: dict[str, Any] = {
    "empty": "",
    "null": None,
    "cr": "a\rb",
    "lf": "a\nb",
    "crlf": "a\r\nb\r\n",
    "blank lines": "\n\n\r\r\r\n\r\n",
    "fields": "x\n\nid: 5\nevent: sluice.gap\nretry: 1\ndata: evil\n\n",
    "nul": "a\0b",
    "bom": "\ufeffdata",
    "line separator": "a\u2028b\u2029c",
    "next line": "a\u0085b\u000b\u000c",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈",
    "colon": ": comment?",
    "space": " leading and trailing ",
    "quotes": '\\"\\\\"/</script>',
    "control characters": "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "large": "0123456789abcdef" * 62_000,
    "deep": [[[[[[[[[[{"a": [{}]}]]]]]]]]]],
    "numbers": [0, -0.0, 1e300, 12345678901234567890, 0.1],
    "key with a line break": {"a\nb": "c\rd"},
}


async def post(address: Address, body: str, content_type: str = "application/json") -> int:
    """Publish a body as it is; return the status."""
    headers = [("Content-Type", content_type)]
    response = await fetch(address, "/v1/events", (), headers, method="POST", body=body.encode())
    return response.status


# --- the bytes ---------------------------------------------------------------------------------------------


async def test_the_response_is_an_event_stream_that_nobody_caches(gateway: Address, topics: Topics) -> None:
    """Content type, caching and buffering are said as proxies and browsers need it."""
    async with open_subscriber(gateway, "sse", topics()) as stream:
        assert stream.head.status == 200
        assert stream.head["content-type"].partition(";")[0] == "text/event-stream"
        assert stream.head["content-type"].lower() in (
            "text/event-stream",
            "text/event-stream; charset=utf-8",
        )
        assert stream.head["cache-control"] == "no-store"
        assert stream.head["x-accel-buffering"] == "no"
        assert "accept" in stream.head["vary"].lower()
        assert "content-length" not in stream.head


async def test_a_stream_is_exactly_these_bytes(gateway: Address, topics: Topics) -> None:
    """First `retry` and `id`; then per event an `id` and one line of `data`, and never a field `event`."""
    async with Tcp.open(gateway) as tcp:
        await tcp.send(request_bytes("GET", gateway.target("/v1/events", [("topic", topics())]), ACCEPT))
        body = Body(tcp, await read_head(tcp))
        first = await body.some()
        lines = first.split(b"\n")
        assert lines[0].startswith(b"retry: ")
        assert 500 <= int(lines[0][7:]) <= 3000
        assert lines[1].startswith(b"id: ")
        assert lines[2:] == [b"", b""]
        answer = await publish(gateway, {"topic": topics(), "id": topics("id"), "data": "x"})
        cursor = answer["cursor"].encode()
        while (block := await body.some()).count(b"\n") == 2:
            assert block.startswith(b"id: "), "a heartbeat"
        id_line, data_line, *end = block.split(b"\n")
        assert id_line == b"id: " + cursor
        assert end == [b"", b""]
        event = json.loads(data_line.removeprefix(b"data: "))
        members = ["cursor", "topic", "id", "type", "time", "data"]
        assert list(event) == members
        assert data_line == b"data: " + json.dumps(event, separators=(",", ":")).encode()


async def test_clients_are_told_different_times_to_wait(gateway: Address, topics: Topics) -> None:
    """The `retry` is spread, so that not everybody comes back at once."""
    times = set()
    for _ in range(12):
        async with open_subscriber(gateway, "sse", topics()) as stream:
            assert stream.retry is not None
            assert 500 <= stream.retry <= 3000
            times.add(stream.retry)
    assert len(times) > 3


async def test_http_1_0_gets_a_stream_without_chunks(gateway: Address, topics: Topics) -> None:
    """A client of HTTP/1.0 gets the same events up to the end of the connection."""
    async with open_subscriber(gateway, "sse", topics(), version="1.0", welcomed=False) as stream:
        if "transfer-encoding" in stream.head:
            pytest.fail("HTTP/1.0 knows no transfer codings (RFC 9112 6.1)") if gateway.prefix == "" else None
            return  # plain uvicorn's own decision
        await stream.control("welcome")
        await publish(gateway, {"topic": topics(), "data": 1})
        assert await stream.data(1) == [1]


async def test_a_burst_comes_in_as_many_blocks_as_events(gateway: Address, topics: Topics) -> None:
    """Events published in one request are one block each."""
    async with open_subscriber(gateway, "sse", topics()) as stream:
        await publish(gateway, *({"topic": topics(), "data": number} for number in range(500)))
        assert await stream.data(500) == list(range(500))
        assert len([block for block in stream.blocks if block.data is not None]) == 500


async def test_a_client_that_hangs_up_is_forgotten(gateway: Address, topics: Topics) -> None:
    """When the socket ends, so does the connection in the gateway."""
    async with open_subscriber(gateway, "sse", topics()):
        assert topics() in (await fetch(gateway, "/v1/topics")).body.decode()

    async def forgotten() -> bool:
        return topics() not in (await fetch(gateway, "/v1/topics", [("limit", "1000")])).body.decode()

    await until(forgotten, "the connection is forgotten")


# --- awkward inputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ascii_only", [True, False], ids=["escaped", "raw"])
@pytest.mark.parametrize("name", AWKWARD)
async def test_awkward_data_arrives_unchanged(
    gateway: Address, topics: Topics, name: str, ascii_only: bool
) -> None:
    """Whatever data has in it, escaped or not, both readers dispatch exactly one event with exactly it."""
    value = AWKWARD[name]
    body = json.dumps(
        [{"topic": topics(), "data": value}, {"topic": topics(), "data": "end"}], ensure_ascii=ascii_only
    )
    async with (
        open_subscriber(gateway, "sse", topics()) as stream,
        httpx.AsyncClient(trust_env=False) as client,
        aconnect_sse(client, "GET", f"{gateway.url}/v1/events", params={"topic": topics()}) as independent,
    ):
        assert await post(gateway, body) == 202
        assert await stream.data(2) == [value, "end"]
        seen = []
        async with asyncio.timeout(20):
            async for event in independent.aiter_sse():
                if event.data:
                    message = json.loads(event.data)
                    assert event.id == message["cursor"]
                    assert event.event in ("", "message")
                    seen.append(message["data"])
                if len(seen) == 2:
                    break
        assert seen == [value, "end"]


@pytest.mark.parametrize("ending", ["\r\n", "\n", "\r"])
async def test_pretty_printed_data_is_one_line(gateway: Address, topics: Topics, ending: str) -> None:
    """JSON with line breaks between its tokens is sent on one line."""
    event = {"topic": topics(), "data": {"a": [1, 2]}}
    body = json.dumps(event, indent=1).replace("\n", ending)
    async with open_subscriber(gateway, "sse", topics()) as stream:
        assert await post(gateway, body) == 202
        assert await stream.data(1) == [{"a": [1, 2]}]


async def test_half_of_a_surrogate_pair_is_passed_on_or_refused(gateway: Address, topics: Topics) -> None:
    """An escaped lone surrogate, which is no Unicode text, is passed on as the escape it is, or refused."""
    body = json.dumps({"topic": topics(), "data": "\ud83d"})
    async with open_subscriber(gateway, "sse", topics()) as stream:
        status = await post(gateway, body)
        assert status in (202, 400)
        if status == 202:
            assert await stream.data(1) == ["\ud83d"]
        await publish(gateway, {"topic": topics(), "data": "end"})
        assert await stream.data(1) == ["end"]


@pytest.mark.parametrize("member", ["id", "type", "key"])
@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("a\rb", 422),
        ("a\nb", 422),
        ("a\r\nb", 422),
        ("a\0b", 422),
        ("", 422),
        ("a\u2028b", 422),
        ("x" * 256, 422),
        ("x" * 255, 202),
        ("\ufeffb", 202),
        ("👩‍👧", 202),
        ("a: b", 202),
        (" a ", 202),
        ('"\\', 202),
        ("sluice.gap", 202),
    ],
    ids=[
        "cr",
        "lf",
        "crlf",
        "nul",
        "empty",
        "u+2028",
        "256",
        "255",
        "bom",
        "emoji",
        "colon",
        "space",
        "quote",
        "own",
    ],
)
async def test_awkward_members_are_refused_or_arrive(
    gateway: Address, topics: Topics, member: str, text: str, status: int
) -> None:
    """An id, type or key that would break a line is refused; any other comes back as it was."""
    text = text if status != 202 or member != "id" or len(text) > 200 else text + topics("unique")
    if member == "id" and len(text) == 255:
        text = (topics("unique") + text)[:255]
    if text.startswith("sluice.") and member == "type":
        status = 422  # types like that are the gateway's own
    event = {"topic": topics(), member: text, "data": 1}
    async with open_subscriber(gateway, "sse", topics()) as stream:
        for ascii_only in (True, False):
            assert await post(gateway, json.dumps(event, ensure_ascii=ascii_only)) == status
            if member == "id":
                break  # the second would be a duplicate
        await publish(gateway, {"topic": topics(), "data": "end"})
        received = await stream.next()
        if status == 202:
            assert received[member] == text
        else:
            assert received["data"] == "end"
        assert all(block.type == "message" for block in stream.blocks)


async def test_text_bodies_arrive_with_their_line_breaks(gateway: Address, topics: Topics) -> None:
    """Plain text with every kind of line break is one event whose data is that text."""
    text = "one\rtwo\nthree\r\nfour\u2028five\0six\ufeff"
    async with open_subscriber(gateway, "sse", topics()) as stream:
        response = await fetch(
            gateway,
            f"/v1/topics/{topics()}",
            (),
            [("Content-Type", "text/plain; charset=utf-8")],
            method="POST",
            body=text.encode(),
        )
        assert response.status == 202
        assert await stream.data(1) == [text]


# --- the readers themselves --------------------------------------------------------------------------------

FORMATS: dict[str, tuple[bytes, list[tuple[str, str, str]]]] = {
    "bom": (b"\xef\xbb\xbfdata: a\n\n", [("message", "a", "")]),
    "two boms": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [("message", "b", "")]),
    "line ends": (b"data: a\rdata: b\r\ndata: c\n\r\n", [("message", "a\nb\nc", "")]),
    "only the name": (b"data\n\ndata\ndata\n\n", [("message", "", ""), ("message", "\n", "")]),
    "no final blank line": (b"data: a\n\ndata: b\n", [("message", "a", "")]),
    "comments": (b":\n: x\ndata: a\n:\n\n", [("message", "a", "")]),
    "one space": (b"data:  a\ndata:b\n\n", [("message", " a\nb", "")]),
    "event": (b"event: x\ndata: a\n\ndata: b\n\n", [("x", "a", ""), ("message", "b", "")]),
    "id stays": (b"id: 1\ndata: a\n\ndata: b\n\n", [("message", "a", "1"), ("message", "b", "1")]),
    "id with nul": (b"id: 1\0\ndata: a\n\n", [("message", "a", "")]),
    "id emptied": (b"id: 1\n\nid\ndata: a\n\n", [("message", "a", "")]),
    "unknown fields": (b"Data: x\ndatax: x\n data: x\ndata: a\n\n", [("message", "a", "")]),
}


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("name", FORMATS)
def test_the_reader_follows_the_specification(name: str, size: int) -> None:
    """Our own reader knows the cases of HTML 9.2.6, however the bytes are cut."""
    data, expected = FORMATS[name]
    reader = SseReader()
    blocks = [block for at in range(0, len(data), size) for block in reader.feed(data[at : at + size])]
    assert [(each.type, each.data, each.id) for each in blocks if each.data is not None] == expected


# --- overload ----------------------------------------------------------------------------------------------


async def test_one_connection_too_many_is_told_to_wait() -> None:
    """
    Beyond `max_connections` an EventSource gets 200, a time to wait and the end; others get 503.

    An EventSource takes any other status as final and never comes back.
    """
    with GatewayProcess(max_connections=2) as process:
        address = address_of(process)
        async with open_subscriber(address, "sse", "t") as first, open_subscriber(address, "ndjson", "t"):
            async with Tcp.open(address) as tcp:
                await tcp.send(request_bytes("GET", "/v1/events?topic=t", ACCEPT))
                stream = Sse(tcp, await read_head(tcp))
                assert stream.head.status == 200
                [block] = SseReader().feed(await stream.body.whole())
                assert block.retry is not None
                assert block.retry >= 3000
                assert await tcp.rest() == b""
            response = await fetch(
                address, "/v1/events", [("topic", "t")], [("Accept", "application/x-ndjson")]
            )
            assert response.status == 503
            assert int(response.head["retry-after"]) >= 1
            assert (await fetch(address, "/v1/events", [("topic", "t")])).status == 200, "polls go on"
            await publish(address, {"topic": "t", "data": 1})
            assert await first.data(1) == [1]

        async def all_gone() -> bool:
            return not (await fetch(address, "/v1/connections")).json["total"]

        await until(all_gone, "the connections are forgotten")
        async with open_subscriber(address, "sse", "t") as again:
            await publish(address, {"topic": "t", "data": 2})
            assert await again.data(1) == [2]
