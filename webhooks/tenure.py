"""
Tenure: which buckets this process looks after, and for how long it may count on that.

On a store of its own a process has all buckets for as long as it runs. Of several workers that share a SQLite
file one has all, because a file has one writer at a time: the others stand by. Replicas on PostgreSQL share
the buckets out evenly. Nobody assigns anything: each looks who is alive, works out its own share, takes what
nobody holds, and gives away what is too much, after having finished what it had on its way for it.

Whoever shares has a lease, by the clock of the database. It is renewed well before it ends; if that fails
nothing more is begun, by a clock of this process that nobody sets, some time before anybody else can begin.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from enum import Enum, unique
from typing import Final, Protocol

from gateway.log import StoreUnavailable
from webhooks.ownership import Fenced, Survey
from webhooks.records import BUCKETS
from webhooks.store import Store

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 6.0
RENEW_SECONDS: Final = 1.5
"""How often the lease is renewed, and looked for buckets to take or to give."""
MARGIN_SECONDS: Final = 1.0
"""So long before its lease ends a process begins nothing any more."""
ALONE_SECONDS: Final = 10 * 365 * 86_400.0


@unique
class Sharing(Enum):
    """With whom a store is shared."""

    ALONE = "alone"
    """Nobody else can open it."""
    STANDBY = "standby"
    """Whoever comes first has all; others take over when it is gone."""
    EVEN = "even"
    """All have their share of the buckets."""


class Predecessor(Protocol):
    """
    Remembers who this process was before it was started, where it is known that it is not running any more:
    then nobody has to wait until its lease ends.
    """

    def recall(self) -> int:
        """Return the owner that it was; 0 if that is not known."""

    def remember(self, owner: int) -> None:
        """Keep the owner that it is now."""


class Nobody:
    """For where a restart cannot be told from another process."""

    def recall(self) -> int:
        return 0

    def remember(self, owner: int) -> None:
        pass


class Tenure:
    """
    Which buckets are ours.

    Args:
        store: where that is written.
        sharing: with whom.
        before: who we were.
        taken: awaited with buckets that are ours from now on, each with its place.
        leaving: awaited with buckets that are to be given away; returns when nothing is under way for them.
        lost: told that nothing is ours any more.
        renewed: told that the lease was renewed.
    """

    def __init__(
        self,
        store: Store,
        sharing: Sharing,
        before: Predecessor,
        *,
        taken: Callable[[dict[int, int]], Awaitable[None]],
        leaving: Callable[[Collection[int]], Awaitable[None]],
        lost: Callable[[], None],
        renewed: Callable[[], None],
    ) -> None:
        self.owner = 0  # 0 is none
        self.buckets: set[int] = set()
        self.trouble: str | None = None
        self._store = store
        self._sharing = sharing
        self._before = before
        self._taken = taken
        self._leaving = leaving
        self._lost = lost
        self._renewed = renewed
        self._recalled = False
        self._begun = False
        self._until = 0.0  # the loop's time
        self._loop = asyncio.get_running_loop()
        self._taking: asyncio.Task[None] | None = None
        self._giving: asyncio.Task[None] | None = None
        self._check = asyncio.Event()
        self._lock = asyncio.Lock()  # or an answer from before buckets were given would have them taken again
        seconds: float = ALONE_SECONDS if sharing is Sharing.ALONE else LEASE_SECONDS
        self._lease_ms = round(seconds * 1000)

    def holds(self) -> bool:
        """Say whether attempts may begin."""
        return self._loop.time() < self._until

    async def places(self) -> dict[int, int]:
        """
        Return the places of our buckets, as the store has them.

        Raises:
            Fenced: nothing is ours any more.
            StoreUnavailable: the store cannot be asked.
        """
        return await self._store.hold(self.owner, (), self._lease_ms)

    def check(self) -> None:
        """Look at once whether anything is still ours."""
        self._check.set()

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Hold buckets until cancelled."""
        while True:
            try:
                await self._turn(tasks)
                self.trouble = None
            except StoreUnavailable as error:
                self.trouble = str(error)
            except Fenced:
                self.fenced()
                continue
            settled = self._sharing is Sharing.ALONE and self.trouble is None
            try:
                async with asyncio.timeout(None if settled else RENEW_SECONDS):
                    await self._check.wait()
            except TimeoutError:
                pass
            self._check.clear()

    def fenced(self) -> None:
        """Nothing is ours any more: begin again as somebody else."""
        if not self.owner:
            return
        log.warning("webhooks.fenced", extra={"owner": self.owner, "buckets": len(self.buckets)})
        self.owner, self._until = 0, 0.0
        self.buckets.clear()
        self.keep()
        self._lost()

    def keep(self) -> None:
        """Take and give nothing any more."""
        for task in (self._taking, self._giving):
            if task is not None:
                task.cancel()

    async def leave(self) -> None:
        """Give everything back, at the end."""
        owner, self.owner, self._until = self.owner, 0, 0.0
        if owner:
            await self._store.leave(owner)

    async def _turn(self, tasks: asyncio.TaskGroup) -> None:
        """Renew the lease, take what we should have, and give what is too much."""
        if not self.owner:
            if self._sharing is Sharing.ALONE:
                await self._store.oust()
            elif not self._recalled and (before := self._before.recall()):
                await self._store.leave(before)
            self._recalled = True
            self.owner = await self._store.join(self._lease_ms)
            self._before.remember(self.owner)
        began = self._loop.time()
        wanted, surplus = await self._shares()
        async with self._lock:
            held = await self._store.hold(self.owner, wanted, self._lease_ms)
            self._until = began + self._lease_ms / 1000 - MARGIN_SECONDS
            new = {bucket: place for bucket, place in held.items() if bucket not in self.buckets}
        # The lease has to be renewed meanwhile, however long these take.
        if new and self._taking is None:
            self._taking = tasks.create_task(self._take(new))
        if surplus and self._giving is None:
            self._giving = tasks.create_task(self._give(surplus))
        self._renewed()

    async def _take(self, places: dict[int, int]) -> None:
        """Look after buckets from now on."""
        try:
            await self._taken(places)
            self.buckets |= places.keys()
            level = logging.INFO if self._begun else logging.DEBUG  # at a start it goes without saying
            log.log(level, "webhooks.taken", extra={"owner": self.owner, "buckets": len(places)})
            self._begun = True
        except StoreUnavailable:
            self._loop.call_later(RENEW_SECONDS, self.check)
        except Exception:
            log.exception("webhooks.failed", extra={"part": "taking"})
            self._loop.call_later(RENEW_SECONDS, self.check)
        finally:
            self._taking = None

    async def _shares(self) -> tuple[Collection[int], Collection[int]]:
        """Return which buckets to take if they are free, and which to give away."""
        if self._sharing is not Sharing.EVEN:
            return (range(BUCKETS) if len(self.buckets) < BUCKETS else ()), ()
        return shares(self.owner, self.buckets, await self._store.survey())

    async def _give(self, buckets: Collection[int]) -> None:
        """Give buckets away, as soon as nothing is under way for them."""
        try:
            await self._leaving(buckets)
            async with self._lock:
                await self._store.give(self.owner, buckets)
                self.buckets -= set(buckets)
            log.info("webhooks.given", extra={"owner": self.owner, "buckets": len(buckets)})
        except StoreUnavailable:
            self.fenced()  # whether they were given is not known, and may even be decided later
            self.check()
        except Fenced:
            self.check()
        except Exception:
            log.exception("webhooks.failed", extra={"part": "giving"})
        finally:
            self.buckets -= set(buckets)
            self._giving = None


def shares(owner: int, held: Collection[int], survey: Survey) -> tuple[Collection[int], Collection[int]]:
    """
    Return which buckets an owner should take if they are free, and which of its own it should give away.

    Args:
        owner: who asks.
        held: what it has.
        survey: who has what.
    """
    owners = sorted({owner, *survey.owners})
    rank = owners.index(owner)
    share = BUCKETS // len(owners) + (rank < BUCKETS % len(owners))
    if len(held) >= share:
        return (), sorted(set(held).difference(_spread(sorted(held), share)))
    free = [bucket for bucket in range(BUCKETS) if bucket not in survey.held and bucket not in held]
    return _spread(free, min(share - len(held), len(free))), ()


def _spread(items: Sequence[int], count: int) -> list[int]:
    """
    Return so many of some items, evenly spread over them: endpoints that were added one after the other are
    in neighbouring buckets.
    """
    return [items[at * len(items) // count] for at in range(count)]
