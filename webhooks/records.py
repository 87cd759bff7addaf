"""What the store of webhooks keeps, as values: messages, endpoints, deliveries, attempts, jobs."""

from __future__ import annotations

from enum import IntEnum, StrEnum, unique
from typing import Final

import msgspec

BUCKETS: Final = 64
"""Shares into which the endpoints are divided; each is looked after by one replica at a time."""

LOG_BITS: Final = 40
"""A message's number is that of its log, and in so many bits below it the event's position there."""

NOWHERE: Final = -1
"""The place of a bucket for which nothing was dispatched yet."""


@unique
class Standing(IntEnum):
    """
    Where a delivery stands, as the store has it.

    That it is *held* is not written down: a pending delivery is, as long as its endpoint is not open. So to
    close an endpoint costs one row, however much is pending.
    """

    PENDING = 0
    DELIVERED = 1
    FAILED = 2
    EXPIRED = 3


@unique
class Status(StrEnum):
    """What an endpoint is: only an open one is sent to, and only a removed one gets no more deliveries."""

    OPEN = "open"
    PAUSED = "paused"
    """By its owner."""
    DISABLED = "disabled"
    """By us, after failing for too long."""
    GONE = "gone"
    """By the receiver, who answered 410."""
    REMOVED = "removed"
    """By its owner, for good; its rows are being deleted."""


@unique
class Task(StrEnum):
    """What a job does to the deliveries of an endpoint, in steps that survive a restart."""

    RECOVER = "recover"
    """Failed ones are pending again, from the beginning of their schedule."""
    SKIP = "skip"
    """Pending ones are given up; when there is none left the endpoint is opened, if we had closed it."""


def bucket_of(endpoint: int) -> int:
    """Return the bucket of an endpoint."""
    return endpoint % BUCKETS


def message_number(log: int, position: int) -> int:
    """Return the number of the message that is the event at a position of a log, as all replicas have it."""
    return (log << LOG_BITS) + position


class Message(msgspec.Struct, frozen=True, gc=False):
    """
    What is sent, kept once for all endpoints.

    Attributes:
        number: see `message_number`; those of log 0 are of no log.
        topic: the event's.
        event: the event's id.
        type: the event's type.
        time: milliseconds since the Unix epoch at which it was accepted; never decreases along a log.
        expires: milliseconds since the epoch after which it is not sent any more; 0 is never.
        body: the event's JSON members, as the log has them.
    """

    number: int
    topic: str
    event: str
    type: str
    time: int
    expires: int
    body: bytes


class Endpoint(msgspec.Struct, frozen=True):
    """
    A webhook target, as far as the store knows it.

    Attributes:
        id: given by the store, never again to another one.
        bucket: the share it belongs to.
        status: see `Status`.
        settings: what its owner says about it; opaque here.
        health: what was learnt about it; opaque here.
        created: milliseconds since the Unix epoch.
        changed: the same, of the last change.
        revision: one change of any endpoint has a higher one than those before; not counted are changes of
            `health`.
    """

    id: int
    bucket: int
    status: Status
    settings: bytes
    health: bytes
    created: int
    changed: int
    revision: int


class Due(msgspec.Struct, frozen=True, gc=False):
    """
    A delivery whose next attempt is due.

    Attributes:
        endpoint: its endpoint.
        message: its message.
        due: milliseconds since the Unix epoch at which it became so.
        tries: attempts since the beginning of its schedule.
        attempts: all attempts made.
    """

    endpoint: int
    message: int
    due: int
    tries: int
    attempts: int


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """
    One try of a delivery.

    Attributes:
        number: 1 for the first of its delivery.
        time: milliseconds since the Unix epoch at which it began.
        status: of the answer; None if there was none.
        error: why there was none.
        duration: milliseconds.
        excerpt: the first bytes of the answer's body.
    """

    number: int
    time: int
    status: int | None
    error: str | None
    duration: int
    excerpt: bytes = b""


class Result(msgspec.Struct, frozen=True, gc=False):
    """
    What became of a delivery that was due.

    Attributes:
        endpoint: its endpoint.
        message: its message.
        standing: where it stands now.
        due: milliseconds since the Unix epoch at which it is due again; at which it ended, if it did.
        tries: attempts since the beginning of its schedule, this one included.
        attempt: the attempt; None if there was none, as when the event had expired.
    """

    endpoint: int
    message: int
    standing: Standing
    due: int
    tries: int
    attempt: Attempt | None = None


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """
    A delivery as it is listed.

    Attributes:
        endpoint: its endpoint.
        message: its message.
        standing: where it stands.
        due: milliseconds since the Unix epoch at which the next attempt is due; at which it ended, if it did.
        tries: attempts since the beginning of its schedule.
        attempts: all attempts made.
        topic: the event's.
        event: the event's id.
        time: milliseconds since the epoch at which the event was accepted.
    """

    endpoint: int
    message: int
    standing: Standing
    due: int
    tries: int
    attempts: int
    topic: str
    event: str
    time: int


class Job(msgspec.Struct, frozen=True):
    """
    Work on many deliveries of one endpoint, done in steps.

    Attributes:
        id: given by the store.
        endpoint: whose deliveries.
        task: what is done to them.
        after: the number of the message that the last step ended with; those up to it are done.
        last: the number of the last message that is concerned.
        changed: deliveries that were changed so far.
        finished: whether nothing is left.
    """

    id: int
    endpoint: int
    task: Task
    after: int
    last: int
    changed: int
    finished: bool
