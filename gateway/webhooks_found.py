"""Finding what a request to the API of webhooks names, and whether it may be changed."""

from __future__ import annotations

import random

from gateway.auth.caller import Caller
from gateway.mint import now_ms
from gateway.problems import Problem
from gateway.resources import Call
from webhooks import records
from webhooks.endpoint import REMEDIES, Endpoint
from webhooks.records import Status
from webhooks.store import Store
from webhooks.stored import endpoint_id, endpoint_name, loaded, topics_of


def read(row: records.Endpoint) -> Endpoint:
    """Return an endpoint ready for use, from its row."""
    return loaded(row, random.random, now_ms())


async def find_endpoint(store: Store, call: Call, *, removed: bool = False) -> records.Endpoint:
    """
    Return the endpoint that the path names.

    Args:
        store: where to look.
        call: with the part `webhook`.
        removed: whether one that was removed lately will do.

    Raises:
        Problem: 404, there is none for who asks; 403, they may have no webhooks.
    """
    call.caller.check_webhooks()
    id = endpoint_id(call.part("webhook"))
    row = None if id is None else await store.find_endpoint(id, removed=removed)
    if row is None or not is_visible(call.caller, row):
        raise missing(call)
    return row


def is_visible(caller: Caller, row: records.Endpoint) -> bool:
    """
    Tell whether somebody may know of an endpoint, and change it: operators, and who may listen to all that it
    is sent; or was, if it was removed.
    """
    if not caller.is_known or caller.grants.admin:
        return True
    topics = topics_of(row)
    return bool(topics) and caller.may_hear(topics)


def missing(call: Call) -> Problem:
    """Return the answer if there is no such endpoint."""
    return Problem(404, f"there is no webhook {call.part('webhook')[:60]!a}")


def etag(row: records.Endpoint) -> str:
    """Return the tag of what its owner wants of an endpoint; what was learnt about it has no part in it."""
    return f'"{row.revision}"'


def check_match(call: Call, row: records.Endpoint) -> None:
    """
    Check the condition of a request that changes an endpoint (RFC 9110 section 13.1.1).

    Raises:
        Problem: 412, the endpoint is not as its sender saw it.
    """
    wanted = call.headers.get(b"if-match")
    if wanted is None:
        return
    tags = [each.strip() for each in wanted.decode("latin-1").split(",")]
    if "*" not in tags and etag(row) not in tags:
        detail = (
            f"{endpoint_name(row.id)} was changed by somebody else: read it again, its ETag is {etag(row)}"
        )
        raise Problem(412, detail)


def check_open(row: records.Endpoint) -> None:
    """
    Check that an endpoint is sent to.

    Raises:
        Problem: 409, it is not, with what to do about it.
    """
    if row.status is not Status.OPEN:
        state = read(row).state
        raise Problem(409, f"the webhook is {state.value}: {REMEDIES[state]} first")
