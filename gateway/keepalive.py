"""
Keepalive: one timer for all connections.

Once a second it sends their share of the connections a heartbeat, aborts those that make no progress or do
not answer, and cuts off those that were told goodbye and do not go. A connection that is full or catching up
gets no
heartbeat: what it is waiting for proves it alive, or the lack of progress dead.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from fanout.closing import STALLED, UNRESPONSIVE
from fanout.connection import State
from fanout.frames import STREAM_WIRES, Wire, heartbeat_frame

if TYPE_CHECKING:
    from gateway.streams import Streams, StreamSink

TICK_SECONDS: Final = 1.0


class Keepalive:
    """
    Keeps connections alive and ends dead ones.

    Args:
        streams: the connections.
        heartbeat: seconds between two heartbeats of a quiet connection.
        stall_timeout: seconds without progress after which a connection that does not read is aborted.
    """

    def __init__(self, streams: Streams, heartbeat: float, stall_timeout: float) -> None:
        self._streams = streams
        self._heartbeat = heartbeat
        self._stall_timeout = stall_timeout
        self._round: deque[StreamSink] = deque()  # who is still due in this round
        self._round_ends = 0.0
        self._share = 0

    async def run(self) -> None:
        """Tick until cancelled."""
        tick = min(TICK_SECONDS, self._heartbeat / 4, self._stall_timeout / 4)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(tick)
            self.tick(loop.time(), tick)

    def tick(self, now: float, elapsed: float) -> None:
        """Do what is due at `now` (loop time, seconds), `elapsed` seconds after the tick before."""
        self._abort_stalled(now)
        self._cut_off(now)
        if now >= self._round_ends and not self._round:
            self._round.extend(self._streams.sinks)
            self._round_ends = now + self._heartbeat - elapsed / 2
            self._share = max(1, round(len(self._round) * elapsed / self._heartbeat))
        self._beat([self._round.popleft() for _ in range(min(self._share, len(self._round)))])
        milliseconds = time.time_ns() // 1_000_000
        self._streams.hub.window.evict(milliseconds)
        self._streams.catchup.forget(milliseconds)

    def _abort_stalled(self, now: float) -> None:
        streams = self._streams
        for sink, (before, since) in list(streams.fulls.items()):
            progress = sink.progress()
            if progress != before:
                streams.fulls[sink] = (progress, now)
            elif now - since >= self._stall_timeout:
                streams.abort(sink, STALLED)

    def _cut_off(self, now: float) -> None:
        for sink, until in list(self._streams.goodbyes.items()):
            if now >= until:
                del self._streams.goodbyes[sink]
                sink.abort()

    def _beat(self, due: list[StreamSink]) -> None:
        """Give each sink that is due a sign of life, if its connection is at the head."""
        window = self._streams.hub.window
        cursor = window.cursor(window.head)
        frames: dict[Wire, bytes] = {wire: heartbeat_frame(wire, cursor) for wire in STREAM_WIRES}
        for sink in due:
            connection = sink.connection
            if connection is None or connection.state is not State.LIVE or sink not in self._streams.sinks:
                continue
            if not sink.heartbeat(frames[connection.wire], window.head):
                self._streams.abort(sink, UNRESPONSIVE)
