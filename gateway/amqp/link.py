"""
The link: one AMQP connection for events, as an asyncio protocol of our own.

It does what the event path needs and nothing else: handshake, channels, one request at a time on each,
heartbeats both ways, and for all that carries events a listener that is called directly. A link is never
repaired: once it is lost, whoever owns it makes a new one.

Source: AMQP 0-9-1 specification 2.2.4 (opening), 4.2.7 (heartbeats), 4.10 (limits);
https://www.rabbitmq.com/docs/connection-blocked, …/auth-notification, …/consumer-cancel.
"""

from __future__ import annotations

import asyncio
import contextlib
from importlib.metadata import version
from typing import Any, Final, Protocol, cast

from pamqp import commands, exceptions, frame

from gateway.amqp import tls
from gateway.amqp.address import Address
from gateway.amqp.frames import (
    FRAME_END,
    HEARTBEAT,
    HEARTBEAT_FRAME,
    METHOD,
    PROTOCOL_HEADER,
    RETURN,
    Confirm,
    Delivery,
    Frame,
    FrameError,
    Inbox,
    confirm_of,
)

HEARTBEAT_SECONDS: Final = 5
"""A peer that says nothing for twice as long is dead or frozen."""

OPEN_SECONDS: Final = 10.0
CALL_SECONDS: Final = 15.0
CLOSE_SECONDS: Final = 2.0

MAX_FRAME: Final = 128 * 1024
MAX_BODY: Final = 128 * 1024 * 1024

ACCESS_REFUSED: Final = 403
NOT_FOUND: Final = 404
NOT_ALLOWED: Final = 530

Method = Any
"""A method of `pamqp.commands`: its classes share no useful type."""


class LinkError(Exception):
    """The broker could not be reached, or the connection to it ended. Trying again may help."""


class LinkRefused(LinkError):
    """The broker will not have us, and trying again changes nothing until somebody changes something."""


class ChannelClosed(LinkError):
    """The broker closed a channel: it would not do what was asked."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code
        self.text = text


class ChannelRefused(ChannelClosed, LinkRefused):
    """The broker closed a channel because this user may not do what was asked."""

    def __str__(self) -> str:
        return f"this user may not ({said(self.text)}); it needs the permissions configure, write and read"


class Listener(Protocol):
    """Who hears what a link receives; called on the event loop and never to wait."""

    def delivered(self, deliveries: list[Delivery]) -> None:
        """Take the messages of one read."""

    def confirmed(self, confirms: list[Confirm]) -> None:
        """Take the publisher confirms of one read."""

    def returned(self, reason: str) -> None:
        """A publication reached no queue."""

    def blocked(self, reason: str | None) -> None:
        """The broker takes no publications, with the reason why, or takes them again (None)."""

    def ended(self, error: LinkError) -> None:
        """The link, or one of its channels or consumers, is of no more use. Called once."""


class Link(asyncio.Protocol):
    """
    One connection to one node; made by `gateway.amqp.connecting.connect`.

    Args:
        address: where and who.
        host: which of its hosts.
        name: what the broker's lists call this connection.
        listener: hears what comes.
        heartbeat: seconds.
        max_body: the longest body of a delivery that is kept.
    """

    def __init__(
        self,
        address: Address,
        host: tuple[str, int],
        name: str,
        listener: Listener,
        heartbeat: int = HEARTBEAT_SECONDS,
        max_body: int = MAX_BODY,
    ) -> None:
        self.host = host
        self.at = host  # the very address
        self.frame_max = MAX_FRAME
        self.version: tuple[int, ...] = ()  # of the broker
        self.cluster = ""  # the name that the broker's cluster gives itself
        self.lost: LinkError | None = None
        self._address = address
        self._name = name
        self._listener = listener
        self._heartbeat: float = heartbeat
        self._inbox = Inbox(max_body=max_body)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._opened.add_done_callback(_look)
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._waiters: dict[int, tuple[list[str], asyncio.Future[Method]]] = {}
        self._channels = 0  # how many numbers were given out
        self._free: set[int] = set()  # which of them can be given out again
        self._closing = False
        self._sent = False  # something since the last tick
        self._received = 0.0
        self._ticked = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._resting = False

    # --- asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._transport = cast("asyncio.Transport", transport)
        self._received = self._ticked = self._loop.time()
        self._transport.write(PROTOCOL_HEADER)

    def data_received(self, data: bytes) -> None:
        """Hand on what came."""
        self._received = self._loop.time()
        if not self._opened.done() and tls.is_alert(data):
            self._end(LinkRefused(f"{self._where()} speaks TLS: its address begins with amqps://"))
            return
        try:
            deliveries, others = self._inbox.feed(data)
        except FrameError as error:
            self._end(self._no_broker(error))
            return
        if deliveries:
            self._listener.delivered(deliveries)
        if others:
            self._take(others)

    def _no_broker(self, error: FrameError) -> LinkError:
        """Return what is to be said of a peer that sends something else than AMQP."""
        if self._opened.done():
            return LinkError(f"{self._where()} broke the protocol: {error}")
        return LinkRefused(
            f"what answers at {self._address.name(self.host)} is no broker for us: {error}; AMQP 0-9-1 has a "
            "port of its own, usually 5672"
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        refusal = tls.refusal(self._where(), exc)
        if refusal is not None:
            self._end(LinkRefused(refusal))
        reason = f": {exc}" if exc is not None else ""
        if not self._opened.done() and self.lost is None:
            # Before 3.x's authentication_failure_close, and with a wrong protocol: closed without a word.
            reason = reason or " during the handshake, without a word"
        self._end(LinkError(f"the connection to {self._where()} was closed{reason}"))
        if not self._gone.done():
            self._gone.set_result(None)

    # --- using it -------------------------------------------------------------------------------------------

    async def opened(self) -> None:
        """Wait for the end of the handshake."""
        await self._opened

    def write(self, data: bytes) -> None:
        """Send bytes that are whole frames; nothing happens on a link that is lost."""
        if self.lost is None and self._transport is not None:
            self._sent = True
            self._transport.write(data)

    def rest(self, seconds: float) -> None:
        """Take nothing from the socket for a moment: what comes meanwhile then comes at once."""
        if self.lost is None and self._transport is not None and not self._resting:
            self._resting = True
            self._transport.pause_reading()
            self._loop.call_later(seconds, self._rested)

    def _rested(self) -> None:
        self._resting = False
        if self.lost is None and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def silence(self) -> float:
        """Return for how many seconds the peer has said nothing."""
        return self._loop.time() - self._received

    async def channel(self) -> int:
        """Open a channel and return its number: a broker allows for 2,047 of them."""
        if not self._free:
            self._channels += 1
            self._free.add(self._channels)
        channel = self._free.pop()
        await self.call(commands.Channel.Open(), channel)
        return channel

    async def close_channel(self, channel: int) -> None:
        """Close a channel, or see that the broker has."""
        with contextlib.suppress(ChannelClosed):
            await self.call(commands.Channel.Close(200, "done", 0, 0), channel)
            self._free.add(channel)

    async def call(self, method: Method, channel: int) -> Method:
        """
        Send a method and return its answer.

        Raises:
            ChannelClosed: the broker refused it.
            LinkError: the link was lost, or no answer came in time.
        """
        if self.lost is not None:
            raise self.lost
        assert channel not in self._waiters, "one request at a time on a channel"
        future: asyncio.Future[Method] = self._loop.create_future()
        self._waiters[channel] = (method.valid_responses, future)
        self.write(frame.marshal(method, channel))
        try:
            return await asyncio.wait_for(future, CALL_SECONDS)
        except TimeoutError:
            error = LinkError(f"{self._where()} did not answer {method.name} in {CALL_SECONDS:.0f} seconds")
            self._end(error)
            raise error from None
        finally:
            self._waiters.pop(channel, None)

    async def close(self) -> None:
        """Say goodbye and close. Idempotent, never raises."""
        if self.lost is None and self._opened.done() and not self._closing:
            self._closing = True
            self.write(frame.marshal(commands.Connection.Close(200, "done", 0, 0), 0))
            await asyncio.wait([self._gone], timeout=CLOSE_SECONDS)
        self.abort()

    def abort(self) -> None:
        """Close at once; the listener hears nothing. Idempotent."""
        self._closing = True
        self._end(LinkError("the connection was closed by this side"))

    # --- frames that carry no events ------------------------------------------------------------------------

    def _take(self, others: list[Frame]) -> None:
        confirms: list[Confirm] = []
        for kind, channel, payload in others:
            if kind == HEARTBEAT:
                continue
            confirm = confirm_of(payload) if kind == METHOD else None
            if confirm is not None:
                confirms.append(confirm)
            elif payload[:4] == RETURN:
                end = 7 + payload[6]
                self._listener.returned(payload[7:end].decode("utf-8", "replace"))
            elif kind == METHOD:
                self._method(channel, payload)
        if confirms:
            self._listener.confirmed(confirms)

    def _method(self, channel: int, payload: bytes) -> None:  # noqa: C901, PLR0912  (a table of methods)
        """Act on a method; those nobody asked for have their place here."""
        raw = b"\x01%b%b%b%c" % (channel.to_bytes(2), len(payload).to_bytes(4), payload, FRAME_END)
        try:
            method: Method = frame.unmarshal(raw)[2]
        except (exceptions.PAMQPException, ValueError, KeyError) as error:
            self._end(LinkError(f"{self._where()} sent a method that cannot be read: {error}"))
            return
        waiter = self._waiters.get(channel)
        if waiter is not None and method.name in waiter[0]:
            if not waiter[1].done():
                waiter[1].set_result(method)
            return
        match method:
            case commands.Connection.Start():
                self._start(method)
            case commands.Connection.Tune():
                self._tune(method)
            case commands.Connection.OpenOk():
                self._open_ok()
            case commands.Connection.Close():
                self.write(frame.marshal(commands.Connection.CloseOk(), 0))
                self._end(self._closed(method))
            case commands.Connection.CloseOk():
                self._end(LinkError("the connection was closed by this side"))
            case commands.Connection.Blocked():
                self._listener.blocked(method.reason or "no reason given")
            case commands.Connection.Unblocked():
                self._listener.blocked(None)
            case commands.Channel.Close():
                self._channel_closed(channel, method)
            case commands.Basic.Cancel():
                self._ended(ChannelClosed(NOT_FOUND, "the broker cancelled the consumer: its queue is gone"))
            case _:
                pass  # answers to nobody: those who asked have gone

    def _start(self, method: Method) -> None:
        properties = method.server_properties or {}
        self.version = _version(str(properties.get("version", "")))
        self.cluster = str(properties.get("cluster_name", ""))
        if "PLAIN" not in method.mechanisms.split():
            self._end(LinkRefused(f"{self._where()} does not offer to log in with a password (PLAIN)"))
            return
        ours: dict[str, Any] = {
            "product": "sluicegate",
            "version": version("sluicegate"),
            "connection_name": self._name,
            "capabilities": {
                "authentication_failure_close": True,
                "basic.nack": True,
                "connection.blocked": True,
                "consumer_cancel_notify": True,
                "publisher_confirms": True,
            },
        }
        login = f"\0{self._address.user}\0{self._address.password}"
        self.write(frame.marshal(commands.Connection.StartOk(ours, "PLAIN", login, "en_US"), 0))

    def _tune(self, method: Method) -> None:
        """Agree on limits; the smaller counts, and 0 is no limit (4.2.3, 4.10)."""
        self.frame_max = min(method.frame_max or MAX_FRAME, MAX_FRAME)
        self._inbox.max_frame = self.frame_max
        if method.heartbeat:
            self._heartbeat = min(self._heartbeat, method.heartbeat)
        answer = commands.Connection.TuneOk(method.channel_max, self.frame_max, int(self._heartbeat))
        self.write(frame.marshal(answer, 0))
        self.write(frame.marshal(commands.Connection.Open(self._address.vhost), 0))
        self._timer = self._loop.call_later(self._heartbeat / 2, self._tick)

    def _open_ok(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def _channel_closed(self, channel: int, method: Method) -> None:
        self.write(frame.marshal(commands.Channel.CloseOk(), channel))
        self._inbox.forget(channel)
        self._free.add(channel)
        code, text = method.reply_code, method.reply_text
        error = (ChannelRefused if code == ACCESS_REFUSED else ChannelClosed)(code, text)
        waiter = self._waiters.get(channel)
        if waiter is not None:
            if not waiter[1].done():
                waiter[1].set_exception(error)
        else:
            self._ended(error)

    def _closed(self, method: Method) -> LinkError:
        """Turn the broker's reason for closing the connection into a sentence."""
        code, text, address = method.reply_code, method.reply_text, self._address
        if not self._opened.done():
            if code == ACCESS_REFUSED and "vhost" not in text:
                return LinkRefused(
                    f"{self._where()} refuses the user {address.user!r}: wrong name or password "
                    "(guest may log in from the broker's own machine only)"
                )
            if code in (NOT_ALLOWED, ACCESS_REFUSED) and "limit" not in text:
                return LinkRefused(
                    f"{self._where()}: the virtual host {address.vhost!r} does not exist or the user "
                    f"{address.user!r} may not use it; the address ends with its name"
                )
        return LinkError(f"{self._where()} closed the connection: {text} ({code})")

    # --- the end --------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Send a heartbeat if nothing else was sent, and see whether the peer lives."""
        now = self._loop.time()
        interval = self._heartbeat / 2
        self._timer = self._loop.call_later(interval, self._tick)
        late = now - self._ticked > 2 * interval  # this process stood still: what came is not read yet
        self._ticked = now
        if late:
            self._received = now
        if now - self._received > 2 * self._heartbeat:
            self._end(LinkError(f"{self._where()} said nothing for {now - self._received:.0f} seconds"))
        elif not self._sent:
            self.write(HEARTBEAT_FRAME)
        self._sent = False

    def _ended(self, error: LinkError) -> None:
        """A channel or consumer is gone: with one role per connection that is the end of the link."""
        self._end(error)

    def _end(self, error: LinkError) -> None:
        if self.lost is not None:
            return
        self.lost = error
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        waiters, self._waiters = self._waiters, {}
        for _, future in waiters.values():
            if not future.done():
                future.set_exception(error)
        if not self._opened.done():
            self._opened.set_exception(error)
        elif not self._closing:
            self._listener.ended(error)

    def _where(self) -> str:
        return f"the broker at {self._address.name(self.host)}"


def said(text: str) -> str:
    """Return what a broker said, without the name of its code: `NOT_FOUND - no queue …`."""
    return text.partition(" - ")[2] or text


def _look(future: asyncio.Future[None]) -> None:
    """Look at an outcome, so that nobody complains when whoever waited for it has gone."""
    if not future.cancelled():
        future.exception()


def _version(text: str) -> tuple[int, ...]:
    """Return a version's leading numbers."""
    numbers: list[int] = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)
