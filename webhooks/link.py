"""
The link: one HTTP/1.1 connection to a target, as an asyncio protocol of our own over httptools' parser.

One request at a time. A link is never repaired: whatever surprises (bytes that nobody asked for, an answer
that cannot be read or is longer than is read) ends it. Of the attempt it decides one thing only: once the
head of an answer is there the answer counts, whatever becomes of the body.

Source: RFC 9112 (messages, 9.3 persistence), RFC 9110 15.2 (interim answers).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import httptools

from webhooks.attempt import Fault
from webhooks.flight import Flight, Phase

MAX_HEAD: Final = 32 * 1024
"""Bytes read of the head of an answer, interim answers included."""
MAX_ANSWER: Final = 64 * 1024
"""Bytes read of an answer, everything included; of a longer one the rest is left in the socket."""
MAX_VALUE: Final = 256
"""Characters kept of a header's value."""

_JOINED: Final = 16 * 1024
"""A body up to this length is copied behind its head and so is one write; a longer one is shared."""

_INTERIM: Final = range(100, 200)
_RETRY_AFTER: Final = b"retry-after"
_RETRY_AFTER_LENGTH: Final = len(_RETRY_AFTER)


class Owner(Protocol):
    """Who hears what becomes of a link; called on the event loop."""

    def answered(self, link: Link, *, reusable: bool) -> None:
        """The flight has its answer; the link may take another one if it is reusable."""

    def failed(self, link: Link, fault: Fault, detail: str) -> None:
        """The flight gets no answer from this link."""

    def closed(self, link: Link) -> None:
        """The socket is closed. Called once."""


class Link(asyncio.Protocol):
    """
    One connection; opened by `webhooks.connect`.

    Args:
        origin: whom it leads to.
        owner: hears what becomes of it.
        max_excerpt: bytes kept of a body.
        clock: the loop's time.

    Attributes:
        flight: the one under way, None while idle.
        received: a byte of its answer has come.
        status: of its answer, 0 until the head has been received.
        opened: the loop's time at which the connection was made.
        idle_since: the loop's time.
        used: it has carried a flight before this one.
        spoke_unasked: something came while there was no flight.
    """

    __slots__ = (
        "_aborted",
        "_clock",
        "_complete",
        "_left",
        "_max_excerpt",
        "_owner",
        "_parser",
        "_persistent",
        "_surplus",
        "_transport",
        "_wanted",
        "excerpt",
        "flight",
        "headers",
        "idle_since",
        "opened",
        "origin",
        "received",
        "retry_after",
        "spoke_unasked",
        "status",
        "used",
    )

    def __init__(self, origin: str, owner: Owner, max_excerpt: int, clock: Callable[[], float]) -> None:
        self.origin = origin
        self.opened = 0.0
        self.idle_since = 0.0
        self.used = False
        self.spoke_unasked = False
        self.flight: Flight | None = None
        self.received = False
        self.status = 0
        self.retry_after: str | None = None
        self.headers: list[tuple[str, str]] = []
        self.excerpt = b""
        self._owner = owner
        self._clock = clock
        self._max_excerpt = max_excerpt
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None  # while connected
        self._left = 0  # bytes that may still be read
        self._complete = False  # the answer is
        self._persistent = False  # the answer said that the connection stays
        self._surplus = False  # there was something behind the answer
        self._wanted: frozenset[bytes] = frozenset()  # headers
        self._aborted = False

    # --- using it -------------------------------------------------------------------------------------------

    def ask(self, flight: Flight) -> None:
        """Send a request; the link must be idle and open."""
        assert self._transport is not None
        self.flight = flight
        self.received = False
        self.status = 0
        self.retry_after = None
        self.excerpt = b""
        self._left = MAX_HEAD
        self._wanted = flight.wanted
        self._complete = False
        if self.headers:
            self.headers = []
        flight.link = self
        flight.phase = Phase.ASKING
        if len(flight.body) <= _JOINED:
            self._transport.write(flight.head + flight.body)
        else:
            self._transport.writelines((flight.head, flight.body))

    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def abort(self) -> None:
        """Close at once; nothing more is said about the flight. Idempotent."""
        self._aborted = True
        self.flight = None
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is made, and encrypted if it is to be."""
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpResponseParser(self)
        self.opened = self._clock()
        if self._aborted:  # who wanted it has gone
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read the answer as far as it has come."""
        if self.flight is None:
            self.spoke_unasked = True  # "408 Request Timeout", the greeting of another protocol, or worse
            self.abort()
            return
        if not self.received:
            self.received = True
            self.flight.phase = Phase.READING
        try:
            if len(data) < self._left:
                self._left -= len(data)
                self._parser.feed_data(data)
            else:
                self._feed_within_bounds(data)
        except httptools.HttpParserError as error:
            self._broken(str(error.__context__ or error))
            return
        if self._complete:
            self._answered()

    def eof_received(self) -> None:
        """The receiver sends no more: the transport closes."""
        self._over(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._over(exc)
        self._transport = None
        self._parser = None  # it holds this object
        self._owner.closed(self)

    # --- what becomes of the answer -------------------------------------------------------------------------

    def _feed_within_bounds(self, data: bytes) -> None:
        """Read data that reaches the bound of what is read; the end of the head moves the bound."""
        while data and self._left:
            part, data = data[: self._left], data[self._left :]
            self._left -= len(part)
            self._parser.feed_data(part)
        if self._complete or self._left:
            return
        if self.status:
            self._owner.answered(self, reusable=False)
        else:
            self._fail("too_large", f"the head of the answer has more than {MAX_HEAD} bytes")

    def _answered(self) -> None:
        assert self._transport is not None
        reusable = (
            self._persistent
            and not self._surplus
            and not self._transport.get_write_buffer_size()  # answered before it was asked in full
            and not self._transport.is_closing()
        )
        self.used = True
        self._owner.answered(self, reusable=reusable)

    def _broken(self, why: str) -> None:
        """The parser gave up."""
        if self.status:
            self._owner.answered(self, reusable=False)
        else:
            self._fail("protocol", f"the answer cannot be read: {why}")

    def _over(self, exc: Exception | None) -> None:
        """Nothing more comes."""
        if self.flight is None:
            return
        if self.status:
            self._owner.answered(self, reusable=False)
        elif isinstance(exc, ssl.SSLError):  # with TLS 1.3 a receiver refuses us after the handshake
            self._fail("tls", f"the receiver ended the encrypted connection: {exc.reason or exc}")
        elif self.received:
            self._fail("reset", "the connection was closed within the head of the answer")
        else:
            self._fail("reset", "the connection was closed before an answer came")

    def _fail(self, fault: Fault, detail: str) -> None:
        self._owner.failed(self, fault, detail)

    # --- what the parser calls ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins: the one asked for, an interim one, or one too many."""
        self._surplus = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep what is wanted of the head; a trailer is not."""
        if len(name) != _RETRY_AFTER_LENGTH and not self._wanted:
            return  # nearly all of them
        if self.status:
            return
        name = name.lower()
        if name == _RETRY_AFTER and self.retry_after is None:
            self.retry_after = _text(value)
        if name in self._wanted:
            self.headers.append((_text(name), _text(value)))

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self.status:
            return
        status = self._parser.get_status_code()
        if status == 101:
            raise ValueError("it changes to another protocol, which nobody asked for")
        if status in _INTERIM:
            self.retry_after = None
            self.headers = []
            return
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):  # the parser takes others, too
            raise ValueError(f"it is one of HTTP/{version}")
        self.status = status
        self._left += MAX_ANSWER - MAX_HEAD

    def on_body(self, body: bytes) -> None:
        """Keep the beginning."""
        room = self._max_excerpt - len(self.excerpt)
        if room > 0 and not self._complete:
            self.excerpt += body[:room]

    def on_message_complete(self) -> None:
        """The answer is there, if it was not an interim one."""
        if self.status and not self._complete:
            self._complete = True
            self._persistent = self._parser.should_keep_alive()


def _text(value: bytes) -> str:
    return value[:MAX_VALUE].decode("latin-1").strip()
