"""Gateways in the test's own process that send webhooks to receivers of the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from gateway.app import Gateway
from gateway.settings import Settings
from tests.support.receiver import DEADLINE, Peer, Receiver, until, with_status
from webhooks.description import Description
from webhooks.keys import Keys
from webhooks.records import Delivery, Endpoint, Standing
from webhooks.service import Webhooks
from webhooks.signature import Scheme, parse_secret
from webhooks.stored import health_of, loaded, settings_of, since_of, status_of

ALLOW: Final = "127.0.0.0/8,::1"
KEYS: Final = Keys().completed([Scheme.V1], 0)


@asynccontextmanager
async def running(folder: Path | None = None, **settings: Any) -> AsyncIterator[Gateway]:
    """Run a gateway that may send to this machine; without a folder it keeps nothing."""
    data = "memory:" if folder is None else str(folder)
    gateway = Gateway(Settings(**{"data": data, "webhooks_allow": ALLOW, "drain_seconds": 0, **settings}))
    try:
        await gateway.start()
        yield gateway
    finally:
        await gateway.stop()


def hooks(gateway: Gateway) -> Webhooks:
    """Return the webhooks of a gateway that has some."""
    assert gateway.webhooks is not None
    return gateway.webhooks


async def added(gateway: Gateway, url: str, *topics: str, **members: Any) -> Endpoint:
    """Add an endpoint; all topics if none is given."""
    return await hooks(gateway).add(Description(url, topics or ("#",), **members), KEYS)


async def published(gateway: Gateway, topic: str, number: int, *, padding: int = 0, **members: Any) -> None:
    """Publish an event whose data is a number, which is its id as well, and so many bytes of nothing."""
    data = json.dumps(number).encode() + b" " * padding
    await gateway.intake.publish_one(topic, data, str(number), **members)


async def deliveries(
    gateway: Gateway, endpoint: Endpoint, standing: Standing | None = None
) -> list[Delivery]:
    """Return the deliveries of an endpoint, the oldest event first."""
    found = await hooks(gateway).store.list_deliveries(endpoint.id, standing, limit=10_000)
    return found[::-1]


async def stand(gateway: Gateway, endpoint: Endpoint, *expected: Standing) -> list[Delivery]:
    """Wait until the deliveries of an endpoint stand as they are expected to, in the order of events."""
    found: list[Delivery] = []
    for _ in range(int(DEADLINE / 0.01)):
        found = await deliveries(gateway, endpoint)
        if [each.standing for each in found] == list(expected):
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"expected {expected}, found {found}")


def numbers(receiver: Receiver) -> list[int]:
    """Return the data of the events that a receiver got, in the order in which they came."""
    return [json.loads(each.body)["data"] for each in receiver.requests]


async def got(receiver: Receiver, count: int) -> list[int]:
    """Wait until a receiver got so many requests; return the data of them."""
    await until(lambda: len(receiver.requests) >= count, f"only {len(receiver.requests)} of {count} came")
    return numbers(receiver)


def in_turn(*statuses: int) -> Callable[[Peer], Any]:
    """Return a script: answer with each status in turn, over all connections; the last repeats."""
    left = list(statuses)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(with_status(left.pop(0) if len(left) > 1 else left[0]))

    return script


async def changed(gateway: Gateway, endpoint: Endpoint, change: Callable[[Any], None]) -> Endpoint:
    """Change an endpoint as the API would."""
    store = hooks(gateway).store
    row = await store.find_endpoint(endpoint.id)
    assert row is not None
    runtime = loaded(row, lambda: 0.5, 0)
    change(runtime)
    found = await store.change_endpoint(
        row.id, row.revision, status_of(runtime), settings_of(runtime, since_of(row)), health_of(runtime)
    )
    assert found is not None
    hooks(gateway).look()
    return found


def secret_of(endpoint: Endpoint) -> str:
    """Return the secret that an endpoint's receiver verifies with."""
    (key,) = loaded(endpoint, lambda: 0.5, 0).keys.all
    assert parse_secret(key.secret.text).text == key.secret.text
    return key.secret.text
