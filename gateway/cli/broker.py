"""What `sluice check` says of a broker."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Iterator

from gateway.amqp.link import LinkError
from gateway.amqp.topology import Topology
from gateway.backbone import address, topology
from gateway.cli.ending import Unusable
from gateway.settings import Settings
from gateway.stream_check import Found, look, told_time
from gateway.units import format_bytes, format_seconds


def broker_found(settings: Settings) -> Iterator[str]:
    """
    Return what is to be said about a broker that can be used.

    Raises:
        Unusable: it cannot.
    """
    where, wanted = address(settings), topology(settings)
    try:
        found = asyncio.run(look(where, wanted))
    except LinkError as error:
        raise Unusable(str(error)) from None
    yield f"Broker: RabbitMQ {found.version} at {found.host}, cluster {found.cluster}."
    for sentence in found.unreachable.values():
        yield f"Broker: {sentence}."
    for name, there in found.exchanges.items():
        what = "is there" if there else "is not there yet; serving will make it"
        yield f"Exchange: {name!r} {what}."
    yield f"Stream: {_stream_found(wanted, found)}"
    yield f"Retention: {_retention(wanted)}"
    if found.stream:
        yield f"Replicas: {_replicas_found(found)}"
    bound = ", ".join(f"{name}:{pattern}" for name, pattern in wanted.bindings)
    yield f"Bindings: {bound}; what is not bound yet, serving will bind."
    if found.dead is None:
        yield f"Dead letters: the queue {wanted.dead!r} is not there yet; serving will make it."
    else:
        yield f"Dead letters: the queue {wanted.dead!r} is there, and holds {found.dead}."
    yield f"Permissions: the user {where.user!r} may do all that serving does."


def _stream_found(wanted: Topology, found: Found) -> str:
    if not found.stream:
        return f"{wanted.stream!r} is not there yet; serving will make it."
    as_set = f"{wanted.stream!r} is there, as the settings have it, and "
    if found.oldest is None or found.newest is None:
        return f"{as_set}empty."
    at = told_time(found.oldest)
    since = (
        "" if at is None else f", the oldest from {dt.datetime.fromtimestamp(at, dt.UTC):%Y-%m-%d %H:%M} UTC"
    )
    return f"{as_set}holds the positions {found.oldest.offset + 1} to {found.newest.offset + 1}{since}."


def _retention(wanted: Topology) -> str:
    limits = []
    if wanted.max_age_seconds:
        limits.append(format_seconds(wanted.max_age_seconds))
    if wanted.max_bytes:
        limits.append(format_bytes(wanted.max_bytes))
    bound = " or ".join(limits) or "no limit"
    return (
        f"{bound}, in segments of {format_bytes(wanted.segment_bytes)}; a policy of the broker would win, "
        "and cannot be seen from here."
    )


def _replicas_found(found: Found) -> str:
    text = f"the stream can be read from {', '.join(found.replicas)}"
    return f"{text}, but not from {', '.join(found.bare)}." if found.bare else f"{text}."
