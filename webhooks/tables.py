"""
The tables of the store of webhooks, in SQLite and in PostgreSQL: one text for both.

**The delivery row is the schedule.** A delivery is one event for one endpoint. What is pending, when it is
due and what became of it is one row, changed in the same transaction in which its attempt is written down.
There is no queue beside it that could say something else.

What decides about the cost is how many rows and index entries a delivery takes on its way. So:

- A delivery has no number of its own: it is named by its endpoint and its message, and its message by the
  event's place in the log. That one key finds it, forbids a second one, and lists an endpoint's deliveries
  from the newest on. Every replica gives an event the same number, whoever writes it first.
- A delivery is *not* leased. What is leased is the replica (`owners`), which holds buckets of endpoints:
  while it does, nobody else sends for them, and what it has on the way it knows by itself. So the usual
  delivery is written twice, when it is made and when it is done. Every write of a replica checks that its row
  is still there, and holds on to it until the commit; to take over a bucket of somebody whose time is up,
  that row is deleted first. That is the fence: a replica that stood still finds that it changes nothing.
- Only what is pending is in the index that finds what is due, and only what went wrong is in the one that
  lists it. That a million deliveries were fine costs no query anything.
- Closing an endpoint changes its own row. What is pending then is *held* because its endpoint is not open.

**Exactly one delivery for an event and an endpoint.** Each bucket has the place up to which it was
dispatched. Rows for events and the move of that place, from where it was expected to be, are one transaction.

**Strict order** needs no table: whoever wants it keeps `due` of a pending delivery at the time of its event,
sends one at a time, and waits for the endpoint instead of the delivery.

Retention goes by messages, from the oldest on, and takes with them whatever belongs to them. An endpoint that
is removed is marked, and swept away in steps.
"""

from __future__ import annotations

from typing import Final

from webhooks.records import BUCKETS

# `{…}` is what the two have different words for; see `DIALECTS`.
_VERSION_1: Final = (
    # What is given out by counting. The row is locked by whoever counts until the commit, so numbers become
    # visible in their order: who has seen a change has seen all before it.
    """
    CREATE TABLE counters (name {text} NOT NULL PRIMARY KEY, value {int} NOT NULL) {clustered}
    """,
    """
    INSERT INTO counters (name, value)
    VALUES ('revision', 0), ('owner', 0), ('message', 0), ('log', 0), ('job', 0)
    """,
    """
    CREATE TABLE logs (epoch {text} NOT NULL PRIMARY KEY, number {int} NOT NULL) {clustered}
    """,
    """
    CREATE TABLE owners (id {int} NOT NULL PRIMARY KEY, until {int} NOT NULL) {clustered}
    """,
    # An owner that is not in `owners` any more is none.
    """
    CREATE TABLE buckets (
        bucket {int} NOT NULL PRIMARY KEY, owner {int} NOT NULL, position {int} NOT NULL
    ) {clustered}
    """,
    """
    WITH RECURSIVE numbers (bucket) AS (
        SELECT 0 UNION ALL SELECT bucket + 1 FROM numbers WHERE bucket + 1 < {buckets}
    )
    INSERT INTO buckets (bucket, owner, position) SELECT bucket, 0, -1 FROM numbers
    """,
    """
    CREATE TABLE endpoints (
        id {int} NOT NULL PRIMARY KEY,
        bucket {int} NOT NULL,
        status {text} NOT NULL,
        settings {bytes} NOT NULL,
        health {bytes} NOT NULL,
        created {int} NOT NULL,
        changed {int} NOT NULL,
        revision {int} NOT NULL
    ) {clustered}
    """,
    """
    CREATE INDEX endpoints_changed ON endpoints (revision)
    """,
    """
    CREATE TABLE messages (
        number {int} NOT NULL PRIMARY KEY,
        topic {text} NOT NULL,
        event {text} NOT NULL,
        type {text} NOT NULL,
        time {int} NOT NULL,
        expires {int} NOT NULL,
        body {bytes} NOT NULL
    )
    """,
    """
    CREATE TABLE deliveries (
        endpoint {int} NOT NULL,
        message {int} NOT NULL,
        standing {small} NOT NULL,
        due {int} NOT NULL,
        tries {small} NOT NULL,
        attempts {small} NOT NULL,
        PRIMARY KEY (endpoint, message)
    ) {clustered}
    """,
    """
    CREATE INDEX deliveries_due ON deliveries (endpoint, due, message) WHERE standing = 0
    """,
    """
    CREATE INDEX deliveries_lost ON deliveries (endpoint, standing, message) WHERE standing > 1
    """,
    """
    CREATE TABLE attempts (
        endpoint {int} NOT NULL,
        message {int} NOT NULL,
        number {small} NOT NULL,
        time {int} NOT NULL,
        status {small},
        error {text},
        duration {int} NOT NULL,
        excerpt {bytes} NOT NULL,
        PRIMARY KEY (endpoint, message, number)
    ) {clustered}
    """,
    """
    CREATE TABLE jobs (
        id {int} NOT NULL PRIMARY KEY,
        endpoint {int} NOT NULL,
        task {text} NOT NULL,
        after_message {int} NOT NULL,
        last_message {int} NOT NULL,
        changed {int} NOT NULL,
        finished {int} NOT NULL
    ) {clustered}
    """,
)

VERSIONS: Final = (_VERSION_1,)
"""The statements that make each version from the one before."""

DIALECTS: Final = {
    "sqlite": {
        "int": "INTEGER",
        "small": "INTEGER",
        "text": "TEXT",
        "bytes": "BLOB",
        "clustered": "WITHOUT ROWID",
    },
    "postgres": {
        "int": "bigint",
        "small": "smallint",
        "text": 'text COLLATE "C"',
        "bytes": "bytea",
        "clustered": "",
    },
}


def versions(dialect: str) -> list[list[str]]:
    """Return the statements that make each version, in the words of one of `DIALECTS`."""
    words = DIALECTS[dialect] | {"buckets": str(BUCKETS)}
    return [[statement.format(**words) for statement in version] for version in VERSIONS]
