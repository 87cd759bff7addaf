"""WebSocket, in every shell: operations, handshakes, closing, compression; raw and by `websockets`."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.extensions import ClientExtensionFactory
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from tests.support.clients import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Address,
    Closed,
    Frame,
    Message,
    Tcp,
    Topics,
    WebSocket,
    fetch,
    handshake_bytes,
    open_subscriber,
    publish,
    read_head,
    until,
)
from tests.support.host import HostProcess, address_of
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration


@asynccontextmanager
async def library_client(address: Address, *topics: str, **options: Any) -> AsyncIterator[ClientConnection]:
    """Connect with the `websockets` library, and read the welcome."""
    query = "&".join(f"topic={topic}" for topic in topics)
    async with connect(f"{address.websocket_url}?{query}", proxy=None, max_size=None, **options) as client:
        assert json.loads(await client.recv())["control"] == "welcome"
        yield client


async def events_of(client: ClientConnection, count: int) -> list[Message]:
    """Return the next `count` messages of a library client, heartbeats left out."""
    messages: list[Message] = []
    async with asyncio.timeout(20):
        while len(messages) < count:
            message = json.loads(await client.recv())
            if message.get("control") != "heartbeat":
                messages.append(message)
    return messages


def numbered(topic: str, *numbers: int) -> list[Message]:
    return [{"topic": topic, "data": number} for number in numbers]


# --- an independent client ---------------------------------------------------------------------------------


async def test_the_websockets_library_can_use_it(gateway: Address, topics: Topics) -> None:
    """A client nobody here wrote connects, receives, subscribes, publishes, pings and closes with 1000."""
    async with library_client(gateway, topics()) as client:
        await publish(gateway, *numbered(topics(), 1))
        [event] = await events_of(client, 1)
        assert (event["topic"], event["data"]) == (topics(), 1)
        await client.send(json.dumps({"op": "subscribe", "ref": 1, "topics": [topics("other")]}))
        [subscribed] = await events_of(client, 1)
        assert (subscribed["control"], subscribed["ref"]) == ("subscribed", 1)
        await client.send(json.dumps({"op": "publish", "ref": 2, "topic": topics("other"), "data": "x"}))
        both = await events_of(client, 2)
        assert {message.get("control", "event") for message in both} == {"published", "event"}
        await (await client.ping(b"are you there"))
        await client.close()
    assert client.close_code == 1000


async def test_large_and_small_messages_alternate(gateway: Address, topics: Topics) -> None:
    """Events from one byte to almost 1 MB arrive whole and in order at a library client."""
    sizes = [1, 125, 126, 127, 65_000, 65_535, 65_536, 70_000, 1, 900_000, 2]
    async with library_client(gateway, topics()) as client:
        for size in sizes:
            await publish(gateway, {"topic": topics(), "data": "x" * size})
        assert [len(event["data"]) for event in await events_of(client, len(sizes))] == sizes


# --- the beginning -----------------------------------------------------------------------------------------


async def test_the_welcome_names_the_connection(gateway: Address, topics: Topics) -> None:
    """The first message is the welcome; the name in it finds the connection among those of the operator."""
    async with open_subscriber(gateway, "websocket", topics(), welcomed=False) as socket:
        welcome = await socket.next()
        assert welcome.keys() == {"control", "connection", "cursor"}
        seen = (await fetch(gateway, f"/v1/connections/{welcome['connection']}")).json
        assert seen["topics"] == [topics()]
        assert seen["state"] == "live"
        await socket.close()


async def test_a_handshake_in_single_bytes_with_frames_behind_it(own: Address, topics: Topics) -> None:
    """A handshake may come byte by byte, and frames in the same packet as its end are not lost."""
    request = handshake_bytes(own, [("topic", topics())])
    behind = Frame(TEXT, b'{"op":"ping","ref":"early"}').encode()
    async with Tcp.open(own) as tcp:
        for at in range(len(request) - 1):
            await tcp.send(request[at : at + 1])
        await tcp.send(request[-1:] + behind)
        socket = WebSocket(tcp, await read_head(tcp))
        await socket.control("welcome")
        assert await socket.next() == {"control": "pong", "ref": "early"}


async def test_a_subprotocol_that_is_not_spoken_is_not_confirmed(gateway: Address, topics: Topics) -> None:
    """A client may offer subprotocols; none is selected, which leaves the decision to it (RFC 6455 4.2.2)."""
    headers = [("Sec-WebSocket-Protocol", "chat, mqtt")]
    async with open_subscriber(gateway, "websocket", topics(), headers=headers) as socket:
        assert "sec-websocket-protocol" not in socket.head


# --- operations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ref", [0, 1.5, "r", "", None, True, [1, [2]], {"a": {"b": "ü\u2028"}}, "x" * 10_000, "\n\r\t\0"]
)
async def test_any_json_is_a_ref(gateway: Address, topics: Topics, ref: Any) -> None:
    """The `ref` of an operation comes back as it was."""
    async with open_subscriber(gateway, "websocket", topics()) as socket:
        assert await socket.ask({"op": "ping", "ref": ref}) == {"control": "pong", "ref": ref}


async def test_an_operation_without_a_ref_is_answered_without(gateway: Address, topics: Topics) -> None:
    """Whoever gives no `ref` gets none."""
    async with open_subscriber(gateway, "websocket", topics()) as socket:
        assert await socket.ask({"op": "ping"}) == {"control": "pong"}


async def test_operations_may_be_pretty_printed(gateway: Address, topics: Topics) -> None:
    """White space and line breaks in an operation, its data and its ref mean nothing."""
    operation = {"op": "publish", "ref": {"a": [1, 2]}, "topic": topics(), "data": {"b": [3]}}
    async with open_subscriber(gateway, "websocket", topics()) as socket:
        await socket.send(json.dumps(operation, indent=4))
        messages = {"control" in each: each for each in (await socket.next(), await socket.next())}
        assert messages[True]["ref"] == {"a": [1, 2]}
        assert messages[False]["data"] == {"b": [3]}


async def test_answers_come_in_the_order_of_the_operations(gateway: Address, topics: Topics) -> None:
    """Hundreds of operations sent without waiting, of every kind, are answered one by one in their order."""
    operations: list[Message] = []
    for number in range(100):
        operations += [
            {"op": "publish", "topic": topics("elsewhere"), "data": number},
            {"op": "ping"},
            {"op": "subscribe", "topics": [topics(f"t{number % 7}")]},
            {"op": "publish", "topic": "no..topic", "data": number},
            {"op": "unsubscribe", "topics": [topics(f"t{number % 7}")]},
            {"op": "nonsense"},
        ]
    expected = ["published", "pong", "subscribed", "error", "unsubscribed", "error"] * 100
    async with open_subscriber(gateway, "websocket") as socket:
        sending = asyncio.gather(
            *(socket.send({**operation, "ref": ref}) for ref, operation in enumerate(operations))
        )
        answers = [await socket.next() for _ in operations]
        await sending
    assert [answer["ref"] for answer in answers] == list(range(600))
    assert [answer["control"] for answer in answers] == expected


# --- subscribing on an open connection ---------------------------------------------------------------------


async def test_subscribing_and_unsubscribing_changes_what_comes(gateway: Address, topics: Topics) -> None:
    """Topics can be added and taken away; what comes is what is subscribed at the moment it is published."""
    one, two = topics("one"), topics("two")
    async with open_subscriber(gateway, "websocket") as socket:
        await publish(gateway, *numbered(one, 0), *numbered(two, 0))
        answer = await socket.ask({"op": "subscribe", "ref": 1, "topics": [one]})
        assert answer.keys() == {"control", "ref", "topics", "cursor"}
        assert answer["topics"] == [one]
        await publish(gateway, *numbered(one, 1), *numbered(two, 1))
        assert await socket.data(1) == [1]
        await socket.ask({"op": "subscribe", "topic": two})
        await publish(gateway, *numbered(two, 2), *numbered(one, 2))
        assert [(event["topic"], event["data"]) for event in await socket.events(2)] == [(two, 2), (one, 2)]
        answer = await socket.ask({"op": "unsubscribe", "ref": 2, "topics": [one]})
        assert answer == {"control": "unsubscribed", "ref": 2, "topics": [one]}
        await publish(gateway, *numbered(one, 3), *numbered(two, 3))
        assert [(event["topic"], event["data"]) for event in await socket.events(1)] == [(two, 3)]
        await socket.ask({"op": "unsubscribe", "topics": [two]})
        await publish(gateway, *numbered(one, 4), *numbered(two, 4))
        assert await socket.ask({"op": "ping"}) == {"control": "pong"}


async def test_nothing_is_missed_once_the_subscription_is_answered(gateway: Address, topics: Topics) -> None:
    """What is published right after `subscribed` arrives, every time."""
    async with open_subscriber(gateway, "websocket") as socket:
        for number in range(30):
            topic = topics(f"t{number}")
            await socket.ask({"op": "subscribe", "topics": [topic]})
            await publish(gateway, *numbered(topic, number))
            assert await socket.data(1) == [number]


async def test_overlapping_patterns_deliver_once(gateway: Address, topics: Topics) -> None:
    """An event that several of a connection's patterns match comes once, however they were added."""
    root = topics("root")
    async with open_subscriber(gateway, "websocket", f"{root}.a") as socket:
        for pattern in (f"{root}.*", f"{root}.#", f"{root}.a"):
            await socket.ask({"op": "subscribe", "topics": [pattern]})
        await publish(gateway, *numbered(f"{root}.a", 1), *numbered(f"{root}.b", 2))
        assert await socket.data(2) == [1, 2]
        await socket.ask({"op": "unsubscribe", "topics": [f"{root}.#", f"{root}.a"]})
        await publish(gateway, *numbered(f"{root}.a", 3), *numbered(f"{root}.b.c", 4), *numbered(root, 5))
        await publish(gateway, *numbered(f"{root}.b", 6))
        assert await socket.data(2) == [3, 6]


async def test_a_second_topic_from_an_earlier_cursor(gateway: Address, topics: Topics) -> None:
    """
    A topic subscribed from an earlier cursor brings its past, while the first goes on.

    Both are published to all the while: of neither is anything missing, and nothing comes twice.
    """
    one, two = topics("one"), topics("two")
    start = (await publish(gateway, *numbered(topics("before"), 0)))["cursor"]
    for number in range(0, 200, 10):
        await publish(gateway, *numbered(one, *range(number, number + 10)))
        await publish(gateway, *numbered(two, *range(number, number + 10)))

    async def go_on_publishing() -> None:
        for number in range(200, 400, 5):
            await publish(gateway, *numbered(one, *range(number, number + 5)))
            await publish(gateway, *numbered(two, *range(number, number + 5)))

    async with open_subscriber(gateway, "websocket", one, cursor=start) as socket:
        first = await socket.events(200)
        assert [event["data"] for event in first] == list(range(200))
        publishing = asyncio.ensure_future(go_on_publishing())
        received: dict[str, list[int]] = {one: [], two: []}
        await take(socket, received, 50)
        await socket.send({"op": "subscribe", "ref": 1, "topics": [two], "cursor": start})
        await take(socket, received, 200 + 400 + 1 - 50)
        await publishing
    assert received[one] == list(range(200, 400))
    assert received[two] == list(range(400))


async def take(socket: WebSocket, received: dict[str, list[int]], count: int) -> None:
    """Sort the next `count` messages, answers among them, by topic."""
    for _ in range(count):
        message = await socket.next()
        if "control" in message:
            assert message["control"] == "subscribed", message
        else:
            received[message["topic"]].append(message["data"])


async def test_unsubscribing_in_the_middle_of_catching_up(gateway: Address, topics: Topics) -> None:
    """A past that is no longer wanted stops coming, and the rest of the subscription is whole."""
    one, two = topics("one"), topics("two")
    await publish(gateway, *({"topic": two, "data": "x" * 1000} for _ in range(3000)))
    async with open_subscriber(gateway, "websocket", one) as socket:
        await socket.send({"op": "subscribe", "ref": 1, "topics": [two], "cursor": "earliest"})
        await socket.send({"op": "unsubscribe", "ref": 2, "topics": [two]})
        await socket.control("subscribed")
        while (await socket.next()).get("control") != "unsubscribed":
            pass
        await publish(gateway, *numbered(two, 1), *numbered(one, 2))
        assert await socket.data(1) == [2]


@pytest.mark.parametrize("cursor", ["earliest", "-2", "latest"])
async def test_subscribing_knows_every_form_of_a_cursor(
    gateway: Address, topics: Topics, cursor: str
) -> None:
    """What `?cursor=` takes, the operation takes."""
    await publish(gateway, *numbered(topics(), 1, 2, 3))
    expected = {"earliest": [1, 2, 3, 4], "-2": [2, 3, 4], "latest": [4]}[cursor]
    async with open_subscriber(gateway, "websocket") as socket:
        await socket.ask({"op": "subscribe", "topics": [topics()], "cursor": cursor})
        await publish(gateway, *numbered(topics(), 4))
        assert await socket.data(len(expected)) == expected


async def test_subscribing_with_a_foreign_cursor_announces_the_gap(gateway: Address, topics: Topics) -> None:
    """A cursor of another log is told a `reset` before the first event, also by the operation."""
    await publish(gateway, *numbered(topics(), 1))
    async with open_subscriber(gateway, "websocket") as socket:
        await socket.send({"op": "subscribe", "ref": 1, "topics": [topics()], "cursor": "zzzzzz-7-0000"})
        controls = {message["control"]: message for message in (await socket.next(), await socket.next())}
        assert controls["gap"]["reason"] == "reset"
        assert controls["gap"]["from"] == "zzzzzz-7-0000"
        assert controls["subscribed"]["ref"] == 1
        assert await socket.data(1) == [1]


async def test_too_many_topics_change_nothing(gateway: Address, topics: Topics) -> None:
    """The limit counts what a connection has altogether; an operation beyond it is refused as a whole."""
    async with open_subscriber(gateway, "websocket", topics()) as socket:
        await socket.ask({"op": "subscribe", "topics": [topics(f"t{n}") for n in range(60)]})
        refused = await socket.ask({"op": "subscribe", "topics": [topics(f"u{n}") for n in range(60)]})
        assert (refused["control"], refused["status"]) == ("error", 422)
        await publish(gateway, *numbered(topics("u0"), 0), *numbered(topics("t0"), 1), *numbered(topics(), 2))
        assert await socket.data(2) == [1, 2]


# --- publishing --------------------------------------------------------------------------------------------


async def test_publishing_is_answered_when_durable(gateway: Address, topics: Topics) -> None:
    """`published` counts what was accepted, carries the cursor, and knows duplicates."""
    event = {"topic": topics(), "id": topics("id"), "type": "t", "key": "k", "data": [1, {"a": None}]}
    async with (
        open_subscriber(gateway, "websocket") as publisher,
        open_subscriber(gateway, "sse", topics()) as subscriber,
    ):
        answer = await publisher.ask({"op": "publish", "ref": 1, **event})
        assert answer.keys() == {"control", "ref", "accepted", "duplicates", "cursor"}
        assert (answer["control"], answer["accepted"], answer["duplicates"]) == ("published", 1, 0)
        again = await publisher.ask({"op": "publish", "ref": 2, **event})
        assert (again["accepted"], again["duplicates"]) == (0, 1)
        [received] = await subscriber.events(1)
        received.pop("time")
        assert received == {**event, "cursor": answer["cursor"]}


async def test_a_burst_of_publishes_is_accepted_in_order(gateway: Address, topics: Topics) -> None:
    """A thousand publish operations without waiting are all answered, and lie in the log in their order."""
    async with open_subscriber(gateway, "websocket") as publisher:
        frames = [
            Frame(
                TEXT, json.dumps({"op": "publish", "ref": n, "topic": topics(), "data": n}).encode()
            ).encode()
            for n in range(1000)
        ]
        sending = asyncio.ensure_future(publisher.tcp.send(b"".join(frames)))
        answers = [await publisher.control("published") for _ in range(1000)]
        await sending
    assert [answer["ref"] for answer in answers] == list(range(1000))
    async with open_subscriber(gateway, "ndjson", topics(), cursor="earliest") as subscriber:
        assert await subscriber.data(1000) == list(range(1000))


async def test_a_publish_in_fragments_is_one_message(gateway: Address, topics: Topics) -> None:
    """A message may come in fragments with pings between them."""
    text = json.dumps({"op": "publish", "ref": 1, "topic": topics(), "data": "ä€😀" * 1000}).encode()
    parts = [text[at : at + 7] for at in range(0, len(text), 7)]
    async with open_subscriber(gateway, "websocket", topics()) as socket:
        await socket.send_frame(Frame(TEXT, parts[0], fin=False))
        for part in parts[1:-1]:
            await socket.send_frame(Frame(CONTINUATION, part, fin=False))
        await socket.send_frame(Frame(PING, b"between"))
        await socket.send_frame(Frame(CONTINUATION, parts[-1]))
        messages = {"control" in each: each for each in (await socket.next(), await socket.next())}
        assert messages[False]["data"] == "ä€😀" * 1000
        assert Frame(PONG, b"between") in socket.frames


async def test_an_event_too_large_is_refused_and_the_connection_goes_on(
    gateway: Address, topics: Topics
) -> None:
    """An event beyond the limit, in a message within it, is answered 413."""
    async with open_subscriber(gateway, "websocket") as socket:
        answer = await socket.ask({"op": "publish", "ref": 1, "topic": topics(), "data": "x" * (1 << 20)})
        assert (answer["control"], answer["status"], answer["ref"]) == ("error", 413, 1)
        assert await socket.ask({"op": "ping"}) == {"control": "pong"}


async def test_an_ack_of_another_log_is_refused(gateway: Address, topics: Topics) -> None:
    """Only a cursor of this log, not ahead of its head, can be acknowledged; a refusal changes nothing."""
    name = topics("consumer")
    async with open_subscriber(gateway, "websocket", topics(), consumer=name) as socket:
        cursor = (await publish(gateway, *numbered(topics(), 1)))["cursor"]
        await socket.events(1)
        epoch, position, _ = cursor.split("-")
        await socket.ask({"op": "ack", "cursor": cursor})
        for wrong in ("zzzzzz-1-0000", f"{epoch}-{int(position) + 1_000_000}-0000", "earliest", "latest", ""):
            answer = await socket.ask({"op": "ack", "ref": 1, "cursor": wrong})
            assert (answer["control"], answer["status"]) == ("error", 422), wrong
    await publish(gateway, *numbered(topics(), 2))
    async with open_subscriber(gateway, "sse", topics(), consumer=name) as subscriber:
        assert await subscriber.data(1) == [2]


@pytest.mark.parametrize("seed", range(6))
async def test_it_does_not_matter_how_the_bytes_are_cut(gateway: Address, topics: Topics, seed: int) -> None:
    """A stream of frames of every kind, cut at random places, is answered as if it came in one piece."""
    cuts = random.Random(seed)
    stream = b""
    for number in range(120):
        text = json.dumps({"op": "ping", "ref": [number, "é" * cuts.randrange(200)]}).encode()
        at = cuts.randrange(1, len(text))
        stream += Frame(PONG, b"").encode() * cuts.randrange(2)
        stream += Frame(TEXT, text[:at], fin=False).encode()
        stream += Frame(PING, bytes([number])).encode()
        stream += Frame(CONTINUATION, text[at:]).encode()
    async with open_subscriber(gateway, "websocket", topics()) as socket:

        async def send_in_pieces() -> None:
            rest = stream
            while rest:
                size = cuts.choice((1, 2, 3, 6, 7, 50, 1000))
                await socket.tcp.send(rest[:size])
                rest = rest[size:]

        sending = asyncio.ensure_future(send_in_pieces())
        refs = [(await socket.control("pong"))["ref"][0] for _ in range(120)]
        await sending
        assert refs == list(range(120))
        pongs = [frame.payload[0] for frame in socket.frames if frame.opcode == PONG]
        assert pongs == list(range(120))


# --- control frames and closing ----------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"x", b"\x00\xff" * 62 + b"."])
async def test_a_ping_is_answered_with_its_payload(gateway: Address, topics: Topics, payload: bytes) -> None:
    """A pong carries what the ping did, whatever bytes they are (RFC 6455 5.5.3)."""
    async with open_subscriber(gateway, "websocket", topics()) as socket:
        await socket.send_frame(Frame(PING, payload))
        assert await socket.pong() == Frame(PONG, payload)


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1009, 1011, 3000, 4000, 4999])
async def test_a_close_is_answered_with_its_code(gateway: Address, topics: Topics, code: int) -> None:
    """The closing handshake echoes the code, and then the connection ends (RFC 6455 5.5.1)."""
    async with open_subscriber(gateway, "websocket", topics()) as socket:
        await socket.close(code)


async def test_a_close_may_have_no_code(own: Address, topics: Topics) -> None:
    """An empty close frame is answered with one."""
    async with open_subscriber(own, "websocket", topics()) as socket:
        socket.closing = True
        await socket.send_frame(Frame(CLOSE, b""))
        assert (await socket.closed()).code == 1005


async def test_a_closed_connection_is_gone(gateway: Address, topics: Topics) -> None:
    """After the closing handshake the gateway knows no such connection."""
    async with open_subscriber(gateway, "websocket", topics(), welcomed=False) as socket:
        name = (await socket.control("welcome"))["connection"]
        await socket.close()

        async def gone() -> bool:
            return (await fetch(gateway, f"/v1/connections/{name}")).status == 404

        await until(gone, "the closed connection is forgotten")


async def test_what_was_sent_before_a_close_is_answered_before_it(own: Address, topics: Topics) -> None:
    """Operations in the same packet as the close frame are carried out."""
    async with open_subscriber(own, "websocket", topics()) as socket:
        ping = Frame(TEXT, b'{"op":"ping","ref":1}').encode()
        await socket.tcp.send(ping + Frame(CLOSE, (1000).to_bytes(2, "big")).encode())
        assert await socket.next() == {"control": "pong", "ref": 1}
        assert (await socket.closed()).code == 1000


async def test_a_client_that_vanishes_is_forgotten(gateway: Address, topics: Topics) -> None:
    """The end of a TCP connection without a close frame, by FIN or RST, ends the connection."""
    names = []
    for ending in ("end_sending", "reset"):
        async with open_subscriber(gateway, "websocket", topics(), welcomed=False) as socket:
            names.append((await socket.control("welcome"))["connection"])
            getattr(socket.tcp, ending)()

    async def gone() -> bool:
        return all([(await fetch(gateway, f"/v1/connections/{name}")).status == 404 for name in names])

    await until(gone, "the vanished connections are forgotten")


async def test_a_close_frame_is_not_lost_behind_unread_bytes(own: Address, topics: Topics) -> None:
    """A client that is still sending megabytes when it is closed reads the close frame, not a reset."""
    for _ in range(10):
        async with open_subscriber(own, "websocket", topics()) as socket:
            sending = asyncio.ensure_future(socket.tcp.send(Frame(3, b"").encode() + bytes(2_000_000)))
            assert (await socket.closed()).code == 1002
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


# --- permessage-deflate ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["own", "mounted"])
def compressing(request: pytest.FixtureRequest) -> Iterator[Address]:
    """A gateway in each shell that offers permessage-deflate."""
    own = request.param == "own"
    with (
        GatewayProcess(websocket_deflate=True)
        if own
        else HostProcess(lifespan=True, websocket_deflate=True) as process
    ):
        yield address_of(process)


@pytest.fixture(scope="module")
def compressing_own() -> Iterator[Address]:
    with GatewayProcess(websocket_deflate=True) as process:
        yield address_of(process)


def deflated(
    server_bits: int | None = None, client_bits: int | bool | None = True, **takeover: Any
) -> list[ClientExtensionFactory]:
    """Return an offer with these limits, for the `websockets` client."""
    return [
        ClientPerMessageDeflateFactory(
            server_max_window_bits=server_bits, client_max_window_bits=client_bits, **takeover
        )
    ]


TEXTS = ["x", "y" * 200, "z" * 255, "a b c " * 50, "ab" * 40_000, "é😀" * 20_000, "x" * 700_000, "q"]


@pytest.mark.parametrize(
    "offer",
    [
        deflated(),
        deflated(15, 15),
        deflated(12, 12),
        deflated(13, 9),
        deflated(9, 9),
        deflated(None, None, server_no_context_takeover=True),
        deflated(None, True, client_no_context_takeover=True),
    ],
    ids=["default", "15", "12", "13 and 9", "9", "server forgets", "client forgets"],
)
async def test_compressed_events_arrive_at_the_library_client(
    compressing: Address, topics: Topics, offer: list[ClientExtensionFactory]
) -> None:
    """Small and large events reach clients with every window limit, and what they compress is understood."""
    async with library_client(compressing, topics(), compression=None, extensions=offer) as client:
        await publish(compressing, *({"topic": topics(), "data": text} for text in TEXTS))
        assert [event["data"] for event in await events_of(client, len(TEXTS))] == TEXTS
        for number, text in enumerate(TEXTS):
            operation = {"op": "publish", "ref": number, "topic": topics("else"), "data": text}
            await client.send(json.dumps(operation))
            [answer] = await events_of(client, 1)
            assert (answer["control"], answer["ref"]) == ("published", number)


async def test_events_are_compressed_when_it_pays(compressing_own: Address, topics: Topics) -> None:
    """A large event goes out compressed, a small one and one that cannot be compressed as it is."""
    headers = [("Sec-WebSocket-Extensions", "permessage-deflate")]
    async with open_subscriber(compressing_own, "websocket", topics(), headers=headers) as socket:
        assert socket.head["sec-websocket-extensions"].startswith("permessage-deflate")
        socket.frames.clear()
        await publish(compressing_own, {"topic": topics(), "data": "x" * 5000}, *numbered(topics(), 1))
        assert await socket.data(2) == ["x" * 5000, 1]
        large, small = (
            frame for frame in socket.frames if b"heartbeat" not in frame.payload and frame.payload
        )
        assert (large.reserved, small.reserved) == (0b100, 0)
        assert len(large.payload) < 500


async def test_one_compressor_serves_many_connections(compressing_own: Address, topics: Topics) -> None:
    """Connections that began at different times read the same compressed bytes: no context is kept."""
    headers = [("Sec-WebSocket-Extensions", "permessage-deflate")]
    events = [{"topic": topics(), "data": f"{number} " * 500} for number in range(20)]
    async with open_subscriber(compressing_own, "websocket", topics(), headers=headers) as first:
        await publish(compressing_own, *events[:10])
        async with open_subscriber(compressing_own, "websocket", topics(), headers=headers) as second:
            await publish(compressing_own, *events[10:])
            assert await first.data(20) == [event["data"] for event in events]
            assert await second.data(10) == [event["data"] for event in events[10:]]
            ours, theirs = ([frame for frame in each.frames if frame.reserved] for each in (first, second))
            assert ours[-10:] == theirs


OFFERS = {
    "permessage-deflate": True,
    "permessage-deflate; client_max_window_bits": True,
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover": True,
    "permessage-deflate; server_max_window_bits=15": True,
    "permessage-deflate; server_max_window_bits=12": True,
    "permessage-deflate; server_max_window_bits=11": False,
    "permessage-deflate; server_max_window_bits=8": False,
    "permessage-deflate; server_max_window_bits=8, permessage-deflate": True,
    "permessage-deflate; server_max_window_bits=16": False,
    "permessage-deflate; server_max_window_bits=7": False,
    "permessage-deflate; server_max_window_bits=012": False,
    "permessage-deflate; server_max_window_bits": False,
    "permessage-deflate; server_no_context_takeover=1": False,
    "permessage-deflate; unknown": False,
    "permessage-deflate; client_max_window_bits=99": False,
    "permessage-deflate; server_max_window_bits=12; server_max_window_bits=13": False,
    "permessage-bzip2, x-webkit-deflate-frame": False,
    "nonsense; ; =": False,
}


@pytest.mark.parametrize("offer", OFFERS)
async def test_an_offer_to_compress_is_taken_or_passed_over(
    compressing_own: Address, topics: Topics, offer: str
) -> None:
    """An offer that can be kept is taken up, one with a bad parameter (RFC 7692 7.1) or limit is declined."""
    headers = [("Sec-WebSocket-Extensions", offer)]
    async with open_subscriber(compressing_own, "websocket", topics(), headers=headers) as socket:
        assert ("sec-websocket-extensions" in socket.head) == OFFERS[offer]
        if "server_max_window_bits=12" in offer and OFFERS[offer]:
            assert "server_max_window_bits=12" in socket.head["sec-websocket-extensions"]
        await publish(compressing_own, {"topic": topics(), "data": "x" * 5000})
        assert await socket.data(1) == ["x" * 5000]


async def test_nothing_is_compressed_unless_it_is_set(own: Address, topics: Topics) -> None:
    """By default an offer is declined."""
    async with library_client(own, topics(), compression="deflate") as client:
        assert not client.protocol.extensions
        await publish(own, *numbered(topics(), 1))
        assert [event["data"] for event in await events_of(client, 1)] == [1]


async def test_a_compressed_client_that_breaks_the_rules_is_closed(
    compressing_own: Address, topics: Topics
) -> None:
    """A continuation with the compression bit is a breach (RFC 7692 6.1)."""
    headers = [("Sec-WebSocket-Extensions", "permessage-deflate")]
    async with open_subscriber(compressing_own, "websocket", topics(), headers=headers) as socket:
        await socket.send_frame(Frame(TEXT, b"", fin=False))
        await socket.send_frame(Frame(CONTINUATION, b"\x00", reserved=0b100))
        with pytest.raises(Closed) as closed:
            await socket.next()
    assert closed.value.code in (1002, 1007)


async def test_the_library_client_reconnects_and_resumes(gateway: Address, topics: Topics) -> None:
    """A library client that is cut off goes on from the cursor of its last event."""
    received: list[int] = []
    cursor = "latest"
    for start in range(0, 30, 10):
        url = f"{gateway.websocket_url}?topic={topics()}&cursor={cursor}"
        async with connect(url, proxy=None) as client:
            await client.recv()
            await publish(gateway, *numbered(topics(), *range(start, start + 10)))
            for event in await events_of(client, 7):
                received.append(event["data"])
                cursor = event["cursor"]
            client.transport.abort()
            await client.wait_closed()
    async with open_subscriber(gateway, "websocket", topics(), cursor=cursor) as socket:
        received += await socket.data(30 - len(received))
    assert received == list(range(30))
