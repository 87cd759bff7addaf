"""
The book: what became of each request, as the log tells it. Pure.

It is filled by applying the events of the log in their order, and knows of each request only where it stands
and at which positions its data and its newest change are: whoever wants those reads them in the log. So an
entry is small, whatever is in the request, and the book of every replica is the same.

    first change, with data ──▶ QUEUED ◀──▶ RUNNING ──▶ DONE, FAILED, CANCELLED ──▶ forgotten after a while
                                   ▲                               │
                                   └───────── tried again ─────────┘ (a failed one)

What comes late changes nothing: a worker that was given up and speaks after all, a change of a request that
is over, an event seen twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Final

from msgspec import UNSET

from fanout.event import Event
from fanout.topics import tenant_of
from gateway.requests.changes import Change, State, change_of, ms_of, token_of

ENTRY_BYTES: Final = 900
"""What one request costs in memory (measured): the entry, its token, its places in the tables."""


@dataclass(slots=True)
class Request:
    """
    One request; times are milliseconds since the Unix epoch.

    Attributes:
        token: its name.
        serial: its number in the book; later ones have greater ones.
        service: who is asked.
        state: where it stands.
        attempt: how often a worker had it.
        failures: how many of these times ended badly, since it was last handed in.
        created: when it was handed in.
        updated: when it last changed.
        expires: when nobody cares any more.
        due: when it may be tried; 0 is at once.
        begun: position of the event that has its data.
        latest: position of its newest change.
        reason: why it failed, in a word; empty if it did not.
        key: the id of its first event, which repeats of the same call share; None if its client gave none.
        digest: stands for its data.
        lease: stands for the lease of the worker that has it; empty if none of the door's has.
        tenant: whose client handed it in; empty for those that are no tenant's.
        owner: stands for that client; empty if nobody knows them.
    """

    token: str
    serial: int
    service: str
    state: State
    attempt: int
    failures: int
    created: int
    updated: int
    expires: int
    due: int
    begun: int
    latest: int
    reason: str
    key: str | None
    digest: bytes
    lease: str = ""
    tenant: str = ""
    owner: str = ""


class Book:
    """
    All requests that are unfinished, or were finished lately.

    Args:
        keep_ms: how long one is known after it was finished.
    """

    def __init__(self, keep_ms: int) -> None:
        self.upto = 0  # position of the last event that was applied
        self.unfinished: Counter[str] = Counter()  # by service
        self.unfinished_of: Counter[str] = Counter()  # by owner, of those that have some
        self.ended: Counter[tuple[str, str]] = Counter()  # by service and state or reason, for the metrics
        self._keep = keep_ms
        self._requests: dict[str, Request] = {}
        self._keys: dict[str, str] = {}
        self._ends: list[tuple[int, str]] = []  # a heap: when a request expires, or is forgotten
        self._serial = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, token: object) -> bool:
        return token in self._requests

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    def get(self, token: str) -> Request | None:
        """Return a request by its token."""
        return self._requests.get(token)

    def by_key(self, key: str) -> Request | None:
        """Return the request whose first event has this id."""
        token = self._keys.get(key)
        return None if token is None else self._requests.get(token)

    def apply(self, event: Event) -> Request | None:
        """Take in the next event of the log; return the request that it changed, if it did."""
        self.upto = event.position
        token = token_of(event)
        change = None if token is None else change_of(event)
        if token is None or change is None:
            return None
        request = self._requests.get(token)
        if request is None:
            return self._begin(token, event, change)
        if not _matters(request, change):
            return None
        was_final = request.state.final
        if change.lease is not UNSET:
            request.lease = change.lease
        elif change.state is not State.RUNNING or change.attempt != request.attempt:
            request.lease = ""
        request.state = change.state
        request.attempt = change.attempt
        request.failures = change.failures
        request.updated = event.time
        request.latest = event.position
        request.due = 0 if change.next is UNSET else ms_of(change.next)
        request.reason = "" if change.error is UNSET or not change.state.final else change.error.reason
        if change.expires is not UNSET:
            request.expires = ms_of(change.expires)
        if was_final:  # an operator's retry
            self._count(request, 1)
            self._note(request)
        elif request.state.final:
            self._count(request, -1)
            self.ended[request.service, request.reason or request.state.value] += 1
            self._note(request)
        return request

    def restart(self) -> None:
        """Forget everything: the log is another one."""
        self.upto = 0
        self.unfinished.clear()
        self.unfinished_of.clear()
        self._requests.clear()
        self._keys.clear()
        self._ends.clear()

    def sweep(self, now: int) -> list[Request]:
        """
        Forget what was finished long enough ago, and return what nobody cares for any more: unfinished
        requests whose time is over. They stay what they are until the log says otherwise.
        """
        over = []
        while self._ends and self._ends[0][0] <= now:
            _, token = heappop(self._ends)
            request = self._requests.get(token)
            if request is None:
                continue
            if self._end(request) > now:
                self._note(request)
            elif request.state.final:
                self._forget(request)
            else:
                over.append(request)
        for request in over:
            heappush(self._ends, (now + 1000, request.token))  # asked again, should nothing come of it
        return over

    def _begin(self, token: str, event: Event, change: Change) -> Request | None:
        if change.state is not State.QUEUED or change.retry or change.expires is UNSET:
            return None  # it was forgotten, or is older than what we read of the log
        self._serial += 1
        request = Request(
            token=token,
            serial=self._serial,
            service=change.service,
            state=State.QUEUED,
            attempt=0,
            failures=0,
            created=event.time,
            updated=event.time,
            expires=ms_of(change.expires),
            due=0 if change.next is UNSET else ms_of(change.next),
            begun=event.position,
            latest=event.position,
            reason="",
            key=event.given_id,
            digest=digest_of(change),
            tenant=tenant_of(event.topic),
            owner=change.owner,
        )
        self._requests[token] = request
        if request.key is not None:
            self._keys[request.key] = token
        self._count(request, 1)
        self._note(request)
        return request

    def _count(self, request: Request, more: int) -> None:
        """Count an unfinished request more, or less."""
        self.unfinished[request.service] += more
        if request.owner:
            self.unfinished_of[request.owner] += more
            if not self.unfinished_of[request.owner]:
                del self.unfinished_of[request.owner]

    def _end(self, request: Request) -> int:
        return request.updated + self._keep if request.state.final else request.expires

    def _note(self, request: Request) -> None:
        heappush(self._ends, (self._end(request), request.token))

    def _forget(self, request: Request) -> None:
        del self._requests[request.token]
        if request.key is not None and self._keys.get(request.key) == request.token:
            del self._keys[request.key]


def _matters(request: Request, change: Change) -> bool:
    """Tell whether a change is news of a request, and not what somebody says too late."""
    if change.service != request.service:
        return False
    if request.state.final:
        return change.retry and request.state is State.FAILED and change.state is State.QUEUED
    if change.state.final:
        return True
    return not change.retry and change.attempt >= request.attempt


def digest_of(change: Change) -> bytes:
    """Return what stands for the data of the change that begins a request."""
    data = change.data if change.data is not UNSET else change.data_base64
    return blake2b(b"" if data is UNSET else bytes(data), digest_size=8).digest()
