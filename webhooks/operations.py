"""
What the store of webhooks does, each operation one transaction; see `webhooks.asking` for how they ask.

Operations that an owner does for itself begin with the fence; see `webhooks.ownership`.

Locks are taken in one order everywhere, so that replicas cannot wait for each other in a circle: counters,
owners, buckets, then endpoints, messages, deliveries, each by its key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from webhooks import statements as sql
from webhooks.asking import Ask, AskBulk, AskEach, Operation
from webhooks.ownership import count, fence
from webhooks.records import (
    BUCKETS,
    Attempt,
    Delivery,
    Due,
    Endpoint,
    Job,
    Message,
    Result,
    Standing,
    Status,
    Task,
    bucket_of,
)

HIGHEST: Final = 2**62
"""More than any number that is given out."""


class Misplaced(Exception):
    """A bucket was not dispatched up to where the caller thought. Nothing was changed."""


# --- dispatch


def dispatch(
    owner: int,
    buckets: Collection[int],
    after: int,
    last: int,
    messages: Sequence[Message],
    deliveries: Sequence[tuple[int, int, int]],
) -> Operation[None]:
    """
    Make the deliveries of the next events for the endpoints of some buckets, and move these on.

    Args:
        owner: who does it.
        buckets: what is moved on; never empty.
        after: where all of them are.
        last: where they will be: the number of the last event that was looked at.
        messages: events that somebody gets; one that is there already is left as it is.
        deliveries: endpoint, message and time at which it is due, of each.

    Raises:
        Fenced: a bucket is not the owner's.
        Misplaced: a bucket is not where it was said to be.
    """
    yield from fence(owner, buckets)
    moved = yield Ask(sql.ADVANCE, (last, sorted(buckets), after))
    if len(moved) != len(set(buckets)):
        raise Misplaced
    if messages:
        yield AskBulk(sql.ADD_MESSAGES, _message_columns(sorted(messages, key=lambda each: each.number)))
    if deliveries:
        endpoints, numbers, due = zip(*deliveries, strict=True)
        zeros = (0,) * len(deliveries)
        yield AskBulk(sql.ADD_DELIVERIES, (endpoints, numbers, due, zeros, zeros, zeros))


def enqueue(endpoint: int, message: Message) -> Operation[int | None]:
    """
    Make a delivery of something that is no event of a log, due at its time.

    Args:
        endpoint: who gets it.
        message: what it gets; its number is not looked at.

    Returns:
        The number of its message; None if there is no such endpoint.
    """
    number = yield from count("message")
    if not (yield Ask(sql.IS_THERE, (endpoint,))):
        return None
    columns = _message_columns([message])
    yield AskBulk(sql.ADD_MESSAGES, ((number,), *columns[1:]))
    yield AskBulk(sql.ADD_DELIVERIES, ((endpoint,), (number,), (message.time,), (0,), (0,), (0,)))
    return number


def _message_columns(messages: Sequence[Message]) -> tuple[Sequence[object], ...]:
    return (
        [each.number for each in messages],
        [each.topic for each in messages],
        [each.event for each in messages],
        [each.type for each in messages],
        [each.time for each in messages],
        [each.expires for each in messages],
        [each.body for each in messages],
    )


# --- sending


def earliest(buckets: Collection[int]) -> Operation[dict[int, int]]:
    """Return the open endpoints of buckets for which something is pending, and when the first is due."""
    rows = yield Ask(sql.EARLIEST, (sorted(buckets),))
    return dict(map(tuple, rows))


def due(now: int, rooms: Mapping[int, int]) -> Operation[list[Due]]:
    """
    Return deliveries that are due, of each endpoint those that were due first, at most as many as it has room
    for.

    What its caller has under way for an endpoint is among them: the room is to include it.
    """
    if not rooms:
        return []
    rows = yield AskEach(sql.DUE, (list(rooms), [now] * len(rooms), list(rooms.values())))
    return [Due(*row) for row in rows]


def find_messages(numbers: Collection[int]) -> Operation[dict[int, Message]]:
    """Return messages by their numbers; those that are not there any more are left out."""
    rows = yield Ask(sql.BODIES, (sorted(numbers),))
    return {row[0]: Message(*row) for row in rows}


def settle(
    owner: int,
    results: Sequence[Result],
    health: Mapping[int, bytes],
    closed: Mapping[int, Status],
) -> Operation[None]:
    """
    Write down what became of deliveries that were due, their attempts, and what was learnt of endpoints.

    A delivery that is not pending any more, because somebody skipped it meanwhile, stays as it is unless it
    has arrived; its attempt counts.

    Args:
        owner: who made the attempts.
        results: of deliveries; each delivery once.
        health: of endpoints.
        closed: endpoints that are not to be sent to any more, with the reason; only open ones are closed.

    Raises:
        Fenced: a bucket of one of the endpoints is not the owner's.
    """
    revisions: list[int] = []
    while len(revisions) < len(closed):
        revisions += [(yield from count("revision"))]
    concerned = {each.endpoint for each in results} | health.keys() | closed.keys()
    yield from fence(owner, {bucket_of(endpoint) for endpoint in concerned})
    if health:
        ids = sorted(health)
        yield AskBulk(sql.SET_HEALTH, (ids, [health[each] for each in ids]))
    for (endpoint, status), revision in zip(sorted(closed.items()), revisions, strict=True):
        yield Ask(sql.CLOSE_ENDPOINT, (status.value, revision, endpoint))
    if results:
        yield AskBulk(sql.SETTLE, _result_columns(results))
    if tried := [each for each in results if each.attempt is not None]:
        yield AskBulk(sql.ADD_ATTEMPTS, _attempt_columns(tried))


def _result_columns(results: Sequence[Result]) -> tuple[Sequence[object], ...]:
    return (
        [each.endpoint for each in results],
        [each.message for each in results],
        [each.standing.value for each in results],
        [each.due for each in results],
        [each.tries for each in results],
        [int(each.attempt is not None) for each in results],
    )


def _attempt_columns(results: Sequence[Result]) -> tuple[Sequence[object], ...]:
    attempts: list[Attempt] = [each.attempt for each in results if each.attempt is not None]
    return (
        [each.endpoint for each in results],
        [each.message for each in results],
        [each.number for each in attempts],
        [each.time for each in attempts],
        [each.status for each in attempts],
        [each.error for each in attempts],
        [each.duration for each in attempts],
        [each.excerpt for each in attempts],
    )


# --- endpoints


def add_endpoint(settings: bytes, health: bytes) -> Operation[Endpoint]:
    """Add an endpoint, open, and return it."""
    number = yield from count("revision")
    (row,) = yield Ask(sql.ADD_ENDPOINT, (number, bucket_of(number), settings, health))
    return _endpoint(row)


def change_endpoint(
    endpoint: int, revision: int, status: Status, settings: bytes, health: bytes
) -> Operation[Endpoint | None]:
    """
    Change an endpoint, and return it as it is now.

    Args:
        endpoint: which.
        revision: that of what is being changed.
        status: its new status; `REMOVED` removes it, with everything that belongs to it.
        settings: its new settings.
        health: its new health.

    Returns:
        None if there is no such endpoint, or somebody else has changed it meanwhile.
    """
    new = yield from count("revision")
    rows = yield Ask(sql.CHANGE_ENDPOINT, (status.value, settings, health, new, endpoint, revision))
    return _endpoint(rows[0]) if rows else None


def find_endpoint(id: int, *, removed: bool) -> Operation[Endpoint | None]:
    """Return an endpoint, if it is there; or, if that is asked for, was removed not long ago."""
    rows = yield Ask(sql.ENDPOINT, (id,))
    found = _endpoint(rows[0]) if rows else None
    return found if found is None or removed or found.status is not Status.REMOVED else None


def count_endpoints() -> Operation[int]:
    """Return how many endpoints there are."""
    ((number,),) = yield Ask(sql.COUNT_ENDPOINTS)
    return int(number)


def list_endpoints(after: int, limit: int) -> Operation[list[Endpoint]]:
    """Return the next endpoints behind an id."""
    rows = yield Ask(sql.ENDPOINTS, (after, limit))
    return [_endpoint(row) for row in rows]


def list_changed_endpoints(revision: int, limit: int) -> Operation[list[Endpoint]]:
    """Return the endpoints that were changed after a revision, in that order; removed ones too, for a day."""
    rows = yield Ask(sql.CHANGED_ENDPOINTS, (revision, limit))
    return [_endpoint(row) for row in rows]


def _endpoint(row: Sequence[object]) -> Endpoint:
    id, bucket, status, *rest = row
    return Endpoint(id, bucket, Status(status), *rest)  # type: ignore[arg-type]  # as the table has them


# --- deliveries and attempts

_LISTS: Final = {
    None: sql.DELIVERIES,
    Standing.DELIVERED: sql.DELIVERED,
    Standing.FAILED: sql.FAILED,
    Standing.EXPIRED: sql.EXPIRED,
}


def find_delivery(endpoint: int, message: int) -> Operation[Delivery | None]:
    """Return a delivery, if it is there."""
    rows = yield Ask(sql.DELIVERY, (endpoint, message))
    return _delivery(rows[0]) if rows else None


def list_deliveries(
    endpoint: int, standing: Standing | None, before: int, limit: int
) -> Operation[list[Delivery]]:
    """
    Return deliveries of an endpoint, the newest events first.

    Args:
        endpoint: which.
        standing: only those that stand so; not for pending ones, which are listed by `list_pending`.
        before: only events older than this message; `HIGHEST` for the first page.
        limit: at most so many.
    """
    rows = yield Ask(_LISTS[standing], (endpoint, before, limit))
    return [_delivery(row) for row in rows]


def list_pending(endpoint: int, after: tuple[int, int], limit: int) -> Operation[list[Delivery]]:
    """
    Return pending deliveries, in the order in which they are due.

    Args:
        endpoint: whose.
        after: `due` and message of the last one seen.
        limit: at most so many.
    """
    rows = yield Ask(sql.PENDING, (endpoint, *after, limit))
    return [_delivery(row) for row in rows]


def backlog(endpoint: int, most: int) -> Operation[int]:
    """Return how many deliveries of an endpoint are pending, of which `most` are counted."""
    ((number,),) = yield Ask(sql.BACKLOG, (endpoint, most))
    return int(number)


def count_pending(buckets: Collection[int], most: int) -> Operation[int]:
    """Return how many deliveries are pending for the endpoints of buckets, of which `most` are counted."""
    ((number,),) = yield Ask(sql.PENDING_OF, (sorted(buckets), most))
    return int(number)


def list_attempts(endpoint: int, message: int, before: int, limit: int) -> Operation[list[Attempt]]:
    """Return attempts of a delivery, the newest first, older than number `before`."""
    rows = yield Ask(sql.ATTEMPTS, (endpoint, message, before, limit))
    return [Attempt(*row) for row in rows]


def repeat(endpoint: int, numbers: Collection[int]) -> Operation[list[int]]:
    """
    Make deliveries pending again, due now and from the beginning of their schedule, unless they have expired.

    Returns:
        The messages of those that are.
    """
    rows = yield Ask(sql.REPEAT, (endpoint, sorted(numbers)))
    return sorted(row[0] for row in rows)


def _delivery(row: Sequence[object]) -> Delivery:
    endpoint, message, standing, *rest = row
    return Delivery(endpoint, message, Standing(standing), *rest)  # type: ignore[arg-type]  # as above


# --- jobs


def add_job(endpoint: int, task: Task, after: int, last: int) -> Operation[Job | None]:
    """
    Begin a job on the deliveries of an endpoint.

    Args:
        endpoint: whose.
        task: what is done to them.
        after: only events newer than this message; skipping begins at the oldest in any case.
        last: only events up to this message.

    Returns:
        None if there is no such endpoint.
    """
    number = yield from count("job")
    if not (yield Ask(sql.IS_THERE, (endpoint,))):
        return None
    (row,) = yield Ask(sql.ADD_JOB, (number, endpoint, task.value, after, last))
    return _job(row)


def list_jobs(endpoint: int, limit: int) -> Operation[list[Job]]:
    """Return the jobs of an endpoint, the newest first."""
    rows = yield Ask(sql.JOBS, (endpoint, limit))
    return [_job(row) for row in rows]


def list_open_jobs(buckets: Collection[int], limit: int) -> Operation[list[Job]]:
    """Return jobs that are not finished, of endpoints of buckets, the oldest first."""
    rows = yield Ask(sql.OPEN_JOBS, (BUCKETS, sorted(buckets), limit))
    return [_job(row) for row in rows]


def step_job(owner: int, job: Job, limit: int) -> Operation[Job]:
    """
    Do the next part of a job: at most so many deliveries.

    The last part of skipping opens the endpoint, if it is still closed: so nothing of what is skipped can be
    sent in between.

    Raises:
        Fenced: the endpoint's bucket is not the owner's.
    """
    revision = (yield from count("revision")) if job.task is Task.SKIP else 0
    yield from fence(owner, {bucket_of(job.endpoint)})
    rows = yield Ask(sql.JOB, (job.id,))
    if not rows:  # its endpoint was removed
        return Job(job.id, job.endpoint, job.task, job.after, job.last, job.changed, finished=True)
    job = _job(rows[0])
    if job.finished:
        return job
    if job.task is Task.RECOVER:
        found = yield Ask(sql.NEXT_FAILED, (job.endpoint, job.after, job.last, limit))
        change = sql.RECOVER
    else:
        found = yield Ask(sql.NEXT_PENDING, (job.endpoint, job.last, limit))
        change = sql.SKIP
    numbers = sorted(row[0] for row in found)
    if numbers:
        yield Ask(change, (job.endpoint, numbers))
    after = max([job.after, *numbers])
    finished = len(numbers) < limit
    yield Ask(sql.STEP_JOB, (after, len(numbers), int(finished), job.id))
    if finished and job.task is Task.SKIP:
        yield Ask(sql.REOPEN_ENDPOINT, (revision, job.endpoint, b""))
    return Job(job.id, job.endpoint, job.task, after, job.last, job.changed + len(numbers), finished)


def _job(row: Sequence[object]) -> Job:
    id, endpoint, task, after, last, changed, finished = row
    return Job(id, endpoint, Task(task), after, last, changed, bool(finished))  # type: ignore[arg-type]  # as above
