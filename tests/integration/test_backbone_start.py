"""Starting on a broker: what waiting may change is waited for, and said; anything else ends the start."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.accounts import until
from tests.support.clients import Address, fetch
from tests.support.rabbitmq import Broker, accepts
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as node:
        yield node


async def test_a_gateway_waits_for_its_broker() -> None:
    """Without a broker a gateway says that it is not ready and why; it begins when the broker is there."""
    with ExitStack() as stack:
        broker = Broker()
        stack.callback(broker.close)
        gateway = GatewayProcess(backbone=broker.url)
        stack.push(gateway)
        gateway.launch()
        address = Address(gateway.host, gateway.port)
        await until(lambda: accepts(gateway.port), "the gateway listens")
        ready = await fetch(address, "/readyz")
        assert ready.status == 503
        assert "cannot be reached" in str(ready.json)
        assert (await fetch(address, "/healthz")).status == 200
        refused = await fetch(address, "/v1/events?topic=a")
        assert refused.status == 503
        assert int(refused.head["retry-after"]) > 0
        await asyncio.to_thread(broker.start)
        await until(lambda: "backbone.began" in gateway.log_text(), "the gateway begins")
        assert (await gateway.apublish({"topic": "a", "data": 1}))["accepted"] == 1
        assert (await fetch(address, "/readyz")).status == 200


async def test_a_wrong_password_ends_the_start(broker: Broker) -> None:
    """A gateway whose password is wrong ends at once, with one sentence and no traceback."""
    with ExitStack() as stack:
        gateway = GatewayProcess(backbone=broker.url.replace(":guest@", ":hush@"))
        stack.push(gateway)
        gateway.launch()
        assert await asyncio.to_thread(gateway.wait) == 1
        said = gateway.log_text()
    assert said.startswith("sluice: the broker at ")
    assert "wrong name or password" in said
    assert said.count("\n") == 1
    assert "hush" not in said
