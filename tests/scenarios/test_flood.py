"""
An attack: thousands of connections that ask for nothing, thousands of new ones a second, requests byte by
byte.

Honest clients keep their connections, lose nothing, and have their events nearly as soon as before. The
machine is shared with the attacker, who takes its processors whoever he attacks. So he attacks somebody else
in the same way in between: what that costs is not the gateway's doing.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import pytest

from tests.support.attacker import Attacker, Damage, acceptor
from tests.support.clients import Address, fetch, handshake_bytes, request_bytes
from tests.support.crowd import until
from tests.support.server import GatewayProcess

pytestmark = [pytest.mark.scenario, pytest.mark.alone]

MIB: Final = 1 << 20

HONEST: Final = 100
EVERY: Final = 0.02
"""Seconds between two events."""

ROUNDS: Final = 4
WINDOW: Final = 4.0
"""Seconds of each kind in a round: quiet, an attack on somebody else, an attack on the gateway."""

SETTLE: Final = 0.5
"""Seconds between two of them."""

IDLE: Final = 5000
SLOW: Final = 200
RATE: Final = 2000

STARVED: Final = 0.25
"""
The part of the time that the gateway waits for a processor from which on its latencies say more about the
machine: then they are only bounded.
"""

LIMIT: Final = 32 * MIB
"""What the attack may cost: as many connections as may wait, not as many as come."""

_EVENT: Final = re.compile(rb'"data":\[(\d+),(\d+)\]')


class Honest(asyncio.Protocol):
    """
    A client that takes events, and when.

    Args:
        request: what it asks with.
    """

    def __init__(self, request: bytes) -> None:
        self.numbers: list[int] = []
        self.latencies: list[float] = []
        self.lost = False
        self._request = request
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]  # it is a Transport

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._rest += data
        end = 0
        for found in _EVENT.finditer(self._rest):
            self.numbers.append(int(found[1]))
            self.latencies.append((now - int(found[2])) / 1e6)
            end = found.end()
        self._rest = self._rest[end:][-4096:]

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


def _itself(client: Honest) -> Honest:
    return client


@dataclass
class Window:
    """What was seen of one kind of time: latencies in milliseconds, and what the attacker did."""

    latencies: list[float]
    starved: float  # the part of it in which the gateway wanted a processor and got none
    damage: Damage | None = None

    def at(self, part: float) -> float:
        """Return the latency that a part of the events had at most."""
        return sorted(self.latencies)[int(len(self.latencies) * part)]


class Stage:
    """
    A gateway's honest clients: a hundred that listen, one that publishes, one that comes and goes.

    Args:
        gateway: theirs.
    """

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway
        self.port = gateway.port
        self.clients: list[Honest] = []
        self.enough = asyncio.Event()
        self.published = 0
        self.refused = 0
        self.visits: list[float] = []
        self._transports: list[asyncio.BaseTransport] = []

    async def gather(self) -> None:
        """Have everybody connect, from ten addresses."""
        address = Address("127.0.0.1", self.port)
        stream = request_bytes("GET", "/v1/events?topic=honest", [("Accept", "text/event-stream")])
        for number in range(HONEST):
            websocket = handshake_bytes(address, [("topic", "honest")])
            client = Honest(stream if number % 2 else websocket)
            source = f"127.0.0.{10 + number % 10}"
            transport, _ = await asyncio.get_running_loop().create_connection(
                partial(_itself, client), "127.0.0.1", self.port, local_addr=(source, 0)
            )
            self._transports.append(transport)
            self.clients.append(client)

    async def publish(self) -> None:
        """Publish until told to stop: an event has its number, and the time when it was handed in."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            while not self.enough.is_set():
                begin = time.monotonic()
                body = b"[%d,%d]" % (self.published, time.monotonic_ns())
                writer.write(
                    request_bytes("POST", "/v1/topics/honest", [("Content-Type", "application/json")], body)
                )
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                assert length is not None
                await reader.readexactly(int(length[1]))
                if head[9:12] == b"202":
                    self.published += 1
                else:
                    self.refused += 1
                await asyncio.sleep(max(0.0, begin + EVERY - time.monotonic()))
        finally:
            writer.transport.abort()

    async def visit(self) -> None:
        """Connect anew, ask and leave, twice a second and from one address."""
        while True:
            begin = time.monotonic()
            response = await fetch(Address("127.0.0.1", self.port, source="127.0.0.50"), "/healthz")
            assert response.status == 200
            self.visits.append((time.monotonic() - begin) * 1000)
            await asyncio.sleep(0.5)

    async def window(self, attack: asyncio.Task[Damage] | None) -> Window:
        """Look for a while, or as long as an attack takes."""
        begin = [len(client.latencies) for client in self.clients]
        since, waited = time.monotonic(), run_delay(self.gateway.pid)
        if attack is None:
            await asyncio.sleep(WINDOW)
        damage = None if attack is None else await attack
        seen = [
            latency
            for client, first in zip(self.clients, begin, strict=True)
            for latency in client.latencies[first:]
        ]
        starved = (run_delay(self.gateway.pid) - waited) / (time.monotonic() - since)
        return Window(seen, starved, damage)

    def close(self) -> None:
        for each in self._transports:
            each.abort()  # type: ignore[attr-defined]


def run_delay(pid: int) -> float:
    """Return for how many seconds the main thread of a process could have run and did not (schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def resident(pid: int) -> int:
    """Return how much of a process is in memory, in bytes."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


async def watch(pid: int, seen: list[int]) -> None:
    """Look at the memory of a process for ever."""
    while True:
        seen.append(resident(pid))
        await asyncio.sleep(0.1)


async def test_an_attack_costs_the_honest_little() -> None:
    """Nobody honest is cut off, nothing is lost, events come nearly as soon, and memory keeps its bound."""
    async with GatewayProcess(heartbeat_seconds=120, log_level="warning") as gateway:
        limit = resident(gateway.pid) + LIMIT
        await gateway.arestart(memory_limit=limit)
        stage = Stage(gateway)
        await stage.gather()
        memory: list[int] = []
        quiet: list[Window] = []
        beside: list[Window] = []
        under: list[Window] = []
        async with Attacker() as attacker, acceptor() as elsewhere, asyncio.timeout(150):
            running = [
                asyncio.create_task(each)
                for each in (stage.publish(), stage.visit(), watch(gateway.pid, memory))
            ]
            await until(lambda: all(len(client.numbers) > 10 for client in stage.clients))

            def attack(port: int) -> asyncio.Task[Damage]:
                return asyncio.create_task(attacker.attack(port, WINDOW, idle=IDLE, slow=SLOW, rate=RATE))

            for _ in range(ROUNDS):
                quiet.append(await stage.window(None))
                beside.append(await stage.window(attack(elsewhere)))
                await asyncio.sleep(SETTLE)
                under.append(await stage.window(attack(gateway.port)))
                await asyncio.sleep(SETTLE)
            assert not any(each.done() for each in running)
            stage.enough.set()
            publishing, *others = running
            await publishing
            for each in others:
                each.cancel()
            await until(lambda: all(client.numbers[-1:] == [stage.published - 1] for client in stage.clients))
            metrics = (await fetch(Address("127.0.0.1", gateway.port), "/metrics")).body.decode()
        stage.close()

    counted = {
        name: float(value)
        for name, value in re.findall(r'sluice_refused_total\{limit="(\w+)"\} (\S+)', metrics)
    }
    for name, windows in (("quiet", quiet), ("an attack elsewhere", beside), ("under attack", under)):
        print(
            f"{name}: p50 {[round(each.at(0.5), 1) for each in windows]}, "
            f"p99 {[round(each.at(0.99), 1) for each in windows]} ms, "
            f"starved {[round(each.starved, 2) for each in windows]}"
        )
        for window in windows:
            if window.damage is not None:
                print("   ", window.damage, round(window.damage.rate), "a second")
    print("visits:", sorted(map(round, stage.visits))[-8:], "ms at most, of", len(stage.visits))
    print("memory:", memory[0] // MIB, "to", max(memory) // MIB, "MiB, the limit is", limit // MIB)
    print("refused:", counted, "published", stage.published)

    for client in stage.clients:
        assert not client.lost
        assert client.numbers == list(range(client.numbers[0], stage.published))
    assert stage.refused == 0
    for window in under:
        assert window.damage is not None
        assert window.damage.opened > 0.9 * (IDLE + SLOW + RATE * WINDOW)
        assert window.damage.dropped > IDLE / 2
    assert median(window.damage.rate for window in under if window.damage is not None) > RATE / 2
    assert counted["max_waiting"] > ROUNDS * IDLE / 2
    assert max(memory) < limit
    assert counted["memory_limit"] == 0
    normal = max(median(each.at(0.99) for each in quiet), median(each.at(0.99) for each in beside))
    busy = median(each.starved for each in under) > STARVED
    print("the machine has no processor left for the gateway" if busy else "there was a processor for it")
    assert median(each.at(0.99) for each in under) < (20 if busy else 2) * normal
