"""Access: all that a gateway with keys has and one without has not, from its settings."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.auth.api import AccessApi
from gateway.auth.authority import Authority
from gateway.auth.keyset import BadKey
from gateway.auth.registry import Registry
from gateway.auth.sources import sources
from gateway.auth.store import PostgresAccess, SqliteAccess
from gateway.auth.watch import Watch
from gateway.setting import SettingsError
from gateway.sqlite_consumers import SqliteConsumers

if TYPE_CHECKING:
    from starlette.routing import Route

    from gateway.app import Gateway
    from gateway.intake import Intake
    from gateway.settings import Settings


class Access:
    """
    Who may come in, and stay.

    Args:
        gateway: whose doors they come to.

    Attributes:
        authority: knows who asks.
        watch: looks after who is in.

    Raises:
        SettingsError: the keys cannot be used.
    """

    def __init__(self, gateway: Gateway) -> None:
        settings = gateway.settings
        if gateway.store is not None:
            registry = Registry(PostgresAccess(gateway.store))
        else:
            assert isinstance(gateway.consumers, SqliteConsumers)
            registry = Registry(SqliteAccess(gateway.consumers))
        try:
            keys = sources(settings.jwt_key, settings.jwks)
        except BadKey as error:
            raise SettingsError("jwks", str(error)) from None
        self.authority = Authority(
            keys, registry, audience=settings.jwt_audience or None, issuer=settings.jwt_issuer or None
        )
        self.watch = Watch(self.authority, gateway.streams, gateway.poller)

    async def run(self) -> None:
        """Keep up to date, and look after who is in, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.authority.run())
            tasks.create_task(self.watch.run())

    def routes(self, intake: Intake, settings: Settings) -> list[Route]:
        """Return the routes of their own."""
        return AccessApi(self.authority, self.watch, intake, settings).routes()
