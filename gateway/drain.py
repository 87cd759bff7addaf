"""
The drain: how a replica goes away without anyone losing anything.

1. `/readyz` goes red, so that nobody new is sent here.
2. Every streaming client is told to reconnect, with its cursor and a time to wait, in waves spread over the
drain time. 3. Waiting polls are answered; what is being published becomes durable.
4. Then the server closes its sockets.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from fanout.closing import DRAINING

if TYPE_CHECKING:
    from gateway.streams import Streams

WAVES: Final = 20


class Waiting(Protocol):
    """Somebody who has clients wait for an answer."""

    def drain(self) -> None:
        """Answer all that wait now, and let none wait any more."""


class Drain:
    """
    Empties a replica.

    Args:
        streams: whose connections are sent away.
        waiting: those who have somebody wait for an answer, which is given now.
        seconds: over how long the connections are spread; 0 sends all at once.
        begins: called first.
    """

    def __init__(
        self, streams: Streams, waiting: Sequence[Waiting], seconds: float, begins: Callable[[], None]
    ) -> None:
        self.draining = False
        self._streams = streams
        self._waiting = waiting
        self._seconds = seconds
        self._begins = begins

    async def __call__(self, *, hurried: bool = False) -> None:
        """
        Drain; returns when the connections are gone, or were given the time to go.

        With connections it takes the whole drain time, however few they are: a load balancer is to see that
        the replica is not ready before the port is closed. `hurried` sends all away at once.
        """
        self.draining = self._streams.draining = True
        self._begins()
        sinks = list(self._streams.sinks)
        random.shuffle(sinks)
        waves = 1 if hurried or not sinks else WAVES
        for wave in range(waves):
            for sink in sinks[wave::waves]:
                sink.close(DRAINING)
            await asyncio.sleep(0 if waves == 1 else self._seconds / waves)
        for sink in list(self._streams.sinks):  # those that came meanwhile
            sink.close(DRAINING)
        for each in self._waiting:
            each.drain()
        # Bounded: the keepalive cuts off whoever does not go.
        while self._streams.goodbyes:  # noqa: ASYNC110  # an event would be a second record of the same fact
            await asyncio.sleep(0.02)
