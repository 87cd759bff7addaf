"""HTTP streaming, one JSON a line, in every shell."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.integration.test_sse import AWKWARD
from tests.support.clients import (
    Address,
    Body,
    Tcp,
    Topics,
    open_subscriber,
    publish,
    read_head,
    request_bytes,
)

pytestmark = pytest.mark.integration

ACCEPT = [("Accept", "application/x-ndjson")]


async def test_the_response_is_lines_that_nobody_caches(gateway: Address, topics: Topics) -> None:
    """Content type, caching and buffering are said as proxies need it."""
    async with open_subscriber(gateway, "ndjson", topics()) as stream:
        assert stream.head["content-type"] == "application/x-ndjson"
        assert stream.head["cache-control"] == "no-store"
        assert stream.head["x-accel-buffering"] == "no"
        assert "content-length" not in stream.head


async def test_a_stream_is_exactly_these_lines(gateway: Address, topics: Topics) -> None:
    """First the welcome, then one line per event, ended by LF alone."""
    async with Tcp.open(gateway) as tcp:
        await tcp.send(request_bytes("GET", gateway.target("/v1/events", [("topic", topics())]), ACCEPT))
        body = Body(tcp, await read_head(tcp))
        welcome = json.loads(await body.some())
        assert welcome.keys() == {"control", "connection", "cursor"}
        assert welcome["control"] == "welcome"
        answer = await publish(gateway, {"topic": topics(), "data": "x"})
        while (line := await body.some()).startswith(b'{"control":"heartbeat",'):
            pass
        event = json.loads(line)
        assert event["cursor"] == answer["cursor"]
        assert line == json.dumps(event, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize("name", AWKWARD)
async def test_awkward_data_is_one_line(gateway: Address, topics: Topics, name: str) -> None:
    """No data breaks a line, also for readers that take U+2028 or U+0085 for one's end."""
    value = AWKWARD[name]
    async with open_subscriber(gateway, "ndjson", topics()) as stream:
        await publish(gateway, {"topic": topics(), "data": value}, {"topic": topics(), "data": "end"})
        assert await stream.data(2) == [value, "end"]


async def test_an_independent_client_reads_the_lines(gateway: Address, topics: Topics) -> None:
    """httpx, which knows nothing of us, reads events line by line as they come."""
    await publish(gateway, *({"topic": topics(), "data": number} for number in range(10)))
    parameters = {"topic": topics(), "cursor": "earliest"}
    async with (
        httpx.AsyncClient(trust_env=False, headers=dict(ACCEPT)) as client,
        client.stream("GET", f"{gateway.url}/v1/events", params=parameters) as response,
    ):
        seen = []
        async for line in response.aiter_lines():
            message = json.loads(line)
            if "control" not in message:
                seen.append(message["data"])
            if len(seen) == 10:
                break
    assert seen == list(range(10))


async def test_http_1_0_gets_lines_without_chunks(own: Address, topics: Topics) -> None:
    """A client of HTTP/1.0 gets the same lines up to the end of the connection."""
    async with open_subscriber(own, "ndjson", topics(), version="1.0") as stream:
        assert "transfer-encoding" not in stream.head
        assert stream.head["connection"] == "close"
        await publish(own, {"topic": topics(), "data": 1})
        assert await stream.data(1) == [1]
