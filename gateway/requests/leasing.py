"""
Leasing: which worker has which request, for how long, and what comes of it.

A worker takes a lease of a request and has to be heard of before it ends: by progress, or by what came of it.
Otherwise the request goes to the next. Leases are in memory only: after a restart nobody has one, and what
was running is queued again, because the log says that it is not finished.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Protocol

from msgspec import Raw

from gateway.mint import now_ms
from gateway.problems import Problem
from gateway.requests.book import Book, Request
from gateway.requests.changes import TOKEN, Change, State, Trouble, moment_of
from gateway.requests.options import Options
from gateway.requests.queue import Queue

log = logging.getLogger(__name__)

MAX_BACKOFF: Final = 300.0
"""Seconds between two tries at most, unless a worker asks for more."""

Publish = Callable[[Sequence[tuple[str, Change]]], Awaitable[None]]
"""Writes changes, each with its token, into the log; returns when they are durable and in the book."""

Data = Callable[[Request], Awaitable[Change | None]]
"""Returns the change that began a request, with its data; None if it is not there any more."""


class Messages(Protocol):
    """
    The messages by which requests come, on a broker. One is done with when the change that ends its lease is
    durable; by then there may be another for the same request.
    """

    def wanted(self, service: str) -> None:
        """Somebody asks for requests of a service."""

    def over(self, token: str) -> None:
        """A request is over."""

    def ending(self, token: str) -> Any:
        """Return the message of a request whose lease ends; it is not that of the request any more."""

    def ended(self, message: Any) -> None:
        """The lease has ended."""

    def goes_on(self, token: str, message: Any) -> None:
        """The lease goes on after all."""


@dataclass(slots=True)
class Lease:
    """
    A worker has a request.

    Attributes:
        id: what the worker names it by; nobody can guess it.
        request: what it has.
        attempt: which time this is.
        worker: the name that it gave itself.
        until: when it ends, by the loop's clock.
        elsewhere: it was given by another replica, which looks after it.
    """

    id: str
    request: Request
    attempt: int
    worker: str
    until: float
    elsewhere: bool = False


class Leasing:
    """
    Gives requests to workers, and takes back what came of them.

    Args:
        book: where requests stand.
        options: their bounds.
        publish: writes changes.
        data: reads what a client handed in.
        queue: what can be leased here; all of it unless given.

    Attributes:
        messages: by which requests come here, if they come by messages.
        catch_up: waits until what other replicas have said is known here, if there are any.
    """

    def __init__(
        self, book: Book, options: Options, publish: Publish, data: Data, queue: Queue | None = None
    ) -> None:
        self.leases: dict[str, Lease] = {}
        self.lapsed = 0  # leases that ended because their worker was not heard of
        self.draining = False
        self.messages: Messages | None = None
        self.catch_up: Callable[[], Awaitable[None]] | None = None
        self._book = book
        self._options = options
        self._publish = publish
        self._data = data
        self._queue = Queue(book) if queue is None else queue
        self._by_token: dict[str, Lease] = {}
        self._waiters: dict[str, deque[asyncio.Future[None]]] = {}

    # --- told by others -------------------------------------------------------------------------------------

    def changed(self, request: Request) -> None:
        """A request has changed, or was found unfinished at the start."""
        if request.state.final:
            lease = self._by_token.pop(request.token, None)
            if lease is not None:
                self._drop(lease)
            if self.messages is not None:
                self.messages.over(request.token)
            return
        lease = self._by_token.get(request.token)
        if lease is not None and self.messages is not None:
            self._changed_elsewhere(lease, request)
        elif request.state is State.QUEUED or lease is None:
            self._queue.add(request)
            self.wake(request.service)

    def _changed_elsewhere(self, lease: Lease, request: Request) -> None:
        """The worker that has a lease of ours spoke to another replica."""
        assert self.messages is not None
        if request.state is State.RUNNING and request.attempt == lease.attempt:
            lease.until = self._later()
        else:
            del self._by_token[request.token]
            self._drop(lease)
            self.messages.over(request.token)

    def leased(self, token: str) -> bool:
        """Return whether a worker has a request."""
        return token in self._by_token or token in self._queue.taken

    def waiting(self, service: str) -> int:
        """Return how many workers wait for requests of a service."""
        return len(self._waiters.get(service, ()))

    def drain(self) -> None:
        """Let no worker wait any more."""
        self.draining = True
        for service in list(self._waiters):
            while self.wake(service):
                pass

    def restart(self) -> None:
        """Forget everything: the log is another one."""
        self.leases.clear()
        self._by_token.clear()
        self._queue.clear()

    async def sweep(self, now: int) -> None:
        """Look after time: what is due, and whose lease has ended. `now` in ms since the Unix epoch."""
        for service in self._queue.ripen(now):
            while self.wake(service):
                pass
        clock = asyncio.get_running_loop().time()
        for lease in [each for each in self.leases.values() if each.until <= clock]:
            self.lapsed += 1
            log.warning("requests.lapsed", extra={"service": lease.request.service, "worker": lease.worker})
            try:
                detail = f"the worker {lease.worker} was not heard of for {self._options.lease:g} seconds"
                await self._fail(lease, Trouble("lost", detail))
            except Problem:
                return  # the log cannot store: the next sweep tries again

    # --- asked by workers -----------------------------------------------------------------------------------

    async def lease(
        self, service: str, worker: str, most: int, wait: float, gone: asyncio.Future[None]
    ) -> list[tuple[Lease, Change]]:
        """
        Return leases of up to so many requests with what was handed in; wait for the first.

        Args:
            service: whose requests.
            worker: who asks.
            most: how many.
            wait: seconds.
            gone: done when whoever asks is gone.

        Raises:
            Problem: 503, the log cannot store.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while True:
            if gone.done():
                self.wake(service)  # what this one was woken for is somebody else's
                return []
            if self.messages is not None:
                self.messages.wanted(service)
            found = self._queue.take(service, most, now_ms())
            leased = await self._begin(found, worker) if found else []
            left = deadline - loop.time()
            if leased or left <= 0 or self.draining:
                return leased
            await self._wait(service, left, gone)

    async def progress(self, id: str, progress: Raw) -> None:
        """
        Note that a worker is at work, and what it says of it; empty if nothing.

        Raises:
            Problem: 404, there is no such lease; 413, 503.
        """
        lease = await self.find(id)
        lease.until = self._later()
        members: dict[str, Any] = {}
        if bytes(progress):
            self._check_size(progress, "progress")
            members["progress"] = progress
        if members or lease.elsewhere:
            change = self._change(lease, State.RUNNING, **members)
            await self._publish([(lease.request.token, change)])

    async def complete(self, id: str, result: Raw) -> None:
        """
        Note the result of a request.

        Raises:
            Problem: 404, 503; 413, the result is too large, and the request has failed.
        """
        lease = await self.find(id)
        if len(bytes(result)) > self._options.max_result_bytes:
            most = self._options.max_result_bytes
            detail = f"the result has {len(bytes(result))} bytes, more than the {most} that it may have"
            await self._fail(lease, Trouble("result", detail), again=False)
            raise Problem(413, detail)
        await self._end(lease, self._change(lease, State.DONE, result=result))

    async def fail(self, id: str, trouble: Trouble, *, again: bool, delay: float | None) -> None:
        """
        Note that an attempt failed.

        Args:
            id: of the lease.
            trouble: why.
            again: whether trying again makes sense.
            delay: seconds before the next try; None for the usual.

        Raises:
            Problem: 404, 503.
        """
        await self._fail(await self.find(id), trouble, again=again, delay=delay)

    async def release(self, id: str) -> None:
        """
        Take a request back that its worker has not tried; that counts as no failure.

        Raises:
            Problem: 404, 503.
        """
        lease = await self.find(id)
        await self._end(lease, self._change(lease, State.QUEUED))

    # --- how ------------------------------------------------------------------------------------------------

    async def _begin(self, found: list[Request], worker: str) -> list[tuple[Lease, Change]]:
        """Lease requests that were taken out of the queue."""
        leased: list[tuple[Lease, Change]] = []
        try:
            for request in found:
                begun = await self._data(request)
                if begun is None:
                    await self._publish([(request.token, over(request, "gone", "retention took its data"))])
                    self._queue.taken.discard(request.token)
                elif not request.state.final:
                    lease = Lease(self._new_id(request), request, request.attempt + 1, worker, 0)
                    leased.append((lease, begun))
            await self._publish(
                [(each.request.token, self._change(each, State.RUNNING)) for each, _ in leased]
            )
        except BaseException:
            self._queue.give_back([each for each in found if each.token in self._queue.taken])
            raise
        for lease, _ in leased:
            if lease.request.state.final:  # cancelled just now
                self._queue.taken.discard(lease.request.token)
                continue
            lease.until = self._later()
            self.leases[lease.id] = self._by_token[lease.request.token] = lease
        return [(lease, begun) for lease, begun in leased if lease.id in self.leases]

    async def _fail(
        self, lease: Lease, trouble: Trouble, *, again: bool = True, delay: float | None = None
    ) -> None:
        failures = lease.request.failures + 1
        if not again or failures >= self._options.tries:
            change = self._change(lease, State.FAILED, failures=failures, error=trouble)
        else:
            seconds = backoff(self._options.backoff, failures) if delay is None else delay
            due = moment_of(now_ms() + round(seconds * 1000))
            change = self._change(lease, State.QUEUED, failures=failures, error=trouble, next=due)
        await self._end(lease, change)

    async def _end(self, lease: Lease, change: Change) -> None:
        """Write down how a lease ends; it goes on if that cannot be done."""
        self._drop(lease)
        self._by_token.pop(lease.request.token, None)
        message = None if self.messages is None else self.messages.ending(lease.request.token)
        try:
            await self._publish([(lease.request.token, change)])
        except BaseException:
            if not lease.request.state.final and not lease.elsewhere:
                if self.messages is not None:
                    self.messages.goes_on(lease.request.token, message)
                self._queue.taken.add(lease.request.token)
                self.leases[lease.id] = self._by_token[lease.request.token] = lease
            raise
        if self.messages is not None:
            self.messages.ended(message)

    def _drop(self, lease: Lease) -> None:
        self.leases.pop(lease.id, None)
        self._queue.taken.discard(lease.request.token)

    def _change(self, lease: Lease, state: State, **members: object) -> Change:
        known = {"failures": lease.request.failures, **members}
        if state is State.RUNNING and self.messages is not None:
            known["lease"] = _digest(lease.id)
        return Change(state=state, service=lease.request.service, attempt=lease.attempt, **known)  # type: ignore[arg-type]

    async def find(self, id: str) -> Lease:
        """
        Return a lease that holds.

        Raises:
            Problem: 404, there is none; 503, the log cannot be asked.
        """
        lease = self.leases.get(id) or self._elsewhere(id)
        if lease is None and self.catch_up is not None and TOKEN.fullmatch(id.partition(".")[0]):
            await self.catch_up()
            lease = self.leases.get(id) or self._elsewhere(id)
        if lease is None:
            raise no_lease()
        return lease

    def _elsewhere(self, id: str) -> Lease | None:
        """Return a lease that another replica gave, if the log says that it holds."""
        request = self._book.get(id.partition(".")[0])
        if request is None or request.state is not State.RUNNING or request.lease != _digest(id):
            return None
        return Lease(id, request, request.attempt, "", math.inf, elsewhere=True)

    def _new_id(self, request: Request) -> str:
        """Return a name of a lease that nobody can guess; where there are more replicas it says of what."""
        secret = secrets.token_urlsafe(18)
        return secret if self.messages is None else f"{request.token}.{secret}"

    def _check_size(self, value: Raw, what: str) -> None:
        if len(bytes(value)) > self._options.max_result_bytes:
            most = self._options.max_result_bytes
            raise Problem(413, f"the {what} has more than the {most} bytes that it may have")

    def _later(self) -> float:
        return asyncio.get_running_loop().time() + self._options.lease

    async def _wait(self, service: str, seconds: float, gone: asyncio.Future[None]) -> None:
        """Wait until it is worth looking again; whoever waits longest is woken first."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(service, deque())
        waiters.append(woken)
        try:
            await asyncio.wait((woken, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if woken in waiters:
                waiters.remove(woken)
            if not waiters:
                self._waiters.pop(service, None)

    def wake(self, service: str) -> bool:
        """Have the worker that waits longest look again; tell whether there was one."""
        waiters = self._waiters.get(service)
        if not waiters:
            return False
        woken = waiters.popleft()
        if not woken.done():
            woken.set_result(None)
        return True


def no_lease() -> Problem:
    """Return the answer if there is no such lease."""
    return Problem(404, "there is no such lease: it has ended, or the request is over")


def _digest(id: str) -> str:
    """Return what stands for a lease where everybody may read it."""
    return blake2b(id.encode(errors="replace"), digest_size=12).hexdigest()


def backoff(first: float, failures: int) -> float:
    """
    Return the seconds until the next try; spread, so that what failed together comes apart.

    Args:
        first: seconds after the first failure.
        failures: how many there were.
    """
    longest: float = min(first * 2 ** min(failures - 1, 30), MAX_BACKOFF)
    return longest * random.uniform(0.5, 1)  # no secret


def over(request: Request, reason: str, detail: str) -> Change:
    """Return the change by which a request fails without a worker."""
    return Change(
        state=State.FAILED,
        service=request.service,
        attempt=request.attempt,
        failures=request.failures,
        error=Trouble(reason, detail),
    )
