"""
One TCP connection to any of several addresses (RFC 8305, "Happy Eyeballs").

The next address is tried when one has failed, or has not answered for a moment: an address that swallows
packets costs that moment and not the deadline.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from itertools import chain, zip_longest
from typing import Final

NEXT_SECONDS: Final = 0.25
"""After which the next address is tried as well (RFC 8305 section 5)."""
MAX_TRIED: Final = 6


async def dial(addresses: list[str], port: int) -> socket.socket:
    """
    Return a connection to the first of the addresses that takes one.

    Raises:
        OSError: none does; what is said of the one tried first.
    """
    if len(addresses) == 1:
        return await _connect(addresses[0], port)
    race = _Race()
    try:
        async with asyncio.TaskGroup() as group:
            tries = []
            for address in alternating(addresses)[:MAX_TRIED]:
                tries.append(group.create_task(race.enter(address, port)))
                await race.news(NEXT_SECONDS)
                if race.winner is not None:
                    break
            while race.winner is None and len(race.failures) < len(tries):
                await race.news(None)
            for each in tries:
                each.cancel()
    except BaseException:
        if race.winner is not None:
            race.winner.close()
        raise
    if race.winner is None:
        raise race.failures[0]
    return race.winner


def alternating(addresses: list[str]) -> list[str]:
    """Return addresses so that the families take turns, that of the first one first (RFC 8305 section 4)."""
    first = ":" in addresses[0]
    same = [address for address in addresses if (":" in address) == first]
    other = [address for address in addresses if (":" in address) != first]
    return [address for address in chain(*zip_longest(same, other)) if address is not None]


class _Race:
    """Several tries at a time: the first connection wins, and later ones are closed."""

    def __init__(self) -> None:
        self.winner: socket.socket | None = None
        self.failures: list[OSError] = []
        self._news = asyncio.Event()

    async def enter(self, address: str, port: int) -> None:
        """Try one address."""
        try:
            sock = await _connect(address, port)
        except OSError as error:
            self.failures.append(error)
        else:
            if self.winner is None:
                self.winner = sock
            else:
                sock.close()
        self._news.set()

    async def news(self, seconds: float | None) -> None:
        """Wait until one of the tries has ended since the last call, or for so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()


async def _connect(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock
