"""
The watch: connections whose token is over, or was revoked, are closed; those whose token will soon be over
are told.

One task looks at all connections once a second, and at once when something was revoked. A client can hand in
a new token in time, and its connection goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from fanout.closing import EXPIRED, REVOKED, CloseReason
from fanout.connection import Connection
from fanout.errors import ClaimError
from fanout.frames import control_frame
from fanout.grants import Grants
from gateway.auth.authority import Authority
from gateway.auth.caller import Caller, Kind, expiry_of
from gateway.polling import Poller
from gateway.problems import Problem
from gateway.streams import Streams, StreamSink

log = logging.getLogger(__name__)

WARN_SECONDS: Final = 60.0
"""How long before its token is over a connection is told."""
LOOK_SECONDS: Final = 1.0
STRETCH: Final = 1000
"""Connections that are looked at in one turn of the loop."""


class Note(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """
    A renewal on its way to the replica that has the connection: what was verified here, without the token.

    Attributes:
        kind: by what the caller is known.
        claims: what they may do.
        subject: whose token it is.
        id: its name.
        issued: when it was made.
        expires: until when it is good.
        leeway: how much of that is for clocks that differ.
    """

    kind: str
    claims: dict[str, Any]
    subject: str | None = None
    id: str | None = None
    issued: float = 0.0
    expires: float | None = None
    leeway: float = 0.0

    def caller(self) -> Caller:
        """
        Return the caller.

        Raises:
            ClaimError: the claims are none; somebody wrote into the store.
        """
        expires = float("inf") if self.expires is None else self.expires
        grants = Grants.of(self.claims)
        return Caller(grants, Kind(self.kind), self.subject, self.id, self.issued, expires, self.leeway)


class _Held(Protocol):
    """What holds a connection: a stream's sink, or a waiting poll."""

    connection: Connection | None

    def close(self, reason: CloseReason) -> None: ...


class Watch:
    """
    Looks after the callers of connections.

    Args:
        authority: knows who is still good.
        streams: the connections.
        poller: has the waiting polls.
        clock: seconds since the Unix epoch.
    """

    def __init__(
        self, authority: Authority, streams: Streams, poller: Poller, clock: Callable[[], float] = time.time
    ) -> None:
        self.renewed = 0
        self._authority = authority
        self._streams = streams
        self._poller = poller
        self._clock = clock
        self._told: dict[StreamSink, Caller] = {}  # who was told that their token will soon be over
        self._news = asyncio.Event()
        authority.registry.on_change = self._news.set
        authority.registry.on_note = self._take_note

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self._news.clear()
            await self._look()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        """Look at all connections."""
        for waiter in list(self._poller.waiters):
            self._check(waiter, self._clock())
        for number, sink in enumerate(list(self._streams.sinks)):
            if number % STRETCH == STRETCH - 1:
                await asyncio.sleep(0)
            if sink in self._streams.sinks and not self._check(sink, self._clock()):
                self._warn(sink)
        for sink in [each for each in self._told if each not in self._streams.sinks]:
            del self._told[sink]

    def _check(self, held: _Held, now: float) -> bool:
        """Close a connection whose caller may not have it any more; return whether that was so."""
        connection = held.connection
        caller = connection.caller if connection is not None else None
        if connection is None or not isinstance(caller, Caller) or not caller.is_known:
            return False
        reason = None
        if now >= caller.expires:
            reason = EXPIRED
        elif caller.seen != self._authority.registry.version and not self._keeps(connection, caller, now):
            reason = REVOKED
        if reason is not None:
            held.close(reason)
        return reason is not None

    def _keeps(self, connection: Connection, caller: Caller, now: float) -> bool:
        """Tell whether nothing was revoked that a connection needs."""
        registry = self._authority.registry
        caller.seen = registry.version
        if not registry.is_good(caller, now):
            return False
        taken = registry.taken(caller, now)
        if taken == caller.taken:
            return True
        caller.taken = taken
        return caller.may_hear(self._streams.hub.patterns(connection))

    def _warn(self, sink: StreamSink) -> None:
        """Tell a connection once that its token will soon be over."""
        connection = sink.connection
        caller = connection.caller if connection is not None else None
        if connection is None or not isinstance(caller, Caller):
            return
        left = caller.ends_ms / 1000 - self._clock()
        if left <= WARN_SECONDS and self._told.get(sink) is not caller:
            self._told[sink] = caller
            sink.send(control_frame(connection.wire, "expiring", expiry_of(caller)))

    # --- renewing -------------------------------------------------------------------------------------------

    def find(self, name: str) -> Connection | None:
        """Return a streaming connection of this replica; None if there is none of that name."""
        for sink in self._streams.sinks:
            if sink.connection is not None and sink.connection.name == name:
                return sink.connection
        return None

    def renew(self, connection: Connection, caller: Caller) -> None:
        """
        Let a connection be that of a newer token of the same subject, and tell it until when.

        Raises:
            Problem: 403, it is somebody else's, or does not grant what the connection listens to.
        """
        before = connection.caller
        if not isinstance(before, Caller) or not before.owner or before.owner != caller.owner:
            raise Problem(403, "the token is not of the subject whose connection this is")
        if not caller.may_hear(self._streams.hub.patterns(connection)):
            raise Problem(403, "the token does not grant what the connection listens to")
        connection.caller = caller
        self.renewed += 1

    async def hand_on(self, name: str, caller: Caller, claims: dict[str, Any]) -> None:
        """
        Tell whichever replica has a connection that its caller has a newer token.

        Raises:
            StoreUnavailable: it cannot be told.
            EntriesFull: too much is being told.
        """
        expires = None if caller.expires == float("inf") else caller.expires
        note = Note(
            kind=caller.kind.value,
            claims=claims,
            subject=caller.subject,
            id=caller.id,
            issued=caller.issued,
            expires=expires,
            leeway=caller.leeway,
        )
        await self._authority.registry.tell(name, msgspec.json.encode(note))

    def _take_note(self, name: str, value: bytes) -> None:
        connection = self.find(name)
        if connection is None:
            return
        try:
            self.renew(connection, msgspec.json.decode(value, type=Note).caller())
        except (msgspec.DecodeError, ClaimError, ValueError, Problem) as error:
            log.info("auth.renewal_refused: %s: %s", name, error)
