"""
Chores: what is done beside dispatching and sending, a little at a time, so that neither waits for it.

Looking at the store for what others changed in it, jobs on many deliveries, forgetting what is too old, and
deleting what belonged to endpoints that were removed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from gateway.log import StoreUnavailable
from webhooks.directory import Directory
from webhooks.ownership import Fenced
from webhooks.records import Task
from webhooks.sending import Sending
from webhooks.store import Store
from webhooks.tenure import Tenure
from webhooks.upkeep import CHORES

log = logging.getLogger(__name__)

LOOK_SHARED: Final = 1.0
LOOK_ALONE: Final = 30.0
"""
Seconds between looks at the store: where others change it nobody tells us, where we are alone it is for
whatever was overlooked, and for clocks that were set back.
"""
CLEAN_SECONDS: Final = 10.0
"""How often it is looked for what is too old; while there is more it goes on with `PAUSE` in between."""
COUNT_SECONDS: Final = 30.0
MAX_COUNTED: Final = 100_000
"""How often pending deliveries are counted, and how many at most: a count must not become a burden."""
PAUSE: Final = 0.05
BACK_OFF: Final = 2.0


class Chores:
    """
    Does them, for the buckets that are ours.

    Args:
        store: where.
        tenure: says which buckets are ours.
        directory: their endpoints.
        sending: woken when there is something to send.
        retention_ms: how long messages are kept; 0 is for ever.
        shared: others change the store as well.
        clock: milliseconds since the Unix epoch.
        looked: told before each look.
        opened: told when a job has opened an endpoint.

    Attributes:
        pending: how many deliveries were pending when they were last counted; no more than `MAX_COUNTED`.
    """

    def __init__(
        self,
        store: Store,
        tenure: Tenure,
        directory: Directory,
        sending: Sending,
        retention_ms: int,
        *,
        shared: bool,
        clock: Callable[[], int],
        looked: Callable[[], None],
        opened: Callable[[], None],
    ) -> None:
        self.pending = 0
        self._store = store
        self._tenure = tenure
        self._directory = directory
        self._sending = sending
        self._retention_ms = retention_ms
        self._clock = clock
        self._looked = looked
        self._opened = opened
        self._every = LOOK_SHARED if shared else LOOK_ALONE
        self._wanted = asyncio.Event()
        self._counted = 0.0

    def wake(self) -> None:
        """Look now."""
        self._wanted.set()

    async def look(self) -> None:
        """Look again and again at what is due and at jobs, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._every):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            self._looked()
            try:
                await self._look()
                while await self._work():  # noqa: ASYNC110  (each look is a step)
                    await asyncio.sleep(PAUSE)
            except (StoreUnavailable, Fenced):
                await asyncio.sleep(BACK_OFF)

    async def clean(self) -> None:
        """Delete again and again what nobody needs, until cancelled."""
        while True:
            try:
                more = await self._clean()
            except (StoreUnavailable, Fenced):
                more = False
            await asyncio.sleep(PAUSE if more else CLEAN_SECONDS)

    async def _look(self) -> None:
        """Wake the lanes for which something is due."""
        buckets = set(self._directory.buckets)
        if not self._directory.lanes:
            self.pending = 0
            return
        for endpoint, due in (await self._store.earliest(buckets)).items():
            lane = self._directory.lanes.get(endpoint)
            if lane is not None:
                self._sending.expect(lane, min(due, self._clock() + lane.longest_wait))
        if time.monotonic() - self._counted > COUNT_SECONDS:
            self._counted = time.monotonic()
            self.pending = await self._store.count_pending(buckets, MAX_COUNTED)

    async def _work(self) -> bool:
        """Do a step of each open job; return whether there is more to do."""
        jobs = await self._store.list_open_jobs(set(self._directory.buckets)) if self._directory.lanes else []
        more = False
        for job in jobs:
            stepped = await self._store.step_job(self._tenure.owner, job)
            more |= not stepped.finished
            if stepped.finished and job.task is Task.SKIP:
                self._opened()
            lane = self._directory.lanes.get(job.endpoint)
            if lane is not None:
                self._sending.expect(lane, self._clock())
        return more

    async def _clean(self) -> bool:
        buckets = set(self._directory.buckets)
        more = False
        if CHORES in buckets and self._retention_ms:
            more = bool(await self._store.forget(self._tenure.owner, self._clock() - self._retention_ms))
        if buckets:
            more |= await self._store.sweep(self._tenure.owner, buckets)
        return more
