"""The soak of `make soak`, for twenty seconds: clients come and go under a steady load, and lack nothing."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess
from tests.support.soak import Soak

pytestmark = [pytest.mark.scenario, pytest.mark.alone, pytest.mark.timeout(300)]


async def test_clients_who_come_and_go_lack_nothing() -> None:
    """Two replicas, 60 clients on every transport, 800 events a second."""
    soak = Soak(seconds=20, rate=800, clients=60, sample_seconds=5)
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(niceness=0))
        replicas = [stack.enter_context(GatewayProcess(backbone=broker.url)) for _ in range(2)]
        result = await soak.run(replicas)
    print(f"soak: {result}")
    result.check()
    assert result.connections > 60
    assert not result.gaps
