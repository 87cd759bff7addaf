"""How a replica goes away: not ready first, everybody told, nothing lost, exit code 0."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.clients import (
    STREAMS,
    TEXT,
    TRANSPORTS,
    Address,
    Body,
    Closed,
    Ended,
    Frame,
    Refused,
    SseReader,
    Tcp,
    exchange,
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

on_every_stream = pytest.mark.parametrize("transport", STREAMS)


@asynccontextmanager
async def stopping(process: GatewayProcess, signal_number: int = signal.SIGTERM) -> AsyncIterator[None]:
    """Ask a gateway to end; at the end it must have, with exit code 0 and no traceback in its log."""
    os.kill(process.pid, signal_number)
    yield
    assert await asyncio.to_thread(process.wait) == 0
    assert "Traceback" not in process.log_text(), process.log_text()


async def is_not_ready(address: Address) -> bool:
    return (await fetch(address, "/readyz")).status == 503


async def test_it_is_not_ready_before_it_is_gone() -> None:
    """After SIGTERM `/readyz` is 503 and says why, while publishing still works."""
    with GatewayProcess(drain_seconds=2) as process:
        address = address_of(process)
        async with open_subscriber(address, "sse", "t") as subscriber:
            async with stopping(process):
                await until(lambda: is_not_ready(address), "readiness goes red")
                response = await fetch(address, "/readyz")
                assert response.json == {"ready": False, "reasons": ["draining"]}
                assert (await fetch(address, "/healthz")).status == 200
                await publish(address, {"topic": "other", "data": 1})
                await subscriber.control("reconnect")


@on_every_stream
async def test_every_stream_is_told_to_reconnect_with_its_cursor(transport: str) -> None:
    """A stream gets its own cursor and a time to wait, and ends in its transport's own way."""
    with GatewayProcess() as process:
        address = address_of(process)
        async with open_subscriber(address, transport, "t") as subscriber:
            await publish(address, *({"topic": "t", "data": number} for number in range(10)))
            await subscriber.events(10)
            await publish(address, {"topic": "other", "data": 0})
            async with stopping(process):
                advice = await subscriber.control("reconnect")
                assert advice.keys() == {"control", "reason", "detail", "cursor", "after_ms"}
                assert advice["reason"] == "draining"
                assert 500 <= advice["after_ms"] <= 3000
                if transport == "websocket":
                    closed = await subscriber.closed()
                    assert (closed.code, closed.reason) == (1012, "draining")
                else:
                    await subscriber.end()
                if transport == "sse":
                    assert subscriber.retry == advice["after_ms"]
        await process.astart()
        await publish(address, {"topic": "t", "data": 10})
        async with open_subscriber(address, transport, "t", cursor=advice["cursor"]) as subscriber:
            assert await subscriber.data(1) == [10]


async def test_clients_are_sent_away_in_waves() -> None:
    """While the first are told to go, others still get events; in the end everybody has been told."""
    with GatewayProcess(drain_seconds=2) as process:
        address = address_of(process)
        async with contextlib.AsyncExitStack() as stack:
            crowd = [
                await stack.enter_async_context(open_subscriber(address, STREAMS[number % 3], "t"))
                for number in range(40)
            ]
            messages = [asyncio.ensure_future(subscriber.next()) for subscriber in crowd]
            async with stopping(process):
                await asyncio.wait(messages, return_when=asyncio.FIRST_COMPLETED)
                await publish(address, {"topic": "t", "data": "late"})
                first = await asyncio.gather(*messages)
                late = [crowd[at] for at, message in enumerate(first) if "control" not in message]
                assert 0 < len(late) < 40, "some had gone, some had not"
                for subscriber in late:
                    assert (await subscriber.control("reconnect"))["reason"] == "draining"
                await asyncio.gather(*map(goes, crowd))


async def goes(subscriber: Any) -> None:
    """Read a stream to its end, and close, as a client that was sent away should."""
    await (subscriber.closed() if subscriber.transport == "websocket" else subscriber.end())


async def test_nobody_new_is_let_in_while_draining() -> None:
    """A stream that comes to a draining replica is sent on: SSE by 200 and a time to wait, others by 503."""
    with GatewayProcess(drain_seconds=2) as process:
        address = address_of(process)
        async with open_subscriber(address, "ndjson", "t"):
            async with stopping(process):
                await until(lambda: is_not_ready(address), "readiness goes red")
                for transport in ("ndjson", "websocket"):
                    with pytest.raises(Refused) as refused:
                        async with open_subscriber(address, transport, "t"):
                            pass
                    assert refused.value.response.status == 503
                    assert int(refused.value.response.head["retry-after"]) >= 1
                async with Tcp.open(address) as tcp:
                    accept = [("Accept", "text/event-stream")]
                    await tcp.send(request_bytes("GET", "/v1/events?topic=t", accept))
                    head = await read_head(tcp)
                    assert head.status == 200
                    [block] = SseReader().feed(await Body(tcp, head).whole())
                    assert block.retry


async def test_held_polls_are_answered() -> None:
    """A waiting poll gets its empty answer and cursor, and a new one does not wait."""
    with GatewayProcess(drain_seconds=1) as process:
        address = address_of(process)
        query = [("topic", "t"), ("wait", "60")]
        polls = [asyncio.ensure_future(fetch(address, "/v1/events", query)) for _ in range(10)]

        async def all_held() -> bool:
            return b'{"pattern":"t","connections":10}' in (await fetch(address, "/v1/topics")).body

        await until(all_held, "ten polls are held")
        async with stopping(process):
            for response in await asyncio.gather(*polls):
                assert response.status == 200
                assert response.json["events"] == []
                assert response.json["cursor"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_what_is_being_published_is_answered_truly(number: int) -> None:
    """While a gateway ends under many producers, every event it answered 202 is there afterwards."""
    accepted: list[int] = []
    with GatewayProcess(drain_seconds=0.3) as process:
        address = address_of(process)

        async def produce(start: int) -> None:
            for value in range(start, start + 10_000):
                try:
                    response = await fetch(
                        address, "/v1/topics/t", (), (), method="POST", body=str(value).encode()
                    )
                except (OSError, Ended):
                    return
                if response.status == 202:
                    accepted.append(value)

        producers = [asyncio.ensure_future(produce(index * 100_000)) for index in range(8)]

        async def busy() -> bool:
            return len(accepted) > 100

        await until(busy, "the producers are at work")
        async with stopping(process, number):
            await asyncio.gather(*producers)
        await process.astart()
        async with open_subscriber(address, "ndjson", "t", cursor="earliest") as subscriber:
            stored = await subscriber.data(len(accepted))
            # What was stored and not answered may be there as well, so look for the accepted ones only.
            while not set(accepted) <= set(stored):
                stored += await subscriber.data(1)
        assert len(stored) == len(set(stored))


async def test_operations_in_flight_are_answered_truly() -> None:
    """Publish operations of a WebSocket that is sent away are durable if they were answered."""
    with GatewayProcess() as process:
        address = address_of(process)
        async with open_subscriber(address, "websocket") as socket:
            operations = [
                Frame(
                    TEXT, json.dumps({"op": "publish", "ref": n, "topic": "t", "data": n}).encode()
                ).encode()
                for n in range(3000)
            ]
            sending = asyncio.ensure_future(socket.tcp.send(b"".join(operations)))
            answered = []
            async with stopping(process):
                with contextlib.suppress(Closed):
                    while True:
                        message = await socket.next()
                        if message["control"] == "published":
                            answered.append(message["ref"])
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        await process.astart()
        assert answered == list(range(len(answered)))
        if answered:
            async with open_subscriber(address, "ndjson", "t", cursor="earliest") as subscriber:
                assert await subscriber.data(len(answered)) == answered


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1/ev", b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n["]
)
async def test_idle_and_half_begun_connections_do_not_hold_it_up(sent: bytes) -> None:
    """Kept-alive, silent and half-sent requests are closed before their own patience is over."""
    with GatewayProcess(header_timeout=60, body_timeout=60) as process:
        address = address_of(process)
        async with Tcp.open(address) as idle, Tcp.open(address) as half:
            assert (await exchange(idle, request_bytes("GET", "/healthz"))).status == 200
            await half.send(sent)
            async with stopping(process):
                assert await idle.rest() == b""
                await half.rest()


async def test_a_second_sigint_ends_it_at_once() -> None:
    """Whoever presses Ctrl+C twice does not wait for the drain."""
    with GatewayProcess(drain_seconds=60) as process:
        address = address_of(process)
        async with open_subscriber(address, "websocket", "t", receive_buffer=4096) as socket:
            socket.tcp.stall()
            for _ in range(4):
                await publish(address, *({"topic": "t", "data": "x" * 100_000} for _ in range(10)))
            os.kill(process.pid, signal.SIGINT)
            await until(lambda: is_gone_or_draining(address), "the drain begins")
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
            await asyncio.to_thread(process.wait, 10)


async def is_gone_or_draining(address: Address) -> bool:
    try:
        return await is_not_ready(address)
    except OSError:
        return True


async def test_rolling_restarts_lose_nothing() -> None:  # noqa: C901  # one story, told in a row
    """
    While a gateway is restarted three times, once by kill -9, clients on every transport get every event
    once.

    Each client goes on from the cursor of the last message it took, as it is told to; the producer tries
    again until it has its 202, with an id, so that nothing is stored twice.
    """
    total = 400
    with GatewayProcess(drain_seconds=0.2) as process:
        address = address_of(process)
        produced = 0

        async def produce() -> None:
            nonlocal produced
            while produced < total:
                with contextlib.suppress(OSError, Ended, AssertionError):
                    await publish(address, {"topic": "t", "id": f"n{produced}", "data": produced})
                    produced += 1
                await asyncio.sleep(0.002)

        async def consume(transport: str) -> list[int]:
            received: list[int] = []
            cursor = "earliest"
            while len(received) < total:
                with contextlib.suppress(OSError, Ended, Closed, Refused, AssertionError, TimeoutError):
                    async with open_subscriber(address, transport, "t", cursor=cursor) as subscriber:
                        while len(received) < total:
                            message = await subscriber.next()
                            cursor = subscriber.cursor
                            if "control" in message:
                                assert message["control"] == "reconnect", message
                            else:
                                received.append(message["data"])
                await asyncio.sleep(0.02)
            return received

        consumers = [asyncio.ensure_future(consume(transport)) for transport in TRANSPORTS]
        producer = asyncio.ensure_future(produce())
        for step in range(1, 4):

            async def far_enough(enough: int = step * total // 4) -> bool:
                return produced >= enough

            await until(far_enough, "the producer goes on")
            if step == 2:
                process.kill()
            await process.arestart()
        async with asyncio.timeout(60):
            await producer
            for transport, received in zip(TRANSPORTS, await asyncio.gather(*consumers), strict=True):
                assert received == list(range(total)), transport
