"""Connections are used again while they are good, and closed when they are not or too many."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.receiver import (
    DEADLINE,
    OK,
    FixedNames,
    Peer,
    always,
    answers,
    receiver,
    sockets_to,
    until,
)
from tests.support.sender import BODY, HEADERS, Heard, open_sender
from webhooks.pool import Keep, Pool
from webhooks.sender import Sender
from webhooks.target import parse_target


async def test_a_connection_is_used_again() -> None:
    """Requests one after the other share a connection, also for different paths and TLS-less hosts alike."""
    async with receiver(always) as found, open_sender() as sender:
        for number in range(5):
            target = parse_target(f"{found.url}/{number}")
            assert (await sender.send(target, HEADERS, BODY)).status == 200
        statistics = sender.statistics()
        assert (statistics.opened, statistics.reused, statistics.idle, statistics.open) == (1, 4, 1, 1)
    assert found.connections == 1


async def test_a_pooled_connection_that_turns_out_closed() -> None:
    """A request that met a connection being closed is sent again, on a new one, with the same content."""

    async def closes_on_second(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.reader.readexactly(1)

    async with receiver(closes_on_second, always) as found, open_sender() as sender:
        target = parse_target(found.url)
        assert (await sender.send(target, HEADERS, BODY)).status == 200
        assert (await sender.send(target, HEADERS, b"second")).status == 200
        assert sender.statistics().repeated == 1
    assert found.connections == 2
    assert [request.body for request in found.requests] == [BODY, b"second"]


async def test_a_request_is_sent_again_once() -> None:
    """When the new connection is closed without an answer as well, that is what came of the attempt."""

    async def closes_without(peer: Peer) -> None:
        await peer.request()

    async with receiver(answers(OK, b"", close=True), closes_without) as found, open_sender() as sender:
        target = parse_target(found.url)
        assert (await sender.send(target, HEADERS, BODY)).status == 200
        outcome = await sender.send(target, HEADERS, BODY)
    assert (outcome.error, outcome.detail) == ("reset", "the connection was closed before an answer came")
    assert found.connections == 2


@pytest.mark.parametrize("start", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_what_was_answered_in_part_is_not_sent_again(start: bytes) -> None:
    """After a byte of the answer the receiver has the request: it is not sent twice."""
    async with receiver(answers(OK, start, close=True), always) as found, open_sender() as sender:
        target = parse_target(found.url)
        assert (await sender.send(target, HEADERS, BODY)).status == 200
        assert (await sender.send(target, HEADERS, BODY)).error == "reset"
        assert sender.statistics().repeated == 0
    assert found.connections == 1


async def test_a_connection_that_is_closed_while_idle_is_forgotten() -> None:
    """A connection that the receiver closes while it is idle is not used again."""
    async with receiver(answers(OK, close=True), always) as found, open_sender() as sender:
        target = parse_target(found.url)
        assert (await sender.send(target, HEADERS, BODY)).status == 200
        await until(lambda: sender.statistics().open == 0, "the connection stays")
        assert sender.statistics().idle == 0
        assert (await sender.send(target, HEADERS, BODY)).status == 200
        assert sender.statistics().repeated == 0


async def test_a_connection_that_speaks_while_idle_is_closed() -> None:
    """What comes while nothing is asked, such as 408 before closing, is never taken for an answer."""
    idle = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await idle.wait()
        await peer.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await peer.gone()

    async with receiver(script, always) as found, open_sender() as sender:
        target = parse_target(found.url)
        assert (await sender.send(target, HEADERS, BODY)).status == 200
        idle.set()
        await until(lambda: sender.statistics().open == 0, "the connection stays")
        assert (await sender.send(target, HEADERS, BODY)).status == 200


async def burst(sender: Sender, url: str, count: int) -> None:
    """Send so many requests at once."""
    outcomes = await asyncio.gather(*(sender.send(parse_target(url), HEADERS, BODY) for _ in range(count)))
    assert {outcome.status for outcome in outcomes} == {200}


async def test_few_idle_connections_are_kept_to_a_target() -> None:
    """After a burst no more connections are kept to one host and port than are allowed."""
    async with receiver(always) as found, open_sender(keep=Keep(per_origin=3)) as sender:
        await burst(sender, found.url, 10)
        assert sender.statistics().idle == 3
        await until(lambda: sockets_to(found.port) == 3, "more stay open")


async def test_few_idle_connections_are_kept_in_all() -> None:
    """A new idle connection takes the place of the one that has waited longest, whomever it leads to."""
    async with receiver(always, host="0.0.0.0") as found, open_sender(keep=Keep(links=3)) as sender:
        urls = [f"http://127.0.0.{number}:{found.port}/" for number in range(1, 6)]
        for url in urls:
            await burst(sender, url, 1)
        assert sender.statistics().idle == 3
        await until(lambda: sockets_to(found.port) == 3, "more stay open")
        for url in reversed(urls[2:]):
            await burst(sender, url, 1)
        assert sender.statistics().opened == 5
        await burst(sender, urls[0], 1)
        assert sender.statistics().opened == 6


async def test_idle_connections_are_closed_in_time() -> None:
    """A connection that nobody needs is closed, without waiting for the next request."""
    async with receiver(always) as found, open_sender(keep=Keep(idle_seconds=0.1)) as sender:
        await burst(sender, found.url, 2)
        assert sender.statistics().idle == 2
        await until(lambda: sockets_to(found.port) == 0, "the connections stay")
        assert sender.statistics().open == 0


@pytest.mark.parametrize(
    ("idle", "age", "closing", "good"),
    [
        (0, 0, False, True),
        (29, 299, False, True),
        (30, 30, False, False),
        (1, 300, False, False),
        (0, 0, True, False),
    ],
)
def test_what_is_no_good_any_more_is_not_given_out(idle: int, age: int, closing: bool, good: bool) -> None:
    """A connection that waited for too long, is too old, or is just being closed is not used again."""
    pool, heard = Pool(Keep(idle_seconds=30, age_seconds=300)), Heard()
    heard.link.opened = 1000 - age
    pool.give(heard.link, 1000 - idle)
    if closing:
        heard.transport.abort()
    assert pool.take(heard.link.origin, 1000) is (heard.link if good else None)
    assert len(pool) == 0
    assert heard.transport.aborted is not good


async def test_old_connections_are_not_used_again() -> None:
    """A connection that has been open for long is replaced, however busy: names may have moved."""
    names = FixedNames(moving_test=[("127.0.0.1",), ("127.0.0.2",)])
    async with receiver(always, host="0.0.0.0") as found:
        async with open_sender(names=names, keep=Keep(age_seconds=0.2)) as sender:
            await until_asked_again(sender, found.named("moving.test"), names)
            assert sender.statistics().opened == 2


async def until_asked_again(sender: Sender, url: str, names: FixedNames) -> None:
    """Keep a connection busy until the name is resolved a second time."""
    async with asyncio.timeout(DEADLINE):
        while len(names.asked) < 2:
            await burst(sender, url, 1)
