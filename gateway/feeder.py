"""
The feeder: gives time to the connections that are catching up, a little at a time, so that live delivery
never waits for them.

Parts that the window holds are written in slices of a few milliseconds between other work of the loop. Older
parts are read from the log by one task, a block at a time, and every connection that stands inside a block is
fed from it: a thousand clients that come back together cost one scan, not a thousand.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Final

from fanout.catchup import Block, CatchUp, Fed
from fanout.closing import LOG_FAILED
from fanout.connection import Connection, State
from gateway.log import Log, LogDamaged, LogError

SLICE_SECONDS: Final = 0.001
"""How long the feeder works before it lets the loop do other things."""

BLOCK_BYTES: Final = 256 * 1024
"""How much of the log is read at a time."""

logger = logging.getLogger(__name__)


class Feeder:
    """
    Feeds connections in the state CATCHING_UP.

    Args:
        catchup: decides what each gets.
        log: where it is read when the window does not reach back far enough.
    """

    def __init__(self, catchup: CatchUp, log: Log) -> None:
        self._catchup = catchup
        self._log = log
        self._ready: deque[Connection] = deque()
        self._scheduled = False
        self._waiting: dict[Connection, None] = {}  # for a part of the log that the window does not have
        self._wanted = asyncio.Event()

    def wake(self, connection: Connection) -> None:
        """A connection is drained and behind the head."""
        self._ready.append(connection)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._feed_ready)

    def backlog(self) -> int:
        """Return how many connections wait to be fed."""
        return len(self._ready) + len(self._waiting)

    def _feed_ready(self) -> None:
        """Feed for one slice of time, in turns; then again in the loop's next turn if there is more to do."""
        end = time.monotonic() + SLICE_SECONDS
        now = time.time_ns() // 1_000_000
        while self._ready and time.monotonic() < end:
            connection = self._ready.popleft()
            if connection.state is not State.CATCHING_UP or connection in self._waiting:
                continue
            fed = self._catchup.feed(connection, now)
            if fed is Fed.MORE:
                self._ready.append(connection)
            elif fed is Fed.NEEDS_LOG:
                self._waiting[connection] = None
                self._wanted.set()
        self._scheduled = bool(self._ready)
        if self._ready:
            asyncio.get_running_loop().call_soon(self._feed_ready)

    async def run(self) -> None:
        """Read the log for those who wait for it. Runs until cancelled."""
        while True:
            await self._wanted.wait()
            while self._waiting:
                await self._feed_from_log(next(iter(self._waiting)))
                await asyncio.sleep(0)  # a block that the log has in memory takes no turn of the loop
            self._wanted.clear()

    async def _feed_from_log(self, oldest: Connection) -> None:
        """Read the block behind `oldest`'s position, and feed it to everyone who stands inside it."""
        if oldest.state is not State.CATCHING_UP:
            del self._waiting[oldest]
            return
        position = oldest.position
        try:
            events = await self._log.read(position, BLOCK_BYTES)
        except LogDamaged as error:
            if oldest.position == position:  # it was not rewound meanwhile
                self._skip(oldest, error)
            return
        except LogError as error:
            logger.warning("log.read_failed: position %d: %s", position, error)
            del self._waiting[oldest]
            oldest.sink.close(LOG_FAILED)
            return
        if not events:  # retention overtook it
            self._leave(oldest)
            return
        inside = [each for each in self._waiting if position <= each.position < events[-1].position]
        await self._feed_block(Block(position, events), inside)

    def _skip(self, connection: Connection, damage: LogDamaged) -> None:
        """A part of the log is lost: announce a gap and go on behind it, if it is known where that is."""
        logger.error("log.damaged: %s", damage)
        if connection.state is State.CATCHING_UP and damage.last is not None:
            if self._catchup.gap(connection, "expired", damage.last):
                return
        elif connection.state is State.CATCHING_UP:
            connection.sink.close(LOG_FAILED)
        del self._waiting[connection]

    async def _feed_block(self, block: Block, connections: list[Connection]) -> None:
        """
        Feed `connections` from one block, in turns and in slices of time, until each has all of it or is
        full.
        """
        end = time.monotonic() + SLICE_SECONDS
        turns = deque(connections)
        while turns:
            connection = turns.popleft()
            if connection.state is not State.CATCHING_UP:
                self._waiting.pop(connection, None)
                continue
            now = time.time_ns() // 1_000_000
            if connection.position >= self._catchup.hub.window.floor:
                self._leave(connection)
            else:
                fed = self._catchup.feed_stored(connection, block, now)
                if fed is Fed.MORE:
                    turns.append(connection)
                elif fed is Fed.NEEDS_LOG:
                    self._next_block(connection)
                else:
                    self._waiting.pop(connection, None)
            if time.monotonic() > end:
                await asyncio.sleep(0)
                end = time.monotonic() + SLICE_SECONDS

    def _next_block(self, connection: Connection) -> None:
        """A waiting connection has had its share of this block: to the end of the queue."""
        self._waiting[connection] = self._waiting.pop(connection)

    def _leave(self, connection: Connection) -> None:
        """A waiting connection goes back to being fed from the window."""
        del self._waiting[connection]
        self.wake(connection)
