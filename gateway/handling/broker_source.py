"""Jobs from the queues of a broker, without a gateway in between."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import OrderedDict, deque
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, Raw

from gateway.handling.consumer import Consumer, Held
from gateway.handling.data import data_of
from gateway.handling.source import Job, SourceError
from gateway.requests.buckets import BACKOFF, DELIVERIES, RESULT_BYTES, TRIES
from gateway.requests.changes import Change, State, Trouble, ms_of
from gateway.requests.leasing import backoff

if TYPE_CHECKING:
    from gateway.amqp.address import Address

log = logging.getLogger(__name__)

REPORT_SECONDS: Final = 6.0
"""Three times how often it is looked whether a job is still ours; the broker hears of us by heartbeats."""

RELEASE_SECONDS: Final = 5.0
"""How long it is tried to give a job back in an orderly way."""

GIVE_UP_SECONDS: Final = 300.0
"""For so long it is tried to say how a job ended; by then it is somebody else's."""

KNOWN_OVER: Final = 10_000
"""Requests that were taken back lately, and are passed over should they come."""


class BrokerSource:
    """
    Takes the jobs of its share of a service.

    Args:
        address: of the broker.
        stream: the name of the log's stream.
        exchange: where events are published.
        service: whose requests.
        worker: the name of this worker; no two of one service have the same.
        concurrency: how many it works on at a time.
    """

    def __init__(
        self, address: Address, stream: str, exchange: str, service: str, worker: str, concurrency: int
    ) -> None:
        self._consumer = Consumer(
            address,
            stream,
            exchange,
            service,
            worker,
            take=self._arrived,
            over=self._note_over,
            prefetch=max(1, math.ceil(concurrency / 4)),
        )
        self._waiting: deque[Held] = deque()
        self._running: dict[str, tuple[Held, Change]] = {}
        self._over: OrderedDict[str, None] = OrderedDict()
        self._news = asyncio.Event()
        self._leases = count(1)
        self._serving: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Leave, and let others have what came and was not begun."""
        self._consumer.stop()
        while self._waiting:
            await self._waiting.popleft().put_back()
        if self._serving is not None:
            self._serving.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._serving

    async def take(self, most: int) -> list[Job]:
        """See `Source.take`."""
        if self._serving is None:
            self._serving = asyncio.create_task(self._consumer.run())
            self._serving.add_done_callback(lambda _: self._news.set())
        while True:
            self._news.clear()
            self._check()
            jobs: list[Job] = []
            while self._waiting and len(jobs) < most:
                job = await self._begin(self._waiting.popleft())
                if job is not None:
                    jobs.append(job)
            if jobs:
                return jobs
            await self._news.wait()

    async def progress(self, job: Job, value: bytes | None) -> bool:
        """See `Source.progress`."""
        held, change = self._running[job.lease]
        if held.lost or job.token in self._over or _expired(change):
            await held.acknowledge()
            self._end(job)
            return False
        if value is not None and len(value) <= _number(held, RESULT_BYTES, len(value)):
            running = _next(change, State.RUNNING, job, progress=Raw(value))
            await self._consumer.publish(job.token, running)
        elif value is not None:
            log.warning("worker.progress", extra={"token": job.token, "why": "it is too large"})
        return True

    async def complete(self, job: Job, result: bytes) -> bool:
        """See `Source.complete`."""
        held, change = self._running[job.lease]
        most = _number(held, RESULT_BYTES, len(result))
        if len(result) > most:
            detail = f"the result has {len(result)} bytes, more than the {most} that it may have"
            return await self.fail(job, "result", detail, again=False)
        return await self._settle(job, _next(change, State.DONE, job, result=Raw(result)))

    async def fail(self, job: Job, reason: str, detail: str, *, again: bool) -> bool:
        """See `Source.fail`."""
        held, change = self._running[job.lease]
        failures = change.failures + 1
        known: dict[str, Any] = {"failures": failures, "error": Trouble(reason, detail[:2000])}
        if not again or failures >= _number(held, TRIES, 1):
            return await self._settle(job, _next(change, State.FAILED, job, **known))
        seconds = backoff(_number(held, BACKOFF, 1000) / 1000, failures)
        due = datetime.now(UTC) + timedelta(seconds=seconds)
        return await self._settle(job, _next(change, State.QUEUED, job, next=due, **known))

    async def release(self, job: Job) -> None:
        """See `Source.release`."""
        held, change = self._running[job.lease]
        again = _next(
            change,
            State.QUEUED,
            job,
            data=change.data,
            data_base64=change.data_base64,
            expires=change.expires,
        )
        with contextlib.suppress(TimeoutError):  # then it is another's when this worker is gone
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._consumer.publish(job.token, again, held.bucket)
            await held.acknowledge()
        self._end(job)

    # --- how ------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raise what ended the consumer, if something did."""
        if self._serving is None or not self._serving.done():
            return
        error = self._serving.exception()
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error if isinstance(error, Exception) else SourceError("the worker was stopped")

    def _arrived(self, held: Held) -> None:
        self._waiting.append(held)
        self._news.set()

    def _note_over(self, token: str) -> None:
        self._over[token] = None
        while len(self._over) > KNOWN_OVER:
            self._over.popitem(last=False)

    async def _begin(self, held: Held) -> Job | None:
        """Say that a job is begun; None if there is nothing to do."""
        token, change = held.token, held.change
        if held.lost:
            return None
        if held.bucket not in self._consumer.buckets:
            await held.put_back()  # it moved to another while it waited here
            return None
        if change is None or change.state is not State.QUEUED:
            log.error("worker.unreadable", extra={"token": token})
            trouble = Trouble("refused", "its worker cannot read it: it may be of another version")
            unread = Change(state=State.FAILED, service=self._consumer.service, error=trouble)
            await self._consumer.publish(token, unread)
            await held.acknowledge()
            return None
        if token in self._over or _expired(change):
            await held.acknowledge()  # whoever took it back, or let it expire, has said so
            return None
        attempt = change.attempt + held.deliveries + 1
        job = Job(
            f"{token}/{next(self._leases)}",
            token,
            change.service,
            attempt,
            data_of(change.data, change.data_base64),
            REPORT_SECONDS,
        )
        if held.deliveries >= DELIVERIES:
            detail = f"{held.deliveries} workers vanished with it"
            failed = _next(change, State.FAILED, job, error=Trouble("lost", detail))
            await self._consumer.publish(token, failed)
            await held.acknowledge()
            return None
        await self._consumer.publish(token, _next(change, State.RUNNING, job))
        self._running[job.lease] = held, change
        self._consumer.busy = len(self._running)
        return job

    async def _settle(self, job: Job, change: Change) -> bool:
        """Write down how a job ends; only then is its message done with."""
        held, _ = self._running[job.lease]
        try:
            async with asyncio.timeout(GIVE_UP_SECONDS):
                await self._consumer.publish(job.token, change)
        except TimeoutError:
            return False
        finally:
            self._end(job)
        await held.acknowledge()
        return True

    def _end(self, job: Job) -> None:
        self._running.pop(job.lease, None)
        self._consumer.busy = len(self._running)


def _next(before: Change, state: State, job: Job, **members: Any) -> Change:
    """Return the change that comes after another."""
    known = {"failures": before.failures, "tenant": before.tenant, **members}
    return Change(state=state, service=job.service, attempt=job.attempt, **known)


def _expired(change: Change) -> bool:
    return change.expires is not UNSET and ms_of(change.expires) < ms_of(datetime.now(UTC))


def _number(held: Held, name: str, otherwise: int) -> int:
    value = held.headers.get(name)
    return value if isinstance(value, int) else otherwise
