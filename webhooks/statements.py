"""The statements of the store of webhooks; see `webhooks.asking` for how they are written."""

from __future__ import annotations

from typing import Final

from webhooks.asking import Bulk, Each, Statement

# --- counting

COUNT: Final = Statement("UPDATE counters SET value = value + 1 WHERE name = ?1 RETURNING value")
LOG_NUMBER: Final = Statement("SELECT number FROM logs WHERE epoch = ?1")
ADD_LOG: Final = Statement("INSERT INTO logs (epoch, number) VALUES (?1, ?2)")
LOGS: Final = Statement("SELECT number, epoch FROM logs")

# --- owners and buckets

LOCK_OWNERS: Final = Statement("SELECT value FROM counters WHERE name = 'owner' {lock}")
ADD_OWNER: Final = Statement("INSERT INTO owners (id, until) VALUES (?1, {now} + ?2)")
RENEW_OWNER: Final = Statement("UPDATE owners SET until = {now} + ?2 WHERE id = ?1 RETURNING id")
REMOVE_OWNER: Final = Statement("DELETE FROM owners WHERE id = ?1")
REMOVE_OWNERS: Final = Statement("DELETE FROM owners")
LIVE_OWNERS: Final = Statement("SELECT id FROM owners WHERE until >= {now} ORDER BY id")
HELD_BUCKETS: Final = Statement(
    "SELECT bucket, owner FROM buckets JOIN owners ON owner = id WHERE until >= {now}"
)
BURY_OWNERS: Final = Statement(
    "DELETE FROM owners WHERE id IN (SELECT id FROM owners WHERE id <> ?1 AND until < {now} {skip})"
)
TAKE_BUCKETS: Final = Statement(
    """
    UPDATE buckets SET owner = ?1
    WHERE bucket {any2} AND owner <> ?1 AND NOT EXISTS (SELECT 1 FROM owners WHERE id = buckets.owner)
    """
)
GIVE_BUCKETS: Final = Statement("UPDATE buckets SET owner = 0 WHERE owner = ?1 AND bucket {any2}")
OWN_BUCKETS: Final = Statement("SELECT bucket, position FROM buckets WHERE owner = ?1 ORDER BY bucket")
FENCE: Final = Statement(
    """
    SELECT bucket FROM owners JOIN buckets ON owner = id WHERE id = ?1 AND bucket {any2} {keep}
    """
)

# --- dispatch

ADVANCE: Final = Statement(
    "UPDATE buckets SET position = ?1 WHERE bucket {any2} AND position = ?3 RETURNING bucket"
)
ADD_MESSAGES: Final = Bulk(
    """
    INSERT INTO messages (number, topic, event, type, time, expires, body) {given}
    ON CONFLICT (number) DO NOTHING
    """,
    *("bigint", "text", "text", "text", "bigint", "bigint", "bytea"),
)
ADD_DELIVERIES: Final = Bulk(
    """
    INSERT INTO deliveries (endpoint, message, due, standing, tries, attempts) {given}
    ON CONFLICT (endpoint, message) DO NOTHING
    """,
    *("bigint", "bigint", "bigint", "smallint", "smallint", "smallint"),
)

# --- sending

EARLIEST: Final = Statement(
    """
    SELECT id, due FROM (
        SELECT id, (SELECT min(due) FROM deliveries WHERE endpoint = id AND standing = 0) AS due
        FROM endpoints WHERE bucket {any1} AND status = 'open'
    ) AS found WHERE due IS NOT NULL
    """
)
DUE: Final = Each(
    """
    SELECT endpoint, message, due, tries, attempts FROM deliveries
    WHERE endpoint = ?1 AND standing = 0 AND due <= ?2 ORDER BY due, message LIMIT ?3
    """,
    3,
)
BODIES: Final = Statement(
    "SELECT number, topic, event, type, time, expires, body FROM messages WHERE number {any1}"
)
SETTLE: Final = Bulk(
    """
    WITH given (endpoint, message, standing, due, tries, attempts) AS ({given})
    UPDATE deliveries
    SET standing = CASE WHEN deliveries.standing = 0 OR given.standing = 1
                   THEN given.standing ELSE deliveries.standing END,
        due = CASE WHEN deliveries.standing = 0 OR given.standing = 1 THEN given.due ELSE deliveries.due END,
        tries = given.tries, attempts = deliveries.attempts + given.attempts
    FROM given
    WHERE deliveries.endpoint = given.endpoint AND deliveries.message = given.message
    """,
    *("bigint", "bigint", "smallint", "bigint", "smallint", "smallint"),
)
ADD_ATTEMPTS: Final = Bulk(
    """
    INSERT INTO attempts (endpoint, message, number, time, status, error, duration, excerpt) {given}
    ON CONFLICT (endpoint, message, number) DO NOTHING
    """,
    *("bigint", "bigint", "smallint", "bigint", "smallint", "text", "bigint", "bytea"),
)
SET_HEALTH: Final = Bulk(
    """
    WITH given (id, health) AS ({given})
    UPDATE endpoints SET health = given.health FROM given
    WHERE endpoints.id = given.id AND endpoints.status <> 'removed'
    """,
    *("bigint", "bytea"),
)
CLOSE_ENDPOINT: Final = Statement(
    "UPDATE endpoints SET status = ?1, revision = ?2, changed = {now} WHERE id = ?3 AND status = 'open'"
)

REOPEN_ENDPOINT: Final = Statement(
    """
    UPDATE endpoints SET status = 'open', health = ?3, revision = ?1, changed = {now}
    WHERE id = ?2 AND status IN ('disabled', 'gone')
    """
)

# --- endpoints

_ENDPOINT: Final = "id, bucket, status, settings, health, created, changed, revision"
ADD_ENDPOINT: Final = Statement(
    f"""
    INSERT INTO endpoints ({_ENDPOINT}) VALUES (?1, ?2, 'open', ?3, ?4, {{now}}, {{now}}, ?1)
    RETURNING {_ENDPOINT}
    """
)
CHANGE_ENDPOINT: Final = Statement(
    f"""
    UPDATE endpoints SET status = ?1, settings = ?2, health = ?3, revision = ?4, changed = {{now}}
    WHERE id = ?5 AND revision = ?6 AND status <> 'removed' RETURNING {_ENDPOINT}
    """
)
ENDPOINT: Final = Statement(f"SELECT {_ENDPOINT} FROM endpoints WHERE id = ?1")
ENDPOINTS: Final = Statement(
    f"SELECT {_ENDPOINT} FROM endpoints WHERE id > ?1 AND status <> 'removed' ORDER BY id LIMIT ?2"
)
COUNT_ENDPOINTS: Final = Statement("SELECT count(*) FROM endpoints WHERE status <> 'removed'")
CHANGED_ENDPOINTS: Final = Statement(
    f"SELECT {_ENDPOINT} FROM endpoints WHERE revision > ?1 ORDER BY revision LIMIT ?2"
)

# --- deliveries and attempts

_LISTED: Final = """
    SELECT deliveries.endpoint, deliveries.message, standing, due, tries, attempts, topic, event, time
    FROM deliveries JOIN messages ON number = message WHERE endpoint = ?1
"""
DELIVERY: Final = Statement(f"{_LISTED} AND message = ?2")


def _page(condition: str) -> Statement:
    """Return the statement for a page of deliveries: they are found first, and only they are looked up."""
    return Statement(
        f"""
        SELECT deliveries.endpoint, deliveries.message, standing, due, tries, attempts, topic, event, time
        FROM (
            SELECT message AS found FROM deliveries
            WHERE endpoint = ?1 {condition} AND message > -1 AND message < ?2 ORDER BY message DESC LIMIT ?3
        ) AS page
        JOIN deliveries ON endpoint = ?1 AND deliveries.message = found
        JOIN messages ON number = found ORDER BY found DESC
        """
    )


DELIVERIES: Final = _page("")
DELIVERED: Final = _page("AND standing = 1")
# SQLite takes the index of what went wrong only if it is told so in the index's own words, with both bounds,
# and where nothing else has to be read.
FAILED: Final = _page("AND standing = 2 AND standing > 1")
EXPIRED: Final = _page("AND standing = 3 AND standing > 1")
PENDING: Final = Statement(
    f"{_LISTED} AND standing = 0 AND (due, message) > (?2, ?3) ORDER BY due, message LIMIT ?4"
)
ATTEMPTS: Final = Statement(
    """
    SELECT number, time, status, error, duration, excerpt FROM attempts
    WHERE endpoint = ?1 AND message = ?2 AND number < ?3 ORDER BY number DESC LIMIT ?4
    """
)
BACKLOG: Final = Statement(
    """
    SELECT count(*) FROM (
        SELECT 1 FROM deliveries WHERE endpoint = ?1 AND standing = 0 AND due > -1 LIMIT ?2
    ) AS found
    """
)
REPEAT: Final = Statement(
    """
    UPDATE deliveries SET standing = 0, tries = 0, due = {now}
    WHERE endpoint = ?1 AND message {any2} AND standing <> 3 RETURNING message
    """
)
PENDING_OF: Final = Statement(
    """
    SELECT count(*) FROM (
        SELECT 1 FROM deliveries WHERE standing = 0 AND due > -1 AND endpoint IN (
            SELECT id FROM endpoints WHERE bucket {any1} AND status <> 'removed'
        ) LIMIT ?2
    ) AS found
    """
)
IS_THERE: Final = Statement("SELECT 1 FROM endpoints WHERE id = ?1 AND status <> 'removed'")

# --- jobs

_JOB: Final = "id, endpoint, task, after_message, last_message, changed, finished"
ADD_JOB: Final = Statement(f"INSERT INTO jobs ({_JOB}) VALUES (?1, ?2, ?3, ?4, ?5, 0, 0) RETURNING {_JOB}")
JOB: Final = Statement(f"SELECT {_JOB} FROM jobs WHERE id = ?1 {{lock}}")
JOBS: Final = Statement(f"SELECT {_JOB} FROM jobs WHERE endpoint = ?1 ORDER BY id DESC LIMIT ?2")
OPEN_JOBS: Final = Statement(
    f"SELECT {_JOB} FROM jobs WHERE finished = 0 AND endpoint % ?1 {{any2}} ORDER BY id LIMIT ?3"
)
NEXT_FAILED: Final = Statement(
    """
    SELECT message FROM deliveries
    WHERE endpoint = ?1 AND standing = 2 AND standing > 1 AND message > ?2 AND message <= ?3
    ORDER BY message LIMIT ?4
    """
)
NEXT_PENDING: Final = Statement(
    """
    SELECT message FROM deliveries WHERE endpoint = ?1 AND standing = 0 AND message + 0 <= ?2
    ORDER BY due, message LIMIT ?3
    """
)
RECOVER: Final = Statement(
    """
    UPDATE deliveries SET standing = 0, tries = 0, due = {now}
    WHERE endpoint = ?1 AND message {any2} AND standing = 2
    """
)
SKIP: Final = Statement(
    """
    UPDATE deliveries SET standing = 2, due = {now} WHERE endpoint = ?1 AND message {any2} AND standing = 0
    """
)
STEP_JOB: Final = Statement(
    "UPDATE jobs SET after_message = ?1, changed = changed + ?2, finished = ?3 WHERE id = ?4"
)

# --- time, retention, removal

NEXT_MESSAGE: Final = Statement(
    "SELECT number, time FROM messages WHERE number >= ?1 ORDER BY number LIMIT 1"
)
LAST_MESSAGE: Final = Statement("SELECT max(number) FROM messages")
OLDEST_MESSAGES: Final = Statement(
    "SELECT number, time FROM messages WHERE number >= ?1 AND number < ?2 ORDER BY number LIMIT ?3"
)
# By endpoint, because that is how the rows lie: a walk along the oldest of each.
FORGET_ATTEMPTS: Final = Statement(
    """
    DELETE FROM attempts WHERE (endpoint, message, number) IN (
        SELECT attempts.endpoint, attempts.message, attempts.number
        FROM endpoints CROSS JOIN attempts
        WHERE attempts.endpoint = endpoints.id AND attempts.message >= ?1 AND attempts.message <= ?2
    )
    """
)
FORGET_DELIVERIES: Final = Statement(
    """
    DELETE FROM deliveries WHERE (endpoint, message) IN (
        SELECT deliveries.endpoint, deliveries.message FROM endpoints CROSS JOIN deliveries
        WHERE deliveries.endpoint = endpoints.id AND deliveries.message >= ?1 AND deliveries.message <= ?2
    )
    """
)
FORGET_MESSAGES: Final = Statement("DELETE FROM messages WHERE number >= ?1 AND number <= ?2")
REMOVED: Final = Statement(
    "SELECT id, changed < {now} - ?2 FROM endpoints WHERE status = 'removed' AND bucket {any1} ORDER BY id"
)
SWEEP_ATTEMPTS: Final = Statement(
    """
    DELETE FROM attempts WHERE (endpoint, message, number) IN (
        SELECT endpoint, message, number FROM attempts WHERE endpoint = ?1 LIMIT ?2
    ) RETURNING 1
    """
)
SWEEP_DELIVERIES: Final = Statement(
    """
    DELETE FROM deliveries WHERE (endpoint, message) IN (
        SELECT endpoint, message FROM deliveries WHERE endpoint = ?1 LIMIT ?2
    ) RETURNING 1
    """
)
REMOVE_JOBS: Final = Statement("DELETE FROM jobs WHERE endpoint = ?1")
REMOVE_ENDPOINT: Final = Statement("DELETE FROM endpoints WHERE id = ?1")
