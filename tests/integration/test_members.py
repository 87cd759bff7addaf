"""Replicas on a real broker: they agree who owns what, whoever comes, goes, dies or stands still."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from itertools import count
from typing import Any

import aio_pika
import pytest

from fanout.ring import Ring, moved
from tests.support.accounts import until
from tests.support.browser import chromium
from tests.support.clients import Address, Closed, Ended, Head, Tcp, fetch, open_subscriber, request_bytes
from tests.support.clients import until as until_asked
from tests.support.hose import Hose
from tests.support.host import address_of
from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess, free_port

KEYS = [f"user-{number}" for number in range(200)]
_numbers = count(1)
DEADLINE = 30.0


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
        sticky: whether they send clients on.
    """

    def __init__(self, broker: Broker, *names: str, sticky: str = "off") -> None:
        self._sticky = sticky
        self.stream = f"members{next(_numbers)}"
        self._broker = broker
        self._stack = ExitStack()
        self.replicas: dict[str, GatewayProcess] = {}
        for name in names:
            self.launch(name)

    def launch(self, name: str, **settings: Any) -> GatewayProcess:
        """Start one more."""
        port = free_port()
        backbone = settings.pop("backbone", self._broker.url)
        gateway = GatewayProcess(
            backbone=backbone,
            stream=self.stream,
            exchanges=f"{self.stream}:#",
            name=name,
            port=port,
            advertise=f"http://127.0.0.1:{port}" if self._sticky == "redirect" else f"http://{name}.example",
            sticky=self._sticky,
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

    def keys_of(self, owner: str, *names: str) -> list[str]:
        """Return the keys that one of some replicas owns."""
        ring = Ring(names)
        return [key for key in KEYS if ring.owner(key) == owner]


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


async def test_one_that_is_cut_off_stops_before_others_begin(broker: Broker) -> None:
    """A replica whose connections stay open while nothing comes through: no bucket is ever owned twice."""
    async with Hose(broker.port) as hose:
        group = Group(broker, "a", "b")
        try:
            third = group.launch("c", backbone=broker.url.replace(f":{broker.port}", f":{hose.port}"))
            await group.agree("a", "b", "c")
            total = Ring("abc").buckets
            loop = asyncio.get_running_loop()
            hose.pinch()
            begun = loop.time()
            stopped = taken = 0.0
            while not taken:
                # Others first: had c something after they had it, it would be seen.
                others = sum([(await group.view(name))["owned"] for name in "ab"])
                own = (await group.view("c"))["owned"]
                now = loop.time() - begun
                assert others + own <= total, "a bucket has two owners"
                stopped = stopped or (now if not own else 0.0)
                taken = now if others == total else 0.0
                assert now < DEADLINE
            print(f"it stopped after {stopped:.2f} s, others had its share after {taken:.2f} s")  # noqa: T201
            assert stopped < taken
            assert (await group.view("c"))["replicas"][2]["state"] == "apart"
            route = await fetch(address_of(third), "/v1/route", [("key", group.keys_of("a", "a", "b")[0])])
            assert route.json["url"] is None, "it sends nobody anywhere"
            hose.release()
            await group.agree("a", "b", "c")
        finally:
            group.close()


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


@pytest.fixture(scope="module")
def two(broker: Broker) -> Iterator[Group]:
    group = Group(broker, "a", "b", sticky="redirect")
    try:
        yield group
    finally:
        group.close()


@pytest.fixture
async def sticky(two: Group) -> Group:
    """Two replicas that send clients on."""
    await two.agree("a", "b")
    return two


async def test_a_client_is_sent_to_its_owner(sticky: Group) -> None:
    """Once, on every transport that HTTP has; whoever has no key, or was sent on, is served where it is."""
    one, other = address_of(sticky.replicas["a"]), sticky.replicas["b"]
    mine, yours = sticky.keys_of("a", "a", "b")[0], sticky.keys_of("b", "a", "b")[0]
    version = (await sticky.view("a"))["view"]["version"]
    for accept in ("text/event-stream", "application/x-ndjson", "application/json"):
        headers = [("Accept", accept)]
        query = [("topic", "t.#"), ("cursor", "earliest"), ("key", yours)]
        sent = await fetch(one, "/v1/events", query, headers)
        assert sent.status == 307
        assert sent.head["cache-control"] == "no-store"
        location = sent.head["location"]
        there = f"{other.url}/v1/events?topic=t.%23&cursor=earliest&key={yours}&hop="
        assert location == f"{there}{version}"
        older = await fetch(one, "/v1/events", [("hop", str(version - 1)), *query], headers)
        assert (older.status, older.head["location"]) == (307, f"{there}{version}")
    sent_here = [("key", yours), ("hop", str(version))]
    for served in ([("key", mine)], [], sent_here, [("consumer", mine)]):
        assert (await fetch(one, "/v1/events", [("topic", "t"), *served])).status == 200
    by_consumer = await fetch(one, "/v1/events", [("topic", "t"), ("consumer", yours)])
    assert by_consumer.status == 307
    both = await fetch(one, "/v1/events", [("topic", "t"), ("consumer", yours), ("key", mine)])
    assert both.status == 200
    for wrong in (
        ("key", ""),
        ("key", "k" * 256),
        ("hop", ""),
        ("hop", "-1"),
        ("hop", "x"),
        ("hop", "9" * 19),
    ):
        assert (await fetch(one, "/v1/events", [("topic", "t"), wrong])).status == 422


async def test_a_websocket_is_told_where_to_go(sticky: Group) -> None:
    """It is opened, told, and closed with the code that says to come back."""
    one, other = address_of(sticky.replicas["a"]), sticky.replicas["b"]
    yours = sticky.keys_of("b", "a", "b")[0]
    async with open_subscriber(one, "websocket", "t.#", key=yours) as client:
        advice = await client.receive()
        while advice.get("control") != "reconnect":
            advice = await client.receive()
        version = (await sticky.view("a"))["view"]["version"]
        assert (advice["reason"], advice["url"], advice["hop"]) == ("moved", other.url, version)
        assert advice["cursor"]
        with pytest.raises(Closed) as caught:
            await client.receive()
    assert caught.value.code == 1012
    async with open_subscriber(address_of(other), "websocket", "t.#", key=yours) as client:
        await sticky.replicas["a"].apublish({"topic": "t.1", "data": 1})
        assert (await client.next())["data"] == 1


async def test_when_one_comes_only_its_clients_move(sticky: Group) -> None:
    """They are told where to, with their cursor; all others stay where they are."""
    clients: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        for name in "ab":
            for key in sticky.keys_of(name, "a", "b")[:20]:
                subscriber = open_subscriber(address_of(sticky.replicas[name]), "ndjson", "t.#", key=key)
                clients[key] = await stack.enter_async_context(subscriber)
        expected = {key for key in clients if Ring("abc").owner(key) == "c"}
        assert expected
        third = sticky.launch("c")
        await sticky.agree("a", "b", "c")
        await sticky.replicas["a"].apublish({"topic": "t.1", "data": 1})
        moved_on: dict[str, str] = {}

        async def follow(key: str, client: Any) -> None:
            with contextlib.suppress(Ended):
                while True:
                    message = await client.receive()
                    if message.get("control") == "reconnect":
                        assert (message["reason"], message["url"]) == ("moved", third.url)
                        moved_on[key] = message["cursor"]

        async with asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(follow(key, client)) for key, client in clients.items()]
            await until(lambda: moved_on.keys() == expected, "those who must have moved")
            await asyncio.sleep(1)  # and nobody else does
            for task in following:
                task.cancel()
        print(f"moved: expected {len(expected)} of {len(clients)}, seen {len(moved_on)}")  # noqa: T201
        assert moved_on.keys() == expected
        await sticky.replicas["b"].apublish({"topic": "t.2", "data": 2})
        key, cursor = next(iter(moved_on.items()))
        query = [("topic", "t.#"), ("key", key), ("cursor", cursor)]
        found = (await fetch(address_of(third), "/v1/events", query)).json["events"]
        assert [each["data"] for each in found][-1] == 2
    await third.astop()


async def test_a_page_of_one_replica_reads_from_another(sticky: Group) -> None:
    """A browser follows the redirect if the owner lets it; pages of others get no such leave."""
    other = address_of(sticky.replicas["b"])
    for accept in ("text/event-stream", "application/json"):
        query = [("topic", "t"), ("key", sticky.keys_of("a", "a", "b")[0])]  # not once more
        for origin, leave in ((sticky.replicas["a"].url, True), ("https://elsewhere.example", False)):
            headers = [("Accept", accept), ("Origin", origin)]
            async with Tcp.open(other) as tcp:
                await tcp.send(request_bytes("GET", other.target("/v1/events", query), headers))
                head = Head.parse(await tcp.until(b"\r\n\r\n"))
            assert head.status == (200 if leave else 403)
            assert ("access-control-allow-origin" in head) is leave
            if leave:
                assert head["access-control-allow-origin"] == origin


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


_FOLLOW = """
async ([kind, key]) => {
  const got = (window.got = []);
  const { Client } = await import("/demo/client.js");
  if (kind === "EventSource") {
    window.source = new EventSource(`/v1/events?topic=t.%23&key=${key}`);
    window.source.onmessage = ({ data }) => got.push(JSON.parse(data).data);
  } else {
    const onEvent = (event) => got.push(event.data);
    window.client = new Client({ topics: ["t.#"], transport: kind, key, onEvent });
    window.client.start();
  }
}
"""


@pytest.mark.browser
async def test_a_browser_ends_on_the_owner(sticky: Group) -> None:
    """A plain EventSource follows the redirect, the client of the demo page the WebSocket's advice."""
    one, other = sticky.replicas["a"], sticky.replicas["b"]
    keys = sticky.keys_of("b", "a", "b")
    async with chromium() as browser:
        page = await (await browser.new_context()).new_page()
        await page.goto(f"{one.url}/healthz")  # six connections to a host, and the demo page has five
        for number, kind in enumerate(("EventSource", "websocket", "sse")):
            await page.evaluate(_FOLLOW, [kind, keys[number]])
            await until_asked(partial(_follow, other, number + 1), "it is at its owner")
            await one.apublish({"topic": "t.1", "data": number})
            await page.wait_for_function(f"window.got.includes({number})", timeout=30_000)
        assert await _followers(one) == 0
        other.kill()
        await other.astart()
        await sticky.agree("a", "b")
        await until_asked(partial(_follow, other, 3), "all are back at their owner")


async def _followers(gateway: GatewayProcess) -> int:
    """Return how many connections follow `t.#`."""
    found = (await fetch(address_of(gateway), "/v1/connections")).json["connections"]
    return sum(each["topics"] == ["t.#"] for each in found)


async def _follow(gateway: GatewayProcess, count: int) -> bool:
    return await _followers(gateway) == count
