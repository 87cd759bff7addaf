"""The client: publishing until it is done, following without loss, giving up only when nothing would help."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import client
from gateway.client import Accepted, ClientError, Follower, Publisher, Received, delay_before, events_url
from tests.support.scripted import (
    HANG_UP,
    Answer,
    Close,
    ScriptedWebSocket,
    scripted_http,
    scripted_websocket,
)
from tests.support.server import free_port

EVENT = b'{"topic":"orders","id":"one","data":1}'


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reconnects come quickly: how long they wait is tested by itself."""
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(client, "LONGEST_DELAY", 0.05)


def event(position: int) -> dict[str, Any]:
    """Return an event as a gateway sends it."""
    return {
        "cursor": f"abcdef-{position}-0000",
        "topic": "orders",
        "id": f"id-{position}",
        "data": {"n": position},
    }


def welcome(position: int) -> dict[str, Any]:
    """Return what a gateway says first."""
    return {"control": "welcome", "connection": "c", "cursor": f"abcdef-{position}-0000"}


# --- addresses and delays


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1/events"),
        ("https://push.example/", "https://push.example/v1/events"),
        ("http://push.example/behind/a/path/", "http://push.example/behind/a/path/v1/events"),
        ("http://[::1]:8000", "http://[::1]:8000/v1/events"),
    ],
)
def test_the_address_of_the_events(base: str, url: str) -> None:
    """The events lie under the gateway's address, for WebSocket with its own scheme."""
    assert events_url(base) == url
    assert events_url(base, websocket=True) == "ws" + url.removeprefix("http")


@pytest.mark.parametrize(
    "base",
    [
        "",
        "127.0.0.1:8000",
        "ws://127.0.0.1",
        "http://",
        "http://h:99999",
        "http://h:0",
        "http://h/?a=b",
        "http://[::1",
    ],
)
def test_what_is_no_address_is_refused(base: str) -> None:
    """Anything that is not the address of an HTTP server is refused with an example."""
    with pytest.raises(ClientError, match=r"give one like http://127.0.0.1:8000"):
        events_url(base)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_delays_are_bounded_and_spread(failures: int, chance: float) -> None:
    """A delay grows with the failures up to a bound, and at least half of it is sure."""
    longest = delay_before(failures, 1)
    assert longest / 2 <= delay_before(failures, chance) <= longest <= client.LONGEST_DELAY
    assert delay_before(failures + 1, chance) >= delay_before(failures, chance)


# --- publishing


def test_publishing_sends_all_events_in_one_array() -> None:
    """The events of one call are one request, and the answer is the gateway's."""
    with scripted_http(Answer(body={"accepted": 2, "duplicates": 1, "cursor": "c"})) as server:
        answer = Publisher(server.url, pytest.fail).publish([EVENT, EVENT])
    assert answer == Accepted(2, 1, "c")
    assert server.bodies == [[json.loads(EVENT), json.loads(EVENT)]]


def test_publishing_goes_on_through_trouble() -> None:
    """Busy, unavailable, a bad proxy or no answer at all: the same body is sent again until accepted."""
    notices: list[str] = []
    problem = {"title": "Service Unavailable", "detail": "the disk is full"}
    steps = (
        Answer(503, problem, {"Retry-After": "0"}),
        Answer(429),
        Answer(502, b"<html>"),
        HANG_UP,
        Answer(),
    )
    with scripted_http(*steps) as server:
        Publisher(server.url, notices.append).publish([EVENT])
    assert server.bodies == [[json.loads(EVENT)]] * len(steps)
    assert notices == [f"{server.url} answered 503: the disk is full; trying again"]


def test_publishing_waits_as_long_as_it_is_told() -> None:
    """A Retry-After beyond the patience ends the attempts at once."""
    with scripted_http(Answer(503, {"detail": "draining"}, {"Retry-After": "30"})) as server:
        with pytest.raises(ClientError, match=r"^not published: .* answered 503: draining$"):
            Publisher(server.url, pytest.fail, patience=5).publish([EVENT])
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415, 422])
def test_what_is_refused_is_not_sent_again(status: int) -> None:
    """A refusal that would be the same next time is passed on in the gateway's words."""
    with scripted_http(Answer(status, {"title": "No", "detail": "the topic has an empty word"})) as server:
        hint = r" \(set SLUICE_TOKEN .*\)" if status == 401 else ""
        with pytest.raises(ClientError, match=f"answered {status}: the topic has an empty word{hint}$"):
            Publisher(server.url, pytest.fail).publish([EVENT])
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b'{"cursor":"\xff"}', b"[" * 5000], ids=["html", "latin-1", "deep"]
)
def test_an_answer_that_is_no_gateways_is_an_error(body: bytes) -> None:
    """Some other server that answers 202 is noticed."""
    with scripted_http(Answer(body=body)) as server:
        with pytest.raises(ClientError, match="not a gateway's"):
            Publisher(server.url, pytest.fail).publish([EVENT])


@pytest.mark.parametrize("body", [b'{"title":"\xff"}', b"[" * 5000], ids=["latin-1", "deep"])
def test_a_refusal_that_cannot_be_read_is_one(body: bytes) -> None:
    """The status is enough; what a proxy says in its own way is not passed on."""
    with scripted_http(Answer(403, body=body)) as server:
        with pytest.raises(ClientError, match=r"answered 403$"):
            Publisher(server.url, pytest.fail).publish([EVENT])


def test_publishing_gives_up_where_nobody_listens() -> None:
    """Without a server it is tried until patience runs out, and the reason is told."""
    with pytest.raises(ClientError, match=r"^not published: no connection to .* \(Connection refused\)$"):
        Publisher(f"http://127.0.0.1:{free_port()}", lambda _: None, patience=0.2).publish([EVENT])


# --- following


async def follow(
    server: ScriptedWebSocket, count: int, cursor: str = "latest"
) -> tuple[list[Received], list[str]]:
    """Follow until `count` events came; return them and the notices."""
    notices: list[str] = []
    received: list[Received] = []
    follower = Follower(server.url, ["orders", "a.#"], cursor, notices.append)
    async with asyncio.timeout(20), aclosing(follower.events()) as events:
        async for each in events:
            received.append(each)
            if len(received) == count:
                break
    assert follower.cursor == received[-1].cursor
    return received, notices


async def test_following_hands_on_events_as_they_were_sent() -> None:
    """Each event comes with its cursor, its whole text and its data; controls are not events."""
    async with scripted_websocket([welcome(4), event(5), {"control": "novelty"}, event(7)]) as server:
        received, notices = await follow(server, 2)
    assert [each.cursor for each in received] == ["abcdef-5-0000", "abcdef-7-0000"]
    assert [json.loads(each.text) for each in received] == [event(5), event(7)]
    assert json.loads(received[0].data) == {"n": 5}
    assert (server.topics, server.cursors, notices) == ([["orders", "a.#"]], ["latest"], [])


async def test_binary_data_is_handed_on_as_its_base64() -> None:
    """The data of an event that is not JSON is the string with its base64."""
    async with scripted_websocket([welcome(4), {"cursor": "c", "data_base64": "AAE="}]) as server:
        received, _ = await follow(server, 1)
    assert received[0].data == b'"AAE="'


async def test_following_goes_on_behind_the_last_event() -> None:
    """After a lost connection the next begins at the last event's cursor, and both ends are told once."""
    async with scripted_websocket([welcome(4), event(5)], [welcome(5), event(6)]) as server:
        received, notices = await follow(server, 2)
    assert [each.cursor for each in received] == ["abcdef-5-0000", "abcdef-6-0000"]
    assert server.cursors == ["latest", "abcdef-5-0000"]
    assert notices == [f"lost the connection to {server.url}; trying again", "connected again"]


@pytest.mark.parametrize("cursor", ["latest", "earliest", "-3", "2026-11-23T16:46:00Z"])
async def test_an_outage_before_the_first_event_misses_nothing(cursor: str) -> None:
    """The place where a first connection began is kept, so what comes during the outage is not missed."""
    async with scripted_websocket([welcome(4)], [welcome(4)], [welcome(4), event(5)]) as server:
        await follow(server, 1, cursor)
    assert server.cursors == [cursor, "abcdef-4-0000", "abcdef-4-0000"]


async def test_a_heartbeat_moves_the_cursor() -> None:
    """A quiet follower's cursor does not age out of the log."""
    heartbeat = {"control": "heartbeat", "cursor": "abcdef-9-0000"}
    async with scripted_websocket([welcome(4), heartbeat], [welcome(9), event(10)]) as server:
        await follow(server, 1)
    assert server.cursors == ["latest", "abcdef-9-0000"]


async def test_a_gap_is_told_and_followed() -> None:
    """A gap is passed on in words, and the next connection begins behind it."""
    gap = {"control": "gap", "reason": "expired", "from": "abcdef-4-0000", "to": "abcdef-8-0000"}
    async with scripted_websocket([welcome(4), gap], [welcome(8), event(9)]) as server:
        _, notices = await follow(server, 1)
    assert notices[0] == "gap (expired): events after abcdef-4-0000 up to abcdef-8-0000 are missing"
    assert server.cursors == ["latest", "abcdef-8-0000"]


async def test_advice_to_reconnect_is_taken() -> None:
    """A gateway that goes away says when to come back, and the cursor to come back with."""
    advice = {"control": "reconnect", "reason": "draining", "cursor": "abcdef-6-0000", "after_ms": 150}
    began = asyncio.get_running_loop().time()
    async with scripted_websocket(
        [welcome(4), event(5), advice, Close(1012)], [welcome(6), event(7)]
    ) as server:
        await follow(server, 2)
    assert server.cursors == ["latest", "abcdef-6-0000"]
    assert asyncio.get_running_loop().time() - began >= 0.15


@pytest.mark.parametrize("code", sorted(client.REFUSED_CODES))
async def test_a_connection_ended_for_our_mistake_is_not_made_again(code: int) -> None:
    """Close codes that blame the client end the following, with what the gateway said."""
    error = {"control": "error", "title": "Bad", "detail": "that was no message"}
    async with scripted_websocket([welcome(4), error, Close(code)]) as server:
        with pytest.raises(ClientError, match=r"ended the connection: that was no message$"):
            await follow(server, 1)
    assert len(server.cursors) == 1


async def test_what_is_no_message_of_a_gateway_is_an_error() -> None:
    """A server that speaks WebSocket but not as a gateway is noticed."""
    async with scripted_websocket([{"cursor": 7}]) as server:
        with pytest.raises(ClientError, match="not a gateway's"):
            await follow(server, 1)


async def test_following_begins_when_the_gateway_comes() -> None:
    """A gateway that is not there yet is waited for."""
    port = free_port()
    notices: list[str] = []
    told = asyncio.Event()

    def notice(text: str) -> None:
        notices.append(text)
        told.set()

    follower = Follower(f"http://127.0.0.1:{port}", ["orders"], "latest", notice)
    async with asyncio.timeout(20), aclosing(follower.events()) as events:
        first = asyncio.ensure_future(anext(events))
        await told.wait()
        async with scripted_websocket([welcome(4), event(5)], port=port):
            assert (await first).cursor == "abcdef-5-0000"
    assert notices == [
        f"no connection to http://127.0.0.1:{port} (Connection refused); trying again",
        "connected again",
    ]


async def test_a_server_that_is_no_gateway_is_an_error() -> None:
    """Where something else answers, following ends with a sentence."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        follower = Follower(f"http://127.0.0.1:{port}", ["orders"], "latest", pytest.fail)
        with pytest.raises(ClientError, match="does not speak as a gateway does"):
            await anext(follower.events())


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (b"HTTP/1.1 422 Unprocessable Content", 'answered 422: the pattern "a..b" has an empty word'),
        (b"HTTP/1.1 404 Not Found", "answered 404"),
    ],
)
async def test_a_refused_handshake_ends_the_following(head: bytes, sentence: str) -> None:
    """A subscription that the gateway refuses ends with the gateway's words; it would be refused again."""
    body = b'{"title":"x","detail":"the pattern \\"a..b\\" has an empty word"}'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        follower = Follower(f"http://127.0.0.1:{port}", ["a..b"], "latest", pytest.fail)
        with pytest.raises(ClientError) as caught:
            await anext(follower.events())
    assert sentence in str(caught.value)


def test_loopback_never_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment has no part in talking to this machine."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with scripted_http(Answer()) as server:
            Publisher(server.url, pytest.fail).publish([EVENT])
    assert len(server.bodies) == 1
