"""
How the store's operations ask a database, whichever it is.

An operation is a generator. It yields what it wants to ask and is sent the rows of the answer, so it is
written once, decides everything, and knows no driver. `webhooks.sqlite_store` runs it in a thread,
`webhooks.postgres_store` on the event loop; each makes it one transaction.

Statements are written with `?1`, `?2` … for what is given, and with these words where the two differ:

- `{any1}`: is one of the numbers in the list that is given as `?1`
- `{now}`: milliseconds since the Unix epoch, by the clock of the database, which all replicas share
- `{lock}`, `{keep}`, `{skip}`: the rows that are read are locked until the commit; those of `owners` are kept
  from being deleted; rows that somebody else has locked are left out. In SQLite a transaction that writes is
  alone, and these are nothing.
- `{given}`: rows that are given in bulk (`Bulk`)
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar

T = TypeVar("T")
Row = Sequence[Any]

_WORDS: Final = {
    "sqlite": {
        "now": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
        "lock": "",
        "keep": "",
        "skip": "",
    },
    "postgres": {
        "now": "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
        "lock": "FOR UPDATE",
        "keep": "FOR KEY SHARE OF owners",
        "skip": "FOR UPDATE SKIP LOCKED",
    },
}
_GIVEN = re.compile(r"\?(\d)")
_ANY = re.compile(r"\{any(\d)\}")


class Statement:
    """
    A statement.

    Args:
        text: see above.
    """

    def __init__(self, text: str) -> None:
        self._text = " ".join(text.split())

    @cached_property
    def sqlite(self) -> str:
        """The statement for SQLite; a list is given as JSON text."""
        return _ANY.sub(r"IN (SELECT value FROM json_each(?\1))", self._text).format(**_WORDS["sqlite"])

    @cached_property
    def postgres(self) -> str:
        """The statement for PostgreSQL."""
        text = _ANY.sub(r"= ANY(?\1::bigint[])", self._text)
        return _GIVEN.sub(r"$\1", text.format(**_WORDS["postgres"]))


class Bulk:
    """
    A statement about many rows that are given, as one statement whatever their number.

    A statement for each row would be dearer in both: SQLite's driver lets go of the interpreter and has to
    win it back at every one, and to PostgreSQL it would be a message each.

    Args:
        text: with `{given}`, a query for the rows.
        kinds: the types of their columns, as PostgreSQL calls them.
    """

    MOST: Final = 500
    """Rows of one statement in SQLite, which takes some 32,000 values."""

    def __init__(self, text: str, *kinds: str) -> None:
        self._text = " ".join(text.split())
        self._kinds = kinds
        self._texts: dict[int, str] = {}

    def sqlite(self, rows: int) -> str:
        """Return the statement for SQLite and so many rows."""
        if (text := self._texts.get(rows)) is None:
            row = f"({', '.join('?' * len(self._kinds))})"
            text = self._texts[rows] = self._text.format(given=f"VALUES {', '.join([row] * rows)}")
        return text

    @cached_property
    def postgres(self) -> str:
        """The statement for PostgreSQL; each column is given as a list."""
        lists = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(self._kinds, 1))
        return self._text.format(given=f"SELECT * FROM unnest({lists})")  # noqa: S608  (texts of ours)


class Each:
    """
    A small query that is asked again for each of several rows of numbers, and answered all together.

    Args:
        text: the query, with `?1`, `?2` … for the numbers.
        width: how many numbers a row has.
    """

    def __init__(self, text: str, width: int) -> None:
        self.sqlite = " ".join(text.split())
        names = ", ".join(f"n{number}" for number in range(1, width + 1))
        lists = ", ".join(f"${number}::bigint[]" for number in range(1, width + 1))
        answer = _GIVEN.sub(r"asked.n\1", self.sqlite)
        asked = f"unnest({lists}) AS asked ({names})"
        self.postgres = f"SELECT answer.* FROM {asked} CROSS JOIN LATERAL ({answer}) AS answer"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Ask:
    """A statement with what is given to it."""

    statement: Statement
    given: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class AskBulk:
    """A statement about rows, given by their columns; there is at least one row, and no answer."""

    bulk: Bulk
    columns: tuple[Sequence[Any], ...]


@dataclass(frozen=True, slots=True)
class AskEach:
    """A query with the rows of numbers that it is asked for, given by their columns."""

    each: Each
    columns: tuple[Sequence[int], ...]


Request = Ask | AskBulk | AskEach
Operation = Generator[Request, list[Row], T]
"""What the store does, in steps; returns a `T`."""
