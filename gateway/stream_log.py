"""
The stream log: a RabbitMQ stream that all replicas read, so the same event has the same position everywhere.

Strategy: position = broker offset + 1. One connection reads the stream live, one publishes, a third reads
older parts when somebody asks for them. An event is published and then read back like everybody else's: only
that gives it its position, and it is durable by then. Nothing is published twice by itself: when a connection
is lost, what was not read back fails, its producer asks again, and `gateway.stream_seen` leaves out what came
through twice.

After a connection was lost, reading goes on *with* the last message that was read, which must be the same
again. If it is not, or nothing comes, the stream was made anew or lost its end: it is looked at from scratch
as at a start (`_begin`), and `on_begin` is told.

What clients cannot be given (marks, messages that are no events, second copies) leaves its position out; a
`read` fills it with an event that has expired.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_hex
from typing import Final

from fanout.event import OVERHEAD_BYTES, Event
from gateway.amqp.address import Address
from gateway.amqp.frames import Delivery
from gateway.amqp.link import ChannelClosed, Link, LinkError, LinkRefused, Listener, connect
from gateway.amqp.properties import PropertiesError
from gateway.amqp.topology import OLDEST, Topology, declare
from gateway.log import Deliver, LogDamaged, LogUnavailable
from gateway.stream_marks import BARRIER, PROPOSAL, RENEW_EVENTS, RENEWAL, EpochSearch, random_epoch
from gateway.stream_messages import Incoming, Mark, NoEvent, Received
from gateway.stream_reading import Reading, fingerprint, read_message
from gateway.stream_scan import Scan, Scans
from gateway.stream_seen import Seen
from gateway.stream_writer import Call, Writer

log = logging.getLogger(__name__)

RETRY_DOWN: Final = 2.0
RETRY_CLOSED: Final = 5.0
"""Seconds after which a refused producer should try again."""

BACK_OFF: Final = (0.1, 3.0)
"""Seconds before the first and, doubled each time, before later attempts to connect; half of it is random."""

VERIFY_SECONDS: Final = 5.0
"""How long the last message may take to come again before the stream is looked at from scratch."""

SAMPLE: Final = 1000
"""Messages at the end that are read first, to learn how long messages are."""

BLOCKS_BYTES: Final = 8 << 20
"""Memory for parts that were read lately, for those who read the same."""

MAX_SKIPPED: Final = 100_000
SKEW_MS: Final = 5000
"""How far the clock of another replica may lead."""

PROBE_SECONDS: Final = 15.0
"""How often the oldest message is looked for: retention works unannounced."""


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """What the log did since it started."""

    events: int  # read live
    published: int
    duplicates: int  # left out
    dead: int  # messages that were no events
    failures: int  # calls that failed
    reconnects: int
    resets: int


class StreamLog:
    """
    The log in a RabbitMQ stream; see `gateway.log.Log` for what it promises.

    `append` differs in one thing: after a `LogUnavailable` some or all of the events may be in the stream. An
    id makes asking again safe.

    Args:
        address: where the broker is.
        topology: what is there.
        max_event_bytes: how long an event's JSON may be.
        queue_bytes: memory for events that were published and not read back. When there are none, a call of
            any size is taken.
        queue_events: how many there may be.
        tail_bytes: memory that what `tail` returns may take.
        tail_events: how many events that may be.
        dedup_seconds: how long an id makes a message a second copy.
        dedup_events: how many ids are remembered.

    Attributes:
        on_begin: called at the start, before anything is delivered, and again when the stream has become
            another one; `epoch`, `first` and `head` are those of the stream then, and `take_tail` returns its
            tail.
    """

    def __init__(
        self,
        address: Address,
        topology: Topology,
        *,
        max_event_bytes: int,
        queue_bytes: int,
        queue_events: int,
        tail_bytes: int,
        tail_events: int,
        dedup_seconds: float,
        dedup_events: int,
    ) -> None:
        self.epoch = ""
        self.first = 1
        self.head = 0
        self.head_tag = 0
        self.on_begin: Callable[[], None] = lambda: None
        self._address = address
        self._topology = topology
        self._max_body = 2 * max_event_bytes  # what is longer is not even kept for the dead letters
        self._queue_bytes = queue_bytes
        self._queue_events = queue_events
        self._tail_bytes = tail_bytes
        self._tail_events = tail_events or 10**9
        self._incoming = Incoming(max_event_bytes)
        self._deliver: Deliver = _ignore
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._trouble: str | None = "connecting to the broker"
        self._host = random.randrange(len(address.hosts))
        # Reading.
        self._links: list[Link] = []  # the open connections, but for that of the scans
        self._reading: Reading | None = None
        self._ended: asyncio.Future[LinkError] | None = None
        self._reached = -1  # the offset of the last message read live
        self._last: Delivery | None = None
        self._anew = False  # the broker said that the stream is gone
        self._begun = False  # looked at from scratch at least once
        self._search = EpochSearch()
        self._renewed = 0  # offset of the last renewal
        self._seen = Seen(round(dedup_seconds * 1000), dedup_events)
        self._time = 0  # of the last event
        self._skipped: OrderedDict[int, None] = OrderedDict()  # positions of second copies
        self._clock_offsets: list[int] = []  # offsets, with the time at which each was read live
        self._clock_times: list[int] = []
        self._barriers: dict[str, asyncio.Future[int]] = {}  # by nonce
        self._moved = asyncio.Event()  # `reached` moved
        # Older parts.
        self._scans = Scans(topology.stream, self._open_scan)
        self._blocks: OrderedDict[tuple[int, int], tuple[list[Event], int]] = OrderedDict()
        self._blocks_bytes = 0
        self._fetching: dict[tuple[int, int], asyncio.Future[list[Event]]] = {}
        self._tail: list[Event] = []
        # Publishing.
        self._writer = Writer(topology, queue_bytes, queue_events, self._over)
        # Counters.
        self._events = self._duplicates = self._dead = self._reconnects = self._resets = 0

    # --- the Log --------------------------------------------------------------------------------------------

    async def start(self, deliver: Deliver) -> None:
        """
        Connect, wait for the broker as long as it takes, learn where the stream begins and ends, read its
        tail; see `Log.start`.

        Raises:
            LogDamaged: the broker refuses something that waiting does not change.
        """
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        started: asyncio.Future[None] = self._loop.create_future()
        self._task = self._loop.create_task(self._run(started))
        await asyncio.shield(started)

    def append(self, events: list[Event]) -> asyncio.Future[None]:
        """Publish events; see `Log.append`."""
        assert self._loop is not None, "the log was not started"
        future: asyncio.Future[None] = self._loop.create_future()
        if not events:
            self._writer.after_all(future)
            return future
        refusal = self._refusal()
        if refusal is not None:
            self._writer.failures += 1
            future.set_exception(refusal)
            return future
        self._writer.publish(events, future)
        return future

    async def read(self, after: int, max_bytes: int) -> list[Event]:
        """
        Return events behind `after`; see `Log.read`. Positions that hold nothing for clients are there too,
        as events that have expired.

        Raises:
            LogUnavailable: the broker cannot be reached.
        """
        after = max(after, self.first - 1)
        if after >= self.head:
            return []
        key = (after, max_bytes)
        if (block := self._blocks.get(key)) is not None:
            self._blocks.move_to_end(key)
            return block[0]
        if (fetching := self._fetching.get(key)) is None:
            assert self._loop is not None, "the log was not started"
            fetching = self._fetching[key] = self._loop.create_task(self._fetch(*key))
            fetching.add_done_callback(lambda done: self._fetched(key, done))
        return await asyncio.shield(fetching)

    async def find_time(self, time_ms: int) -> int:
        """Return the position of the last event older than `time_ms`; see `Log.find_time`."""
        low, high = self.first - 1, self.head  # the answer is in low..high
        if self._time < time_ms:
            return high
        while low < high:
            middle = (low + high) // 2
            event = await self._next_event(middle, high)
            if event is not None and event.time < time_ms:
                low = event.position
            else:
                high = middle
        return low

    async def tail(self) -> list[Event]:
        """Return the newest events, as the start read them, once; oldest of them first."""
        return self.take_tail()

    async def close(self) -> None:
        """Wait for what was published to come back, a moment at most, and close; see `Log.close`."""
        if self._closing or self._loop is None:
            return
        pending = self._writer.futures()
        if pending and self._trouble is None:
            await asyncio.wait(pending, timeout=5)
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._writer.fail("the log is closed", RETRY_CLOSED)
        await self._hang_up()

    # --- beyond the Log -------------------------------------------------------------------------------------

    def take_tail(self) -> list[Event]:
        """As `tail`, for `on_begin`."""
        events, self._tail = self._tail, []
        return events

    def trouble(self) -> str | None:
        """Return why this replica is not up to date, None if it is."""
        return self._trouble

    async def reach(self, position: int, seconds: float = 10.0) -> bool:
        """
        Wait until everything up to `position` was read, which another replica gave to a client already.

        Returns:
            False if the stream ends before it.

        Raises:
            LogUnavailable: the broker cannot be asked.
        """
        assert self._loop is not None, "the log was not started"
        deadline = self._loop.time() + seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):  # the usual case: it comes at once
                while self._reached + 1 < position:
                    await self._moved.wait()
        if self._reached + 1 >= position:
            return True
        try:
            async with asyncio.timeout_at(deadline):
                await self._barrier()
        except (TimeoutError, LinkError):
            raise LogUnavailable("the broker does not answer", RETRY_DOWN) from None
        return self._reached + 1 >= position

    def statistics(self) -> StreamStatistics:
        """Return what was done."""
        return StreamStatistics(
            events=self._events,
            published=self._writer.published,
            duplicates=self._duplicates,
            dead=self._dead,
            failures=self._writer.failures,
            reconnects=self._reconnects,
            resets=self._resets,
        )

    # --- the connections ------------------------------------------------------------------------------------

    async def _run(self, started: asyncio.Future[None]) -> None:
        """Keep connected until cancelled."""
        wait = BACK_OFF[0]
        while True:
            try:
                await self._connect()
                if not started.done():
                    started.set_result(None)
                wait = BACK_OFF[0]
                await self._watch()
            except asyncio.CancelledError:
                if not started.done():
                    started.cancel()
                raise
            except LinkRefused as error:
                if not started.done():
                    await self._hang_up()
                    started.set_exception(LogDamaged(str(error)))
                    return
                self._lost(error)
            except LinkError as error:
                self._lost(error)
            except Exception:
                log.exception("backbone.failed")
                self._lost(LinkError("the gateway made a mistake while it connected"))
            await self._hang_up()
            await asyncio.sleep(wait * random.uniform(0.5, 1))
            wait = min(wait * 2, BACK_OFF[1])
            self._host = (self._host + 1) % len(self._address.hosts)
            self._reconnects += 1

    def _lost(self, error: LinkError) -> None:
        """Note why there is no connection."""
        if isinstance(error, ChannelClosed) and error.code == 404:
            self._anew = True
        if self._trouble != str(error):
            log.warning("backbone.lost: %s", error)
        self._trouble = str(error)
        self._writer.fail(f"the connection to the broker was lost: {error}", RETRY_DOWN)

    async def _connect(self) -> None:
        """Open the connections, declare what is not there, begin or go on to read."""
        assert self._loop is not None
        host = self._address.hosts[self._host]
        self._ended = self._loop.create_future()
        writer = await connect(self._address, host, "sluicegate publish", self._writer)
        self._links = [writer]
        if writer.version and writer.version < OLDEST:
            text = ".".join(map(str, writer.version))
            raise LinkRefused(f"the broker is RabbitMQ {text}, which has no streams: 3.9 or newer is needed")
        await declare(self._address, host, self._topology)
        await self._writer.open(writer)
        self._reading = reading = Reading(self._over)
        reader = await connect(self._address, host, "sluicegate read", reading, max_body=self._max_body)
        self._links.append(reader)
        if self._last is not None and await self._resume(reading, reader):
            log.info("backbone.resumed: offset %d", self._reached)
        else:
            await self._begin(reading, reader)
        self._anew = False
        self._trouble = None

    async def _watch(self) -> None:
        """Do what is due now and then, until a connection is lost."""
        assert self._loop is not None
        assert self._ended is not None
        probed = self._loop.time()
        while True:
            done, _ = await asyncio.wait([self._ended], timeout=1)
            if done:
                raise self._ended.result()
            now = self._loop.time()
            if self._reading is not None:
                self._reading.acknowledge()
            self._writer.expire()
            if self._reached - self._renewed > RENEW_EVENTS * random.uniform(1, 2):
                self._writer.mark(Mark(RENEWAL, self.epoch, token_hex(5)))
                self._renewed = self._reached
            if now - probed > PROBE_SECONDS:
                probed = now
                with contextlib.suppress(LinkError):
                    await self._probe()
            await self._scans.tidy(now)

    async def _hang_up(self) -> None:
        """Close every connection."""
        links, self._links = self._links, []
        self._reading = None
        for barrier in self._barriers.values():
            if not barrier.done():
                barrier.cancel()
        self._barriers.clear()
        await asyncio.gather(*(link.close() for link in links), self._scans.close())

    def _over(self, error: LinkError) -> None:
        """A connection ended."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(error)

    async def _open_scan(self, scans: Listener) -> Link:
        host = self._address.hosts[self._host]
        return await connect(self._address, host, "sluicegate scan", scans, max_body=self._max_body)

    # --- where to read ------------------------------------------------------------------------------------

    async def _resume(self, reading: Reading, link: Link) -> bool:
        """Go on behind the last message; return False if it is not there any more as it was."""
        last, offset = self._last, self._reached
        assert last is not None
        await reading.begin(link, self._topology.stream, offset)
        try:
            async with asyncio.timeout(1 if self._anew else VERIFY_SECONDS):
                first = await reading.first()
        except TimeoutError:
            await reading.stop()
            return False
        received = read_message(first)
        if received is None:
            await reading.stop()
            return False
        if received.offset == offset and fingerprint(first) != fingerprint(last):
            await reading.stop()
            return False
        if received.offset > offset + 1:
            await self._probe()
            if self.first > offset + 2:  # retention overtook us: nobody can be given what is between
                await reading.stop()
                return False
        reading.go(self._read_live)
        return True

    async def _begin(self, reading: Reading, link: Link) -> None:
        """Look at the stream from scratch: its beginning, its end, its epoch, its tail."""
        before = self.epoch, self.head
        self._search = EpochSearch()
        self._seen.clear()
        self._skipped.clear()
        self._blocks.clear()
        self._blocks_bytes = 0
        self._time = 0
        self._last = None
        self._reached = -1
        await reading.begin(link, self._topology.stream, "next")
        await self._mark_and_wait(reading, Mark(BARRIER, "", token_hex(5)))
        begin = reading.peek()[0].offset  # from here on everything comes to the live reader
        await self._probe()
        oldest = self.first - 1
        events, start = await self._read_tail(oldest, begin)
        self.epoch = await self._agree(reading, oldest, start, begin)
        self._accept_tail(events, begin)
        self._writer.mark(Mark(RENEWAL, self.epoch, token_hex(5)))
        if self._begun:
            self._resets += 1
            log.warning("backbone.reset: now %s, was %s", (self.epoch, self.head), before)
        else:
            log.info("backbone.began: epoch %s, head %d", self.epoch, self.head)
        self._begun = True
        self.on_begin()
        reading.go(self._read_live)

    async def _read_tail(self, oldest: int, end: int) -> tuple[list[Received], int]:
        """Return the messages before offset `end` for the window, and the first one's offset."""
        start = max(oldest, end - SAMPLE)
        tail = await self._read_range(start, end)
        if start > oldest and tail:
            size = sum(len(each.delivery.body) + OVERHEAD_BYTES for each in tail) // len(tail)
            count = min(self._tail_events, self._tail_bytes // size)
            more = max(oldest, end - count)
            if more < start:
                tail = await self._read_range(more, start) + tail
                start = more
        return tail, start

    async def _read_range(self, start: int, end: int) -> list[Received]:
        """Return the messages from one offset up to before another; note their marks."""
        found: list[Received] = []
        if start >= end:
            return found
        async with self._scans.at(start, keep=False) as scan:
            while True:
                received = read_message(await scan.next())
                if received is None:
                    continue
                if received.offset >= end:
                    break
                found.append(received)
                if received.mark is not None:
                    self._search.note(received.mark)
                if received.offset == end - 1:
                    break
        return found

    async def _agree(self, reading: Reading, oldest: int, start: int, end: int) -> str:
        """Return the epoch that all replicas agree on; propose one if there is none."""
        for received in reading.peek():
            if received.mark is not None:
                self._search.note(received.mark)
        complete = start <= oldest
        epoch = self._search.epoch(complete=complete)
        if epoch is None and not complete:
            log.info("backbone.searching: no epoch near the end of the stream, reading it from the start")
            self._search = EpochSearch()
            epoch = await self._search_all(oldest, end)
        if epoch is None:
            await self._mark_and_wait(reading, Mark(PROPOSAL, random_epoch(), token_hex(5)))
            for received in reading.peek():
                if received.mark is not None:
                    self._search.note(received.mark)
            epoch = self._search.epoch(complete=True)
        assert epoch is not None, "there is our own proposal at least"
        return epoch

    async def _search_all(self, oldest: int, end: int) -> str | None:
        """Read the stream until a renewal is found."""
        async with self._scans.at(oldest, keep=False) as scan:
            while True:
                received = read_message(await scan.next())
                if received is None:
                    continue
                if received.mark is not None:
                    self._search.note(received.mark)
                    if self._search.epoch(complete=False) is not None:
                        break
                if received.offset >= end - 1:
                    break
        return self._search.epoch(complete=True)

    def _accept_tail(self, received: list[Received], begin: int) -> None:
        """Make the tail's events; the log ends with the last of them."""
        now = _now()
        self._clock_offsets, self._clock_times = [begin], [now]
        events: list[Event] = []
        for each in received:
            if each.mark is None:
                event = self._event(each, now, dead=False)
                if event is not None and self._is_first(event):
                    events.append(event)
            self._reached = each.offset
        size = 0
        keep = len(events)
        while keep and size <= self._tail_bytes and len(events) - keep < self._tail_events:
            keep -= 1
            size += len(events[keep].body) + OVERHEAD_BYTES
        self._tail = events[keep:]
        self._reached = max(self._reached, begin - 1)
        if events:
            self.head, self.head_tag = events[-1].position, events[-1].tag
        else:
            self.head, self.head_tag = begin, 0

    async def _probe(self) -> None:
        """Look where the stream begins now."""
        async with self._scans.at("first", keep=False) as scan:
            received = read_message(await scan.next())
        if received is not None:
            self.first = received.offset + 1

    # --- reading live ---------------------------------------------------------------------------------------

    def _read_live(self, deliveries: list[Delivery]) -> None:
        """Take what one read brought: make events, deliver them, tell those who wait for theirs."""
        now = _now()
        if now - self._clock_times[-1] >= 1000:
            self._note_time(now)
        batch: list[Event] = []
        done: list[Call] = []
        claim, origin = self._writer.claim, self._writer.origin
        for delivery in deliveries:
            received = read_message(delivery)
            if received is None or received.offset <= self._reached:
                continue
            self._reached = received.offset
            self._last = delivery
            if received.mark is not None:
                self._take_mark(received.mark, received.offset)
                continue
            claimed = claim(received.number) if received.origin == origin else None
            if claimed is None:
                event = self._event(received, now, dead=True)
            else:
                event = self._own(claimed[1], received, now)
            if event is not None and (event.given_id is None or self._is_first(event)):
                batch.append(event)
            if claimed is not None and not claimed[0].left:
                done.append(claimed[0])
        if batch:
            self._publish_batch(batch)
        if done:
            self._writer.resolve(done)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _publish_batch(self, batch: list[Event]) -> None:
        self._events += len(batch)
        self.head, self.head_tag = batch[-1].position, batch[-1].tag
        try:
            self._deliver(batch)
        except Exception:
            log.exception("log.delivery_failed", extra={"first": batch[0].position, "head": self.head})

    def _own(self, event: Event, received: Received, now: int) -> Event:
        """Return an event that this process published: there is no need to make it again."""
        event.position = received.offset + 1
        event.time = self._time = min(max(event.time, self._time), max(now + SKEW_MS, self._time))
        return event

    def _event(self, received: Received, latest: int, *, dead: bool) -> Event | None:
        """Return the event that a message is; None, and to the dead letters if asked, if it cannot be one."""
        if received.origin is not None:
            latest += SKEW_MS
        try:
            event = self._incoming.event(received, self.epoch, self._time, latest)
        except (NoEvent, PropertiesError) as error:
            if dead:
                self._bury(received, str(error))
            return None
        self._time = event.time
        return event

    def _is_first(self, event: Event) -> bool:
        """Say whether no event had this id lately."""
        if event.given_id is None:
            return True
        original = self._seen.original(event.given_id, event.position, event.time)
        if original is None:
            return True
        self._duplicates += 1
        self._skipped[event.position] = None
        if len(self._skipped) > MAX_SKIPPED:
            self._skipped.popitem(last=False)
        event.position = original
        return False

    def _take_mark(self, mark: Mark, offset: int) -> None:
        if mark.kind == RENEWAL:
            self._renewed = offset
        barrier = self._barriers.pop(mark.nonce, None)
        if barrier is not None and not barrier.done():
            barrier.set_result(offset)

    def _note_time(self, now: int) -> None:
        """Remember when this offset was read: a message without a time has that one, also when read again."""
        self._clock_offsets.append(self._reached + 1)
        self._clock_times.append(now)
        if len(self._clock_offsets) > 200_000:
            del self._clock_offsets[:100_000], self._clock_times[:100_000]

    def _time_at(self, offset: int) -> int:
        return self._clock_times[max(bisect_right(self._clock_offsets, offset) - 1, 0)]

    # --- reading older parts --------------------------------------------------------------------------------

    async def _fetch(self, after: int, max_bytes: int) -> list[Event]:
        """Read behind a position that is known to be in the stream."""
        head = self.head
        try:
            async with self._scans.at(after) as scan:
                return await self._fetch_from(scan, after, head, max_bytes)
        except LinkError as error:
            raise LogUnavailable(f"the stream cannot be read: {error}", RETRY_DOWN) from None

    async def _fetch_from(self, scan: Scan, after: int, head: int, max_bytes: int) -> list[Event]:
        events: list[Event] = []
        size = 0
        earliest = 0
        at = after  # the last position that is accounted for
        while size < max_bytes and at < head:
            received = read_message(await scan.next())
            if received is None or received.offset < at:
                continue
            position = received.offset + 1
            if position > at + 1 and not events:
                await self._probe()
                at = max(at, min(self.first, position) - 1)  # retention took what is before
            holes = range(at + 1, position)
            events += [_nothing(hole, earliest) for hole in holes]
            event = self._older(received, earliest)
            earliest = event.time
            events.append(event)
            at = position
            size += len(event.body) + OVERHEAD_BYTES
        scan.offset = at
        return [event for event in events if event.position <= head]

    def _older(self, received: Received, earliest: int) -> Event:
        """Return the event of a message, or what stands for none."""
        position = received.offset + 1
        latest = self._time_at(received.offset)
        if received.mark is None and position not in self._skipped:
            with contextlib.suppress(NoEvent, PropertiesError):
                skew = SKEW_MS if received.origin is not None else 0
                return self._incoming.event(received, self.epoch, earliest, latest + skew)
        return _nothing(position, earliest)

    def _fetched(self, key: tuple[int, int], done: asyncio.Future[list[Event]]) -> None:
        """Keep a part for those who read the same."""
        del self._fetching[key]
        if done.cancelled() or done.exception() is not None:
            return
        events = done.result()
        size = sum(len(event.body) + OVERHEAD_BYTES for event in events)
        self._blocks[key] = events, size
        self._blocks_bytes += size
        while self._blocks_bytes > BLOCKS_BYTES and self._blocks:
            self._blocks_bytes -= self._blocks.popitem(last=False)[1][1]

    async def _next_event(self, after: int, last: int) -> Event | None:
        """Return the first event behind `after` that clients can be given, up to position `last`."""
        while after < last:
            for event in await self.read(after, 1):
                if event.position > last:
                    return None
                if event.topic:
                    return event
                after = event.position
        return None

    # --- publishing -----------------------------------------------------------------------------------------

    def _refusal(self) -> LogUnavailable | None:
        if self._closing:
            return LogUnavailable("the log is closed", RETRY_CLOSED)
        if self._trouble is not None:
            return LogUnavailable(f"the broker is away: {self._trouble}", RETRY_DOWN)
        if self._writer.blocked_by is not None:
            return LogUnavailable(f"the broker takes no events now: {self._writer.blocked_by}", RETRY_DOWN)
        return None

    async def _mark_and_wait(self, reading: Reading, mark: Mark) -> None:
        """Publish a mark and wait until it was read; it stays among what waits."""
        self._writer.mark(mark)
        while not any(each.mark is not None and each.mark.nonce == mark.nonce for each in reading.peek()):
            if self._ended is not None and self._ended.done():
                raise self._ended.result()
            if self._writer.blocked_by is not None:
                self._trouble = f"the broker takes no messages: {self._writer.blocked_by}"
            await reading.more()

    async def _barrier(self) -> None:
        """Wait until everything that is in the stream now was read."""
        assert self._loop is not None
        if self._trouble is not None:
            raise LinkError(self._trouble)
        mark = Mark(BARRIER, "", token_hex(5))
        future = self._barriers[mark.nonce] = self._loop.create_future()
        self._writer.mark(mark)
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled() and self._trouble is not None:
                raise LinkError("the connection was lost") from None
            raise
        finally:
            self._barriers.pop(mark.nonce, None)

    def _bury(self, message: Received, reason: str) -> None:
        """Count a message that cannot be an event, and send it to the dead letters."""
        self._dead += 1
        name = f"{self.epoch}-{message.offset + 1}"
        log.warning("backbone.dead: message %s to %r: %s", name, message.delivery.key, reason)
        self._writer.bury(message, name, reason)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _ignore(_: list[Event]) -> None:
    """Deliver to nobody: before the start."""


def _nothing(position: int, time_ms: int) -> Event:
    """Return what stands at a position that holds nothing for clients: an event that has expired."""
    return Event("", b"", time_ms, 0, expires=1, position=position)
