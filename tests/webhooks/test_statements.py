"""What the store asks SQLite is answered by the index that was made for it, however many rows there are."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from typing import Final

import pytest

from webhooks import statements as sql
from webhooks.asking import Each, Statement
from webhooks.tables import versions

DUE: Final = "deliveries_due"
LOST: Final = "deliveries_lost"
KEY: Final = "PRIMARY KEY"


@pytest.fixture(scope="module")
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    for version in versions("sqlite"):
        for statement in version:
            connection.execute(statement)
    yield connection
    connection.close()


def plan(database: sqlite3.Connection, text: str) -> list[str]:
    """Return what SQLite would do for a statement."""
    most = max(map(int, re.findall(r"\?(\d)", text)), default=0)
    given = ["[1]" if f"json_each(?{number})" in text else 1 for number in range(1, most + 1)]
    return [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {text}", given)]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("EARLIEST", DUE),
        ("DUE", DUE),
        ("PENDING", DUE),
        ("BACKLOG", DUE),
        ("PENDING_OF", DUE),
        ("NEXT_PENDING", DUE),
        ("FAILED", LOST),
        ("EXPIRED", LOST),
        ("NEXT_FAILED", LOST),
        ("DELIVERY", KEY),
        ("DELIVERIES", KEY),
        ("DELIVERED", KEY),
    ],
)
def test_deliveries_are_found_by_their_index(database: sqlite3.Connection, name: str, index: str) -> None:
    """The first step is a search in it, and what is found has not to be sorted."""
    statement: Statement | Each = getattr(sql, name)
    steps = plan(database, statement.sqlite)
    (first, *_) = [each for each in steps if "deliveries" in each]
    assert first.startswith("SEARCH deliveries USING")
    assert index in first
    assert not any(each.startswith("SCAN deliveries") for each in steps)
    paged = name in ("DELIVERIES", "DELIVERED", "FAILED", "EXPIRED")
    assert sum("TEMP B-TREE" in each for each in steps) <= paged  # the entries of one page, once more


def test_attempts_are_found_by_their_key(database: sqlite3.Connection) -> None:
    assert plan(database, sql.ATTEMPTS.sqlite) == [
        "SEARCH attempts USING PRIMARY KEY (endpoint=? AND message=? AND number<?)"
    ]
