"""Clients that follow the log whatever happens to replicas and broker, and the account of what they got."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from tests.support.clients import Address, Closed, Ended, Refused, open_subscriber
from tests.support.server import GatewayFailed

TRANSPORTS: Final = ("sse", "ndjson", "websocket", "longpoll")
BATCH: Final = 50
DEADLINE: Final = 60.0
"""Seconds for whatever is waited for."""


class Follower:
    """
    One client, which reconnects with its cursor, each time to the next replica.

    Args:
        addresses: of the replicas.
        transport: how it reads.
        topic: what it reads.
    """

    def __init__(self, addresses: Sequence[Address], transport: str, topic: str) -> None:
        self.transport = transport
        self.cursor = "earliest"
        self.data: list[Any] = []
        self.cursors: list[str] = []
        self.gaps: list[dict[str, Any]] = []
        self.connects = 0
        self._addresses = list(addresses)
        self._topic = topic

    async def run(self, last: Any) -> None:
        """Follow until the event with the data `last` has come."""
        extra: dict[str, Any] = {"wait": "5"} if self.transport == "longpoll" else {}
        while not self.data or self.data[-1] != last:
            address = self._addresses[self.connects % len(self._addresses)]
            self.connects += 1
            try:
                async with open_subscriber(
                    address, self.transport, self._topic, cursor=self.cursor, **extra
                ) as client:
                    client.cursor = self.cursor
                    while not self.data or self.data[-1] != last:
                        if not self._take(await client.next()):
                            break
            except (Ended, Closed, Refused, OSError, TimeoutError, EOFError):
                await asyncio.sleep(random.uniform(0.05, 0.3))

    def _take(self, message: dict[str, Any]) -> bool:
        """Take a message; return whether the connection goes on."""
        if message.get("control") == "gap":
            self.gaps.append(message)
            self.cursor = message["to"]
        elif "control" in message:
            return message["control"] not in ("reconnect", "error")
        else:
            self.data.append(message["data"])
            self.cursors.append(message["cursor"])
            self.cursor = message["cursor"]
        return True


class Publisher(Protocol):
    """Where events can be published: a replica, or what stands before it."""

    async def apublish(self, *events: Mapping[str, Any]) -> dict[str, Any]:
        """Publish in one request; raises GatewayFailed or OSError."""


async def publish_all(gateways: Sequence[Publisher], topic: str, numbers: range, pause: float) -> int:
    """
    Publish each number once, in order, whatever happens; the same ids again where there was no answer.

    Returns:
        How often it had to ask again.
    """
    again = 0
    for begin in range(numbers.start, numbers.stop, BATCH):
        batch = [
            {"topic": topic, "data": number, "id": f"{topic}-{number}"}
            for number in range(begin, min(begin + BATCH, numbers.stop))
        ]
        turn = begin // BATCH
        while True:
            gateway = gateways[turn % len(gateways)]
            try:
                await gateway.apublish(*batch)
                break
            except (GatewayFailed, OSError) as error:
                if "answered 4" in str(error):
                    raise
                again += 1
                turn += 1
                await asyncio.sleep(0.2)
        await asyncio.sleep(pause)
    return again


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"within {DEADLINE} s it did not happen that {what}"
        await asyncio.sleep(0.02)


def check_account(followers: Sequence[Follower], count: int) -> None:
    """Check that each got every event once, in order, with no gap, and all at the same places."""
    for each in followers:
        expected = list(range(count))
        assert each.data == expected, _difference(each, count)
        assert each.gaps == []
    places = {tuple(each.cursors) for each in followers}
    assert len(places) == 1, "the same event has different cursors"


def _difference(follower: Follower, count: int) -> str:
    lost = sorted(set(range(count)) - set(follower.data))
    twice = len(follower.data) - len(set(follower.data))
    order = sum(a >= b for a, b in zip(follower.data, follower.data[1:], strict=False))
    return f"{follower.transport}: lost {lost[:10]} ({len(lost)}), twice {twice}, out of order {order}"
