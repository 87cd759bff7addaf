"""
Nchan's portable behaviours: the test bodies of the first part run against our gateway and against Debian's
Nchan.

Where both mean the same, both must pass the same test. Behaviours of Nchan's that our contract expresses in
another way follow, tested against ours; and at the end the differences, shown on both sides.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator

import pytest

from tests.support.clients import Address, Topics, fetch, open_subscriber, publish, until
from tests.support.host import address_of
from tests.support.nchan import TRANSPORTS, Nchan, OurGateway, Peer, running_nchan
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration

on_every_transport = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture(scope="module")
def nchan() -> Iterator[Nchan]:
    with running_nchan() as address:
        yield Nchan(address)


@pytest.fixture(params=["sluicegate", "nchan"])
def peer(request: pytest.FixtureRequest) -> Peer:
    """Our gateway, or Nchan."""
    if request.param == "nchan":
        nchan: Nchan = request.getfixturevalue("nchan")
        return nchan
    return OurGateway(address_of(request.getfixturevalue("own_process")))


async def joined(peer: Peer, channel: str, count: int = 1) -> None:
    """Wait until a channel has so many subscribers."""

    async def enough() -> bool:
        return await peer.waiting(channel) >= count

    await until(enough, f"{count} subscribe to {channel}")


# --- the same on both --------------------------------------------------------------------------------------


@on_every_transport
async def test_a_message_is_delivered(peer: Peer, topics: Topics, transport: str) -> None:
    """A subscriber that waits gets what is published, as it was published."""
    async with peer.subscribe(transport, topics()) as reader:
        reading = asyncio.ensure_future(reader.messages(1))
        await joined(peer, topics())
        await peer.publish(topics(), "hello, wörld")
        assert await reading == ["hello, wörld"]


@on_every_transport
async def test_messages_come_in_order(peer: Peer, topics: Topics, transport: str) -> None:
    """Everything that is published while a subscriber reads comes once and in order."""
    texts = [f"message {number}" for number in range(60)]
    async with peer.subscribe(transport, topics()) as reader:
        reading = asyncio.ensure_future(reader.messages(60))
        await joined(peer, topics())
        for text in texts:
            await peer.publish(topics(), text)
        assert await reading == texts


@on_every_transport
async def test_publishing_first_and_subscribing_then(peer: Peer, topics: Topics, transport: str) -> None:
    """What was published before anybody subscribed comes first, then what is published afterwards."""
    texts = [f"message {number}" for number in range(8)]
    for text in texts[:5]:
        await peer.publish(topics(), text)
    async with peer.subscribe(transport, topics(), oldest=True) as reader:
        assert await reader.messages(5) == texts[:5]
        for text in texts[5:]:
            await peer.publish(topics(), text)
        assert await reader.messages(3) == texts[5:]


@pytest.mark.parametrize("count", [2, 3, 5, 15, 100])
@on_every_transport
async def test_channels_are_multiplexed(peer: Peer, topics: Topics, transport: str, count: int) -> None:
    """One subscriber of many channels gets the messages of each in their order."""
    channels = [topics(f"c{number}") for number in range(count)]
    async with peer.subscribe(transport, *channels) as reader:
        reading = asyncio.ensure_future(reader.messages(3 * count))
        await joined(peer, channels[-1])
        for turn in range(3):
            for number, channel in enumerate(channels):
                await peer.publish(channel, f"{number} {turn}")
        received = [tuple(map(int, text.split())) for text in await reading]
    for number in range(count):
        assert [turn for channel, turn in received if channel == number] == [0, 1, 2]


@on_every_transport
async def test_channels_are_isolated(peer: Peer, topics: Topics, transport: str) -> None:
    """A subscriber gets nothing of another channel, also of one whose name begins the same."""
    async with peer.subscribe(transport, topics("a")) as reader:
        reading = asyncio.ensure_future(reader.messages(2))
        await joined(peer, topics("a"))
        await peer.publish(topics("a"), "1")
        await peer.publish(topics("ab"), "no")
        await peer.publish(topics("b"), "no")
        await peer.publish(topics("a"), "2")
        assert await reading == ["1", "2"]


@pytest.mark.parametrize(
    ("transport", "count"),
    [
        *((transport, count) for transport in TRANSPORTS for count in (3, 20)),
        ("longpoll", 400),
        ("websocket", 400),
    ],
)
async def test_a_message_is_broadcast(peer: Peer, topics: Topics, transport: str, count: int) -> None:
    """Every one of many subscribers gets every message."""
    texts = ["first", "second", "third"]
    async with contextlib.AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(peer.subscribe(transport, topics())) for _ in range(count)]
        reading = [asyncio.ensure_future(reader.messages(3)) for reader in readers]
        await joined(peer, topics(), count)
        for text in texts:
            await peer.publish(topics(), text)
        for received in await asyncio.gather(*reading):
            assert received == texts


@on_every_transport
async def test_a_subscriber_keeps_up_with_what_queues(peer: Peer, topics: Topics, transport: str) -> None:
    """While messages queue up behind a slow reader nothing is lost or changes places."""
    texts = [f"{number} {'x' * (number % 50)}" for number in range(300)]

    async def produce() -> None:
        for text in texts:
            await peer.publish(topics(), text)

    async with peer.subscribe(transport, topics(), oldest=True) as reader:
        producing = asyncio.ensure_future(produce())
        received: list[str] = []
        for size in (1, 50, 1, 100, 148):
            received += await reader.messages(size)
        await producing
    assert received == texts


@pytest.mark.parametrize("size", [10_000, 65_535, 65_536, 200_000, 800_000])
@pytest.mark.parametrize("transport", ["longpoll", "eventsource", "websocket"])
async def test_a_long_message_arrives_whole(peer: Peer, topics: Topics, transport: str, size: int) -> None:
    """Messages of up to most of a megabyte arrive whole, and the one behind them too."""
    text = ("0123456789" * (size // 10 + 1))[:size]
    async with peer.subscribe(transport, topics(), oldest=True) as reader:
        await peer.publish(topics(), text)
        await peer.publish(topics(), "end")
        assert await reader.messages(2) == [text, "end"]


@on_every_transport
async def test_messages_of_many_lengths(peer: Peer, topics: Topics, transport: str) -> None:
    """Every length in a row, around the borders of frames and chunks too, arrives as it was."""
    sizes = [*range(1, 40), *range(120, 132), 255, 256, 257, 4095, 4096, 4097, 16_383, 16_384, 16_385]
    texts = [chr(97 + number % 26) * size for number, size in enumerate(sizes)]
    async with peer.subscribe(transport, topics(), oldest=True) as reader:
        for text in texts:
            await peer.publish(topics(), text)
        assert await reader.messages(len(texts)) == texts


@pytest.mark.parametrize("transport", ["longpoll", "websocket"])
async def test_an_empty_message_is_a_message(peer: Peer, topics: Topics, transport: str) -> None:
    """A message without content is delivered between its neighbours."""
    async with peer.subscribe(transport, topics(), oldest=True) as reader:
        for text in ("before", "", "after"):
            await peer.publish(topics(), text)
        assert await reader.messages(3) == ["before", "", "after"]


@on_every_transport
async def test_aborted_subscribers_take_nothing_with_them(peer: Peer, topics: Topics, transport: str) -> None:
    """Half of the subscribers hang up in the middle: they are no longer counted, the rest get everything."""
    async with contextlib.AsyncExitStack() as stack:
        staying = [await stack.enter_async_context(peer.subscribe(transport, topics())) for _ in range(10)]
        reading = [asyncio.ensure_future(reader.messages(2)) for reader in staying]
        async with contextlib.AsyncExitStack() as leaving:
            readers = [
                await leaving.enter_async_context(peer.subscribe(transport, topics())) for _ in range(10)
            ]
            aborted = [asyncio.ensure_future(reader.messages(1)) for reader in readers]
            await joined(peer, topics(), 20)
            for task in aborted:
                task.cancel()
            await asyncio.gather(*aborted, return_exceptions=True)

        async def fewer() -> bool:
            return await peer.waiting(topics()) == 10

        await until(fewer, "those that left are not counted")
        await peer.publish(topics(), "one")
        await peer.publish(topics(), "two")
        for received in await asyncio.gather(*reading):
            assert received == ["one", "two"]


@pytest.mark.parametrize(
    "name", ["a b", "ü", "100%", "a+b", "a&b=c", "q?x", "#1 is no word", "日本", "a'b\"c", "~-_"]
)
@pytest.mark.parametrize("transport", ["longpoll", "eventsource"])
async def test_names_are_percent_encoded(peer: Peer, topics: Topics, transport: str, name: str) -> None:
    """A channel's name may have any characters in it, when they are encoded in the URL."""
    if "#" in name:
        name = "number 1"  # on our side a wildcard that is only part of a word is no topic
    channel = f"{topics('x')}{name}"
    async with peer.subscribe(transport, channel, oldest=True) as reader:
        await peer.publish(channel, name)
        assert await reader.messages(1) == [name]


async def test_a_message_expires(peer: Peer, topics: Topics) -> None:
    """After its time a message is not given to new subscribers; one without a time still is."""
    await peer.publish(topics(), "fleeting", seconds=1)
    async with peer.subscribe("longpoll", topics(), oldest=True) as reader:
        assert await reader.messages(1) == ["fleeting"]

    async def expired() -> bool:
        await peer.publish(topics(), "lasting")
        async with peer.subscribe("longpoll", topics(), oldest=True) as reader:
            first: list[str] = await reader.messages(1)
            return first == ["lasting"]

    await until(expired, "the message expires")


async def test_subscribers_of_nothing_wait(peer: Peer, topics: Topics) -> None:
    """Channels that do not exist yet can be waited for, together with one that does."""
    await peer.publish(topics("there"), "old")
    channels = (topics("not"), topics("there"), topics("neither"))
    async with peer.subscribe("longpoll", *channels) as reader:
        reading = asyncio.ensure_future(reader.messages(1))
        await joined(peer, topics("neither"))
        await peer.publish(topics("neither"), "new")
        assert await reading == ["new"]


# --- Nchan's behaviours in our contract --------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 30, 35, 150, 155])
async def test_one_poll_takes_everything_that_queued(own: Address, topics: Topics, count: int) -> None:
    """What Nchan's multipart long poll does: all queued messages in one answer, in order."""
    await publish(own, *({"topic": topics(), "data": number} for number in range(count)))
    answer = await fetch(own, "/v1/events", [("topic", topics()), ("cursor", "earliest"), ("limit", "1000")])
    assert [event["data"] for event in answer.json["events"]] == list(range(count))


async def test_an_interval_poll_is_304_until_there_is_something(own: Address, topics: Topics) -> None:
    """What Nchan's intervalpoll does: 304 while there is nothing new, then the message."""
    tag = (await fetch(own, "/v1/events", [("topic", topics())])).head["etag"]
    for number in range(3):
        for _ in range(2):
            response = await fetch(own, "/v1/events", [("topic", topics())], [("If-None-Match", tag)])
            assert response.status == 304
            tag = response.head["etag"]
        await publish(own, {"topic": topics(), "data": number})
        response = await fetch(own, "/v1/events", [("topic", topics())], [("If-None-Match", tag)])
        assert [event["data"] for event in response.json["events"]] == [number]
        tag = response.head["etag"]


async def test_many_channels_are_published_to_in_one_request(own: Address, topics: Topics) -> None:
    """What Nchan's publishing to 255 channels does: one request, an event for each topic."""
    channels = [topics(f"c{number}") for number in range(256)]
    answer = await publish(own, *({"topic": channel, "data": channel} for channel in channels))
    assert answer["accepted"] == 256
    for channel in (channels[0], channels[128], channels[255]):
        async with open_subscriber(own, "sse", channel, cursor="earliest") as subscriber:
            assert await subscriber.data(1) == [channel]


async def test_a_cursor_survives_the_ways_it_is_written(own: Address, topics: Topics) -> None:
    """What Nchan's url-encoded message ids test: a cursor may be percent-encoded, character by character."""
    cursor = (await publish(own, {"topic": topics(), "data": 1}))["cursor"]
    await publish(own, {"topic": topics(), "data": 2})
    encoded = "".join(f"%{ord(character):02X}" for character in cursor)
    response = await fetch(own, f"/v1/events?topic={topics()}&cursor={encoded}")
    assert [event["data"] for event in response.json["events"]] == [2]
    assert re.fullmatch(r"[A-Za-z0-9._~-]+", cursor), "it needs no encoding at all"


async def test_a_channel_tells_its_messages_and_subscribers(own: Address, topics: Topics) -> None:
    """What Nchan's channel info tells: how many events a topic has, how many subscribe."""
    await publish(own, *({"topic": topics(), "data": number} for number in range(5)))
    async with open_subscriber(own, "sse", topics()), open_subscriber(own, "websocket", topics()):
        listed = (await fetch(own, "/v1/topics", [("limit", "1000")])).json
        assert {"topic": topics(), "events": 5} in listed["topics"]
        assert {"pattern": topics(), "connections": 2} in listed["subscriptions"]


async def test_a_publisher_hears_itself(own: Address, topics: Topics) -> None:
    """What Nchan's pubsub locations do: a WebSocket that publishes to its own topic gets the event."""
    async with open_subscriber(own, "websocket", topics()) as socket:
        for number in range(20):
            await socket.send({"op": "publish", "ref": number, "topic": topics(), "data": number})
        messages = [await socket.next() for _ in range(40)]
    assert [each["data"] for each in messages if "control" not in each] == list(range(20))
    assert [each["ref"] for each in messages if "control" in each] == list(range(20))


# --- known differences, on both sides ----------------------------------------------------------------------


async def test_what_left_the_buffer_is_lost_silently_there_and_announced_here(nchan: Nchan) -> None:
    """
    A client comes back with a cursor older than what is kept.

    Nchan gives it the oldest message it still has, and no sign that others are missing. We say which stretch
    is missing, and why.
    """
    channel = "difference.buffer"
    async with nchan.subscribe("longpoll", channel, oldest=True) as reader:
        await nchan.post("few", channel, "0")
        assert await reader.messages(1) == ["0"]
        for number in range(1, 8):
            await nchan.post("few", channel, str(number))
        response = await reader.ask()
        assert (response.status, response.body) == (200, b"5"), "1 to 4 are gone, and nothing says so"
        assert not any("gap" in name or "miss" in name for name, _ in response.head.fields)

    with GatewayProcess("memory:", retention_events=3, window_events=1) as process:
        ours = address_of(process)
        cursor = (await publish(ours, {"topic": "t", "data": 0}))["cursor"]
        for number in range(1, 40):
            await publish(ours, {"topic": "t", "data": number})
        answer = (await fetch(ours, "/v1/events", [("topic", "t"), ("cursor", cursor)])).json
        assert answer["gap"]["reason"] == "expired"
        assert answer["gap"]["from"].split("-")[1] == cursor.split("-")[1]
        first = answer["events"][0]
        assert int(first["cursor"].split("-")[1]) == int(answer["gap"]["to"].split("-")[1]) + 1


async def test_a_poll_that_times_out_loses_half_its_cursor_there_and_keeps_it_here(
    nchan: Nchan, own: Address, topics: Topics
) -> None:
    """
    A long poll ends without a message.

    Nchan answers 408 without `Last-Modified`, so that half of the cursor is gone unless the client kept it.
    We answer 200 with a cursor that is as good as any.
    """
    await nchan.publish(topics(), "message")
    async with nchan.subscribe("longpoll", topics(), oldest=True) as reader:
        await reader.messages(1)
        cursor = reader.cursor
    response = await fetch(nchan.address, f"/sub/timeout/{topics()}", (), cursor)
    assert response.status == 408
    assert "last-modified" not in response.head

    ours = (await fetch(own, "/v1/events", [("topic", topics()), ("wait", "0.2")])).json
    await publish(own, {"topic": topics(), "data": 1})
    answer = (await fetch(own, "/v1/events", [("topic", topics()), ("cursor", ours["cursor"])])).json
    assert [event["data"] for event in answer["events"]] == [1]


async def test_a_cursor_that_is_none_starts_over_there_and_is_refused_here(
    nchan: Nchan, own: Address, topics: Topics
) -> None:
    """
    A poll comes with nonsense in place of a cursor.

    Nchan begins at the oldest message again, so a client with a broken cursor gets everything twice; of few
    forms it says 400. We always say 400.
    """
    await nchan.publish(topics(), "message")
    since = ("If-Modified-Since", "Thu, 01 Jan 2026 00:00:00 GMT")
    for tag, status in (("nonsense", 200), ("99999999999", 200), ("[0],x", 400)):
        given = [since, ("If-None-Match", tag)]
        assert (await fetch(nchan.address, f"/sub/oldest/{topics()}", (), given)).status == status
        ours = await fetch(own, "/v1/events", [("topic", topics())], [("If-None-Match", f'"{tag}"')])
        assert ours.status == 400


async def test_an_entity_tag_is_no_entity_tag_there_and_one_here(
    nchan: Nchan, own: Address, topics: Topics
) -> None:
    """Nchan's `Etag` lacks the quotes that RFC 9110 8.8.3 wants; ours has them, and is the whole cursor."""
    await nchan.publish(topics(), "message")
    async with nchan.subscribe("longpoll", topics(), oldest=True) as reader:
        head = (await reader.ask()).head
    assert not head["etag"].startswith('"')
    ours = await fetch(own, "/v1/events", [("topic", topics())])
    assert ours.head["etag"] == f'"{ours.json["cursor"]}"'
