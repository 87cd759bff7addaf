"""Replicas behind a real load balancer: when one is killed, comes or drains, only those move that must."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Final
from urllib.parse import parse_qs, urlsplit

import pytest

from fanout.frames import Wire
from fanout.ring import Ring
from tests.support.accounts import TRANSPORTS, Follower, Ledger, account, until
from tests.support.balancer import Balancer
from tests.support.clients import Address, fetch
from tests.support.crowd import Producer
from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess, free_port
from tests.support.stage import scene

pytestmark = [pytest.mark.scenario, pytest.mark.alone, pytest.mark.timeout(300)]

CLIENTS: Final = 600
ENDS: Final = {"sse": b"\n\n", "ndjson": b"\n"}
NAMES: Final = ("replica1", "replica2", "replica3")


class Belonging(Follower):
    """A client with a key: it goes where it is sent, and home when nobody is there."""

    def __init__(self, key: str, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.key = key
        self.pause = 0.5
        self.wires = {"websocket": Wire.WEBSOCKET, "sse": Wire.SSE, "ndjson": Wire.NDJSON}
        self.body = b""
        self.detours = 0
        self._go_home()

    def _go_home(self) -> None:
        self.path, self.query = "", f"&key={self.key}"

    def _sent_on(self, url: str) -> None:
        if not url:
            self._go_home()
            return
        self.detours += 1
        parts = urlsplit(url)
        hop = parse_qs(parts.query)["hop"][0]
        self.path, self.query = parts.path.removesuffix("/v1/events"), f"&key={self.key}&hop={hop}"
        raise _SentOn

    def _split(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return the frames that are whole: a proxy makes chunks of its own."""
        if self.transport == "websocket":
            return super()._split(data)
        end = ENDS[self.transport]
        while (at := data.find(b"\r\n")) > 0:
            size = int(data[:at], 16)
            if len(data) < at + size + 4:
                break
            self.body += data[at + 2 : at + 2 + size]
            data = data[at + size + 4 :]
        *frames, self.body = self.body.split(end)
        return [frame + end for frame in frames], data

    async def connect(self, events: int | None = None) -> None:
        """Connect; whoever was sent on tries again at once, whoever finds nobody goes home."""
        self.body = b""
        try:
            await super().connect(events)
        except _SentOn:
            return
        except BaseException:
            self._go_home()
            raise


class _SentOn(Exception):
    """It was told where to go."""


class Town:
    """
    Three replicas, and HAProxy before them.

    Args:
        broker: of the replicas.
        stack: ends them.
    """

    def __init__(self, broker: Broker, stack: ExitStack) -> None:
        ports = [free_port() for _ in NAMES]
        self.balancer = Balancer("haproxy", [Address("127.0.0.1", port) for port in ports])
        self.replicas = {
            name: stack.enter_context(
                GatewayProcess(
                    backbone=broker.url,
                    name=name,
                    port=port,
                    sticky="redirect",
                    advertise=f"{self.balancer.address.url}/r/{name}",
                    drain_seconds=3,
                )
            )
            for name, port in zip(NAMES, ports, strict=True)
        }
        stack.enter_context(self.balancer)

    async def agree(self, *names: str) -> None:
        """Wait until these are in the ring, all of them agree, and nobody else does."""
        async with asyncio.timeout(60):
            while True:
                views = [
                    (await fetch(_address(self.replicas[name]), "/v1/replicas")).json["view"]
                    for name in names
                ]
                if all(each["settled"] and tuple(each["members"]) == names for each in views):
                    return
                await asyncio.sleep(0.1)

    async def places(self) -> dict[str, str]:
        """Return at which replica each key is that listens."""
        found: dict[str, str] = {}
        for name, replica in self.replicas.items():
            if not replica.alive:
                continue
            with contextlib.suppress(OSError):
                shown = await fetch(_address(replica), "/v1/connections", [("limit", "1000")])
                for each in shown.json["connections"]:
                    if each["wire"] != "json":  # long polls come and go
                        found[each["key"]] = name
        return found


def _address(replica: GatewayProcess) -> Address:
    return Address(replica.host, replica.port)


@pytest.fixture
def town() -> Iterator[Town]:
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(niceness=0))
        yield Town(broker, stack)


async def test_only_those_move_that_must(town: Town) -> None:
    """One replica is killed, comes back and another drains, under 600 clients: nobody lacks anything."""
    listening = [f"user-{number}" for number in range(CLIENTS) if number % 5 < 3]

    async def settles(before: Sequence[str], after: Sequence[str], what: str) -> None:
        """Wait until everybody who listens is where the ring has it, and say how many moved."""
        owners = {key: Ring(after).owner(key) for key in listening}
        expected = [key for key in listening if Ring(before).owner(key) != owners[key]]
        places: dict[str, str] = {}
        deadline = asyncio.get_running_loop().time() + 90
        while places != owners:
            wrong = {
                key: (places.get(key), owner) for key, owner in owners.items() if places.get(key) != owner
            }
            more = places.keys() - owners.keys()
            late = asyncio.get_running_loop().time() > deadline
            assert not late, f"{what}: {len(wrong)} are elsewhere: {wrong}; more: {more}"
            await asyncio.sleep(0.2)
            places = await town.places()
        seen = [key for key in listening if places[key] != known.get(key, places[key])]
        print(
            f"{what}: {len(expected)} of {len(listening)} listeners had to move, {len(seen)} did; "
            f"now {dict(sorted(Counter(places.values()).items()))}"
        )
        assert sorted(seen) == (sorted(expected) if known else [])
        known.update(places)

    known: dict[str, str] = {}
    await town.agree(*NAMES)
    receipt = await town.balancer.apublish({"topic": "load.begin", "data": ["begin", 0]})
    ledger, port = Ledger(), town.balancer.address.port
    followers = [
        Belonging(
            f"user-{number}",
            [port],
            itertools.repeat(TRANSPORTS[number % 5]),
            ledger,
            ["load.#"],
            receipt["cursor"],
        )
        for number in range(CLIENTS)
    ]
    producers = [Producer([port], f"p{number}", [f"load.p{number}"]) for number in range(2)]
    done = asyncio.Event()
    one, two, three = (town.replicas[name] for name in NAMES)
    async with scene([one, two, three]) as tasks:
        following = [tasks.create_task(each.follow()) for each in followers]
        publishing = [tasks.create_task(each.publish_until(done, 0.1)) for each in producers]
        await settles(NAMES, NAMES, "at first")
        two.kill()
        await settles(NAMES, ("replica1", "replica3"), "one killed")
        await two.astart()
        await settles(("replica1", "replica3"), NAMES, "one added")
        assert await one.astop() == 0
        await settles(NAMES, ("replica2", "replica3"), "one drained")
        done.set()
        await asyncio.gather(*publishing)
        numbers = {each.name: each.published for each in producers}
        await until(lambda: all(each.has(numbers) for each in followers), "all have all")
        for task in following:
            task.cancel()
    result = account(followers, producers)
    detours = sum(each.detours for each in followers)
    print(f"{sum(numbers.values()):,} events; {result}; sent on {detours} times")
    result.check()
    assert not result.gaps
