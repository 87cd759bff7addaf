"""Which events go to a queue as well, to which, and when they are durable."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import Raw
from pamqp import header

from fanout.event import Event
from fanout.ring import Ring
from gateway.amqp.frames import Confirm
from gateway.backbone import topology
from gateway.requests.buckets import BUCKETS, Copies, bucket_of, key_of, over_key, queue_of
from gateway.requests.changes import Change, State, new_token
from gateway.requests.options import Options
from gateway.settings import Settings
from gateway.stream_messages import Outgoing
from gateway.stream_writer import Writer
from tests.support.requests import Changes

SETTINGS = Settings(data="memory:", backbone="amqp://broker", services="reports,mail", request_tries=7)
OPTIONS = Options.of(SETTINGS)
FAR = datetime(2100, 1, 1, tzinfo=UTC)


def event_of(state: State, token: str, **members: Any) -> Event:
    return Changes().event(token, Change(state=state, service="reports", **members))


def test_buckets_are_those_of_the_ring() -> None:
    """Workers, replicas and queues agree on the bucket of a token, and all have about the same."""
    tokens = [new_token() for _ in range(16_000)]
    ring = Ring((), buckets=BUCKETS)
    assert all(bucket_of(token) == ring.bucket(token) for token in tokens)
    counts = Counter(map(bucket_of, tokens))
    assert len(counts) == BUCKETS
    assert max(counts.values()) < 1200


def test_every_queue_is_declared() -> None:
    """For each service and bucket, with the key by which its messages come."""
    declared = topology(SETTINGS).queues
    assert len(declared) == len(set(declared)) == 2 * BUCKETS
    assert ("sluicegate.requests.mail.3", key_of("sluicegate", "mail", 3)) in declared
    assert queue_of("sluicegate", "mail", 3) == "sluicegate.requests.mail.3"
    assert topology(Settings(data="memory:", backbone="amqp://broker")).queues == ()


@pytest.mark.parametrize(
    ("state", "members", "where"),
    [
        (State.QUEUED, {"expires": FAR, "data": Raw(b"1")}, "bucket"),
        (State.QUEUED, {"attempt": 2, "failures": 1}, "bucket"),
        (State.QUEUED, {"attempt": 2, "retry": True, "expires": FAR}, "bucket"),
        (State.QUEUED, {"attempt": 2, "next": FAR}, None),
        (State.RUNNING, {"attempt": 1}, None),
        (State.DONE, {"attempt": 1, "result": Raw(b"1")}, None),
        (State.CANCELLED, {"attempt": 1}, "over"),
        (State.FAILED, {"attempt": 1}, None),
    ],
)
def test_what_is_ready_goes_to_its_bucket(state: State, members: dict[str, Any], where: str | None) -> None:
    """And what was taken back to all of them; nothing else goes anywhere."""
    token = new_token()
    copy = Copies("s", OPTIONS)(event_of(state, token, **members))
    keys = {"bucket": key_of("s", "reports", bucket_of(token)), "over": over_key("s", "reports"), None: None}
    assert (None if copy is None else copy[0]) == keys[where]
    if where == "bucket":
        assert copy is not None
        assert copy[1][b"sluice-tries"] == 7


@pytest.mark.parametrize("topic", ["orders.1", "requests.x", f"requests.rq_{'a' * 28}"])
def test_other_events_go_nowhere_else(topic: str) -> None:
    """Whatever their topic looks like."""
    event = Event(topic, b'"topic":"x","id":"1","type":"message","time":"","data":1', 0, 1, None, 0, None)
    assert Copies("s", OPTIONS)(event) is None


def test_the_broker_is_told_by_a_header() -> None:
    """`BCC` is a list of texts, as AMQP has them; the bounds of the worker are numbers."""
    outgoing = Outgoing("origin")
    outgoing.copies = Copies("s", OPTIONS)
    event = ready()
    _, properties, _ = outgoing.message(event, 1)
    read = header.ContentHeader()
    read.unmarshal(b"\x00\x3c\x00\x00" + bytes(8) + properties)
    assert read.properties.headers is not None
    assert read.properties.headers["BCC"] == [key_of("s", "reports", bucket_of(str(event.key)))]
    assert read.properties.headers["sluice-tries"] == 7
    assert read.properties.headers["key"] == event.key


class World:
    """A writer without a broker: what it wrote is confirmed and read back when the test says so."""

    def __init__(self) -> None:
        self.writer = Writer(topology(SETTINGS), 1 << 20, 1000, lambda _: None)
        self.writer.outgoing.copies = Copies("s", OPTIONS)
        self.sent = 0

    def publish(self, *events: Event) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writer.publish(list(events), future)
        self.sent += len(events)
        return future

    def read_back(self, number: int) -> None:
        claimed = self.writer.claim(number)
        assert claimed is not None
        if not claimed[0].left:
            self.writer.resolve([claimed[0]])

    def confirm(self, tag: int, *, multiple: bool = False) -> None:
        self.writer.confirmed([Confirm(tag, multiple, positive=True)])


def ordinary() -> Event:
    return event_of(State.RUNNING, new_token(), attempt=1)


def ready() -> Event:
    return event_of(State.QUEUED, new_token(), expires=FAR, data=Raw(b"1"))


async def test_what_goes_to_a_queue_waits_for_both() -> None:
    """It is durable when it was read back and confirmed, in either order; anything else when read back."""
    world = World()
    plain = world.publish(ordinary())
    world.read_back(1)
    assert plain.done()
    first, second = world.publish(ready()), world.publish(ready())
    world.read_back(2)
    assert not first.done()
    world.confirm(2)
    assert first.done()
    world.confirm(3)
    assert not second.done()
    world.read_back(3)
    assert second.done()


async def test_one_confirm_may_be_for_many() -> None:
    """Marks count, too: they are confirmed on the same channel."""
    world = World()
    future = world.publish(ready(), ordinary(), ready())
    for number in (1, 2, 3):
        world.read_back(number)
    world.confirm(2, multiple=True)
    assert not future.done()
    world.confirm(3, multiple=True)
    assert future.done()
    world.writer.fail("the connection is lost", 1.0)
    assert world.writer.futures() == []


async def test_a_lost_connection_fails_what_was_not_confirmed() -> None:
    """The client asks again, with the same key."""
    world = World()
    future = world.publish(ready())
    world.read_back(1)
    world.writer.fail("the connection is lost", 1.0)
    with pytest.raises(Exception, match="the connection is lost"):
        await future
    world.confirm(1)
