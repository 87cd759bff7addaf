"""
Programs that consume or publish on a broker: what the gateway is compared with, and the stream log by itself.

    python -m bench.peers NAME URL

Each is a process of its own on uvloop, like the gateway. It says `{}` when it is ready and then answers one
line of JSON for each line it is told: a consumer how many messages it has had, a publisher, told
`ARRAY K COUNT`, what it cost to publish so many with so many calls under way.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from struct import Struct
from typing import Any, Final

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage
from pamqp import commands, frame

from fanout.event import Event
from gateway.amqp.address import Address
from gateway.amqp.frames import ack
from gateway.amqp.link import MAX_FRAME
from gateway.amqp.topology import Topology, declare
from gateway.mint import Mint, random_prefix
from gateway.stream_log import StreamLog

PREFETCH: Final = 2000
ACK_EVERY: Final = 500
"""Messages for each acknowledgement of all before; that of each one by itself would cost a consumer more."""

DATA: Final = b'"%b"' % (b"x" * 126)

Answer = dict[str, float]
Answerer = Callable[[list[int]], Awaitable[Answer]]


def topology(name: str) -> Topology:
    """Return a stream of its own, with an exchange of the same name."""
    return Topology(
        stream=name,
        exchange=name,
        bindings=((name, "#"),),
        dead=f"{name}.dead",
        max_age_seconds=0,
        max_bytes=500_000_000,
        segment_bytes=50_000_000,
    )


# ---- consumers ----


async def consume_aio_pika(url: str) -> Answerer:
    """Consume with aio-pika, as it is meant to be used, and do nothing with a message but count it."""
    count = 0

    async def take(message: AbstractIncomingMessage) -> None:
        nonlocal count
        count += 1
        if not count % ACK_EVERY:
            await message.ack(multiple=True)

    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    await channel.set_qos(PREFETCH)
    queue = await channel.get_queue("peers", ensure=False)
    await queue.consume(take, arguments={"x-stream-offset": "next"})

    async def answer(_: list[int]) -> Answer:
        return {"count": count}

    return answer


class Bare(asyncio.Protocol):
    """Walks from frame to frame and counts those that bodies end with: the least that any client must do."""

    def __init__(self) -> None:
        self.count = 0
        self.replies: asyncio.Queue[int] = asyncio.Queue()
        self.transport: Any = None
        self._head = Struct(">BHI")
        self._u64 = Struct(">Q")
        self._rest = b""
        self._tag = 0
        self._taken = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at, end = 0, len(data)
        unpack = self._head.unpack_from
        while end - at >= 8:
            kind, _, size = unpack(data, at)
            if at + size + 8 > end:
                break
            if kind == 3:
                self.body(data, at + 7)
            elif kind == 1:
                self._method(data, at + 7)
            at += size + 8
        self._rest = data[at:]
        if self.count - self._taken >= ACK_EVERY:
            self._taken = self.count
            self.transport.write(ack(1, self._tag))

    def body(self, data: bytes, at: int) -> None:
        self.count += 1

    def _method(self, data: bytes, at: int) -> None:
        if data[at : at + 4] == b"\x00\x3c\x00\x3c":
            (self._tag,) = self._u64.unpack_from(data, at + 5 + data[at + 4])
        else:
            self.replies.put_nowait(int.from_bytes(data[at : at + 4]))

    async def call(self, method: Any, channel: int) -> None:
        """Send a method and wait for any other."""
        self.transport.write(frame.marshal(method, channel))
        await self.replies.get()


class Watch(Bare):
    """Looks at the time stamp in each body as well."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[int] = []  # ns since each message was written

    def body(self, data: bytes, at: int) -> None:
        super().body(data, at)
        self.late.append(time.monotonic_ns() - int(data[at + 2 : at + 21]))  # behind `"T`


async def attach(bare: Bare, url: str) -> None:
    """Begin to consume."""
    address = Address.parse(url)
    await asyncio.get_running_loop().create_connection(lambda: bare, *address.hosts[0])
    bare.transport.write(b"AMQP\x00\x00\x09\x01")
    await bare.replies.get()
    login = f"\0{address.user}\0{address.password}"
    await bare.call(commands.Connection.StartOk({}, "PLAIN", login, "en_US"), 0)
    bare.transport.write(frame.marshal(commands.Connection.TuneOk(2047, MAX_FRAME, 0), 0))
    await bare.call(commands.Connection.Open(address.vhost), 0)
    await bare.call(commands.Channel.Open(), 1)
    await bare.call(commands.Basic.Qos(prefetch_count=PREFETCH), 1)
    await bare.call(commands.Basic.Consume(queue="peers", arguments={"x-stream-offset": "next"}), 1)


async def consume_bare(url: str) -> Answerer:
    """Consume with bare framing."""
    bare = Bare()
    await attach(bare, url)

    async def answer(_: list[int]) -> Answer:
        return {"count": bare.count}

    return answer


async def watch_bare(url: str) -> Answerer:
    """Say how late the messages were that came since it was asked before, in ms."""
    bare = Watch()
    await attach(bare, url)

    async def answer(_: list[int]) -> Answer:
        late, bare.late = sorted(bare.late), []
        if not late:
            return {"count": 0}
        return {
            "count": len(late),
            "p50": late[len(late) // 2] / 1e6,
            "p99": late[len(late) * 99 // 100] / 1e6,
        }

    return answer


# ---- publishers ----


async def publish_aio_pika(url: str) -> Answerer:
    """Publish with aio-pika, one message a call, each confirmed."""
    connection = await aio_pika.connect(url)
    channel = await connection.channel(publisher_confirms=True)
    exchange = await channel.get_exchange("peers", ensure=False)

    async def answer(asked: list[int]) -> Answer:
        array, k, count = asked
        messages = [
            aio_pika.Message(DATA, content_type="application/json", delivery_mode=2) for _ in range(count)
        ]

        async def some() -> None:
            while messages:
                calls = [messages.pop() for _ in range(min(array, len(messages)))]
                await asyncio.gather(*(exchange.publish(each, "bench") for each in calls))

        return await timed(asyncio.gather(*(some() for _ in range(k))), count)

    return answer


async def publish_log(url: str) -> Answerer:
    """Append to a stream log in this process, which publishes, has it confirmed and reads it back."""
    log = StreamLog(
        Address.parse(url),
        topology("log"),
        max_event_bytes=100_000,
        queue_bytes=16 << 20,
        queue_events=50_000,
        tail_bytes=16 << 20,
        tail_events=100_000,
        dedup_seconds=300,
        dedup_events=100_000,
    )
    await log.start(lambda _: None)
    mint = Mint(100_000, random_prefix())

    async def answer(asked: list[int]) -> Answer:
        array, k, count = asked
        now = time.time_ns() // 1_000_000
        calls = [[mint.event(now, "bench", DATA) for _ in range(array)] for _ in range(count // array)]
        return await timed(append_all(log, calls, k), count)

    return answer


async def append_all(log: StreamLog, calls: list[list[Event]], k: int) -> None:
    """Append with `k` calls under way until there are none left."""
    done = asyncio.get_running_loop().create_future()
    left = len(calls)

    def begin() -> None:
        if calls:
            log.append(calls.pop()).add_done_callback(ended)

    def ended(call: asyncio.Future[None]) -> None:
        nonlocal left
        left -= 1
        if (error := call.exception()) is not None and not done.done():
            done.set_exception(error)
        elif not left and not done.done():
            done.set_result(None)
        begin()

    for _ in range(k):
        begin()
    await done


async def timed(work: Awaitable[Any], count: int) -> Answer:
    """Do it and return what it took."""
    began, cpu = time.monotonic(), time.process_time()
    await work
    return {"count": count, "seconds": time.monotonic() - began, "cpu": time.process_time() - cpu}


# ---- being told ----

PEERS: Final = {
    "aio-pika-consume": consume_aio_pika,
    "bare-consume": consume_bare,
    "bare-watch": watch_bare,
    "aio-pika-publish": publish_aio_pika,
    "log": publish_log,
}


async def main(name: str, url: str) -> None:
    """Get ready and answer until nobody asks any more."""
    address = Address.parse(url)
    await declare(address, address.hosts[0], topology("peers"))
    answer = await PEERS[name](url)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    print("{}", flush=True)
    while line := await reader.readline():
        print(json.dumps(await answer([int(word) for word in line.split()])), flush=True)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
