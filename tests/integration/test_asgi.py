"""
The gateway in somebody else's application: mounting, starting, slow and broken servers, and a host that goes
away.

What holds on every transport in every shell is in the tests of the transports, which run against these shells
too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from gateway.app import Gateway, create_app
from gateway.settings import Settings
from tests.support.asgi import AsgiExchange, answering, scope_of
from tests.support.clients import (
    Address,
    Closed,
    SseReader,
    Topics,
    fetch,
    open_subscriber,
    publish,
    until,
)
from tests.support.host import PREFIX, HostProcess, address_of

pytestmark = pytest.mark.integration

SSE = ("Accept", "text/event-stream")
NDJSON = ("Accept", "application/x-ndjson")


@pytest.fixture
async def application() -> AsyncIterator[Starlette]:
    """A gateway as an application in this process, its lifespan running."""
    application = create_app(Settings(data="memory:", drain_seconds=0, stall_timeout=0.5))
    async with application.router.lifespan_context(application):
        yield application


def gateway_of(application: Starlette) -> Gateway:
    gateway: Gateway = application.state.gateway
    return gateway


async def publish_in(application: Starlette, topic: str, *data: Any) -> None:
    """Publish in this process."""
    intake = gateway_of(application).intake
    now = intake.now()
    body = json.dumps([{"topic": topic, "data": each} for each in data]).encode()
    await intake.publish(intake.formats.events(b"application/json", body, now))


def lines_of(body: bytes) -> list[Any]:
    """Return the data of the events in the lines of a body."""
    messages = [json.loads(line) for line in body.split(b"\n")[:-1]]
    return [message["data"] for message in messages if "control" not in message]


# --- mounting ----------------------------------------------------------------------------------------------


async def test_the_host_keeps_its_own_pages(mounted: Address) -> None:
    """The gateway answers below its prefix only."""
    outside = Address(mounted.host, mounted.port)
    assert (await fetch(outside, "/")).body == b"the host's own page"
    assert (await fetch(outside, "/v1/events", [("topic", "t")])).status == 404
    assert (await fetch(mounted, "/v1/events", [("topic", "t")])).status == 200
    assert (await fetch(mounted, "/healthz")).status == 200
    assert (await fetch(mounted, "/metrics")).status == 200


async def test_a_crowd_of_first_requests_starts_the_gateway_once(tmp_path: Any) -> None:
    """Without a lifespan the first requests start it, and those that come meanwhile wait for that."""
    process = HostProcess(tmp_path, lifespan=False)
    try:
        process.launch()
        address = address_of(process)
        outside = Address(process.host, process.port)

        async def listens() -> bool:
            try:
                return (await fetch(outside, "/")).status == 200
            except OSError:
                return False

        await until(listens, "the host listens")
        publishing = asyncio.gather(*(publish(address, {"topic": "t", "data": n}) for n in range(15)))
        polls = await asyncio.gather(*(fetch(address, "/v1/events", [("topic", "t")]) for _ in range(15)))
        assert len({poll.json["cursor"].split("-")[0] for poll in polls}) == 1
        await publishing
        async with open_subscriber(address, "sse", "t", cursor="earliest") as subscriber:
            assert sorted(await subscriber.data(15)) == list(range(15))
    finally:
        process.close()


@pytest.mark.parametrize("lifespan", [True, False])
async def test_what_was_accepted_survives_the_host(lifespan: bool) -> None:
    """A host that is stopped or killed and started again has every event, with its cursors."""
    with HostProcess(lifespan=lifespan) as process:
        address = address_of(process)
        first = await publish(address, {"topic": "t", "data": 0})
        for number, ending in enumerate((process.stop, process.kill), 1):
            await publish(address, {"topic": "t", "data": number})
            await asyncio.to_thread(ending)
            await process.astart()
        async with open_subscriber(address, "ndjson", "t", cursor=first["cursor"]) as subscriber:
            assert await subscriber.data(2) == [1, 2]


async def test_two_gateways_in_one_process_are_two(application: Starlette) -> None:
    """What is published to one is not seen by the other."""
    other = create_app(Settings(data="memory:", drain_seconds=0))
    async with other.router.lifespan_context(other):
        await publish_in(other, "t", "other")
        exchange = AsgiExchange()
        async with answering(
            application, scope_of("/v1/events", "topic=t&cursor=earliest", NDJSON), exchange
        ):
            await publish_in(application, "t", "own")
            await exchange.until(lambda: b"own" in exchange.body)
        assert lines_of(exchange.body) == ["own"]


# --- the promise of the head -------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", [SSE, NDJSON])
async def test_nothing_is_missed_once_the_head_is_out(
    application: Starlette, accept: tuple[str, str]
) -> None:
    """An event accepted while the response's head is still on its way to the client arrives."""

    async def slow_head(message: Message) -> None:
        if message["type"] == "http.response.start":
            await publish_in(application, "t", "early")

    exchange = AsgiExchange(slow_head)
    async with answering(application, scope_of("/v1/events", "topic=t", accept), exchange):
        await exchange.until(lambda: b'"data":"early"' in exchange.body)


@pytest.mark.parametrize("accept", [SSE, NDJSON])
async def test_middleware_between_may_hold_the_response(
    application: Starlette, accept: tuple[str, str]
) -> None:
    """Behind Starlette's BaseHTTPMiddleware, which puts a queue in between, streams work and end."""

    async def passing_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-host"] = "was here"
        await publish_in(application, "t", "early")
        return response

    wrapped = BaseHTTPMiddleware(application, passing_on)
    exchange = AsgiExchange()
    async with answering(wrapped, scope_of("/v1/events", "topic=t", accept), exchange):
        await exchange.until(lambda: b'"data":"early"' in exchange.body)
        assert (b"x-host", b"was here") in exchange.sent[0]["headers"]
        await publish_in(application, "t", "late")
        await exchange.until(lambda: b'"data":"late"' in exchange.body)
    await until(lambda: no_connections(application), "the connection is gone")


async def no_connections(application: Starlette) -> bool:
    return not gateway_of(application).hub.connections


# --- slow and broken servers -------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", [SSE, NDJSON])
async def test_a_slow_server_costs_a_bounded_buffer(application: Starlette, accept: tuple[str, str]) -> None:
    """While the server takes nothing no more than the buffer is held; afterwards everything arrives."""
    gate = asyncio.Event()
    waiting = 0

    async def slow(message: Message) -> None:
        nonlocal waiting
        if message.get("body") and b'"data"' in message["body"]:
            waiting = len(message["body"])
            await gate.wait()

    exchange = AsgiExchange(slow)
    hub = gateway_of(application).hub
    async with answering(application, scope_of("/v1/events", "topic=t", accept), exchange):
        await exchange.until(lambda: len(exchange.sent) > 1)
        [connection] = hub.connections
        for start in range(0, 1000, 100):
            await publish_in(application, "t", *([n, "x" * 1000] for n in range(start, start + 100)))
        assert waiting
        held = waiting + connection.sink._bytes  # type: ignore[attr-defined]
        assert held < 3 * hub.buffer_bytes
        gate.set()
        await exchange.until(lambda: b'"data":[999,' in exchange.body)
    if accept is NDJSON:
        assert [number for number, _ in lines_of(exchange.body)] == list(range(1000))
    else:
        blocks = SseReader().feed(exchange.body)
        numbers = [json.loads(block.data)["data"][0] for block in blocks if block.data]
        assert numbers == list(range(1000))


@pytest.mark.parametrize("accept", [SSE, NDJSON])
async def test_a_server_that_takes_nothing_is_given_up(
    application: Starlette, accept: tuple[str, str]
) -> None:
    """After `stall_timeout` without progress a stream is aborted and forgotten."""

    async def stuck(message: Message) -> None:
        if message.get("body") and b'"data"' in message["body"]:
            await asyncio.Event().wait()

    gateway = gateway_of(application)
    exchange = AsgiExchange(stuck)
    async with answering(application, scope_of("/v1/events", "topic=t", accept), exchange) as task:
        await exchange.until(lambda: len(exchange.sent) > 1)
        await publish_in(application, "t", *("x" * 10_000 for _ in range(20)))
        async with asyncio.timeout(20):
            await asyncio.wait([task])
        assert not gateway.hub.connections
        assert gateway.streams.ended["stalled"] == 1


@pytest.mark.parametrize("accept", [SSE, NDJSON])
async def test_a_server_that_fails_to_send_ends_the_stream(
    application: Starlette, accept: tuple[str, str]
) -> None:
    """An OSError, which is how ASGI reports a client that is gone, ends the connection and nothing else."""

    async def broken(message: Message) -> None:
        if message.get("body") and b'"data"' in message["body"]:
            raise OSError

    gateway = gateway_of(application)
    exchange = AsgiExchange(broken)
    async with answering(application, scope_of("/v1/events", "topic=t", accept), exchange) as task:
        await exchange.until(lambda: len(exchange.sent) > 1)
        await publish_in(application, "t", 1)
        async with asyncio.timeout(20):
            await asyncio.wait([task])
        assert not gateway.hub.connections
    healthy = AsgiExchange()
    async with answering(application, scope_of("/v1/events", "topic=t&cursor=earliest", NDJSON), healthy):
        await healthy.until(lambda: b'"data":1' in healthy.body)


# --- WebSocket ---------------------------------------------------------------------------------------------


async def test_a_server_without_denials_closes_the_handshake(application: Starlette) -> None:
    """Where a server cannot answer a handshake with a response, a refusal is ASGI's plain 403."""
    exchange = AsgiExchange()
    exchange.tell({"type": "websocket.connect"})
    async with answering(application, scope_of("/v1/events", "topic=a..b", kind="websocket"), exchange):
        await exchange.until(lambda: bool(exchange.sent))
    assert exchange.sent[0]["type"] == "websocket.close"


async def test_a_server_with_denials_sends_the_problem(application: Starlette) -> None:
    """With the extension `websocket.http.response` the client sees status and reason."""
    extensions: Message = {"websocket.http.response": {}}
    exchange = AsgiExchange()
    exchange.tell({"type": "websocket.connect"})
    scope = scope_of("/v1/events", "topic=a..b", kind="websocket", extensions=extensions)
    async with answering(application, scope, exchange):
        await exchange.until(lambda: len(exchange.sent) == 2)
    start, body = exchange.sent
    assert start["type"] == "websocket.http.response.start"
    assert start["status"] == 422
    assert b"a..b" in body["body"]


async def test_a_server_that_knows_no_websocket_says_so(application: Starlette) -> None:
    """An upgrade that reaches the application as plain HTTP cannot be served, and is answered."""
    exchange = AsgiExchange()
    upgrade = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")]
    async with answering(application, scope_of("/v1/events", "topic=t", *upgrade), exchange):
        await exchange.until(lambda: len(exchange.sent) == 2)
    assert exchange.sent[0]["status"] == 501


# --- a host that goes away ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lifespan", [True, False])
@pytest.mark.parametrize("transport", ["sse", "ndjson", "websocket"])
async def test_streams_are_told_when_the_host_goes(topics: Topics, transport: str, lifespan: bool) -> None:
    """A stream gets the advice to reconnect, with its cursor, and ends in order; the host does not hang."""
    with HostProcess(lifespan=lifespan) as process:
        address = address_of(process)
        async with open_subscriber(address, transport, "t") as subscriber:
            await publish(address, {"topic": "t", "data": 1})
            await subscriber.events(1)
            cursor = subscriber.cursor
            stopping = asyncio.ensure_future(process.astop())
            if transport == "websocket":  # uvicorn closes these itself
                with pytest.raises(Closed) as closed:
                    await subscriber.next()
                assert closed.value.code == 1012
            else:
                advice = await subscriber.control("reconnect")
                assert advice["reason"] == "draining"
                assert advice["cursor"] == cursor
                await subscriber.end()
            await stopping
        await process.astart()
        await publish(address, {"topic": "t", "data": 2})
        async with open_subscriber(address, transport, "t", cursor=cursor) as subscriber:
            assert await subscriber.data(1) == [2]
        assert "Traceback" not in process.log_text(), process.log_text()


@pytest.mark.parametrize("lifespan", [True, False])
async def test_a_held_poll_is_answered_when_the_host_goes(lifespan: bool) -> None:
    """A long poll is answered empty, with its cursor, long before its time is over."""
    with HostProcess(lifespan=lifespan) as process:
        address = address_of(process)
        poll = asyncio.ensure_future(fetch(address, "/v1/events", [("topic", "t"), ("wait", "60")]))

        async def held() -> bool:
            return b'"pattern":"t"' in (await fetch(address, "/v1/topics")).body

        await until(held, "the poll is held")
        await process.astop()
        async with asyncio.timeout(20):
            response = await poll
        assert response.status == 200
        assert response.json["events"] == []
        assert response.json["cursor"]


async def test_the_prefix_is_no_part_of_what_the_gateway_knows(mounted: Address) -> None:
    """A problem about a path names the whole path."""
    response = await fetch(mounted, "/v1/nothing")
    assert response.status == 404
    assert PREFIX in response.problem["detail"]
