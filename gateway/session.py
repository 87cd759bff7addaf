"""
What a WebSocket client can say, once connected: subscribe, unsubscribe, publish, ack, ping.

Each operation is one JSON text message with an `op` and an optional `ref` (any JSON), and each is answered by
a control message with that `ref`, in the order of the operations. A mistake is answered by `error` and
changes nothing. While an operation waits (for the disk, for the log), a task of this session exists; a client
that only listens has none.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, assert_never

import msgspec

from fanout.catchup import gap_frame
from fanout.closing import INTERNAL
from fanout.connection import Connection, State
from fanout.cursor import Cursor
from fanout.errors import CursorError
from fanout.event import Event
from fanout.frames import control_frame
from fanout.selection import Selection
from gateway.auth.caller import ANYBODY, Caller, expiry_of
from gateway.consumers import Consumers
from gateway.intake import Intake, Receipt
from gateway.log import LogError
from gateway.mint import now_ms
from gateway.problems import Problem, unreadable
from gateway.quotas import Quotas, most_topics
from gateway.starts import Locator
from gateway.streams import Streams, StreamSink
from gateway.subscription import check_patterns, read_start

if TYPE_CHECKING:
    from gateway.auth.access import Access

MAX_PENDING: Final = 64
"""Operations waiting for their turn; beyond it the client is not read from."""

logger = logging.getLogger(__name__)


class _Operation(msgspec.Struct, tag_field="op", forbid_unknown_fields=True, kw_only=True):
    """Any operation."""

    ref: msgspec.Raw = msgspec.Raw(b"")


class Subscribe(_Operation, tag="subscribe"):
    """Add patterns, from a cursor on; what the connection already gets stays as it is."""

    topics: list[str] | None = None
    topic: str | None = None
    cursor: str = "latest"


class Unsubscribe(_Operation, tag="unsubscribe"):
    """Take patterns away."""

    topics: list[str] | None = None
    topic: str | None = None


class Publish(_Operation, tag="publish", kw_only=True):
    """Publish one event; the answer comes when it is durable."""

    topic: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    id: str | None = None
    type: str | None = None
    key: str | None = None
    ttl: float | None = None


class Ack(_Operation, tag="ack", kw_only=True):
    """Have the server remember a cursor for this connection's consumer name."""

    cursor: str


class Ping(_Operation, tag="ping"):
    """Ask for a sign of life."""


class Auth(_Operation, tag="auth", kw_only=True):
    """Go on by a newer token of the same subject."""

    token: str


@dataclass(frozen=True, slots=True)
class Mistake:
    """A message that is no operation; its refusal waits for its turn."""

    problem: Problem
    ref: msgspec.Raw


Operation = Subscribe | Unsubscribe | Publish | Ack | Ping | Auth

_decoder: Final = msgspec.json.Decoder(Operation)


class _Anything(msgspec.Struct):
    """As much of a refused operation as its answer needs."""

    ref: msgspec.Raw = msgspec.Raw(b"")


_loose: Final = msgspec.json.Decoder(_Anything)


class Reader(Protocol):
    """The transport's side of reading."""

    def resumed(self) -> None:
        """The session can take messages again."""


@dataclass(frozen=True, slots=True)
class Services:
    """What sessions do their work with."""

    streams: Streams
    locator: Locator
    intake: Intake
    consumers: Consumers
    tasks: asyncio.TaskGroup
    max_topics: int
    access: Access | None = None
    quotas: Quotas = field(default_factory=Quotas)


class Session:
    """
    The operations of one connection.

    Args:
        services: what it does its work with.
        sink: takes the answers.
        connection: whose subscriptions it changes.
        consumer: the name under which `ack` remembers; None if the client gave none.
        reader: told when messages can be taken again.
    """

    __slots__ = ("_connection", "_consumer", "_pending", "_reader", "_services", "_sink", "_worker")

    def __init__(
        self,
        services: Services,
        sink: StreamSink,
        connection: Connection,
        consumer: str | None,
        reader: Reader,
    ) -> None:
        self._services = services
        self._sink = sink
        self._connection = connection
        self._consumer = consumer
        self._reader = reader
        self._pending: deque[Operation | Mistake] | None = None
        self._worker: asyncio.Task[None] | None = None

    # --- the inbox ------------------------------------------------------------------------------------------

    def received(self, message: str | bytes) -> None:
        """Take a message."""
        self._take(_read(message))

    def busy(self) -> bool:
        """Tell whether enough operations are waiting."""
        return self._pending is not None and len(self._pending) >= MAX_PENDING

    def closed(self) -> None:
        """The connection is over; what waits is dropped, what was begun is finished."""
        self._pending = None

    def _take(self, operation: Operation | Mistake) -> None:
        if self._pending is None:
            if isinstance(operation, Ping):
                self._answer("pong", operation.ref)
                return
            if isinstance(operation, Mistake):
                self._refuse(operation.problem, operation.ref)
                return
            self._pending = deque()
        self._pending.append(operation)
        if self._worker is None:
            self._worker = self._services.tasks.create_task(self._work())

    async def _work(self) -> None:
        """Carry out what is waiting, in order."""
        try:
            while self._pending:
                if isinstance(self._pending[0], Publish):
                    await self._publish(self._next_publishes())
                else:
                    await self._carry_out(self._pending.popleft())
        except Exception:  # a mistake of ours must cost this connection, not the process
            logger.exception("session.failed: %s", self._connection.name)
            self._sink.close(INTERNAL)
        finally:
            self._worker = None
            self._pending = None
        self._reader.resumed()

    def _next_publishes(self) -> list[Publish]:
        """Take the run of publish operations at the front: they can become durable together."""
        run: list[Publish] = []
        pending = self._pending or deque()
        while pending and isinstance(pending[0], Publish):
            run.append(pending.popleft())  # type: ignore[arg-type]  # the line above looked
        return run

    # --- the operations -------------------------------------------------------------------------------------

    async def _carry_out(self, operation: Operation | Mistake) -> None:
        try:
            match operation:
                case Mistake():
                    self._refuse(operation.problem, operation.ref)
                case Ping():
                    self._answer("pong", operation.ref)
                case Subscribe():
                    await self._subscribe(operation)
                case Unsubscribe():
                    self._unsubscribe(operation)
                case Ack():
                    await self._ack(operation)
                case Auth():
                    await self._auth(operation)
                case Publish():
                    await self._publish([operation])
                case _:
                    assert_never(operation)
        except Problem as problem:
            self._refuse(problem, operation.ref)
        except LogError as error:
            self._refuse(unreadable(error), operation.ref)

    async def _subscribe(self, operation: Subscribe) -> None:
        """Add patterns; what they have behind the cursor comes first, then everything in order."""
        given = self._patterns(operation)
        start = read_start(operation.cursor)
        caller = self._caller
        patterns = caller.listen(given)
        hub = self._services.streams.hub
        have = hub.patterns(self._connection)
        most = most_topics(caller, self._services.max_topics)
        if len(have.union(patterns)) > most:
            raise Problem(422, f"a connection may have {most} topics")
        oldest = caller.grants.reaches_back_to(now_ms())
        place = await self._services.locator.reach(start, Selection(patterns), oldest)
        if self._connection.state is State.CLOSED:
            return
        if self._caller is not caller:
            self._caller.listen(given)  # by another token meanwhile, which may not grant it
        cursor = place.cursor or hub.window.cursor(place.position)
        if place.reset is not None:
            self._services.streams.count_gap(self._connection, place.reason)
            self._sink.send(gap_frame(self._connection.wire, place.reason, place.reset, cursor))
        self._answer("subscribed", operation.ref, _topics(given) + b',"cursor":"%b"' % cursor.encode())
        hub.subscribe(self._connection, tuple(dict.fromkeys(patterns)), place.position)
        self._services.streams.wake(self._connection)

    def _unsubscribe(self, operation: Unsubscribe) -> None:
        given = self._patterns(operation)
        patterns = self._caller.listen(given)
        hub = self._services.streams.hub
        have = hub.patterns(self._connection)
        for pattern, stored in zip(given, patterns, strict=True):
            if stored not in have:
                raise Problem(422, f"not subscribed to {pattern!a}")
        hub.unsubscribe(self._connection, tuple(dict.fromkeys(patterns)))
        self._services.streams.wake(self._connection)
        self._answer("unsubscribed", operation.ref, _topics(given))

    def _patterns(self, operation: Subscribe | Unsubscribe) -> tuple[str, ...]:
        topics = list(operation.topics or [])
        if operation.topic is not None:
            topics.append(operation.topic)
        if not topics:
            raise Problem(422, "say which topics: a list of patterns")
        return check_patterns(topics, most_topics(self._caller, self._services.max_topics))

    async def _publish(self, operations: list[Publish]) -> None:
        """Publish a run of events at once, and answer each by itself, in order."""
        results = await asyncio.gather(*map(self._publish_one, operations), return_exceptions=True)
        for operation, result in zip(operations, results, strict=True):
            if isinstance(result, Problem):
                self._refuse(result, operation.ref)
            elif isinstance(result, BaseException):
                raise result
            else:
                receipt = b'"accepted":%d,"duplicates":%d,"cursor":"%b"'
                members = receipt % (result.accepted, result.duplicates, result.cursor.encode())
                self._answer("published", operation.ref, members)

    async def _publish_one(self, operation: Publish) -> Receipt:
        return await self._services.intake.publish_one(
            operation.topic,
            operation.data,
            operation.id,
            operation.type,
            operation.key,
            operation.ttl,
            admit=self._admit,
        )

    def _admit(self, event: Event) -> None:
        """
        Let an event be published.

        Raises:
            Problem: 403, who is at the other end may not; 429, they may not now.
        """
        caller = self._caller
        caller.admit((event,), self._services.intake.mint.takes)
        self._services.quotas.publish(caller, 1, len(event.body))

    async def _ack(self, operation: Ack) -> None:
        if self._consumer is None:
            raise Problem(
                422,
                "this connection has no consumer name: connect with consumer=NAME to have cursors remembered",
            )
        try:
            cursor = Cursor.parse(operation.cursor)
        except CursorError as error:
            raise Problem(422, str(error)) from None
        if (await self._services.locator.locate(cursor, Selection(()))).reset is not None:
            raise Problem(422, "that cursor is not from this log")
        await self._services.consumers.remember(self._consumer, operation.cursor)
        self._answer("acked", operation.ref, b'"cursor":"%b"' % operation.cursor.encode())

    @property
    def _caller(self) -> Caller:
        """Who is at the other end, by the newest token that they handed in."""
        caller = self._connection.caller
        return caller if isinstance(caller, Caller) else ANYBODY

    async def _auth(self, operation: Auth) -> None:
        """Let a newer token be that of this connection."""
        access = self._services.access
        if access is None:
            raise Problem(422, "this gateway asks nobody for a token (settings: jwt_key, jwks)")
        caller = await access.authority.known(operation.token)
        access.watch.renew(self._connection, caller)
        self._answer("authorized", operation.ref, expiry_of(caller))

    # --- answers --------------------------------------------------------------------------------------------

    def _answer(self, name: str, ref: msgspec.Raw, members: bytes = b"") -> None:
        parts = [part for part in (_ref_member(ref), members) if part]
        self._sink.send(control_frame(self._connection.wire, name, b",".join(parts)))

    def _refuse(self, problem: Problem, ref: msgspec.Raw) -> None:
        """Answer an operation that was not carried out; the members are those of RFC 9457."""
        details: dict[str, Any] = {"status": problem.status, "title": problem.title, "detail": problem.detail}
        if problem.retry_after is not None:
            details["retry_after"] = problem.retry_after
        self._answer("error", ref, msgspec.json.encode(details)[1:-1])


def _topics(patterns: tuple[str, ...]) -> bytes:
    return b'"topics":' + msgspec.json.encode(patterns)


def _ref_member(ref: msgspec.Raw) -> bytes:
    return b'"ref":' + bytes(ref).replace(b"\n", b" ").replace(b"\r", b" ") if bytes(ref) else b""


def _read(message: str | bytes) -> Operation | Mistake:
    """Return the operation that a message is."""
    ref = msgspec.Raw(b"")
    try:
        if isinstance(message, str):
            operation: Operation = _decoder.decode(message)
            return operation
        problem = Problem(422, "operations are text messages with JSON; this one was binary")
    except msgspec.ValidationError as error:
        problem, ref = Problem(422, str(error)), _ref_in(message)
    except msgspec.DecodeError as error:
        problem = Problem(400, f"the message is no JSON: {error}")
    except RecursionError:
        problem = Problem(400, "the message is nested too deeply")
    return Mistake(problem, ref)


def _ref_in(message: str | bytes) -> msgspec.Raw:
    """Return the `ref` of an operation that is refused for something else, if it has one that can be read."""
    try:
        return _loose.decode(message).ref
    except (msgspec.DecodeError, RecursionError):
        return msgspec.Raw(b"")
