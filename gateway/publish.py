"""
Publishing over HTTP: `POST /v1/events` and `POST /v1/topics/{topic}`.

Plain ASGI applications, without Starlette's `Request` and `Response`, because a single publish should cost
little more than its commit. A body is refused as soon as it is known to be too long, and must keep coming;
what is in memory of all bodies together is bounded by the intake's budget.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from fanout.event import Event
from gateway.auth.caller import Caller, caller_of
from gateway.cloudevents import is_binary
from gateway.intake import Intake, Limits
from gateway.problems import ClientGone, Problem, method_not_allowed
from gateway.quotas import Quotas, most_bytes

SLOWEST: Final = 32_768
"""Bytes per second at which a body must come on average, beyond `body_timeout`; small ones need not care."""

LINGER: Final = 1.0
"""Seconds for which the rest of a refused body is thrown away before the connection closes."""

Headers = dict[bytes, bytes]


class Body:
    """
    The body of one request, while it is read and used.

    Args:
        receive: the request's ASGI channel.
        intake: whose budget the body is accounted to.
        limits: how long it may be and take.
        caller: whose it is, who may have less.
    """

    def __init__(self, receive: Receive, intake: Intake, limits: Limits, caller: Caller) -> None:
        self.size = 0
        self.complete = False
        self.awaited = False  # by a client that sends no body before it is told to (RFC 9110 section 10.1.1)
        self._receive = receive
        self._budget = intake.budget
        self._limits = limits
        self._most = most_bytes(caller, limits.max_body_bytes)

    async def read(self, headers: Headers) -> bytes:
        """
        Return the whole body.

        Raises:
            Problem: 408 it stalls or crawls, 413 it is too long, 415 it is compressed, 503 over the budget.
            ClientGone: the client did not wait.
        """
        self._check(headers)
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            async with asyncio.timeout_at(start + self._limits.body_timeout) as deadline:
                part = self._part(await self._receive())
                if self.complete:
                    return part
                parts = [part]
                while not self.complete:
                    latest = start + self.size / SLOWEST
                    deadline.reschedule(min(latest, loop.time()) + self._limits.body_timeout)
                    parts.append(self._part(await self._receive()))
                return b"".join(parts)
        except TimeoutError:
            raise Problem(408, f"the body did not arrive in time; {self.size} bytes did") from None

    def release(self) -> None:
        """Give the body's bytes back to the budget."""
        self._budget.give(self.size)
        self.size = 0

    async def discard(self) -> None:
        """
        Throw away what still comes, for a moment.

        A socket closed with unread bytes is reset, and a reset may overtake the answer that says why.
        """
        if self.awaited:
            return
        try:
            async with asyncio.timeout(LINGER):
                while not self.complete:
                    message = await self._receive()
                    self.complete = message["type"] == "http.disconnect" or not message.get("more_body")
        except TimeoutError:
            pass

    def _check(self, headers: Headers) -> None:
        """Refuse by its head what need not be read at all."""
        self.awaited = b"expect" in headers
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._most:
            raise self._too_long()
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            detail = "the body is compressed; only plain ones are read"
            raise Problem(415, detail, headers={"accept-encoding": "identity"})  # RFC 9110 section 15.5.16

    def _part(self, message: Message) -> bytes:
        if message["type"] == "http.disconnect":
            raise ClientGone
        self.awaited = False
        part: bytes = message.get("body", b"")
        self.complete = not message.get("more_body", False)
        if self.size + len(part) > self._most:
            raise self._too_long()
        self._budget.take(len(part))
        self.size += len(part)
        return part

    def _too_long(self) -> Problem:
        return Problem(413, f"the body has more than {self._most} bytes")


class PublishEvents:
    """
    `POST /v1/events`: events in the body.

    Args:
        intake: takes them.
        limits: of a body.
        quotas: of who publishes; there are none but those of their token if None.
    """

    def __init__(self, intake: Intake, limits: Limits, quotas: Quotas | None = None) -> None:
        self.intake = intake
        self.limits = limits
        self.quotas = quotas or Quotas()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await method_not_allowed("POST").send(send)
            return
        caller = caller_of(scope)
        body = Body(receive, self.intake, self.limits, caller)
        try:
            headers = dict(scope["headers"])
            content = await body.read(headers)
            events = self._events(scope, headers, content)
            caller.admit(events, self.intake.mint.takes)
            self.quotas.publish(caller, len(events), len(content))
            receipt = await self.intake.publish(events)
        except Problem as problem:
            await refuse(problem, body, send)
        except ClientGone:
            pass
        else:
            await _accept(receipt.accepted, receipt.duplicates, receipt.cursor, send)
        finally:
            body.release()

    def _events(self, _scope: Scope, headers: Headers, body: bytes) -> list[Event]:
        formats, now = self.intake.formats, self.intake.now()
        if is_binary(headers):
            return formats.binary(headers.items(), body, now)
        return formats.events(headers.get(b"content-type"), body, now)


class PublishTopic(PublishEvents):
    """`POST /v1/topics/{topic}`: the data of one event in the body, whatever it is."""

    def _events(self, scope: Scope, headers: Headers, body: bytes) -> list[Event]:
        topic: str = scope["path_params"]["topic"]
        if "\ufffd" in topic:  # what servers make of a path that is not UTF-8
            raise Problem(422, "the topic is not percent-encoded UTF-8", members={"pointer": "/topic"})
        formats, now = self.intake.formats, self.intake.now()
        if is_binary(headers):
            return formats.binary(headers.items(), body, now, topic)
        return formats.message(topic, headers.get(b"content-type"), body, scope["query_string"], now)


class _Anything(Convertor[str]):
    """A path parameter that is all the rest of the path; Starlette's `path` stops at a line break."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anything", _Anything())
TOPIC_PATH: Final = "/v1/topics/{topic:anything}"
"""The path for `PublishTopic`: also what is no topic matches, so that its sender is told what is wrong."""


def routes(intake: Intake, limits: Limits) -> list[Route]:
    """Return the routes for publishing; `GET /v1/events` is left to whoever subscribes."""
    return [
        Route("/v1/events", PublishEvents(intake, limits), methods=["POST"]),
        Route(TOPIC_PATH, PublishTopic(intake, limits)),
    ]


async def _accept(accepted: int, duplicates: int, cursor: str, send: Send) -> None:
    body = b'{"accepted":%d,"duplicates":%d,"cursor":"%b"}\n' % (accepted, duplicates, cursor.encode())
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse(problem: Problem, body: Body, send: Send) -> None:
    """Answer with a problem; if the body was not read to its end, the connection cannot be used again."""
    if body.complete:
        await problem.send(send)
        return
    content = problem.body()
    headers = [*problem.raw_headers(content), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": True})
    body.release()
    await body.discard()
    await send({"type": "http.response.body", "body": b""})
