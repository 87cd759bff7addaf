"""
Clients that follow the log whatever happens to replicas and broker, and an exact account of what each got.

A hundred clients of ten thousand events each are a million events to check, in the test's own process. All
clients of a wire get the same bytes, so each different frame is read strictly once, by
`tests.support.readers`, and is known from then on. What a client got is counted as it comes: nothing is kept
but the next number of each producer. So a scenario of a minute and a soak of an hour are accounted alike.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import random
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from fanout.cursor import Cursor
from fanout.frames import Wire
from tests.support.crowd import Head, Producer, Unavailable, masked_pong, read_head
from tests.support.readers import Message, ReadError, reader_of

WIRES: Final = {"websocket": Wire.WEBSOCKET, "sse": Wire.SSE_CHUNKED, "ndjson": Wire.NDJSON_CHUNKED}
TRANSPORTS: Final = (*WIRES, "longpoll", "poll")
DEADLINE: Final = 90.0
"""Seconds for whatever is waited for; generous, for a machine that does other things as well."""

ENDS: Final = {"sse": b"\n\n\r\n", "ndjson": b"\n\r\n"}
"""How a frame of a chunked body ends, and nothing else on that wire."""

KNOWN: Final = 50_000
"""Frames that are remembered; then they are read anew."""

READ_BYTES: Final = 1 << 18
POLL_SECONDS: Final = 0.1
"""Between two polls that do not wait."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An event as clients are shown it: the `number`th of its producer, which publishes to one topic."""

    cursor: str
    epoch: str
    place: int  # position and tag in one number, which sorts like the position
    producer: str
    number: int


class Ledger:
    """
    Where each event is: filled by whoever sees it first, and what the others see must agree.

    Attributes:
        places: by epoch and producer, the place of each of its numbers; 0 is not seen yet.
        differing: how often a client saw an event at another place than others did.
    """

    def __init__(self) -> None:
        self.places: dict[tuple[str, str], array[int]] = {}
        self.differing = 0
        self._known: dict[bytes, Seen] = {}

    def read(self, frame: bytes, parse: Callable[[bytes], Message]) -> Seen | Message:
        """Return what a frame shows: an event, or something else."""
        seen = self._known.get(frame)
        if seen is not None:
            return seen
        message = parse(frame)
        if message.kind != "event":
            return message
        return self._remember(frame, message.members)

    def read_item(self, item: bytes) -> Seen:
        """Return the event that an item of a poll's answer is."""
        return self._known.get(item) or self._remember(item, msgspec.json.decode(item))

    def _remember(self, frame: bytes, members: dict[str, Any]) -> Seen:
        cursor = Cursor.parse(members["cursor"])
        producer, number = members["data"][:2]
        seen = Seen(members["cursor"], cursor.epoch, cursor.position << 16 | cursor.tag, producer, number)
        places = self.places.setdefault((cursor.epoch, producer), array("Q"))
        if number >= len(places):
            places.extend([0] * (number + 1 - len(places)))
        places[number] = places[number] or seen.place
        if len(self._known) >= KNOWN:
            self._known.clear()
        self._known[frame] = seen
        return seen

    def due(self, epoch: str, producer: str, after: int, before: int) -> int:
        """Return the first of a producer's numbers below `before` that lies behind a position."""
        places = self.places.get((epoch, producer), array("Q"))
        return min(bisect_right(places, after << 16 | 0xFFFF, hi=min(len(places), before)), before)


@dataclass(slots=True)
class Stretch:
    """What a client got in one go: from where it began, or behind a gap."""

    epoch: str
    began: int  # the position
    first: dict[str, int] = field(default_factory=dict)  # by producer, the first number
    next: dict[str, int] = field(default_factory=dict)  # by producer, the number that must come next


class Follower:
    """
    One client: it follows until it is cancelled, and reconnects with its cursor, each time elsewhere.

    Args:
        ports: of the replicas, on loopback.
        transports: the transport of each connection, in turn.
        ledger: knows what others saw.
        topics: what it wants: `topic.PRODUCER` for some producers, or a pattern.
        start: where it begins: a cursor, `earliest` or `latest`.

    Attributes:
        seen: how many events it got.
        twice: how many it had before.
        lost: how many it was not given and not told of.
        disordered: how many came before one that it had already.
        gaps: what it was told.
    """

    def __init__(
        self,
        ports: Sequence[int],
        transports: Iterator[str],
        ledger: Ledger,
        topics: Sequence[str],
        start: str = "earliest",
    ) -> None:
        self.ledger = ledger
        self.topics = tuple(topics)
        self.transport = ""  # of the connection at hand
        self.ports = list(ports)
        self.seen = self.twice = self.lost = self.disordered = 0
        self.gaps: list[dict[str, Any]] = []
        self.connections = 0
        self.refused: Counter[int] = Counter()  # by status
        self.cursor: str | None = None if start in ("earliest", "latest") else start
        self.stretch: Stretch | None = None  # the one it is in
        self.closed = 0  # how many events the stretches before had for it
        self.place = -1
        self.query = ""  # what is asked for besides
        self.path = ""  # before /v1/events
        self.pause = POLL_SECONDS
        self.wires = WIRES
        self._start = start
        self._transports = transports
        if self.cursor is not None:
            self._begin(Cursor.parse(self.cursor))

    # --- its life -------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self.connect()
            except (OSError, asyncio.IncompleteReadError, Unavailable):
                await asyncio.sleep(random.uniform(0.05, 0.25))

    async def connect(self, events: int | None = None) -> None:
        """Follow on one connection until it ends, or about so many events came."""
        self.transport = next(self._transports)
        port = self.ports[self.connections % len(self.ports)]
        self.connections += 1
        goal = self.seen + events if events is not None else None
        async with _opened(port) as (incoming, outgoing):
            follow = self._stream if self.transport in WIRES else self._poll
            await follow(incoming, outgoing, goal)

    async def _stream(
        self, incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter, goal: int | None
    ) -> None:
        outgoing.write(self._request())
        head = await read_head(incoming)
        if head.status not in (101, 200):
            self._turned_away(head)
        rest = b""
        while data := await incoming.read(READ_BYTES):
            frames, rest = self._split(rest + data)
            for frame in frames:
                shown = self.ledger.read(frame, self._parse)
                if isinstance(shown, Seen):
                    self.take(shown)
                elif shown.kind == "ping":
                    outgoing.write(masked_pong(shown.text))
                else:
                    self._hear(shown)
            if goal is not None and self.seen >= goal:
                return

    async def _poll(
        self, incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter, goal: int | None
    ) -> None:
        while goal is None or self.seen < goal:
            outgoing.write(self._request())
            head = await read_head(incoming)
            body = await incoming.readexactly(int(head.headers.get(b"content-length", b"0")))
            if head.status not in (200, 304):
                self._turned_away(head)
            if head.status == 304:
                self._adopt(head.headers[b"etag"].decode().strip('"'))
                more = False
            else:
                more = self._answer(_ANSWER.decode(body))
            if self.transport == "poll" and not more:
                await asyncio.sleep(self.pause)

    def _turned_away(self, head: Head) -> None:
        if head.status == 307:
            self._sent_on(head.headers[b"location"].decode())
        self.refused[head.status] += 1
        raise Unavailable

    def _sent_on(self, url: str) -> None:
        """It is told to go: to another address, or where it likes."""
        assert not url, f"it was sent to {url}"

    def _request(self) -> bytes:
        """Return the request that goes on where it is."""
        query = "&".join(f"topic={topic.replace('#', '%23')}" for topic in self.topics) + self.query
        lines = []
        match self.transport:
            case "websocket":
                key = base64.b64encode(os.urandom(16)).decode()
                lines += ["Connection: Upgrade", "Upgrade: websocket"]
                lines += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"]
            case "sse":
                lines += ["Accept: text/event-stream"]
            case "ndjson":
                lines += ["Accept: application/x-ndjson"]
            case _:
                query += "&limit=1000" + ("&wait=5" if self.transport == "longpoll" else "")
        if self.cursor is not None and self.transport in ("poll", "longpoll"):
            lines.append(f'If-None-Match: "{self.cursor}"')
        else:
            query += f"&cursor={self.cursor or self._start}"
        return "\r\n".join(
            [f"GET {self.path}/v1/events?{query} HTTP/1.1", "Host: localhost", *lines, "", ""]
        ).encode()

    # --- what it is told ------------------------------------------------------------------------------------

    def take(self, seen: Seen) -> None:
        """Take an event into account."""
        self.seen += 1
        self.cursor = seen.cursor
        stretch = self.stretch
        assert stretch is not None, "an event came before the welcome"
        if seen.place <= self.place or seen.epoch != stretch.epoch:
            self.disordered += 1
        self.place = seen.place
        due = stretch.next.get(seen.producer)
        if due is None:
            stretch.first[seen.producer] = due = seen.number
        if seen.number > due:
            self.lost += seen.number - due
        elif seen.number < due:
            self.twice += 1
            return
        stretch.next[seen.producer] = seen.number + 1
        if self.ledger.places[seen.epoch, seen.producer][seen.number] != seen.place:
            self.ledger.differing += 1

    def _hear(self, message: Message) -> None:
        """Take in a control message of a stream."""
        match message.kind:
            case "gap":
                self._gap(message.members)
            case "welcome" | "hello":
                if self.stretch is None:
                    self._begin(Cursor.parse(str(message.cursor)))
            case "heartbeat" | "reconnect":
                self._adopt(str(message.cursor))
                if message.kind == "reconnect":
                    told = message.members
                    self._sent_on(f"{told['url']}/v1/events?hop={told['hop']}" if "url" in told else "")

    def _answer(self, answer: Answer) -> bool:
        """Take in the answer to a poll; return whether there is more at once."""
        if self.stretch is None:  # its first answer
            cursor = Cursor.parse(answer.cursor)
            earliest = self._start == "earliest"
            assert earliest or not answer.events, "a poll without a cursor answers empty"
            self._begin(Cursor(cursor.epoch, 0, 0) if earliest else cursor)
        if answer.gap is not None:
            self._gap(answer.gap)
        for item in answer.events:
            self.take(self.ledger.read_item(bytes(item)))
        self._adopt(answer.cursor)
        return answer.more

    def _gap(self, members: dict[str, Any]) -> None:
        self.gaps.append(members)
        self.cursor = members["to"]
        if self.stretch is not None:
            self.lost += self._lacks_first()
            self.closed += sum(self.stretch.next.values()) - sum(self.stretch.first.values())
        self._begin(Cursor.parse(members["to"]))

    def _begin(self, cursor: Cursor) -> None:
        self.stretch = Stretch(cursor.epoch, cursor.position)
        self.place = cursor.position << 16 | 0xFFFF

    def _adopt(self, text: str) -> None:
        """Go on from a cursor that came with no event."""
        cursor = Cursor.parse(text)
        stretch = self.stretch
        if stretch and (cursor.epoch != stretch.epoch or cursor.position < self.place >> 16):
            self.disordered += 1
        self.cursor = text
        self.place = max(self.place, cursor.position << 16)

    # --- bytes ----------------------------------------------------------------------------------------------

    def _split(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return the frames that are whole, and what is left."""
        end = ENDS.get(self.transport)
        if end is None:
            return _websocket_frames(data)
        *frames, rest = data.split(end)
        return [frame + end for frame in frames], rest

    def _parse(self, frame: bytes) -> Message:
        """Read one frame strictly."""
        reader = reader_of(self.wires[self.transport])
        messages = reader.feed(frame)
        if len(messages) != 1 or reader.partial():
            raise ReadError(f"not one whole message: {frame[:200]!r}")
        return messages[0]

    # --- the account ----------------------------------------------------------------------------------------

    def has(self, numbers: dict[str, int]) -> bool:
        """Tell whether it got everything below these numbers, by producer."""
        reached = self.stretch.next if self.stretch is not None else {}
        return all(reached.get(producer, 0) >= number for producer, number in numbers.items())

    def due(self, numbers: dict[str, int]) -> dict[str, int]:
        """Return how many events of each producer the stretch it is in has for it, up to these numbers."""
        stretch = self.stretch
        assert stretch is not None, f"a client never came in; refused: {self.refused}"
        return {
            producer: number - self.ledger.due(stretch.epoch, producer, stretch.began, number)
            for producer, number in numbers.items()
        }

    def lacks(self, numbers: dict[str, int]) -> int:
        """Return how many events it lacks at either end of the stretch it is in."""
        assert self.stretch is not None
        reached, due = self.stretch.next, self.due(numbers)
        return self._lacks_first() + sum(
            number - reached[producer] if producer in reached else due[producer]
            for producer, number in numbers.items()
        )

    def _lacks_first(self) -> int:
        """Return how many events it lacks before the first ones that it got in this stretch."""
        assert self.stretch is not None
        epoch, began = self.stretch.epoch, self.stretch.began
        return sum(
            first - self.ledger.due(epoch, producer, began, first)
            for producer, first in self.stretch.first.items()
        )


class Answer(msgspec.Struct):
    """The answer to a poll."""

    events: list[msgspec.Raw]
    cursor: str
    more: bool
    gap: dict[str, Any] | None = None


_ANSWER = msgspec.json.Decoder(Answer)


@asynccontextmanager
async def _opened(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    incoming, outgoing = await asyncio.open_connection("127.0.0.1", port, limit=READ_BYTES)
    try:
        yield incoming, outgoing
    finally:
        outgoing.transport.abort()


def _websocket_frames(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole frames, and what is left."""
    frames: list[bytes] = []
    at, end = 0, len(data)
    while end - at >= 2:
        size = data[at + 1]
        begin = at + 2
        if size == 126:
            begin += 2
            size = int.from_bytes(data[at + 2 : begin])
        elif size == 127:
            begin += 8
            size = int.from_bytes(data[at + 2 : begin])
        if begin + size > end:
            break
        frames.append(data[at : begin + size])
        at = begin + size
    return frames, data[at:]


# --- many of them ------------------------------------------------------------------------------------------


def crowd(
    count: int, ports: Sequence[int], ledger: Ledger, topics: Sequence[str], start: str = "earliest"
) -> list[Follower]:
    """Return clients on all transports, spread over replicas; every sixth changes its transport each time."""
    followers = []
    for number in range(count):
        kind = number % (len(TRANSPORTS) + 1)
        turn = number % len(ports)
        roams = itertools.cycle(random.sample(TRANSPORTS, len(TRANSPORTS)))
        transports = itertools.repeat(TRANSPORTS[kind]) if kind < len(TRANSPORTS) else roams
        followers.append(Follower([*ports[turn:], *ports[:turn]], transports, ledger, topics, start))
    return followers


@dataclass(frozen=True, slots=True)
class Account:
    """What many clients got, beside what they had to get."""

    clients: int
    expected: int
    seen: int
    lost: int
    twice: int
    disordered: int
    differing: int
    gaps: Counter[str]
    connections: int

    def __str__(self) -> str:
        gaps = ", ".join(f"{number} {reason}" for reason, number in self.gaps.items()) or "none"
        return (
            f"{self.clients} clients over {self.connections} connections: expected {self.expected:,}, "
            f"seen {self.seen:,}, lost {self.lost}, twice {self.twice}, out of order {self.disordered}, "
            f"at differing cursors {self.differing}, gaps {gaps}"
        )

    def check(self) -> None:
        """Check that nothing is lost, twice, out of order or at another place than elsewhere."""
        faults = self.lost, self.twice, self.disordered, self.differing
        assert faults == (0, 0, 0, 0), str(self)
        assert self.seen == self.expected, str(self)


def account(followers: Sequence[Follower], producers: Iterable[Producer]) -> Account:
    """
    Return the account of clients that want everything of these producers, and had all the time for it. Of
    what lies before a gap they were due what they got, without holes.
    """
    numbers = {producer.name: producer.published for producer in producers}
    return Account(
        clients=len(followers),
        expected=sum(each.closed + sum(each.due(numbers).values()) for each in followers),
        seen=sum(each.seen for each in followers),
        lost=sum(each.lost + each.lacks(numbers) for each in followers),
        twice=sum(each.twice for each in followers),
        disordered=sum(each.disordered for each in followers),
        differing=followers[0].ledger.differing,
        gaps=Counter(gap["reason"] for each in followers for gap in each.gaps),
        connections=sum(each.connections for each in followers),
    )


async def until(
    condition: Callable[[], bool],
    what: str,
    seconds: float = DEADLINE,
    state: Callable[[], object] = lambda: "",
) -> None:
    """Wait until a condition holds; fail, with the state of things, if that takes too long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, f"within {seconds:.0f} s it did not happen that {what}; {state()}"
        await asyncio.sleep(0.02)
