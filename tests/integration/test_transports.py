"""What holds on every transport and in every shell: the same events, cursors, gaps and promises."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest

from tests.support.certificates import Certificates
from tests.support.clients import (
    STREAMS,
    TRANSPORTS,
    Address,
    Message,
    Refused,
    Tcp,
    Topics,
    fetch,
    handshake_bytes,
    open_subscriber,
    publish,
    read_response,
    request_bytes,
    until,
)
from tests.support.host import HostProcess, address_of
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration


@pytest.fixture(params=["own", "tls", "mounted", "bare"])
def gateway(request: pytest.FixtureRequest) -> Address:
    """The address of a gateway in each of its shells, and encrypted."""
    return address_of(request.getfixturevalue(f"{request.param}_process"))


on_every_transport = pytest.mark.parametrize("transport", TRANSPORTS)
on_every_stream = pytest.mark.parametrize("transport", STREAMS)


def numbered(topic: str, *numbers: int) -> list[Message]:
    """Return events of a topic whose data is a number."""
    return [{"topic": topic, "data": number} for number in numbers]


# --- receiving ---------------------------------------------------------------------------------------------


@on_every_transport
async def test_an_event_reaches_a_subscriber_as_it_was_published(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """A subscriber gets topic, id, type, key, data and a time, and the cursor that the publisher was told."""
    event = {
        "topic": topics(),
        "id": topics("id"),
        "type": "created",
        "key": "k",
        "data": {"ä": [1, None, "x"]},
    }
    async with open_subscriber(gateway, transport, topics()) as subscriber:
        before = datetime.now(UTC)
        answer = await publish(gateway, event)
        [received] = await subscriber.events(1)
    moment = datetime.fromisoformat(received.pop("time"))
    assert before.timestamp() - 1 <= moment.timestamp() <= time.time() + 1
    assert received == {**event, "cursor": answer["cursor"]}


@on_every_transport
async def test_what_is_no_json_comes_as_base64(gateway: Address, topics: Topics, transport: str) -> None:
    """Data published as octets arrives as `data_base64`, and there is no `data`."""
    async with open_subscriber(gateway, transport, topics()) as subscriber:
        headers = [("Content-Type", "application/octet-stream")]
        response = await fetch(
            gateway, f"/v1/topics/{topics()}", (), headers, method="POST", body=b"\x00\xff\x01"
        )
        assert response.status == 202, response
        [received] = await subscriber.events(1)
    assert received["data_base64"] == "AP8B"
    assert "data" not in received


@on_every_transport
async def test_a_subscriber_gets_its_topics_and_nothing_else(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """Of several topics and patterns each matching event comes once, in the order of the log."""
    root = topics("root")
    wanted = (f"{root}.a", f"{root}.*.x", f"{root}.deep.#", f"{root}.a")
    names = ["a", "b", "b.x", "b.y", "deep", "deep.1", "deep.1.x", "deep.x", "a.a", "a"]
    async with open_subscriber(gateway, transport, *wanted) as subscriber:
        await publish(gateway, *({"topic": f"{root}.{name}", "data": name} for name in names))
        assert await subscriber.data(7) == ["a", "b.x", "deep", "deep.1", "deep.1.x", "deep.x", "a"]


@on_every_transport
async def test_cursors_increase_and_events_come_in_order(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """Events of many publishes come in the order of their cursors, which strictly increase."""
    async with open_subscriber(gateway, transport, topics()) as subscriber:
        for start in range(0, 300, 30):
            await publish(gateway, *numbered(topics(), *range(start, start + 30)))
        received = await subscriber.events(300)
    assert [event["data"] for event in received] == list(range(300))
    positions = [int(event["cursor"].split("-")[1]) for event in received]
    assert all(one < other for one, other in pairwise(positions))


@on_every_transport
async def test_a_large_event_arrives_whole(gateway: Address, topics: Topics, transport: str) -> None:
    """An event of almost the largest size arrives, and the small one behind it."""
    text = "0123456789abcdé\u2028" * 40_000
    async with open_subscriber(gateway, transport, topics()) as subscriber:
        await publish(gateway, {"topic": topics(), "data": text}, {"topic": topics(), "data": "small"})
        assert await subscriber.data(2) == [text, "small"]


@on_every_stream
async def test_nothing_is_missed_once_the_stream_began(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """What is published right after the head (SSE, NDJSON) or the welcome (WebSocket) arrives, every time."""
    for number in range(20):
        subscribing = open_subscriber(gateway, transport, topics(), welcomed=transport == "websocket")
        async with subscribing as subscriber:
            await publish(gateway, {"topic": topics(), "data": number})
            if transport != "websocket":
                await subscriber.control("welcome")
            assert await subscriber.data(1) == [number]


@on_every_transport
async def test_many_subscribers_of_one_topic_all_get_everything(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """Twenty clients of one topic each get the same bytes of the same events."""

    async def take(begun: asyncio.Barrier) -> list[Message]:
        async with open_subscriber(gateway, transport, topics()) as subscriber:
            await begun.wait()
            events: list[Message] = await subscriber.events(50)
            return events

    begun = asyncio.Barrier(21)
    takers = [asyncio.ensure_future(take(begun)) for _ in range(20)]
    await begun.wait()
    for start in range(0, 50, 10):
        await publish(gateway, *numbered(topics(), *range(start, start + 10)))
    first, *others = await asyncio.gather(*takers)
    assert [event["data"] for event in first] == list(range(50))
    assert all(other == first for other in others)


@on_every_transport
async def test_an_expired_event_is_not_delivered(gateway: Address, topics: Topics, transport: str) -> None:
    """An event whose `ttl` has passed is left out of a replay, without a gap."""
    await publish(gateway, {"topic": topics(), "data": "short", "ttl": 0.05}, *numbered(topics(), 1))
    await until_clock_passed(0.1)
    async with open_subscriber(gateway, transport, topics(), cursor="earliest") as subscriber:
        assert await subscriber.data(1) == [1]


async def until_clock_passed(seconds: float) -> None:
    """Wait until the wall clock, by which a `ttl` runs, has moved on so far."""
    end = time.time() + seconds

    async def passed() -> bool:
        return time.time() > end

    await until(passed, "the clock moves")


# --- where a subscriber begins -----------------------------------------------------------------------------


@on_every_transport
async def test_latest_is_where_a_subscriber_begins_by_itself(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """Without a cursor and with `latest` a subscriber gets only what is published afterwards."""
    await publish(gateway, *numbered(topics(), 1, 2))
    for cursor in (None, "latest"):
        async with open_subscriber(gateway, transport, topics(), cursor=cursor) as subscriber:
            await publish(gateway, {"topic": topics(), "data": "new"})
            assert await subscriber.data(1) == ["new"]


@on_every_transport
async def test_earliest_begins_at_the_oldest_event(gateway: Address, topics: Topics, transport: str) -> None:
    """`earliest` gives everything retained, then what comes."""
    await publish(gateway, *numbered(topics(), *range(250)))
    async with open_subscriber(gateway, transport, topics(), cursor="earliest") as subscriber:
        assert await subscriber.data(250) == list(range(250))
        await publish(gateway, *numbered(topics(), 250))
        assert await subscriber.data(1) == [250]


@on_every_transport
async def test_minus_n_begins_n_matching_events_back(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """`-3` gives the last three events that match, however many others lie between, then what comes."""
    for number in range(5):
        await publish(gateway, *numbered(topics("wanted"), number), *numbered(topics("other"), *range(10)))
    async with open_subscriber(gateway, transport, topics("wanted"), cursor="-3") as subscriber:
        assert await subscriber.data(3) == [2, 3, 4]
        await publish(gateway, *numbered(topics("wanted"), 5))
        assert await subscriber.data(1) == [5]


@on_every_transport
async def test_a_time_begins_at_the_first_event_accepted_then(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """An RFC 3339 time, in any offset, gives the events accepted at or after it."""
    await publish(gateway, *numbered(topics(), 1))
    await until_clock_passed(0.005)
    await publish(gateway, *numbered(topics(), 2, 3))
    async with open_subscriber(gateway, transport, topics(), cursor="-2") as subscriber:
        [event, _] = await subscriber.events(2)
    for text in (event["time"], event["time"].replace("Z", "+00:00"), shifted(event["time"])):
        async with open_subscriber(gateway, transport, topics(), cursor=text) as subscriber:
            assert await subscriber.data(2) == [2, 3]


def shifted(time: str) -> str:
    """Return the same moment in the time of Kathmandu."""
    there = timezone(timedelta(hours=5, minutes=45))
    return datetime.fromisoformat(time).astimezone(there).isoformat(timespec="milliseconds")


@on_every_transport
@pytest.mark.parametrize("via", ["query", "Last-Event-ID", "If-None-Match"])
async def test_a_cursor_is_taken_from_query_and_headers(
    gateway: Address, topics: Topics, transport: str, via: str
) -> None:
    """A cursor means the same as parameter, as `Last-Event-ID` and as `If-None-Match`, on every transport."""
    cursor = (await publish(gateway, *numbered(topics(), 1)))["cursor"]
    await publish(gateway, *numbered(topics(), 2))
    async with open_subscriber(gateway, transport, topics(), cursor=cursor, via=via) as subscriber:
        assert await subscriber.data(1) == [2]


@on_every_transport
@pytest.mark.parametrize("header", ["Last-Event-ID", "If-None-Match"])
async def test_a_header_beats_the_parameter(
    gateway: Address, topics: Topics, transport: str, header: str
) -> None:
    """An EventSource repeats its URL when it reconnects: its header says where it has come to."""
    first = (await publish(gateway, *numbered(topics(), 1)))["cursor"]
    second = (await publish(gateway, *numbered(topics(), 2)))["cursor"]
    await publish(gateway, *numbered(topics(), 3))
    value = f'"{second}"' if header == "If-None-Match" else second
    async with open_subscriber(
        gateway, transport, topics(), cursor=first, headers=[(header, value)]
    ) as subscriber:
        assert await subscriber.data(1) == [3]


@on_every_transport
@pytest.mark.parametrize("name", ["last_event_id", "lastEventId"])
async def test_the_names_that_eventsource_polyfills_use_are_known(
    gateway: Address, topics: Topics, transport: str, name: str
) -> None:
    """Polyfills that cannot set headers put the last event id into the query under these names."""
    cursor = (await publish(gateway, *numbered(topics(), 1)))["cursor"]
    await publish(gateway, *numbered(topics(), 2))
    async with open_subscriber(gateway, transport, topics(), **{name: cursor}) as subscriber:
        assert await subscriber.data(1) == [2]


# --- changing transports -----------------------------------------------------------------------------------


@pytest.mark.parametrize("then", TRANSPORTS)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_changes_its_transport_in_the_middle(
    gateway: Address, topics: Topics, transport: str, then: str
) -> None:
    """A cursor from one transport is good on any other: nothing is lost, nothing comes twice."""
    await publish(gateway, *numbered(topics(), *range(4)))
    async with open_subscriber(gateway, transport, topics(), cursor="earliest") as subscriber:
        assert await subscriber.data(2) == [0, 1]
        cursor = subscriber.cursor
    await publish(gateway, *numbered(topics(), 4, 5))
    async with open_subscriber(gateway, then, topics(), cursor=cursor) as subscriber:
        assert await subscriber.data(4) == [2, 3, 4, 5]
        await publish(gateway, *numbered(topics(), 6))
        assert await subscriber.data(1) == [6]


@on_every_transport
async def test_the_first_cursor_is_one_to_resume_from(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """A client that went away before the first event resumes from the cursor of its welcome."""
    async with open_subscriber(gateway, transport, topics()) as subscriber:
        cursor = subscriber.cursor
    await publish(gateway, *numbered(topics(), 1))
    async with open_subscriber(gateway, transport, topics(), cursor=cursor) as subscriber:
        assert await subscriber.data(1) == [1]


# --- gaps --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["own", "tls", "mounted"])
def forgetful(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A gateway in each shell, and encrypted, that retains 20 events and holds 5 in memory."""
    settings: dict[str, Any] = {"retention_events": 20, "window_events": 5}
    if request.param == "tls":
        certificates = Certificates(tmp_path_factory.mktemp("certificates"))
        settings |= {"tls": certificates.trusting(), "tls_cert": certificates.both}
    process = (
        HostProcess(lifespan=True, **settings) if request.param == "mounted" else GatewayProcess(**settings)
    )
    with process:
        yield address_of(process)


@on_every_transport
async def test_what_expired_is_announced_by_a_gap(forgetful: Address, transport: str) -> None:
    """With a cursor older than the log each event is either delivered or within an announced gap."""
    begin = (await publish(forgetful, *numbered("gap", -1)))["cursor"]
    for number in range(60):
        await publish(forgetful, *numbered("gap", number))
    lost: list[int] = []
    async with open_subscriber(forgetful, transport, "gap", cursor=begin) as subscriber:
        reached = position_of(begin)
        received: list[int] = []
        while 59 not in received:
            message = await subscriber.next()
            if "control" in message:
                assert (message["control"], message["reason"]) == ("gap", "expired")
                assert position_of(message["from"]) == reached, "the gap begins where the client stood"
                lost += range(reached, position_of(message["to"]))
                reached = position_of(message["to"])
            else:
                received.append(message["data"])
                reached += 1
                assert position_of(message["cursor"]) == reached
        assert lost, "the log is too small for all"
        assert len(received) >= 20
        await publish(forgetful, *numbered("gap", 60))
        assert await subscriber.data(1) == [60]


@on_every_transport
async def test_earliest_in_a_log_that_forgot_is_no_gap(forgetful: Address, transport: str) -> None:
    """Who asks for the oldest retained event has lost nothing."""
    await publish(forgetful, *numbered("earliest", *range(60)))
    async with open_subscriber(forgetful, transport, "earliest", cursor="earliest") as subscriber:
        [first, *_, last] = await subscriber.data(20)
        assert (first, last) == (40, 59)


@on_every_transport
async def test_the_cursor_of_another_log_is_a_reset(gateway: Address, topics: Topics, transport: str) -> None:
    """A cursor of a log that was made anew is told so, and gets everything this log has."""
    await publish(gateway, *numbered(topics(), 1, 2))
    async with open_subscriber(gateway, transport, topics(), cursor="aaaaaa-5-beef") as subscriber:
        gap = await subscriber.control("gap")
        assert (gap["reason"], gap["from"]) == ("reset", "aaaaaa-5-beef")
        assert await subscriber.data(2) == [1, 2]
        await publish(gateway, *numbered(topics(), 3))
        assert await subscriber.data(1) == [3]


@on_every_transport
async def test_a_cursor_ahead_of_the_head_is_a_reset(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """A cursor of this log ahead of its head (the log lost its end) is told so, and goes on at the head."""
    head = (await publish(gateway, *numbered(topics(), 1)))["cursor"]
    epoch, position, _ = head.split("-")
    ahead = f"{epoch}-{int(position) + 1_000_000}-abcd"
    async with open_subscriber(gateway, transport, topics(), cursor=ahead) as subscriber:
        gap = await subscriber.control("gap")
        assert (gap["reason"], gap["from"]) == ("reset", ahead)
        assert int(gap["to"].split("-")[1]) >= int(position)
        await publish(gateway, *numbered(topics(), 2))
        assert await subscriber.data(1) == [2]


@on_every_transport
async def test_a_cursor_that_names_another_event_is_a_reset(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """A cursor whose position now holds another event is told so, and gets what follows the position."""
    cursor = (await publish(gateway, *numbered(topics(), 1)))["cursor"]
    await publish(gateway, *numbered(topics(), 2))
    epoch, position, tag = cursor.split("-")
    wrong = f"{epoch}-{position}-{(int(tag, 16) ^ 0x1111) or 0x2222:04x}"
    async with open_subscriber(gateway, transport, topics(), cursor=wrong) as subscriber:
        gap = await subscriber.control("gap")
        assert (gap["reason"], gap["from"]) == ("reset", wrong)
        assert await subscriber.data(1) == [2]


@on_every_transport
async def test_a_cursor_without_a_tag_is_no_reset(gateway: Address, topics: Topics, transport: str) -> None:
    """Tag 0000 is "not known": there is nothing to compare."""
    cursor = (await publish(gateway, *numbered(topics(), 1)))["cursor"]
    await publish(gateway, *numbered(topics(), 2))
    untagged = cursor[:-4] + "0000"
    async with open_subscriber(gateway, transport, topics(), cursor=untagged) as subscriber:
        assert await subscriber.data(1) == [2]


# --- falling behind ----------------------------------------------------------------------------------------

SLOW = 50
"""Large events published to a client that does not read: several times what sockets and buffers take."""


async def fall_behind(address: Address, topic: str, subscriber: Any, *, keys: int = 0) -> list[Message]:
    """Stall a subscriber, publish far more than fits, and return what was published meanwhile."""
    subscriber.tcp.stall()
    events = [
        {"topic": topic, "data": [number, "x" * 100_000], **({"key": f"k{number % keys}"} if keys else {})}
        for number in range(SLOW)
    ]
    for start in range(0, SLOW, 10):
        await publish(address, *events[start : start + 10])
    return events


@on_every_stream
async def test_a_slow_client_catches_up(gateway: Address, topics: Topics, transport: str) -> None:
    """With `overflow=catchup`, the default, a client that stopped reading gets everything when it goes on."""
    async with open_subscriber(gateway, transport, topics(), receive_buffer=4096) as slow:
        await fall_behind(gateway, topics(), slow)
        slow.tcp.go_on()
        assert [number for number, _ in await slow.data(SLOW)] == list(range(SLOW))
        await publish(gateway, *numbered(topics(), -1))
        assert await slow.data(1) == [-1]


@on_every_stream
async def test_a_slow_client_jumps_to_the_latest(gateway: Address, topics: Topics, transport: str) -> None:
    """With `overflow=latest` it gets the newest event of each key, and a gap for all it did not get."""
    async with open_subscriber(gateway, transport, topics(), receive_buffer=4096, overflow="latest") as slow:
        begin = position_of(slow.cursor)
        await fall_behind(gateway, topics(), slow, keys=3)
        slow.tcp.go_on()
        await publish(gateway, {"topic": topics(), "data": "end", "key": "end"})
        numbers, gaps, reached = [], [], begin
        while True:
            message = await slow.next()
            if message.get("control") == "gap":
                assert message["reason"] == "overflow"
                assert position_of(message["from"]) == reached, "the gap begins where the client stood"
                gaps.append(message)
                reached = position_of(message["to"])
                continue
            assert position_of(message["cursor"]) > reached
            reached = position_of(message["cursor"])
            if message["data"] == "end":
                break
            numbers.append(message["data"][0])
    assert gaps, "something was skipped and announced"
    assert {47, 48, 49} <= set(numbers), "the newest of each key came"
    assert numbers == sorted(set(numbers))
    assert len(numbers) < SLOW


def position_of(cursor: str) -> int:
    """Return the position in a cursor."""
    return int(cursor.split("-")[1])


@on_every_stream
async def test_a_slow_client_is_sent_away(gateway: Address, topics: Topics, transport: str) -> None:
    """With `overflow=disconnect` it is told to reconnect with its cursor, and misses nothing."""
    async with open_subscriber(
        gateway, transport, topics(), receive_buffer=4096, overflow="disconnect"
    ) as slow:
        await fall_behind(gateway, topics(), slow)
        slow.tcp.go_on()
        numbers = []
        while "control" not in (message := await slow.next()):
            numbers.append(message["data"][0])
        assert (message["control"], message["reason"]) == ("reconnect", "fell_behind")
        assert message["after_ms"] > 0
        if transport == "websocket":
            closed = await slow.closed()
            assert closed.code == 1013
        else:
            await slow.end()
    async with open_subscriber(gateway, transport, topics(), cursor=message["cursor"]) as subscriber:
        numbers += [number for number, _ in await subscriber.data(SLOW - len(numbers))]
    assert numbers == list(range(SLOW))


@on_every_stream
async def test_a_slow_client_costs_the_others_nothing(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """Beside a client that does not read, one that does gets every event while the first still stands."""
    async with (
        open_subscriber(gateway, transport, topics(), receive_buffer=4096) as slow,
        open_subscriber(gateway, transport, topics()) as healthy,
    ):
        await fall_behind(gateway, topics(), slow)
        assert [number for number, _ in await healthy.data(SLOW)] == list(range(SLOW))


# --- consumers ---------------------------------------------------------------------------------------------


@on_every_transport
async def test_a_consumer_begins_where_it_first_came(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """A consumer that never acknowledged anything gets everything since it first connected."""
    name = topics("consumer")
    async with open_subscriber(gateway, transport, topics(), consumer=name):
        pass
    await publish(gateway, *numbered(topics(), 1, 2))
    async with open_subscriber(gateway, transport, topics(), consumer=name) as subscriber:
        assert await subscriber.data(2) == [1, 2]


@pytest.mark.parametrize("then", TRANSPORTS)
async def test_a_consumer_goes_on_behind_what_it_acknowledged(
    gateway: Address, topics: Topics, then: str
) -> None:
    """The server remembers the acknowledged cursor, whatever transport the consumer comes with."""
    name = topics("consumer")
    async with open_subscriber(gateway, "websocket", topics(), consumer=name) as subscriber:
        await publish(gateway, *numbered(topics(), 1, 2, 3))
        [_, second, _] = await subscriber.events(3)
        answer = await subscriber.ask({"op": "ack", "ref": 1, "cursor": second["cursor"]})
        assert answer == {"control": "acked", "ref": 1, "cursor": second["cursor"]}
    async with open_subscriber(gateway, then, topics(), consumer=name) as subscriber:
        assert await subscriber.data(1) == [3]


async def test_a_poll_acknowledges_the_cursor_it_hands_in(gateway: Address, topics: Topics) -> None:
    """A consumer that polls from a cursor has dealt with everything before it, and need not say so again."""
    name = topics("consumer")
    async with open_subscriber(gateway, "poll", topics(), consumer=name) as subscriber:
        await publish(gateway, *numbered(topics(), 1, 2))
        assert await subscriber.data(2) == [1, 2]
        await subscriber.ask()  # hands in the cursor behind both
    await publish(gateway, *numbered(topics(), 3))
    async with open_subscriber(gateway, "sse", topics(), consumer=name) as subscriber:
        assert await subscriber.data(1) == [3]


@pytest.mark.parametrize("ending", ["stop", "kill"])
async def test_a_consumer_is_remembered_across_a_restart(ending: str) -> None:
    """An acknowledged cursor survives the gateway's end, also a sudden one."""
    with GatewayProcess() as process:
        address = address_of(process)
        async with open_subscriber(address, "websocket", "t", consumer="c") as subscriber:
            await publish(address, *numbered("t", 1, 2, 3))
            [_, second, _] = await subscriber.events(3)
            await subscriber.ask({"op": "ack", "cursor": second["cursor"]})
        if ending == "kill":
            process.kill()
        await process.arestart()
        async with open_subscriber(address, "sse", "t", consumer="c") as subscriber:
            assert await subscriber.data(1) == [3]


@on_every_transport
async def test_a_cursor_survives_a_restart(transport: str, own_process: GatewayProcess) -> None:
    """Positions go on and old cursors are good after a restart, without a gap."""
    with GatewayProcess() as process:
        address = address_of(process)
        await publish(address, *numbered("t", 1, 2))
        async with open_subscriber(address, transport, "t", cursor="earliest") as subscriber:
            await subscriber.data(1)
            cursor = subscriber.cursor
        process.kill()
        await process.arestart()
        await publish(address, *numbered("t", 3))
        async with open_subscriber(address, transport, "t", cursor=cursor) as subscriber:
            assert await subscriber.data(2) == [2, 3]


# --- heads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream", "application/x-ndjson"])
async def test_head_answers_with_a_head_and_ends(gateway: Address, topics: Topics, accept: str) -> None:
    """HEAD is answered as GET would be, without a body, and the connection goes on to the next request."""
    head = request_bytes("HEAD", gateway.target("/v1/events", [("topic", topics())]), [("Accept", accept)])
    get = request_bytes("GET", gateway.target("/v1/events", [("topic", topics())]))
    async with Tcp.open(gateway) as tcp:
        await tcp.send(head)
        answer = await read_response(tcp, method="HEAD")
        assert answer.status == 200
        expected = {"*/*": "application/json"}.get(accept, accept)
        assert answer.head["content-type"].partition(";")[0] == expected
        assert answer.head["cache-control"] == "no-store"
        if "connection" in answer.head and answer.head["connection"] == "close":
            assert await tcp.rest() == b""
        else:
            await tcp.send(get)
            assert (await read_response(tcp)).status == 200


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("text/event-stream", "text/event-stream"),
        ("text/event-stream, */*;q=0.1", "text/event-stream"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/ndjson", "application/x-ndjson"),
        ("text/event-stream;q=0.5, application/x-ndjson", "application/x-ndjson"),
        ("application/json, text/event-stream;q=0.9", "application/json"),
        ("text/event-stream;q=0", "application/json"),
        ("text/html, */*", "application/json"),
        ("TEXT/EVENT-STREAM", "text/event-stream"),
    ],
)
async def test_the_accept_header_chooses_the_transport(
    gateway: Address, topics: Topics, accept: str, expected: str
) -> None:
    """The transport is what the client prefers, and JSON if it has no preference."""
    target = gateway.target("/v1/events", [("topic", topics())])
    async with Tcp.open(gateway) as tcp:
        await tcp.send(request_bytes("GET", target, [("Accept", accept)]))
        head = (await tcp.until(b"\r\n\r\n")).lower()
    assert b"content-type: " + expected.encode() in head


@on_every_stream
async def test_a_refusal_is_an_answer_before_anything_opens(
    gateway: Address, topics: Topics, transport: str
) -> None:
    """A bad request is refused with a problem and its status, on WebSocket as the answer to the handshake."""
    with pytest.raises(Refused) as refused:
        async with open_subscriber(gateway, transport, "a..b"):
            pass
    assert refused.value.response.status == 422
    assert "a..b" in refused.value.response.problem["detail"]


async def test_an_upgrade_to_something_else_is_ignored(own: Address, topics: Topics) -> None:
    """A client that offers h2c with its request (Java's does) is answered in HTTP/1.1, body and all."""
    offer = [
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
        ("Connection", "Upgrade, HTTP2-Settings"),
    ]
    poll = await fetch(own, "/v1/events", [("topic", topics())], offer)
    assert poll.status == 200
    body = json.dumps({"topic": topics(), "data": 1}).encode()
    headers = [("Content-Type", "application/json"), *offer]
    posted = await fetch(own, "/v1/events", (), headers, method="POST", body=body)
    assert posted.status == 202
    after = await fetch(own, "/v1/events", [("topic", topics()), ("cursor", poll.json["cursor"])])
    assert [event["data"] for event in after.json["events"]] == [1]


async def test_a_websocket_needs_no_topic(gateway: Address) -> None:
    """A WebSocket may subscribe later; everything else must say what it wants."""
    async with Tcp.open(gateway) as tcp:
        await tcp.send(handshake_bytes(gateway))
        assert (await tcp.until(b"\r\n")).startswith(b"HTTP/1.1 101 ")
    response = await fetch(gateway, "/v1/events")
    assert response.status == 422
    assert "topic" in response.problem["detail"]
