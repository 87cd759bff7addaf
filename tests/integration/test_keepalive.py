"""Heartbeats, and the ends of connections whose peers do not answer, do not read, or are gone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.listening import listen
from tests.integration.test_operate import samples_of, value
from tests.support.clients import (
    PING,
    PONG,
    STREAMS,
    TEXT,
    Address,
    Body,
    Frame,
    Tcp,
    Topics,
    fetch,
    open_subscriber,
    publish,
    read_head,
    request_bytes,
    until,
)
from tests.support.host import HostProcess, address_of
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration

on_every_stream = pytest.mark.parametrize("transport", STREAMS)
HEARTBEAT = 0.2
STALL = 2.0


@pytest.fixture(scope="module", params=["own", "mounted"])
def impatient(request: pytest.FixtureRequest) -> Iterator[Address]:
    """A gateway in each shell that beats often and gives up soon."""
    settings: dict[str, Any] = {"heartbeat_seconds": HEARTBEAT, "stall_timeout": STALL}
    process = GatewayProcess(**settings) if request.param == "own" else HostProcess(lifespan=True, **settings)
    with process:
        yield address_of(process)
        assert "Traceback" not in process.log_text(), process.log_text()


@pytest.fixture(scope="module")
def impatient_own() -> Iterator[Address]:
    """The same on its own server."""
    with GatewayProcess(heartbeat_seconds=HEARTBEAT, stall_timeout=STALL) as process:
        yield address_of(process)


async def is_gone(address: Address, name: str) -> bool:
    """Tell whether the gateway knows no such connection."""
    return (await fetch(address, f"/v1/connections/{name}")).status == 404


async def ended(address: Address, reason: str) -> float:
    """Return how many connections have ended for a reason."""
    return value(await samples_of(address), "sluice_connections_ended_total", reason=reason)


# --- heartbeats --------------------------------------------------------------------------------------------


@on_every_stream
async def test_a_quiet_stream_gets_heartbeats(impatient: Address, topics: Topics, transport: str) -> None:
    """A stream without events is alive, heartbeat after heartbeat, and still delivers."""
    async with open_subscriber(impatient, transport, topics()) as subscriber:
        for _ in range(3):
            await sign_of_life(subscriber)
        await publish(impatient, {"topic": topics(), "data": 1})
        assert await subscriber.data(1) == [1]


async def sign_of_life(subscriber: Any) -> None:
    """Wait for a heartbeat, or on a WebSocket also a ping."""
    if subscriber.transport != "websocket":
        await subscriber.heartbeat()
        return
    frame = await subscriber.read_frame()
    while frame.opcode != PING and b"heartbeat" not in frame.payload:
        frame = await subscriber.read_frame()


@on_every_stream
async def test_a_heartbeat_moves_the_cursor(impatient: Address, topics: Topics, transport: str) -> None:
    """While others publish, a quiet client's cursor goes along with the head; it resumes from there."""
    async with open_subscriber(impatient, transport, topics()) as subscriber:
        moved = (await publish(impatient, {"topic": topics("other"), "data": 1}))["cursor"]
        async with asyncio.timeout(20):
            while position(subscriber.cursor) < position(moved):
                await subscriber.heartbeat()
        cursor = subscriber.cursor
    await publish(impatient, {"topic": topics(), "data": 2})
    async with open_subscriber(impatient, transport, topics(), cursor=cursor) as subscriber:
        assert await subscriber.data(1) == [2]


def position(cursor: str) -> int:
    return int(cursor.split("-")[1])


async def test_an_sse_heartbeat_dispatches_nothing(impatient: Address, topics: Topics) -> None:
    """It is an `id` and a blank line: an EventSource remembers it and wakes nobody."""
    async with Tcp.open(impatient) as tcp:
        target = impatient.target("/v1/events", [("topic", topics())])
        await tcp.send(request_bytes("GET", target, [("Accept", "text/event-stream")]))
        body = Body(tcp, await read_head(tcp))
        first = await body.some()
        cursor = first.split(b"id: ")[1].split(b"\n")[0]
        beat = await body.some()
        assert beat == b"id: " + beat[4:-2] + b"\n\n"
        assert beat[4:].split(b"-")[0] == cursor.split(b"-")[0]


async def test_a_websocket_that_has_nothing_new_to_hear_gets_a_bare_ping(
    impatient_own: Address, topics: Topics
) -> None:
    """While the head stands still only pings go out, which a browser's program never sees."""
    async with open_subscriber(impatient_own, "websocket", topics()) as socket:
        await publish(impatient_own, {"topic": topics("other"), "data": 1})
        while b"heartbeat" not in (await socket.read_frame()).payload:
            pass
        for _ in range(5):
            assert await socket.read_frame() == Frame(PING, b"")


# --- peers that do not answer ------------------------------------------------------------------------------


async def test_a_websocket_that_answers_pings_lives(impatient_own: Address, topics: Topics) -> None:
    """Pongs, whatever they come with, keep a connection for many heartbeats."""
    async with open_subscriber(impatient_own, "websocket", topics()) as socket:
        for _ in range(8):
            await sign_of_life(socket)
        await publish(impatient_own, {"topic": topics(), "data": 1})
        assert await socket.data(1) == [1]


async def test_a_websocket_that_says_anything_lives(impatient_own: Address, topics: Topics) -> None:
    """Operations are as good a sign of life as pongs."""
    async with open_subscriber(impatient_own, "websocket", topics()) as socket:
        socket.answers_pings = False
        for number in range(8):
            frame = await socket.read_frame()
            while frame.opcode != PING:
                frame = await socket.read_frame()
            await socket.send({"op": "ping", "ref": number})
        await publish(impatient_own, {"topic": topics(), "data": 1})
        while (await socket.next()).get("data") != 1:
            pass


async def test_a_pong_in_pieces_is_an_answer(impatient_own: Address, topics: Topics) -> None:
    """A pong that comes byte by byte, or two at once, counts."""
    async with open_subscriber(impatient_own, "websocket", topics()) as socket:
        socket.answers_pings = False
        for pieces in (1, 3, 6):
            while (await socket.read_frame()).opcode != PING:
                pass
            pong = Frame(PONG, b"").encode() * (2 if pieces == 6 else 1)
            for at in range(0, len(pong), pieces):
                await socket.tcp.send(pong[at : at + pieces])
        await publish(impatient_own, {"topic": topics(), "data": 1})
        assert await socket.data(1) == [1]


async def test_a_websocket_that_never_pongs_is_dropped(impatient_own: Address, topics: Topics) -> None:
    """A peer that answers no ping is dead: its connection is cut off, forgotten, and counted."""
    before = await ended(impatient_own, "unresponsive")
    async with open_subscriber(impatient_own, "websocket", topics(), welcomed=False) as socket:
        name = (await socket.control("welcome"))["connection"]
        socket.answers_pings = False
        assert (await socket.closed()).code == 1006, "there is nobody to say goodbye to"
    await until(lambda: is_gone(impatient_own, name), "the dead connection is forgotten")
    assert await ended(impatient_own, "unresponsive") == before + 1


# --- peers that do not read --------------------------------------------------------------------------------


@on_every_stream
async def test_a_client_that_does_not_read_is_aborted(
    impatient: Address, topics: Topics, transport: str
) -> None:
    """Without progress for `stall_timeout` a client is cut off, forgotten and counted; others go on."""
    before = await ended(impatient, "stalled")
    async with (
        open_subscriber(impatient, transport, topics()) as healthy,
        open_subscriber(impatient, transport, topics(), receive_buffer=4096, welcomed=False) as stalled,
    ):
        name = (await stalled.control("welcome"))["connection"] if transport != "sse" else None
        reading = asyncio.ensure_future(healthy.data(101))
        stalled.tcp.stall()
        for start in range(0, 100, 10):
            await publish(
                impatient,
                *({"topic": topics(), "data": [n, "x" * 100_000]} for n in range(start, start + 10)),
            )

        async def counted() -> bool:
            return await ended(impatient, "stalled") == before + 1

        await until(counted, "the stalled connection is aborted and counted")
        if name is not None:
            assert await is_gone(impatient, name)
        await publish(impatient, {"topic": topics(), "data": [100, ""]})
        assert [number for number, _ in await reading] == list(range(101))


@on_every_stream
async def test_a_slow_client_that_reads_is_kept(impatient: Address, topics: Topics, transport: str) -> None:
    """One that takes a little now and then, for longer than `stall_timeout`, gets everything in the end."""
    async with open_subscriber(impatient, transport, topics(), receive_buffer=65_536) as slow:
        slow.tcp.stall()
        for start in range(0, 40, 10):
            await publish(
                impatient,
                *({"topic": topics(), "data": [n, "x" * 100_000]} for n in range(start, start + 10)),
            )
            await slow.tcp.sip()
        for _ in range(6):
            await asyncio.sleep(STALL / 4)  # what makes it slow
            await slow.tcp.sip()
        slow.tcp.go_on()
        assert [number for number, _ in await slow.data(40)] == list(range(40))


async def test_a_goodbye_that_nobody_reads_is_cut_short(topics: Topics) -> None:
    """A client that is sent away and does not even read that is cut off; it does not hold up the drain."""
    with GatewayProcess(heartbeat_seconds=HEARTBEAT) as process:
        address = address_of(process)
        subscribing = open_subscriber(
            address, "websocket", topics(), receive_buffer=4096, overflow="disconnect", welcomed=False
        )
        async with subscribing as socket:
            name = (await socket.control("welcome"))["connection"]
            socket.tcp.stall()
            for _ in range(4):
                await publish(address, *({"topic": topics(), "data": "x" * 100_000} for _ in range(10)))
            assert not await is_gone(address, name)
            assert await process.astop() == 0


@pytest.mark.parametrize("ending", ["reset", "aclose"])
@on_every_stream
async def test_a_client_that_is_gone_is_forgotten(
    impatient: Address, topics: Topics, transport: str, ending: str
) -> None:
    """A connection whose socket ended is not kept, also when it was not reading at the time."""
    async with open_subscriber(impatient, transport, topics(), receive_buffer=4096) as subscriber:
        subscriber.tcp.stall()
        for _ in range(2):
            await publish(impatient, *({"topic": topics(), "data": "x" * 100_000} for _ in range(10)))
        if ending == "reset":
            subscriber.tcp.reset()
        else:
            await subscriber.tcp.aclose()

        async def forgotten() -> bool:
            listed = (await fetch(impatient, "/v1/topics", [("limit", "1000")])).json["subscriptions"]
            return all(each["pattern"] != topics() for each in listed)

        await until(forgotten, "the connection is forgotten")


async def test_a_client_that_dies_while_it_is_not_read_from_is_forgotten(
    impatient_own: Address, topics: Topics
) -> None:
    """A WebSocket that sends operations faster than they are done, and resets, leaves nothing behind."""
    operation = b'{"op":"publish","topic":"%b","data":1}' % topics("x").encode()
    for _ in range(10):
        async with open_subscriber(impatient_own, "websocket", topics()) as socket:
            await socket.tcp.send(Frame(TEXT, operation).encode() * 3000)
            socket.tcp.reset()

    async def forgotten() -> bool:
        listed = (await fetch(impatient_own, "/v1/topics", [("limit", "1000")])).json["subscriptions"]
        return all(each["pattern"] != topics() for each in listed)

    await until(forgotten, "the connections are forgotten")


def test_sockets_notice_dead_peers_by_themselves() -> None:
    """Accepted sockets inherit a small send buffer and a limit to how long data may be unacknowledged."""
    [listener] = listen("127.0.0.1", 0, 65_536, 12_345)
    with listener, socket.socket() as client:
        listener.listen()
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12_345
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 65_536
