"""What is no broker for us, and what a broker would rather not: each has a sentence, and waits or ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import count
from typing import Any

import aio_pika
import pytest
from pamqp import commands, frame

from gateway.amqp.topology import Topology
from gateway.log import LogDamaged
from tests.support.rabbitmq import Broker
from tests.support.stream_logs import Replica, event, new_topology

pytestmark = pytest.mark.integration

_numbers = count(1)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as node:
        yield node


@pytest.fixture
def topology() -> Topology:
    return new_topology()


@asynccontextmanager
async def answering(answer: bytes, *more: bytes) -> AsyncIterator[int]:
    """Run a server that answers with these bytes, one part for each read; yield its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            for part in (answer, *more):
                await reader.read(10_000)
                writer.write(part)
                await writer.drain()
            while await reader.read(10_000):
                pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def refused(url: str, topology: Topology) -> str:
    """Return the sentence with which a start ends."""
    one = Replica(url, topology)
    try:
        with pytest.raises(LogDamaged) as caught:
            await one.start()
        return str(caught.value)
    finally:
        await one.log.close()


@asynccontextmanager
async def waiting(url: str, topology: Topology, sentence: str) -> AsyncIterator[Replica]:
    """Start a replica that has to wait, and see that it says why."""
    one = Replica(url, topology)
    starting = asyncio.create_task(one.start())
    try:
        await one.until(lambda: sentence in (one.log.trouble() or ""), f"it does not say: {sentence}")
        assert not starting.done()
        yield one
        await starting
    finally:
        starting.cancel()
        with suppress(asyncio.CancelledError, LogDamaged):
            await starting
        await one.log.close()


def old_broker(version: str) -> tuple[bytes, ...]:
    """Return what a broker of this version says up to the end of the handshake."""
    start = commands.Connection.Start(0, 9, {"product": "RabbitMQ", "version": version}, "PLAIN", "en_US")
    tune = commands.Connection.Tune(2047, 131_072, 60)
    return tuple(frame.marshal(each, 0) for each in (start, tune, commands.Connection.OpenOk()))


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (
            (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",),
            "it speaks HTTP; AMQP 0-9-1 has a port",
        ),
        ((b"AMQP\x00\x01\x00\x00",), "it speaks another version of AMQP than 0-9-1"),
        ((b"AMQP\x03\x01\x00\x00",), "it speaks another version of AMQP than 0-9-1"),
        ((b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",), "or this is no AMQP"),
        ((b"-ERR unknown command\r\n",), "or this is no AMQP"),
        ((b"\x15\x03\x01\x00\x02\x02\x46",), "speaks TLS: its address begins with amqps://"),
        (old_broker("3.8.34"), "is RabbitMQ 3.8.34, which has no streams: 3.9 or newer is needed"),
    ],
)
async def test_what_is_no_broker_for_us_ends_the_start(
    topology: Topology, answers: tuple[bytes, ...], sentence: str
) -> None:
    """Something else than AMQP on the port, or a broker that is too old: no waiting helps."""
    async with answering(*answers) as port:
        said = await refused(f"amqp://127.0.0.1:{port}/", topology)
    assert sentence in said
    assert f"127.0.0.1:{port}" in said or "RabbitMQ 3.8.34" in said


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ((b"",), "did not answer in 0.3 seconds"),
        ((old_broker("3.12.1")[0],), "did not answer in 0.3 seconds"),
        ((old_broker("3.12.1")[0], frame.marshal(commands.Connection.Close(541, "INTERNAL_ERROR - access to "
          "vhost '/' refused for user 'guest': vhost '/' is down", 10, 40), 0)), "vhost '/' is down (541)"),
    ],
)  # fmt: skip
async def test_silence_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, topology: Topology, answers: tuple[bytes, ...], sentence: str
) -> None:
    """A peer that accepts and says nothing, or no more, may be a broker that will: a start waits."""
    monkeypatch.setattr("gateway.amqp.connecting.OPEN_SECONDS", 0.3)
    async with answering(*answers) as port:
        one = Replica(f"amqp://127.0.0.1:{port}/", topology)
        starting = asyncio.create_task(one.start())
        await one.until(lambda: sentence in (one.log.trouble() or ""), "it does not say why it waits")
        assert not starting.done()
        starting.cancel()
        await one.log.close()


async def test_a_limit_is_waited_for(broker: Broker, topology: Topology) -> None:
    """A limit of connections may be raised, or others may go: a start waits, and says why."""
    broker.evaluate('rabbit_vhost:add(<<"small">>, <<"test">>)')
    anything = '<<".*">>, <<".*">>, <<".*">>'
    broker.evaluate(
        f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"small">>, {anything}, <<"test">>)'
    )
    limit = 'rabbit_vhost_limit:set(<<"small">>, [{{<<"max-connections">>, {0}}}], <<"test">>)'
    broker.evaluate(limit.format(0))
    async with waiting(f"{broker.url}small", topology, "connection limit (0) is reached") as one:
        broker.evaluate(limit.format(-1))
    assert one.log.trouble() is None


async def test_a_limit_of_queues_ends_the_start(broker: Broker, topology: Topology) -> None:
    """Where no queue may be made any more, the sentence says so, and not that there is another."""
    broker.evaluate('rabbit_vhost:add(<<"full">>, <<"test">>)')
    anything = '<<".*">>, <<".*">>, <<".*">>'
    broker.evaluate(
        f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"full">>, {anything}, <<"test">>)'
    )
    broker.evaluate('rabbit_vhost_limit:set(<<"full">>, [{<<"max-queues">>, 1}], <<"test">>)')
    said = await refused(f"{broker.url}full", topology)
    assert f"the dead-letter queue '{topology.dead}' cannot be made" in said
    assert "limit" in said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stream": "classic"}, "the stream 'classic' exists with other arguments"),
        ({"stream": "quorum"}, "the stream 'quorum' exists with other arguments"),
        ({"dead": "classic"}, "the dead-letter queue 'classic' exists with other arguments"),
        ({"exchange": "direct", "bindings": (("direct", "#"),)}, "received 'topic' but current is 'direct'"),
        ({"exchange": "inner", "bindings": (("inner", "#"),)}, "inequivalent arg 'internal'"),
        ({"exchange": "", "bindings": (("", "#"),)}, "the exchange ''"),
    ],
)
async def test_a_name_that_is_taken_ends_the_start(
    broker: Broker, topology: Topology, change: dict[str, Any], sentence: str
) -> None:
    """A queue or exchange of the same name but another kind is named, with what to do."""
    connection = await aio_pika.connect(broker.url)
    async with connection:
        channel = await connection.channel()
        await channel.declare_queue("classic", durable=True)
        await channel.declare_queue("quorum", durable=True, arguments={"x-queue-type": "quorum"})
        await channel.declare_exchange("direct", "direct", durable=True)
        await channel.declare_exchange("inner", "topic", durable=True, internal=True)
    said = await refused(broker.url, replace(topology, **change))
    assert sentence in said


async def test_a_queue_that_somebody_holds_is_waited_for(broker: Broker, topology: Topology) -> None:
    """A queue of that name which is exclusive to another connection goes with it: a start waits."""
    connection = await aio_pika.connect(broker.url)
    await (await connection.channel()).declare_queue(topology.stream, exclusive=True)
    async with waiting(broker.url, topology, "exclusive access to locked queue") as one:
        await connection.close()
    await one.log.close()


async def test_a_dead_first_host_does_not_matter(broker: Broker, topology: Topology) -> None:
    """Of several hosts those are used that answer, whichever is tried first."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        dead = nobody.getsockname()[1]
        for _ in range(4):  # the first is drawn
            url = f"amqp://127.0.0.1:{dead},127.0.0.1:{broker.port},127.0.0.1:{dead}/"
            one = Replica(url, topology)
            await one.start()
            await one.log.append([event()])
            await one.log.close()


@pytest.mark.parametrize("first", ["nobody", "silence"])
async def test_a_name_may_have_several_addresses(
    broker: Broker, topology: Topology, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Of a name with several addresses that one is used at which a broker answers, for every connection."""
    monkeypatch.setattr("gateway.amqp.connecting.OPEN_SECONDS", 0.5)
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        if host != "mq.example":
            return await resolve(host, port, **options)
        return [*await resolve("127.0.0.2", port, **options), *await resolve("127.0.0.1", port, **options)]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    with socket.socket() as mute:
        mute.bind(("127.0.0.2", broker.port))
        if first == "silence":
            mute.listen()
        one = Replica(f"amqp://mq.example:{broker.port}/", topology)
        await one.start()
        await one.log.append([event()])
        assert len(await one.everything()) == 1
        await one.log.close()


async def test_a_name_that_nobody_knows_is_waited_for(topology: Topology) -> None:
    """A name may become known: a start waits, and says what is not known."""
    one = Replica("amqp://no-such-host.invalid/", topology)
    starting = asyncio.create_task(one.start())
    await one.until(
        lambda: "the name 'no-such-host.invalid' is not known" in (one.log.trouble() or ""),
        "it does not say why",
    )
    starting.cancel()
    await one.log.close()
