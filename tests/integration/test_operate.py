"""What an operator sees: health, readiness, metrics, connections and topics, in every shell."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.app import create_app
from gateway.settings import Settings
from tests.support.asgi import AsgiExchange, answering, scope_of
from tests.support.clients import Address, Message, Topics, fetch, open_subscriber, publish, until
from tests.support.host import address_of
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def samples_of(address: Address) -> Samples:
    """Return the metrics, read by Prometheus' own parser."""
    response = await fetch(address, "/metrics")
    assert response.status == 200
    assert response.head["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.body.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """Return one sample; 0 if it has not been counted yet."""
    return samples.get((name, frozenset(labels.items())), 0)


async def seen(address: Address, name: str) -> Message:
    """Return what the operator sees of a connection."""
    response = await fetch(address, f"/v1/connections/{name}")
    assert response.status == 200
    connection: Message = response.json
    return connection


async def test_health_and_readiness(gateway: Address) -> None:
    """A gateway that runs is alive and ready, and nobody caches that."""
    alive = await fetch(gateway, "/healthz")
    assert (alive.status, alive.json) == (200, {"status": "alive"})
    ready = await fetch(gateway, "/readyz")
    assert (ready.status, ready.json) == (200, {"ready": True, "reasons": []})
    assert alive.head["cache-control"] == ready.head["cache-control"] == "no-store"


async def test_metrics_count_what_happens(gateway: Address, topics: Topics) -> None:
    """Events, duplicates, deliveries, gaps and connections are counted as they happen."""
    before = await samples_of(gateway)
    event = {"topic": topics(), "id": topics("id"), "data": 1}
    async with open_subscriber(gateway, "sse", topics(), cursor="zzzzzz-1-0000") as subscriber:
        await subscriber.control("gap")
        await publish(gateway, event)
        await publish(gateway, event)
        received = 0
        while received < 1:
            received += (await subscriber.next()).get("topic") == topics()
        during = await samples_of(gateway)
    assert gain(before, during, "sluice_events_accepted_total") >= 1
    assert gain(before, during, "sluice_events_duplicate_total") == 1
    assert gain(before, during, "sluice_deliveries_total") >= 1
    assert gain(before, during, "sluice_connections_opened_total") == 1
    assert gain(before, during, "sluice_gaps_total", reason="reset") == 1
    wire = "sse" if gateway.prefix else "sse_chunked"
    assert value(during, "sluice_connections", wire=wire, state="live") >= 1
    assert value(during, "sluice_log_head") > value(before, "sluice_log_head")

    async def ended() -> bool:
        return gain(before, await samples_of(gateway), "sluice_connections_ended_total", reason="lost") == 1

    await until(ended, "the end of the connection is counted")


def gain(before: Samples, after: Samples, name: str, **labels: str) -> float:
    """Return by how much a counter went up."""
    return value(after, name, **labels) - value(before, name, **labels)


async def test_a_connection_is_visible(gateway: Address, topics: Topics) -> None:
    """Its topics, state, cursor and counts are there, by name and in the list."""
    async with open_subscriber(
        gateway, "ndjson", topics(), topics("b"), welcomed=False, overflow="latest"
    ) as it:
        name = (await it.control("welcome"))["connection"]
        cursor = (await publish(gateway, *({"topic": topics(), "data": n} for n in range(5))))["cursor"]
        await it.events(5)
        connection = await seen(gateway, name)
        assert connection.pop("cursor").split("-")[0] == cursor.split("-")[0]
        assert connection == {
            "connection": name,
            "key": None,
            "wire": "ndjson" if gateway.prefix else "ndjson_chunked",
            "state": "live",
            "topics": sorted([topics(), topics("b")]),
            "overflow": "latest",
            "behind": 0,
            "delivered": 5,
            "pauses": 0,
            "gaps": 0,
        }
        listed = (await fetch(gateway, "/v1/connections", [("limit", "1000")])).json
        assert listed["total"] >= len(listed["connections"]) >= 1
        assert name in [each["connection"] for each in listed["connections"]]


async def test_who_is_behind_comes_first(gateway: Address, topics: Topics) -> None:
    """A client that does not read is paused, behind, and at the head of the list."""
    async with (
        open_subscriber(gateway, "ndjson", topics()),
        open_subscriber(gateway, "ndjson", topics(), receive_buffer=4096, welcomed=False) as slow,
    ):
        name = (await slow.control("welcome"))["connection"]
        slow.tcp.stall()
        for _ in range(4):
            await publish(gateway, *({"topic": topics(), "data": "x" * 100_000} for _ in range(10)))

        async def behind() -> bool:
            return bool((await seen(gateway, name))["state"] == "paused")

        await until(behind, "the slow client is paused")
        first = (await fetch(gateway, "/v1/connections", [("limit", "1")])).json["connections"][0]
        assert first["connection"] == name
        assert first["behind"] > 0
        assert first["pauses"] >= 1
        assert value(await samples_of(gateway), "sluice_connections_behind") >= 1
        slow.tcp.go_on()
        await slow.events(40)


async def test_topics_and_subscriptions_are_listed(gateway: Address, topics: Topics) -> None:
    """Topics with their events in the window, patterns with their subscribers; the busiest first."""
    async with (
        open_subscriber(gateway, "sse", topics(), f"{topics()}.#"),
        open_subscriber(gateway, "ndjson", topics()),
        open_subscriber(gateway, "websocket", topics()),
    ):
        await publish(gateway, *({"topic": topics(), "data": number} for number in range(7)))
        listed = (await fetch(gateway, "/v1/topics", [("limit", "1000")])).json
    assert {"topic": topics(), "events": 7} in listed["topics"]
    assert {"pattern": topics(), "connections": 3} in listed["subscriptions"]
    assert {"pattern": f"{topics()}.#", "connections": 1} in listed["subscriptions"]
    counts = [each["events"] for each in listed["topics"]]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("path", ["/v1/connections", "/v1/topics"])
@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "", "1.5", "9" * 5000])
async def test_a_limit_out_of_range_is_refused(gateway: Address, path: str, limit: str) -> None:
    """A listing shows 1 to 1,000 at a time."""
    response = await fetch(gateway, path, [("limit", limit)])
    assert response.status == 422
    assert "1000" in response.problem["detail"]


async def test_a_connection_that_is_not_there(gateway: Address) -> None:
    """An unknown name is 404, whatever it looks like."""
    for name in ("nobody", "%00", "x" * 5000, "%F0%9F%98%80"):
        response = await fetch(gateway, f"/v1/connections/{name}")
        assert response.status == 404
        assert response.problem["detail"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/connections", "/v1/topics"])
async def test_looking_is_all_that_can_be_done(gateway: Address, path: str) -> None:
    """These resources answer GET and HEAD; anything else is 405 with the methods there are."""
    assert (await fetch(gateway, path, method="HEAD")).status == 200
    for method in ("POST", "DELETE"):
        response = await fetch(gateway, path, method=method, body=b"")
        assert response.status == 405
        assert "GET" in response.head["allow"]


async def test_what_is_not_there_is_a_problem(gateway: Address) -> None:
    """An unknown path is 404 in the form of every other refusal."""
    response = await fetch(gateway, "/v1/nothing")
    assert response.status == 404
    assert "/v1/nothing" in response.problem["detail"]


async def test_eviction_from_window_and_log_is_visible() -> None:
    """The window's size and what has left it are in the metrics, and the log's oldest position."""
    with GatewayProcess(window_events=10, retention_events=50) as process:
        address = address_of(process)
        for start in range(0, 300, 100):
            await publish(address, *({"topic": "t", "data": start + n} for n in range(100)))
        samples = await samples_of(address)
        assert value(samples, "sluice_window_events") == 10
        assert value(samples, "sluice_window_evicted_total") == 290
        assert value(samples, "sluice_log_head") == 300
        assert value(samples, "sluice_window_bytes") > 0

        async def trimmed() -> bool:
            return value(await samples_of(address), "sluice_log_first") > 1

        await until(trimmed, "retention takes the oldest events")


async def test_a_query_that_is_no_text_is_refused() -> None:
    """Whatever server is in front: bytes in a query that are no ASCII are a mistake of the client's."""
    application = create_app(Settings(data="memory:"))
    async with application.router.lifespan_context(application):
        exchange = AsgiExchange()
        async with answering(application, {**scope_of("/v1/route"), "query_string": b"key=\xff"}, exchange):
            await exchange.until(lambda: bool(exchange.sent))
    assert exchange.sent[0]["status"] == 422
