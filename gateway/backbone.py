"""The backbone: how a gateway is put on a RabbitMQ stream. Imported only when the settings name a broker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fanout.closing import CloseReason
from fanout.cursor import Cursor, Start
from fanout.event import Event
from fanout.selection import Filter
from fanout.topics import routes
from fanout.window import Window
from gateway.amqp.address import Address
from gateway.amqp.topology import Topology
from gateway.requests.buckets import Copies, queues_of
from gateway.requests.options import Options, services_of
from gateway.requests.sharing import PREFETCH, Make
from gateway.starts import Locator, Place
from gateway.stream_log import StreamLog
from gateway.units import MIB

if TYPE_CHECKING:
    from gateway.app import Gateway
    from gateway.handling.consumer import Consumer, Held
    from gateway.settings import Settings

RESET: Final = CloseReason(
    "reset", 1012, "the log is another one now; reconnect with your cursor", reconnect=True
)

SEGMENT_BYTES: Final = (10 * MIB, 50 * MIB)
"""
Between these a segment is a tenth of what is retained: the broker removes whole segments, and only when it
begins another.
"""


def bindings(text: str) -> tuple[tuple[str, str], ...]:
    """
    Read `exchange:pattern,exchange:pattern`; without a pattern it is `#`.

    Raises:
        ValueError: an exchange has no name.
    """
    pairs = [each.strip().partition(":") for each in text.split(",") if each.strip()]
    if not pairs or not all(name for name, _, _ in pairs):
        raise ValueError("each part is the name of an exchange, a colon and a pattern of routing keys")
    return tuple((name, pattern or "#") for name, _, pattern in pairs)


def topology(settings: Settings) -> Topology:
    """Return what is declared on the broker."""
    least, most = SEGMENT_BYTES
    bound = bindings(settings.exchanges)
    return Topology(
        stream=settings.stream,
        exchange=bound[0][0],
        bindings=bound,
        dead=f"{bound[0][0]}.dead",
        max_age_seconds=int(settings.retention_seconds),
        max_bytes=settings.retention_bytes,
        segment_bytes=min(max(settings.retention_bytes // 10, least), most)
        if settings.retention_bytes
        else most,
        queues=tuple(
            queue
            for service in services_of(settings.services)
            for queue in queues_of(settings.stream, service)
        ),
    )


def takes(topology: Topology) -> Callable[[str], bool]:
    """
    Return what says whether an event of a topic, published to the exchange, comes to the stream: only through
    a binding.
    """
    patterns = [pattern for name, pattern in topology.bindings if name == topology.exchange]
    return lambda topic: any(routes(pattern, topic) for pattern in patterns)


def address(settings: Settings) -> Address:
    """Return where the broker is, and how its and our certificates are checked."""
    return replace(
        Address.parse(settings.backbone),
        ca=settings.backbone_ca and str(Path(settings.backbone_ca).expanduser()),
        certificate=settings.backbone_certificate and str(Path(settings.backbone_certificate).expanduser()),
    )


def stream_log(settings: Settings) -> StreamLog:
    """Return the log in the stream that the settings name."""
    return StreamLog(
        address(settings),
        topology(settings),
        max_event_bytes=settings.max_event_bytes,
        queue_bytes=settings.queue_bytes,
        queue_events=settings.queue_events,
        tail_bytes=settings.window_bytes,
        tail_events=settings.window_events,
        dedup_seconds=settings.dedup_seconds,
        dedup_events=settings.dedup_events,
        copies=Copies(settings.stream, Options.of(settings)) if settings.services else None,
    )


def request_consumer(settings: Settings, name: str) -> Make:
    """
    Return what makes the consumer of a service's requests.

    Args:
        settings: those of the gateway.
        name: of the gateway, among those who take part.
    """
    from gateway.handling.consumer import Consumer  # noqa: PLC0415  (only who is asked needs it)

    exchange = topology(settings).exchange

    def make(service: str, take: Callable[[Held], None], over: Callable[[str], None]) -> Consumer:
        return Consumer(
            address(settings),
            settings.stream,
            exchange,
            service,
            name,
            take=take,
            over=over,
            prefetch=PREFETCH,
        )

    return make


class StreamLocator(Locator):
    """
    Finds places in a log that other replicas may have read further than this one.

    Args:
        window: the recent part of the log.
        log: all of it.
    """

    def __init__(self, window: Window, log: StreamLog) -> None:
        super().__init__(window, log)
        self._stream = log
        self._recent = window

    async def locate(self, start: Start, wanted: Filter) -> Place:
        """
        Return where `start` is; see `Locator.locate`. A cursor ahead of this replica waits until it is not.

        Raises:
            LogError: the log had to be asked and could not be.
        """
        recent = self._recent
        if isinstance(start, Cursor) and start.epoch == recent.epoch and start.position > recent.head:
            reached = await self._stream.reach(start.position)
            if reached and not start.tag and start.position > recent.head:
                return Place(recent.head)  # what is between holds nothing for clients
        return await super().locate(start, wanted)


class Taking:
    """
    What the stream log delivers to: the hub, after the ids that came through other replicas were remembered.

    Args:
        gateway: whose hub it is.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def __call__(self, batch: list[Event]) -> None:
        """Take the next events of the log."""
        named = [event for event in batch if event.given_id is not None]
        if named:
            self._gateway.dedup.restore(named)
        self._gateway.deliver(batch)


def begin(gateway: Gateway, log: StreamLog) -> None:
    """
    Serve a log from where it stands: at the start, and when it became another one.

    Every connection is sent away to come back with its cursor, which is then told `reset` if it is not of
    this log; every waiting poll is answered.
    """
    for sink in list(gateway.streams.sinks):
        sink.close(RESET)
    tail = log.take_tail()
    gateway.feeder.restart()
    window = gateway.hub.window
    if log.epoch != window.epoch or log.head < window.head:
        gateway.dedup.clear()  # what it knows is not in the log any more
    window.restart(log.epoch, log.head, log.head_tag)
    window.preload(tail)
    gateway.dedup.restore(tail)
    for waiter in list(gateway.poller.waiters):
        waiter.woken.set()
    if gateway.requests is not None:
        gateway.requests.restart()
    if gateway.webhooks is not None:
        gateway.webhooks.wake()
