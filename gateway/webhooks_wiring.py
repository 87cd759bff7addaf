"""Puts webhooks into a gateway: made from its settings, on its log, and telling about themselves through it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.log import LogUnavailable
from gateway.problems import Problem
from gateway.sqlite_log import SqliteLog
from webhooks.announcing import Notice, Publish
from webhooks.attempt import Outcome, Target
from webhooks.guard import Guard, Ports, parse_networks
from webhooks.sender import SenderFull
from webhooks.service import Options, Webhooks
from webhooks.source import Source
from webhooks.sqlite_store import SqliteStore
from webhooks.store import Store
from webhooks.tenure import Sharing

if TYPE_CHECKING:
    from gateway.app import Gateway
    from gateway.intake import Intake
    from gateway.settings import Settings

CONNECTIONS: Final = 6
"""Connections to a store in PostgreSQL: dispatching, outcomes and what users ask for go on side by side."""


def webhooks(gateway: Gateway) -> Webhooks:
    """Return the webhooks of a gateway; it starts and closes them."""
    settings, log = gateway.settings, gateway.log
    store, sharing = _store(gateway)
    source = Source(log, gateway.hub.window, None if isinstance(log, SqliteLog) else log.reach)
    options = Options(
        timeout=settings.webhooks_timeout,
        in_flight=settings.webhooks_in_flight,
        retention_ms=int(settings.webhooks_retention_seconds * 1000),
    )
    return Webhooks(store, source, publisher(gateway.intake), guard(settings), sharing, options)


class Asking:
    """
    Sends for the API what is no attempt; see `webhooks.consent.Sends`.

    Args:
        webhooks: by whose sender it does.
    """

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks

    async def send(
        self,
        target: Target,
        headers: bytes,
        body: bytes = b"",
        *,
        method: str = "POST",
        wanted: Iterable[bytes] = (),
    ) -> Outcome:
        """
        Make a request and return its outcome.

        Raises:
            Problem: 503, nothing can be sent at the moment.
        """
        parts = self._webhooks.parts
        try:
            if parts is not None:
                return await parts.sender.send(target, headers, body, method=method, wanted=wanted)
        except SenderFull:
            pass
        raise Problem(503, "the receiver cannot be asked at the moment", retry_after=1)


def guard(settings: Settings) -> Guard:
    """Return what the settings let webhooks be sent to."""
    return Guard(
        parse_networks(settings.webhooks_allow) if settings.webhooks_allow else (),
        Ports.parse(settings.webhooks_ports) if settings.webhooks_ports else Ports(),
        settings.webhooks_https_only,
    )


def publisher(intake: Intake) -> Publish:
    """Return what publishes operational events."""

    async def publish(notices: Sequence[Notice]) -> None:
        now = intake.now()
        try:
            events = [
                intake.mint.event(now, notice.topic, msgspec.json.encode(notice.data), notice.id, notice.type)
                for notice in notices
            ]
        except Problem:
            return  # the log takes no such topics: whoever says so does not want these events
        try:
            await intake.publish(events)
        except Problem as problem:
            raise LogUnavailable(str(problem), problem.retry_after or 1) from None

    return publish


def _store(gateway: Gateway) -> tuple[Store, Sharing]:
    """Return where webhooks are kept, and with whom that is shared."""
    if gateway.store is not None:
        from webhooks.postgres_store import PostgresStore  # noqa: PLC0415  (nobody else pays for it)

        return PostgresStore(gateway.store), Sharing.EVEN
    if gateway.worker is not None:
        return SqliteStore(gateway.worker.store, shared=True), Sharing.STANDBY
    return SqliteStore(gateway.settings.data_folder), Sharing.ALONE
