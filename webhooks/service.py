"""
Webhooks as a gateway has them: all parts made, started in order, and stopped without a lie.

    log ──▶ Dispatcher ──rows──▶ store ──▶ Sending ──attempts──▶ Sender
                                   ▲                               │
                                   └──── Settling ◀── Announcing ◀─┘ outcomes

`Tenure` says which endpoints are ours, `Directory` has them, `Chores` does the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from gateway.log import LogError, StoreUnavailable
from webhooks.announcing import Announcing, Publish
from webhooks.chores import Chores
from webhooks.consent import agreed
from webhooks.counters import Counters
from webhooks.description import Description
from webhooks.directory import Directory
from webhooks.dispatcher import Dispatcher
from webhooks.guard import Guard
from webhooks.keys import Keys
from webhooks.logbook import Logbook
from webhooks.operations import Misplaced
from webhooks.ownership import Fenced
from webhooks.parcels import Parcels
from webhooks.records import Endpoint, message_number
from webhooks.resolve import SystemNames
from webhooks.sender import MAX_IN_FLIGHT, TIMEOUT_SECONDS, Sender
from webhooks.sending import Sending
from webhooks.settling import Settling
from webhooks.source import Source
from webhooks.store import Store
from webhooks.stored import settings
from webhooks.tenure import Nobody, Predecessor, Sharing, Tenure
from webhooks.trust import client_context

log = logging.getLogger(__name__)

FINISH_SECONDS: Final = 3.0
"""At the end, what is on its way gets so long to end; and what came of it so long to be written down."""
RETRY_STARTING: Final = 2.0
POLL_SECONDS: Final = 0.02
AGAIN_SECONDS: Final = 1.0
"""After a mistake of ours a part begins again so much later."""


@dataclass(frozen=True, slots=True)
class Options:
    """
    What operators can choose.

    Attributes:
        timeout: seconds for an attempt.
        in_flight: attempts at a time, of all endpoints together.
        retention_ms: how long messages are kept, with all that belongs to them; 0 is for ever.
    """

    timeout: float = TIMEOUT_SECONDS
    in_flight: int = MAX_IN_FLIGHT
    retention_ms: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """
    How things are in one process.

    Attributes:
        endpoints: that it looks after.
        pending: deliveries of these, as last counted.
        lag: events behind the head of the log of which no deliveries were made yet.
        in_flight: attempts under way.
        unsettled: outcomes that are not written down yet.
        links: connections to receivers.
    """

    endpoints: int = 0
    pending: int = 0
    lag: int = 0
    in_flight: int = 0
    unsettled: int = 0
    links: int = 0


def _now() -> int:
    return time.time_ns() // 1_000_000


class Webhooks:
    """
    Everything that a gateway needs of webhooks, one per process.

    Args:
        store: endpoints, deliveries and jobs; opened and closed here.
        source: the log.
        publish: publishes operational events.
        guard: says where may be sent to.
        sharing: with whom the store is shared.
        options: what operators chose.
        before: see `Predecessor`; who has one is the only process on its log, and needs all buckets.

    Attributes:
        store: as given; whoever changes something in it calls `look`.
        guard: as given; `guard.admit` is what `webhooks.description` asks.
        counters: what was done.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        publish: Publish,
        guard: Guard,
        sharing: Sharing = Sharing.ALONE,
        options: Options | None = None,
        before: Predecessor | None = None,
    ) -> None:
        self.store = store
        self.guard = guard
        self.counters = Counters()
        self._source = source
        self._publish = publish
        self._sharing = sharing
        self._options = options or Options()
        self._before = before
        self._changed = True  # endpoints may have
        self._parts: _Parts | None = None
        self._running: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """
        Open the store and begin to dispatch and to send.

        Raises:
            LogError: the store cannot be used.
        """
        await self.store.start()
        ready = asyncio.Event()
        self._running = asyncio.create_task(self._run(ready))
        await ready.wait()

    async def close(self) -> None:
        """
        Stop sending, write down what came of it, and close the store. Idempotent.

        What is under way gets a moment to end; what has not ended then is given up without an outcome, and is
        sent again by whoever comes next.
        """
        running, self._running = self._running, None
        if running is not None:
            self._stopping.set()
            await running
        await self.store.close()

    @property
    def ready(self) -> str | None:
        """Why webhooks do not work at the moment, in a sentence; None if they do. Publishing goes on."""
        parts = self._parts
        if parts is None:
            return "webhooks are starting"
        trouble = parts.tenure.trouble or parts.dispatcher.trouble
        if trouble is None and parts.settling.trouble:
            trouble = "what came of attempts cannot be written down"
        needs_all = self._sharing is Sharing.ALONE or self._before is not None
        if trouble is None and needs_all and not parts.tenure.buckets:
            if parts.tenure.owner and self._sharing is not Sharing.ALONE:
                return "another gateway, with a log of its own, looks after the webhooks in this store"
            return "webhooks are starting"
        return None if trouble is None else f"webhooks wait: {trouble}"

    def look(self) -> None:
        """
        Something in the store was changed by somebody else: look at it at once, not in the next turn.

        To be called after `change_endpoint`, `repeat`, `add_job` and `enqueue`.
        """
        self._look_at_endpoints()
        if self._parts is not None:
            self._parts.chores.wake()

    def wake(self) -> None:
        """There are events in the log that were not there before."""
        parts = self._parts
        if parts is not None and parts.dispatcher.groups:  # nobody to look for costs nothing
            parts.dispatcher.wake()

    async def add(self, description: Description, keys: Keys) -> Endpoint:
        """
        Add an endpoint, which gets every matching event accepted after this returns, and none that was
        accepted before it was called.

        Args:
            description: as its owner wants it.
            keys: with one for every scheme of the description.

        Raises:
            LogError: it could not be stored, or it is not known whether it was.
        """
        if self._parts is None or not self._source.epoch:
            raise StoreUnavailable("webhooks are starting", RETRY_STARTING)
        await self._source.catch_up()
        head = self._source.head
        since = message_number(await self._parts.dispatcher.number(), head)
        endpoint = await self.store.add_endpoint(settings(description, keys, since))
        self.look()
        return endpoint

    async def agreed(self, description: Description) -> Description:
        """
        Ask the receiver of an endpoint with an origin whether it agrees; see `webhooks.consent`.

        Raises:
            Invalid: it does not.
            StoreUnavailable: it cannot be asked at the moment.
        """
        if self._parts is None or not self._parts.sender.free:
            raise StoreUnavailable("nothing can be sent at the moment", RETRY_STARTING)
        return await agreed(description, self._parts.sender)

    def statistics(self) -> Statistics:
        """Return how things are."""
        parts = self._parts
        if parts is None:
            return Statistics()
        sender = parts.sender.statistics()
        return Statistics(
            endpoints=len(parts.directory.lanes),
            pending=parts.chores.pending,
            lag=parts.dispatcher.lag,
            in_flight=sender.in_flight,
            unsettled=parts.settling.waiting + parts.announcing.waiting,
            links=sender.open,
        )

    # --- life -----------------------------------------------------------------------------------------------

    async def _run(self, ready: asyncio.Event) -> None:
        """Own every part until told to stop."""
        names = SystemNames()
        sender = Sender(
            self.guard,
            names,
            client_context(),
            timeout=self._options.timeout,
            in_flight=self._options.in_flight,
        )
        try:
            async with sender:
                parts = self._parts = self._made(sender)
                async with asyncio.TaskGroup() as tasks:
                    running = [
                        tasks.create_task(_again(name, run))
                        for name, run in (
                            ("tenure", lambda: parts.tenure.run(tasks)),
                            ("dispatcher", parts.dispatcher.run),
                            ("sending", parts.sending.run),
                            ("settling", parts.settling.run),
                            ("announcing", parts.announcing.run),
                            ("look", parts.chores.look),
                            ("clean", parts.chores.clean),
                        )
                    ]
                    ready.set()
                    await self._stopping.wait()
                    await self._finish(parts)
                    for task in running:
                        task.cancel()
        finally:
            ready.set()
            self._parts = None
            names.close()

    def _made(self, sender: Sender) -> _Parts:
        counters = self.counters
        dice = random.random
        kept = Parcels()
        logbook = Logbook(self.store)
        directory = Directory(self.store, self.guard, dice, _now)
        tenure = Tenure(
            self.store,
            self._sharing,
            self._before or Nobody(),
            taken=self._taken,
            leaving=self._leaving,
            lost=self._lost,
            renewed=lambda: sending.go_on(),  # noqa: PLW0108  (made below)
        )
        settling = Settling(
            self.store,
            lambda: tenure.owner,
            lambda batch: sending.settled(batch),  # noqa: PLW0108  (made below)
            self._fenced,
            counters,
        )
        announcing = Announcing(self._publish, settling, counters)
        sending = Sending(
            self.store,
            sender,
            settling,
            kept,
            tenure.holds,
            logbook.epoch,
            announcing.tell,
            _now,
            counters,
        )
        dispatcher = Dispatcher(
            self._source,
            self.store,
            directory,
            tenure,
            logbook,
            sending,
            kept,
            announcing,
            self._may_have_changed,
            _now,
            counters,
        )
        chores = Chores(
            self.store,
            tenure,
            directory,
            sending,
            self._options.retention_ms,
            shared=self._sharing is not Sharing.ALONE,
            clock=_now,
            looked=self._looked,
            opened=self._look_at_endpoints,
        )
        return _Parts(sender, directory, tenure, settling, announcing, sending, dispatcher, chores)

    def _may_have_changed(self, *, seen: bool) -> bool:
        """See `webhooks.dispatcher.Changed`."""
        changed = self._changed or (seen and self._sharing is not Sharing.ALONE)
        self._changed = False
        return changed

    def _looked(self) -> None:
        """It is looked at what is due: where others change the store, endpoints are looked at as well."""
        if self._sharing is not Sharing.ALONE:
            self._look_at_endpoints()

    def _look_at_endpoints(self) -> None:
        """Endpoints were changed, or may have been."""
        self._changed = True
        if self._parts is not None:
            self._parts.dispatcher.wake()

    async def _finish(self, parts: _Parts) -> None:
        """Let what is on its way end, and write down what came of it; all that within a bound."""
        parts.tenure.keep()
        parts.sending.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_SECONDS):
                while parts.sender.statistics().in_flight:  # noqa: ASYNC110  (outcomes are callbacks)
                    await asyncio.sleep(POLL_SECONDS)
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                await parts.announcing.finished()
                await parts.settling.finished()
                await parts.dispatcher.flush()
                await parts.tenure.leave()
        except (TimeoutError, LogError, Fenced, Misplaced) as error:
            log.warning("webhooks.unfinished: %s", error)

    # --- buckets --------------------------------------------------------------------------------------------

    async def _taken(self, places: dict[int, int]) -> None:
        """Buckets are ours from now on."""
        parts = self._parts
        assert parts is not None
        parts.directory.dismiss(places.keys() & parts.directory.buckets)  # that were almost given away
        await parts.directory.admit(places.keys())
        await parts.dispatcher.take(places)
        for bucket in places:
            for lane in parts.directory.of(bucket):
                parts.sending.wake(lane)

    async def _leaving(self, buckets: Collection[int]) -> None:
        """Begin nothing more for buckets, and wait until nothing is under way for them."""
        parts = self._parts
        assert parts is not None
        await parts.dispatcher.drop(buckets)
        lanes = [lane for bucket in buckets for lane in parts.directory.of(bucket)]
        for lane in lanes:
            lane.over = True
            lane.empty()
        while not all(lane.is_idle for lane in lanes):  # noqa: ASYNC110  (outcomes are callbacks)
            await asyncio.sleep(POLL_SECONDS)
        parts.directory.dismiss(buckets)

    def _lost(self) -> None:
        """Nothing is ours any more; what is under way is not for us to write down."""
        parts = self._parts
        assert parts is not None
        parts.dispatcher.lost()
        parts.directory.dismiss(list(parts.directory.buckets))

    async def _fenced(self) -> None:
        """A bucket is somebody else's, though it was ours: find out which."""
        parts = self._parts
        assert parts is not None
        try:
            places = await parts.tenure.places()
        except Fenced:
            parts.tenure.fenced()
            parts.tenure.check()
        except StoreUnavailable:
            await asyncio.sleep(AGAIN_SECONDS)
        else:
            parts.directory.dismiss([each for each in parts.directory.buckets if each not in places])


@dataclass(frozen=True, slots=True)
class _Parts:
    """All parts, while it runs."""

    sender: Sender
    directory: Directory
    tenure: Tenure
    settling: Settling
    announcing: Announcing
    sending: Sending
    dispatcher: Dispatcher
    chores: Chores


async def _again(name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a part; if it makes a mistake, say so and run it again."""
    while True:
        try:
            await run()
        except Exception:
            log.exception("webhooks.failed", extra={"part": name})
            await asyncio.sleep(AGAIN_SECONDS)
