"""Two replicas on one broker and one store: a consumer's place travels; a store in trouble stops nobody."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any, Final

import pytest

from tests.support.clients import (
    Address,
    Closed,
    Ended,
    Refused,
    Response,
    fetch,
    open_subscriber,
    publish,
    until,
)
from tests.support.followers import TRANSPORTS, Follower, check_account, publish_all
from tests.support.followers import until as until_now
from tests.support.host import address_of
from tests.support.postgres import PASSWORD, Postgres
from tests.support.quick import quickest
from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]

EVENTS: Final = 2_000
VISIT: Final = 20
"""Events that a consumer reads on one replica before it goes on to the next."""

PATIENCE: Final = 3.0
"""Seconds for an answer that waits for no store, on a busy machine; who waits for a frozen one needs five."""

Trouble = Callable[[], Awaitable[None]]
_numbers = count(1)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as node:
        yield node


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as one:
        yield one


@pytest.fixture
def replicas(broker: Broker, server: Postgres) -> Iterator[list[GatewayProcess]]:
    """Two replicas that start at the same time, on a log and a store of their own."""
    name = f"store{next(_numbers)}"
    settings: dict[str, Any] = {
        "backbone": broker.url,
        "stream": name,
        "exchanges": f"{name}:#",
        "store": server.make(),
    }
    with ExitStack() as stack:
        two = [GatewayProcess(**settings) for _ in range(2)]
        for each in two:
            stack.callback(each.close)
            each.launch()
        for each in two:
            each.wait_ready()
        yield two


class Traveller:
    """
    A consumer that reads some events, acknowledges them, and goes on elsewhere with nothing but its name.

    Args:
        replicas: where it goes, in turn.
        name: of the consumer.
        transport: `websocket` or `poll`.

    Attributes:
        read: the data of the events that it dealt with, again and again if they came so.
        refusals: visits that did not end with an acknowledgement.
    """

    def __init__(self, replicas: list[GatewayProcess], name: str, transport: str) -> None:
        self.read: list[int] = []
        self.refusals = 0
        self._addresses = [address_of(each) for each in replicas]
        self._name = name
        self._visit = self._visit_websocket if transport == "websocket" else self._visit_poll

    async def arrive(self) -> None:
        """Have its first place remembered."""
        _checked(await fetch(self._addresses[0], "/v1/events", self._query()))

    async def run(self) -> None:
        """Travel until the last event was acknowledged."""
        for turn in count():
            try:
                if await self._visit(self._addresses[turn % len(self._addresses)]):
                    return
            except (Ended, Closed, Refused, OSError, EOFError, TimeoutError):
                self.refusals += 1
                await asyncio.sleep(0.2)

    async def _visit_websocket(self, address: Address) -> bool:
        async with open_subscriber(address, "websocket", "load.#", consumer=self._name) as client:
            event = await client.next()
            self.read.append(event["data"])
            for _ in range(VISIT - 1):
                if self.read[-1] == EVENTS - 1:
                    break
                event = await client.next()
                self.read.append(event["data"])
            await client.send({"op": "ack", "cursor": event["cursor"]})
            while "status" not in (answer := await client.next()) and answer.get("control") != "acked":
                assert "data" in answer, answer  # an event that is for the next visit
            if answer["control"] == "error":
                assert (answer["status"], answer["retry_after"]) == (503, 2)
                raise EOFError
        return self.read[-1] == EVENTS - 1

    async def _visit_poll(self, address: Address) -> bool:
        answer = _checked(await fetch(address, "/v1/events", self._query(wait="1", limit=str(VISIT)))).json
        self.read += [event["data"] for event in answer["events"]]
        # Handing the cursor in acknowledges; the events of this answer are for the next visit.
        _checked(await fetch(address, "/v1/events", self._query(cursor=answer["cursor"])))
        return bool(self.read) and self.read[-1] == EVENTS - 1

    def _query(self, **more: str) -> list[tuple[str, str]]:
        return [("topic", "load.#"), ("consumer", self._name), *more.items()]


async def _story(replicas: list[GatewayProcess], trouble: Trouble | None = None) -> list[Traveller]:
    """Publish while consumers travel and others just follow, with trouble in the middle; check the others."""
    addresses = [address_of(each) for each in replicas]
    followers = [
        Follower(addresses[number % 2 :] + addresses[: number % 2], TRANSPORTS[number % 4], "load.#")
        for number in range(8)
    ]
    travellers = [
        Traveller(replicas, f"me-{number}", ("websocket", "poll")[number % 2]) for number in range(4)
    ]
    for each in travellers:
        await each.arrive()
    async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
        for follower in followers:
            tasks.create_task(follower.run(EVENTS - 1))
        for each in travellers:
            tasks.create_task(each.run())
        tasks.create_task(publish_all(replicas, "load.1", range(EVENTS), 0.02))
        await until_now(lambda: len(followers[0].data) >= EVENTS // 5, "the events flow")
        if trouble is not None:
            await trouble()
    check_account(followers, EVENTS)
    assert all("Traceback" not in each.log_text() for each in replicas)
    return travellers


def _check_nothing_missed(travellers: list[Traveller]) -> None:
    """Check that every event was dealt with at least once, and never one before an older one."""
    for each in travellers:
        reached = -1
        for number in each.read:
            assert number <= reached + 1, f"{each.read} misses something before {number}"
            reached = max(reached, number)
        assert reached == EVENTS - 1


async def test_a_consumer_goes_on_where_it_was_on_another_replica(replicas: list[GatewayProcess]) -> None:
    """Consumers that change the replica after every acknowledgement get each event once, by name alone."""
    for each in await _story(replicas):
        assert each.refusals == 0
        assert each.read == list(range(EVENTS))
    assert all(_metric(each, "sluice_store_commits_total") > 10 for each in replicas)
    assert not any(map(os.path.exists, [each.data for each in replicas])), "a folder was made for nothing"


async def test_a_killed_database_stops_no_event(replicas: list[GatewayProcess], server: Postgres) -> None:
    """The database is killed under load and comes back: who only follows notices nothing; none misses any."""

    async def trouble() -> None:
        await asyncio.to_thread(server.kill)
        try:
            await _all_say(replicas, "cannot be reached: Connection refused")
            await _check_refusals(replicas)
            await _check_publishing(replicas)
        finally:
            await asyncio.to_thread(server.start)
        await _all_ready(replicas)

    travellers = await _story(replicas, trouble)
    assert sum(each.refusals for each in travellers) > 0
    _check_nothing_missed(travellers)


async def test_a_frozen_database_stops_no_event(replicas: list[GatewayProcess], server: Postgres) -> None:
    """The database stands still under load: publishing is answered at once, consumers in time; it heals."""

    async def trouble() -> None:
        server.freeze()
        try:
            asking = asyncio.create_task(_ask(replicas[0]))
            await _check_publishing(replicas)
            begun = time.monotonic()
            assert (await asking).status == 503
            assert time.monotonic() - begun < 30
            await _all_say(replicas, "does not answer")
            await _check_refusals(replicas)
            await _check_publishing(replicas)
        finally:
            server.thaw()
        await _all_ready(replicas)

    travellers = await _story(replicas, trouble)
    assert sum(each.refusals for each in travellers) > 0
    _check_nothing_missed(travellers)


async def test_a_killed_replica_leaves_the_place_to_the_other(replicas: list[GatewayProcess]) -> None:
    """A replica is killed while consumers acknowledge through it: they go on at the other, none lost."""

    async def trouble() -> None:
        replicas[0].kill()
        await asyncio.sleep(1)
        await replicas[0].astart()

    _check_nothing_missed(await _story(replicas, trouble))


async def test_a_gateway_starts_without_its_database(server: Postgres) -> None:
    """Without its database a gateway with an embedded log serves all but consumers, and later those too."""
    url = server.make()
    await asyncio.to_thread(server.stop)
    gateway = GatewayProcess(store=url)
    try:
        gateway.launch()
        await until(lambda: _answers(gateway), "the gateway answers")
        await _all_say([gateway], "cannot be reached: Connection refused")
        address = address_of(gateway)
        cursor = (await publish(address, {"topic": "a", "data": 1}))["cursor"]
        assert (await fetch(address, "/v1/events", [("topic", "a"), ("cursor", "earliest")])).status == 200
        await _check_refusals([gateway])
        await asyncio.to_thread(server.start)
        await _all_ready([gateway])
        query = [("topic", "a"), ("consumer", "me")]
        assert (await fetch(address, "/v1/events", [*query, ("cursor", cursor)])).status == 200
        await publish(address, {"topic": "a", "data": 2})
        await gateway.arestart()
        answer = (await fetch(address, "/v1/events", query)).json
        assert [event["data"] for event in answer["events"]] == [2]
        assert server.query("SELECT name, cursor FROM sluicegate.consumers", url) == [["me", cursor]]
    finally:
        gateway.close()
        if not server.alive:
            server.start()


async def test_what_a_start_refuses_is_one_sentence(server: Postgres) -> None:
    """A wrong password or a database that is not there ends the start, with one line and no traceback."""
    for url, sentence in (
        (server.make().replace(PASSWORD, "wrong-one"), "password authentication failed"),
        (server.url("not-there"), 'database "not-there" does not exist'),
    ):
        gateway = GatewayProcess(store=url)
        try:
            gateway.launch()
            assert await asyncio.to_thread(gateway.wait) == 1
            said = gateway.log_text()
        finally:
            gateway.close()
        assert said.startswith("sluice: the store at 127.0.0.1:")
        assert sentence in said
        assert said.count("\n") == 1
        assert "wrong-one" not in said


def _checked(response: Response) -> Response:
    if response.status != 200:
        raise Refused(response)
    return response


def _metric(gateway: GatewayProcess, name: str) -> float:
    text = gateway.get("/metrics")[1].decode()
    (value,) = [line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(value)


async def _answers(gateway: GatewayProcess) -> bool:
    try:
        return (await fetch(address_of(gateway), "/healthz")).status == 200
    except OSError:
        return False


async def _ask(gateway: GatewayProcess) -> Response:
    """Ask as a consumer that nobody knows."""
    return await fetch(address_of(gateway), "/v1/events", [("topic", "a"), ("consumer", "nobody")])


async def _all_say(gateways: list[GatewayProcess], reason: str) -> None:
    """Wait until every replica says on its own that it is not ready, and why."""
    for each in gateways:

        async def says(each: GatewayProcess = each) -> bool:
            ready = await fetch(address_of(each), "/readyz")
            return ready.status == 503 and any(reason in said for said in ready.json["reasons"])

        await until(says, f"the replica says {reason!r}")
        assert _metric(each, "sluice_store_trouble") == 1


async def _all_ready(gateways: list[GatewayProcess]) -> None:
    for each in gateways:

        async def ready(each: GatewayProcess = each) -> bool:
            return (await fetch(address_of(each), "/readyz")).status == 200

        await until(ready, "the replica is ready again")
        assert _metric(each, "sluice_store_trouble") == 0


async def _check_refusals(gateways: list[GatewayProcess]) -> None:
    """Check that consumers are told at once to come back later."""
    for each in gateways:

        async def refused(each: GatewayProcess = each) -> None:
            answer = await _ask(each)
            assert answer.status == 503
            assert answer.json["detail"] == (
                "the places of durable subscriptions cannot be read or stored at the moment"
            )
            assert int(answer.head["retry-after"]) > 0

        assert await quickest(refused) < PATIENCE


async def _check_publishing(gateways: list[GatewayProcess]) -> None:
    """Publish through every replica; none makes its publishers wait for the store."""
    for each in gateways:

        async def published(each: GatewayProcess = each) -> None:
            await publish(address_of(each), {"topic": "quick", "data": 1})

        assert await quickest(published, times=10) < PATIENCE
