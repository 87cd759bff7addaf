"""
The store as a replica uses it: a few connections, the tables at their version, and whether it can be reached.

Strategy: work is given as a function of a connection, is bounded in time, and ends as a result or as
`StoreUnavailable`. The first sign that the server is away ends all connections; from then on whoever asks is
refused at once, with the reason, while one task connects again and again. While nothing is asked for, that
task looks every few seconds, so that `/readyz` tells the truth about a store that nobody needs just now. A
connection on which anything failed is thrown away: nothing of a transaction is left over for the next.

A start does not wait for a server that is away, because publishing and most subscribing do without. What no
waiting changes, such as a wrong password, ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from gateway.log import LogDamaged, StoreUnavailable
from gateway.postgres import driver
from gateway.postgres.address import Address
from gateway.postgres.driver import RETRY_DOWN, DriverConnection
from gateway.postgres.schema import Connection, Part, look, migrate, refuse_newer

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[Connection], Awaitable[T]]

ANSWER_SECONDS: Final = 5.0
"""How long work may take; a server that needs longer counts as away."""

MIGRATION_SECONDS: Final = 600.0
"""How long a start waits for tables that are made or changed, here or by another replica."""

LOOK_SECONDS: Final = 2.0
"""How long nothing may be asked of the server before it is looked at."""

TROUBLE_SECONDS: Final = 10.0
"""For so long the store counts as unusable after work that failed on a server that answers: a full disk."""

BACK_OFF: Final = (0.1, 3.0)
"""Seconds before the first and, doubled each time, before later attempts to connect; half of it is random."""

CLOSE_SECONDS: Final = 2.0
RETRY_CLOSED: Final = 5.0


class Database:
    """
    The store in a PostgreSQL database.

    Args:
        address: where it is.
        parts: the tables that are needed.
        connections: how many there are at most; one is made at the start, more when work waits.
    """

    def __init__(self, address: Address, parts: Sequence[Part], *, connections: int = 2) -> None:
        self._address = address
        self._parts = tuple(parts)
        self._room = asyncio.Semaphore(connections)
        self._idle: list[DriverConnection] = []
        self._busy = 0
        self._era = 0  # counts losses: a connection of an earlier era is not used again
        self._answered = 0.0  # when the server last did
        self._away: str | None = f"connecting to {driver.where(address)}"  # why nothing can be asked
        self._failure: str | None = None  # why work failed last
        self._failed_at = 0.0
        self._gone: asyncio.Future[StoreUnavailable] | None = None  # resolves at the next loss
        self._begun = False  # the tables were there once
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """
        Connect and bring the tables to their version; if the server is away, go on trying without the caller.

        Raises:
            LogDamaged: waiting would not help; the sentence says what would.
        """
        loop = asyncio.get_running_loop()
        tried: asyncio.Future[None] = loop.create_future()
        self._task = loop.create_task(self._run(tried))
        await asyncio.shield(tried)

    async def run(self, work: Work[T], seconds: float = ANSWER_SECONDS) -> T:
        """
        Have work done on a connection of its own for that time.

        Args:
            work: gets the connection; on an exception nothing of an open transaction stays.
            seconds: how long it may take.

        Raises:
            StoreUnavailable: the server is away, or failed, or took too long. If it was asked to change
                something, that may have happened all the same.
        """
        self._check()
        async with self._room:
            self._check()  # it may have gone while we waited
            self._busy += 1
            try:
                return await self._use(work, seconds)
            finally:
                self._busy -= 1

    def trouble(self) -> str | None:
        """Return why the store cannot be used at the moment; None when it can, as far as is known."""
        if self._away is not None:
            return self._away
        return self._failure if time.monotonic() < self._failed_at + TROUBLE_SECONDS else None

    async def close(self) -> None:
        """Let go of the server. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait((task,))
        self._away = "the store is closed"
        idle, self._idle = self._idle, []
        for connection in idle:
            with contextlib.suppress(Exception):
                await connection.close(timeout=CLOSE_SECONDS)

    # --- work -----------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._task is None:
            raise StoreUnavailable("the store is closed", RETRY_CLOSED)
        if self._away is not None:
            raise StoreUnavailable(self._away, RETRY_DOWN)

    async def _use(self, work: Work[T], seconds: float) -> T:
        era, connection = self._era, None
        try:
            async with asyncio.timeout(seconds):
                connection = self._take() or await driver.connect(self._address)
                result = await work(connection)
        except BaseException as error:
            if connection is not None:
                connection.terminate()
            if not driver.is_expected(error):
                raise
            raise self._failed(error, era) from error
        self._answered = time.monotonic()
        if era == self._era and self._task is not None:
            self._idle.append(connection)
        else:
            connection.terminate()
        return result

    def _take(self) -> DriverConnection | None:
        """Return a connection that nobody uses and that was not closed meanwhile, if there is one."""
        while self._idle:
            if not (connection := self._idle.pop()).is_closed():
                return connection
        return None

    def _failed(self, error: BaseException, era: int) -> StoreUnavailable:
        """Note that work failed, and return what its caller is told."""
        unavailable = driver.unavailable(error, self._address)
        if driver.is_lost(error):
            if era == self._era and self._gone is not None and not self._gone.done():
                self._gone.set_result(unavailable)
                self._lose(str(unavailable))
            return unavailable
        if self._failure != str(unavailable) or self.trouble() is None:
            log.error("store.failed: %s", unavailable)
        self._failure = str(unavailable)
        self._failed_at = time.monotonic()
        return unavailable

    # --- the connection -------------------------------------------------------------------------------------

    async def _run(self, tried: asyncio.Future[None]) -> None:
        """Keep connected until cancelled."""
        wait = BACK_OFF[0]
        while True:
            try:
                await self._begin()
                _resolve(tried)
                wait = BACK_OFF[0]
                await self._watch()
            except LogDamaged as error:
                if not tried.done():
                    tried.set_exception(error)
                    return
                self._lose(str(error))
            except StoreUnavailable as error:
                self._lose(str(error))
            except Exception:
                log.exception("store.failed")
                self._lose("the gateway made a mistake while it connected to the store")
            _resolve(tried)
            await asyncio.sleep(wait * random.uniform(0.5, 1))
            wait = min(wait * 2, BACK_OFF[1])

    async def _begin(self) -> None:
        """
        Connect, and see to the tables.

        Raises:
            LogDamaged: the server refuses us, or its tables do.
            StoreUnavailable: it is away.
        """
        connection, refusal = None, driver.refusal
        try:
            async with asyncio.timeout(driver.CONNECT_SECONDS):
                connection = await driver.connect(self._address)
                current = await self._is_current(connection)
            if not current:
                refusal = driver.failed_migration
                await self._migrate(connection)
        except BaseException as error:
            if connection is not None:
                connection.terminate()
            if (refused := refusal(error, self._address)) is not None:
                raise refused from error
            if driver.is_expected(error):
                raise driver.unavailable(error, self._address) from error
            raise
        log.info("store.%s", "resumed" if self._begun else "began")
        self._begun = True
        self._idle.append(connection)
        self._answered = time.monotonic()
        self._gone = asyncio.get_running_loop().create_future()
        self._away = self._failure = None

    async def _is_current(self, connection: Connection) -> bool:
        """
        Return whether the tables are as this version needs them.

        After a loss they may be newer: the other replicas are being upgraded. But they may not have gone:
        making them anew would begin every durable subscription at the head, and nobody would know.
        """
        found = await look(connection, driver.where(self._address))
        current = found.is_current(self._parts)
        if not self._begun:
            refuse_newer(found, self._parts, driver.where(self._address))
        elif not current:
            raise StoreUnavailable(driver.tables_gone(self._address), RETRY_DOWN)
        return current

    async def _migrate(self, connection: Connection) -> None:
        """Bring the tables to their version."""
        self._away = f"waiting for the tables in {driver.where(self._address)} to be made or changed"
        async with asyncio.timeout(MIGRATION_SECONDS):
            changed = await migrate(connection, self._parts, driver.where(self._address))
        log.info("store.migrated", extra=changed)

    async def _watch(self) -> None:
        """
        Look at the server when nobody else asks it anything, until it is away.

        Raises:
            StoreUnavailable: it is.
        """
        assert self._gone is not None
        while True:
            done, _ = await asyncio.wait((self._gone,), timeout=LOOK_SECONDS / 2)
            if done:
                raise self._gone.result()
            if not self._busy and time.monotonic() - self._answered > LOOK_SECONDS:
                with contextlib.suppress(StoreUnavailable):  # then `_gone` says so
                    await self.run(lambda connection: connection.fetchval("SELECT 1"))

    def _lose(self, reason: str) -> None:
        """Note that the server is away, and throw away what is left of it."""
        if self._away != reason:
            log.warning("store.lost: %s", reason)
        self._away = reason
        self._era += 1
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.terminate()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
