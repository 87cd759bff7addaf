"""One connection to any of several addresses: whoever comes first, and nothing left of the others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from tests.support.receiver import until
from webhooks import dial as module
from webhooks.dial import alternating, dial

SLOW, FAST, LATE = "192.0.2.1", "192.0.2.2", "192.0.2.3"


class Network:
    """
    Stands for the kernel: a connection to each address that is let through.

    Attributes:
        sockets: that were connected.
        ending: what a try waits for that was cancelled.
    """

    def __init__(self) -> None:
        self.sockets: dict[str, socket.socket] = {}
        self.through = {address: asyncio.Event() for address in (SLOW, FAST, LATE)}
        self.ending = asyncio.Event()
        self.ending.set()

    async def connect(self, address: str, port: int) -> socket.socket:
        try:
            await self.through[address].wait()
        except asyncio.CancelledError:
            await self.ending.wait()
            if not self.through[address].is_set():
                raise
        self.sockets[address] = socket.socket()
        return self.sockets[address]

    def open(self) -> list[str]:
        """Return the addresses that there are connections to."""
        return [address for address, sock in self.sockets.items() if sock.fileno() >= 0]


@pytest.fixture
async def network(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Network]:
    """Yield a network; addresses are tried without waiting for one another."""
    network = Network()
    monkeypatch.setattr(module, "_connect", network.connect)
    monkeypatch.setattr(module, "NEXT_SECONDS", 0.001)
    yield network
    for sock in network.sockets.values():
        sock.close()


async def test_the_first_connection_wins(network: Network) -> None:
    """Whichever address takes a connection first is used."""
    network.through[FAST].set()
    sock = await dial([SLOW, FAST, LATE], 80)
    assert sock is network.sockets[FAST]
    assert network.open() == [FAST]


async def test_a_second_connection_is_closed(network: Network) -> None:
    """A connection that is made when there is one already is closed."""
    network.ending.clear()
    network.through[FAST].set()
    task = asyncio.create_task(dial([SLOW, FAST], 80))
    await until(lambda: FAST in network.sockets, "nothing connects")
    network.through[SLOW].set()
    network.ending.set()
    assert await task is network.sockets[FAST]
    assert network.open() == [FAST]


async def test_whoever_gives_up_leaves_nothing(network: Network) -> None:
    """Cancelled when there is a connection already, but before anybody has it, that is closed."""
    network.ending.clear()
    network.through[FAST].set()
    task = asyncio.create_task(dial([SLOW, FAST], 80))
    await until(lambda: FAST in network.sockets, "nothing connects")
    task.cancel()
    network.ending.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert network.open() == []


@pytest.mark.parametrize(
    ("found", "tried"),
    [
        (["1.1.1.1"], ["1.1.1.1"]),
        (["1.1.1.1", "1.1.1.2", "1::1", "1::2"], ["1.1.1.1", "1::1", "1.1.1.2", "1::2"]),
        (["1::1", "1::2", "1::3", "1.1.1.1"], ["1::1", "1.1.1.1", "1::2", "1::3"]),
    ],
)
def test_families_take_turns(found: list[str], tried: list[str]) -> None:
    """IPv4 and IPv6 take turns, beginning with what the system prefers: one may lead nowhere."""
    assert alternating(found) == tried
