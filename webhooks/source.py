"""The source: the log as webhooks read it, from the window while they keep up, else from where it lies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from fanout.event import Event
from fanout.window import Window
from gateway.log import Log

BLOCK_BYTES: Final = 256 * 1024
"""How much of the log is read at a time."""

MAX_EVENTS: Final = 500
MAX_BYTES: Final = 1 << 20
"""Events and bytes of their JSON that are looked at in one step."""

Reach = Callable[[int], Awaitable[bool]]
"""Waits until everything up to a position was read; says whether there is that much."""


class Source:
    """
    A log to be read from one place on.

    Args:
        log: the log.
        window: its recent part.
        reach: see `Reach`; for a log that others may have read further than this process.
    """

    def __init__(self, log: Log, window: Window, reach: Reach | None = None) -> None:
        self._log = log
        self._window = window
        self._reach = reach

    @property
    def epoch(self) -> str:
        """The name of the log; empty while it is not known."""
        return self._window.epoch

    @property
    def head(self) -> int:
        """Position of the newest event that was delivered here."""
        return self._window.head

    @property
    def first(self) -> int:
        """Position of the oldest event that there is."""
        return self._log.first

    async def read(self, after: int) -> list[Event]:
        """
        Return events behind a position, oldest first; what is in the window at once.

        Raises:
            LogError: they cannot be read.
        """
        window = self._window
        if after >= window.floor:
            return window.after(after, MAX_EVENTS, MAX_BYTES)
        restarts = window.restarts
        events = await self._log.read(after, BLOCK_BYTES)
        return events if restarts == window.restarts else []

    async def catch_up(self) -> None:
        """
        Read everything that anybody was told of before this was called, through whichever replica.

        Raises:
            LogError: that cannot be done at the moment.
        """
        if self._reach is not None:
            await self._reach(self.head + 1)

    async def reaches(self, position: int) -> bool:
        """
        Say whether the log reaches a position that somebody has seen; wait for it if it is on its way.

        Raises:
            LogError: it cannot be known at the moment.
        """
        return position <= self.head or (self._reach is not None and await self._reach(position))
