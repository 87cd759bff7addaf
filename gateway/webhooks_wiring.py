"""Puts webhooks into a gateway: made from its settings, on its log, and telling of themselves through it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.log import LogUnavailable
from gateway.problems import Problem
from gateway.sqlite_log import SqliteLog
from webhooks.announcing import Notice, Publish
from webhooks.guard import Guard, Ports, parse_networks
from webhooks.service import Options, Webhooks
from webhooks.source import Source
from webhooks.sqlite_store import SqliteStore
from webhooks.store import Store
from webhooks.tenure import Predecessor, Sharing

if TYPE_CHECKING:
    from gateway.app import Gateway
    from gateway.intake import Intake
    from gateway.settings import Settings

CONNECTIONS: Final = 6
"""Connections to a store in PostgreSQL: dispatching, outcomes and what users ask for go on side by side."""


def webhooks(gateway: Gateway) -> Webhooks:
    """Return the webhooks of a gateway; it starts and closes them."""
    settings, log = gateway.settings, gateway.log
    source = Source(log, gateway.hub.window, None if isinstance(log, SqliteLog) else log.reach)
    options = Options(
        timeout=settings.webhooks_timeout,
        in_flight=settings.webhooks_in_flight,
        retention_ms=int(settings.webhooks_retention_seconds * 1000),
    )
    store, sharing, before = _store(gateway)
    publish = publisher(gateway.intake)
    return Webhooks(store, source, publish, guard(settings), sharing, options, before)


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


class OwnerFile:
    """
    Who this process was, in a file of the data folder: whoever has the embedded log open there is alone with
    it, so what it was before is not running any more.

    Args:
        folder: the data folder; None remembers nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "webhooks.owner"

    def recall(self) -> int:
        """See `webhooks.tenure.Predecessor`."""
        try:
            return 0 if self._path is None else int(self._path.read_text())
        except (OSError, ValueError):
            return 0  # then its lease has to end first

    def remember(self, owner: int) -> None:
        """See `webhooks.tenure.Predecessor`."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.write_text(f"{owner}\n")


def _store(gateway: Gateway) -> tuple[Store, Sharing, Predecessor | None]:
    """
    Return where webhooks are kept, with whom that is shared, and who we were.

    Replicas on a broker share one log, and so the work. Workers without a store in PostgreSQL have a file,
    which has one writer: one of them does the work, and the others stand by. A gateway with a log of its own
    shares with nobody, wherever its webhooks are kept.
    """
    settings = gateway.settings
    if gateway.store is not None:
        from webhooks.postgres_store import PostgresStore  # noqa: PLC0415  (nobody else pays for it)

        store = PostgresStore(gateway.store)
        if settings.backbone:
            return store, Sharing.EVEN, None
        return store, Sharing.STANDBY, OwnerFile(settings.data_folder)
    if gateway.worker is not None:
        return SqliteStore(gateway.worker.store, shared=True), Sharing.STANDBY, None
    return SqliteStore(settings.data_folder), Sharing.ALONE, None
