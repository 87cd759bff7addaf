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
from typing import TYPE_CHECKING, Final

from fanout.closing import DRAINING

if TYPE_CHECKING:
    from gateway.polling import Poller
    from gateway.streams import Streams

WAVES: Final = 20


class Drain:
    """
    Empties a replica.

    Args:
        streams: whose connections are sent away.
        poller: whose waiting polls are answered.
        seconds: over how long the connections are spread; 0 sends all at once.
    """

    def __init__(self, streams: Streams, poller: Poller, seconds: float) -> None:
        self.draining = False
        self._streams = streams
        self._poller = poller
        self._seconds = seconds

    async def __call__(self) -> None:
        """Drain; returns when the connections are gone, or were given the time to go."""
        self.draining = self._streams.draining = True
        sinks = list(self._streams.sinks)
        random.shuffle(sinks)
        share = -(-len(sinks) // WAVES) or 1
        for begin in range(0, len(sinks), share):
            for sink in sinks[begin : begin + share]:
                sink.close(DRAINING)
            await asyncio.sleep(self._seconds / WAVES)
        for sink in list(self._streams.sinks):  # those that came meanwhile
            sink.close(DRAINING)
        self._poller.drain()
        # Bounded: the keepalive cuts off whoever does not go.
        while self._streams.goodbyes:  # noqa: ASYNC110  # an event would be a second record of the same fact
            await asyncio.sleep(0.02)
