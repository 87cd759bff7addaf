"""A gateway that asks who its callers are: each door, live connections, keys, tickets, cookies, tenants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.bearer import ADMIN, ENVIRON, bearer, call, fresh, revoke
from tests.support.clients import (
    STREAMS,
    Address,
    Ended,
    Refused,
    Topics,
    fetch,
    open_subscriber,
    until,
)
from tests.support.host import address_of
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration

on_every_stream = pytest.mark.parametrize("transport", STREAMS)


@pytest.fixture(scope="module")
def process() -> Iterator[GatewayProcess]:
    with GatewayProcess(
        environ=ENVIRON,
        services="reports",
        origins="https://app.example",
        webhooks_allow="127.0.0.0/8",
    ) as gateway:
        yield gateway


@pytest.fixture
def gateway(process: GatewayProcess) -> Address:
    return address_of(process)


@pytest.fixture
async def topic(topics: Topics) -> str:
    return topics()


# --- publishing and listening ------------------------------------------------------------------------------


@on_every_stream
async def test_who_may_listen_gets_what_who_may_publish_sends(
    gateway: Address, topic: str, transport: str
) -> None:
    """On every transport; the welcome says until when."""
    text = fresh(publish=[topic], subscribe=[topic], sub="ada")
    async with open_subscriber(gateway, transport, topic, headers=[bearer(text)], welcomed=False) as reader:
        welcome = await reader.control("welcome")
        assert welcome["expires"] > time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        answer = await call(gateway, "POST", "/v1/events", text, {"topic": topic, "data": 1})
        assert answer.status == 202
        assert await reader.data(1) == [1]


@on_every_stream
async def test_who_is_not_known_hears_nothing(gateway: Address, topic: str, transport: str) -> None:
    """Neither without a token nor with one that does not grant the topic."""
    with pytest.raises(Refused) as refused:
        async with open_subscriber(gateway, transport, topic):
            pass
    assert refused.value.response.status == 401
    assert refused.value.response.head["www-authenticate"] == "Bearer"
    with pytest.raises(Refused) as refused:
        async with open_subscriber(gateway, transport, topic, headers=[bearer(fresh(subscribe=["a.b"]))]):
            pass
    assert refused.value.response.status == 403


async def test_of_several_events_none_is_published_if_one_is_not_granted(
    gateway: Address, topic: str
) -> None:
    """The answer says which."""
    text = fresh(publish=[f"{topic}.#"], subscribe=[f"{topic}.#"])
    async with open_subscriber(gateway, "websocket", f"{topic}.#", headers=[bearer(text)]) as reader:
        events = [{"topic": f"{topic}.a", "data": 1}, {"topic": "elsewhere", "data": 2}]
        answer = await call(gateway, "POST", "/v1/events", text, events)
        assert answer.status == 403
        assert answer.problem["index"] == 1
        assert (await reader.ask({"op": "publish", "topic": "elsewhere"}))["status"] == 403
        await reader.send({"op": "publish", "topic": f"{topic}.b", "data": 3})
        assert await reader.data(1) == [3]
        assert (await reader.control("published"))["accepted"] == 1


async def test_a_subscription_grows_only_by_what_is_granted(gateway: Address, topic: str) -> None:
    """Also by operations of a WebSocket."""
    text = fresh(subscribe=[f"{topic}.*"])
    async with open_subscriber(gateway, "websocket", headers=[bearer(text)]) as reader:
        for pattern, status in ((f"{topic}.#", 403), (topic, 403), ("#", 403), ("$sluice.x", 403)):
            assert (await reader.ask({"op": "subscribe", "topic": pattern}))["status"] == status, pattern
        assert (await reader.ask({"op": "subscribe", "topic": f"{topic}.*"}))["topics"] == [f"{topic}.*"]
        assert (await reader.ask({"op": "unsubscribe", "topic": f"{topic}.*"}))["control"] == "unsubscribed"


async def test_history_is_bounded(gateway: Address, topic: str) -> None:
    """A cursor from before that is answered by a gap; what is younger arrives."""
    text = fresh(publish=[topic], subscribe=[topic])
    start = (await call(gateway, "POST", "/v1/events", text, {"topic": topic, "data": "old"})).json["cursor"]
    old = (await call(gateway, "POST", "/v1/events", text, {"topic": topic, "data": "older"})).json["cursor"]
    await asyncio.sleep(1.2)  # they have to be older than a second
    await call(gateway, "POST", "/v1/events", text, {"topic": topic, "data": "young"})
    short = fresh(subscribe=[topic], history=1)
    for transport in STREAMS:
        async with open_subscriber(
            gateway, transport, topic, cursor=start, headers=[bearer(short)]
        ) as reader:
            gap = await reader.control("gap")
            assert (gap["reason"], gap["from"], gap["to"]) == ("history", start, old)
            assert await reader.data(1) == ["young"]
    poll = await fetch(gateway, "/v1/events", [("topic", topic), ("cursor", start)], [bearer(short)])
    assert poll.json["gap"]["reason"] == "history"
    assert [event["data"] for event in poll.json["events"]] == ["young"]
    earliest = await fetch(gateway, "/v1/events", [("topic", topic), ("cursor", "earliest")], [bearer(short)])
    assert "gap" not in earliest.json
    assert [event["data"] for event in earliest.json["events"]] == ["young"]
    async with open_subscriber(gateway, "websocket", headers=[bearer(short)]) as reader:
        await reader.send({"op": "subscribe", "topic": topic, "cursor": start})
        assert (await reader.control("gap"))["reason"] == "history"
        await reader.control("subscribed")
        assert await reader.data(1) == ["young"]


async def test_consumers_of_two_subjects_are_two(gateway: Address, topic: str) -> None:
    """The same name is another's with another subject."""
    texts = [fresh(sub=who, publish=[topic], subscribe=[topic]) for who in ("ada", "bob")]
    cursors = [
        (await call(gateway, "POST", "/v1/events", texts[0], {"topic": topic, "data": number})).json["cursor"]
        for number in range(2)
    ]
    for text, cursor in zip(texts, cursors, strict=True):
        async with open_subscriber(
            gateway, "websocket", cursor=cursor, consumer="mine", headers=[bearer(text)]
        ) as reader:
            assert (await reader.ask({"op": "ack", "cursor": cursor}))["control"] == "acked"
    for text, cursor in zip(texts, cursors, strict=True):
        async with open_subscriber(
            gateway, "websocket", topic, consumer="mine", headers=[bearer(text)], welcomed=False
        ) as reader:
            assert (await reader.control("welcome"))["cursor"] == cursor


# --- live connections --------------------------------------------------------------------------------------


async def ended(reader: Any, transport: str, reason: str) -> None:
    """Check that a connection is ended by the gateway for a reason, and told so in its own way."""
    if transport == "websocket":
        closed = await reader.closed()
        assert (closed.code, closed.reason) == (3000, reason)
        return
    while (message := await reader.next())["control"] != "error":
        pass
    assert message["reason"] == reason
    with pytest.raises(Ended, match="in order"):
        await reader.next()


@on_every_stream
async def test_a_connection_ends_with_its_token(gateway: Address, topic: str, transport: str) -> None:
    """It is warned before; clocks may differ by ten seconds, so it is good that much longer."""
    text = fresh(-9, subscribe=[topic], sub="ada")
    async with open_subscriber(gateway, transport, topic, headers=[bearer(text)]) as reader:
        assert (await reader.control("expiring"))["expires"].endswith("Z")
        await ended(reader, transport, "expired")


@on_every_stream
async def test_a_connection_goes_on_with_a_newer_token(gateway: Address, topic: str, transport: str) -> None:
    """By an operation on a WebSocket, by a request on the others; not by somebody else's token."""
    old = fresh(-8.5, subscribe=[topic], sub="ada")
    new = fresh(60, subscribe=[topic], publish=[topic], sub="ada")
    async with open_subscriber(gateway, transport, topic, headers=[bearer(old)], welcomed=False) as reader:
        name = (await reader.control("welcome"))["connection"]
        await reader.control("expiring")
        for text, refused in ((fresh(sub="bob", subscribe=[topic]), True), (new, False)):
            if transport == "websocket":
                answer = await reader.ask({"op": "auth", "token": text})
                assert answer["control"] == ("error" if refused else "authorized")
            else:
                path = f"/v1/connections/{name}/token"
                status = (await call(gateway, "POST", path, text, {"token": text})).status
                assert status == (404 if refused else 200)
        await asyncio.sleep(2.5)  # the old one is over by now
        await call(gateway, "POST", "/v1/events", new, {"topic": topic, "data": 1})
        while "control" in (message := await reader.next()):
            assert message["control"] in ("heartbeat", "expiring")
        assert message["data"] == 1


@on_every_stream
@pytest.mark.parametrize("by", ["subject", "token", "topic"])
async def test_what_is_revoked_ends_at_once(gateway: Address, topic: str, transport: str, by: str) -> None:
    """And does not come back; others stay."""
    who = f"ada-{topic}"
    text = fresh(subscribe=[f"{topic}.#"], sub=who, jti=f"token-{topic}")
    other = fresh(subscribe=[f"{topic}-other"], publish=[f"{topic}-other"], sub=f"bob-{topic}")
    async with (
        open_subscriber(gateway, transport, f"{topic}.a", headers=[bearer(text)]) as reader,
        open_subscriber(gateway, transport, f"{topic}-other", headers=[bearer(other)]) as bystander,
    ):
        what = {
            "subject": {"subject": who},
            "token": {"token": f"token-{topic}"},
            "topic": {"topic": f"{topic}.*"},
        }
        name = await revoke(gateway, **what[by])
        await ended(reader, transport, "revoked")
        with pytest.raises(Refused) as refused:
            async with open_subscriber(gateway, transport, f"{topic}.a", headers=[bearer(text)]):
                pass
        assert refused.value.response.status == (403 if by == "topic" else 401)
        await call(gateway, "POST", "/v1/events", other, {"topic": f"{topic}-other", "data": 1})
        assert await bystander.data(1) == [1]
    assert (await call(gateway, "DELETE", f"/v1/revocations/{name}")).status == 204
    async with open_subscriber(gateway, transport, f"{topic}.a", headers=[bearer(text)]):
        pass


async def test_a_waiting_poll_ends_as_well(gateway: Address, topic: str) -> None:
    """Whoever is revoked meanwhile is answered 401."""
    who = f"ada-{topic}"
    text = fresh(subscribe=[topic], sub=who)
    query = [("topic", topic), ("wait", "20")]
    waiting = asyncio.create_task(fetch(gateway, "/v1/events", query, [bearer(text)]))

    async def waits() -> bool:
        listed = (await call(gateway, "GET", "/v1/connections?limit=1000")).json["connections"]
        return any(each.get("subject") == who for each in listed)

    await until(waits, "the poll waits")
    await revoke(gateway, subject=who)
    assert (await waiting).status == 401


async def test_what_was_revoked_stays_so_over_a_restart(tmp_path: Any, topics: Topics) -> None:
    """It is in the store; so are API keys."""
    text = fresh(subscribe=["a"], sub="ada")
    async with GatewayProcess(data=tmp_path, environ=ENVIRON) as process:
        address = address_of(process)
        await revoke(address, subject="ada")
        made = (
            await call(address, "POST", "/v1/keys", body={"subject": "s", "claims": {"subscribe": ["a"]}})
        ).json
        process.kill()
        await process.arestart()
        assert (await call(address, "GET", "/v1/events?topic=a", text)).status == 401
        assert (await call(address, "GET", "/v1/events?topic=a", made["key"])).status == 200


# --- keys, tickets, cookies --------------------------------------------------------------------------------


async def test_an_api_key_is_used_and_removed(gateway: Address, topic: str) -> None:
    """Its text is shown once; its connections end with it."""
    wanted = {
        "subject": "billing",
        "claims": {"publish": [topic], "subscribe": [topic]},
        "description": "for bills",
    }
    made = (await call(gateway, "POST", "/v1/keys", body=wanted)).json
    key = made["key"]
    assert key.startswith(made["begins"])
    shown = await call(gateway, "GET", f"/v1/keys/{made['id']}")
    assert shown.json == {name: value for name, value in made.items() if name != "key"}
    listed = await call(gateway, "GET", "/v1/keys?limit=1000")
    assert shown.json in listed.json["keys"]
    assert key not in listed.body.decode()
    async with open_subscriber(gateway, "websocket", topic, headers=[bearer(key)]) as reader:
        assert (await call(gateway, "POST", "/v1/events", key, {"topic": topic, "data": 1})).status == 202
        assert await reader.data(1) == [1]
        assert (await call(gateway, "GET", "/v1/keys", key)).status == 403
        assert (await call(gateway, "DELETE", f"/v1/keys/{made['id']}")).status == 204
        await ended(reader, "websocket", "revoked")
    assert (await call(gateway, "POST", "/v1/events", key, {"topic": topic, "data": 1})).status == 401


async def test_a_ticket_opens_one_stream(gateway: Address, topic: str) -> None:
    """An EventSource or a WebSocket, once; not a poll, nor anything else."""
    text = fresh(subscribe=[topic], sub="ada")
    for transport in ("sse", "websocket"):
        answer = await call(gateway, "POST", "/v1/tickets", text)
        assert answer.status == 201
        ticket = answer.json["ticket"]
        assert (await fetch(gateway, "/v1/events", [("topic", topic), ("ticket", ticket)])).status == 401
        async with open_subscriber(gateway, transport, topic, ticket=ticket):
            pass
        with pytest.raises(Refused) as refused:
            async with open_subscriber(gateway, transport, topic, ticket=ticket):
                pass
        assert refused.value.response.status == 401


async def test_a_page_is_known_by_its_cookie(gateway: Address, topic: str) -> None:
    """Scripts cannot read it, and pages of others cannot use it."""
    text = fresh(subscribe=[topic], publish=[topic], sub="ada")
    answer = await call(gateway, "POST", "/v1/session", text)
    assert answer.status == 204
    cookie = answer.head["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    sent = ("Cookie", cookie.partition(";")[0])
    own = ("Origin", "http://localhost")
    body = {"topic": topic, "data": 1}
    assert (await call(gateway, "POST", "/v1/events", None, body, [sent, own])).status == 202
    assert (
        await call(gateway, "POST", "/v1/events", None, body, [sent, ("Origin", "https://evil.example")])
    ).status == 403
    assert (
        await call(
            gateway,
            "GET",
            f"/v1/events?topic={topic}",
            None,
            headers=[sent, ("Sec-Fetch-Site", "cross-site")],
        )
    ).status == 401
    async with open_subscriber(gateway, "sse", topic, headers=[sent, own]):
        pass
    left = await call(gateway, "DELETE", "/v1/session", None, headers=[sent, own])
    assert (left.status, "Max-Age=0" in left.head["set-cookie"]) == (204, True)


async def test_a_page_of_an_allowed_origin_reads_streams(gateway: Address, topic: str) -> None:
    """The head of a stream names the origin; a preflight needs no token."""
    origin = ("Origin", "https://app.example")
    text = fresh(subscribe=[topic])
    async with open_subscriber(gateway, "sse", topic, headers=[origin, bearer(text)]) as reader:
        assert reader.head["access-control-allow-origin"] == "https://app.example"
    asked = [
        origin,
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization"),
    ]
    answer = await call(gateway, "OPTIONS", "/v1/events", None, headers=asked)
    assert (answer.status, answer.head["access-control-allow-headers"]) == (204, "authorization")


# --- tenants -----------------------------------------------------------------------------------------------


async def test_tenants_do_not_meet(gateway: Address, topic: str) -> None:
    """The same topic, id, consumer and pattern of two tenants are two; neither sees the other's spelling."""
    texts = {
        name: fresh(sub="same", tenant=name, publish=["#"], subscribe=["#"], requests=["*"], webhooks=True)
        for name in ("acme", "umbrella")
    }
    common = fresh(sub="same", publish=["#"], subscribe=["#"])
    async with (
        open_subscriber(gateway, "websocket", "#", headers=[bearer(texts["acme"])]) as acme,
        open_subscriber(gateway, "websocket", "#", headers=[bearer(texts["umbrella"])]) as umbrella,
        open_subscriber(gateway, "websocket", "#", headers=[bearer(common)]) as outside,
    ):
        for name, text in texts.items():
            event = {"topic": topic, "data": name, "id": f"same-{topic}"}
            answer = await call(gateway, "POST", "/v1/events", text, event)
            assert answer.json["accepted"] == 1, "the id of one tenant is no duplicate of another's"
        for name, reader in (("acme", acme), ("umbrella", umbrella)):
            (event,) = await reader.events(1)
            assert (event["data"], event["topic"]) == (name, topic)
        await call(gateway, "POST", "/v1/events", common, {"topic": topic, "data": "common"})
        assert await outside.data(1) == ["common"]
    handed = await call(gateway, "POST", "/v1/requests/reports", texts["acme"], {"a": 1})
    assert handed.status == 202
    path = f"/v1/requests/{handed.json['token']}"
    assert (await call(gateway, "GET", path, texts["acme"])).status == 200
    assert (await call(gateway, "GET", path, texts["umbrella"])).status == 404
    assert (await call(gateway, "DELETE", path, texts["umbrella"])).status == 404
    made = await call(
        gateway, "POST", "/v1/webhooks", texts["acme"], {"url": "http://127.0.0.1:8080/", "topics": ["a.#"]}
    )
    assert (made.status, made.json["topics"]) == (201, ["a.#"])
    hook = f"/v1/webhooks/{made.json['id']}"
    assert (await call(gateway, "GET", hook, texts["umbrella"])).status == 404
    assert (await call(gateway, "DELETE", hook, texts["umbrella"])).status == 404
    assert (await call(gateway, "GET", hook, ADMIN)).json["topics"] == ["$tenant.acme.a.#"]
    assert (await call(gateway, "GET", "/v1/webhooks", texts["umbrella"])).json["webhooks"] == []
    assert (await call(gateway, "DELETE", hook, texts["acme"])).status == 204


# --- what a ticket and a name are not -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [(("Accept", "text/event-stream"),), (("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),)],
    ids=["accept", "websocket-key"],
)
async def test_a_ticket_neither_publishes_nor_polls(gateway: Address, topic: str, headers: Any) -> None:
    """Also if the request has headers of one that opens a stream; and the ticket is as good as before."""
    text = fresh(subscribe=[topic], publish=[topic], sub="ada")
    ticket = (await call(gateway, "POST", "/v1/tickets", text)).json["ticket"]
    path = f"/v1/events?ticket={ticket}"
    body = {"topic": topic, "data": 1}
    assert (await call(gateway, "POST", path, None, body, headers)).status == 401
    polling = (("Accept", "application/json, text/event-stream;q=0.1"), *headers[1:])
    assert (await call(gateway, "GET", f"{path}&topic={topic}", None, headers=polling)).status == 401
    async with open_subscriber(gateway, "sse", topic, ticket=ticket):
        pass


@pytest.mark.parametrize(
    ("before", "after"), [({"sub": "ada"}, {"jti": "ada"}), ({}, {})], ids=["token's name", "no name"]
)
async def test_a_connection_is_not_renewed_by_who_may_be_somebody_else(
    gateway: Address, topic: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """A token's own name is no subject's; who has no name has no connection that is known to be theirs."""
    async with open_subscriber(
        gateway, "ndjson", topic, headers=[bearer(fresh(subscribe=[topic], **before))], welcomed=False
    ) as reader:
        name = (await reader.control("welcome"))["connection"]
        text = fresh(subscribe=[topic], **after)
        answer = await call(gateway, "POST", f"/v1/connections/{name}/token", text, {"token": text})
        assert answer.status == 404
