"""
Buckets: how the requests of a service are shared out on a broker. Pure.

Each service has so many buckets, by the token, and each bucket a quorum queue. The event by which a request
becomes ready to be worked on is published once, with a second routing key that only the bucket's queue is
bound to: so log and queue have it by one publish and one confirm. The second key travels as `BCC`, which the
broker takes out of the message (https://www.rabbitmq.com/sender-selected.html).
"""

from __future__ import annotations

from typing import Final

from msgspec import UNSET

from fanout import ring
from fanout.event import Event
from gateway.requests.changes import State, change_of, token_of
from gateway.requests.options import Options

BUCKETS: Final = 16
"""Of a service; a number that many counts of workers divide well, and that a broker has no trouble with."""

DELIVERIES: Final = 20
"""How often a request is given to workers that vanish with it, before it fails: it may be what kills them."""

TRIES: Final = "sluice-tries"
BACKOFF: Final = "sluice-backoff-ms"
RESULT_BYTES: Final = "sluice-result-bytes"
"""Headers of such a message: bounds that its gateway has and its worker needs."""


def bucket_of(token: str) -> int:
    """Return the bucket of a request."""
    return ring.bucket_of(token, BUCKETS)


def queue_of(stream: str, service: str, bucket: int) -> str:
    """Return the name of a bucket's queue."""
    return f"{stream}.requests.{service}.{bucket}"


def queues_of(stream: str, service: str) -> list[tuple[str, str]]:
    """Return the queues of a service, each with its routing key."""
    return [(queue_of(stream, service, each), key_of(stream, service, each)) for each in range(BUCKETS)]


def key_of(stream: str, service: str, bucket: int) -> str:
    """Return the routing key that brings a message into a bucket's queue; streams may share an exchange."""
    return f"$requests.{stream}.{service}.{bucket}"


def over_key(stream: str, service: str) -> str:
    """Return the routing key by which workers hear that a request was taken back."""
    return f"$requests.{stream}.{service}.over"


class Copies:
    """
    Says which events go to a queue as well, and with which headers.

    Args:
        stream: the name of the log's stream.
        options: the bounds that workers are told.
    """

    def __init__(self, stream: str, options: Options) -> None:
        self._stream = stream
        self._headers: dict[bytes, int] = {
            TRIES.encode(): options.tries,
            BACKOFF.encode(): round(options.backoff * 1000),
            RESULT_BYTES.encode(): options.max_result_bytes,
        }

    def __call__(self, event: Event) -> tuple[str, dict[bytes, int]] | None:
        """Return the second routing key of an event and its headers; None if it has none."""
        token = token_of(event)
        change = None if token is None else change_of(event)
        if token is None or change is None:
            return None
        if change.state is State.QUEUED and change.next is UNSET:
            return key_of(self._stream, change.service, bucket_of(token)), self._headers
        if change.state is State.CANCELLED:  # for good; what failed may be tried again
            return over_key(self._stream, change.service), {}
        return None
