"""
What replicas share about who may come in: API keys, what was revoked, tickets.

All are *entries*: a kind, a name, a value, and when it is over. An entry that changes gets the next revision,
so a replica that asks for what has a higher one than it has seen follows all changes with one cheap question.
An entry that is removed stays for a day without its value, so that this is seen as well. Tickets are not
followed: whoever is handed one takes it out of the store, and only one can.

The tables are beside those of durable subscriptions: in `store.db`, or in PostgreSQL.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from gateway.log import StoreUnavailable
from gateway.mint import now_ms
from gateway.sqlite_consumers import SqliteConsumers
from gateway.sqlite_file import cause

if TYPE_CHECKING:
    from gateway.postgres.database import Database
    from gateway.postgres.schema import Connection

T = TypeVar("T")

KEY: Final = "key"
REVOCATION: Final = "revocation"
TICKET: Final = "ticket"
NOTE: Final = "note"
"""What one replica has to tell the one that has a connection."""

MAX_ENTRIES: Final = 100_000
"""Of each kind."""
REMOVED_MS: Final = 86_400_000
PAGE: Final = 1000
RETRY_FAILED: Final = 2.0


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One entry.

    Attributes:
        kind: what it is.
        name: tells it from others of its kind.
        value: what it says; None if it was removed.
        expires: when it is over, in milliseconds since the Unix epoch; 0 is never.
        revision: higher than that of all that changed before.
    """

    kind: str
    name: str
    value: bytes | None
    expires: int
    revision: int


class EntriesFull(Exception):
    """There are as many entries of a kind as there may be."""


class AccessStore(Protocol):
    """The entries. All of it raises `StoreUnavailable` when the store cannot be used."""

    async def put(self, kind: str, name: str, value: bytes, expires: int) -> None:
        """
        Make an entry, or change it; it is durable when this returns.

        Raises:
            EntriesFull: there are too many of its kind.
        """

    async def remove(self, kind: str, name: str) -> bool:
        """Remove an entry; return whether it was there."""

    async def take(self, kind: str, name: str) -> bytes | None:
        """Remove an entry for good and return what it said; None if it is not there, or over."""

    async def changes(self, after: int) -> list[Entry]:
        """Return the entries with higher revisions, in their order; at most `PAGE`."""

    async def sweep(self) -> None:
        """Remove what is over."""


_NEXT: Final = "UPDATE access_revision SET value = value + 1 RETURNING value"
_COUNT: Final = "SELECT count(*) FROM access WHERE kind = {0} AND value IS NOT NULL"
_PUT: Final = """
INSERT INTO access (kind, name, value, expires, revision) VALUES ({0}, {1}, {2}, {3}, {4})
ON CONFLICT (kind, name)
DO UPDATE SET value = excluded.value, expires = excluded.expires, revision = excluded.revision
"""
_REMOVE: Final = """
UPDATE access SET value = NULL, expires = {2}, revision = {3}
WHERE kind = {0} AND name = {1} AND value IS NOT NULL RETURNING name
"""
_TAKE: Final = """
DELETE FROM access WHERE kind = {0} AND name = {1} AND value IS NOT NULL AND (expires = 0 OR expires > {2})
RETURNING value
"""
_CHANGES: Final = """
SELECT kind, name, value, expires, revision FROM access
WHERE revision > {0} AND kind <> 'ticket' ORDER BY revision LIMIT {1}
"""
_SWEEP: Final = "DELETE FROM access WHERE expires > 0 AND expires <= {0}"


def _numbered(sql: str) -> str:
    return sql.format(*(f"${number}" for number in range(1, 6)))


def _question(sql: str) -> str:
    return sql.format(*(f"?{number}" for number in range(1, 6)))


class PostgresAccess:
    """
    The entries in PostgreSQL; see `AccessStore`.

    Args:
        database: with the part `PART`; whoever made it starts and closes it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, kind: str, name: str, value: bytes, expires: int) -> None:
        async def work(connection: Connection) -> bool:
            async with connection.transaction():
                revision = await connection.fetchval(_NEXT)  # whoever else writes waits here
                if await connection.fetchval(_numbered(_COUNT), kind) >= MAX_ENTRIES:
                    return False
                await connection.execute(_numbered(_PUT), kind, name, value, expires, revision)
                return True

        if not await self._database.run(work):
            raise EntriesFull  # here, as work that fails costs its connection

    async def remove(self, kind: str, name: str) -> bool:
        async def work(connection: Connection) -> bool:
            async with connection.transaction():
                revision = await connection.fetchval(_NEXT)
                until = now_ms() + REMOVED_MS
                found = await connection.fetchval(_numbered(_REMOVE), kind, name, until, revision)
                return found is not None

        return await self._database.run(work)

    async def take(self, kind: str, name: str) -> bytes | None:
        async def work(connection: Connection) -> bytes | None:
            taken: bytes | None = await connection.fetchval(_numbered(_TAKE), kind, name, now_ms())
            return taken

        return await self._database.run(work)

    async def changes(self, after: int) -> list[Entry]:
        async def work(connection: Connection) -> list[Entry]:
            return [Entry(*row) for row in await connection.fetch(_numbered(_CHANGES), after, PAGE)]

        return await self._database.run(work)

    async def sweep(self) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute(_numbered(_SWEEP), now_ms())

        await self._database.run(work)


class SqliteAccess:
    """
    The entries in SQLite; see `AccessStore`.

    Args:
        file: has something done with the connection to `store.db`, in its thread.
    """

    def __init__(self, file: SqliteConsumers) -> None:
        self._file = file

    async def put(self, kind: str, name: str, value: bytes, expires: int) -> None:
        def work(connection: sqlite3.Connection) -> None:
            (revision,) = connection.execute(_NEXT).fetchone()
            if connection.execute(_question(_COUNT), (kind,)).fetchone()[0] >= MAX_ENTRIES:
                raise EntriesFull
            connection.execute(_question(_PUT), (kind, name, value, expires, revision))

        await self._write(work)

    async def remove(self, kind: str, name: str) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            (revision,) = connection.execute(_NEXT).fetchone()
            given = (kind, name, now_ms() + REMOVED_MS, revision)
            return bool(connection.execute(_question(_REMOVE), given).fetchall())

        return await self._write(work)

    async def take(self, kind: str, name: str) -> bytes | None:
        def work(connection: sqlite3.Connection) -> bytes | None:
            rows = connection.execute(_question(_TAKE), (kind, name, now_ms())).fetchall()
            return rows[0][0] if rows else None

        return await self._write(work)

    async def changes(self, after: int) -> list[Entry]:
        def work(connection: sqlite3.Connection) -> list[Entry]:
            return [Entry(*row) for row in connection.execute(_question(_CHANGES), (after, PAGE))]

        return await self._call(work)

    async def sweep(self) -> None:
        await self._write(lambda connection: connection.execute(_question(_SWEEP), (now_ms(),)).fetchall())

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Have something done as one transaction."""

        def whole(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN IMMEDIATE")
            try:
                done = work(connection)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            return done

        return await self._call(whole)

    async def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._file.run(work)
        except sqlite3.Error as error:
            raise StoreUnavailable(cause(error), RETRY_FAILED) from error
