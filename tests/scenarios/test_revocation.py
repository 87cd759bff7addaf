"""A subject is revoked on one of three replicas: its connections end everywhere and soon, and no others."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Final

import pytest

from tests.support.bearer import ENVIRON, bearer, call, fresh, revoke
from tests.support.clients import STREAMS, Address, Refused, open_subscriber
from tests.support.host import address_of
from tests.support.postgres import Postgres
from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess

pytestmark = [pytest.mark.scenario, pytest.mark.alone, pytest.mark.timeout(300)]

REVOKED: Final = 1_000
OTHERS: Final = 200
WITHIN: Final = 2.0
"""Seconds in which all connections of the subject have to be closed, as docs/security.md promises."""
AT_ONCE: Final = 50
"""Connections that are opened at the same time."""


@pytest.fixture(scope="module")
def replicas() -> Iterator[list[GatewayProcess]]:
    """Three replicas on one broker and one store."""
    with ExitStack() as stack:
        broker, server = stack.enter_context(Broker()), stack.enter_context(Postgres())
        settings: dict[str, Any] = {
            "backbone": broker.url,
            "stream": "revocation",
            "exchanges": "revocation:#",
            "store": server.make(),
            "heartbeat_seconds": 60,  # who watches for the end alone answers no pings
        }
        three = [GatewayProcess(environ=ENVIRON, **settings) for _ in range(3)]
        for each in three:
            stack.callback(each.close)
            each.launch()
        for each in three:
            each.wait_ready()
        yield three


class Crowd:
    """
    Connections of some subject, spread over replicas and transports.

    Args:
        text: the token of all.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.readers: list[tuple[str, Any]] = []
        self.ends: list[float] = []
        self.reasons: Counter[str] = Counter()
        self._stack = AsyncExitStack()

    async def open(self, addresses: list[Address], number: int) -> None:
        """Open so many, each with its welcome."""
        places = itertools.cycle(itertools.product(addresses, STREAMS))
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(address: Address, transport: str) -> None:
            async with gate:
                opening = open_subscriber(address, transport, "news", headers=[bearer(self.text)])
                self.readers.append((transport, await self._stack.enter_async_context(opening)))

        await asyncio.gather(*(one(*place) for place in itertools.islice(places, number)))

    async def watch(self) -> None:
        """Note when each is closed by the gateway, and why."""

        async def one(transport: str, reader: Any) -> None:
            if transport == "websocket":
                closed = await reader.closed()
                reason = f"{closed.code} {closed.reason}"
            else:
                message = await reader.next()
                reason = f"{message['control']} {message['reason']}"
                await reader.end()
            self.ends.append(time.monotonic())
            self.reasons[reason] += 1

        await asyncio.gather(*(one(*each) for each in self.readers))

    async def close(self) -> None:
        await self._stack.aclose()


async def test_a_revoked_subject_is_out_everywhere_within_two_seconds(replicas: list[GatewayProcess]) -> None:
    """1,000 connections on three replicas and three transports end; others stay; nobody comes back."""
    addresses = [address_of(each) for each in replicas]
    grants: dict[str, Any] = {"subscribe": ["news"], "publish": ["news"]}
    lost, kept = Crowd(fresh(sub="lost", jti="t1", **grants)), Crowd(fresh(sub="kept", **grants))
    try:
        await lost.open(addresses, REVOKED)
        await kept.open(addresses, OTHERS)
        watching = asyncio.create_task(lost.watch())
        begun = time.monotonic()
        await revoke(addresses[0], subject="lost", reason="a drill")
        await asyncio.wait_for(watching, 60)
        took = max(lost.ends) - begun
        print(f"{len(lost.ends)} connections were closed within {took:.2f} s")
        assert len(lost.ends) == REVOKED
        assert set(lost.reasons) == {"3000 revoked", "error revoked"}
        assert took <= WITHIN

        for address, transport in itertools.product(addresses, STREAMS):
            with pytest.raises(Refused) as refused:
                async with open_subscriber(address, transport, "news", headers=[bearer(lost.text)]):
                    pass
            assert refused.value.response.status == 401
        assert (
            await call(addresses[1], "POST", "/v1/events", kept.text, {"topic": "news", "data": 1})
        ).status == 202
        assert [await reader.data(1) for _, reader in kept.readers] == [[1]] * OTHERS

        replicas[2].kill()
        await replicas[2].arestart()
        answer = await call(addresses[2], "GET", "/v1/events?topic=news", lost.text)
        assert answer.status == 401, "a restart forgets nothing"
    finally:
        await lost.close()
        await kept.close()


async def test_a_renewal_reaches_the_replica_that_has_the_connection(replicas: list[GatewayProcess]) -> None:
    """Handed in at another replica, it counts where the connection is; somebody else's does not."""
    first, second = address_of(replicas[0]), address_of(replicas[1])
    old, new = (
        fresh(-7, sub="ada", subscribe=["news"]),
        fresh(60, sub="ada", subscribe=["news"], publish=["news"]),
    )
    async with open_subscriber(first, "sse", "news", headers=[bearer(old)], welcomed=False) as reader:
        path = f"/v1/connections/{(await reader.control('welcome'))['connection']}/token"
        await reader.control("expiring")
        assert (await call(second, "POST", path, new, {"token": new})).status == 202
        await asyncio.sleep(5)  # the old one is over by then
        await call(second, "POST", "/v1/events", new, {"topic": "news", "data": 2})
        while "control" in (message := await reader.next()):
            assert message["control"] in ("expiring", "heartbeat")
        assert message["data"] == 2
    async with open_subscriber(
        first, "sse", "news", headers=[bearer(fresh(-7, sub="ada", subscribe=["news"]))], welcomed=False
    ) as reader:
        path = f"/v1/connections/{(await reader.control('welcome'))['connection']}/token"
        await reader.control("expiring")
        other = fresh(60, sub="bob", subscribe=["news"])
        assert (await call(second, "POST", path, other, {"token": other})).status == 202
        message = await reader.next()
        assert (message["control"], message["reason"]) == ("error", "expired")
