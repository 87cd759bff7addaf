"""Stand-ins that a test steers: a sink with a small buffer, and streams without an event loop behind them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from fanout.catchup import CatchUp
from fanout.closing import CloseReason
from fanout.connection import Connection, State
from fanout.event import Event, tag_of
from fanout.frames import LAST_CHUNK, Wire, websocket_close
from fanout.hub import Hub
from gateway.detached import goodbye
from gateway.feeder import Feeder
from gateway.streams import GOODBYE_SECONDS, Streams, StreamSink
from tests.support.readers import messages_in


def event_of(
    number: int,
    topic: str = "a",
    *,
    size: int = 0,
    time: int = 0,
    key: str | None = None,
    expires: int = 0,
    position: int = 0,
) -> Event:
    """Return event `number`: its id says so, and its data is a text of `size` characters."""
    members = f'"topic":"{topic}","id":"e{number}","type":"message","time":"2026-11-23T16:46:00.123Z",'
    members += f'"key":"{key}",' if key is not None else ""
    body = f'{members}"data":"{"x" * size}"'.encode()
    return Event(topic, body, time, tag_of(f"e{number}"), key, expires, position=position)


def copy_of(event: Event) -> Event:
    """Return the event as a log read anew gives it: an object of its own, without frames."""
    return Event(
        event.topic,
        event.body,
        event.time,
        event.tag,
        event.key,
        event.expires,
        event.given_id,
        event.position,
    )


@dataclass(frozen=True, slots=True)
class Moment:
    """
    How things stood when bytes were written: for checking them when they are read.

    Attributes:
        now: the time in ms.
        lost: events up to this position could not be had any more.
        floor: that of the window.
        live: whether the hub wrote them to a live connection.
    """

    now: int = 0
    lost: int = 0
    floor: int = 0
    live: bool = False


class FakeSink:
    """
    A sink with `room` bytes in its kernel; what does not fit stays in user space, and then it is full.

    It holds whoever writes to the contract of `Sink`: after False nothing but control frames until it has
    drained, nothing after the goodbye, and no write that asks user space to hold more than `most` bytes,
    unless it is one event alone.

    Args:
        streams: told when it drains and when it closes; None if the test does that.
        wire: of its connection.
        room: what the kernel takes.
        most: `buffer_bytes`.
        moment: how things stand now.
    """

    def __init__(
        self,
        streams: Streams | None,
        wire: Wire,
        room: int = 1 << 30,
        most: int = 1 << 30,
        moment: Callable[[], Moment] = Moment,
    ) -> None:
        self.connection: Connection | None = None
        self.full = False
        self.told_full = False  # whoever writes knows that it is
        self.reason: CloseReason | None = None  # why it said goodbye
        self.aborted = False
        self.room = room
        self.waiting = 0  # bytes that the peer has not taken
        self.writes = 0
        self._streams = streams
        self._wire = wire
        self._most = most
        self._moment = moment
        self._pending: deque[tuple[bytes, Moment]] = deque()

    def write(self, data: bytes) -> bool:
        assert not self.told_full, "written to although it said that it is full"
        assert self.reason is None, "written to behind the goodbye"
        assert data, "nothing was written"
        if len(data) > self._most:
            events = sum(message.kind == "event" for message in messages_in(self._wire, data))
            assert events == 1, f"{events} events with {len(data)} bytes at once, of {self._most} allowed"
        self.writes += 1
        self._take_in(data)
        self.told_full = self.full
        return not self.full

    def send(self, data: bytes) -> None:
        if self.reason is None:
            self._take_in(data)

    def _take_in(self, data: bytes) -> None:
        self._pending.append((data, self._moment()))
        self.waiting += len(data)
        self.full = self.full or self.waiting > self.room

    def close(self, reason: CloseReason) -> None:
        if self.reason is not None:
            return
        cursor = self._streams.cursor_of(self.connection) if self._streams else ""
        last = {Wire.SSE_CHUNKED: LAST_CHUNK, Wire.NDJSON_CHUNKED: LAST_CHUNK}.get(self._wire, b"")
        if self._wire in (Wire.WEBSOCKET, Wire.WEBSOCKET_DEFLATE):
            last = websocket_close(reason.code, reason.name)
        self.send(goodbye(self._wire, reason, cursor, 1000) + last)
        self.reason = reason
        if self._streams is not None:
            self._streams.closing(self, reason)

    def heartbeat(self, frame: bytes, head: int) -> bool:
        self.send(frame)
        return True

    def abort(self) -> None:
        self.aborted = True

    def progress(self) -> object:
        return self.waiting

    def check_drained(self) -> bool:
        return False

    # What the peer does.

    def take(self, count: int = 1 << 62) -> list[tuple[bytes, Moment]]:
        """Take up to `count` bytes off the wire, with the moments they were written at."""
        taken: list[tuple[bytes, Moment]] = []
        while self._pending and count > 0:
            data, moment = self._pending.popleft()
            if len(data) > count:
                self._pending.appendleft((data[count:], moment))
                data = data[:count]
            taken.append((data, moment))
            count -= len(data)
            self.waiting -= len(data)
        if self.full and self.waiting <= self.room:
            self.full = self.told_full = False
            if self._streams is not None:
                self._streams.drained(self)
        return taken

    def bytes_taken(self) -> bytes:
        """Take everything off the wire."""
        return b"".join(data for data, _ in self.take())


class StillStreams(Streams):
    """Streams that do nothing by themselves: whoever is to be fed is kept in `woken`."""

    def __init__(self, hub: Hub, catchup: CatchUp) -> None:
        super().__init__(hub, catchup, cast("Feeder", self))
        self.woken: list[Connection] = []

    def wake(self, connection: Connection) -> None:
        if connection.state is State.CATCHING_UP:
            self.woken.append(connection)

    def closing(self, sink: StreamSink, reason: CloseReason, patience: float = GOODBYE_SECONDS) -> None:
        if sink in self.sinks:
            self._end(sink, reason)


def at_once(coroutine: Any) -> Any:
    """Return the result of a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("it waits for something")
