"""
The gate: every request passes it. It finds out who asks, and opens the door that they may go through.

    origin and host ──▶ who is it ──▶ which door ──▶ the endpoint, with the caller in its scope

The endpoint asks the caller for what only it knows: topics, services, whose connection it is.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.auth.caller import ANYBODY, CALLER, CORS, CREDENTIAL, Caller, unauthorized
from gateway.auth.doors import Door, door_of
from gateway.auth.origins import Headers, Origins, preflight
from gateway.limits.work import EVENTS, wanted_by
from gateway.problems import Problem, deny
from gateway.subscription import Transport

if TYPE_CHECKING:
    from gateway.auth.authority import Authority

COOKIE: Final = "sluice_token"
_TICKET: Final = b"ticket="
_SAFETY: Final[Headers] = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_PAGE: Final[Headers] = (
    (
        b"content-security-policy",
        (
            b"default-src 'self'; connect-src 'self' ws: wss:; "
            b"frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
        ),
    ),
    (b"x-frame-options", b"DENY"),
)


class Gate:
    """
    Middleware before all doors.

    Args:
        app: what is behind it.
        authority: knows callers; None if everybody may do anything.
        origins: says which pages may come in.
        turned_away: status -> how often it was the answer to who was not let in; counted here.
    """

    def __init__(
        self, app: ASGIApp, authority: Authority | None, origins: Origins, turned_away: Counter[int]
    ) -> None:
        self._turned_away = turned_away
        self._app = app
        self._authority = authority
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        allowed: Headers = ()
        try:
            self._origins.check_host(headers.get(b"host"))
            safe = scope.get("method", "GET") in ("GET", "HEAD", "OPTIONS")
            allowed = await self._origins.check(headers, safe=safe)
            if scope["type"] == "http" and _is_preflight(scope["method"], headers):
                await _answer_preflight(preflight(headers, allowed), send)
                return
            scope[CORS] = allowed
            await self._know(scope, headers)
        except Problem as problem:
            self._turned_away[problem.status] += 1
            await refuse(problem, scope, _with(send, (*allowed, *_SAFETY)))
            return
        if scope["type"] == "http":
            page = scope["path"].removeprefix(scope.get("root_path", "")) in ("", "/")
            send = _with(send, (*allowed, *_SAFETY, *(_PAGE if page else ())))
        await self._app(scope, receive, send)

    async def _know(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """
        Put the caller into the scope.

        Raises:
            Problem: 401 or 403, the door does not open for them; 404, there is none.
        """
        if self._authority is None:
            scope[CALLER] = ANYBODY
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        door = door_of(scope.get("method", "GET"), path)
        if door is Door.OPEN:
            scope[CALLER] = ANYBODY if path != "/readyz" else await self._perhaps(scope, headers)
            return
        caller = scope[CALLER] = await self._caller(self._authority, scope, headers, path)
        if door is None:
            raise Problem(404, "there is nothing at this path")
        if door is Door.OPERATOR:
            caller.check_admin()

    async def _perhaps(self, scope: Scope, headers: dict[bytes, bytes]) -> Caller | None:
        """Return the caller of what everybody may ask and an operator is told more."""
        assert self._authority is not None
        try:
            return await self._caller(self._authority, scope, headers, "")
        except Problem:
            return None

    async def _caller(
        self, authority: Authority, scope: Scope, headers: dict[bytes, bytes], path: str
    ) -> Caller:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        text = _bearer(given)
        if text is None and self._origins.may_use_cookie(headers):
            text = _cookie(headers.get(b"cookie"))
        ticket = None
        if path == EVENTS and _TICKET in scope["query_string"] and _takes_ticket(scope):
            ticket = _take_ticket(scope)
        if text is not None:
            scope[CREDENTIAL] = text
            return await authority.known(text)
        if ticket is not None:
            scope[CREDENTIAL], caller = await authority.redeem(ticket)
            return caller
        raise unauthorized(given=False)


async def refuse(problem: Problem, scope: Scope, send: Send) -> None:
    """Answer a request, or a WebSocket's handshake, with a problem."""
    if scope["type"] == "http":
        await problem(scope, _nothing, send)
        return
    await deny(problem, scope, send)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _with(send: Send, more: Headers) -> Send:
    """Return what sends a response with some headers more; `vary` is added to, others are not repeated."""

    async def sending(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            there = {name for name, _ in message["headers"]}
            new = [field for field in more if field[0] not in there or field[0] == b"vary"]
            message = {**message, "headers": [*message["headers"], *new]}
        await send(message)

    return sending


def _is_preflight(method: str, headers: dict[bytes, bytes]) -> bool:
    return method == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers


async def _answer_preflight(headers: Headers, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": list(headers)})
    await send({"type": "http.response.body"})


def _bearer(given: list[bytes]) -> str | None:
    """
    Return the token in an `Authorization` (RFC 6750, 2.1); None if there is none, or of another scheme.

    Raises:
        Problem: 401, there are several, or nothing behind the scheme.
    """
    if len(given) > 1:
        raise unauthorized(given=True)
    if not given:
        return None
    scheme, _, text = given[0].strip().partition(b" ")
    if scheme.lower() != b"bearer":
        return None
    text = text.strip()
    if not text or b" " in text:
        raise unauthorized(given=True)
    return text.decode("latin-1")


def _cookie(header: bytes | None) -> str | None:
    """
    Return the token in a cookie; whatever else has cookies at our name, and in whatever form.

    Raises:
        Problem: 401, there are several that differ: another site of our domain may have added one (RFC 6265,
            8.6).
    """
    pairs = (part.partition("=") for part in (header or b"").decode("latin-1").split(";"))
    found = {value.strip() for name, _, value in pairs if name.strip() == COOKIE} - {""}
    if len(found) > 1:
        raise unauthorized(given=True)
    return unquote(found.pop()) if found else None


def _takes_ticket(scope: Scope) -> bool:
    """
    Tell whether a request opens what a browser opens without headers of its page's choosing: a WebSocket, or
    an event stream. Neither a poll nor publishing is, whatever it says that it accepts.
    """
    if scope["type"] == "websocket":
        return True
    return scope["method"] == "GET" and wanted_by(scope) in (Transport.WEBSOCKET, Transport.SSE)


def _take_ticket(scope: Scope) -> str | None:
    """
    Take the ticket out of a request's query, so that nothing behind the gate sees, keeps or tells it.

    Raises:
        Problem: 401, there are several.
    """
    kept, tickets = [], []
    for part in scope["query_string"].split(b"&"):
        if part.startswith(_TICKET):
            tickets.append(part.removeprefix(_TICKET))
        else:
            kept.append(part)
    scope["query_string"] = b"&".join(kept)
    if len(tickets) > 1:
        raise unauthorized(given=True)
    return unquote(tickets[0].decode("latin-1")) if tickets else None
