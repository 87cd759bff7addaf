"""Messages, marks and addresses: what is written comes back the same, and what is damaged has a sentence."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, header

from fanout.event import Event
from gateway.amqp.address import Address, AddressError
from gateway.amqp.frames import Delivery
from gateway.amqp.properties import (
    Properties,
    PropertiesError,
    encode,
    encode_headers,
    timestamp,
    usual,
)
from gateway.mint import DATA, DATA_BASE64, Mint
from gateway.stream_marks import (
    BARRIER,
    PROPOSAL,
    RENEW_EVENTS,
    RENEWAL,
    EpochSearch,
    Renewal,
    random_epoch,
)
from gateway.stream_messages import HEADER, Incoming, Mark, NoEvent, Outgoing, Received
from gateway.stream_seen import Seen

NOW = 1_700_000_000_123
TEXTS = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=255)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(max_size=20),
    st.none(),
    st.lists(st.integers(0, 100), max_size=3),
)


def _delivery(
    key: bytes, properties: bytes, body: bytes, offset: int, exchange: bytes = b"events"
) -> Delivery:
    """Return a message as a stream delivers it: with its offset among the headers."""
    read = Properties(properties)
    headers = encode_headers(read.headers | {b"x-stream-offset": offset})
    flags = int.from_bytes(properties[:2]) | 0x2000
    at = 2 + (1 + properties[2] if flags & 0x8000 else 0)
    rest = properties[at + len(encode_headers(read.headers)) :] if read.headers else properties[at:]
    return Delivery(
        1, 1, exchange, key, flags.to_bytes(2) + properties[2:at] + headers + rest, body, len(body)
    )


@given(
    topic=st.text("abc.", min_size=1, max_size=20).filter(lambda text: "" not in text.split(".")),
    data=st.sampled_from([b"1", b'"a"', b'{"data":{"data_base64":1},"key":"k"}', '"ä,\\"data\\":"'.encode()]),
    id=st.none() | TEXTS,
    type=st.none() | TEXTS,
    key=st.none() | TEXTS,
    ttl=st.none() | st.floats(0.001, 1000),
)
def test_an_event_comes_back_as_it_was(
    topic: str, data: bytes, id: str | None, type: str | None, key: str | None, ttl: float | None
) -> None:
    """An event that is published as a message and read back is the same, on whatever replica."""
    event = Mint(1 << 20, "prefix").event(NOW, topic, data, id, type, key, ttl)
    back = _there_and_back(event)
    assert _facts(back) == _facts(event)
    assert back.position == 42


def test_binary_data_and_a_time_of_its_own_come_back() -> None:
    """Base64 travels as bytes, and a time that the producer gave is kept beside that of the log."""
    mint = Mint(1 << 20, "prefix")
    event = mint.event(NOW, "a", b'"/wA="', time=b"1999-12-31T23:59:59.5+01:00", member=DATA_BASE64)
    _, properties, body = Outgoing("o").message(event, 1)
    assert body == b"\xff\x00"
    assert Properties(properties).content_type == b"application/octet-stream"
    assert _facts(_there_and_back(event)) == _facts(event)


def _there_and_back(event: Event) -> Event:
    key, properties, body = Outgoing("origin").message(event, 7)
    received = Received(_delivery(key, properties, body, 41))
    assert (received.origin, received.number, received.offset) == (b"origin", 7, 41)
    return Incoming(1 << 20).event(received, "abcdef", 0, NOW + 1000)


def _facts(event: Event) -> tuple[Any, ...]:
    return event.topic, event.body, event.time, event.tag, event.key, event.expires, event.given_id


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=5), VALUES, max_size=6),
    st.text("abc", min_size=1, max_size=9),
)
def test_properties_are_what_pamqp_wrote(headers: dict[str, Any], text: str) -> None:
    """Whatever types a producer's headers have, properties and headers are read as pamqp wrote them."""
    written = commands.Basic.Properties(
        content_type="text/plain",
        headers=headers,
        delivery_mode=2,
        priority=3,
        correlation_id=text,
        reply_to=text,
        expiration="5",
        message_id=text,
        message_type=text,
        user_id="guest",
        app_id=text,
    )
    raw = header.ContentHeader(0, 1, written).marshal()
    read = Properties(raw[12:])
    assert (read.content_type, read.expiration) == (b"text/plain", b"5")
    assert (read.message_id, read.type) == (text.encode(), text.encode())
    assert {name.decode() for name in read.headers} == set(headers)
    for name, value in headers.items():
        if isinstance(value, str):
            assert read.headers[name.encode()] == value.encode()
        elif isinstance(value, int):
            assert read.headers[name.encode()] == value


@given(st.binary(max_size=255), st.binary(max_size=255), st.binary(max_size=400), st.integers(0, 2**63 - 1))
def test_the_usual_is_what_encode_returns(text: bytes, name: bytes, value: bytes, seconds: int) -> None:
    """The short way of writing what most messages have writes the same bytes as the long way."""
    assert usual(text, name, value, text[::-1], timestamp(seconds), text[:9]) == encode(
        text, encode_headers({name: value}), message_id=text[::-1], timestamp=seconds, type=text[:9]
    )


def test_of_headers_with_one_name_the_first_counts() -> None:
    """A second offset, which a producer wrote, does not stand in for the one that the broker wrote."""
    fields = b"".join(b"\x0fx-stream-offsetl" + number.to_bytes(8) for number in (7, 2**62, 1))
    table = fields + b"\x03keyS\x00\x00\x00\x01a\x03keyV"
    read = Properties(b"\x20\x00" + len(table).to_bytes(4) + table)
    assert read.headers == {b"x-stream-offset": 7, b"key": b"a"}


@given(st.binary(max_size=80))
def test_damaged_properties_are_refused(raw: bytes) -> None:
    """Bytes that are no properties end in properties or in a refusal, never in anything else."""
    with contextlib.suppress(PropertiesError):
        assert Properties(raw).headers is not None


@pytest.mark.parametrize(
    ("headers", "key", "sentence"),
    [
        ({b"x-stream-offset": 1, b"key": b"\xff"}, b"a", "not UTF-8"),
        ({b"x-stream-offset": 1}, b"\xff", "not UTF-8"),
        ({b"x-stream-offset": 1}, b"", "empty"),
    ],
)
def test_what_cannot_be_an_event_says_why(headers: dict[bytes, Any], key: bytes, sentence: str) -> None:
    """A message that cannot be an event is refused with the reason."""
    properties = b"\x20\x00" + encode_headers(headers)
    received = Received(Delivery(1, 1, b"events", key, properties, b"1", 1))
    with pytest.raises(NoEvent, match=sentence):
        Incoming(1 << 20).event(received, "abcdef", 0, NOW)


def test_a_producers_clock_does_not_lead() -> None:
    """A time in the future is shown as it was given, but does not carry the log's time with it."""
    stamp = (NOW // 1000 + 86_400).to_bytes(8)
    properties = b"\x20\x40" + encode_headers({b"x-stream-offset": 0}) + stamp
    received = Received(Delivery(1, 1, b"events", b"a", properties, b"1", 1))
    event = Incoming(1 << 20).event(received, "abcdef", 0, NOW)
    assert event.time == NOW
    assert b'"time":"2023-11-15T22:13:20.000Z"' in event.body
    assert DATA in event.body


def test_a_lifetime_is_counted_from_the_end_of_a_second() -> None:
    """A producer's time in whole seconds may be any moment of them: a short life does not end before that."""
    headers = encode_headers({b"x-stream-offset": 0})
    properties = b"\x21\x40" + headers + b"\x03500" + (NOW // 1000).to_bytes(8)
    received = Received(Delivery(1, 1, b"events", b"a", properties, b"1", 1))
    event = Incoming(1 << 20).event(received, "abcdef", 0, NOW + 5)
    assert event.time == NOW // 1000 * 1000
    assert event.expires == event.time + 999 + 500


def test_a_mark_is_one_only_beside_the_exchanges() -> None:
    """A mark is read back as it was written; one that came through an exchange is somebody's message."""
    mark = Mark(PROPOSAL, "abcdef", "n1")
    direct = Received(_delivery(b"s", mark.properties(), b"null", 3, exchange=b""))
    assert direct.mark is not None
    assert (direct.mark.kind, direct.mark.epoch, direct.mark.nonce) == (PROPOSAL, "abcdef", "n1")
    assert Received(_delivery(b"s", mark.properties(), b"null", 3)).mark is None


@pytest.mark.parametrize(
    "forged",
    [
        b"e1;99999999999999999;g;o;1",  # a time beyond every calendar
        b"e1;%b;g;o;1" % (b"9" * 5000),
        b"e1;1;g;o;%b" % (b"9" * 5000),
        b"e1;-1;g;o;1",
        b"e1;1;x;o;1",
        b"m1;proposal;ABCDEF;1",
        b"m1;" + b"\xff" * 9,
        b"",
        b"\x00",
    ],
)
def test_a_forged_header_is_no_header(forged: bytes) -> None:
    """Whatever somebody writes into our header, the message is an event like anybody's."""
    properties = encode(b"text/plain", encode_headers({HEADER: forged}))
    received = Received(_delivery(b"a", properties, b"x", 3, exchange=b""))
    assert (received.origin, received.mark) == (None, None)
    event = Incoming(1 << 20).event(received, "abcdef", 0, NOW)
    assert (event.time, event.position) == (NOW, 4)


@given(st.integers(0, 10**14 - 1))
def test_any_time_in_our_header_is_told(time: int) -> None:
    """A replica's clock may be anywhere: the log's time neither runs ahead nor goes back."""
    properties = encode(b"text/plain", encode_headers({HEADER: b"e1;%d;g;o;1" % time}))
    event = Incoming(1 << 20).event(Received(_delivery(b"a", properties, b"x", 3)), "abcdef", NOW - 1000, NOW)
    assert NOW - 1000 <= event.time <= NOW


@pytest.mark.parametrize("time", [b'","data":1,"x":"', b"\xff", 7, True, b"", b"1" * 41])
def test_a_time_that_is_none_is_refused(time: bytes | int) -> None:
    """The time that is written beside the log's goes into the JSON as it is, so it is looked at."""
    headers = encode_headers({HEADER: b"e1;1;g;o;1", b"time": time})
    received = Received(_delivery(b"a", encode(b"text/plain", headers), b"x", 3))
    with pytest.raises(NoEvent, match="time"):
        Incoming(1 << 20).event(received, "abcdef", 0, NOW)


@given(st.lists(st.sampled_from([BARRIER, PROPOSAL, RENEWAL]), max_size=12), st.integers(0, 12))
def test_every_reader_finds_the_same_epoch(kinds: list[str], start: int) -> None:
    """Wherever a replica begins to read, it finds the epoch that counts, or that it must look further."""
    winner: str | None = None
    marks: list[Mark] = []
    for number, kind in enumerate(kinds):
        if kind == RENEWAL and winner is None:
            continue  # nobody renews what was not settled
        epoch = {BARRIER: "", PROPOSAL: random_epoch(), RENEWAL: winner or ""}[kind]
        marks.append(Mark(kind, epoch, str(number)))
        if kind == PROPOSAL and winner is None:
            winner = epoch
    search = EpochSearch()
    for mark in marks[start:]:
        search.note(mark)
    found = search.epoch(complete=start == 0)
    assert found == winner if start == 0 else found in (winner, None)


def test_the_epoch_is_renewed_before_retention_takes_it() -> None:
    """Much that was read, many messages, or a long time: each is followed by a renewal; quiet needs none."""
    renewal = Renewal(1000, 60)
    renewal.renewed(50, 100.0)
    assert not renewal.due(50, 10_000.0)
    assert not renewal.due(51, 105.0)
    assert renewal.due(51, 112.1)
    assert not renewal.due(50 + RENEW_EVENTS, 100.0)
    assert renewal.due(51 + 2 * RENEW_EVENTS, 100.0)
    renewal.bytes = 501
    assert renewal.due(51, 100.0)
    renewal.renewed(60, 100.0)
    assert not renewal.due(61, 100.0)
    assert not Renewal(1000, 0).due(1, 1e9)


def test_an_epoch_that_is_none_is_no_mark() -> None:
    """A renewal that names no epoch says nothing."""
    search = EpochSearch()
    search.note(Mark(RENEWAL, "", "1"))
    search.note(Mark(RENEWAL, "ABCDEF", "1"))
    assert search.epoch(complete=True) is None


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 400)), max_size=60))
def test_the_second_of_an_id_is_recognised_within_the_window(steps: list[tuple[str, int]]) -> None:
    """An id within the window of its first event is a second copy, and after that it is new again."""
    seen = Seen(1000, 1_000_000)
    first: dict[str, tuple[int, int]] = {}
    time = 0
    for position, (id, step) in enumerate(steps, 1):
        time += step
        known = first.get(id)
        expected = known[0] if known is not None and time - known[1] < 1000 else None
        assert seen.original(id, position, time) == expected
        if expected is None:
            first[id] = (position, time)


def test_ids_are_bounded() -> None:
    """Of too many ids the oldest are forgotten; with a window of nothing none is remembered."""
    seen = Seen(1000, 80)
    for number in range(1000):
        assert seen.original(str(number), number, 0) is None
    assert seen.original("0", 2000, 0) is None
    assert seen.original("999", 2001, 0) == 999
    none = Seen(0, 80)
    assert [none.original("a", number, 0) for number in (1, 2)] == [None, None]


@pytest.mark.parametrize(
    ("text", "hosts", "rest"),
    [
        ("amqp://", [("localhost", 5672)], ("guest", "guest", "/", False)),
        ("amqps://mq/", [("mq", 5671)], ("guest", "guest", "/", True)),
        ("amqp://me:p%40ss@a:1,b/live", [("a", 1), ("b", 5672)], ("me", "p@ss", "live", False)),
        ("amqp://me@[::1]:7/a%2Fb", [("::1", 7)], ("me", "guest", "a/b", False)),
    ],
)
def test_an_address_is_read(text: str, hosts: list[tuple[str, int]], rest: tuple[Any, ...]) -> None:
    """Users, hosts, ports and the virtual host are read as RabbitMQ's URI specification says."""
    address = Address.parse(text)
    assert list(address.hosts) == hosts
    assert (address.user, address.password, address.vhost, address.tls) == rest
    assert "p@ss" not in repr(address)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("http://mq", "begins with"),
        ("amqp://mq:x/", "no port"),
        ("amqp://a,,b/", "names no host"),
        ("amqp://mq/a/b", "%2F"),
        ("amqp://mq/?heartbeat=5", "nothing behind"),
        ("amqp://me:hu@sh@mq/", "written %40"),
        ("amqp://me:hu/sh@mq/", "written %40"),
        ("amqp://me:hu?sh@mq/", "written %40"),
        ("amqp://me:hu#sh@mq/", "written %40"),
        ("amqp://me:hush@mq\u2100/", "no URL"),
        ("amqp://me:hush@[::1/", "no URL"),
    ],
)
def test_what_is_no_address_is_refused(text: str, sentence: str) -> None:
    """An address with a mistake is refused with a sentence."""
    with pytest.raises(AddressError, match=sentence) as caught:
        Address.parse(text)
    assert "hu" not in str(caught.value)
