"""What the store of webhooks does by the clock: finding the place of a time, forgetting, sweeping."""

from __future__ import annotations

from collections.abc import Collection
from itertools import takewhile
from typing import Final

from webhooks import statements as sql
from webhooks.asking import Ask, Operation
from webhooks.operations import HIGHEST
from webhooks.ownership import fence
from webhooks.records import LOG_BITS

FIRST_OF_LOGS: Final = 1 << LOG_BITS
"""The lowest number that an event of a log can have."""

TOMBSTONE_MS: Final = 24 * 3_600_000
"""For so long a removed endpoint can still be noticed by who looks for changes."""

CHORES: Final = 0
"""The bucket whose owner does what is to be done once for all."""


def find_time(time: int) -> Operation[int]:
    """
    Return a number such that messages of logs accepted at `time` or later are behind it, and earlier ones are
    not.

    Both grow together, so it is searched by halves: no index is needed for a question that is seldom asked.
    """
    ((highest,),) = yield Ask(sql.LAST_MESSAGE)
    low, high = FIRST_OF_LOGS, max(highest or 0, FIRST_OF_LOGS) + 1  # the answer is in low - 1 .. high - 1
    while low < high:
        middle = (low + high) // 2
        rows = yield Ask(sql.NEXT_MESSAGE, (middle,))
        if rows and rows[0][1] < time:
            low = rows[0][0] + 1
        else:
            high = middle
    return low - 1


def forget(owner: int, before: int, limit: int) -> Operation[int]:
    """
    Forget the oldest messages and whatever belongs to them, pending or not.

    Args:
        owner: who holds the bucket `CHORES`.
        before: messages accepted before this time, in milliseconds since the Unix epoch.
        limit: at most so many of each kind: of logs, and of no log.

    Returns:
        How many messages were forgotten; ask again if it is not 0.

    Raises:
        Fenced: the owner does not hold the bucket.
    """
    yield from fence(owner, {CHORES})
    gone = 0
    for first, end in ((FIRST_OF_LOGS, HIGHEST), (0, FIRST_OF_LOGS)):
        oldest = yield Ask(sql.OLDEST_MESSAGES, (first, end, limit))
        old = [number for number, _ in takewhile(lambda row: row[1] < before, oldest)]
        if old:
            for statement in (sql.FORGET_ATTEMPTS, sql.FORGET_DELIVERIES, sql.FORGET_MESSAGES):
                yield Ask(statement, (first, old[-1]))
            gone += len(old)
    return gone


def sweep(owner: int, buckets: Collection[int], limit: int) -> Operation[bool]:
    """
    Delete rows of removed endpoints, at most so many of each kind, and the endpoint itself a day after.

    Returns:
        Whether there is more to do now.

    Raises:
        Fenced: a bucket is not the owner's.
    """
    yield from fence(owner, buckets)
    removed = yield Ask(sql.REMOVED, (sorted(buckets), TOMBSTONE_MS))
    for endpoint, over in removed:
        attempts = yield Ask(sql.SWEEP_ATTEMPTS, (endpoint, limit))
        deliveries = yield Ask(sql.SWEEP_DELIVERIES, (endpoint, limit))
        if attempts or deliveries:
            return True
        yield Ask(sql.REMOVE_JOBS, (endpoint,))
        if over:
            yield Ask(sql.REMOVE_ENDPOINT, (endpoint,))
    return False
