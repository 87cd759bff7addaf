"""The account that the scenarios go by notices whatever can be wrong."""

from __future__ import annotations

import itertools

import pytest

from fanout.frames import Wire, event_frame
from tests.support.accounts import Follower, Ledger, account
from tests.support.crowd import Producer

EPOCH = "abcdef"
START = f"{EPOCH}-10-0000"


def _producer(published: int) -> Producer:
    producer = Producer(0, "p", ["t"])
    producer.published = published
    return producer


def _reads(ledger: Ledger, *events: tuple[int, int], transport: str = "websocket") -> Follower:
    """Return a client that was shown events, given by position and number."""
    follower = Follower([0], itertools.repeat(transport), ledger, ["#"], START)
    follower.transport = transport
    wires = {"websocket": Wire.WEBSOCKET, "sse": Wire.SSE_CHUNKED, "ndjson": Wire.NDJSON_CHUNKED}
    for position, number in events:
        frame = event_frame(
            wires[transport], f"{EPOCH}-{position}-0001", b'"topic":"t","data":["p",%d]' % number
        )
        frames, rest = follower._split(frame)
        assert rest == b""
        for each in frames:
            shown = ledger.read(each, follower._parse)
            follower.take(shown)  # type: ignore[arg-type]  # it is an event
    return follower


ALL = ((11, 0), (12, 1), (14, 2))


@pytest.mark.parametrize("transport", ["websocket", "sse", "ndjson"])
def test_what_is_right_passes(transport: str) -> None:
    """A client that got everything, on whatever wire, is as it should be."""
    ledger = Ledger()
    result = account([_reads(ledger, *ALL), _reads(ledger, *ALL, transport=transport)], [_producer(3)])
    result.check()
    assert (result.expected, result.seen) == (6, 6)


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        (ALL[1:], "lost 1"),
        (ALL[:2], "lost 1"),
        ((ALL[0], ALL[2]), "lost 1"),
        ((), "lost 3"),
        ((*ALL, ALL[2]), "twice 1"),
        ((ALL[0], ALL[0], ALL[1], ALL[2]), "twice 1"),
        ((*ALL, (15, 2)), "twice 1"),
        ((ALL[0], ALL[2], ALL[1]), "out of order 1"),
        ((ALL[0], (13, 1), ALL[2]), "differing cursors 1"),
    ],
)
def test_what_is_wrong_is_named(events: tuple[tuple[int, int], ...], fault: str) -> None:
    """Whatever a client lacks, has twice, in another order or at another place is counted."""
    ledger = Ledger()
    result = account([_reads(ledger, *ALL), _reads(ledger, *events)], [_producer(3)])
    assert fault in str(result)
    with pytest.raises(AssertionError, match=fault):
        result.check()
