"""
The client side of the gateway: publish so that a retry stores nothing twice, follow topics across outages.

Strategy: every event is given an id before it is first sent, so that sending again is harmless; a follower
keeps the cursor of the last event it handed on and begins there again. What cannot get better by trying again
ends in a `ClientError`. The only file that uses a WebSocket client; HTTP requests are made in
`gateway.api_client` as well.
"""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import os
import random
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlencode, urlsplit, urlunsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidMessage,
    InvalidStatus,
    WebSocketException,
)

Notice = Callable[[str], None]
"""Takes a line for people: what is being waited for, what was skipped."""

EVENTS_PATH: Final = "/v1/events"
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 10.0
"""Between reconnects: doubled each time up to this, half of it by chance, so that not all come at once."""

RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be another one next time."""

REFUSED_CODES: Final = frozenset({1002, 1003, 1007, 1008, 1009, 3000})
"""
Close codes that say that this client is wrong (RFC 6455 7.4.1), or that its token is not good any more (3000,
registered as Unauthorized): coming back would end the same way.
"""

TOKEN: Final = "SLUICE_TOKEN"  # noqa: S105  # a name
"""The variable that says by which token, or API key, the commands ask."""

REQUEST_SECONDS: Final = 30.0
PATIENCE_SECONDS: Final = 60.0


UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What decoding raises: of no JSON, of a string in it that is no UTF-8, of too many levels."""


class ClientError(Exception):
    """What the command asked for cannot be had; the text is one sentence for its user."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the gateway says to a publish that it made durable."""

    accepted: int
    duplicates: int
    cursor: str


@dataclass(frozen=True, slots=True)
class Received:
    """
    One event that came in.

    Attributes:
        cursor: names it; following from there goes on behind it.
        text: its JSON, on one line, as the gateway sent it.
        data: the JSON of its data alone; of a string with base64 if the data was not JSON.
    """

    cursor: str
    text: bytes
    data: bytes


def delay_before(failures: int, chance: float) -> float:
    """Return the seconds to wait after so many failures in a row; `chance` is 0 to 1."""
    longest = min(LONGEST_DELAY, FIRST_DELAY * (1 << min(failures, 10)))
    return longest * (0.5 + chance / 2)


def bearer(token: str) -> dict[str, str]:
    """Return the header that says who asks (RFC 6750, 2.1); none without a token."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def asked(
    url: str, token: str, body: bytes | None = None, method: str | None = None
) -> urllib.request.Request:
    """
    Return a request to a gateway: with a token that goes nowhere else, as a redirect is followed without it.

    Args:
        url: of `url_of`, which has seen the scheme.
        token: by which it is asked; may be empty.
        body: JSON; None if there is none.
        method: GET, or with a body POST, unless given.
    """
    headers = {} if body is None else {"Content-Type": "application/json"}
    request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310  # see above
    for name, value in bearer(token).items():
        request.add_unredirected_header(name, value)
    return request


def events_url(base: str, *, websocket: bool = False) -> str:
    """Return the address of the events of the gateway at `base`; see `url_of`."""
    return url_of(base, EVENTS_PATH, websocket=websocket)


def url_of(base: str, path: str, *, websocket: bool = False) -> str:
    """
    Return the address of a path, with its query, of the gateway at `base`.

    Raises:
        ClientError: `base` is no http or https address.
    """
    wrong = ClientError(f"{base!r} is no address of a gateway: give one like http://127.0.0.1:8000")
    try:
        parts = urlsplit(base)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not has_host or parts.query or parts.fragment:
        raise wrong
    scheme = parts.scheme.replace("http", "ws") if websocket else parts.scheme
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/"), "", "")) + path


# --- publishing ---------------------------------------------------------------------------------------------


class Publisher:
    """
    Publishes events in batches, again and again until the gateway has them.

    Args:
        base: address of the gateway.
        notice: told when there is something to wait for.
        patience: seconds after which a batch that could not be published is given up.
        token: by which the gateway is asked; may be empty.
    """

    def __init__(
        self, base: str, notice: Notice, patience: float = PATIENCE_SECONDS, *, token: str = ""
    ) -> None:
        self._token = token
        self._url = events_url(base)
        self._base = base
        self._notice = notice
        self._patience = patience
        self._opener = opener(base)

    def publish(self, events: Iterable[bytes]) -> Accepted:
        """
        Publish events, each given as its JSON with an `id`, in one request.

        Raises:
            ClientError: they were refused, or could not be published before patience ran out.
        """
        body = b"[" + b",".join(events) + b"]"
        deadline = time.monotonic() + self._patience
        failures = 0
        while True:
            answer = self._attempt(body)
            if isinstance(answer, Accepted):
                return answer
            wait = max(answer.after, delay_before(failures, random.random()))
            if time.monotonic() + wait > deadline:
                raise ClientError(f"not published: {answer.why}")
            if not failures:
                self._notice(f"{answer.why}; trying again")
            failures += 1
            time.sleep(wait)

    def _attempt(self, body: bytes) -> Accepted | Failure:
        """Send the request once. A failure returned may pass; one raised does not."""
        try:
            with self._opener.open(asked(self._url, self._token, body), timeout=REQUEST_SECONDS) as response:
                return _accepted(self._base, response.read())
        except urllib.error.HTTPError as error:
            with error:
                after = error.headers.get("Retry-After")
                return refusal(self._base, error.code, after, rest_of(error), known=bool(self._token))
        except (OSError, http.client.HTTPException) as error:
            return unreachable(self._base, error)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure that may pass: why, and after how many seconds at the least to try again."""

    why: str
    after: float = 0.0


class _Answer(msgspec.Struct):
    accepted: int
    duplicates: int
    cursor: str


class _Problem(msgspec.Struct):
    """The members of a problem (RFC 9457) that are shown."""

    title: str = ""
    detail: str = ""


def _accepted(base: str, body: bytes) -> Accepted:
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except UNREADABLE:
        raise ClientError(f"{base} gave an answer that is not a gateway's") from None
    return Accepted(answer.accepted, answer.duplicates, answer.cursor)


def rest_of(error: urllib.error.HTTPError) -> bytes:
    """Return the body of a refusal; nothing if the connection broke meanwhile."""
    with suppress(OSError, http.client.HTTPException):
        return error.read()
    return b""


def refusal(base: str, status: int, retry_after: str | None, body: bytes, *, known: bool) -> Failure:
    """
    Return the failure behind an HTTP status that may pass.

    Args:
        base: address of the gateway.
        status: its answer's.
        retry_after: the header of that name.
        body: of the answer.
        known: whether a token was sent.

    Raises:
        ClientError: it will not pass.
    """
    problem = _Problem()
    with suppress(*UNREADABLE):
        problem = msgspec.json.decode(body, type=_Problem)
    why = f"{base} answered {status}"
    if problem.detail or problem.title:
        why += f": {problem.detail or problem.title}"
    if status == 401:
        why += f" ({advice(known=known)})"
    if status not in RETRIED:
        raise ClientError(why)
    # The other form, a date (RFC 9110 10.2.3), is one that a gateway does not send.
    seconds = float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
    return Failure(why, min(seconds, PATIENCE_SECONDS))


def advice(*, known: bool) -> str:
    """Return what can be done about a 401; `known` says whether a token was sent."""
    return f"it is that of {TOKEN}" if known else f"set {TOKEN} to a token, or to an API key"


def unreachable(base: str, error: Exception) -> Failure:
    """
    Return the failure behind an error of the network.

    Raises:
        ClientError: it will not pass: the certificate is not trusted.
    """
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise ClientError(f"{base} is not trusted: {cause.verify_message}")
    return Failure(f"no connection to {base} ({_said(cause)})")


def _said(error: object) -> str:
    """Return the system's words for an error; asyncio has its own, with addresses in them."""
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number > 0:
        return os.strerror(number)
    return str(error) or type(error).__name__


def opener(base: str) -> urllib.request.OpenerDirector:
    """Return what opens addresses of a gateway: past the environment's proxies if it is of this machine."""
    return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_local(base) else []))


def is_local(base: str) -> bool:
    """Say whether an address is of this machine, where a proxy that the environment names has no part."""
    host = urlsplit(base).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


# --- following ----------------------------------------------------------------------------------------------


class _Message(msgspec.Struct):
    """What a follower has to know of a message from the gateway."""

    cursor: str = ""
    control: str = ""
    data: msgspec.Raw = msgspec.Raw(b"")
    data_base64: msgspec.Raw = msgspec.Raw(b"")
    reason: str = ""
    begin: str = msgspec.field(name="from", default="")
    to: str = ""
    title: str = ""
    detail: str = ""
    after_ms: int = 0


class Follower:
    """
    Follows topics over WebSocket: reconnects by itself and goes on from the last event it handed on.

    Args:
        base: address of the gateway.
        patterns: what to follow.
        cursor: where to begin: `earliest`, `latest`, `-N`, an RFC 3339 time or a cursor.
        notice: told of outages and gaps.
        token: by which the gateway is asked; may be empty.

    Attributes:
        cursor: the place up to which everything was handed on; to go on from there another time.
    """

    def __init__(
        self, base: str, patterns: Iterable[str], cursor: str, notice: Notice, *, token: str = ""
    ) -> None:
        self.cursor = cursor
        self._token = token
        self._base = base
        self._url = events_url(base, websocket=True)
        self._patterns = list(patterns)
        self._notice = notice
        self._proxy: Literal[True] | None = None if is_local(base) else True
        self._welcomed = False  # the cursor is one of the gateway's, not a place to begin given by the user
        self._failures = 0  # in a row
        self._out = False  # an outage was reported
        self._advice = 0.0  # seconds to wait before reconnecting, as the gateway asked
        self._last_error = ""  # what the gateway said was wrong, before it closes

    async def events(self) -> AsyncGenerator[Received]:
        """
        Yield events for ever, each once and in order.

        Raises:
            ClientError: the gateway refuses; trying again would not help.
        """
        while True:
            failure = Failure(f"{self._base} closed the connection")
            try:
                async with connect(
                    self._address(),
                    additional_headers=bearer(self._token),  # not for where another origin's redirect leads
                    proxy=self._proxy,
                    max_size=None,
                    close_timeout=1,
                ) as connection:
                    async for event in self._one_connection(connection):
                        yield event
            except ConnectionClosed as closed:
                failure = self._closed(closed)
            except (OSError, WebSocketException) as error:
                failure = self._not_opened(error)
            await self._pause(failure)

    def _address(self) -> str:
        query = [("topic", pattern) for pattern in self._patterns]
        return f"{self._url}?{urlencode([*query, ('cursor', self.cursor)])}"

    async def _one_connection(self, connection: ClientConnection) -> AsyncGenerator[Received]:
        """Yield the events of one connection until it ends."""
        while True:
            text = await connection.recv(decode=False)
            message = _decoded(self._base, text)
            if message.control:
                self._obey(message)
                continue
            self.cursor = message.cursor
            self._failures = 0
            yield Received(message.cursor, text, bytes(message.data) or bytes(message.data_base64))

    def _obey(self, message: _Message) -> None:
        """Act on a control message. Kinds that are not known yet are none of a follower's business."""
        match message.control:
            case "welcome":
                self._greeted(message.cursor)
            case "heartbeat":
                self.cursor = message.cursor
            case "gap":
                self._notice(
                    f"gap ({message.reason}): events after {message.begin} up to {message.to} are missing"
                )
                self.cursor = message.to
            case "reconnect":
                self.cursor = message.cursor or self.cursor
                self._advice = message.after_ms / 1000
            case "error":
                self._last_error = message.detail or message.title

    def _greeted(self, cursor: str) -> None:
        if (
            not self._welcomed
        ):  # from now on nothing may be missed, also when no event comes before the next outage
            self.cursor = cursor
            self._welcomed = True
        if self._out:
            self._notice("connected again")
            self._out = False

    def _closed(self, closed: ConnectionClosed) -> Failure:
        received = closed.rcvd
        if received is not None and received.code in REFUSED_CODES:
            said = self._last_error or received.reason or f"close code {received.code}"
            raise ClientError(f"{self._base} ended the connection: {said}")
        return Failure(f"lost the connection to {self._base}")

    def _not_opened(self, error: OSError | WebSocketException) -> Failure:
        """
        Return the failure behind a handshake that failed and may succeed next time.

        Raises:
            ClientError: it will not.
        """
        match error:
            case InvalidStatus():
                response = error.response
                after = response.headers.get("Retry-After")
                body = bytes(response.body or b"")
                return refusal(self._base, response.status_code, after, body, known=bool(self._token))
            case InvalidMessage() if isinstance(error.__cause__, EOFError):  # it went away in the handshake
                return Failure(f"lost the connection to {self._base}")
            case OSError():
                return unreachable(self._base, error)
            case _:
                raise ClientError(f"{self._base} does not speak as a gateway does: {error}") from None

    async def _pause(self, failure: Failure) -> None:
        """Wait before the next connection: as long as the gateway asked, or as the failures make wise."""
        if not self._out:
            self._notice(f"{failure.why}; trying again")
            self._out = True
        wait = max(failure.after, self._advice, delay_before(self._failures, random.random()))
        self._failures += 1
        self._advice = 0.0
        await asyncio.sleep(wait)


def _decoded(base: str, text: bytes) -> _Message:
    try:
        return msgspec.json.decode(text, type=_Message)
    except UNREADABLE:
        raise ClientError(f"{base} sent a message that is not a gateway's") from None
