"""
Sharing: what a replica does for requests where several share a broker.

Every replica has the whole book. What must be done by one of them at a time is done by the one that owns the
request's bucket in the ring of replicas: it has those tried again that are due, and lets those expire whose
time is over. Should two do so, the log has it twice, and the book takes the first.

Who leases requests at this replica gets those that came to it from the buckets' queues. It takes part in a
service, as a worker does, for as long as somebody leases there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.requests.book import Book, Request
from gateway.requests.changes import Change, State
from gateway.requests.queue import Queue

if TYPE_CHECKING:
    from gateway.handling.consumer import Consumer, Held

log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 10.0
"""
How long a replica takes part in a service after somebody last asked it for requests. What comes meanwhile
waits here for somebody who asks.
"""

UNKNOWN_SECONDS: Final = 60.0
"""How long a message waits for what the log will say, before it is asked whether it said all."""

PREFETCH: Final = 4
"""Requests of a bucket that wait here for somebody to lease them."""

LOOK_SECONDS: Final = 1.0


Make = Callable[[str, "Callable[[Held], None]", Callable[[str], None]], "Consumer"]
"""Makes the consumer of a service: `make(service, take, over)`."""


SETTLE_SECONDS: Final = 2.0
"""
How long a bucket must have been ours before anything is done for it: by then all is read that was written by
whoever had it.
"""


class Ours:
    """
    Which buckets have been this replica's for long enough.

    Args:
        owned: those that are its own now.
    """

    def __init__(self, owned: Callable[[], frozenset[int]]) -> None:
        self._owned = owned
        self._known = frozenset[int]()
        self._since: dict[int, float] = {}

    def look(self, now: float) -> None:
        """Notice what changed; to be called often. `now` is the monotonic clock's."""
        owned = self._owned()
        if owned is not self._known:
            self._since = {bucket: self._since.get(bucket, now) for bucket in owned}
            self._known = owned

    def __contains__(self, bucket: int) -> bool:
        since = self._since.get(bucket)
        return since is not None and time.monotonic() - since > SETTLE_SECONDS and bucket in self._owned()


class Later:
    """Requests that are to be tried again at some time."""

    def __init__(self) -> None:
        self._due: dict[str, int] = {}

    def changed(self, request: Request) -> None:
        """A request has changed, or was found at the start."""
        if request.state is State.QUEUED and request.due:
            self._due[request.token] = request.due
        else:
            self._due.pop(request.token, None)

    def ripe(self, now: int) -> list[str]:
        """Return the tokens of those that are due, in that order; they stay here until they change."""
        found = [(due, token) for token, due in self._due.items() if due <= now]
        return [token for _, token in sorted(found)]

    def clear(self) -> None:
        """Forget everything: the log is another one."""
        self._due.clear()


class SharedQueue(Queue):
    """The requests of which this replica has the message: no others can be leased here."""

    def __init__(self, book: Book) -> None:
        super().__init__(book)
        self._here: set[str] = set()

    def add(self, request: Request) -> None:
        """Let a request wait, if it is ours to give."""
        if request.token in self._here:
            super().add(request)

    def deliver(self, request: Request) -> None:
        """Let a request wait that came to us."""
        self._here.add(request.token)
        super().add(request)

    def let_go(self, token: str) -> None:
        """It is not ours any more."""
        self._here.discard(token)

    def keep(self, token: str) -> None:
        """It is ours after all."""
        self._here.add(token)

    def clear(self) -> None:
        """Forget everything: the log is another one."""
        super().clear()
        self._here.clear()


@dataclass(slots=True)
class _Taking:
    """A service in which we take part."""

    consumer: Consumer
    task: asyncio.Task[None]
    wanted: float  # when somebody last asked


class Feed:
    """
    Brings what comes from the queues to those who lease.

    Args:
        book: where requests stand.
        queue: what can be leased here.
        make: makes the consumer of a service: `make(service, take, over)`.
        wake: wakes somebody who waits for requests of a service.
        leased: whether somebody has a lease of a request.
        waits: how many wait for requests of a service.
        catch_up: waits until the book has all that the log says by now; returns whether it does.
    """

    def __init__(
        self,
        book: Book,
        queue: SharedQueue,
        make: Make,
        wake: Callable[[str], object],
        leased: Callable[[str], bool],
        waits: Callable[[str], int],
        catch_up: Callable[[], Awaitable[bool]],
    ) -> None:
        self._book = book
        self._queue = queue
        self._make = make
        self._wake = wake
        self._leased = leased
        self._waits = waits
        self._catch_up = catch_up
        self._taking: dict[str, _Taking] = {}
        self._wanted: set[str] = set()
        self._held: dict[str, Held] = {}  # those that can be leased, or are
        self._early: dict[str, tuple[Held, float]] = {}  # those that the log has not told of yet
        self._acts: asyncio.Queue[tuple[Held, bool]] = asyncio.Queue()  # with whether it is put back
        self._news = asyncio.Event()
        self._stopped = False

    def wanted(self, service: str) -> None:
        """Somebody asks for requests of a service."""
        taking = self._taking.get(service)
        if taking is not None:
            taking.wanted = time.monotonic()
        elif not self._stopped:
            self._wanted.add(service)
            self._news.set()

    def changed(self, request: Request) -> None:
        """A request has changed: perhaps its message was here already."""
        early = self._early.pop(request.token, None)
        if early is not None:
            self._offer(request, *early)

    def over(self, token: str) -> None:
        """See `Messages`."""
        self.ended(self.ending(token))

    def ending(self, token: str) -> Held | None:
        """See `Messages`."""
        self._queue.let_go(token)
        return self._held.pop(token, None)

    def ended(self, message: Held | None) -> None:
        """See `Messages`."""
        if message is not None:
            self._acts.put_nowait((message, False))

    def goes_on(self, token: str, message: Held | None) -> None:
        """See `Messages`."""
        if message is not None:
            self._held[token] = message
            self._queue.keep(token)

    def stop(self) -> None:
        """Take nothing more, and let others have what nobody leased."""
        self._stopped = True
        for taking in self._taking.values():
            self._leave(taking)

    async def run(self) -> None:
        """Take part where it is wanted; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._act())
            try:
                while True:
                    try:
                        async with asyncio.timeout(LOOK_SECONDS):
                            await self._news.wait()
                    except TimeoutError:
                        pass
                    self._news.clear()
                    while self._wanted:
                        self._begin(self._wanted.pop(), tasks)
                    self._look()
                    await self._look_at_early()
            finally:
                self.stop()

    def _begin(self, service: str, tasks: asyncio.TaskGroup) -> None:
        consumer = self._make(service, self._arrived, self._hear)
        task = tasks.create_task(self._consume(consumer))
        self._taking[service] = _Taking(consumer, task, time.monotonic())

    async def _consume(self, consumer: Consumer) -> None:
        """Run a consumer; whatever ends it must not end the gateway, and the next who asks begins another."""
        try:
            await consumer.run()
        except Exception:
            log.exception("requests.refused", extra={"service": consumer.service})

    def _leave(self, taking: _Taking) -> None:
        """Leave a service; what is leased goes on until it is over."""
        taking.consumer.stop()
        for token, held in list(self._held.items()):
            if held.consumer is taking.consumer and not self._leased(token):
                self._drop(token, put_back=True)
        for token, (held, _) in list(self._early.items()):
            if held.consumer is taking.consumer:
                del self._early[token]
                self._acts.put_nowait((held, True))

    def _look(self) -> None:
        """Look what time has brought."""
        now = time.monotonic()
        for service, taking in list(self._taking.items()):
            mine = [token for token, held in self._held.items() if held.consumer is taking.consumer]
            taking.consumer.busy = sum(map(self._leased, mine))
            if taking.task.done():
                del self._taking[service]
            elif self._waits(service) or taking.consumer.busy:
                taking.wanted = now
            elif now - taking.wanted > IDLE_SECONDS:
                self._leave(taking)
                taking.task.cancel()
                del self._taking[service]
        for token, held in list(self._held.items()):
            if not self._leased(token) and (held.lost or held.bucket not in held.consumer.buckets):
                self._drop(token, put_back=True)
        for token, (held, _) in list(self._early.items()):
            if held.lost:
                del self._early[token]

    async def _look_at_early(self) -> None:
        """Be done with messages of which all of the log says nothing: only so is nothing lost by it."""
        now = time.monotonic()
        waiting = [each for each in self._early.items() if now - each[1][1] > UNKNOWN_SECONDS]
        if not waiting or not await self._catch_up():
            return
        for token, early in waiting:
            if self._early.get(token) is early:
                log.warning("requests.unknown", extra={"token": token})
                del self._early[token]
                self._acts.put_nowait((early[0], False))

    def _drop(self, token: str, *, put_back: bool) -> None:
        self._queue.let_go(token)
        self._queue.forget(token)
        self._acts.put_nowait((self._held.pop(token), put_back))

    def _arrived(self, held: Held) -> None:
        request = self._book.get(held.token)
        if request is None:
            self._await(held, time.monotonic())
        else:
            self._offer(request, held, time.monotonic())

    def _offer(self, request: Request, held: Held, since: float) -> None:
        """Let a request be leased, now that both are here: what the log says, and the message."""
        change = held.change
        stale = change is not None and change.failures < request.failures
        known = self._held.get(request.token)
        if known is not None and known.lost:
            self._held[request.token] = held  # it came again, after its connection had ended
        elif change is not None and (
            _leads(change, request) or (known is not None and _follows(change, known))
        ):
            self._await(held, since)
        elif request.state.final or stale or known is not None:
            self._acts.put_nowait((held, False))
        else:
            self._held[request.token] = held
            self._queue.deliver(request)
            self._wake(request.service)

    def _await(self, held: Held, since: float) -> None:
        """Let a message wait for what the log will say; one is enough for a request."""
        before = self._early.pop(held.token, None)
        if before is not None:
            self._acts.put_nowait((before[0], False))
        self._early[held.token] = held, since

    def _hear(self, _token: str) -> None:
        """The log says so as well."""

    async def _act(self) -> None:
        while True:
            held, put_back = await self._acts.get()
            await (held.put_back() if put_back else held.acknowledge())


def _follows(change: Change, held: Held) -> bool:
    """Say whether a message is that of a later try than another, of which the log has not told yet."""
    before = held.change
    return before is not None and (change.attempt, change.failures) > (before.attempt, before.failures)


def _leads(change: Change, request: Request) -> bool:
    """Say whether a message tells more than the log has told yet: that a request is due, or tried again."""
    if request.state is State.FAILED:
        return change.retry and change.attempt >= request.attempt
    return request.due > 0 and not request.state.final and change.failures >= request.failures
