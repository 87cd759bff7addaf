"""
Sending: what is due goes out, each endpoint at its own pace and none at the expense of another.

Strategy: lanes with something to send stand in a ring and take turns, one attempt each, as long as the sender
has room. What an endpoint may have on its way shrinks with the room that is left, so endpoints that hang
cannot take all of it. There is no task for an attempt or an endpoint: an outcome is a callback, and one timer
wakes whoever has to wait for a time.

Those that are behind have a ring of their own, which turns more slowly while others have something new.

Only a few deliveries of an endpoint are in memory. When they run low the store is asked for more, for many
endpoints in one query, and for each just as many rows as it has room for: that one of them has a hundred
thousand makes no difference.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import count, islice
from typing import Final

from gateway.log import StoreUnavailable
from webhooks import parcels
from webhooks.attempt import Outcome
from webhooks.counters import Counters
from webhooks.delivery import Decision, Signal, deadline_of, is_outlived
from webhooks.endpoint import CLOSED
from webhooks.envelope import head
from webhooks.lane import MAX_QUEUE, NEVER, Lane
from webhooks.operations import HIGHEST
from webhooks.parcels import Parcel, Parcels
from webhooks.records import LOG_BITS, Attempt, Due, Result, Standing
from webhooks.sender import Sender
from webhooks.settling import Settled, Settling
from webhooks.signature import signature
from webhooks.store import Store
from webhooks.stored import status_of

log = logging.getLogger(__name__)

SHARE: Final = 8
"""An endpoint may have one part in so many of the room that is left."""
TURN: Final = 64
"""Attempts begun before the loop does other things."""
LATE_TURN: Final = 8
REST_SECONDS: Final = 0.002
CALM_MS: Final = 100
"""
While others keep up, those that are behind begin so many attempts and then rest: a backlog takes all the time
that there is, and must not take it from who has something new. If there was nothing new for so long they do
not rest.
"""
LOW: Final = MAX_QUEUE // 4
"""When so few are queued the store is asked for more."""
ASKED_AT_ONCE: Final = 200
"""Endpoints of one query."""
AFTER_MISTAKE_MS: Final = 60_000
"""How long an endpoint is left alone for which an attempt could not even be made."""
LOADED_AT_ONCE: Final = 250
"""Messages of one query."""
MISSED_AT_ONCE: Final = 16
"""Messages that are asked for together, when a lane's next one is not in memory."""
MAX_BYTES: Final = 64 << 20
"""Bytes of bodies on their way; one attempt may always be."""
LOOK_MS: Final = 30_000
"""The longest that is slept: a clock that was changed is noticed then."""
BACK_OFF: Final = 0.5
"""Seconds before a store that is away is asked again."""

_STANDINGS: Final = {
    Signal.SUCCEEDED: Standing.DELIVERED,
    Signal.POSTPONED: Standing.PENDING,
    Signal.HELD: Standing.PENDING,
    Signal.GIVEN_UP: Standing.FAILED,
    Signal.OUTLIVED: Standing.EXPIRED,
}

Tell = Callable[[Settled, Parcel, Outcome], None]
"""Takes an outcome that is to be announced before it is written down."""


class Sending:
    """
    Sends what is due.

    Args:
        store: where it is asked for.
        sender: makes the attempts.
        settling: writes down what came of them.
        kept: messages in memory.
        may_send: says whether attempts may begin: this process holds what it thinks it holds.
        epochs: names of logs by their numbers; awaited when one is not known.
        tell: see `Tell`.
        clock: milliseconds since the Unix epoch.
        counters: where it is counted.
    """

    def __init__(
        self,
        store: Store,
        sender: Sender,
        settling: Settling,
        kept: Parcels,
        may_send: Callable[[], bool],
        epoch: Callable[[int], Awaitable[str | None]],
        tell: Tell,
        clock: Callable[[], int],
        counters: Counters,
    ) -> None:
        self._store = store
        self._sender = sender
        self._settling = settling
        self._kept = kept
        self._may_send = may_send
        self._epoch = epoch
        self._tell = tell
        self._clock = clock
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._ring: deque[Lane] = deque()
        self._late: deque[Lane] = deque()  # the same of those that are behind
        self._fresh_at = 0  # when an attempt last began for one that is not
        self._rest: asyncio.TimerHandle | None = None
        self._pumping = False
        self._closed = False
        self._bytes = 0  # of bodies on their way
        self._asking: dict[Lane, None] = {}  # whose deliveries are to be fetched
        self._missing: dict[int, None] = {}  # messages that had to make room
        self._wanted = asyncio.Event()
        self._timers: list[tuple[int, int, Lane]] = []
        self._order = count()
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Begin nothing any more."""
        self._closed = True
        self._ring.clear()
        self._late.clear()
        for timer in (self._timer, self._rest):
            if timer is not None:
                timer.cancel()

    # --- who has something to send --------------------------------------------------------------------------

    def wake(self, lane: Lane) -> None:
        """Something may be done for a lane now."""
        if lane.over or self._closed:
            return
        if lane.behind and not lane.asking and len(lane.queue) <= LOW and lane.is_open:
            self._ask(lane)
        if lane.queue and not lane.queued:
            lane.queued = True
            (self._late if lane.behind else self._ring).append(lane)
            self.go_on()

    def go_on(self) -> None:
        """Whatever stopped all lanes may be over."""
        ready = self._ring or (self._late and self._rest is None)
        if ready and not self._pumping and not self._closed:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def wake_at(self, lane: Lane, time: int) -> None:
        """Look for something to do for a lane at a time, in milliseconds since the Unix epoch."""
        if time >= lane.wakes_at or self._closed:
            return
        lane.wakes_at = time
        heapq.heappush(self._timers, (time, next(self._order), lane))
        if self._timers[0][2] is lane:
            self._set_timer()

    def expect(self, lane: Lane, due: int) -> None:
        """A delivery in the store becomes due at a time."""
        lane.due_at = min(lane.due_at, due)
        self.wake_at(lane, due)

    def offer(self, lane: Lane, due: Due) -> None:
        """Take a delivery that was just stored."""
        if lane.offer(due) or not lane.asking:
            self.wake(lane)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        wait = min(max(self._timers[0][0] - self._clock(), 0), LOOK_MS)
        self._timer = self._loop.call_later(wait / 1000, self._look_at_time)

    def _look_at_time(self) -> None:
        """Wake those whose time has come."""
        self._timer = None
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            time, _, lane = heapq.heappop(self._timers)
            if time == lane.wakes_at:
                lane.wakes_at = NEVER
                if lane.due_at <= now:
                    lane.due_at = NEVER
                    lane.behind = True
                elif lane.due_at is not NEVER:
                    self.wake_at(lane, lane.due_at)
                self.wake(lane)
        if self._timers:
            self._set_timer()

    # --- the ring -------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Begin attempts: for those that keep up, then for those that are behind."""
        self._pumping = False
        if self._closed or self._settling.is_full or not self._may_send():
            return  # told to go on when that is over
        now = self._clock()
        if self._turn(self._ring, TURN, now):
            self._fresh_at = now
        if self._late and self._rest is None:
            if now - self._fresh_at > CALM_MS:
                self._turn(self._late, TURN, now)
            else:
                self._turn(self._late, max(LATE_TURN, 4 * len(self._late)), now)
                self._rest = self._loop.call_later(REST_SECONDS, self._rested)
        if self._sender.free > 0 and self._bytes < MAX_BYTES:
            self.go_on()

    def _rested(self) -> None:
        self._rest = None
        self.go_on()

    def _turn(self, ring: deque[Lane], most: int, now: int) -> int:
        """Begin attempts of lanes in a ring, one each in turn, as long as there is room; return how many."""
        begun = 0
        while ring and begun < most and (free := self._sender.free) > 0 and self._bytes < MAX_BYTES:
            lane = ring.popleft()
            lane.queued = False
            if not lane.queue:
                self.wake(lane)
                continue
            if lane.in_flight and lane.in_flight >= free // SHARE:
                continue  # its next outcome wakes it
            if lane.room(now) <= 0:
                self._wait(lane, now)
                continue
            try:
                used = self._begin(lane, now)
            except Exception:
                log.exception("webhooks.failed", extra={"endpoint": lane.endpoint.id})
                lane.empty()  # the others must not suffer from what is wrong with this one
                self.expect(lane, now + AFTER_MISTAKE_MS)
                continue
            if used:
                begun += 1
                self.wake(lane)
        return begun

    def _wait(self, lane: Lane, now: int) -> None:
        """Have a lane without room woken when it may have some, unless an outcome has to come first."""
        if lane.is_open and (ready := lane.endpoint.ready(now)) > now:
            self.wake_at(lane, ready)

    def _begin(self, lane: Lane, now: int) -> bool:
        """Begin the next attempt of a lane; return whether its turn was used."""
        due = lane.queue[0]
        parcel = self._kept.get(due.message)
        if parcel is None:
            for each in islice(lane.queue, MISSED_AT_ONCE):
                if each.message not in self._kept:
                    self._missing[each.message] = None
            self._ask(lane)
            return False
        if is_outlived(now, parcel.expires):
            lane.queue.popleft()
            lane.settling += 1
            self._counters.ended["expired"] += 1
            self._settling.add(Settled(lane, Result(lane.id, due.message, Standing.EXPIRED, now, due.tries)))
            return True
        endpoint, target = lane.endpoint, lane.target
        assert target is not None, "there is no room without"
        content = parcel.content.content(endpoint.description.body)
        seconds = now // 1000
        signed = signature(endpoint.secrets(now), parcel.content.id, seconds, content.body)
        lines = head(endpoint.lines, content, seconds, signed)
        size = len(content.body)
        self._sender.start(target, lines, content.body, partial(self._ended, lane, due, parcel, now, size))
        lane.queue.popleft()
        lane.in_flight += 1
        self._bytes += size
        endpoint.rate.take(now, 1)
        return True

    # --- outcomes -------------------------------------------------------------------------------------------

    def _ended(self, lane: Lane, due: Due, parcel: Parcel, began: int, size: int, outcome: Outcome) -> None:
        """Take in the outcome of an attempt."""
        self._bytes -= size
        lane.in_flight -= 1
        lane.settling += 1
        now = self._clock()
        endpoint = lane.endpoint
        self._counters.attempt(outcome.error or f"{outcome.status // 100}xx", outcome.duration_ms)  # type: ignore[operator]  # one of the two is there
        before = endpoint.state
        tries = due.tries + 1
        decision = endpoint.settle(
            outcome,
            tries,
            now,
            deadline=deadline_of(parcel.time, endpoint.schedule),
            expires=parcel.expires,
        )
        if lane.saved or decision.signal is not Signal.SUCCEEDED:
            self._settling.note(lane)
        settled = Settled(lane, self._result(lane, due, decision, tries, began, now, outcome))
        if endpoint.state is not before and endpoint.state in CLOSED:
            settled.closed = status_of(endpoint)
            lane.empty()
        if settled.closed is not None or decision.signal is Signal.GIVEN_UP:
            self._tell(settled, parcel, outcome)
        else:
            self._settling.add(settled)
        self.wake(lane)
        self.go_on()

    def _result(
        self, lane: Lane, due: Due, decision: Decision, tries: int, began: int, now: int, outcome: Outcome
    ) -> Result:
        standing = _STANDINGS[decision.signal]
        time = now
        if standing is not Standing.PENDING:
            self._counters.ended[standing.name.lower()] += 1
        elif lane.is_fifo:
            time = due.due  # it keeps its place; the whole endpoint waits
            lane.endpoint.health.postpone(decision.due)
        elif decision.due:
            time = decision.due
        error = outcome.error and (f"{outcome.error}: {outcome.detail}" if outcome.detail else outcome.error)
        attempt = Attempt(
            due.attempts + 1, began, outcome.status, error, outcome.duration_ms, outcome.excerpt
        )
        return Result(lane.id, due.message, standing, time, tries, attempt)

    def settled(self, batch: Sequence[Settled]) -> None:
        """Outcomes were written down: their deliveries are out of our hands."""
        for each in batch:
            lane, result = each.lane, each.result
            lane.settling -= 1
            lane.release(result.message)
            if result.standing is Standing.PENDING:
                if lane.is_fifo:
                    lane.empty()
                    self.wake(lane)
                else:
                    self.expect(lane, result.due)
            elif lane.is_fifo or lane.behind:
                self.wake(lane)
        self.go_on()

    # --- asking the store -----------------------------------------------------------------------------------

    def _ask(self, lane: Lane) -> None:
        self._asking[lane] = None
        self._wanted.set()

    async def run(self) -> None:
        """Fetch what lanes ask for, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._asking or self._missing:
                try:
                    await self._fetch()
                except StoreUnavailable:
                    await asyncio.sleep(BACK_OFF)

    async def _fetch(self) -> None:
        """Fetch for some lanes the deliveries that are due next, and their messages."""
        lanes = list(islice(self._asking, ASKED_AT_ONCE))
        missing, self._missing = self._missing, {}
        asked = [lane for lane in lanes if lane.behind and lane.is_open]
        rooms = {lane.id: lane.ask() for lane in asked}
        try:
            rows = await self._store.due(HIGHEST, rooms)
            await self._load(self._numbers(missing, rows))
        except BaseException:
            for lane in asked:
                lane.stop_asking()
                lane.behind = True
            self._missing = missing | self._missing
            raise
        for lane in lanes:
            self._asking.pop(lane, None)
        self._take(asked, rooms, rows)
        for lane in lanes:
            self.wake(lane)

    def _numbers(self, missing: Iterable[int], rows: Sequence[Due]) -> list[int]:
        """Return which messages to load: those that are missing, and of each lane the first."""
        numbers = dict.fromkeys(missing)
        if rows:
            most = max(LOADED_AT_ONCE // len({row.endpoint for row in rows}), 4)
            counts: Counter[int] = Counter()
            for row in rows:
                if counts[row.endpoint] < most and row.message not in self._kept:
                    counts[row.endpoint] += 1
                    numbers[row.message] = None
        return [number for number in islice(numbers, LOADED_AT_ONCE) if number not in self._kept]

    async def _load(self, numbers: Sequence[int]) -> None:
        """Put messages into memory. What is forgotten is out of everybody's hands."""
        if not numbers:
            return
        found = await self._store.find_messages(numbers)
        for number, message in found.items():
            epoch = await self._epoch(number >> LOG_BITS)
            self._kept.put(number, parcels.restored(message, epoch))
        if len(found) < len(numbers):
            gone = {number for number in numbers if number not in found}
            for lane in self._asking:
                lane.forget(gone)

    def _take(self, asked: Sequence[Lane], rooms: dict[int, int], rows: Sequence[Due]) -> None:
        """Give lanes what the store answered."""
        now = self._clock()
        by_lane: dict[int, list[Due]] = {}
        for row in rows:
            by_lane.setdefault(row.endpoint, []).append(row)
        for lane in asked:
            next_due = lane.take(by_lane.get(lane.id, ()), rooms[lane.id], now)
            if next_due != NEVER:
                self.expect(lane, next_due)
