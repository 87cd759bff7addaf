"""The stream log on a real broker: one order for all replicas, and a sentence for whatever cannot be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from gateway.amqp.topology import Topology
from gateway.log import LogBusy, LogDamaged, LogUnavailable
from tests.support.rabbitmq import Broker
from tests.support.stream_logs import (
    Replica,
    event,
    new_topology,
    producer,
    raw_producer,
    replicas,
    send,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as node:
        yield node


@pytest.fixture
def topology() -> Topology:
    return new_topology()


async def _dead(url: str, topology: Topology) -> list[Any]:
    """Return the dead letters."""
    async with producer(url) as channel:
        queue = await channel.get_queue(topology.dead)
        found = []
        while (message := await queue.get(fail=False)) is not None:
            await message.ack()
            found.append(message)
        return found


async def test_replicas_that_create_a_stream_together_agree(broker: Broker, topology: Topology) -> None:
    """Replicas that start at once on an empty broker settle on one epoch and see the same events."""
    async with replicas(broker.url, topology, 3) as three:
        assert len({each.log.epoch for each in three}) == 1
        await asyncio.gather(
            *(each.log.append([event(data=b"%d" % number) for number in range(50)]) for each in three)
        )
        head = max(each.log.head for each in three)
        for each in three:
            await each.until(lambda each=each: each.log.head == head, "not all events came")  # type: ignore[misc]
        assert len(three[0].facts()) == 150
        assert three[0].facts() == three[1].facts() == three[2].facts()
        assert [each.position for each in three[0].events] == sorted(
            each.position for each in three[0].events
        )


async def test_an_append_is_over_when_it_was_delivered(broker: Broker, topology: Topology) -> None:
    """Once an append resolves, its events have their positions, the hub has them and the head is there."""
    async with replicas(broker.url, topology, 1) as (one,):
        mine = [event(data=b"%d" % number) for number in range(10)]
        await one.log.append(mine)
        assert one.events == mine
        assert (one.log.head, one.log.head_tag) == (mine[-1].position, mine[-1].tag)
        assert [each.position for each in mine] == list(range(mine[0].position, mine[0].position + 10))
        await one.log.append([])


async def test_a_restarted_replica_serves_the_same(broker: Broker, topology: Topology) -> None:
    """A replica that starts later has epoch, head and every event as those have that were there."""
    async with replicas(broker.url, topology, 1) as (old,):
        for number in range(30):
            await old.log.append([event(f"orders.{number}", b'"%b"' % (b"x" * 3000), key="k", ttl=60)])
        async with replicas(broker.url, topology, 1, tail_bytes=40_000) as (new,):
            assert (new.log.epoch, new.log.head, new.log.head_tag) == (
                old.log.epoch,
                old.log.head,
                old.log.head_tag,
            )
            assert 0 < len(new.tail) < 30
            assert new.facts() == old.facts()[-len(new.tail) :]
            read = await new.everything()
            assert [(each.position, each.body) for each in read] == old.facts()
            assert [(each.key, each.expires, each.time) for each in read] == [
                (each.key, each.expires, each.time) for each in old.events
            ]
            assert await new.log.read(new.log.head, 1) == []


async def test_positions_that_hold_nothing_do_not_show(broker: Broker, topology: Topology) -> None:
    """What is read are events; where there are none, one that has expired says how far it was read."""
    async with replicas(broker.url, topology, 2) as (one, _):
        await one.log.append([event()])
        (only,) = await one.log.read(0, 100_000)
        assert only.position == one.log.head
        assert only.topic
        assert [each.position for each in await one.log.read(0, 1)] == [one.log.head]
    empty = new_topology()
    async with replicas(broker.url, empty, 1):
        pass
    async with replicas(broker.url, empty, 1) as (one,):
        (nothing,) = await one.log.read(0, 100_000)
        assert nothing.position == one.log.head > 0
        assert (nothing.topic, nothing.expires) == ("", 1)


@pytest.mark.parametrize(
    ("body", "properties", "members"),
    [
        (b'{"a": [1, 2.50]}', {}, {"data": {"a": [1, 2.5]}}),
        (b'{"a":1}', {"content_type": "application/json"}, {"data": {"a": 1}}),
        ("grüße".encode(), {}, {"data": "grüße"}),
        ("grüße".encode("latin-1"), {"content_type": "text/plain; charset=latin1"}, {"data": "grüße"}),
        (b"\xff\x00", {}, {"data_base64": "/wA="}),
        (
            b"\x1f\x8b",
            {"content_type": "application/json", "content_encoding": "gzip"},
            {"data_base64": "H4s="},
        ),
        (b"", {}, {"data": None}),
        (b"1", {"message_id": "m-ä", "type": "t"}, {"id": "m-ä", "type": "t", "data": 1}),
        (b"1", {"headers": {"key": "k"}}, {"key": "k", "data": 1}),
        (b"1", {"headers": {"key": 7}}, {"key": "7", "data": 1}),
        (b"1", {"timestamp": 1_700_000_000}, {"time": "2023-11-14T22:13:20.000Z", "data": 1}),
        (b"1", {"headers": {"n": None, "list": [1], "table": {"a": 1}, "f": 1.5, "b": True}}, {"data": 1}),
        (b"1", {"headers": {"sluice": "nonsense"}, "reply_to": "r", "correlation_id": "c"}, {"data": 1}),
    ],
)
async def test_a_plain_message_is_an_event(
    broker: Broker, topology: Topology, body: bytes, properties: dict[str, Any], members: dict[str, Any]
) -> None:
    """A message of a producer who knows nothing of us is an event, the same live and read later."""
    async with replicas(broker.url, topology, 1) as (one,), producer(broker.url) as channel:
        await send(channel, topology, "plain.topic", body, **properties)
        await one.until(lambda: len(one.events) == 1, "the message did not come")
        seen = json.loads(b"{%b}" % one.events[0].body)
        assert seen["topic"] == "plain.topic"
        assert seen["type"] == members.get("type", "message")
        assert {name: seen[name] for name in members} == members
        read = (await one.everything())[0]
        assert json.loads(b"{%b}" % read.body) | {"time": 0} == seen | {"time": 0}


async def test_a_lifetime_counts(broker: Broker, topology: Topology) -> None:
    """The expiration of a message is the end of its event."""
    async with replicas(broker.url, topology, 1) as (one,), producer(broker.url) as channel:
        await send(channel, topology, "a", b"1", expiration=60)
        await one.until(lambda: len(one.events) == 1, "the message did not come")
        assert one.events[0].expires == one.events[0].time + 60_000


async def test_what_cannot_be_an_event_is_buried(broker: Broker, topology: Topology) -> None:
    """Each message that cannot be an event goes to the dead letters with its reason, and the log goes on."""
    bad: list[tuple[str, bytes, dict[str, Any], str]] = [
        ("two..dots", b"1", {}, "empty word"),
        ("star.*", b"1", {}, "wildcard"),
        ("a", b"{", {"content_type": "application/json"}, "JSON"),
        ("a", b"x" * 150_000, {}, "more than"),
        ("a", b"x" * 250_000, {}, "250000 bytes"),
        ("a", b"1", {"message_id": "line\nbreak"}, "U+000A"),
        ("a", b"1", {"headers": {"key": "k" * 300}}, "300 characters"),
    ]
    async with replicas(broker.url, topology, 1) as (one,), producer(broker.url) as channel:
        for topic, body, properties, _ in bad:
            await send(channel, topology, topic, body, **properties)
        await one.log.append([event("good")])
        assert [each.topic for each in one.events] == ["good"]
        assert one.log.statistics().dead == len(bad)
        await one.until(lambda: one.log.statistics().unburied == 0, "they were not buried")
        dead = await _dead(broker.url, topology)
        assert len(dead) == len(bad)
        for message, (topic, _, _, reason) in zip(dead, bad, strict=True):
            assert reason in message.headers["x-sluice-reason"]
            assert message.headers["x-sluice-routing-key"] == topic
        assert dead[0].body == b"1"
        assert [each.topic for each in await one.everything()] == ["good"]


async def test_replicas_share_the_burying(broker: Broker, topology: Topology) -> None:
    """What cannot be an event is buried by one replica for all, also what came while none was there."""
    async with producer(broker.url) as channel:
        async with replicas(broker.url, topology, 1):
            pass
        await send(channel, topology, "before..them", b"1")
        async with replicas(broker.url, topology, 3) as three:
            for number in range(50):
                await send(channel, topology, f"bad..{number}", b"1")
            for each in three:
                await each.until(lambda each=each: each.log.statistics().dead == 50, "not all came")  # type: ignore[misc]
                await each.until(lambda each=each: each.log.statistics().unburied == 0, "not all were buried")  # type: ignore[misc]
        async with replicas(broker.url, topology, 1) as (late,):
            assert (late.log.statistics().dead, late.log.statistics().unburied) == (0, 0)
        dead = await _dead(broker.url, topology)
    # Two that look at the same moment make a second copy, which has the same name.
    assert len({each.message_id for each in dead}) == 51
    assert len(dead) < 3 * 51


async def test_an_id_that_comes_twice_is_one_event(broker: Broker, topology: Topology) -> None:
    """An id published by two replicas and a plain producer is one event everywhere, also when read later."""
    async with replicas(broker.url, topology, 2) as (one, two), producer(broker.url) as channel:
        first, second = event(id="same", data=b"1"), event(id="same", data=b"2")
        await asyncio.gather(one.log.append([first]), two.log.append([second]))
        assert first.position == second.position
        await send(channel, topology, "orders.1", b"3", message_id="same")
        await one.log.append([event(data=b"4")])
        await two.until(lambda: two.log.head == one.log.head, "not all events came")
        assert len(one.events) == 2
        assert one.facts() == two.facts()
        assert [each.position for each in await one.everything()] == [each.position for each in one.events]
        async with replicas(broker.url, topology, 1) as (three,):
            assert three.facts() == one.facts()


async def test_a_time_is_found(broker: Broker, topology: Topology) -> None:
    """The position before a time is found, also at the ends and between events."""
    async with replicas(broker.url, topology, 1) as (one,):
        base = 1_700_000_000_000
        for number in range(20):
            each = event()
            each.time = base + number * 10
            await one.log.append([each])
        positions = [each.position for each in one.events]
        assert await one.log.find_time(base + 55) == positions[5]
        assert await one.log.find_time(base + 60) == positions[5]
        assert await one.log.find_time(base + 61) == positions[6]
        assert await one.log.find_time(base) < positions[0]
        assert await one.log.find_time(base + 1000) == one.log.head


async def test_a_position_ahead_is_waited_for(broker: Broker, topology: Topology) -> None:
    """A position that another replica gave out is reached; one that the stream never had is recognised."""
    async with replicas(broker.url, topology, 2) as (one, two):
        await one.log.append([event()])
        assert await two.log.reach(one.log.head)
        assert not await two.log.reach(one.log.head + 1000)


async def test_a_full_queue_refuses(broker: Broker, topology: Topology) -> None:
    """Beyond its bound the log takes no more; the first call of any size is taken."""
    async with replicas(broker.url, topology, 1, queue_events=10) as (one,):
        first = one.log.append([event() for _ in range(25)])
        with pytest.raises(LogBusy) as caught:
            one.log.append([event()])
        assert caught.value.retry_after > 0
        await first
        await one.log.append([event()])
        assert len(one.events) == 26


async def test_a_blocked_broker_refuses_and_goes_on(broker: Broker, topology: Topology) -> None:
    """While the broker is short of memory producers are told to come back; reading goes on."""
    async with replicas(broker.url, topology, 1) as (one,):
        await one.log.append([event()])
        broker.raise_alarm()
        try:
            # A broker says that it is blocked to whoever publishes; the alarm takes a moment to get around.
            waiting: list[asyncio.Future[None]] = []
            while one.log._writer.blocked_by is None:
                assert len(waiting) < 1000, "the broker did not say that it is blocked"
                waiting.append(one.log.append([event()]))
                await asyncio.sleep(0.02)
            with pytest.raises(LogUnavailable, match="takes no events now"):
                await one.log.append([event()])
            assert len(await one.everything()) >= 1
        finally:
            broker.lower_alarm()
        await asyncio.gather(*waiting)
        await one.until(lambda: one.log._writer.blocked_by is None, "the broker stayed blocked")
        await one.log.append([event()])
        assert len(one.events) == len(waiting) + 2


async def test_a_stream_made_anew_is_noticed(broker: Broker, topology: Topology) -> None:
    """When the stream is deleted there is soon one again, and every replica says that it is another."""
    async with replicas(broker.url, topology, 2) as both, producer(broker.url) as channel:
        await both[0].log.append([event(data=b"%d" % number) for number in range(100)])
        before = both[0].log.epoch
        await channel.queue_delete(topology.stream)
        for each in both:
            await each.until(lambda each=each: len(each.epochs) == 2, "it did not notice")  # type: ignore[misc]
        assert both[0].epochs == both[1].epochs == [before, both[0].log.epoch]
        assert both[0].log.epoch != before
        assert both[0].log.head < 100
        for each in both:
            await each.until(lambda each=each: each.log.trouble() is None, "it did not recover")  # type: ignore[misc]
        await both[1].log.append([event(data=b'"new"')])
        await both[0].until(lambda: both[0].log.head == both[1].log.head, "the new event did not come")


@pytest.mark.parametrize(
    ("login", "vhost", "change", "sentence"),
    [
        ("guest:wrong@", "", {}, "wrong name or password"),
        ("", "nowhere", {}, "virtual host 'nowhere' does not exist"),
        ("", "", {"max_bytes": 5_000_000}, "exists with other arguments"),
        ("", "", {"bindings": (("no-such-exchange", "#"),)}, "there is no such thing"),
        ("", "", {"exchange": "amq.fanout"}, "exists with other arguments"),
    ],
)
async def test_what_waiting_does_not_change_ends_the_start(
    broker: Broker, topology: Topology, login: str, vhost: str, change: dict[str, Any], sentence: str
) -> None:
    """A start that no waiting would help is refused with a sentence that names the cause and no password."""
    async with replicas(broker.url, topology, 1):
        pass
    url = f"amqp://{login}127.0.0.1:{broker.port}/{vhost}"
    one = Replica(url, replace(topology, **change))
    try:
        with pytest.raises(LogDamaged, match=sentence) as caught:
            await one.start()
        assert "wrong@" not in str(caught.value)
    finally:
        await one.log.close()


async def test_a_flood_does_not_keep_a_replica_from_beginning(broker: Broker, topology: Topology) -> None:
    """A replica that starts behind a backlog of messages, more than it is sent at once, finds its way."""
    async with replicas(broker.url, topology, 1):
        pass
    async with producer(broker.url) as channel:
        await channel.queue_delete(topology.stream)
    async with raw_producer(broker.url) as raw:
        one = Replica(broker.url, topology)
        starting = asyncio.create_task(one.start())
        for _ in range(200):
            raw.send(topology.exchange, *[(b"flood", b"\x00\x00", b"x" * 500)] * 200)
            await asyncio.sleep(0.005)
        async with asyncio.timeout(60):
            await starting
        await raw.settle()
        await one.log.append([event("the.last")])
        assert one.log.trouble() is None
        assert len({each.position for each in one.events}) == len(one.events)
        await one.log.close()


async def test_a_crowd_ahead_writes_few_marks(broker: Broker, topology: Topology) -> None:
    """However many clients come with positions ahead at once, the stream gets a mark or two for them."""
    async with replicas(broker.url, topology, 1) as (one,):
        await one.log.append([event()])
        head = one.log.head
        answers = await asyncio.gather(*(one.log.reach(head + 1000) for _ in range(500)))
        assert not any(answers)
        await one.log.append([event()])
        assert one.log.head - head < 20


async def test_a_crowd_reads_in_turns(broker: Broker, topology: Topology) -> None:
    """Many who read at different places at once all get what is there, over few channels."""
    async with replicas(broker.url, topology, 1) as (one,):
        await one.log.append([event(data=b"%d" % number) for number in range(2000)])
        first = one.events[0].position
        open_channels = one.log._scans._scans
        reads = [asyncio.create_task(one.log.read(first + 30 * number, 2000)) for number in range(60)]
        most = 0
        while not all(each.done() for each in reads):
            most = max(most, len(open_channels))
            await asyncio.sleep(0)
        for number, each in enumerate(reads):
            assert each.result()[0].position == first + 30 * number + 1
        assert 1 < most <= 12


async def test_an_epoch_outlives_its_first_mark(broker: Broker) -> None:
    """When retention has removed what is old, with every mark in it, a new replica finds the same epoch."""
    topology = new_topology(max_bytes=4_000_000, segment_bytes=1_000_000)
    async with replicas(broker.url, topology, 1) as (one,):
        for _ in range(20):
            await one.log.append([event(data=b'"%b"' % (b"x" * 50_000)) for _ in range(10)])
            await asyncio.sleep(0.15)  # the log looks now and then whether it is time
        await one.log._history.probe()
        assert one.log.first > 100, "retention removed nothing"
        async with replicas(broker.url, topology, 1) as (two,):
            assert two.log.epoch == one.log.epoch


async def test_what_came_through_before_a_loss_is_known_at_once(topology: Topology) -> None:
    """After a broker was killed, nothing is published before it is known what had come through."""
    with Broker() as broker:
        async with replicas(broker.url, topology, 1) as (one,):
            await asyncio.to_thread(broker.settle)
            await one.until(lambda: one.log.trouble() is None, "it did not come back")
            reader = one.log._links[1]
            await one.log.append([event()])
            # Nothing is read for a while: what is published meanwhile is in the stream, and not known here.
            assert reader._transport is not None
            reader._transport.pause_reading()
            waiting = one.log.append([event(data=b"%d" % number) for number in range(100)])
            await asyncio.sleep(1)
            await asyncio.to_thread(broker.kill)
            with pytest.raises(LogUnavailable):
                await waiting
            assert len(one.events) == 1
            await asyncio.to_thread(broker.start)
            await one.until(lambda: one.log.trouble() is None, "it did not come back")
            assert len(one.events) == 101
