"""The tables of the entries about who may come in; see `gateway.auth.store`."""

from __future__ import annotations

from typing import Final

from gateway.postgres.schema import Part

PART: Final = Part(
    "access",
    (
        """
        CREATE TABLE access_revision (value bigint NOT NULL);
        INSERT INTO access_revision VALUES (0);
        CREATE TABLE access (
            kind text COLLATE "C" NOT NULL,
            name text COLLATE "C" NOT NULL,
            value bytea,
            expires bigint NOT NULL,
            revision bigint NOT NULL,
            PRIMARY KEY (kind, name)
        );
        CREATE INDEX access_changed ON access (revision);
        """,
    ),
)
SCHEMA: Final = (
    "CREATE TABLE access_revision (value INTEGER NOT NULL)",
    "INSERT INTO access_revision VALUES (0)",
    """
    CREATE TABLE access (
        kind TEXT NOT NULL, name TEXT NOT NULL, value BLOB, expires INTEGER NOT NULL,
        revision INTEGER NOT NULL, PRIMARY KEY (kind, name)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX access_changed ON access (revision)",
)
"""The same for SQLite."""
