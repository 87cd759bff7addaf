"""
Sticky routing without a load balancer: clients that belong to another replica are sent there.

Whoever asks for events is answered `307` to the owner of its key, or on a WebSocket told where to go; those
that are connected when that changes are told so too, in waves. Whoever was sent on says by which version of
the view, and is sent on again only by a later one: so replicas that see the ring differently cost a client a
detour, and never its events.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fanout.closing import MOVED, CloseReason

if TYPE_CHECKING:
    from gateway.members.replicas import Replicas
    from gateway.streams import Streams, StreamSink

log = logging.getLogger(__name__)

HOP: Final = "hop"
"""The parameter by which a request says that it was sent on, and by which version of the view."""

KNOWN_SECONDS: Final = 3.0
"""How long a replica that has just started may take to know the others, and whose pages they are."""

WAIT_SECONDS: Final = 2.0
"""How long a change is waited out before anybody is moved: replicas that restart come in a row."""

AGAIN_SECONDS: Final = 5.0
"""How often it is tried to move those whose replica was suspected, or has no address, when they came."""

PER_SECOND: Final = 200
"""Clients that are moved in a second, for a replica that takes them all at once."""

WAVE_SECONDS: Final = 0.25


class Sticky:
    """
    Keeps clients where they belong.

    Args:
        replicas: says where that is.
        streams: the connections.
    """

    def __init__(self, replicas: Replicas, streams: Streams) -> None:
        self.moved = 0  # connections that were told to go elsewhere when the ring changed
        self.sent_on = 0  # requests that were answered by where to go
        self._replicas = replicas
        self._streams = streams
        self._news = asyncio.Event()
        self._unsure = False  # whether somebody belongs to a replica that could not be told
        self._begun = time.monotonic()

    @property
    def version(self) -> int:
        """That of the view by which clients are sent on."""
        return self._replicas.membership.view.version

    def elsewhere(self, key: str | None, hop: int = 0) -> str:
        """
        Return the address of the replica that a key belongs to; empty if it is this one, or cannot be told.
        Workers of one port share its address: whichever of them takes a connection, it is there.

        Args:
            key: of the client; None if it belongs nowhere.
            hop: the version by which it was sent here; 0 if it was not.
        """
        if key is None or hop >= self.version:
            return ""
        route = self._replicas.route(key)
        if route.owner in (None, self._replicas.name) or route.url == self._replicas.url:
            return ""
        self._unsure |= not route.url
        return route.url

    async def knows(self, origin: str) -> bool:
        """
        Say whether an origin is a replica's. A browser turned away because a replica had not heard of the
        others yet would not come back, so whoever comes soon after the start waits.
        """
        while not self._replicas.admits(origin):
            if time.monotonic() > self._begun + KNOWN_SECONDS:
                return False
            await asyncio.sleep(0.1)
        return True

    def changed(self) -> None:
        """The ring may be another one."""
        self._news.set()

    async def run(self) -> None:
        """Move those who belong elsewhere, when the ring changes or it can be told where; until cancelled."""
        while True:
            try:
                async with asyncio.timeout(AGAIN_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                if not self._unsure:
                    continue
            await asyncio.sleep(WAIT_SECONDS)
            self._news.clear()
            self._unsure = False
            if self._streams.draining:
                return
            await self._move()

    async def _move(self) -> None:
        found = [sink for sink in self._streams.sinks if self._target(sink)]
        random.shuffle(found)
        size = max(1, round(PER_SECOND * WAVE_SECONDS))
        if found:
            log.info("members.moving", extra={"connections": len(found)})
        for start in range(0, len(found), size):
            for sink in found[start : start + size]:
                url = self._target(sink)  # asked again: the ring may have changed meanwhile
                if url and not self._streams.draining:
                    self.moved += 1
                    sink.close(self.moved_to(url))
            await asyncio.sleep(WAVE_SECONDS * random.uniform(0.5, 1.5))  # no secret

    def _target(self, sink: StreamSink) -> str:
        connection = sink.connection
        return "" if connection is None else self.elsewhere(connection.key)

    def moved_to(self, url: str) -> CloseReason:
        """Return the reason to close the connection of a client that belongs elsewhere."""
        return replace(MOVED, url=url, hop=self.version)
