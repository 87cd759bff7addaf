"""
The feeder: gives time to the connections that are catching up, a little at a time, so that live delivery
never waits for them.

Parts that the window holds are written in slices of a few milliseconds between other work of the loop. Older
parts are read from the log by one task, a block at a time, and every connection that stands inside a block is
fed from it: a thousand clients that come back together cost one scan, not a thousand.

Those who come back at different places share it too. Three blocks of four are read for whoever is furthest
behind: moving up from there takes along all others, where fair turns would read the rest of the log for each
place by itself. The fourth is for whoever is nearest to the window, so that a client that lacks little does
not wait for one that lacks everything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from operator import attrgetter
from typing import Final

from fanout.catchup import Block, CatchUp, Fed
from fanout.closing import LOG_FAILED
from fanout.connection import Connection, State
from gateway.log import Log, LogDamaged, LogError

SLICE_SECONDS: Final = 0.001
"""How long the feeder works before it lets the loop do other things."""

BLOCK_BYTES: Final = 256 * 1024
"""How much of the log is read at a time."""

NEAREST: Final = 4
"""Of so many blocks one is read for whoever is nearest to the window."""

logger = logging.getLogger(__name__)


_position = attrgetter("position")


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
        self._turn = 0
        self._restarts = 0

    def wake(self, connection: Connection) -> None:
        """A connection is drained and behind the head."""
        self._ready.append(connection)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._feed_ready)

    def backlog(self) -> int:
        """Return how many connections wait to be fed."""
        return len(self._ready) + len(self._waiting)

    def restart(self) -> None:
        """Forget what was read: the log became another one."""
        self._restarts += 1
        self._catchup.restart()

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
                await self._feed_from_log(self._choose())
                await asyncio.sleep(0)  # a block that the log has in memory takes no turn of the loop
            self._wanted.clear()

    def _choose(self) -> Connection:
        """Return whom to read for: mostly who is furthest behind, at times who is nearest to the window."""
        self._turn = (self._turn + 1) % NEAREST
        return (min if self._turn else max)(self._waiting, key=_position)

    async def _feed_from_log(self, chosen: Connection) -> None:
        """Read the block behind a connection's position, and feed it to everyone who stands inside it."""
        if chosen.state is not State.CATCHING_UP:
            del self._waiting[chosen]
            return
        block = await self._read(chosen)
        if block is not None:
            await self._feed_block(block, [each for each in self._waiting if block.holds(each.position)])

    async def _read(self, chosen: Connection) -> Block | None:
        """Return the block behind a connection's position; None if it has to be chosen anew."""
        position, restarts = chosen.position, self._restarts
        try:
            events = await self._log.read(position, BLOCK_BYTES)
        except LogDamaged as error:
            if chosen.position == position:  # it was not rewound meanwhile
                self._skip(chosen, error)
            return None
        except LogError as error:
            logger.warning("log.read_failed: position %d: %s", position, error)
            del self._waiting[chosen]
            chosen.sink.close(LOG_FAILED)
            return None
        if restarts != self._restarts:  # these are positions of the log that was
            return None
        if not events:  # retention overtook it
            self._leave(chosen)
            return None
        return Block(position, events)

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
