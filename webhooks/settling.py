"""
Settling: what came of attempts is written down, in as few transactions as there can be.

Outcomes that come while one transaction is under way are the next one. Until its outcome is written down a
delivery stays in the hands of its lane, so whatever cannot be written for a while is not sent again by this
process; and while much waits, or the store is away, nothing more is begun.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.log import StoreUnavailable
from webhooks.counters import Counters
from webhooks.lane import Lane
from webhooks.ownership import Fenced
from webhooks.records import Result, Status
from webhooks.store import Store
from webhooks.stored import health_of

log = logging.getLogger(__name__)

MOST: Final = 1000
"""Outcomes of one transaction."""
MAX_WAITING: Final = 2000
"""
Outcomes that wait to be written down; beyond it no attempt is begun. Whatever waits when the process is
killed is sent again.
"""
BACK_OFF: Final = 0.5
"""Seconds between attempts to write while the store is away."""


@dataclass(slots=True)
class Settled:
    """An outcome that is to be written down."""

    lane: Lane
    result: Result
    closed: Status | None = None


class Settling:
    """
    Writes down outcomes.

    Args:
        store: where.
        owner: returns who does it.
        done: told of those that are written down.
        fenced: awaited when the store says that a bucket is somebody else's; when it returns, the lanes
            that were taken over are lost.
        counters: where it is counted.
    """

    def __init__(
        self,
        store: Store,
        owner: Callable[[], int],
        done: Callable[[Sequence[Settled]], None],
        fenced: Callable[[], Awaitable[None]],
        counters: Counters,
    ) -> None:
        self._store = store
        self._owner = owner
        self._done = done
        self._fenced = fenced
        self._counters = counters
        self._waiting: list[Settled] = []
        self._changed: dict[Lane, None] = {}  # whose health is to be written down
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.trouble = False

    @property
    def is_full(self) -> bool:
        """Whether so much waits that nothing more should be begun."""
        return self.trouble or len(self._waiting) >= MAX_WAITING

    @property
    def waiting(self) -> int:
        """How many outcomes are not written down yet."""
        return len(self._waiting)

    def add(self, settled: Settled) -> None:
        """Have an outcome written down."""
        self._waiting.append(settled)
        self._idle.clear()
        self._wanted.set()

    def note(self, lane: Lane) -> None:
        """Have a lane's health written down with the next outcomes, if it is another one."""
        self._changed[lane] = None

    async def finished(self) -> None:
        """Wait until nothing waits."""
        await self._idle.wait()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._waiting:
                await self._write()
            self._idle.set()

    async def _write(self) -> None:
        """Write down what waits, or a part of it."""
        self._forget_lost()
        batch = self._waiting[:MOST]
        changed, self._changed = self._changed, {}
        health = {lane: health_of(lane.endpoint) for lane in changed if not lane.lost}
        health = {lane: text for lane, text in health.items() if text != lane.saved}
        if not batch and not health:
            self.trouble = False
            return
        try:
            await self._store.settle(
                self._owner(),
                [each.result for each in batch],
                {lane.id: text for lane, text in health.items()},
                {each.lane.id: each.closed for each in batch if each.closed is not None},
            )
        except StoreUnavailable:
            self._changed = changed | self._changed
            self.trouble = True
            await asyncio.sleep(BACK_OFF)
        except Fenced:
            self._changed = changed | self._changed
            await self._fenced()
        else:
            self.trouble = False
            del self._waiting[: len(batch)]
            for lane, text in health.items():
                lane.saved = text
            self._done(batch)

    def _forget_lost(self) -> None:
        """Leave out what another replica answers for now; it sends these again."""
        if any(each.lane.lost for each in self._waiting):
            kept = [each for each in self._waiting if not each.lane.lost]
            self._counters.overtaken += len(self._waiting) - len(kept)
            self._waiting = kept
