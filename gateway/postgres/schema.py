"""
Our tables in the store: made and changed by migrations, once, whichever replica comes first.

They lie in a schema of their own, `sluicegate`, which is where every connection looks for them. Tables that
belong together are a `Part` with a version of its own, written down in the table `versions`. All pending
migrations of all parts are one transaction under an advisory lock: replicas that start together wait for the
first, and a start that is cut short has done nothing.

Rule for whoever adds a migration: replicas of the version before go on working with the tables meanwhile, as
they do in a rolling restart. So a migration adds, and takes away only what the version before did not use.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gateway.log import LogDamaged

SCHEMA: Final = "sluicegate"
LOCK: Final = 0x534C554943454741
"""The advisory lock of migrations: "SLUICEGA"."""

OLDEST: Final = 130000
"""PostgreSQL 13: what it has is used, and nothing older gets repairs any more."""

# Asks the catalog itself: functions like `to_regclass` may remember what was there before a wait for a lock.
_LOOK: Final = """
SELECT current_setting('server_version_num')::int, current_setting('server_version'),
       current_setting('server_encoding'),
       EXISTS (SELECT FROM pg_tables WHERE schemaname = 'sluicegate' AND tablename = 'versions')
"""
_FORBIDDEN: Final = """
SELECT relname FROM pg_class
WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'sluicegate') AND relkind = 'r'
  AND NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
           AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))
"""
_VERSIONS: Final = """
CREATE TABLE sluicegate.versions (
    part text COLLATE "C" PRIMARY KEY,
    version integer NOT NULL,
    changed timestamptz NOT NULL DEFAULT now()
)
"""


class Connection(Protocol):
    """A connection to the server, as the driver has it; parameters are `$1`, `$2` … in the text."""

    async def execute(self, sql: str, *arguments: Any) -> str:
        """Run a statement; without arguments there may be several, separated by semicolons."""

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """Run a query and return its rows."""

    async def fetchrow(self, sql: str, *arguments: Any) -> Any:
        """Run a query and return its first row, or None."""

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        """Run a query and return the first value of its first row."""

    def transaction(self, *, readonly: bool = False) -> AbstractAsyncContextManager[Any]:
        """Make everything in the block one transaction."""


@dataclass(frozen=True, slots=True)
class Part:
    """
    Tables that belong together.

    Attributes:
        name: names them in the table of versions.
        migrations: statements; the n-th, counted from 1, makes version n from the one before.
    """

    name: str
    migrations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """
    What a look at a server found.

    Attributes:
        server: its version, as text.
        versions: of the parts whose tables are there; None when there is no table of ours.
    """

    server: str
    versions: dict[str, int] | None

    def is_current(self, parts: Sequence[Part]) -> bool:
        """Return whether no migration is pending."""
        have = self.versions
        return have is not None and all(have.get(part.name, 0) >= len(part.migrations) for part in parts)


async def look(connection: Connection, where: str) -> Found:
    """
    Look at a server, which changes nothing.

    Args:
        connection: to it.
        where: what refusals call it.

    Raises:
        LogDamaged: it is too old, its database cannot hold every text, or our tables are not for us to use.
    """
    number, version, encoding, made = await connection.fetchrow(_LOOK)
    if number < OLDEST:
        raise LogDamaged(f"{where} is PostgreSQL {version}: {OLDEST // 10000} or newer is needed")
    if encoding != "UTF8":
        raise LogDamaged(f"{where} has the encoding {encoding}: make a database with the encoding UTF8")
    if not made:
        return Found(version, None)
    if forbidden := await connection.fetchval(_FORBIDDEN):
        raise LogDamaged(
            f"{where}: its user may not use the table {forbidden}: GRANT SELECT, INSERT, UPDATE, DELETE "
            f"ON ALL TABLES IN SCHEMA {SCHEMA} TO …"
        )
    rows = await connection.fetch("SELECT part, version FROM sluicegate.versions")
    return Found(version, dict(map(tuple, rows)))


def refuse_newer(found: Found, parts: Sequence[Part], where: str) -> None:
    """
    Refuse tables that a newer version of this program made.

    Raises:
        LogDamaged: there are such.
    """
    for part in parts:
        version = (found.versions or {}).get(part.name, 0)
        if version > len(part.migrations):
            raise LogDamaged(
                f"a newer Sluicegate made the tables in {where} ({part.name}: version {version}, known: "
                f"{len(part.migrations)}); run that version, or restore a backup from before"
            )


async def migrate(connection: Connection, parts: Sequence[Part], where: str) -> dict[str, int]:
    """
    Bring the tables to the newest version, in one transaction; return the parts that changed.

    Waits for a replica that is doing the same.

    Raises:
        LogDamaged: they are of a newer version.
    """
    async with connection.transaction():
        # Whatever a migration has to do takes its time; the lock is given back when this connection ends.
        await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        await connection.fetchval("SELECT pg_advisory_xact_lock($1)", LOCK)
        found = await look(connection, where)
        refuse_newer(found, parts, where)
        if found.versions is None:
            await _begin(connection)
        changed = {}
        for part in parts:
            if await _bring(connection, part, (found.versions or {}).get(part.name, 0)):
                changed[part.name] = len(part.migrations)
        return changed


async def _begin(connection: Connection) -> None:
    """Make the schema and the table of versions; an administrator may have made the schema for us."""
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", SCHEMA):
        await connection.execute(f"CREATE SCHEMA {SCHEMA}")
    await connection.execute(_VERSIONS)


async def _bring(connection: Connection, part: Part, version: int) -> bool:
    """Bring one part to its newest version; return whether there was anything to do."""
    pending = part.migrations[version:]
    for statements in pending:
        await connection.execute(statements)
    if pending:
        await connection.execute(
            """
            INSERT INTO versions (part, version) VALUES ($1, $2)
            ON CONFLICT (part) DO UPDATE SET version = excluded.version, changed = now()
            """,
            part.name,
            len(part.migrations),
        )
    return bool(pending)
