"""
Poll and long poll: an ordinary request that takes what is behind its cursor, now or as soon as there is
something.

The client holds the cursor and the server nothing, so any replica can answer any poll. Every answer has the
next cursor, also an empty one, as `cursor` and as ETag.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Final

from starlette.types import Receive, Scope, Send

from fanout.catchup import gap_members
from fanout.closing import CloseReason
from fanout.connection import Connection
from fanout.frames import Wire
from fanout.hub import Hub
from fanout.selection import Selection
from fanout.window import Limits
from gateway.consumers import Consumers
from gateway.log import Log, LogError
from gateway.problems import Problem
from gateway.starts import Place
from gateway.streams import Streams
from gateway.subscription import Request

MAX_ANSWER_BYTES: Final = 1 << 20
"""Bytes of events in one answer; one larger event is answered alone."""

BLOCK_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What a poll found: the events' JSON, the position reached, whether there is more at once, and a gap
    before it all.
    """

    frames: list[bytes]
    position: int
    more: bool
    gap: bytes | None


class Waiter:
    """The sink of a long poll: anything that happens wakes the request."""

    full = False

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.woken = asyncio.Event()

    def write(self, data: bytes) -> bool:  # the request reads the window itself, by its cursor
        """There is an event."""
        self.woken.set()
        return True

    def close(self, reason: CloseReason) -> None:  # the answer is the same: the cursor
        """The replica is going away: answer now."""
        self.woken.set()


class Poller:
    """
    Answers polls.

    Args:
        streams: the hub to wait at.
        log: read where the window does not reach.
        consumers: a cursor that a poll hands in is acknowledged for its consumer.
        retry_after: seconds after which a client that found nothing is advised to poll again.
    """

    def __init__(self, streams: Streams, log: Log, consumers: Consumers, retry_after: float) -> None:
        self.hub: Hub = streams.hub
        self.waiters: dict[Waiter, None] = {}
        self._log = log
        self._consumers = consumers
        self._retry_after = max(1, round(retry_after))
        self._names = 0
        self._draining = False

    async def answer(
        self, request: Request, place: Place, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """
        Answer one poll.

        Raises:
            Problem: the log could not be read.
        """
        selection = Selection(request.patterns)
        at_head = request.start is None and request.consumer is None
        position = self.hub.window.head if at_head else place.position
        deadline = time.monotonic() + request.wait
        try:
            await self._acknowledge(request, place)
            answer = await self._collect(selection, position, place.reset, request.limit)
            while (
                not (answer.frames or answer.gap or self._draining)
                and (left := deadline - time.monotonic()) > 0
            ):
                if not answer.more and not await self._wait(request, answer.position, left, receive):
                    break
                answer = await self._collect(selection, answer.position, None, request.limit)
        except LogError as error:
            raise Problem(503, str(error), retry_after=1) from error
        await self._send(answer, request, send)

    def drain(self) -> None:
        """Have every waiting poll answered now, and none wait any more."""
        self._draining = True
        for waiter in list(self.waiters):
            waiter.woken.set()

    async def _acknowledge(self, request: Request, place: Place) -> None:
        """Handing in a cursor says that everything up to it has been dealt with."""
        if request.consumer is not None and request.start is not None and place.reset is None:
            await self._consumers.remember(request.consumer, self.hub.window.cursor(place.position))

    async def _collect(self, selection: Selection, position: int, reset: str | None, limit: int) -> Answer:
        """Take what `selection` picks behind `position`, at most `limit` events, from log and window."""
        window = self.hub.window
        gap = None
        if reset is not None:
            gap = gap_members("reset", reset, window.cursor(position))
        elif position < window.floor and position + 1 < self._log.first:
            reached = min(self._log.first - 1, window.floor)
            gap = gap_members("expired", window.cursor(position), window.cursor(reached))
            position = reached
        frames: list[bytes] = []
        size = 0
        more = True
        while more and len(frames) < limit and size < MAX_ANSWER_BYTES:
            limits = Limits(limit - len(frames), MAX_ANSWER_BYTES - size, time.time_ns() // 1_000_000)
            if position >= window.floor:
                stretch = window.read(selection, Wire.JSON, position, limits)
                more = stretch.more
                if more and not stretch.frames:
                    await asyncio.sleep(0)  # a long stretch without a match must not hold up the others
            else:
                events = await self._log.read(position, BLOCK_BYTES)
                if not events or position + 1 < self._log.first:
                    break  # retention overtook us: the next poll is told
                stretch = window.read_stored(events, selection, Wire.JSON, limits)
            frames += stretch.frames
            size += sum(map(len, stretch.frames))
            position = stretch.upto
        return Answer(frames, position, more and position < window.head, gap)

    async def _wait(self, request: Request, position: int, seconds: float, receive: Receive) -> bool:
        """Wait until something matching comes behind `position`; return whether it is worth looking."""
        if position < self.hub.window.head:
            return True
        waiter = Waiter()
        self._names += 1
        connection = Connection(f"poll-{self._names}", waiter, Wire.JSON)
        waiter.connection = connection
        self.hub.attach(connection, request.patterns, position)
        self.waiters[waiter] = None
        gone = asyncio.ensure_future(_disconnected(receive))
        woken = asyncio.ensure_future(waiter.woken.wait())
        try:
            await asyncio.wait((gone, woken), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self.waiters[waiter]
            self.hub.detach(connection)
            for task in (gone, woken):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        return waiter.woken.is_set()

    async def _send(self, answer: Answer, request: Request, send: Send) -> None:
        cursor = self.hub.window.cursor(answer.position).encode()
        headers = [
            (b"etag", b'"%b"' % cursor),
            (b"cache-control", b"no-store"),
            (b"vary", b"accept, authorization"),
            (b"retry-after", b"0" if answer.more else b"%d" % self._retry_after),
        ]
        if request.conditional and not answer.frames and answer.gap is None:
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body"})
            return
        gap = b',"gap":{%b}' % answer.gap if answer.gap is not None else b""
        more = b"true" if answer.more else b"false"
        body = b'{"events":[%b],"cursor":"%b","more":%b%b}\n' % (b",".join(answer.frames), cursor, more, gap)
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _disconnected(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
