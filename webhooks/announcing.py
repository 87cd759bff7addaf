"""
Announcing: what operators and owners of endpoints should hear of is published as events of the log.

Topics: `$webhooks.endpoint.disabled`, `$webhooks.endpoint.gone`, `$webhooks.delivery.exhausted`,
`$webhooks.dispatch.gap`; the type is the same with `webhook.` for `$webhooks.`. Whoever subscribes to `#`
gets them as everything else, but an endpoint only if one of its patterns begins with `$`; and what becomes of
deliveries of such an event is not announced again. So no endpoint that fails is sent ever more events about
failing.

What an outcome brings about is announced before the outcome is written down: after a crash in between the
attempt is made again, and announced again under the same id, which is a duplicate to the log. While nothing
can be published the outcome waits a while, then it is written down without.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fanout.topics import RESERVED
from gateway.log import LogError
from webhooks.attempt import Outcome
from webhooks.counters import Counters
from webhooks.parcels import Parcel
from webhooks.records import Result, Standing, Status
from webhooks.settling import Settled, Settling
from webhooks.stored import delivery_name

log = logging.getLogger(__name__)

PREFIX: Final = f"{RESERVED}webhooks."
ATTEMPTS: Final = 3
WAIT_SECONDS: Final = 2.0
"""How often it is tried to publish, and the wait in between."""
MOST: Final = 500
"""Events of one call."""


@dataclass(frozen=True, slots=True)
class Notice:
    """
    An operational event.

    Attributes:
        what: `endpoint.disabled` and so on.
        id: of the event.
        data: of the event.
    """

    what: str
    id: str
    data: dict[str, Any]

    @property
    def topic(self) -> str:
        return PREFIX + self.what

    @property
    def type(self) -> str:
        return f"webhook.{self.what}"


Publish = Callable[[Sequence[Notice]], Awaitable[None]]
"""Publishes notices; raises `LogError` if that cannot be done at the moment."""


class Announcing:
    """
    Announces.

    Args:
        publish: see `Publish`.
        settling: where outcomes go on to.
        counters: where it is counted.
    """

    def __init__(self, publish: Publish, settling: Settling, counters: Counters) -> None:
        self._publish = publish
        self._settling = settling
        self._counters = counters
        self._waiting: list[tuple[Settled, list[Notice]]] = []
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """How many outcomes wait to be announced."""
        return len(self._waiting)

    def tell(self, settled: Settled, parcel: Parcel, outcome: Outcome) -> None:
        """Announce what an outcome brings about, and have it written down then."""
        notices = [] if parcel.content.is_own else _notices(settled, parcel, outcome)
        if not notices:
            self._settling.add(settled)
            return
        self._waiting.append((settled, notices))
        self._idle.clear()
        self._wanted.set()

    async def finished(self) -> None:
        """Wait until nothing waits."""
        await self._idle.wait()

    async def run(self) -> None:
        """Announce until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._waiting:
                batch = self._waiting[:MOST]
                await self.announce([notice for _, notices in batch for notice in notices])
                del self._waiting[: len(batch)]
                for settled, _ in batch:
                    self._settling.add(settled)
            self._idle.set()

    async def announce(self, notices: Sequence[Notice]) -> None:
        """Publish notices, or give them up after a while."""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(WAIT_SECONDS)
            try:
                await self._publish(notices)
            except LogError as error:
                log.warning("webhooks.not_announced: %s", error)
            else:
                self._counters.announced += len(notices)
                return
        self._counters.unannounced += len(notices)


def _notices(settled: Settled, parcel: Parcel, outcome: Outcome) -> list[Notice]:
    """Return what there is to announce."""
    lane, result = settled.lane, settled.result
    notices = []
    about = {"endpoint": lane.endpoint.id, "url": lane.endpoint.description.url}
    last: dict[str, Any] = {"status": outcome.status} if outcome.error is None else {"error": outcome.error}
    if result.standing is Standing.FAILED:
        name = delivery_name(result.endpoint, result.message)
        data = {
            **about,
            "delivery": name,
            "event": parcel.content.event_id,
            "topic": parcel.content.topic,
            "attempts": _attempts(result),
            **last,
        }
        notices.append(Notice("delivery.exhausted", f"webhook.exhausted.{name}.{_attempts(result)}", data))
    if settled.closed is not None:
        what = "endpoint.gone" if settled.closed is Status.GONE else "endpoint.disabled"
        # Whoever opens it again changes its row, so the next time it is another revision.
        notices.append(Notice(what, f"webhook.{what}.{lane.id}.{lane.revision}", {**about, **last}))
    return notices


def _attempts(result: Result) -> int:
    return 0 if result.attempt is None else result.attempt.number
