"""AMQP framing: what comes in is what pamqp would read, what goes out is what pamqp would have written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, frame, header, heartbeat

from gateway.amqp.frames import (
    HEARTBEAT_FRAME,
    Confirm,
    Delivery,
    Frame,
    FrameError,
    Inbox,
    Publications,
    ack,
    confirm_of,
    joined,
)

KEYS = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), max_size=60)
NAMES = st.text("abcXYZ09-_.:", max_size=60)
BODIES = st.binary(max_size=300)
CHANNELS = st.integers(1, 3)


def _delivered(channel: int, tag: int, exchange: str, key: str, data: bytes, cut: int) -> bytes:
    """Return a delivery as a broker writes it, the body in frames of at most `cut` bytes."""
    method = commands.Basic.Deliver("consumer", tag, False, exchange, key)
    parts = [
        frame.marshal(method, channel),
        frame.marshal(header.ContentHeader(0, len(data), commands.Basic.Properties("text/plain")), channel),
    ]
    parts += [
        frame.marshal(body.ContentBody(data[at : at + cut]), channel) for at in range(0, len(data), cut)
    ]
    return b"".join(parts)


MESSAGES = st.lists(
    st.tuples(CHANNELS, st.integers(0, 2**63 - 1), NAMES, KEYS, BODIES, st.integers(1, 300)), max_size=8
)


@given(MESSAGES, st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_any_cut_of_the_bytes_gives_the_same_deliveries(
    messages: list[tuple[int, int, str, str, bytes, int]], cuts: list[int]
) -> None:
    """However the network cuts the bytes, the same deliveries come out, and nothing is left over."""
    data = b"".join(_delivered(*each) for each in messages)
    inbox = Inbox()
    found: list[Delivery] = []
    at = index = 0
    while at < len(data):
        size = cuts[index % len(cuts)]
        deliveries, others = inbox.feed(data[at : at + size])
        found += deliveries
        assert not others
        at += size
        index += 1
    assert [(each.channel, each.tag, each.exchange, each.key, each.body) for each in found] == [
        (channel, tag, exchange.encode(), key.encode(), data)
        for channel, tag, exchange, key, data, _ in messages
    ]
    assert all(each.header.endswith(b"\x0atext/plain") for each in found)


@given(KEYS, BODIES, st.integers(20, 400))
def test_a_publication_is_what_pamqp_reads(key: str, data: bytes, max_frame: int) -> None:
    """The built frames are read by pamqp as the publication they are; none is longer than agreed."""
    properties = b"\x80\x00\x0atext/plain"
    raw = joined([Publications(2, "events", max_frame).frames(key.encode(), properties, data)])
    frames = []
    while raw:
        size, channel, each = frame.unmarshal(raw)
        assert channel == 2
        frames.append(each)
        if isinstance(each, body.ContentBody):
            assert size <= max_frame
        raw = raw[size:]
    publish, head = frames[0], frames[1]
    assert isinstance(publish, commands.Basic.Publish)
    assert (publish.exchange, publish.routing_key, publish.mandatory) == ("events", key, True)
    assert isinstance(head, header.ContentHeader)
    assert (head.body_size, head.properties.content_type) == (len(data), "text/plain")
    pieces = [each.value for each in frames[2:] if isinstance(each, body.ContentBody)]
    assert b"".join(pieces) == data


@given(CHANNELS, st.integers(0, 2**63 - 1))
def test_an_acknowledgement_is_what_pamqp_writes(channel: int, tag: int) -> None:
    """The built acknowledgement is that of pamqp, byte for byte."""
    assert ack(channel, tag) == frame.marshal(commands.Basic.Ack(tag, True), channel)


@given(st.integers(0, 2**63 - 1), st.booleans())
def test_confirms_are_read(tag: int, multiple: bool) -> None:
    """Positive and negative confirms are told apart, and other methods are none."""
    for positive, method in (
        (True, commands.Basic.Ack(tag, multiple)),
        (False, commands.Basic.Nack(tag, multiple)),
    ):
        _, others = Inbox().feed(frame.marshal(method, 1))
        assert confirm_of(others[0].payload) == Confirm(tag, multiple, positive)
    assert confirm_of(Inbox().feed(frame.marshal(commands.Channel.OpenOk(), 1))[1][0].payload) is None


def test_other_frames_are_handed_on() -> None:
    """Heartbeats, methods and returned messages come out in their order, between the deliveries."""
    returned = commands.Basic.Return(312, "NO_ROUTE", "events", "a.b")
    data = (
        HEARTBEAT_FRAME
        + _delivered(1, 1, "", "a", b"x", 10)
        + frame.marshal(returned, 1)
        + frame.marshal(header.ContentHeader(0, 2, commands.Basic.Properties()), 1)
        + frame.marshal(body.ContentBody(b"no"), 1)
        + frame.marshal(commands.Connection.Blocked("low on disk"), 0)
    )
    deliveries, others = Inbox().feed(data)
    assert [each.body for each in deliveries] == [b"x"]
    assert [each.kind for each in others] == [8, 1, 1]
    assert others[1].payload == frame.marshal(returned, 1)[7:-1]
    assert frame.marshal(heartbeat.Heartbeat(), 0) == HEARTBEAT_FRAME
    assert isinstance(others[0], Frame)


def test_a_body_that_is_too_long_is_counted_and_not_kept() -> None:
    """A body beyond the limit costs no memory, and the delivery tells how long it was."""
    deliveries, _ = Inbox(max_body=99).feed(
        _delivered(1, 1, "", "a", b"x" * 100, 40) + _delivered(1, 2, "", "b", b"y" * 99, 40)
    )
    assert [(each.size, each.body) for each in deliveries] == [(100, b""), (99, b"y" * 99)]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"AMQP\x00\x01\x00\x00", "another version"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no AMQP"),
        (b"\x01\x00\x01\x00\x00\x00\x04\x00\x14\x00\x0b\x00", "does not end"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it speaks HTTP"),
        (
            b"\x01\x00\x01\x00\x00\x00\x05\x00\x3c\x00\x3c\x09\xce" + b"\x02\x00\x01\x00\x00\x00\x01x\xce",
            "shorter",
        ),
        (frame.marshal(body.ContentBody(b"x"), 1), "without a message"),
        (frame.marshal(header.ContentHeader(0, 2, commands.Basic.Properties()), 1), "without a message"),
    ],
)
def test_what_is_no_amqp_is_refused(data: bytes, sentence: str) -> None:
    """Bytes that are no frames, or frames in no order, end with a sentence that says so."""
    with pytest.raises(FrameError, match=sentence):
        Inbox().feed(data)


def test_a_closed_channel_leaves_nothing() -> None:
    """What came in part on a channel is forgotten with it."""
    inbox = Inbox()
    whole = _delivered(1, 1, "", "a", b"xyz", 10)
    method = frame.unmarshal(whole)[0]
    inbox.feed(whole[:method])
    inbox.forget(1)
    with pytest.raises(FrameError, match="without a message"):
        inbox.feed(whole[method:])
