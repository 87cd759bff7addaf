"""
Requests as a gateway has them: the book, filled from the log and kept up with it, and what clients can ask.

    submit ──▶ event on requests.<token> ──▶ log ──▶ book ──▶ queue ──▶ lease ──▶ worker
    status ◀── book and log                   ▲                                    │
                                              └──────── running, done, failed ─────┘

Every change goes through the intake, like any event: when it is answered it is durable, and in the book.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import UNSET, Raw
from msgspec.json import encode

from fanout.event import Event
from fanout.window import Window
from gateway.intake import Intake
from gateway.log import Log, LogError
from gateway.mint import Mint, now_ms
from gateway.problems import Problem
from gateway.requests.book import Book, Request, digest_of
from gateway.requests.changes import (
    TOKEN,
    TYPE,
    Change,
    State,
    change_of,
    is_of_requests,
    moment_of,
    new_token,
    topic_of,
)
from gateway.requests.leasing import Leasing, over
from gateway.requests.options import Options
from gateway.requests.sharing import Feed, Later, Make, Ours, SharedQueue

log = logging.getLogger(__name__)

READ_BYTES: Final = 1 << 20
"""How much of the log is read at a time when the book is filled."""

SWEEP_SECONDS: Final = 0.2
"""How often it is looked what time has brought: what is due, lapsed, expired, forgotten."""

RETRY_FILL: Final = 1.0
"""Seconds after which a log that could not be read is tried again."""

BUSY_SECONDS: Final = 5.0
"""What a client waits before it asks a full service again."""


TOGETHER: Final = 100
"""How many requests that are due are published together."""


@dataclass(frozen=True, slots=True)
class Shared:
    """
    What is this replica's to do, of several.

    Attributes:
        bucket: returns the bucket of a key, in the ring of replicas.
        owned: returns the buckets that are this replica's.
        make: makes what brings the requests of a service.
        catch_up: waits until everything was read that is in the log by now; raises LogError.
    """

    bucket: Callable[[str], int]
    owned: Callable[[], frozenset[int]]
    make: Make
    catch_up: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Client:
    """
    Who hands a request in.

    Attributes:
        tenant: whose they are; empty if no tenant's.
        owner: stands for them; empty if nobody knows them.
        check: given what counts the unfinished requests of theirs; raises Problem if they may have no more.
    """

    tenant: str = ""
    owner: str = ""
    check: Callable[[Callable[[], int]], None] = lambda _: None


NOBODY: Final = Client()
"""One whom nobody knows."""


class Requests:
    """
    All requests of one gateway.

    Args:
        intake: where changes go.
        mint: makes their events.
        log: where they are read again.
        window: its recent part.
        options: bounds.
        shared: what is ours to do, where several replicas share a broker; None if this is the only one.
    """

    def __init__(
        self,
        intake: Intake,
        mint: Mint,
        log: Log,
        window: Window,
        options: Options,
        shared: Shared | None = None,
    ) -> None:
        self.options = options
        self.book = Book(round(options.keep * 1000))
        self.shared = shared
        self.feed: Feed | None = None
        if shared is None:
            self.leasing = Leasing(self.book, options, self._publish, self._data)
        else:
            queue = SharedQueue(self.book)
            self.leasing = Leasing(self.book, options, self._publish, self._data, queue)
            leasing = self.leasing
            self.feed = Feed(
                self.book,
                queue,
                shared.make,
                leasing.wake,
                leasing.leased,
                leasing.waiting,
                self._knows_all,
            )
            self.leasing.messages = self.feed
            self.leasing.catch_up = self._catch_up
        self._later = Later()
        self._ours = None if shared is None else Ours(shared.owned)
        self._due = asyncio.Event()
        self._again = False
        self.ready = False
        self.refused = 0  # calls that were answered 429 because of their service
        self._on_the_way: dict[str, set[str]] = {}  # tokens by owner: handed in, and not answered yet
        self._intake = intake
        self._mint = mint
        self._log = log
        self._window = window
        self._early: list[Event] = []
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}

    # --- life -----------------------------------------------------------------------------------------------

    def take(self, batch: list[Event]) -> None:
        """Take the next events of the log. On the way of every event, so it does little."""
        for event in batch:
            if is_of_requests(event.topic):
                if self.ready:
                    self._apply(event)
                else:
                    self._early.append(event)

    async def run(self) -> None:
        """Fill the book, then look after time; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self.feed is not None:
                tasks.create_task(self.feed.run())
            while True:
                self._again = False
                await self._fill()
                while not self._again:
                    try:
                        async with asyncio.timeout(SWEEP_SECONDS):
                            await self._due.wait()
                    except TimeoutError:
                        pass
                    self._due.clear()
                    await self._sweep()

    async def _sweep(self) -> None:
        """Do what time has brought, as far as it is ours to do."""
        now = now_ms()
        if self._ours is not None:
            self._ours.look(time.monotonic())
        try:
            await self.leasing.sweep(now)
            expired = [each for each in self.book.sweep(now) if self._owns(each.token)]
            detail = "it was not done in time"
            await self._publish([(each.token, over(each, "expired", detail)) for each in expired])
            if self.shared is not None:
                await self._try_again([token for token in self._later.ripe(now) if self._owns(token)])
        except Problem as problem:
            log.debug("requests.waiting", extra={"why": problem.detail})

    async def _try_again(self, tokens: list[str]) -> None:
        """Put requests that are due into their queues."""
        for start in range(0, len(tokens), TOGETHER):
            found = [self.book.get(token) for token in tokens[start : start + TOGETHER]]
            await self._publish([(each.token, _ready(each)) for each in found if each is not None])

    def _owns(self, token: str) -> bool:
        """Say whether a request is this replica's to look after."""
        return self.shared is None or self._ours is None or self.shared.bucket(token) in self._ours

    def restart(self) -> None:
        """The log is another one, or begins: read what it says of requests."""
        self.ready = False
        self.book.restart()
        self.leasing.restart()
        self._later.clear()
        self._early.clear()
        self._again = True
        for token in list(self._waiters):
            self._wake(token)

    def drain(self) -> None:
        """Let nobody wait any more."""
        self.leasing.drain()
        if self.feed is not None:
            self.feed.stop()
        for token in list(self._waiters):
            self._wake(token)

    async def _fill(self) -> None:
        """Read the log from as far back as requests live, then go on with what came meanwhile."""
        begun = time.monotonic()
        position: int | None = None
        while position is None:
            try:
                position = await self._read()
            except LogError as error:
                log.warning("requests.unread", extra={"why": str(error)})
                self.book.restart()
                await asyncio.sleep(RETRY_FILL)
        early, self._early = self._early, []
        for event in early:
            if event.position > position:
                self.book.apply(event)
        if self._again:
            return  # the log became another one meanwhile
        self.ready = True
        for request in self.book:
            self._changed(request)
        if len(self.book):
            seconds = round(time.monotonic() - begun, 1)
            log.info("requests.read", extra={"known": len(self.book), "seconds": seconds})

    async def _read(self) -> int:
        """Read the log up to its end, and return the position up to which it was read."""
        back = round((self.options.ttl + self.options.keep) * 1000)
        position = await self._log.find_time(now_ms() - back)
        while events := await self._log.read(position, READ_BYTES):
            position = events[-1].position
            for event in events:
                if is_of_requests(event.topic):
                    self.book.apply(event)
            await asyncio.sleep(0)
        return position

    def _apply(self, event: Event) -> None:
        request = self.book.apply(event)
        if request is not None:
            self._changed(request)
            self._wake(request.token)

    def _changed(self, request: Request) -> None:
        self.leasing.changed(request)
        if self.feed is not None:
            self._later.changed(request)
            self.feed.changed(request)
            if request.due and request.due <= now_ms() and self._owns(request.token):
                self._due.set()

    # --- asked by clients -----------------------------------------------------------------------------------

    async def submit(
        self,
        service: str,
        data: Raw | None,
        base64: Raw | None,
        key: str | None,
        ttl: float | None,
        client: Client = NOBODY,
    ) -> tuple[Request, str]:
        """
        Hand in a request; return it with a cursor behind which its changes come.

        Args:
            service: who is asked.
            data: JSON for the worker.
            base64: instead of it, a JSON string.
            key: the same for repeats of one call, which are one request then; None if there are none.
            ttl: seconds in which it has to be done; None for the usual.
            client: who hands it in.

        Raises:
            Problem: 429, the service has too many, or the client; 422, the key was used for other data; 413,
                503.
        """
        self.check_ready()
        change = Change(
            state=State.QUEUED,
            service=service,
            expires=moment_of(now_ms() + round((self.options.ttl if ttl is None else ttl) * 1000)),
            data=UNSET if data is None else data,
            data_base64=UNSET if base64 is None else base64,
            tenant=client.tenant,
            owner=client.owner,
        )
        if key is not None and (known := self.book.by_key(key)) is not None:
            return self._repeated(known, change)
        if self.book.unfinished[service] >= self.options.max_unfinished:
            self.refused += 1
            detail = f"the service {service} has {self.options.max_unfinished} unfinished requests already"
            raise Problem(429, detail, retry_after=BUSY_SECONDS)
        token = new_token()
        with self._coming(token, client):
            return await self._begin(token, change, key)

    @contextlib.contextmanager
    def _coming(self, token: str, client: Client) -> Iterator[None]:
        """
        Count a request that is on its way into the book as one of its client's.

        Raises:
            Problem: the client may not have it.
        """
        owner, book = client.owner, self.book
        if not owner:
            yield
            return
        coming = self._on_the_way.setdefault(owner, set())
        try:
            client.check(lambda: book.unfinished_of[owner] + sum(each not in book for each in coming))
            coming.add(token)
            yield
        finally:
            coming.discard(token)
            if not coming:
                self._on_the_way.pop(owner, None)

    async def _begin(self, token: str, change: Change, key: str | None) -> tuple[Request, str]:
        """Write the change that begins a request, and return that."""
        if self.shared is not None and key is not None:
            # Repeats through other replicas are told apart by the log only: so it has to be read before one
            # of them is put into a queue.
            change = msgspec.structs.replace(change, next=moment_of(now_ms()))
        await self._write([(token, change)], key)
        request = self.book.get(token)
        if request is None and key is not None:
            known = self.book.by_key(key)
            if known is None:
                raise Problem(409, "that idempotency key was used not long ago, and its request is over")
            return self._repeated(known, change)
        if request is None:
            raise Problem(503, "the request is durable, but not known here yet", retry_after=1)
        return request, self.before(request)

    def _repeated(self, request: Request, change: Change) -> tuple[Request, str]:
        if request.service != change.service or request.digest != digest_of(change):
            raise Problem(422, "that idempotency key was used for another request")
        return request, self.before(request)

    def before(self, request: Request) -> str:
        """Return a cursor behind which all changes of a request come."""
        return self._window.cursor(request.begun - 1)

    async def find(self, token: str) -> Request:
        """
        Return a request by its token.

        Raises:
            Problem: 404; it does not tell whether there ever was one. 503, the log cannot be asked.
        """
        self.check_ready()
        request = self.book.get(token)
        if request is None and self.shared is not None and TOKEN.fullmatch(token):
            await self._catch_up()  # it may have been handed in at another replica just now
            request = self.book.get(token)
        if request is None:
            raise no_request()
        return request

    async def _catch_up(self) -> None:
        """Know what is in the log by now; raises Problem if it cannot be asked."""
        assert self.shared is not None
        try:
            await self.shared.catch_up()
        except LogError as error:
            raise Problem(503, error.told, retry_after=error.retry_after) from None

    async def _knows_all(self) -> bool:
        """Let the book have all that the log says by now, and say whether it does."""
        try:
            await self._catch_up()
        except Problem:
            return False
        return self.ready

    async def wait(
        self, request: Request, since: int | None, seconds: float, gone: asyncio.Future[None]
    ) -> None:
        """
        Wait until a request is finished, or, with `since`, has changed behind that position; or until the
        time is over, or nobody waits any more.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not (request.state.final if since is None else request.latest != since):
            left = deadline - loop.time()
            if left <= 0 or self.leasing.draining or gone.done():
                return
            woken: asyncio.Future[None] = loop.create_future()
            waiters = self._waiters.setdefault(request.token, set())
            waiters.add(woken)
            try:
                await asyncio.wait((woken, gone), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiters.discard(woken)
                if not waiters and self._waiters.get(request.token) is waiters:
                    del self._waiters[request.token]

    async def cancel(self, request: Request) -> None:
        """
        Take a request back.

        Raises:
            Problem: 409, it is done or has failed.
        """
        if not request.state.final:
            change = Change(
                state=State.CANCELLED,
                service=request.service,
                attempt=request.attempt,
                failures=request.failures,
            )
            await self._publish([(request.token, change)])
        if request.state is not State.CANCELLED:
            raise Problem(409, f"the request is {request.state.value}: there is nothing left to cancel")

    async def retry(self, request: Request) -> None:
        """
        Have a failed request tried again, as if it had just been handed in.

        Raises:
            Problem: 409, it has not failed; 410, what was handed in is not there any more.
        """
        if request.state is not State.FAILED:
            raise Problem(
                409, f"the request is {request.state.value}, and only what has failed is tried again"
            )
        if await self._data(request) is None:
            raise Problem(410, "what was handed in has left the log")
        expires = moment_of(now_ms() + round(self.options.ttl * 1000))
        change = Change(
            state=State.QUEUED,
            service=request.service,
            attempt=request.attempt,
            expires=expires,
            retry=True,
        )
        await self._publish([(request.token, change)])

    async def newest(self, request: Request) -> Change | None:
        """
        Return the newest change of a request; None if it has left the log.

        Raises:
            Problem: 503, the log cannot be read.
        """
        return await self._change_at(request.latest)

    def check_ready(self) -> None:
        """
        Check that the book is filled.

        Raises:
            Problem: 503, it is not.
        """
        if not self.ready:
            raise Problem(503, "the requests are being read from the log", retry_after=1)

    # --- the log --------------------------------------------------------------------------------------------

    async def _publish(self, changes: Sequence[tuple[str, Change]]) -> None:
        if changes and self.shared is not None:
            changes = [(token, await self._whole(token, change)) for token, change in changes]
        if changes:
            await self._write(changes, None)

    async def _whole(self, token: str, change: Change) -> Change:
        """Return a change with the data, if it goes into a queue: its worker has it from there."""
        request = self.book.get(token)
        if request is None or change.state is not State.QUEUED or change.next is not UNSET:
            return change
        begun = await self._data(request)
        if begun is None:
            return over(request, "gone", "retention took its data")
        expires = moment_of(request.expires) if change.expires is UNSET else change.expires
        return msgspec.structs.replace(
            change, data=begun.data, data_base64=begun.data_base64, expires=expires
        )

    async def _write(self, changes: Sequence[tuple[str, Change]], key: str | None) -> None:
        """Write changes into the log; they are in the book when this returns."""
        now = self._intake.now()
        events = []
        for token, change in changes:
            known = self.book.get(token)
            tenant = change.tenant if known is None else known.tenant
            told = msgspec.structs.replace(change, tenant=tenant) if change.tenant != tenant else change
            events.append(self._mint.event(now, topic_of(token, tenant), encode(told), key, TYPE, token))
        await self._intake.publish(events)

    async def _data(self, request: Request) -> Change | None:
        return await self._change_at(request.begun)

    async def _change_at(self, position: int) -> Change | None:
        if position > self._window.floor:
            found = self._window.after(position - 1, 1, 1)
        else:
            try:
                found = await self._log.read(position - 1, 1)
            except LogError as error:
                raise Problem(503, error.told, retry_after=error.retry_after) from None
        if not found or found[0].position != position:
            return None
        return change_of(found[0])

    def _wake(self, token: str) -> None:
        for woken in self._waiters.pop(token, ()):
            if not woken.done():
                woken.set_result(None)


def _ready(request: Request) -> Change:
    """Return the change by which a request that was to be tried later is ready now."""
    return Change(
        state=State.QUEUED, service=request.service, attempt=request.attempt, failures=request.failures
    )


def no_request() -> Problem:
    """Return the answer if there is no such request."""
    return Problem(404, "there is no such request, or it is over for long")
