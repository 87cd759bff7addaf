"""
The cursors of durable subscriptions in the store, the same for all replicas: a row for each name.

What was acknowledged last counts, wherever. A client that waits for `acked` before it leaves a replica has
its place on the next one. One that does not wait may find an older place of its own there, or have a newer
one overwritten by an acknowledgement that was still on its way, as when a replica stood still: it gets events
again that it has dealt with. It never misses one: nothing is stored but what a client said it has dealt with,
and a name's first place is stored before its client hears of it.
"""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.batches import Batches
from gateway.consumers import (
    MAX_CONSUMERS,
    RETRY_CLOSED,
    ConsumersFull,
    ConsumersStatistics,
    check_name,
)
from gateway.log import StoreUnavailable
from gateway.postgres.database import Database
from gateway.postgres.schema import Connection, Part

PART: Final = Part(
    "consumers",
    (
        # A cursor is overwritten again and again: with room on the page for a second copy of most rows no
        # index has to change. `changed` is for operators, to find names that nobody uses any more.
        """
        CREATE TABLE consumers (
            name text COLLATE "C" PRIMARY KEY,
            cursor text NOT NULL,
            changed timestamptz NOT NULL DEFAULT now()
        ) WITH (fillfactor = 60)
        """,
    ),
)

_LOCK: Final = 0x534C554943454E57
"""The advisory lock of those who add names: "SLUICENW"."""

# Rows are locked in the order of their names, whatever the plan: two replicas with the same names cannot wait
# for each other.
_UPDATE: Final = """
WITH given AS MATERIALIZED (SELECT * FROM unnest($1::text[], $2::text[]) AS given(name, cursor)),
locked AS MATERIALIZED (SELECT name FROM consumers WHERE name = ANY($1) ORDER BY name FOR UPDATE),
updated AS (
    UPDATE consumers SET cursor = given.cursor, changed = now() FROM given JOIN locked USING (name)
    WHERE consumers.name = locked.name RETURNING consumers.name
)
SELECT name FROM given WHERE NOT EXISTS (SELECT FROM updated WHERE updated.name = given.name)
"""
_INSERT: Final = "INSERT INTO consumers (name, cursor) SELECT * FROM unnest($1::text[], $2::text[])"
_SELECT: Final = "SELECT name, cursor FROM consumers WHERE name = ANY($1)"


class PostgresConsumers:
    """
    The cursors in the store; see `Consumers` for what it promises.

    Args:
        database: the store; whoever made it starts and closes it.
        max_consumers: so many names are remembered by all replicas together.
    """

    def __init__(self, database: Database, *, max_consumers: int = MAX_CONSUMERS) -> None:
        self._database = database
        self._max = max_consumers
        self._storing: Batches[str, None] = Batches(self._store)
        self._finding: Batches[None, str] = Batches(self._find)
        self._closed = False

    async def start(self) -> None:
        """Nothing is to be done; see `Consumers.start`."""

    def remember(self, name: str, cursor: str) -> asyncio.Future[None]:
        """Store a consumer's cursor; see `Consumers.remember`."""
        check_name(name)
        if self._closed:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.set_exception(StoreUnavailable("the store is closed", RETRY_CLOSED))
            return future
        return self._storing.give(name, cursor)

    async def recall(self, name: str) -> str | None:
        """Return the cursor given last for a consumer; see `Consumers.recall`."""
        if (cursor := self._storing.pending(name)) is not None:
            return cursor
        if self._closed:
            raise StoreUnavailable("the store is closed", RETRY_CLOSED)
        return await self._finding.give(name, None)

    def statistics(self) -> ConsumersStatistics:
        """Return what was done."""
        return ConsumersStatistics(self._storing.done, self._storing.failures, self._storing.seconds)

    async def close(self) -> None:
        """Store what was given; see `Consumers.close`."""
        self._closed = True
        await self._storing.finished()
        await self._finding.finished()

    async def _store(self, given: dict[str, str]) -> dict[str, Exception]:
        """Store cursors; return the names for which there was no room."""

        async def work(connection: Connection) -> dict[str, Exception]:
            new = await _update(connection, given)
            if not new:  # nearly always
                return {}
            async with connection.transaction():
                return await self._add(connection, {name: given[name] for name in new})

        return await self._database.run(work)

    async def _add(self, connection: Connection, given: dict[str, str]) -> dict[str, Exception]:
        """Store cursors of new names, one replica at a time, so that the bound holds for all of them."""
        await connection.fetchval("SELECT pg_advisory_xact_lock($1)", _LOCK)
        new = await _update(connection, given)  # another replica may have added some
        room = max(0, self._max - await connection.fetchval("SELECT count(*) FROM consumers"))
        kept = new[:room]
        await connection.execute(_INSERT, kept, [given[name] for name in kept])
        return {name: ConsumersFull(self._max) for name in new[room:]}

    async def _find(self, wanted: dict[str, None]) -> dict[str, str | Exception]:
        """Return the cursors of those names that are known."""

        async def work(connection: Connection) -> dict[str, str | Exception]:
            return dict(map(tuple, await connection.fetch(_SELECT, list(wanted))))

        return await self._database.run(work)


async def _update(connection: Connection, given: dict[str, str]) -> list[str]:
    """Store cursors of names that are known, and return the others."""
    rows = await connection.fetch(_UPDATE, list(given), list(given.values()))
    return [row[0] for row in rows]
