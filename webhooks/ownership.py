"""
Who does what: the numbers that the store of webhooks gives out, and the owners of its buckets.

Whoever sends is an owner and holds buckets of endpoints for as long as it renews its lease. Operations that
an owner does for itself begin with the fence: its row is there, and the buckets are its own, until the
commit. Otherwise nothing is changed. To take over a bucket of an owner whose time is up its row is deleted
first, so a replica that stood still finds that it changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from webhooks import statements as sql
from webhooks.asking import Ask, Operation


class Fenced(Exception):
    """The owner is none any more, or a bucket is somebody else's: it was taken over. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Survey:
    """
    Who owns what.

    Attributes:
        owners: ids of those whose lease holds, the eldest first.
        held: the owner of each bucket that one of them holds.
    """

    owners: tuple[int, ...]
    held: dict[int, int]


# --- counting


def count(name: str) -> Operation[int]:
    """Count one on, and return the number."""
    ((number,),) = yield Ask(sql.COUNT, (name,))
    return int(number)


def log_number(epoch: str) -> Operation[int]:
    """Return the number of a log, 1 and up; the first to ask gives it one."""
    rows = yield Ask(sql.LOG_NUMBER, (epoch,))
    if not rows:
        number = yield from count("log")  # from here on nobody else does the same
        rows = yield Ask(sql.LOG_NUMBER, (epoch,))
        if not rows:
            yield Ask(sql.ADD_LOG, (epoch, number))
            return number
    return int(rows[0][0])


def logs() -> Operation[dict[int, str]]:
    """Return the logs that have a number, each with the text that was given for it."""
    rows = yield Ask(sql.LOGS)
    return dict(map(tuple, rows))


# --- owners


def join(lease_ms: int) -> Operation[int]:
    """Become an owner for so long, and return its id, which nobody else ever has."""
    owner = yield from count("owner")
    yield Ask(sql.ADD_OWNER, (owner, lease_ms))
    return owner


def hold(owner: int, wanted: Collection[int], lease_ms: int) -> Operation[dict[int, int]]:
    """
    Stay an owner for so long from now on, and take those of the wanted buckets that nobody holds.

    Returns:
        All buckets that it holds, each with the place up to which it was dispatched.

    Raises:
        Fenced: it is no owner any more.
    """
    yield Ask(sql.LOCK_OWNERS)
    if not (yield Ask(sql.RENEW_OWNER, (owner, lease_ms))):
        raise Fenced
    yield Ask(sql.BURY_OWNERS, (owner,))
    if wanted:
        yield Ask(sql.TAKE_BUCKETS, (owner, sorted(wanted)))
    rows = yield Ask(sql.OWN_BUCKETS, (owner,))
    return dict(map(tuple, rows))


def give(owner: int, buckets: Collection[int]) -> Operation[None]:
    """Give buckets away; the owner has finished what it had under way for them."""
    yield Ask(sql.LOCK_OWNERS)
    yield Ask(sql.GIVE_BUCKETS, (owner, sorted(buckets)))


def leave(owner: int) -> Operation[None]:
    """Be an owner no more."""
    yield Ask(sql.LOCK_OWNERS)
    yield Ask(sql.REMOVE_OWNER, (owner,))


def fence(owner: int, buckets: Collection[int]) -> Operation[None]:
    """
    Make sure that buckets are the owner's until the commit.

    Raises:
        Fenced: one is not.
    """
    wanted = sorted(set(buckets))
    if len((yield Ask(sql.FENCE, (owner, wanted)))) != len(wanted):
        raise Fenced


def survey() -> Operation[Survey]:
    """Return who owns what at the moment."""
    owners = yield Ask(sql.LIVE_OWNERS)
    held = yield Ask(sql.HELD_BUCKETS)
    return Survey(tuple(row[0] for row in owners), dict(map(tuple, held)))


def oust() -> Operation[None]:
    """End all owners, for one who knows that none of them is alive: nobody else can open the file."""
    yield Ask(sql.LOCK_OWNERS)
    yield Ask(sql.REMOVE_OWNERS)
