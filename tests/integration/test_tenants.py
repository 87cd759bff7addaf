"""A random walk of tenants through one gateway: each gets all of its own, and nothing of anybody else's."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest

from fanout.topics import matches
from tests.support.bearer import ENVIRON, bearer, call, fresh
from tests.support.clients import STREAMS, Address, Response, fetch, open_subscriber
from tests.support.host import address_of
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration

SPACES: Final = ("", "acme", "acme2", "umbrella")
TOPICS: Final = ("a", "a.b", "a.c", "b.a", "acme.a", "tenant.acme.a")
PATTERNS: Final = ("#", "*", "a.*", "*.a", "a.#", "#.a", "*.*.*")
STEPS: Final = 250


class Space:
    """
    A tenant, or the common space, and what it should know.

    Args:
        name: of the tenant; empty for the common space.
        address: of the gateway.
    """

    def __init__(self, name: str, address: Address) -> None:
        self.name = name
        self.address = address
        self.marker = f"mark-{name or 'common'}-end"
        grants: dict[str, Any] = {"publish": ["#"], "subscribe": ["#"], "requests": ["*"], "webhooks": True}
        self.text = fresh(600, sub="the same", **grants, **({"tenant": name} if name else {}))
        self.events: list[tuple[str, int]] = []
        self.ids: set[str] = set()
        self.requests: list[str] = []
        self.webhooks: set[str] = set()
        self.readers: list[tuple[str, Any]] = []

    def check(self, answer: Response) -> Response:
        """Check that an answer has nothing of another space in it."""
        self.check_text(answer.body.decode())
        return answer

    def check_text(self, text: str) -> None:
        assert "$tenant" not in text, text
        assert text.count("mark-") == text.count(self.marker), text

    async def ask(self, method: str, path: str, body: object = None) -> Response:
        """Make a request, and look at what the answer shows."""
        return self.check(await call(self.address, method, path, self.text, body))

    def wanted(self, pattern: str) -> list[tuple[str, int]]:
        """Return what a pattern should bring of all that was published here; requests apart."""
        return [each for each in self.events if matches(pattern, each[0])]


async def publish(space: Space, others: list[Space], dice: random.Random, number: int) -> None:
    """Publish an event, perhaps with an id that others use as well."""
    topic, id = dice.choice(TOPICS), dice.choice([None, f"id-{number}", f"id-{dice.randrange(20)}"])
    event = {"topic": topic, "data": {"n": number, "mark": space.marker}, **({"id": id} if id else {})}
    answer = await space.ask("POST", "/v1/events", event)
    is_new = id not in space.ids
    assert answer.json["accepted"] == int(is_new), "the id of another tenant makes no duplicate"
    if is_new:
        space.events.append((topic, number))
        space.ids |= {id} if id else set()


async def poll(space: Space, others: list[Space], dice: random.Random, number: int) -> None:
    """Take all from the beginning, by a pattern."""
    pattern = dice.choice(PATTERNS)
    query = [("topic", pattern), ("cursor", "earliest"), ("limit", "1000")]
    answer = space.check(await fetch(space.address, "/v1/events", query, [bearer(space.text)]))
    found = [each for each in answer.json["events"] if not each["topic"].startswith("requests.")]
    assert [(each["topic"], each["data"]["n"]) for each in found] == space.wanted(pattern)


async def hand_in(space: Space, others: list[Space], dice: random.Random, number: int) -> None:
    """Hand a request in, by a key that others use as well; theirs are not there."""
    key = ("Idempotency-Key", f"key-{dice.randrange(5)}")
    answer = await call(
        space.address, "POST", "/v1/requests/reports", space.text, {"of": space.marker}, [key]
    )
    assert space.check(answer).status == 202
    token = answer.json["token"]
    assert all(token not in other.requests for other in others), "a key of another tenant's is its own"
    space.requests.append(token)
    for other in others:
        assert (await other.ask("GET", f"/v1/requests/{token}")).status == 404
        services = (await other.ask("GET", "/v1/services")).json
        assert services == {"services": [{"service": "reports"}]}, "how much others asked for is theirs"
    assert (await space.ask("GET", f"/v1/requests/{token}")).status == 200


async def hook(space: Space, others: list[Space], dice: random.Random, number: int) -> None:
    """Make or remove a webhook; each sees its own, but for the common space there is only the common."""
    if space.webhooks and dice.random() < 0.5:
        id = space.webhooks.pop()
        assert (await space.ask("DELETE", f"/v1/webhooks/{id}")).status == 204
        for other in others:
            assert (await other.ask("DELETE", f"/v1/webhooks/{id}")).status == 404, "as it was before"
        assert (await space.ask("DELETE", f"/v1/webhooks/{id}")).status == 204
    else:
        wanted = {"url": "http://127.0.0.1:8080/", "topics": ["never.#"], "description": space.marker}
        answer = await space.ask("POST", "/v1/webhooks", wanted)
        assert (answer.status, answer.json["topics"]) == (201, ["never.#"])
        space.webhooks.add(answer.json["id"])
        for other in others:
            for method in ("GET", "DELETE"):
                assert (await other.ask(method, f"/v1/webhooks/{answer.json['id']}")).status == 404
    listed = await space.ask("GET", "/v1/webhooks?limit=1000")
    assert {each["id"] for each in listed.json["webhooks"]} == space.webhooks
    found, page = [], ""
    while True:
        listed = await space.ask("GET", f"/v1/webhooks?limit=1{page}")
        found += [each["id"] for each in listed.json["webhooks"]]
        if "next" not in listed.json:
            break
        page = f"&page={listed.json['next']}"
        assert len(found) < len(space.webhooks), "a page led on to what is not theirs"
    assert sorted(found) == sorted(space.webhooks)


async def remember(space: Space, others: list[Space], dice: random.Random, number: int) -> None:
    """Have a place remembered under a name that all use; each finds its own."""
    here = (await space.ask("GET", "/v1/events?topic=%23")).json["cursor"]
    headers = [bearer(space.text)]
    async with open_subscriber(space.address, "websocket", consumer="mine", headers=headers) as reader:
        answer = await reader.ask({"op": "ack", "cursor": here})
        assert answer["control"] == "acked"
    async with open_subscriber(
        space.address, "websocket", consumer="mine", headers=headers, welcomed=False
    ) as reader:
        assert (await reader.control("welcome"))["cursor"] == here


STEP: Final[list[Callable[[Space, list[Space], random.Random, int], Awaitable[None]]]] = [
    publish, publish, publish, publish, poll, hand_in, hook, remember,
]  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2])
async def test_tenants_on_a_walk(seed: int) -> None:
    """Whatever they do, with the same names, ids and topics; streams of each transport listen meanwhile."""
    dice = random.Random(seed)  # the same walk each time
    with GatewayProcess(environ=ENVIRON, services="reports", webhooks_allow="127.0.0.0/8") as gateway:
        spaces = [Space(name, address_of(gateway)) for name in SPACES]
        async with AsyncExitStack() as stack:
            for space in spaces:
                for transport in STREAMS:
                    opening = open_subscriber(space.address, transport, "#", headers=[bearer(space.text)])
                    space.readers.append((transport, await stack.enter_async_context(opening)))
            for number in range(STEPS):
                space = dice.choice(spaces)
                others = [each for each in spaces if each is not space]
                await dice.choice(STEP)(space, others, dice, number)
            assert all(len(space.events) > STEPS // 20 for space in spaces)
            for space in spaces:
                for _, reader in space.readers:
                    found: list[tuple[str, int]] = []
                    async with asyncio.timeout(20):
                        while len(found) < len(space.events):
                            message = await reader.next()
                            space.check_text(json.dumps(message))
                            if "control" not in message and not message["topic"].startswith("requests."):
                                found.append((message["topic"], message["data"]["n"]))
                    assert found == space.events
