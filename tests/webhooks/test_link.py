"""The link, against receivers that do what no library would: what is an answer, and how far it is read."""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import dataclass
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.receiver import (
    HEAD,
    OK,
    Peer,
    Script,
    always,
    answers,
    receiver,
    sockets_to,
    until,
    with_status,
)
from tests.support.sender import BODY, HEADERS, FakeTransport, Heard, open_sender, outcome_of
from webhooks.attempt import Fault
from webhooks.link import MAX_ANSWER, MAX_HEAD, Link
from webhooks.sender import MAX_EXCERPT
from webhooks.target import parse_target

# --- what is answered ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status",
    [200, 201, 202, 206, 299, 301, 302, 303, 307, 400, 401, 404, 408, 410, 429, 500, 502, 503, 504, 600, 999],
)
async def test_every_status_is_an_outcome(status: int) -> None:
    """Whatever a receiver answers is what came of the attempt; what it means others decide."""
    outcome = await outcome_of(answers(with_status(status)))
    assert (outcome.status, outcome.error, outcome.excerpt) == (status, None, b"ok")


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_end_with_their_head(status: int) -> None:
    """204 and 304 have no body, whatever length they state, and the connection is used again."""
    answer = f"HTTP/1.1 {status} X\r\nContent-Length: 7\r\n\r\n".encode()
    async with receiver(answers(answer, OK)) as found, open_sender() as sender:
        assert (await sender.send(parse_target(found.url), HEADERS, BODY)).status == status
        assert (await sender.send(parse_target(found.url), HEADERS, BODY)).status == 200
    assert found.connections == 1


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["Retry-After: 120"], "120"),
        (["Retry-After: Wed, 21 Oct 2026 07:28:00 GMT"], "Wed, 21 Oct 2026 07:28:00 GMT"),
        (["retry-after:  7  "], "7"),
        (["RETRY-AFTER: 1", "Retry-After: 2"], "1"),
        (["Retry-After: soon\xff"], "soon\xc3\xbf"),
        (["Retry-After: " + "9" * 5000], "9" * 256),
        (["Retry-After:"], ""),
        ([], None),
    ],
)
async def test_retry_after_is_handed_on(lines: list[str], text: str | None) -> None:
    """The text of Retry-After is part of the outcome as it came, up to a bound."""
    outcome = await outcome_of(answers(with_status(429, *lines)))
    assert (outcome.status, outcome.retry_after) == (429, text)


@dataclass
class Case:
    """
    An answer, and what should come of it.

    Attributes:
        data: the answer; nothing comes behind it.
        close: the receiver closes behind it.
        again: the connection is used again.
    """

    data: bytes
    status: int | None = 200
    excerpt: bytes = b"abc"
    error: Fault | None = None
    close: bool = False
    again: bool = True


FRAMINGS = {
    "length": Case(HEAD + b"Content-Length: 3\r\n\r\nabc"),
    "no reason phrase": Case(b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc"),
    "an empty line before it": Case(b"\r\n" + HEAD + b"Content-Length: 3\r\n\r\nabc"),
    "an empty line behind it": Case(HEAD + b"Content-Length: 3\r\n\r\nabc\r\n"),
    "chunked": Case(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2;x=y\r\nbc\r\n0\r\n\r\n"),
    "chunked with a trailer": Case(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nRetry-After: 5\r\n\r\n"
    ),
    "close": Case(HEAD + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc", again=False),
    "until the end": Case(HEAD + b"\r\nabc", close=True, again=False),
    "no body until the end": Case(HEAD + b"\r\n", excerpt=b"", close=True, again=False),
    "HTTP/1.0": Case(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", again=False),
    "HTTP/1.0 until the end": Case(b"HTTP/1.0 200 OK\r\n\r\nabc", close=True, again=False),
    "HTTP/1.0 kept alive": Case(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc"),
    "100 first": Case(b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 3\r\n\r\nabc"),
    "several interim answers": Case(
        b"HTTP/1.1 102 Processing\r\nRetry-After: 5\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        + HEAD
        + b"Content-Length: 3\r\n\r\nabc"
    ),
    "compressed all the same": Case(
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 23\r\n\r\n" + gzip.compress(b"abc", mtime=0),
        excerpt=gzip.compress(b"abc", mtime=0),
    ),
    # The head decides: what follows it may break off or be nonsense.
    "cut off in its body": Case(HEAD + b"Content-Length: 9\r\n\r\nabc", close=True, again=False),
    "cut off in a chunk": Case(HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc", close=True, again=False),
    "nonsense for a chunk": Case(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", excerpt=b"", again=False
    ),
    # What is no answer.
    "nothing": Case(b"", None, b"", "reset", close=True, again=False),
    "half a head": Case(HEAD + b"Content-Len", None, b"", "reset", close=True, again=False),
    "an interim answer only": Case(b"HTTP/1.1 100 X\r\n\r\n", None, b"", "reset", close=True, again=False),
    "101": Case(b"HTTP/1.1 101 X\r\n\r\n", None, b"", "protocol", again=False),
    "101 with an upgrade": Case(
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        None,
        b"",
        "protocol",
        again=False,
    ),
    "another protocol": Case(b"SSH-2.0-OpenSSH_9.2\r\n", None, b"", "protocol", again=False),
    "HTML": Case(b"<html><body>hello</body></html>", None, b"", "protocol", again=False),
    "a request": Case(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", None, b"", "protocol", again=False),
    "HTTP/2": Case(b"\0\0\x12\x04\0\0\0\0\0", None, b"", "protocol", again=False),
    "HTTP/2.0": Case(b"HTTP/2.0 200 OK\r\n\r\n", None, b"", "protocol", again=False),
    "HTTP/0.9": Case(b"HTTP/0.9 200 OK\r\n\r\n", None, b"", "protocol", again=False),
    "status 99": Case(b"HTTP/1.1 99 X\r\n\r\n", None, b"", "protocol", again=False),
    "status 1200": Case(b"HTTP/1.1 1200 X\r\n\r\n", None, b"", "protocol", again=False),
    "status two hundred": Case(b"HTTP/1.1 two hundred\r\n\r\n", None, b"", "protocol", again=False),
    "two lengths": Case(
        HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", None, b"", "protocol", again=False
    ),
    "length and chunks": Case(
        HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        None,
        b"",
        "protocol",
        again=False,
    ),
    "a negative length": Case(HEAD + b"Content-Length: -3\r\n\r\n", None, b"", "protocol", again=False),
    "a zero in a header": Case(HEAD + b"X: a\0b\r\n\r\n", None, b"", "protocol", again=False),
    "a folded header": Case(HEAD + b"X: a\r\n b\r\n\r\n", None, b"", "protocol", again=False),
}


@pytest.mark.parametrize("surplus", [OK, b"HTT", b"\0\0\0"])
async def test_what_comes_behind_an_answer_is_nobodys(surplus: bytes) -> None:
    """A connection with something behind an answer is closed, and never answers the next request with it."""
    async with receiver(answers(OK + surplus), always) as found, open_sender() as sender:
        for _ in range(2):
            outcome = await sender.send(parse_target(found.url), HEADERS, BODY)
            assert (outcome.status, outcome.excerpt) == (200, b"ok")
        assert sender.statistics().repeated == 0
    assert found.connections == 2


@pytest.mark.parametrize("case", FRAMINGS.values(), ids=FRAMINGS)
@pytest.mark.parametrize("piece", [1 << 20, 1])
async def test_every_form_of_an_answer_is_read(case: Case, piece: int) -> None:
    """An answer is read by its framing, in one piece or byte by byte; the connection is kept if it can be."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for start in range(0, len(case.data), piece):
            await peer.send(case.data[start : start + piece])
            if piece == 1:
                await asyncio.sleep(0)  # for the other side to read it
        if not case.close:
            await peer.request()
            await peer.send(OK)
            await peer.gone()

    async with receiver(script, always) as found, open_sender() as sender:
        first = await sender.send(parse_target(found.url), HEADERS, BODY)
        assert (first.status, first.error, first.excerpt) == (case.status, case.error, case.excerpt)
        assert first.retry_after is None
        assert bool(first.detail) == (case.status is None)
        second = await sender.send(parse_target(found.url), HEADERS, BODY)
        assert second.status == 200
    assert found.connections == (1 if case.again else 2)


# --- bounds -------------------------------------------------------------------------------------------------


def endless(start: bytes, piece: bytes) -> Script:
    """Return a script: answer with `start`, then with `piece` again and again."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(start)
        while True:
            await peer.send(piece * 100)

    return script


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (HEAD + b"\r\n", b"abc"),
        (HEAD + b"Content-Length: 9999999999\r\n\r\n", b"abc"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3;", b"abc"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: abc\r\n"),
    ],
    ids=["until the end", "length", "chunks", "a chunk's extension", "trailers"],
)
async def test_an_endless_body_is_cut_off(start: bytes, piece: bytes) -> None:
    """Of a body no more than a bound is read; the outcome is its status all the same."""
    outcome = await outcome_of(endless(start, piece))
    assert (outcome.status, outcome.error) == (200, None)
    assert len(outcome.excerpt) <= MAX_EXCERPT
    assert outcome.duration_ms < 5000


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"HTTP/1.1 200 ", b"OK"),
        (HEAD, b"X: abc\r\n"),
        (HEAD + b"X: ", b"abc"),
        (HEAD, b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["reason", "headers", "a header's value", "a header's name", "interim answers"],
)
async def test_an_endless_head_is_too_large(start: bytes, piece: bytes) -> None:
    """Of a head no more than a bound is read; without its end there is no status."""
    outcome = await outcome_of(endless(start, piece))
    assert (outcome.status, outcome.error) == (None, "too_large")
    assert outcome.detail == f"the head of the answer has more than {MAX_HEAD} bytes"


@pytest.mark.parametrize(("beyond", "error"), [(-1, None), (0, None), (1, "too_large")])
async def test_a_head_may_be_as_long_as_the_bound(beyond: int, error: Fault | None) -> None:
    """The bound of a head counts every byte of it, and is exact."""
    begin, end = HEAD + b"Content-Length: 0\r\nX: ", b"\r\n\r\n"
    answer = begin + b"x" * (MAX_HEAD + beyond - len(begin) - len(end)) + end
    assert (await outcome_of(answers(answer))).error == error


@pytest.mark.parametrize(("beyond", "connections"), [(0, 1), (1, 2)])
async def test_an_answer_may_be_as_long_as_the_bound(beyond: int, connections: int) -> None:
    """A connection is kept if the whole answer was read, and closed if it was longer than is read."""
    head = HEAD + b"Content-Length: 65432\r\nX: "
    padding = b"x" * (MAX_ANSWER + beyond - len(head) - 4 - 65432)
    answer = head + padding + b"\r\n\r\n" + b"y" * 65432
    async with receiver(answers(answer, OK), always) as found, open_sender() as sender:
        first = await sender.send(parse_target(found.url), HEADERS, BODY)
        assert (first.status, first.excerpt) == (200, b"y" * MAX_EXCERPT)
        assert (await sender.send(parse_target(found.url), HEADERS, BODY)).status == 200
    assert found.connections == connections


# --- receivers that break off -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status", "detail"),
    [
        (b"", None, "the connection was closed before an answer came"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None, "the connection was closed within the head of the answer"),
        (HEAD + b"Content-Length: 9\r\n\r\nabc", 200, ""),
    ],
    ids=["before", "inside", "after"],
)
async def test_a_reset(data: bytes, status: int | None, detail: str) -> None:
    """A connection that is reset before the head of the answer ended is a fault, and none after it."""
    async with open_sender() as sender:

        async def resets(peer: Peer) -> None:
            await peer.request()
            await peer.send(data)
            (link,) = sender._links  # a reset throws away what the other side has not read
            await until(
                lambda: link.received == bool(data) and link.status == (status or 0), "it is not read"
            )
            peer.reset()

        async with receiver(resets) as found:
            outcome = await sender.send(parse_target(found.url), HEADERS, BODY)
    assert (outcome.status, outcome.detail) == (status, detail)
    assert outcome.error == (None if status else "reset")


async def test_a_connection_that_is_closed_at_once() -> None:
    """A receiver that takes a connection and closes it without reading is a reset."""

    async def script(peer: Peer) -> None:
        peer.reset()

    outcome = await outcome_of(script)
    assert outcome.error == "reset"


async def test_a_receiver_that_speaks_first() -> None:
    """A server of another protocol that greets is told from one of HTTP."""

    async def script(peer: Peer) -> None:
        await peer.send(b"220 mail.example ESMTP\r\n")
        await peer.reader.read()

    outcome = await outcome_of(script)
    assert outcome.error == "protocol"


async def test_an_answer_before_the_request_was_sent() -> None:
    """A receiver that refuses a long body and closes has answered; what was not sent is dropped."""

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        await peer.reader.read(-1)

    async with receiver(script, always) as found:
        async with open_sender() as sender:
            outcome = await sender.send(parse_target(found.url), HEADERS, bytes(30_000_000))
            assert (outcome.status, outcome.excerpt) == (413, b"no")
            assert (await sender.send(parse_target(found.url), HEADERS, BODY)).status == 200
        assert sockets_to(found.port) == 0
    assert found.connections == 2


async def test_a_receiver_that_takes_no_more() -> None:
    """A receiver that resets in the middle of a long request is a reset."""

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.reset()

    async with receiver(script) as found, open_sender() as sender:
        outcome = await sender.send(parse_target(found.url), HEADERS, bytes(30_000_000))
    assert outcome.error == "reset"


def test_a_link_that_is_given_up_while_it_is_opened() -> None:
    """A link that nobody wants any more by the time it is connected is closed then."""
    heard, transport = Heard(), FakeTransport()
    link = Link("http://receiver.test:80", heard, 0, lambda: 0.0)
    link.abort()
    link.connection_made(transport)
    assert transport.aborted


# --- any bytes ----------------------------------------------------------------------------------------------

FRAMED = st.sampled_from([case.data for case in FRAMINGS.values()])
BYTES = st.binary(max_size=300) | FRAMED | st.sampled_from([HEAD, b"\r\n", b"0\r\n\r\n"])
CUTS = st.lists(st.integers(1, 200), min_size=1, max_size=20)


def heard(pieces: list[bytes]) -> Heard:
    """Return what is heard of a link that is asked once, receives these pieces, and is closed."""
    owner = Heard()
    owner.ask()
    for piece in filter(None, pieces):
        owner.hear(piece)
    owner.link.eof_received()
    owner.link.connection_lost(None)
    assert len(owner.said) == 1
    return owner


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Return data in pieces of these sizes, again and again."""
    pieces: list[bytes] = []
    at = 0
    for size in cycle(sizes):
        if at >= len(data):
            return pieces
        pieces.append(data[at : at + size])
        at += size
    raise AssertionError


@given(FRAMED, CUTS)
def test_any_cut_of_an_answer_is_the_same_answer(data: bytes, sizes: list[int]) -> None:
    """However the network cuts the bytes of an answer, the same comes of it."""
    whole, pieces = heard([data]), heard(cut(data, sizes))
    assert pieces.said == whole.said


@given(
    st.lists(st.binary(max_size=300) | FRAMED | st.sampled_from([HEAD, b"\r\n", b"0\r\n\r\n"]), max_size=8)
)
def test_any_bytes_end_in_one_outcome(pieces: list[bytes]) -> None:
    """Whatever a receiver sends, something comes of the attempt, once, and nothing is raised."""
    heard(pieces)


@given(st.integers(1, 5000), st.integers(1, 300))
def test_whatever_is_endless_is_cut_off(piece: int, interim: int) -> None:
    """However the pieces of something endless are sized, no more than the bound is read of it."""
    for data, read in ((HEAD + b"\r\n", MAX_ANSWER), (HEAD, MAX_HEAD), (b"", MAX_HEAD)):
        owner = Heard()
        owner.ask()
        taken = 0
        unit = b"X: y\r\n" * piece if data else b"HTTP/1.1 102 X\r\n\r\n" * interim
        while not owner.said:
            assert taken < read
            owner.hear(unit if taken or not data else data)
            taken += len(unit if taken or not data else data)
        assert owner.transport.aborted
