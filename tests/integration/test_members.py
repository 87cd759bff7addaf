"""Replicas on a real broker: they agree who owns what, whoever comes, goes, dies or stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import aio_pika
import pytest

from fanout.ring import Ring, moved
from tests.support.accounts import until
from tests.support.clients import Address, fetch
from tests.support.clients import until as until_asked
from tests.support.host import address_of
from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess

KEYS = [f"user-{number}" for number in range(200)]
_numbers = count(1)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as node:
        yield node


class Group:
    """
    Replicas on a stream of their own.

    Args:
        broker: what they share.
        names: of the replicas; they are started.
    """

    def __init__(self, broker: Broker, *names: str) -> None:
        self.stream = f"members{next(_numbers)}"
        self._broker = broker
        self._stack = ExitStack()
        self.replicas: dict[str, GatewayProcess] = {}
        for name in names:
            self.launch(name)

    def launch(self, name: str, **settings: Any) -> GatewayProcess:
        """Start one more."""
        gateway = GatewayProcess(
            backbone=self._broker.url,
            stream=self.stream,
            exchanges=f"{self.stream}:#",
            name=name,
            advertise=f"http://{name}.example",
            **settings,
        )
        self._stack.callback(gateway.close)
        gateway.launch()
        self.replicas[name] = gateway
        return gateway

    async def view(self, name: str) -> Any:
        """Return what a replica knows of all."""
        try:
            return (await fetch(address_of(self.replicas[name]), "/v1/replicas")).json
        except OSError:
            return None

    async def agree(self, *names: str) -> None:
        """Wait until these have each other in the ring, and nobody else, and have settled."""

        async def agreed() -> bool:
            views = [await self.view(name) for name in names]
            if None in views:
                return False
            versions = {(view["view"]["version"], view["view"]["digest"]) for view in views}
            settled = all(view["view"]["settled"] for view in views)
            members = [view["view"]["members"] for view in views]
            return settled and len(versions) == 1 and all(each == sorted(names) for each in members)

        try:
            await until_asked(agreed, f"{names} agree")
        except AssertionError as error:
            for name in self.replicas:
                error.add_note(f"{name}: {await self.view(name)}\n{self.replicas[name].log_text()[-1000:]}")
            raise

    async def owners(self, name: str) -> list[str]:
        """Return the owner of each of the keys, as a replica has it."""
        address = address_of(self.replicas[name])
        routes = [await fetch(address, "/v1/route", [("key", key)]) for key in KEYS]
        assert all(route.json["url"] == f"http://{route.json['owner']}.example" for route in routes)
        return [route.json["owner"] for route in routes]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
async def group(broker: Broker) -> AsyncIterator[Group]:
    """Three replicas that agree."""
    group = Group(broker, "a", "b", "c")
    try:
        await group.agree("a", "b", "c")
        yield group
    finally:
        group.close()


def expected(*names: str) -> list[str | None]:
    ring = Ring(names)
    return [ring.owner(key) for key in KEYS]


async def test_all_say_the_same(group: Group) -> None:
    """The owners of all keys are those of the ring of the three, on each of them; the shares are even."""
    for name in "abc":
        assert await group.owners(name) == expected("a", "b", "c")
    view = await group.view("b")
    assert view["self"] == "b"
    assert sum(each["share"] for each in view["replicas"]) == pytest.approx(1, abs=0.001)
    assert max(each["share"] for each in view["replicas"]) <= 1.05 / 3 + 0.001
    assert all(each["heard_seconds_ago"] < 10 and each["version"] for each in view["replicas"])


async def test_one_that_is_killed_leaves_its_keys_and_no_others(group: Group) -> None:
    """What moves is what had to, and comes back when it does."""
    before = await group.owners("a")
    group.replicas["b"].kill()
    await group.agree("a", "c")
    after = await group.owners("a")
    assert after == await group.owners("c") == expected("a", "c")
    changed = [one for one, other in zip(before, after, strict=True) if one != other]
    assert changed.count("b") == before.count("b"), "all keys of the dead one moved"
    beyond = len(moved(Ring("abc"), Ring("ac"))) - len(Ring("abc").owned("b"))
    assert beyond < 0.01 * Ring("abc").buckets, "and hardly any other bucket"
    assert len(changed) - changed.count("b") <= 4
    group.replicas["b"].start()
    await group.agree("a", "b", "c")
    assert await group.owners("b") == before


async def test_one_that_stands_still_owns_nothing_and_comes_back(group: Group) -> None:
    """The others bury it; when it goes on it finds that it is out, and joins again."""
    group.replicas["c"].freeze()
    try:
        await group.agree("a", "b")
        assert await group.owners("a") == expected("a", "b")
    finally:
        group.replicas["c"].thaw()
    await group.agree("a", "b", "c")


async def test_one_that_drains_leaves_at_once(group: Group) -> None:
    """Its clients belong to others before it is gone; and one that comes has its share."""
    group.launch("d", drain_seconds=5)
    await group.agree("a", "b", "c", "d")
    assert await group.owners("a") == expected("a", "b", "c", "d")
    await group.replicas["d"].astop()
    await group.agree("a", "b", "c")
    assert "Traceback" not in group.replicas["d"].log_text()


async def test_without_its_broker_nobody_owns_anything(broker: Broker) -> None:
    """They say so, and agree again when it is back."""
    with Broker() as own:
        group = Group(own, "a", "b")
        try:
            await group.agree("a", "b")
            own.settle()
            await group.agree("a", "b")
            await asyncio.to_thread(own.kill)
            for name in "ab":
                await until_asked(lambda name=name: _is_apart(group, name), "it owns nothing")
                route = await fetch(address_of(group.replicas[name]), "/v1/route", [("key", "k")])
                assert route.json["url"] is None, "it cannot know who is there"
                assert "members.lost" in group.replicas[name].log_text()
            await asyncio.to_thread(own.start)
            await group.agree("a", "b")
        finally:
            group.close()


async def _is_apart(group: Group, name: str) -> bool:
    view = await group.view(name)
    return bool([each["state"] for each in view["replicas"] if each["name"] == name] == ["apart"])


async def test_nobody_runs_under_the_name_of_another(group: Group) -> None:
    """The second one serves its clients, and has no part in the ring."""
    first = group.replicas["a"]
    second = group.launch("a")
    await until(lambda: "members.lost" in second.log_text(), "it says so")
    assert "another process runs under the name" in second.log_text()
    assert (await second.apublish({"topic": "t", "data": 1}))["accepted"] == 1
    group.replicas["a"] = first
    await group.agree("a", "b", "c")


async def test_what_is_no_heartbeat_is_passed_over(group: Group, broker: Broker) -> None:
    """Whatever is sent to where they talk."""
    async with await aio_pika.connect(broker.url) as connection:
        exchange = await (await connection.channel()).get_exchange(f"{group.stream}.members")
        for body in (b"", b"{", b'{"v":9}', b"x" * 100_000):
            await exchange.publish(aio_pika.Message(body), "replica")
    await group.agree("a", "b", "c")
    assert await group.owners("a") == expected("a", "b", "c")


async def test_alone_it_owns_everything(own: Address) -> None:
    """The embedded gateway is its only member."""
    view = (await fetch(own, "/v1/replicas")).json
    (only,) = view["replicas"]
    assert (only["name"], only["state"], only["share"], only["url"]) == (view["self"], "alive", 1.0, None)
    assert view["groups"] == {}
    route = (await fetch(own, "/v1/route", [("key", "k")])).json
    assert (route["owner"], route["ranks"], route["url"]) == (view["self"], [view["self"]], None)


@pytest.mark.parametrize("query", ["", "key=", f"key={'k' * 256}", "key=a&key=b", "other=1"])
async def test_routes_that_are_refused(own: Address, query: str) -> None:
    """With a sentence."""
    pairs: Any = [tuple(each.split("=", 1)) for each in query.split("&") if each]
    assert (await fetch(own, "/v1/route", pairs)).status == 422
