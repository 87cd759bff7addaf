"""`deploy/`: what its files say fits together, and the load balancers do what they are there for."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from gateway.amqp.address import Address as BrokerAddress
from gateway.cli.serve import serve
from gateway.settings import FIELDS, Settings, load
from gateway.units import parse_seconds
from tests.support.balancer import DEPLOY, Balancer
from tests.support.clients import TRANSPORTS, Address, fetch, open_subscriber, publish
from tests.support.followers import TRANSPORTS as FOLLOWED
from tests.support.followers import Follower, check_account, publish_all, until
from tests.support.rabbitmq import Broker
from tests.support.recorded import Said, recording
from tests.support.requests import Api
from tests.support.server import GatewayProcess
from tests.support.worker import WorkerProcess

pytestmark = pytest.mark.integration

COMPOSE: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
REPLICAS: Final = ("replica1", "replica2", "replica3")
GOODBYE_SECONDS: Final = 5

both = pytest.mark.parametrize("kind", ["haproxy", "nginx"])


# --- compose.yaml -------------------------------------------------------------------------------------------


def settings_of(service: dict[str, Any]) -> Settings:
    """Return the settings that a replica's command and environment make."""
    program, command, *flags = service["command"]
    assert (program, command) == ("sluice", "serve")
    given = serve.make_context("serve", flags).params
    return load({name: given[name] for name in FIELDS}, service["environment"])


def test_there_are_three_replicas_and_what_they_need() -> None:
    """The services are a broker, a store, three replicas that are alike, and a balancer before them."""
    assert set(SERVICES) == {"rabbitmq", "postgres", *REPLICAS, "balancer"}
    one, *others = (SERVICES[name] for name in REPLICAS)
    assert all(each == one for each in others)
    for name, condition in one["depends_on"].items():
        assert condition == {"condition": "service_healthy"}
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert set(one["depends_on"]) == {"rabbitmq", "postgres"}
    assert set(SERVICES["balancer"]["depends_on"]) == set(REPLICAS)


def test_the_replicas_would_start() -> None:
    """Command and environment are good settings, and name the broker and the store with their passwords."""
    settings = settings_of(SERVICES["replica1"])
    assert (settings.host, settings.port, settings.insecure) == ("0.0.0.0", 8000, True)
    broker = BrokerAddress.parse(settings.backbone)
    assert broker.hosts == (("rabbitmq", 5672),)
    environ = SERVICES["rabbitmq"]["environment"]
    assert (broker.user, broker.password) == (
        environ["RABBITMQ_DEFAULT_USER"],
        environ["RABBITMQ_DEFAULT_PASS"],
    )
    store = urlsplit(settings.store)
    environ = SERVICES["postgres"]["environment"]
    assert (store.hostname, store.username, store.password, store.path) == (
        "postgres",
        environ["POSTGRES_USER"],
        environ["POSTGRES_PASSWORD"],
        f"/{environ['POSTGRES_USER']}",
    )


def test_a_replica_has_time_to_drain() -> None:
    """A replica is given longer to stop than it takes to send everybody away."""
    grace = parse_seconds(SERVICES["replica1"]["stop_grace_period"])
    assert grace is not None
    assert grace > settings_of(SERVICES["replica1"]).drain_seconds + GOODBYE_SECONDS


def test_only_this_machine_is_let_in() -> None:
    """Every published port is bound to loopback, because nobody is asked who they are."""
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_what_is_mounted_is_there() -> None:
    """Every file that is mounted lies in the folder, and every volume is declared."""
    for service in SERVICES.values():
        for mounted in service.get("volumes", []):
            source = mounted.split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).is_file(), mounted
    assert (DEPLOY / SERVICES["replica1"]["build"] / "Dockerfile").is_file()


@pytest.mark.parametrize("name", ["haproxy.cfg", "nginx.conf"])
def test_the_balancers_know_the_replicas(name: str) -> None:
    """Each configuration has the replicas of compose.yaml, at the port where they listen."""
    text = (DEPLOY / name).read_text()
    port = settings_of(SERVICES["replica1"]).port
    blocks = re.findall(r"^ *(?:backend|upstream) .*?(?=^\s*$)", text, re.MULTILINE | re.DOTALL)
    known = [re.findall(r"server (?:replica\d )?(replica\d:\d+)", block) for block in blocks]
    assert len(known) == {"haproxy.cfg": 2, "nginx.conf": 3}[name]  # by load, by key, and one by one
    assert all(each == [f"{replica}:{port}" for replica in REPLICAS] for each in known)
    assert "8080" in text
    assert SERVICES["balancer"]["ports"] == ["127.0.0.1:8080:8080"]


# --- the balancers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as node:
        yield node


@pytest.fixture
def replicas(broker: Broker) -> Iterator[list[GatewayProcess]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(GatewayProcess(backbone=broker.url, heartbeat_seconds=0.5, drain_seconds=2))
            for _ in REPLICAS
        ]


def test_the_health_of_the_broker_can_be_asked_for(broker: Broker) -> None:
    """The command by which compose.yaml asks is one that RabbitMQ knows and a healthy node passes."""
    kind, tool, quiet, *words = SERVICES["rabbitmq"]["healthcheck"]["test"]
    assert (kind, quiet) == ("CMD", "--quiet")
    broker.control(*words, tool=tool)


def addresses(replicas: list[GatewayProcess]) -> list[Address]:
    return [Address(each.host, each.port) for each in replicas]


@both
async def test_every_transport_passes(kind: str, replicas: list[GatewayProcess]) -> None:
    """Through the balancer every transport brings an event at its cursor, and operators' pages are shut."""
    with Balancer(kind, addresses(replicas)) as balancer:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    open_subscriber(balancer.address, transport, "a", cursor="latest")
                )
                for transport in TRANSPORTS
            ]
            answer = await publish(balancer.address, {"topic": "a", "data": 1})
            for client in clients:
                (event,) = await client.events(1)
                assert (event["data"], event["cursor"]) == (1, answer["cursor"]), client.transport
        published = await fetch(balancer.address, "/v1/topics/a", method="POST", body=b"2")
        assert published.status == 202
        assert (await fetch(balancer.address, "/healthz")).status == 200
        for path in (
            "/metrics",
            "/v1/topics",
            "/v1/connections",
            "/v1/connections/x",
            "/admin",
            "/v1/replicas",
            "/v1/ring",
        ):
            assert (await fetch(balancer.address, path)).status == 403, path


FORGED: Final = (
    ("X-Forwarded-For", "203.0.113.9"),
    ("X-Forwarded-For", "203.0.113.10, 203.0.113.11"),
    ("x-forwarded-for", "203.0.113.12"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Proto", "gopher"),
)
"""What a client writes who would like to be somebody else."""


def ask_raw(address: Address, path: str, *headers: tuple[str, str]) -> int:
    """Make a request with just these headers, and return the status of its answer."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=30)
    try:
        connection.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


@both
@pytest.mark.parametrize(
    "path", ["/v1/events?topic=a", "/v1/events?topic=a&key=k", "/r/replica2/v1/events?topic=a"]
)
@pytest.mark.parametrize(
    "host",
    ["push.example.com", "push.example.com:8443", "Push.Example.com:8080", "127.0.0.1:1", "[::1]:8080"],
)
def test_what_the_gateway_is_told_of_a_client(kind: str, path: str, host: str) -> None:
    """Who it is, from the balancer alone; how; and which host it asked for, with its port, as it said it."""
    with recording(lambda _asked: Said()) as replica:
        there = urlsplit(replica.url)
        assert there.hostname is not None
        assert there.port is not None
        with Balancer(kind, [Address(there.hostname, there.port)] * len(REPLICAS)) as balancer:
            replica.asked.clear()
            origin = ("Origin", f"http://{host}")
            assert ask_raw(balancer.address, path, ("Host", host), origin) == 200
            upgrade = (
                *(("Upgrade", "websocket"), ("Connection", "Upgrade")),
                *(("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")),
            )
            ask_raw(balancer.address, path, ("Host", host), origin, *upgrade, *FORGED)
        seen = [each.headers for each in replica.asked if "origin" in each.headers]
    assert len(seen) == 2
    for headers in seen:
        assert headers["x-forwarded-for"] == ["127.0.0.1"]
        assert headers["x-forwarded-proto"] == ["http"]
        assert headers["host"] == [host]
        assert headers["origin"] == [f"http://{host}"]
    assert [value.lower() for value in seen[1]["upgrade"]] == ["websocket"]


@both
async def test_a_page_of_its_own_is_known_behind_it(kind: str) -> None:
    """A page that came through the balancer may ask, by the port where it is; one of another port may not."""
    with GatewayProcess(data="memory:", trusted_proxies="127.0.0.1") as gateway:
        with Balancer(kind, [Address(gateway.host, gateway.port)] * len(REPLICAS)) as balancer:
            port = balancer.address.port

            async def status(origin: str) -> int:
                async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                    url = f"{balancer.address.url}/v1/topics/a"
                    return (await client.post(url, content=b"1", headers={"origin": origin})).status_code

            assert await status(f"http://127.0.0.1:{port}") == 202
            assert await status(f"http://127.0.0.1:{gateway.port}") == 403
            assert await status("http://127.0.0.1") == 403


@both
async def test_a_key_stays_at_its_replica(kind: str, replicas: list[GatewayProcess]) -> None:
    """Clients of one key meet at one replica; when one dies, only its keys go elsewhere, for a while."""
    keys = [f"user-{number}" for number in range(60)]

    async def homes(balancer: Balancer, *, by: str = "key") -> dict[str, set[int]]:
        """Connect by each key, twice, and return at which replicas each arrived."""
        found: dict[str, set[int]] = {key: set() for key in keys}
        async with AsyncExitStack() as stack:
            for key in keys:
                for transport in ("sse", "websocket"):
                    asked: dict[str, Any] = {by: key}
                    client = open_subscriber(balancer.address, transport, key, **asked)
                    await stack.enter_async_context(client)
            for number, address in enumerate(addresses(replicas)):
                if not replicas[number].alive:
                    continue
                shown = await fetch(address, "/v1/connections", [("limit", "1000")])
                for each in shown.json["connections"]:
                    found[each["topics"][0]].add(number)
        return found

    with Balancer(kind, addresses(replicas)) as balancer:
        first = await homes(balancer)
        assert {len(each) for each in first.values()} == {1}, first
        assert set[int]().union(*first.values()) == {0, 1, 2}
        assert await homes(balancer, by="consumer") == first
        replicas[1].kill()
        without = await homes(balancer)
        assert {len(each) for each in without.values()} == {1}, without
        moved = {key for key in keys if without[key] != first[key]}
        assert moved == {key for key in keys if first[key] == {1}}
        await replicas[1].astart()
        async with asyncio.timeout(30):
            while await homes(balancer) != first:  # noqa: ASYNC110  # the balancer has to notice it
                await asyncio.sleep(0.5)


@both
async def test_each_replica_has_an_address_of_its_own(kind: str, replicas: list[GatewayProcess]) -> None:
    """Under /r/NAME a client reaches just that replica, or any while it is away; and no operators' page."""
    with Balancer(kind, addresses(replicas)) as balancer:

        def at(number: int) -> Address:
            return Address(balancer.address.host, balancer.address.port, f"/r/replica{number + 1}")

        async def arrives(number: int, there: int) -> None:
            for transport in ("sse", "ndjson", "websocket", "longpoll"):
                topic = f"own.{number}.{there}.{transport}"
                async with open_subscriber(at(number), transport, topic, key="user", hop="1"):
                    if transport == "longpoll":
                        continue
                    shown = (await fetch(addresses(replicas)[there], "/v1/connections")).json["connections"]
                    assert [topic] in [each["topics"] for each in shown]

        for number in range(3):
            await arrives(number, number)
        for path in ("/metrics", "/v1/connections", "/v1/replicas", "/admin"):
            assert (await fetch(at(0), path)).status == 403
        assert (await fetch(at(0), "/v1/topics/a", method="POST", body=b"1")).status == 403
        replicas[0].kill()
        for transport in ("sse", "websocket"):
            async with open_subscriber(at(0), transport, "a", key="user", hop="1"):
                pass


@both
async def test_workers_and_clients_of_requests_may_be_behind_it(kind: str, broker: Broker) -> None:
    """Whichever replica a call comes to, they are handed in, worked on and waited for."""
    with ExitStack() as stack:
        several = [
            stack.enter_context(
                GatewayProcess(backbone=broker.url, services="reports", stream=f"work-{kind}")
            )
            for _ in REPLICAS
        ]
        balancer = stack.enter_context(Balancer(kind, addresses(several)))
        for _ in range(2):
            code = "def handle(request):\n    request.progress(1)\n    return request.data + 1\n"
            stack.enter_context(WorkerProcess(balancer.address.url, "reports", code, concurrency=4))
        api = Api(balancer.address)
        tokens = [await api.submit("reports", number) for number in range(60)]
        for number, token in enumerate(tokens):
            shown = await api.show(token, wait=30)
            assert (shown["state"], shown["result"], shown["attempt"]) == ("done", number + 1, 1)


@both
async def test_a_quiet_stream_stays_open(kind: str, replicas: list[GatewayProcess]) -> None:
    """Heartbeats keep a stream open on which nothing else happens, beyond the time for silence."""
    with Balancer(kind, addresses(replicas), idle=2) as balancer:

        async def hold(transport: str) -> None:
            async with open_subscriber(balancer.address, transport, "a") as client:
                if transport == "websocket":  # pings, which the client answers; nothing happens to be read
                    waiting = asyncio.create_task(client.next())
                    await asyncio.wait([waiting], timeout=6)
                    assert not waiting.done()
                    waiting.cancel()
                else:
                    while client.heartbeats < 12:
                        await client.heartbeat()
                        client.heartbeats += 1

        async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
            for transport in ("sse", "ndjson", "websocket"):
                tasks.create_task(hold(transport))


@both
async def test_a_replica_that_drains_gets_nobody_new(kind: str, replicas: list[GatewayProcess]) -> None:
    """While a replica sends its clients away, whoever comes through the balancer is let in by another."""
    with Balancer(kind, addresses(replicas)) as balancer:
        first = replicas[0]
        async with open_subscriber(addresses(replicas)[0], "sse", "a") as held:
            os.kill(first.pid, signal.SIGTERM)
            await until(lambda: first.get("/readyz")[0] == 503, "it drains")
            for transport in ("sse", "ndjson", "websocket", "longpoll") * 3:
                async with open_subscriber(balancer.address, transport, "a", cursor="latest"):
                    pass
            await held.control("reconnect")
        assert await asyncio.to_thread(first.wait) == 0
        assert (await publish(balancer.address, {"topic": "a", "data": 1}))["accepted"] == 1


@both
@pytest.mark.timeout(300)
async def test_killed_and_drained_replicas_lose_nothing(kind: str, replicas: list[GatewayProcess]) -> None:
    """While replicas behind the balancer are killed and drained, every client gets every event once."""
    events = 3000
    with Balancer(kind, addresses(replicas)) as balancer:
        followers = [Follower([balancer.address], FOLLOWED[number % 4], "load.#") for number in range(16)]
        async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
            for each in followers:
                tasks.create_task(each.run(events - 1))
            tasks.create_task(publish_all([balancer], f"load.{kind}", range(events), 0.1))
            await until(lambda: len(followers[0].data) >= events // 6, "the events flow")
            replicas[0].kill()
            await until(lambda: len(followers[0].data) >= events // 3, "the events flow on")
            await replicas[0].astart()
            assert await replicas[1].astop() == 0
            await until(lambda: len(followers[0].data) >= events // 2, "the events flow on")
            await replicas[1].astart()
        check_account(followers, events)
