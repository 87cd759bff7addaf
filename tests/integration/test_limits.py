"""Limits of connections and memory: who is refused is told so, the others notice nothing, and it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import pytest

from tests.support.certificates import Certificates
from tests.support.clients import (
    STREAMS,
    Address,
    Ended,
    Refused,
    Response,
    Tcp,
    exchange,
    fetch,
    open_subscriber,
    publish,
    read_response,
    request_bytes,
    until,
)
from tests.support.host import address_of
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration

MIB: Final = 1 << 20
OTHER: Final = "127.0.0.2"
PROXY: Final = "127.0.0.9"
HEALTH: Final = request_bytes("GET", "/healthz")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=["http", "https"])
def encrypted(request: pytest.FixtureRequest, certificates: Certificates) -> dict[str, Any]:
    """What makes a gateway speak HTTP in the clear, or in TLS."""
    if request.param == "http":
        return {}
    return {"tls": certificates.trusting(), "tls_cert": certificates.both}


def from_(source: str, address: Address) -> Address:
    """Return the address of a gateway for a client with an address of its own."""
    return replace(address, source=source)


async def refused(address: Address, limit: str) -> float:
    """Return how often a limit was reached."""
    lines = (await fetch(address, "/metrics")).body.decode().splitlines()
    name = f'sluice_refused_total{{limit="{limit}"}} '
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


async def gauge(address: Address, name: str) -> float:
    lines = (await fetch(address, "/metrics")).body.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def check_refusal(response: Response, status: int, least: int = 1) -> None:
    """Check that a client was told to come back, as every endpoint tells it."""
    assert response.status == status
    assert response.problem["status"] == status
    assert least <= int(response.head["retry-after"]) <= least + 3
    assert response.head["cache-control"] == "no-store"


async def check_stream_refusals(address: Address, status: int) -> None:
    """Check that streams are refused on every transport; an EventSource is told to wait, or never comes."""
    for transport in ("websocket", "ndjson"):
        with pytest.raises(Refused) as caught:
            async with open_subscriber(address, transport, "t"):
                pass
        check_refusal(caught.value.response, status)
    response = await fetch(address, "/v1/events", [("topic", "t")], [("Accept", "text/event-stream")])
    assert response.status == 200
    assert response.body.startswith(b"retry: ")
    assert int(response.body.split()[1]) >= 3500


@asynccontextmanager
async def idle(address: Address, number: int, sent: bytes = b"") -> AsyncIterator[list[Tcp]]:
    """Connect so often, and send the same on each."""
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(Tcp.open(address)) for _ in range(number)]
        for tcp in connections:
            await tcp.send(sent)
        yield connections


# --- connections of one address -----------------------------------------------------------------------------


async def test_so_many_connections_of_one_address(encrypted: dict[str, Any]) -> None:
    """Streams and idle connections of an address count together; the places of closed ones are free."""
    async with GatewayProcess(max_connections_per_ip=4, **encrypted) as process:
        here = address_of(process)
        there = from_(OTHER, here)
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(open_subscriber(there, transport, "t"))
                for transport in STREAMS
            ]
            async with Tcp.open(there) as tcp:
                for _ in range(3):  # a connection that is used again is the same one
                    assert (await exchange(tcp, HEALTH)).status == 200
                response = await fetch(there, "/healthz")
                check_refusal(response, 429)
                assert response.head["connection"] == "close"
                await check_stream_refusals(there, 429)
                assert await refused(here, "max_connections_per_ip") == 4
                async with open_subscriber(here, "sse", "t") as honest:
                    await publish(here, {"topic": "t", "data": 1})
                    for each in (*streams, honest):
                        assert await each.data(1) == [1]

            async def free() -> bool:
                return (await fetch(there, "/healthz")).status == 200

            await until(free, "the place of the closed connection is free")

        async def all_free() -> bool:
            try:
                async with idle(there, 4, HEALTH) as connections:
                    return all([(await read_response(tcp)).status == 200 for tcp in connections])
            except (OSError, Ended):  # cut off: it was told so often enough
                return False

        await until(all_free, "the places of the streams are free")
        async with idle(there, 4):
            check_refusal(await fetch(there, "/healthz"), 429)
        await until(all_free, "the places of those that never asked are free")


@pytest.fixture(scope="module")
def proxied() -> Iterator[Address]:
    """A gateway behind a proxy; clients may have two requests at a time, and open three streams a second."""
    with GatewayProcess(trusted_proxies=PROXY, max_connections_per_ip=2, connect_rate=3) as process:
        yield address_of(process)


async def test_behind_a_proxy_the_client_counts(proxied: Address) -> None:
    """Each client has its own limit, the proxy has none, and its connections are kept when one is refused."""
    proxy = from_(PROXY, proxied)
    mine, yours = [[("X-Forwarded-For", f"198.51.100.{number}")] for number in (1, 2)]
    async with AsyncExitStack() as stack:
        for transport in ("sse", "websocket"):
            await stack.enter_async_context(open_subscriber(proxy, transport, "t", headers=mine))
        async with Tcp.open(proxy) as tcp:
            check_refusal(await exchange(tcp, request_bytes("GET", "/healthz", mine)), 429)
            for _ in range(10):
                assert (await exchange(tcp, request_bytes("GET", "/healthz", yours))).status == 200
            assert (await exchange(tcp, HEALTH)).status == 200  # the proxy asks for itself
            waiting = request_bytes("GET", "/v1/events?topic=none&wait=30", yours)
            async with idle(proxy, 2, waiting):

                async def full() -> bool:
                    return (await exchange(tcp, request_bytes("GET", "/healthz", yours))).status == 429

                await until(full, "two polls that wait are as many as a client may have")

            async def free() -> bool:
                return (await exchange(tcp, request_bytes("GET", "/healthz", yours))).status == 200

            await until(free, "the places of the polls are free")
            async with idle(proxy, 20, HEALTH) as many:
                for each in many:
                    assert (await read_response(each)).status == 200

    async def gone() -> bool:
        return (await fetch(proxy, "/healthz", (), mine)).status == 200

    await until(gone, "the places of the streams are free")


async def test_behind_a_proxy_streams_have_a_rate(proxied: Address) -> None:
    """Requests that open no stream do not count for it, and who is refused is told when to come."""
    proxy = from_(PROXY, proxied)
    headers = [("X-Forwarded-For", "2001:db8::1")]
    for number in range(50):
        cousin = [("X-Forwarded-For", f"2001:db8::{number:x}")]
        assert (await fetch(proxy, "/healthz", (), cousin)).status == 200

    async def opened() -> Response | None:
        try:
            async with open_subscriber(proxy, "ndjson", "t", headers=headers):
                return None
        except Refused as error:
            return error.response

    tries = [await opened() for _ in range(50)]
    assert tries[:6] == [None] * 6
    told = [response for response in tries if response is not None]
    assert told
    for response in told:
        check_refusal(response, 429)

    async def again() -> bool:
        return await opened() is None

    await until(again, "after a while there is a stream to be had")


# --- how often ----------------------------------------------------------------------------------------------


async def test_so_many_connections_a_second(encrypted: dict[str, Any]) -> None:
    """Beyond the rate an address is told when to come; a flood is cut off, and others are served."""
    async with GatewayProcess(connect_rate=1, **encrypted) as process:
        here = address_of(process)
        there = from_(OTHER, here)
        before = await refused(from_("127.0.0.6", here), "connect_rate")  # by who waited for its start
        answers = [await fetch(there, "/healthz") for _ in range(4)]
        told = [response for response in answers if response.status == 429]
        assert answers[0].status == answers[1].status == 200
        assert told
        for response in told:
            check_refusal(response, 429, least=2 if response is told[-1] else 1)
            assert response.head["connection"] == "close"

        async def one(address: Address) -> int:
            try:
                return (await fetch(address, "/healthz")).status
            except (OSError, Ended):
                return 0

        async with AsyncExitStack() as stack:
            # 127.0.0.1 is limited as well: what watches has addresses of its own.
            watched = await stack.enter_async_context(open_subscriber(from_("127.0.0.3", here), "sse", "t"))
            statuses = await asyncio.gather(*(one(there) for _ in range(100)))
            assert statuses.count(429) >= 10
            assert statuses.count(0) >= 50
            await publish(from_("127.0.0.4", here), {"topic": "t", "data": 1})
            assert await watched.data(1) == [1]
        counted = await refused(from_("127.0.0.5", here), "connect_rate")
        assert counted - before == len(told) + 100 - statuses.count(200)


# --- those that wait ----------------------------------------------------------------------------------------

HALF: Final = b"GET /healthz HTTP/1.1\r\n"
BODY: Final = b"POST /v1/topics/t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n12"


@pytest.mark.parametrize("sent", [b"", HALF, BODY], ids=["nothing", "half a head", "half a body"])
async def test_so_many_that_asked_for_nothing(sent: bytes) -> None:
    """The oldest connections of the address that has most of them go; those of others may still ask."""
    async with GatewayProcess(max_waiting=20, header_timeout=60, body_timeout=60) as process:
        here = address_of(process)
        async with (
            open_subscriber(here, "websocket", "t") as stream,
            idle(here, 5, HALF) as honest,
            idle(from_(OTHER, here), 50, sent) as hostile,
        ):
            reading = [asyncio.create_task(tcp.rest()) for tcp in hostile]
            await until(lambda: gone(reading, 35), "35 of them are dropped")
            # Of those that said something the server may hear in another order.
            assert sent or all(each.done() for each in reading[:35])
            stay = [tcp for tcp, each in zip(hostile, reading, strict=True) if not each.done()]
            for each in reading:
                each.cancel()
            await asyncio.wait(reading)
            assert await gauge(here, "sluice_connections_waiting") == 20 - 1  # one for the question itself
            assert await refused(here, "max_waiting") >= 35
            for tcp in honest:
                assert (await exchange(tcp, b"Host: localhost\r\n\r\n")).status == 200
            await publish(here, {"topic": "t", "data": 1})
            assert await stream.data(1) == [1]
            rest = {b"": HEALTH, HALF: b"Host: localhost\r\n\r\n", BODY: b"345"}[sent]
            assert (await exchange(stay[-1], rest)).status in (200, 202)

        async def empty() -> bool:
            return await gauge(here, "sluice_connections_waiting") == 0

        await until(empty, "nobody waits any more")


async def test_a_crowd_that_asks_at_once_is_heard() -> None:
    """However few may wait: who has asked already, and was not heard yet, does not wait."""
    async with GatewayProcess(max_waiting=20) as process:
        here = address_of(process)
        process.freeze()
        async with idle(here, 300, HEALTH) as crowd:
            process.thaw()
            answers = [await read_response(tcp) for tcp in crowd]
        assert {answer.status for answer in answers} == {200}
        assert await refused(here, "max_waiting") == 0


async def gone(reading: Sequence[asyncio.Task[bytes]], number: int) -> bool:
    """Tell whether so many connections were closed, without a word; no more must be."""
    closed = [each.result() for each in reading if each.done()]
    assert closed == [b""] * len(closed)
    assert len(closed) <= number
    return len(closed) == number


async def test_those_that_shake_hands_are_among_them(certificates: Certificates) -> None:
    """A connection that is to be encrypted, and says nothing or not enough, waits as well, and is dropped."""
    tls: dict[str, Any] = {"tls": certificates.trusting(), "tls_cert": certificates.both}
    async with GatewayProcess(max_waiting=20, header_timeout=60, **tls) as process:
        here = address_of(process)
        silent = replace(here, tls=None, source=OTHER)
        async with open_subscriber(here, "sse", "t") as stream, idle(here, 5) as honest:
            async with idle(silent, 25) as hostile, idle(silent, 25, b"\x16\x03\x01\x02") as half:
                gone = [*hostile, *half[:10]]
                assert await asyncio.gather(*(tcp.rest() for tcp in gone)) == [b""] * 35
                for tcp in honest:
                    assert (await exchange(tcp, HEALTH)).status == 200
                await publish(here, {"topic": "t", "data": 1})
                assert await stream.data(1) == [1]

            async def empty() -> bool:
                return await gauge(here, "sluice_connections_waiting") == 0

            await until(empty, "those whose handshake failed do not wait any more")


@pytest.mark.parametrize("number", [0, 5], ids=["of nobody", "of five"])
async def test_silence_does_not_delay_the_end(number: int) -> None:
    """Connections that said nothing are closed when the gateway goes, and it does not wait for them."""
    async with GatewayProcess(header_timeout=60) as process:
        here = address_of(process)
        async with idle(here, number) as silent:

            async def arrived() -> bool:
                return await gauge(here, "sluice_connections_waiting") == number

            await until(arrived, "they are there")
            async with asyncio.timeout(10):
                assert await process.astop() == 0
                assert [await tcp.rest() for tcp in silent] == [b""] * number


# --- memory -------------------------------------------------------------------------------------------------


def resident(process: GatewayProcess) -> int:
    """Return what of a child is in memory, in bytes."""
    with open(f"/proc/{process.pid}/status") as lines:  # noqa: PTH123  # no file, the kernel's answer
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


async def test_at_the_limit_of_memory_nothing_new_begins() -> None:
    """
    Streams, waits and publishes get 503 and readiness says why; looking goes on, and so does what there is.
    When the memory is free again, all is as before.
    """
    body = 15 * MIB
    half = b"POST /v1/topics/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % body + bytes(
        body - 1
    )
    async with GatewayProcess(body_timeout=60) as process:
        limit = resident(process) + 24 * MIB
        await process.arestart(memory_limit=limit)
        here = address_of(process)
        async with AsyncExitStack() as stack:
            streams = {
                each: await stack.enter_async_context(open_subscriber(here, each, "t")) for each in STREAMS
            }
            publishing = await stack.enter_async_context(Tcp.open(here))
            assert (await gauge(here, "sluice_memory_limit_bytes")) == limit
            async with idle(here, 3, half):

                async def reached() -> bool:
                    return (await fetch(here, "/readyz")).status == 503

                await until(reached, "the limit is reached")
                (reason,) = (await fetch(here, "/readyz")).json["reasons"]
                assert reason == f"memory is at its limit of {round(limit / MIB)} MiB"
                before = await refused(here, "memory_limit")
                await check_stream_refusals(here, 503)
                long_poll = await fetch(here, "/v1/events", [("topic", "t"), ("wait", "5")])
                check_refusal(long_poll, 503)
                refusal = await exchange(publishing, request_bytes("POST", "/v1/topics/t", (), b"1"))
                check_refusal(refusal, 503)
                refusal = await exchange(
                    publishing, request_bytes("POST", "/v1/topics/t", (), b"1" * 100_000)
                )
                check_refusal(refusal, 503)
                answer = await streams["websocket"].ask({"op": "publish", "topic": "t", "data": 0})
                assert (answer["control"], answer["status"]) == ("error", 503)
                assert await refused(here, "memory_limit") - before == 7
                assert (await fetch(here, "/v1/events", [("topic", "t")])).status == 200
                assert (await fetch(here, "/healthz")).status == 200
                assert await gauge(here, "sluice_memory_bytes") > limit * 0.9
                assert (await streams["websocket"].ask({"op": "ping"}))["control"] == "pong"

            async def over() -> bool:
                return (await fetch(here, "/readyz")).status == 200

            await until(over, "the limit is not reached any more")
            assert (await exchange(publishing, request_bytes("POST", "/v1/topics/t", (), b"1"))).status == 202
            for stream in streams.values():
                assert await stream.data(1) == [1]
        assert process.log_text().count("memory.full") == 2


async def test_connections_beyond_the_most_are_counted() -> None:
    """What `max_connections` refuses is counted as the other limits are."""
    async with GatewayProcess(max_connections=1) as process:
        here = address_of(process)
        async with open_subscriber(here, "sse", "t"):
            await check_stream_refusals(here, 503)
            assert await refused(here, "max_connections") == 3
