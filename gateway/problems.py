"""
Problems: how every endpoint says no, in the form of RFC 9457 (`application/problem+json`).

A `Problem` is an exception and at the same time the ASGI answer to the request that caused it. An endpoint
raises it wherever it notices; the endpoint's outermost function, or Starlette through `EXCEPTION_HANDLERS`,
sends it. Its `type` is always `about:blank`: the status says what kind it is, the detail says which, in one
sentence for the reader on the other side.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from math import ceil
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ExceptionHandler, Message, Receive, Scope, Send

from gateway.log import LogError, StoreUnavailable

logger = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"

# RFC 9110's phrases; Python before 3.13 has older ones.
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}


class ClientGone(Exception):
    """The client left before it was answered; there is nobody to answer."""


class Problem(Exception):
    """
    A refusal with an HTTP status; also the ASGI application that answers it.

    Args:
        status: the HTTP status.
        detail: what was wrong this time, in one sentence that may be shown to the client.
        title: the kind of problem; the status's own phrase unless given (RFC 9457 section 4.2.1 wants that).
        retry_after: seconds after which to try again; sent rounded up to whole ones, at least 1.
        headers: further response headers.
        members: further members of the JSON object, such as the index of a bad event.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        title: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.title = title or _title(status)
        self.retry_after = retry_after
        self.headers = dict(headers or {})
        self.members = dict(members or {})

    def __str__(self) -> str:
        return f"{self.status} {self.title}: {self.detail}"

    def at(self, index: int) -> Problem:
        """Return the same problem as that of one event of several: the one at `index`, counted from 0."""
        members: dict[str, Any] = {"index": index, **self.members}
        if "pointer" in members:
            members["pointer"] = f"/{index}{members['pointer']}"
        return Problem(
            self.status,
            f"event {index}: {self.detail}",
            title=self.title,
            retry_after=self.retry_after,
            headers=self.headers,
            members=members,
        )

    def body(self) -> bytes:
        """Return the problem's JSON."""
        return msgspec.json.encode(
            {
                "type": "about:blank",
                "title": self.title,
                "status": self.status,
                "detail": _encodable(self.detail),
                **self.members,
            }
        )

    def raw_headers(self, body: bytes) -> list[tuple[bytes, bytes]]:
        """Return the headers that go with `body`, as ASGI wants them."""
        headers = {
            "content-type": CONTENT_TYPE,
            "content-length": str(len(body)),
            "cache-control": "no-store",
            **{name.lower(): value for name, value in self.headers.items()},
        }
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, ceil(self.retry_after)))
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]

    async def send(self, send: Send) -> None:
        """Send the problem as the whole response."""
        body = self.body()
        await send({"type": "http.response.start", "status": self.status, "headers": self.raw_headers(body)})
        await send({"type": "http.response.body", "body": body})

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await self.send(send)


async def deny(problem: Problem, scope: Scope, send: Send) -> None:
    """Refuse a WebSocket's handshake with a problem; with 403 where the server can say nothing else."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": problem.title})
        return

    async def denying(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    await problem.send(denying)


def unreadable(error: LogError) -> Problem:
    """Return the answer when the log could not be read; why, is for our own log and not for the client."""
    if not isinstance(error, StoreUnavailable):
        logger.warning("log.read_failed: %s", error)
    return Problem(503, error.told, retry_after=error.retry_after)


def method_not_allowed(*allowed: str) -> Problem:
    """Return the answer to a method that a resource does not have (RFC 9110 section 15.5.6 wants `Allow`)."""
    methods = ", ".join(sorted(allowed))
    return Problem(405, f"the methods of this resource are {methods}", headers={"allow": methods})


async def _answer_problem(_request: Request, error: Exception) -> Problem:
    assert isinstance(error, Problem)
    return error


async def _answer_http_exception(request: Request, error: Exception) -> Problem:
    """Give Starlette's own refusals (no such route, wrong method) the form that all others have."""
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 404:
        return Problem(404, f"there is nothing at {_shown(request.url.path)}", headers=headers)
    if error.status_code == 405 and "allow" in headers:
        return method_not_allowed(*headers["allow"].split(", "))
    return Problem(error.status_code, error.detail, headers=headers)


EXCEPTION_HANDLERS: dict[type[Exception], ExceptionHandler] = {
    Problem: _answer_problem,  # type: ignore[dict-item]  # Starlette only calls what it gets, as an ASGI application
    HTTPException: _answer_http_exception,  # type: ignore[dict-item]  # the same
}
"""Give these to `Starlette(exception_handlers=…)`."""


def _title(status: int) -> str:
    """Return the phrase of a status; of one that HTTP does not know, its number."""
    try:
        return _TITLES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return str(status)


def _encodable(text: str) -> str:
    """Return `text` without lone surrogates, which UTF-8 cannot carry."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _shown(text: str) -> str:
    """Return `text` fit for an error message: short, and with nothing that could break a log line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
