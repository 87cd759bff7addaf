"""Messages as nobody should send them: each is an event, or a dead letter with its reason."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, Final

import pytest
from pamqp import commands, header

from fanout.topics import check_topic
from gateway.amqp.topology import Topology
from gateway.stream_messages import Incoming
from tests.support.rabbitmq import Broker
from tests.support.stream_logs import Replica, event, new_topology, producer, raw_producer, replicas, send

pytestmark = pytest.mark.integration

Message = tuple[bytes, bytes, bytes]
"""Routing key, property flags and list, body."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as node:
        yield node


@pytest.fixture
def topology() -> Topology:
    return new_topology()


def plain(topic: bytes = b"a", body: bytes = b"1", **properties: Any) -> Message:
    """Return a message with properties as a library writes them."""
    written = header.ContentHeader(0, len(body), commands.Basic.Properties(**properties)).marshal()
    return topic, written[12:], body


def bare(flag: int, value: bytes, topic: bytes = b"a", body: bytes = b"1") -> Message:
    """Return a message with one property, given by its flag and bytes."""
    return topic, flag.to_bytes(2) + value, body


def short(text: bytes) -> bytes:
    return len(text).to_bytes(1) + text


def headed(*fields: bytes, body: bytes = b"1") -> Message:
    """Return a message with a table of headers, given by their bytes: name, type, value."""
    table = b"".join(fields)
    return bare(0x2000, len(table).to_bytes(4) + table, body=body)


def field(name: bytes, kind: bytes, value: bytes = b"") -> bytes:
    return short(name) + kind + value


def text(value: bytes) -> bytes:
    return len(value).to_bytes(4) + value


CONTENT_TYPE, ENCODING, TIMESTAMP, ID, TYPE = 0x8000, 0x4000, 0x0040, 0x0080, 0x0020
EVENT: Final = ""
"""What is expected of a message that may be an event; of others, a part of the reason why not."""

KINDS: Final = {
    b"t": b"\x01",
    b"b": b"\xff",
    b"B": b"\xff",
    b"s": b"\xff\xff",
    b"u": b"\xff\xff",
    b"I": b"\xff" * 4,
    b"i": b"\xff" * 4,
    b"l": b"\xff" * 8,
    b"f": struct.pack(">f", -1.5),
    b"d": struct.pack(">d", 1e300),
    b"S": text(b"\xff\x00"),
    b"x": text(b"\xff\x00"),
    b"T": b"\xff" * 8,
    b"V": b"",
    b"A": text(b"V" + b"A" + text(b"t\x01") + b"F" + text(field(b"", b"V"))),
    b"F": text(field(b"\xff\xfe", b"F", text(field(b"x" * 255, b"A", text(b""))))),
}
"""
Every type of field that RabbitMQ takes, with a value that is as odd as can be: decimals and what is no number
it refuses itself.
"""

BAD: Final[list[tuple[Message, str]]] = [
    # Headers.
    *((headed(field(b"odd", kind, value)), EVENT) for kind, value in KINDS.items()),
    (
        headed(*(field(b"%d" % number, kind, value) for number, (kind, value) in enumerate(KINDS.items()))),
        EVENT,
    ),
    (headed(field(b"\xff\xfe\x00", b"S", text(b"binary name"))), EVENT),
    (headed(field(b"", b"V"), field(b"", b"V")), EVENT),
    (headed(*(field(b"n%d" % number, b"l", bytes(8)) for number in range(1000))), EVENT),
    *((headed(field(b"key", kind, value)), EVENT) for kind, value in KINDS.items() if kind in b"bBsuIilTV"),
    *((headed(field(b"key", kind, KINDS[kind])), "its key is no text") for kind in (b"t", b"f", b"d")),
    # Versions of RabbitMQ differ in what of these they put into a stream.
    *((headed(field(b"key", kind, KINDS[kind])), EVENT) for kind in (b"x", b"A", b"F")),
    (headed(field(b"key", b"S", KINDS[b"S"])), "not UTF-8"),
    (headed(field(b"key", b"S", text(b""))), EVENT),
    (headed(field(b"key", b"S", text(b"k" * 100_000))), "255"),
    (headed(field(b"key", b"S", text(b"a")), field(b"key", b"S", text(b"b"))), EVENT),
    (headed(field(b"id", b"t", KINDS[b"t"])), "its message_id is no text"),
    (headed(field(b"id", b"S", text(b"from a header"))), EVENT),
    *((headed(field(b"timestamp_in_ms", kind, value)), EVENT) for kind, value in KINDS.items()),
    # What only the broker and replicas should write.
    *((headed(field(b"x-stream-offset", kind, value)), EVENT) for kind, value in KINDS.items()),
    (headed(field(b"x-stream-offset", b"l", bytes(8)), field(b"x-stream-offset", b"l", b"\x7f" * 8)), EVENT),
    (headed(field(b"x-stream-offset", b"S", text(b"")), field(b"x-stream-offset", b"V")), EVENT),
    *((headed(field(b"sluice", kind, value)), EVENT) for kind, value in KINDS.items()),
    (headed(field(b"sluice", b"S", text(b"e1;%b;g;origin;1" % (b"9" * 5000)))), EVENT),
    (headed(field(b"sluice", b"S", text(b"e1;99999999999999;m;o;999999999999999999"))), EVENT),
    (headed(field(b"sluice", b"S", text(b"e1;1;m;o;1")), field(b"time", b"S", text(b'","x":"'))), "its time"),
    (headed(field(b"sluice", b"S", text(b"e1;1;m;o;1")), field(b"time", b"t", b"\x01")), "its time"),
    (
        headed(field(b"sluice", b"S", text(b"e1;1;m;o;1")), field(b"type", b"t", b"\x01")),
        "its type is no text",
    ),
    (headed(field(b"sluice", b"S", text(b"e1;\xff;m;o;1"))), EVENT),
    (headed(field(b"sluice", b"S", text(b"m1;renewal;aaaaaa;n"))), EVENT),
    (headed(field(b"sluice", b"S", text(b"m1;proposal;aaaaaa;n"))), EVENT),
    # Missing and odd properties.
    ((b"a", b"\x00\x00", b"1"), EVENT),
    ((b"a", b"\x00\x00", b""), EVENT),
    (plain(delivery_mode=1, priority=255, correlation_id="c" * 255, reply_to="r" * 255, app_id="a"), EVENT),
    (bare(ID, short(b"")), EVENT),
    (bare(ID, short(b"i" * 255)), EVENT),
    (bare(ID, short("ä".encode() * 127)), EVENT),
    (bare(ID, short(b"\xff")), "not UTF-8"),
    (bare(ID, short(b"a\nb")), "U+000A"),
    (bare(TYPE, short(b"t" * 255)), EVENT),
    (bare(TYPE, short(b"\xc3")), "not UTF-8"),
    (bare(TYPE, short("a\u2028b".encode())), "U+2028"),
    *((bare(TIMESTAMP, time.to_bytes(8)), EVENT) for time in (0, 1, 2**31, 2**63, 2**64 - 1)),
    *(
        (bare(TIMESTAMP, time.to_bytes(8)), EVENT)
        for time in (99_999_999_999, 253_402_300_799, 253_402_300_800)
    ),
    *((bare(TIMESTAMP, time.to_bytes(8)), EVENT) for time in (253_402_300_799_999, 253_402_300_800_000)),
    (plain(expiration="0"), EVENT),
    (plain(expiration="4294967295"), EVENT),
    (bare(ENCODING, short(b"")), EVENT),
    (bare(ENCODING, short(b"gzip"), body=b"no gzip at all"), EVENT),
    (bare(ENCODING, short(b"\xff" * 255), body=b"{"), EVENT),
    (bare(CONTENT_TYPE | ENCODING, short(b"application/json") + short(b"identity"), body=b"{"), "JSON"),
    (bare(CONTENT_TYPE, short(b"")), EVENT),
    (bare(CONTENT_TYPE, short(b"\xff\xfe;;;=")), EVENT),
    (bare(CONTENT_TYPE, short(b"t" * 255)), EVENT),
    (bare(CONTENT_TYPE, short(b"text/plain; charset=klingon"), body=b"\xff"), EVENT),
    (bare(CONTENT_TYPE, short(b"text/plain; charset=utf-16"), body=b"\x00"), EVENT),
    (bare(CONTENT_TYPE, short(b"application/json; charset=utf-16"), body="{}".encode("utf-16")), "utf-8"),
    # Bodies.
    (bare(CONTENT_TYPE, short(b"application/json"), body=b""), "JSON"),
    (bare(CONTENT_TYPE, short(b"application/json"), body=b"{} {}"), "JSON"),
    (bare(CONTENT_TYPE, short(b"application/json"), body=b"NaN"), "JSON"),
    (bare(CONTENT_TYPE, short(b"application/json"), body=b'"\xff"'), ""),
    (bare(CONTENT_TYPE, short(b"application/json"), body=b'"\\ud800"'), "JSON"),
    (bare(CONTENT_TYPE, short(b"application/json"), body=b"[" * 50_000), "JSON"),
    (bare(CONTENT_TYPE, short(b"application/json"), body=b"[" * 50_000 + b"]" * 50_000), "recursion depth"),
    (bare(CONTENT_TYPE, short(b"application/json"), body=b"1" * 90_000), EVENT),
    (bare(CONTENT_TYPE, short(b"application/json"), body=b'{"a":1,"a":2,"\\u0000":"\\u2028"}'), EVENT),
    (bare(CONTENT_TYPE, short(b"application/json"), body=b'\r\n{\n"a":\r1}\n'), EVENT),
    (bare(CONTENT_TYPE, short(b"application/json"), body=b"\xef\xbb\xbf{}"), ""),
    ((b"a", b"\x00\x00", b"\x00" * 1000), EVENT),
    ((b"a", b"\x00\x00", "\ufeffa\u2028b\u0085c\r\nd".encode()), EVENT),
    ((b"a", b"\x00\x00", bytes(range(256))), EVENT),
    ((b"a", b"\x00\x00", b"x" * 100_000), "more than the 100000"),
    ((b"a", b"\x00\x00", b"x" * 200_000), "more than the 100000"),
    ((b"a", b"\x00\x00", b"x" * 200_001), "200001 bytes"),
    ((b"a", b"\x00\x00", b"x" * 16_000_000), "16000000 bytes"),
    # Routing keys that are no topics.
    ((b"", b"\x00\x00", b"1"), "the topic is empty"),
    ((b"k" * 255, b"\x00\x00", b"1"), EVENT),
    ((b"a." * 127 + b"a", b"\x00\x00", b"1"), EVENT),
    (("ä".encode() * 127, b"\x00\x00", b"1"), EVENT),
    ((b"a..b", b"\x00\x00", b"1"), "empty word"),
    ((b".", b"\x00\x00", b"1"), "empty word"),
    ((b"." * 255, b"\x00\x00", b"1"), "empty word"),
    ((b"*", b"\x00\x00", b"1"), "wildcard"),
    ((b"a.#.b", b"\x00\x00", b"1"), "wildcard"),
    ((b"\xff", b"\x00\x00", b"1"), "not UTF-8"),
    ((b"a\x00b", b"\x00\x00", b"1"), "U+0000"),
    ((b"a\r\n.b", b"\x00\x00", b"1"), "U+000D"),
    (("a\u2028".encode(), b"\x00\x00", b"1"), "U+2028"),
    ((b"a b", b"\x00\x00", b"1"), ""),
]


async def test_each_is_an_event_or_a_dead_letter(broker: Broker, topology: Topology) -> None:
    """Each odd message becomes what it can be, on every replica, live and read again; none is lost."""
    async with replicas(broker.url, topology, 2) as (one, two), raw_producer(broker.url) as raw:
        for message, _ in BAD:
            raw.send(topology.exchange, message)
        await raw.settle()
        await one.log.append([event("the.last")])
        await two.until(lambda: two.log.head == one.log.head, "the other did not read all")
        for each in (one, two):
            assert each.log.trouble() is None
            assert len(each.events) - 1 + each.log.statistics().dead == len(BAD)
            await each.until(lambda each=each: each.log.statistics().unburied == 0, "not all were buried")  # type: ignore[misc]
        _check_events(one, two)
        again = await one.everything()
        assert [(each.position, each.topic, each.tag) for each in again] == [
            (each.position, each.topic, each.tag) for each in one.events
        ]
        dead = await _reasons(broker, topology)
        first = min(each.position for each in one.events if each.topic != "the.last")
        # Marks of the replicas may lie between: the messages stand in the order of their positions.
        places = sorted([each.position for each in one.events if each.topic != "the.last"] + list(dead))
        assert len(places) == len(BAD)
        assert places[0] == first
        otherwise = [
            (message[0][:40], message[1][:60], message[2][:20], expected, dead.get(place))
            for (message, expected), place in zip(BAD, places, strict=True)
            if expected not in dead.get(place, "")
        ]
        assert not otherwise


def _check_events(one: Replica, two: Replica) -> None:
    """Check that all events are well-formed and the same on both replicas but for their times."""
    assert [(each.position, each.topic, each.tag) for each in one.events] == [
        (each.position, each.topic, each.tag) for each in two.events
    ]
    before = 0
    for each, other in zip(one.events, two.events, strict=True):
        assert each.time >= before
        before = each.time
        check_topic(each.topic)
        assert b"\n" not in each.body
        assert b"\r" not in each.body
        seen, there = (json.loads(b"{%b}" % body, parse_int=str) for body in (each.body, other.body))
        assert seen["topic"] == each.topic
        assert {"topic", "id", "type", "time"} <= seen.keys()
        assert ("data" in seen) != ("data_base64" in seen)
        assert len(seen["time"]) == len("2026-01-01T00:00:00.000Z")
        assert seen | {"time": 0} == there | {"time": 0}


async def _reasons(broker: Broker, topology: Topology) -> dict[int, str]:
    """Return the reasons of the dead letters, by position."""
    found: dict[int, str] = {}
    async with producer(broker.url) as channel:
        queue = await channel.get_queue(topology.dead)
        while (message := await queue.get(fail=False)) is not None:
            await message.ack()
            position = int(str(message.headers["x-sluice-position"]).rpartition("-")[2])
            found[position] = str(message.headers["x-sluice-reason"])
    assert all(found.values())
    return found


async def test_a_mistake_of_ours_costs_one_message(
    broker: Broker, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that breaks the gateway's own code is a dead letter, and the log goes on behind it."""
    make = Incoming.event

    def event_or_mistake(self: Incoming, received: Any, *rest: Any) -> Any:
        if received.delivery.key == b"break.it":
            raise RuntimeError("a mistake")
        return make(self, received, *rest)

    monkeypatch.setattr(Incoming, "event", event_or_mistake)
    async with replicas(broker.url, topology, 1) as (one,), producer(broker.url) as channel:
        await send(channel, topology, "break.it", b"1")
        await send(channel, topology, "fine", b"2")
        await one.until(lambda: len(one.events) == 1, "the log did not go on")
        assert [each.topic for each in await one.everything()] == ["fine"]
        await one.until(lambda: one.log.statistics().unburied == 0, "it was not buried")
    assert list((await _reasons(broker, topology)).values()) == ["the gateway made a mistake with it"]


async def test_large_messages_come_in_many_frames(broker: Broker, topology: Topology) -> None:
    """An event much longer than a frame goes both ways, from replicas and from others."""
    text = b'"%b"' % (b"x" * 1_000_000)
    async with (
        replicas(broker.url, topology, 2, max_event_bytes=2_000_000) as (one, two),
        producer(broker.url) as channel,
    ):
        await one.log.append([event(data=text)])
        await send(channel, topology, "large", text, content_type="application/json")
        await two.until(lambda: len(two.events) == 2, "not all came")
        assert [each.body.endswith(text) for each in two.events] == [True, True]
        assert [each.body.endswith(text) for each in await two.everything()] == [True, True]
