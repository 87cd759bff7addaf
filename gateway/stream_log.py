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
import math
import random
import time
from collections.abc import Callable, Iterator
from secrets import token_hex
from typing import Any, Final

from fanout.event import OVERHEAD_BYTES, Event
from gateway.amqp.address import Address
from gateway.amqp.connecting import connect
from gateway.amqp.frames import Delivery
from gateway.amqp.link import ChannelClosed, Link, LinkError, LinkRefused, Listener
from gateway.amqp.topology import Topology, check_version, declare
from gateway.log import Deliver, LogDamaged, LogUnavailable, Measure
from gateway.stream_admission import Admission
from gateway.stream_barriers import Barriers
from gateway.stream_dead import DeadLetters, naming
from gateway.stream_history import Extent, History
from gateway.stream_marks import BARRIER, BURIED, RENEWAL, Renewal
from gateway.stream_messages import Copies, Mark, NoEvent, Received
from gateway.stream_reading import Reading, fingerprint, read_message
from gateway.stream_scan import Scans
from gateway.stream_statistics import StreamStatistics
from gateway.stream_survey import Survey
from gateway.stream_writer import READ_BACK_SECONDS, Call, Writer

log = logging.getLogger(__name__)

RETRY_DOWN: Final = 2.0
RETRY_CLOSED: Final = 5.0
"""Seconds after which a refused producer should try again."""

BACK_OFF: Final = (0.1, 3.0)
"""Seconds before the first and, doubled each time, before later attempts to connect; half of it is random."""

SETTLED_SECONDS: Final = 10.0
"""A connection that lived so long was a good one: when it is lost, the first attempt is made soon again."""

VERIFY_SECONDS: Final = 5.0
"""How long the last message may take to come again before the stream is looked at from scratch."""

TICK_SECONDS: Final = (0.5, 1.5)
"""
How often what is due is done: another time each, so that of several replicas one is the first to send a dead
letter.
"""

BURIED_AT_ONCE: Final = 500
"""Dead letters that one mark names."""

PROBE_SECONDS: Final = 15.0
"""How often the oldest message is looked for: retention works unannounced."""


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
        copies: says which events go to a queue as well; these are durable when that has them, too.

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
        copies: Copies | None = None,
    ) -> None:
        self.on_begin: Callable[[], None] = lambda: None
        self._address = address
        self._topology = topology
        self._max_body = 2 * max_event_bytes  # what is longer is not even kept for the dead letters
        self._queue_bytes = queue_bytes
        self._queue_events = queue_events
        self._tail_bytes = tail_bytes
        self._tail_events = tail_events or 10**9
        self._deliver: Deliver = _ignore
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._trouble: str | None = "connecting to the broker"
        self._host = random.randrange(len(address.hosts))
        # Reading.
        self._links: list[Link] = []  # the open connections, but for that of the scans
        self._heard = time.monotonic()  # when the broker last said something, as of the last look
        self._reading: Reading | None = None
        self._ended: asyncio.Future[LinkError] | None = None
        self._reached = -1  # the offset of the last message read live
        self._last: Delivery | None = None
        self._anew = False  # the broker said that the stream is gone
        self._begun = False  # looked at from scratch at least once
        self._renewal = Renewal(topology.segment_bytes, topology.max_age_seconds)
        self._extent = Extent()
        self._admission = Admission(max_event_bytes, round(dedup_seconds * 1000), dedup_events)
        self._dead = DeadLetters()
        self._moved = asyncio.Event()  # `reached` moved
        self._tail: list[Event] = []
        # Older parts.
        self._scans = Scans(topology.stream, self._open_scan)
        self._history = History(self._scans, self._admission, self._extent)
        # Publishing.
        self._writer = Writer(topology, queue_bytes, queue_events, self._over)
        self._writer.outgoing.copies = copies
        self._barriers = Barriers(self._writer.mark)
        # Counters.
        self._events = self._dead_count = self._reconnects = self._resets = 0

    # --- the Log --------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> str:
        """Its name; see `Log.epoch`."""
        return self._extent.epoch

    @property
    def first(self) -> int:
        """Position of the oldest event; see `Log.first`."""
        return self._extent.first

    @property
    def head(self) -> int:
        """Position of the newest event; see `Log.head`."""
        return self._extent.head

    @property
    def head_tag(self) -> int:
        """Its tag; see `Log.head_tag`."""
        return self._extent.head_tag

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
        Return events behind `after`; see `Log.read`. The last may be one that has expired, which stands for
        positions that hold nothing for clients.

        Raises:
            LogUnavailable: the broker cannot be reached.
        """
        return await self._history.read(after, max_bytes)

    async def find_time(self, time_ms: int) -> int:
        """Return the position of the last event older than `time_ms`; see `Log.find_time`."""
        return await self._history.find_time(time_ms)

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
        if self._trouble is not None:
            raise LogUnavailable(f"the broker is away: {self._trouble}", RETRY_DOWN)
        barrier = self._barriers.shared()
        await asyncio.wait([barrier], timeout=deadline - self._loop.time())
        if not barrier.done() or barrier.cancelled():
            raise LogUnavailable("the broker does not answer", RETRY_DOWN)
        return self._reached + 1 >= position

    async def catch_up(self, seconds: float = 10.0) -> None:
        """
        Wait until everything is read that is in the stream by now, which other replicas may have read before.

        Raises:
            LogUnavailable: the broker cannot be asked.
        """
        barrier = self._barriers.shared() if self._trouble is None else None
        if barrier is not None:
            await asyncio.wait([barrier], timeout=seconds)
        if barrier is None or not barrier.done() or barrier.cancelled():
            raise LogUnavailable("the broker does not answer", RETRY_DOWN)

    def measures(self) -> Iterator[Measure]:
        """Return what operators look at; see `Log.measures`."""
        return self.statistics().measures()

    def statistics(self) -> StreamStatistics:
        """Return how it is, and what was done."""
        queued = self._writer.queued()
        return StreamStatistics(
            connected=self._trouble is None,
            blocked=self._writer.blocked_by is not None,
            silent_seconds=self._silence(),
            queued_events=queued.events,
            queued_bytes=queued.bytes,
            queue_events=self._queue_events,
            queue_bytes=self._queue_bytes,
            oldest_seconds=queued.oldest_seconds,
            events=self._events,
            published=self._writer.published,
            duplicates=self._admission.duplicates,
            dead=self._dead_count,
            unburied=len(self._dead),
            failures=self._writer.failures,
            reconnects=self._reconnects,
            resets=self._resets,
        )

    def _silence(self) -> float:
        """Return for how many seconds the broker has said nothing, on the connection that is quieter."""
        now = time.monotonic()
        if self._links:
            self._heard = now - max(link.silence() for link in self._links)
        return now - self._heard

    # --- the connections ------------------------------------------------------------------------------------

    async def _run(self, started: asyncio.Future[None]) -> None:
        """Keep connected until cancelled."""
        wait, settled = BACK_OFF[0], math.inf
        while True:
            try:
                await self._connect()
                if not started.done():
                    started.set_result(None)
                settled = time.monotonic() + SETTLED_SECONDS
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
            if time.monotonic() > settled:
                wait, settled = BACK_OFF[0], math.inf
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
        self._dead.lost()
        self._writer.fail(f"the connection to the broker was lost: {error}", RETRY_DOWN)

    async def _connect(self) -> None:
        """Open the connections, declare what is not there, begin or go on to read."""
        assert self._loop is not None
        host = self._address.hosts[self._host]
        self._ended = self._loop.create_future()
        writer = await connect(self._address, host, "sluicegate publish", self._writer)
        self._links = [writer]
        check_version(writer.version)
        await declare(self._address, host, self._topology, writer.at)
        await self._writer.open(writer)
        self._reading = reading = Reading(self._over, self._writer.waits)
        reader = await connect(
            self._address, host, "sluicegate read", reading, at=writer.at, max_body=self._max_body
        )
        self._links.append(reader)
        if self._last is not None and await self._resume(reading, reader):
            await self._catch_up()
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
            done, _ = await asyncio.wait([self._ended], timeout=random.uniform(*TICK_SECONDS))
            if done:
                raise self._ended.result()
            now = self._loop.time()
            if self._reading is not None:
                self._reading.acknowledge()
            self._writer.expire()
            self._bury()
            if self._renewal.due(self._reached, time.monotonic()):
                self._writer.mark(Mark(RENEWAL, self.epoch, token_hex(5)))
                self._renewal.renewed(self._reached, time.monotonic())
            if now - probed > PROBE_SECONDS:
                probed = now
                with contextlib.suppress(LinkError):
                    await self._history.probe()
            await self._scans.tidy(now)

    async def _hang_up(self) -> None:
        """Close every connection."""
        self._silence()
        links, self._links = self._links, []
        self._reading = None
        self._barriers.lost()
        await asyncio.gather(*(link.close() for link in links), self._scans.close())

    def _over(self, error: LinkError) -> None:
        """A connection ended."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(error)

    async def _open_scan(self, scans: Listener) -> Link:
        if not self._links:
            raise LinkError(self._trouble or "there is no connection to the broker")
        beside = self._links[0]
        return await connect(
            self._address, beside.host, "sluicegate scan", scans, at=beside.at, max_body=self._max_body
        )

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
            await self._history.probe()
            if self._extent.first > offset + 2:  # retention overtook us: nobody can be given what is between
                await reading.stop()
                return False
        reading.go(self._read_live)
        return True

    async def _catch_up(self) -> None:
        """
        Read everything that is in the stream by now. Whoever was not answered, and publishes again, is told
        from then on that it had come through, where otherwise there would be a second copy.
        """
        assert self._ended is not None
        barrier = self._barriers.set()
        reached, since = self._reached, time.monotonic()
        while not barrier.done() and self._writer.blocked_by is None:
            if self._reached != reached:
                reached, since = self._reached, time.monotonic()
            self._check_waiting(time.monotonic() - since)
            either: list[asyncio.Future[Any]] = [barrier, self._ended]
            await asyncio.wait(either, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)

    async def _begin(self, reading: Reading, link: Link) -> None:
        """Look at the stream from scratch: its beginning, its end, its epoch, its tail."""
        before = self.epoch, self.head
        self._history.forget()
        self._dead.clear()
        self._last = None
        self._reached = -1
        await reading.begin(link, self._topology.stream, "next")
        survey = Survey(
            reading, self._scans, self._oldest, self._writer.mark, self._tail_bytes, self._tail_events
        )
        found = await survey.run(self._check_waiting)
        self._extent.epoch = found.epoch
        self._admission.restart(found.epoch, found.begin, _now())
        self._accept_tail(found.tail, found.begin)
        self._writer.mark(Mark(RENEWAL, self.epoch, token_hex(5)))
        if self._begun:
            self._resets += 1
            log.warning("backbone.reset: now %s, was %s", (self.epoch, self.head), before)
        else:
            log.info("backbone.began: epoch %s, head %d", self.epoch, self.head)
        self._begun = True
        self.on_begin()
        reading.go(self._read_live)

    async def _oldest(self) -> int:
        """Look where the stream begins, and return the offset."""
        await self._history.probe()
        return self._extent.first - 1

    def _check_waiting(self, waited: float) -> None:
        """Say why a survey waits; raise LinkError if it waits for nothing."""
        if self._ended is not None and self._ended.done():
            raise self._ended.result()
        if self._writer.blocked_by is not None:
            self._trouble = f"the broker takes no messages: {self._writer.blocked_by}"
        elif waited > READ_BACK_SECONDS:
            raise LinkError(
                f"a message did not come back in {READ_BACK_SECONDS:.0f} seconds: the stream may have "
                "lost the majority of its replicas"
            )

    def _accept_tail(self, received: list[Received], begin: int) -> None:
        """Make the tail's events; the log ends with the last of them."""
        now, dead = _now(), self._dead_count
        events: list[Event] = []
        for each in received:
            if each.mark is not None:
                self._take_mark(each)
            elif (event := self._admit(each, now)) is not None:
                events.append(event)
        self._dead_count = dead  # they were counted when they came
        size = 0
        keep = len(events)
        while keep and size <= self._tail_bytes and len(events) - keep < self._tail_events:
            keep -= 1
            size += len(events[keep].body) + OVERHEAD_BYTES
        self._tail = events[keep:]
        self._reached = begin - 1
        last = events[-1] if events else None
        self._extent.head, self._extent.head_tag = (
            (last.position, last.tag) if last is not None else (begin, 0)
        )

    # --- reading live ---------------------------------------------------------------------------------------

    def _read_live(self, deliveries: list[Delivery]) -> None:
        """Take what one read brought: make events, deliver them, tell those who wait for theirs."""
        now = _now()
        self._admission.clock.note(self._reached + 1, now)
        batch: list[Event] = []
        done: list[Call] = []
        size = 0
        claim, origin = self._writer.claim, self._writer.origin
        for delivery in deliveries:
            received = read_message(delivery)
            if received is None or received.offset <= self._reached:
                continue
            self._reached = received.offset
            self._last = delivery
            size += delivery.size
            if received.mark is not None:
                self._take_mark(received)
                continue
            claimed = claim(received.number) if received.origin == origin else None
            if claimed is None:
                event = self._admit(received, now)
            else:
                event = self._admission.own(claimed[1], received, now)
                if not claimed[0].left:
                    done.append(claimed[0])
            if event is not None:
                batch.append(event)
        self._renewal.bytes += size
        if batch:
            self._publish_batch(batch)
        if done:
            self._writer.resolve(done)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _publish_batch(self, batch: list[Event]) -> None:
        self._events += len(batch)
        self._extent.head, self._extent.head_tag = batch[-1].position, batch[-1].tag
        try:
            self._deliver(batch)
        except Exception:
            log.exception("log.delivery_failed", extra={"first": batch[0].position, "head": self.head})

    def _admit(self, received: Received, now: int) -> Event | None:
        """Return the event that the next message is; what cannot be one is for the dead letters."""
        try:
            return self._admission.event(received, now)
        except NoEvent as error:
            self._dead_count += 1
            if self._dead.note(received, str(error)):
                self._bury()
            return None

    def _take_mark(self, received: Received) -> None:
        """Hear what a mark says."""
        mark = received.mark
        assert mark is not None
        if mark.kind == RENEWAL:
            self._renewal.renewed(received.offset, time.monotonic())
        elif mark.kind == BURIED and mark.epoch == self.epoch:
            self._dead.settled(mark.nonce)
        elif mark.kind == BARRIER:
            self._barriers.read(mark.nonce)

    # --- publishing -----------------------------------------------------------------------------------------

    def _refusal(self) -> LogUnavailable | None:
        if self._closing:
            return LogUnavailable("the log is closed", RETRY_CLOSED)
        if self._trouble is not None:
            return LogUnavailable(f"the broker is away: {self._trouble}", RETRY_DOWN)
        if self._writer.blocked_by is not None:
            return LogUnavailable(f"the broker takes no events now: {self._writer.blocked_by}", RETRY_DOWN)
        return None

    def _bury(self) -> None:
        """Send to the dead letters what no other replica has sent."""
        while (
            self._trouble is None
            and self._writer.blocked_by is None
            and (due := self._dead.due(BURIED_AT_ONCE))
        ):
            for offset in due:
                message, reason = self._dead[offset]
                name = f"{self.epoch}-{offset + 1}"
                log.warning("backbone.dead: message %s to %r: %s", name, message.delivery.key, reason)
                self._writer.bury(message, name, reason)
            self._writer.mark(Mark(BURIED, self.epoch, naming(due)))


def _now() -> int:
    return time.time_ns() // 1_000_000


def _ignore(_: list[Event]) -> None:
    """Deliver to nobody: before the start."""
