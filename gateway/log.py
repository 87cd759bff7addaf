"""The log as the gateway sees it: an ordered, durable store of events that gives each its position."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from fanout.event import Event

Deliver = Callable[[list[Event]], None]


class LogError(Exception):
    """
    Root of what can go wrong with a log, and with what is kept beside it.

    Attributes:
        told: what a client is told that can have no answer because of it.
        retry_after: seconds after which it may ask again.
    """

    told = "the log cannot be read at the moment"
    retry_after: float = 1


class LogDamaged(LogError):
    """
    The stored log, or a part of it, cannot be used: damaged, of a newer version, or no log at all.

    Args:
        reason: a sentence.
        last: position of the last event of the damaged part, where that is known; what follows can be read.
    """

    def __init__(self, reason: str, last: int | None = None) -> None:
        super().__init__(reason)
        self.last = last


class LogBusy(LogError):
    """The queue in front of the log is full; nothing was queued. Try again after `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("the log's queue is full")
        self.retry_after = retry_after


class LogUnavailable(LogError):
    """
    The log could not make events durable; none of the call's events was stored. Try again after
    `retry_after` seconds.
    """

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class StoreUnavailable(LogUnavailable):
    """The cursors of durable subscriptions cannot be read or stored. Whoever noticed has logged why."""

    told = "the places of durable subscriptions cannot be read or stored at the moment"


@dataclass(frozen=True, slots=True)
class Measure:
    """
    A number that a log tells about itself.

    Attributes:
        name: what operators find it by; with `sluice_` in front, and `_total` behind if it is one.
        what: a sentence.
        value: as it is now.
        total: whether it counts up from the start of the process.
    """

    name: str
    what: str
    value: float
    total: bool = False


class Log(Protocol):
    """An ordered, durable store of events."""

    @property
    def epoch(self) -> str:
        """Six characters that name this log; another log, or a recreated one, has another epoch."""

    @property
    def first(self) -> int:
        """Position of the oldest event retained; `head + 1` when none is."""

    @property
    def head(self) -> int:
        """Position of the newest durable event; 0 when there never was one."""

    @property
    def head_tag(self) -> int:
        """Tag of the event at `head`; 0 when there never was one."""

    async def start(self, deliver: Deliver) -> None:
        """
        Open the log and from now on call `deliver` with every batch that became durable, in order, on the
        event loop.

        Raises:
            LogDamaged: the stored log cannot be used.
        """

    def append(self, events: list[Event]) -> asyncio.Future[None]:
        """
        Queue events; the future resolves when they are durable and delivered.

        An empty list resolves when everything queued before it is durable.

        Raises:
            LogBusy: the bounded queue is full.
            LogUnavailable: (through the future) they could not be made durable; none was stored.
        """

    async def read(self, after: int, max_bytes: int) -> list[Event]:
        """
        Return retained events with a position greater than `after`, oldest first, about `max_bytes` of them,
        at least one.

        If retention has taken some of those asked for, `first` says so by the time this returns: so a block
        that does not begin right behind `after`, while `first` is no further, has just nothing there.
        """

    async def find_time(self, time_ms: int) -> int:
        """Return the position of the last event accepted before `time_ms`; `first - 1` if there is none."""

    def trouble(self) -> str | None:
        """Return why events cannot be stored at the moment; None when they can, as far as is known."""

    def measures(self) -> Iterator[Measure]:
        """Return what this kind of log tells beside `first`, `head` and `trouble`."""

    async def close(self) -> None:
        """Make everything queued durable and close. Idempotent."""
