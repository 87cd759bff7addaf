"""One AMQP connection for events, on a real broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.amqp.address import Address
from gateway.amqp.connecting import connect
from tests.support.rabbitmq import Broker
from tests.support.stream_logs import Deaf

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as node:
        yield node


async def test_channels_are_used_again(broker: Broker) -> None:
    """A connection opens channels one after the other without end, where a broker has 2,047 at a time."""
    address, listener = Address.parse(broker.url), Deaf()
    link = await connect(address, address.hosts[0], "test", listener)
    try:
        kept = await link.channel()
        for _ in range(2_100):
            channel = await link.channel()
            assert channel != kept
            await link.close_channel(channel)
        assert listener.lost is None
    finally:
        await link.close()
