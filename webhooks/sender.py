"""
The sender: attempts over HTTP/1.1, each with one deadline over everything and exactly one outcome.

Strategy: an attempt costs no task and no timer of its own. It is a `Flight` that is sent on an idle link,
or on one that a task opens for it; the link hears the answer, and the flight's `done` is called. All
attempts have the same time, so the one begun first is due first, and one timer watches the first of them.

There is no queue: whoever sends decides what goes first, and starts nothing while `free` is 0.

A redirect is an answer like any other. Proxies that the environment names are not used: the guard has to see
the address that is connected to.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from webhooks.attempt import Fault, Outcome, Target
from webhooks.connect import Connector, Unreachable
from webhooks.flight import Done, Flight
from webhooks.guard import Guard
from webhooks.link import Link
from webhooks.pool import Keep, Pool
from webhooks.resolve import Names

TIMEOUT_SECONDS: Final = 15.0
"""What receivers are commonly given; nobody should do his work before he answers."""
MAX_IN_FLIGHT: Final = 1024
MAX_EXCERPT: Final = 1024
"""Bytes of an answer's body that are kept for whoever looks for what went wrong."""

_SWEEP_SECONDS: Final = 1.0
_LATE_SECONDS: Final = 1.0
_READ_FIRST_SECONDS: Final = 0.01


class SenderFull(Exception):
    """As many attempts are under way as may be: the caller's mistake, who has to look at `free`."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """
    What a sender did so far and has at the moment.

    Attributes:
        in_flight: attempts under way.
        idle: links that wait for a request.
        open: links in all, those being opened included.
        opened: links that were opened.
        reused: requests that were sent on a link that had carried another.
        repeated: requests that were sent again because such a link turned out to be closed.
    """

    in_flight: int
    idle: int
    open: int
    opened: int
    reused: int
    repeated: int


class Sender:
    """
    Sends requests; to be entered as a context, which when left ends what is under way without an outcome.

    Args:
        guard: says what may be connected to.
        names: knows the addresses of names.
        trust: whose certificates are trusted.
        timeout: seconds for an attempt: name, connection, TLS, request, answer.
        in_flight: attempts at a time.
        keep: what is kept of links that are not in use.
        max_excerpt: bytes kept of the body of an answer.
    """

    def __init__(
        self,
        guard: Guard,
        names: Names,
        trust: ssl.SSLContext,
        *,
        timeout: float = TIMEOUT_SECONDS,
        in_flight: int = MAX_IN_FLIGHT,
        keep: Keep | None = None,
        max_excerpt: int = MAX_EXCERPT,
    ) -> None:
        self._connector = Connector(guard, names, trust)
        self._timeout = timeout
        self._in_flight = in_flight
        self._max_excerpt = max_excerpt
        self._pool = Pool(keep or Keep())
        self._running: dict[Flight, None] = {}  # whoever began first is first
        self._links: set[Link] = set()
        self._waiters: set[asyncio.Future[Outcome]] = set()
        self._tasks = asyncio.TaskGroup()
        self._loop: asyncio.AbstractEventLoop
        self._deadline: asyncio.TimerHandle | None = None
        self._due = 0.0  # when that timer is to fire
        self._sweep: asyncio.TimerHandle | None = None
        self._closing = False
        self._all_closed = asyncio.Event()  # while closing
        self._opened = self._reused = self._repeated = 0

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        try:
            # The group is not told of an error that is not one of its tasks', or it would wrap it.
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._close_links()

    # --- sending --------------------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """How many more attempts may be started."""
        return self._in_flight - len(self._running)

    def start(
        self,
        target: Target,
        headers: bytes,
        body: bytes,
        done: Done,
        *,
        method: str = "POST",
        wanted: frozenset[bytes] = frozenset(),
    ) -> Flight:
        """
        Begin an attempt.

        Args:
            target: where it goes.
            headers: whole lines, each with its CRLF; host, length and accepted encodings are added here.
            body: of the request.
            done: called once with the outcome, later than this returns; never if the attempt is cancelled.
            method: of the request.
            wanted: names of headers of the answer that the outcome is to have, in lower case.

        Raises:
            SenderFull: nothing is free, or the sender has been left.
        """
        if self._closing:
            raise SenderFull("the sender is closing")
        if len(self._running) >= self._in_flight:
            raise SenderFull(f"{self._in_flight} attempts are under way, which is all that may be")
        now = self._loop.time()
        begin = target.post if method == "POST" else target.head(method)
        head = b"%b%d\r\n%b\r\n" % (begin, len(body), headers)
        flight = Flight(target, head, body, wanted, done, now)
        self._running[flight] = None
        if self._deadline is None:
            self._watch(flight)
        link = self._pool.take(target.origin, now)
        if link is None:
            self._open(flight)
        else:
            self._reused += 1
            link.ask(flight)
        return flight

    async def send(
        self,
        target: Target,
        headers: bytes,
        body: bytes = b"",
        *,
        method: str = "POST",
        wanted: Iterable[bytes] = (),
    ) -> Outcome:
        """Make an attempt and return its outcome; see `start`. Cancelled, it is cut off."""
        future: asyncio.Future[Outcome] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if not future.done():  # cancelled in this turn of the loop
                future.set_result(outcome)

        flight = self.start(target, headers, body, done, method=method, wanted=frozenset(wanted))
        self._waiters.add(future)
        try:
            return await future
        finally:
            self._waiters.discard(future)
            self.cancel(flight)

    def cancel(self, flight: Flight) -> None:
        """Cut an attempt off, without an outcome: the receiver may have got it or not. Idempotent."""
        if flight in self._running:
            self._drop(flight)

    def statistics(self) -> Statistics:
        """Return what was done so far."""
        return Statistics(
            in_flight=len(self._running),
            idle=len(self._pool),
            open=len(self._links),
            opened=self._opened,
            reused=self._reused,
            repeated=self._repeated,
        )

    # --- links ----------------------------------------------------------------------------------------------

    def _open(self, flight: Flight) -> None:
        flight.task = self._tasks.create_task(self._open_and_ask(flight))

    async def _open_and_ask(self, flight: Flight) -> None:
        link = Link(flight.target.origin, self, self._max_excerpt, self._loop.time)
        self._links.add(link)
        try:
            await self._connector.open(flight, link)
        except Unreachable as error:
            self._finish(flight, self._fault(flight, error.fault, str(error)))
            return
        finally:
            flight.task = None
            if not link.is_open():
                self._forget(link)
        if link.is_open():
            self._opened += 1
            link.ask(flight)
        elif link.spoke_unasked:
            self._finish(flight, self._fault(flight, "protocol", "the receiver spoke before it was asked"))
        else:
            self._finish(flight, self._fault(flight, "reset", "the connection was closed at once"))

    def answered(self, link: Link, *, reusable: bool) -> None:
        """See `webhooks.link.Owner`."""
        flight = link.flight
        assert flight is not None
        now = self._loop.time()
        outcome = Outcome(
            link.status,
            None,
            int((now - flight.started) * 1000),
            link.retry_after,
            link.excerpt,
            "",
            tuple(link.headers),
        )
        link.flight = None
        if reusable:
            self._pool.give(link, now)
            if self._sweep is None:
                self._sweep = self._loop.call_later(_SWEEP_SECONDS, self._sweep_pool)
        else:
            link.abort()
        self._finish(flight, outcome)

    def failed(self, link: Link, fault: Fault, detail: str) -> None:
        """See `webhooks.link.Owner`."""
        flight = link.flight
        assert flight is not None
        closed_while_idle = link.used and not link.received and fault in ("reset", "tls")
        link.abort()
        flight.link = None
        if closed_while_idle:
            # Most likely it was closed before the request came. If not, it is sent twice: at least once.
            self._repeated += 1
            self._open(flight)
        else:
            self._finish(flight, self._fault(flight, fault, detail))

    def closed(self, link: Link) -> None:
        """See `webhooks.link.Owner`."""
        self._pool.forget(link)
        self._forget(link)

    def _forget(self, link: Link) -> None:
        self._links.discard(link)
        if self._closing and not self._links:
            self._all_closed.set()

    def _sweep_pool(self) -> None:
        self._pool.sweep(self._loop.time())
        self._sweep = self._loop.call_later(_SWEEP_SECONDS, self._sweep_pool) if len(self._pool) else None

    # --- ends -----------------------------------------------------------------------------------------------

    def _look_at_deadlines(self) -> None:
        """End what is overdue, and come back when the next one is due."""
        now = self._loop.time()
        if now - self._due > _LATE_SECONDS:  # this process stood still: answers may have come meanwhile
            self._due = now
            self._deadline = self._loop.call_later(_READ_FIRST_SECONDS, self._look_at_deadlines)
            return
        while self._running:
            flight = next(iter(self._running))
            if flight.started > now - self._timeout:
                self._watch(flight)
                return
            self._expire(flight)
        self._deadline = None

    def _watch(self, first: Flight) -> None:
        """Look at the deadlines when that of the flight that began first has come."""
        self._due = first.started + self._timeout
        self._deadline = self._loop.call_at(self._due, self._look_at_deadlines)

    def _expire(self, flight: Flight) -> None:
        if flight.link is not None and flight.link.status:
            self.answered(flight.link, reusable=False)
        else:
            detail = f"{flight.phase.value} within {self._timeout:g} seconds"
            outcome = self._fault(flight, "timeout", detail)
            self._drop(flight)
            self._tell(flight, outcome)

    def _fault(self, flight: Flight, fault: Fault, detail: str) -> Outcome:
        duration = int((self._loop.time() - flight.started) * 1000)
        return Outcome(error=fault, duration_ms=duration, detail=detail)

    def _finish(self, flight: Flight, outcome: Outcome) -> None:
        del self._running[flight]
        flight.link = None
        self._tell(flight, outcome)

    def _tell(self, flight: Flight, outcome: Outcome) -> None:
        try:
            flight.done(outcome)
        except Exception as error:  # noqa: BLE001  # one delivery's trouble must not end all the others
            self._loop.call_exception_handler({"message": "an outcome was not taken", "exception": error})

    def _drop(self, flight: Flight) -> None:
        """Forget a flight, with its link or what opens one."""
        del self._running[flight]
        if flight.task is not None:
            flight.task.cancel()
        if flight.link is not None:
            flight.link.abort()
            flight.link = None

    def _stop(self) -> None:
        """Cut everything off."""
        self._closing = True
        for flight in list(self._running):
            self._drop(flight)
        for future in self._waiters:
            future.cancel()
        for link in list(self._links):
            link.abort()
        for timer in (self._deadline, self._sweep):
            if timer is not None:
                timer.cancel()

    async def _close_links(self) -> None:
        """Wait until every socket is closed."""
        if self._links:
            await self._all_closed.wait()
