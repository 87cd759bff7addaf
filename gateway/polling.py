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
from fanout.closing import EXPIRED, REVOKED, CloseReason
from fanout.connection import Connection
from fanout.event import Event
from fanout.frames import Wire
from fanout.hub import Hub
from fanout.selection import Selection
from fanout.window import Limits
from gateway.auth.caller import Caller, caller_of, unauthorized
from gateway.log import Log, LogDamaged, LogError
from gateway.problems import Problem, unreadable
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
    place: Place
    more: bool
    gap: bytes | None


class Waiter:
    """The sink of a long poll: anything that happens wakes the request."""

    full = False

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.woken = asyncio.Event()
        self.reason: CloseReason | None = None

    def write(self, data: bytes) -> bool:  # the request reads the window itself, by its cursor
        """There is an event."""
        self.woken.set()
        return True

    def close(self, reason: CloseReason) -> None:
        """Answer now: the replica is going away, or who asked is not known any more."""
        self.reason = reason
        self.woken.set()


class Poller:
    """
    Answers polls.

    Args:
        streams: the hub to wait at.
        log: read where the window does not reach.
        retry_after: seconds after which a client that found nothing is advised to poll again.
        name: what the names of waiting polls begin with.
    """

    def __init__(self, streams: Streams, log: Log, retry_after: float, name: str = "poll") -> None:
        self.hub: Hub = streams.hub
        self.waiters: dict[Waiter, None] = {}
        self._log = log
        self._retry_after = max(1, round(retry_after))
        self._name = name
        self._names = 0
        self._draining = False

    async def answer(
        self, request: Request, place: Place, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """
        Answer one poll.

        Raises:
            Problem: the log could not be read, or became another one meanwhile.
        """
        selection = Selection(request.patterns)
        restarts = self.hub.window.restarts
        deadline = time.monotonic() + request.wait
        try:
            answer = await self._collect(selection, place, request.limit)
            while (
                not (answer.frames or answer.gap or self._draining)
                and (left := deadline - time.monotonic()) > 0
            ):
                if not answer.more:
                    position = answer.place.position
                    if not await self._wait(request, position, left, receive, caller_of(scope)):
                        break
                answer = await self._collect(selection, answer.place, request.limit)
        except LogError as error:
            raise unreadable(error) from error
        if (
            self.hub.window.restarts != restarts
        ):  # its place means nothing here; asked again, its cursor is told so
            raise Problem(503, "the log is another one now; ask again with your cursor", retry_after=1)
        await self._send(answer, request, send)

    def drain(self) -> None:
        """Have every waiting poll answered now, and none wait any more."""
        self._draining = True
        for waiter in list(self.waiters):
            waiter.woken.set()

    async def _collect(self, selection: Selection, place: Place, limit: int) -> Answer:
        """Take what `selection` picks behind `place`, at most `limit` events, from log and window."""
        window = self.hub.window
        gap = None
        if place.reset is not None:
            begin = Place(place.position, cursor=place.reset)
            gap, place = self._gap(place.reason, begin, place.position)
        frames: list[bytes] = []
        size = 0
        more = True
        while more and len(frames) < limit and size < MAX_ANSWER_BYTES:
            limits = Limits(limit - len(frames), MAX_ANSWER_BYTES - size, time.time_ns() // 1_000_000)
            if place.position >= window.floor:
                stretch = window.read(selection, Wire.JSON, place.position, limits)
                place, more = Place(stretch.upto), stretch.more
                if more and not stretch.frames:
                    await asyncio.sleep(0)  # a long stretch without a match must not hold up the others
            else:
                lost, events = await self._read_log(place)
                if lost is not None:
                    if frames or gap is not None:
                        break  # the next poll is told
                    gap, place = self._gap("expired", place, lost)
                elif not events:
                    place = Place(window.floor)  # there never was anything
                if not events:
                    continue
                end = events[-1].position
                stretch = window.read_stored(events, selection, Wire.JSON, limits, end)
                last = next(event for event in reversed(events) if event.position <= stretch.upto)
                place = Place(stretch.upto, cursor=window.cursor_of(last))
            frames += stretch.frames
            size += sum(map(len, stretch.frames))
        return Answer(frames, place, more and place.position < window.head, gap)

    async def _read_log(self, place: Place) -> tuple[int | None, list[Event]]:
        """
        Read the log behind `place`, where the window does not reach.

        Returns:
            The position up to which what was asked for is lost, if it is, or else the events there.
        """
        window = self.hub.window
        if place.position + 1 >= self._log.first:
            try:
                events = await self._log.read(place.position, BLOCK_BYTES)
            except LogDamaged as error:
                if error.last is None:
                    raise
                return error.last, []
            if place.position + 1 >= self._log.first:
                return None, events
        return min(self._log.first - 1, window.floor), []  # retention took it, perhaps just now

    def _gap(self, reason: str, place: Place, end: int) -> tuple[bytes, Place]:
        return gap_members(reason, self._text(place), self.hub.window.cursor(end)), Place(end)

    def _text(self, place: Place) -> str:
        return place.cursor or self.hub.window.cursor(place.position)

    async def _wait(
        self, request: Request, position: int, seconds: float, receive: Receive, caller: Caller
    ) -> bool:
        """
        Wait until something matching comes behind `position`, or the time is over; return whether the client
        is still there.

        Also at the end of the time it is worth looking: the cursor of a quiet topic moves along with the log.

        Raises:
            Problem: 401, who asked is not known any more.
        """
        if position < self.hub.window.head:
            return True
        waiter = Waiter()
        self._names += 1
        connection = Connection(f"{self._name}-{self._names}", waiter, Wire.JSON, key=request.key)
        waiter.connection = connection
        connection.caller = caller
        self.hub.attach(connection, request.patterns, position)
        self.waiters[waiter] = None
        gone = asyncio.ensure_future(disconnected(receive))
        woken = asyncio.ensure_future(waiter.woken.wait())
        try:
            await asyncio.wait((gone, woken), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if waiter.reason in (EXPIRED, REVOKED):
                raise unauthorized(given=True)
            return not gone.done()
        finally:
            del self.waiters[waiter]
            self.hub.detach(connection)
            for task in (gone, woken):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _send(self, answer: Answer, request: Request, send: Send) -> None:
        cursor = self._text(answer.place).encode()
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


async def disconnected(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
