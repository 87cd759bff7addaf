"""
What all streaming connections share: the hub they belong to, the feeder that helps them catch up, and a
record of who is full, who is closing and why each one ended.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from fanout.catchup import CatchUp
from fanout.closing import LOST, CloseReason
from fanout.connection import Connection, Signal, Sink, State
from fanout.hub import Hub
from gateway.feeder import Feeder

RETRY_MS: Final = (500, 3000)
"""
Between these a client is told to wait before it reconnects, each another time, so that they do not all come
at once.
"""

GOODBYE_SECONDS: Final = 5.0
"""How long a client that was told goodbye may take to read it."""

logger = logging.getLogger(__name__)


class StreamSink(Sink, Protocol):
    """A sink that this module can watch and end."""

    connection: Connection | None

    full: bool

    def send(self, data: bytes) -> None:
        """Write a control frame, also while full."""

    def heartbeat(self, frame: bytes, head: int) -> bool:
        """
        Send a sign of life that moves the cursor to `head`; return False if the peer gave none since the
        last.
        """

    def abort(self) -> None:
        """Drop the connection now."""

    def progress(self) -> object:
        """Return something that changes when the peer takes bytes."""

    def check_drained(self) -> bool:
        """Notice a buffer that emptied unreported; return whether to look again."""


class Streams:
    """
    The streaming connections of a replica.

    Args:
        hub: gives them events.
        catchup: decides what one that is behind gets.
        feeder: gives that time.
    """

    def __init__(self, hub: Hub, catchup: CatchUp, feeder: Feeder) -> None:
        self.hub = hub
        self.catchup = catchup
        self.feeder = feeder
        self.sinks: dict[StreamSink, None] = {}  # all that are open
        self.fulls: dict[
            StreamSink, tuple[object, float]
        ] = {}  # who does not read: its progress, and since when it stands still
        self.goodbyes: dict[StreamSink, float] = {}  # who was told goodbye: until when it may take that
        self.ended: Counter[str] = Counter()  # close reason -> how many
        self.opened = 0
        self.draining = False  # nobody new is let in
        self.turned_away = 0  # because there were too many, not because of a drain
        self.closed: Callable[[object], None] = lambda _: None  # told each transport that is gone
        self.left: Callable[[object], None] = lambda _: None  # told each sink whose transport is gone
        self._unsure: list[StreamSink] = []

    # --- coming and going -----------------------------------------------------------------------------------

    def open(
        self,
        sink: StreamSink,
        connection: Connection,
        patterns: Iterable[str],
        position: int,
        greeting: bytes,
    ) -> None:
        """
        Begin to serve a connection that has everything up to `position`.

        Args:
            sink: its sink.
            connection: it.
            patterns: what it is subscribed to.
            position: where it begins.
            greeting: the first bytes on its wire; once the client has them, it misses nothing.
        """
        sink.connection = connection
        self.sinks[sink] = None
        self.opened += 1
        sink.send(greeting)
        self.hub.attach(connection, patterns, position, full=sink.full)
        self.wake(connection)

    def wake(self, connection: Connection) -> None:
        """Have a connection fed if it is drained and behind."""
        if connection.state is State.CATCHING_UP:
            self.feeder.wake(connection)

    def lost(self, sink: StreamSink) -> None:
        """A sink's transport is closed: the connection is over."""
        if sink in self.sinks:
            self._end(sink, LOST)
        self.fulls.pop(sink, None)
        self.goodbyes.pop(sink, None)
        self.left(sink)

    def closing(self, sink: StreamSink, reason: CloseReason, patience: float = GOODBYE_SECONDS) -> None:
        """A sink said goodbye: nothing more is written to it, and after `patience` seconds it is cut off."""
        if sink in self.sinks:
            self._end(sink, reason)
        self.fulls.pop(sink, None)
        self.goodbyes[sink] = asyncio.get_running_loop().time() + patience

    def abort(self, sink: StreamSink, reason: CloseReason) -> None:
        """Cut a connection off."""
        if sink in self.sinks:
            self._end(sink, reason)
        sink.abort()

    def _end(self, sink: StreamSink, reason: CloseReason) -> None:
        del self.sinks[sink]
        self.ended[reason.name] += 1
        connection = sink.connection
        if connection is not None:
            logger.debug("connection.ended: %s %s", connection.name, reason.name)
            self.hub.detach(connection)

    # --- full and drained -----------------------------------------------------------------------------------

    def full(self, sink: StreamSink) -> None:
        """A sink cannot take more: watch that its peer makes progress."""
        self.fulls[sink] = (None, asyncio.get_running_loop().time())
        self.check_soon(sink)

    def drained(self, sink: StreamSink) -> None:
        """A sink's buffer is empty again."""
        self.fulls.pop(sink, None)
        connection = sink.connection
        if connection is not None and connection.state is State.PAUSED:
            connection.fire(Signal.DRAINED)
            self.feeder.wake(connection)

    def check_soon(self, sink: StreamSink) -> None:
        """
        Look in the loop's next turn whether a sink has drained: a transport reports only buffers that it
        reported full.
        """
        if not self._unsure:
            asyncio.get_running_loop().call_soon(self._check)
        self._unsure.append(sink)

    def _check(self) -> None:
        unsure, self._unsure = self._unsure, []
        for sink in unsure:
            if sink.check_drained():
                self.check_soon(sink)

    def count_gap(self, connection: Connection, reason: str) -> None:
        """A connection does not begin where its cursor is, and is told so."""
        connection.gaps += 1
        self.catchup.gaps[reason] += 1

    # --- what a connection is told --------------------------------------------------------------------------

    def cursor_of(self, connection: Connection | None) -> str:
        """Return the cursor a connection has reached."""
        window = self.hub.window
        return window.cursor(window.head if connection is None else self.hub.position(connection))

    @staticmethod
    def retry_ms() -> int:
        """Return how long one client is to wait before it reconnects."""
        return random.randint(*RETRY_MS)  # spreads load, protects nothing
