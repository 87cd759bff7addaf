"""Whatever bytes a broker passes on: a message is an event, or there is a sentence why it is none."""

from __future__ import annotations

import contextlib
import json
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands, frame

from fanout.event import Event
from gateway.amqp.frames import Delivery, FrameError, Inbox, Publications, joined
from gateway.amqp.properties import PropertiesError
from gateway.stream_messages import Incoming, NoEvent, Outgoing, Received

NOW: Final = 1_700_000_000_123
LIMIT: Final = 5_000
FLAGS: Final = (0x8000, 0x4000, 0x2000, 0x1000, 0x0800, 0x0400, 0x0200, 0x0100, 0x0080, 0x0040, 0x0020)
FIXED: Final = {
    "t": 1,
    "b": 1,
    "B": 1,
    "s": 2,
    "u": 2,
    "I": 4,
    "i": 4,
    "L": 8,
    "l": 8,
    "f": 4,
    "d": 8,
    "D": 5,
    "T": 8,
}

SHORTS = st.one_of(
    st.binary(max_size=255),
    st.text(max_size=60).map(str.encode),
    st.sampled_from(
        [b"", b"application/json", b"text/plain; charset=utf-8", b"application/octet-stream", b"gzip"]
    ),
    st.integers(-5, 2**70).map(lambda number: b"%d" % number),
)
NAMES = st.one_of(
    SHORTS,
    st.sampled_from([b"sluice", b"key", b"id", b"type", b"time", b"timestamp_in_ms", b"x-stream-offset"]),
)
OURS = st.one_of(
    st.from_regex(rb"e1;[0-9]{1,20};[mgx];[^;]{0,8};[0-9]{1,25}", fullmatch=True),
    st.from_regex(rb"m1;[a-z]{0,9};[a-z2-7]{0,6};[0-9a-z,]{0,9}", fullmatch=True),
    st.from_regex(rb"[0-9T:.Zz+-]{1,40}", fullmatch=True),
)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(str.encode),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ).map(lambda value: json.dumps(value, indent=2).encode()),
    st.integers(1, 3000).map(lambda depth: b"[" * depth + b"]" * depth),
    st.sampled_from([b"x" * (LIMIT - 20), b"x" * LIMIT, b"1" * 4000]),
)


def _long(text: bytes) -> bytes:
    return len(text).to_bytes(4) + text


def _fields(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Return tables without their size: names, types, and values of just the length that they should have."""
    fixed = st.sampled_from(sorted(FIXED)).flatmap(
        lambda kind: st.binary(min_size=FIXED[kind], max_size=FIXED[kind]).map(kind.encode().__add__)
    )
    sized = st.tuples(st.sampled_from(b"SxAF"), st.one_of(st.binary(max_size=300), OURS, values)).map(
        lambda pair: bytes((pair[0],)) + _long(pair[1])
    )
    value = st.one_of(fixed, sized, st.just(b"V"), OURS.map(lambda text: b"S" + _long(text)))
    return st.lists(st.tuples(NAMES, value), max_size=4).map(
        lambda fields: b"".join(bytes((len(name),)) + name + rest for name, rest in fields)
    )


TABLES = st.recursive(st.just(b""), _fields, max_leaves=3)


TYPICAL: Final = {
    0x8000: [b"application/json", b"text/plain", b"application/octet-stream"],
    0x4000: [b"identity", b"gzip"],
    0x0100: [b"0", b"60000", b"4294967295"],
    0x0080: [b"m-1", "ä".encode()],
    0x0020: [b"t", b"created"],
}
"""Properties that mean something, with values that are nothing special."""


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Draw property flags and list: an offset among the headers, and each property usual or not."""
    flags, parts = 0, []
    for flag in FLAGS:
        if flag != 0x2000 and draw(st.booleans()):
            continue
        flags |= flag
        if flag == 0x2000:
            offset = b"\x0fx-stream-offsetl" + draw(st.integers(0, 2**62)).to_bytes(8)
            parts.append(_long(b"".join(draw(st.permutations([offset, draw(TABLES)])))))
        elif flag in (0x1000, 0x0800):
            parts.append(draw(st.binary(min_size=1, max_size=1)))
        elif flag == 0x0040:
            parts.append(draw(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2**40))).to_bytes(8))
        else:
            usual = st.sampled_from(TYPICAL.get(flag, [b"x"]))
            text = draw(st.one_of(usual, usual, usual, SHORTS))[:255]
            parts.append(bytes((len(text),)) + text)
    return flags.to_bytes(2) + b"".join(parts)


TOPICS = st.sampled_from([b"orders.1", b"a", "ä.b".encode()])
DELIVERIES = st.builds(
    lambda exchange, key, header, body, longer: Delivery(
        1, 1, exchange, key, header, body, len(body) + longer
    ),
    st.sampled_from([b"", b"events"]),
    st.one_of(TOPICS, TOPICS, TOPICS, st.binary(max_size=255), st.text(max_size=60).map(str.encode)),
    st.one_of(headers(), headers(), headers(), st.binary(max_size=120)),
    BODIES,
    st.sampled_from([0] * 9 + [1]),
)


@settings(max_examples=500, deadline=None)
@given(DELIVERIES, st.integers(0, 2**43), st.integers(0, 2**43))
def test_a_message_is_an_event_or_there_is_a_reason(delivery: Delivery, earliest: int, latest: int) -> None:
    """Any bytes end in an event that is as it must be, or in the one error that says why it is none."""
    with contextlib.suppress(PropertiesError, NoEvent):
        received = Received(delivery)
        if received.mark is None:
            _check(Incoming(LIMIT).event(received, "abcdef", earliest, latest), received, earliest, latest)


def _check(event: Event, received: Received, earliest: int, latest: int) -> None:
    assert event.position == received.offset + 1
    assert earliest <= event.time <= max(latest, earliest)
    assert len(event.body) <= LIMIT
    assert b"\n" not in event.body
    assert b"\r" not in event.body
    seen = json.loads(b"{%b}" % event.body)
    assert seen["topic"] == event.topic == received.delivery.key.decode()
    assert ("data" in seen) != ("data_base64" in seen)
    assert event.expires >= 0
    if event.given_id is not None:
        assert event.given_id == seen["id"]
    # A replica can publish it again as it is.
    key, properties, body = Outgoing("o").message(event, 1)
    assert len(key) <= 255
    assert joined([Publications(1, "e", 4096).frames(key, properties, body)])


@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_bytes_are_frames_or_no_amqp(data: bytes, cut: int) -> None:
    """Bytes that are no frames end in the one error, however they are cut."""
    with contextlib.suppress(FrameError):
        inbox = Inbox(max_frame=200)
        for at in range(0, len(data), cut):
            inbox.feed(data[at : at + cut])


@given(st.data())
def test_damaged_frames_are_frames_or_no_amqp(data: st.DataObject) -> None:
    """Frames of which some bytes were changed, left out or put in end in frames or in the one error."""
    method = commands.Basic.Deliver("consumer", 7, False, "events", "a.b")
    whole = bytearray(
        frame.marshal(method, 1)
        + b"\x02\x00\x01\x00\x00\x00\x0e\x00\x3c\x00\x00" + (3).to_bytes(8) + b"\x00\x00\xce"
        + b"\x03\x00\x01\x00\x00\x00\x03xyz\xce"
        + frame.marshal(commands.Basic.Ack(1, True), 1)
    ) * 2  # fmt: skip
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        change = data.draw(st.sampled_from(["set", "drop", "put"]))
        if change == "drop":
            del whole[at]
        elif change == "put":
            whole.insert(at, data.draw(st.integers(0, 255)))
        else:
            whole[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(whole)))
    with contextlib.suppress(FrameError):
        inbox = Inbox(max_frame=4096)
        for at in range(0, len(whole), cut):
            inbox.feed(bytes(whole[at : at + cut]))
