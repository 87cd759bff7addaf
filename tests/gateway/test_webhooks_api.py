"""The API of webhooks, its half about endpoints: a real server, a real store, nobody who sends."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.support.receiver import always, answers, receiver, with_status
from tests.support.webhook_api import EPOCH, URL, Api, FailingStore, id_of, problem, serving
from webhooks.keys import MAX_LIVE
from webhooks.records import Status
from webhooks.signature import Scheme, new_secret

LEAST: Final = {"url": URL, "topics": ["orders.#"]}


@pytest.fixture
async def small() -> AsyncIterator[Api]:
    """The API of one store, where it does not matter which; it may send to loopback addresses."""
    store = FailingStore()
    await store.start()
    async with serving(store, allow="127.0.0.0/8") as found:
        yield found
    await store.close()


# --- making


async def test_a_webhook_is_made(api: Api) -> None:
    """The answer has everything that was given or not given, where it is, and the secret."""
    answer = await api.http.post("/v1/webhooks", json=LEAST)
    assert answer.status_code == 201
    created = answer.json()
    name, secret = created.pop("id"), created.pop("secret")
    assert answer.headers["location"] == f"/v1/webhooks/{name}"
    assert answer.headers["etag"].startswith('"')
    assert answer.headers["cache-control"] == "no-store"
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert (at(created.pop("changed")) - at(created.pop("created"))).total_seconds() < 1
    (key,) = created.pop("keys")
    assert (key.pop("scheme"), list(key)) == ("v1", ["created"])
    assert created == {
        **LEAST,
        "types": [],
        "filter": None,
        "signatures": ["v1"],
        "body": "event",
        "order": "none",
        "in_flight": 16,
        "rate": None,
        "schedule": [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400],
        "headers": {},
        "origin": None,
        "description": "",
        "state": "active",
        "health": {"failures": 0},
    }


async def test_the_secret_is_shown_once(api: Api) -> None:
    """Neither the webhook nor the list of all has it."""
    created = await api.create()
    shown = await api.http.get(f"/v1/webhooks/{created['id']}")
    listed = await api.http.get("/v1/webhooks")
    for text in (shown.text, listed.text):
        assert created["id"] in text
        assert created["secret"] not in text
        assert "whsec" not in text


async def test_a_webhook_is_shown_as_it_was_made(api: Api) -> None:
    """With how much is pending for it."""
    created = await api.create(rate=2, filter={"a": 1}, description="für uns", types=["t"])
    del created["secret"]
    assert await api.show(created["id"]) == {**created, "pending": 0}
    await api.deliver(created["id"], 3)
    assert (await api.show(created["id"]))["pending"] == 3


async def test_a_secret_can_be_brought_along(api: Api) -> None:
    secret = new_secret(Scheme.V1).text
    assert (await api.create(secret=secret))["secret"] == secret


async def test_private_keys_are_never_shown(api: Api) -> None:
    """Of v1a there is only the public half, also if its owner brought the private one along."""
    private = new_secret(Scheme.V1A)
    answer = await api.http.post(
        "/v1/webhooks", json={**LEAST, "signatures": ["v1a"], "secret": private.text}
    )
    assert "whsk_" not in answer.text
    created = answer.json()
    assert "secret" not in created
    (key,) = created["keys"]
    assert key["public_key"].startswith("whpk_")
    both = await api.create(signatures=["v1a", "v1"])
    assert both["secret"].startswith("whsec_")
    assert {each["scheme"] for each in both["keys"]} == {"v1", "v1a"}


async def test_values_of_headers_that_may_be_secrets_are_hidden(api: Api) -> None:
    """They can be replaced, but not given back by mistake."""
    created = await api.create(headers={"Authorization": "Bearer x", "X-Api-Key": "y", "X-Stage": "test"})
    assert created["headers"] == {"Authorization": "…", "X-Api-Key": "…", "X-Stage": "test"}
    path = f"/v1/webhooks/{created['id']}"
    refused = await api.http.patch(path, json={"headers": created["headers"]})
    assert problem(refused, 422, "printable ASCII")["pointer"] == "/headers/Authorization"


@pytest.mark.parametrize(
    ("members", "pointer", "said"),
    [
        ({"url": "ftp://example.com/"}, "/url", "begins with https:// or http://"),
        ({"url": "example.com"}, "/url", "begins with"),
        ({"url": "https://me:hush@example.com/"}, "/url", "no room for a user or password"),
        ({"url": "https://example.com/#a"}, "/url", "no fragment"),
        ({"url": "https://example.com:22/"}, "/url", "no webhooks are sent to port 22"),
        ({"url": "http://127.0.0.1/"}, "/url", "127.0.0.1 is a loopback address"),
        ({"url": "http://[::1]/"}, "/url", "::1 is a loopback address"),
        ({"url": "http://[::ffff:169.254.169.254]/"}, "/url", "is a link-local address"),
        ({"url": "http://10.1.2.3/"}, "/url", "is a private address"),
        ({"url": "http://0x7f.1/"}, "/url", "is no IPv4 address"),
        ({"url": "http://2130706433/"}, "/url", "is no IPv4 address"),
        ({"url": "https://exa mple.com/"}, "/url", "no spaces or control characters"),
        ({"url": "https://example.com/\r\nHost: x"}, "/url", "no spaces or control characters"),
        ({"url": "https://exämple.com/"}, "/url", "written in ASCII"),
        ({"url": "https://" + "a" * 3000}, "/url", "2048 are allowed"),
        ({"topics": ["a.b*"]}, "/topics/0", "a wildcard is part of a word"),
        ({"topics": []}, "/topics", "there must be 1 to 100"),
        ({"tpoics": ["a"]}, "/tpoics", "there is no member 'tpoics'"),
        ({"tpoics": None}, "/tpoics", "there is no member 'tpoics'"),
        ({"secret": "whsec_MTIz"}, "/secret", "the secret has 3 bytes"),
        ({"secret": "hush"}, "/secret", "begins with neither"),
        ({"headers": {"X-A": "1\r\nX-B: 2"}}, "/headers/X-A", "printable ASCII on one line"),
        ({"headers": {"X\r\nY": "1"}}, "/headers/X\r\nY", "no name of a header"),
        ({"headers": {"Content-Length": "1"}}, "/headers/Content-Length", "the gateway's own"),
        ({"headers": {"webhook-signature": "1"}}, "/headers/webhook-signature", "the gateway's own"),
        ({"filter": {"a": {"$regex": "(a+)+$"}}}, "/filter/a/$regex", "is no operator"),
        ({"filter": {"a": {"$in": list(range(101))}}}, "/filter", "more than 100 conditions"),
        ({"filter": {"a" * 9000: 1}}, "/filter", "more than 8192"),
        ({"schedule": [0]}, "/schedule/0", "a wait must have"),
        ({"rate": -1}, "/rate", "the rate must be"),
        ({"order": "lifo"}, "/order", "there is only none and fifo"),
        ({"origin": "a b"}, "/origin", "a DNS name"),
        ({"id": "wh_mine"}, "/id", "there is no member"),
        ({"state": "paused"}, "/state", "there is no member"),
    ],
)
async def test_what_cannot_be_is_refused(
    small: Api, members: dict[str, Any], pointer: str, said: str
) -> None:
    """With a problem that says what and where; nothing is made, and nothing is changed."""
    small.webhooks.guard = type(small.webhooks.guard)()  # none but public addresses
    refused = problem(await small.http.post("/v1/webhooks", json={**LEAST, **members}), 422, said)
    assert refused["pointer"] == pointer
    assert (await small.http.get("/v1/webhooks")).json() == {"webhooks": []}
    created = await small.create()
    changed = await small.http.patch(f"/v1/webhooks/{created['id']}", json=members)
    assert problem(changed, 422)["pointer"] == pointer
    assert await small.show(created["id"]) == {
        **{name: value for name, value in created.items() if name != "secret"},
        "pending": 0,
    }


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"", "application/json", 422, "url is missing"),
        (b"{}", "application/json", 422, "url is missing"),
        (b"[]", "application/json", 422, "Expected `object`"),
        (b"1", "application/json", 422, "Expected `object`"),
        (b"{", "application/json", 400, "no valid JSON"),
        (b'{"url":"\xff"}', "application/json", 400, "is not utf-8"),
        (b'{"filter":' + b'{"a":' * 5000 + b"1" + b"}" * 5001, "application/json", 422, "nested too deeply"),
        (b"{}", "text/plain", 415, "the body is application/json"),
        (b"{}", "application/xml", 415, "the body is application/json"),
        (b"{}", "multipart/form-data; boundary=x", 415, "the body is application/json"),
        (b" " * 70_000, "application/json", 413, "more than 65536 bytes"),
    ],
)
async def test_bodies_that_are_none(small: Api, body: bytes, kind: str, status: int, said: str) -> None:
    """No object, no JSON, another content type, too much."""
    answer = await small.http.post("/v1/webhooks", content=body, headers={"content-type": kind})
    problem(answer, status, said)
    assert (await small.http.get("/v1/webhooks")).json() == {"webhooks": []}


async def test_curl_needs_no_content_type(small: Api) -> None:
    """What curl says of a body by itself means as little as nothing."""
    for headers in ({}, {"content-type": "application/x-www-form-urlencoded"}):
        answer = await small.http.post("/v1/webhooks", content=json.dumps(LEAST).encode(), headers=headers)
        assert answer.status_code == 201


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/webhooks", "GET, HEAD, POST"),
        ("/v1/webhooks/wh_x", "DELETE, GET, HEAD, PATCH"),
        ("/v1/webhooks/wh_x:pause", "POST"),
        ("/v1/webhooks/wh_x:resume", "POST"),
        ("/v1/webhooks/wh_x:enable", "POST"),
        ("/v1/webhooks/wh_x/secret:rotate", "POST"),
        ("/v1/webhooks/wh_x/test", "POST"),
        ("/v1/webhooks/wh_x/deliveries", "GET, HEAD"),
        ("/v1/webhooks/wh_x/recover", "POST"),
        ("/v1/webhooks/wh_x/jobs", "GET, HEAD"),
        ("/v1/webhooks/wh_x/jobs/job_x", "GET, HEAD"),
        ("/v1/deliveries/dl_x", "GET, HEAD"),
        ("/v1/deliveries/dl_x/attempts", "GET, HEAD"),
        ("/v1/deliveries/dl_x:retry", "POST"),
        ("/.well-known/jwks.json", "GET, HEAD"),
    ],
)
async def test_methods_and_names_that_are_not_there(small: Api, path: str, methods: str) -> None:
    """A method that a resource has not is answered with those it has; an unknown name with 404."""
    for method in ("PUT", "OPTIONS", "TRACE", "POST", "GET", "PATCH", "DELETE"):
        if method not in methods:
            answer = await small.http.request(method, path)
            assert answer.headers["allow"] == methods
            problem(answer, 405, f"the methods of this resource are {methods}")
        elif "x" in path:
            body = {"since": "earliest"} if path.endswith("recover") else {}
            problem(
                await small.http.request(method, path, content=json.dumps(body).encode()), 404, "there is no"
            )


async def test_parameters_that_are_not_there(small: Api) -> None:
    """A parameter that nobody reads is refused, not ignored."""
    created = await small.create()
    for path in ("/v1/webhooks", f"/v1/webhooks/{created['id']}", "/.well-known/jwks.json"):
        problem(await small.http.get(f"{path}?sort=asc"), 422, "the query")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"sec-fetch-site": "same-origin"}, 201),
        ({"sec-fetch-site": "none"}, 201),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "http://elsewhere.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:{port}"}, 201),
        ({"origin": "http://127.0.0.1:1"}, 403),
    ],
)
async def test_pages_of_others_change_nothing(small: Api, headers: dict[str, str], status: int) -> None:
    """A browser would send such a request for any page, without asking first; no event may leak by it."""
    given = {name: value.format(port=small.port) for name, value in headers.items()}
    simple = {"content-type": "application/x-www-form-urlencoded", **given}
    answer = await small.http.post("/v1/webhooks", content=json.dumps(LEAST).encode(), headers=simple)
    assert answer.status_code == status
    assert len((await small.http.get("/v1/webhooks")).json()["webhooks"]) == (status == 201)


# --- listing


async def test_webhooks_are_listed_in_pages(api: Api) -> None:
    """In the order in which they were made; the last page leads nowhere."""
    names = [(await api.create())["id"] for _ in range(5)]
    seen, page, sizes = [], None, []
    while True:
        query = {"limit": 2, **({"page": page} if page else {})}
        answer = (await api.http.get("/v1/webhooks", params=query)).json()
        sizes.append(len(answer["webhooks"]))
        seen += [each["id"] for each in answer["webhooks"]]
        page = answer.get("next")
        if page is None:
            break
    assert (seen, sizes) == (names, [2, 2, 1])


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=", "limit=1&limit=2", "page=x", "page="]
)
async def test_garbage_in_paging(small: Api, query: str) -> None:
    problem(await small.http.get(f"/v1/webhooks?{query}"), 422)


# --- changing


async def test_a_change_is_member_by_member(api: Api) -> None:
    """What is not given stays, null is the default; the tag is another one afterwards."""
    created = await api.create(rate=5, description="old", types=["t"])
    path = f"/v1/webhooks/{created['id']}"
    before = await api.http.get(path)
    answer = await api.http.patch(path, json={"description": "new", "rate": None, "topics": ["b"]})
    assert answer.status_code == 200
    changed = answer.json()
    assert (changed["description"], changed["rate"], changed["topics"], changed["types"]) == (
        "new",
        None,
        ["b"],
        ["t"],
    )
    assert "secret" not in changed
    assert answer.headers["etag"] != before.headers["etag"]
    assert (await api.http.get(path)).headers["etag"] == answer.headers["etag"]
    assert api.webhooks.looks == 1


async def test_a_change_that_changes_nothing(api: Api) -> None:
    """Is answered as any other; the tag stays."""
    created = await api.create(rate=5)
    path = f"/v1/webhooks/{created['id']}"
    before = await api.http.get(path)
    for members in ({}, {"rate": 5}, {"topics": ["a.#"], "url": URL}):
        answer = await api.http.patch(path, json=members)
        assert (answer.status_code, answer.headers["etag"]) == (200, before.headers["etag"])
    assert api.webhooks.looks == 0


async def test_a_change_on_a_condition(api: Api) -> None:
    """With If-Match a webhook is changed as its owner saw it, or not at all."""
    created = await api.create()
    path = f"/v1/webhooks/{created['id']}"
    seen = (await api.http.get(path)).headers["etag"]
    first = await api.http.patch(path, json={"rate": 1}, headers={"if-match": seen})
    assert first.status_code == 200
    for tag in (seen, f'"x", {seen}', f"W/{first.headers['etag']}", "x"):
        answer = await api.http.patch(path, json={"rate": 2}, headers={"if-match": tag})
        problem(answer, 412, "was changed by somebody else")
        assert first.headers["etag"] in answer.json()["detail"]
    problem(await api.http.delete(path, headers={"if-match": seen}), 412)
    assert (await api.show(created["id"]))["rate"] == 1
    for tag in (f'"x", {first.headers["etag"]}', "*"):
        answer = await api.http.patch(path, json={"rate": 3}, headers={"if-match": tag})
        assert answer.status_code == 200


async def test_changes_at_the_same_time_are_all_made(api: Api) -> None:
    """Members that different owners change do not overwrite each other."""
    created = await api.create()
    path = f"/v1/webhooks/{created['id']}"
    members = [{"rate": 7}, {"description": "x"}, {"in_flight": 3}]
    made = await asyncio.gather(*(api.http.patch(path, json=each) for each in members))
    assert [each.status_code for each in made] == [200] * 3
    shown = await api.show(created["id"])
    assert (shown["rate"], shown["description"], shown["in_flight"]) == (7, "x", 3)


async def test_of_changes_on_the_same_condition_one_is_made(api: Api) -> None:
    created = await api.create()
    path = f"/v1/webhooks/{created['id']}"
    tag = (await api.http.get(path)).headers["etag"]
    made = await asyncio.gather(
        *(api.http.patch(path, json={"rate": n}, headers={"if-match": tag}) for n in range(1, 9))
    )
    assert sorted(each.status_code for each in made) == [200] + [412] * 7


async def test_the_secret_is_not_changed_by_a_patch(small: Api) -> None:
    created = await small.create()
    answer = await small.http.patch(
        f"/v1/webhooks/{created['id']}", json={"secret": new_secret(Scheme.V1).text}
    )
    problem(answer, 422, "it is rotated")


async def test_a_patch_may_say_that_it_is_a_merge_patch(small: Api) -> None:
    created = await small.create()
    answer = await small.http.patch(
        f"/v1/webhooks/{created['id']}",
        content=b'{"rate":2}',
        headers={"content-type": "application/merge-patch+json"},
    )
    assert answer.json()["rate"] == 2
    refused = await small.http.patch(
        f"/v1/webhooks/{created['id']}",
        content=b"[]",
        headers={"content-type": "application/json-patch+json"},
    )
    problem(refused, 415)
    assert refused.headers["accept-patch"] == "application/merge-patch+json"


async def test_a_scheme_that_comes_later_has_its_secret_in_the_answer(api: Api) -> None:
    """It is the only answer that ever has it."""
    created = await api.create(signatures=["v1a"])
    path = f"/v1/webhooks/{created['id']}"
    answer = (await api.http.patch(path, json={"signatures": ["v1", "v1a"]})).json()
    assert answer["secret"].startswith("whsec_")
    assert "secret" not in (await api.http.patch(path, json={"rate": 1})).json()


# --- removing


async def test_a_webhook_is_removed_once_or_twice(api: Api) -> None:
    """Whoever did not hear the first answer may ask again. All else says that there is no such webhook."""
    created = await api.create()
    path = f"/v1/webhooks/{created['id']}"
    for _ in range(2):
        answer = await api.http.delete(path)
        assert (answer.status_code, answer.content) == (204, b"")
    problem(await api.http.get(path), 404, f"there is no webhook '{created['id']}'")
    problem(await api.http.patch(path, json={"rate": 1}), 404)
    problem(await api.http.post(path + "/test"), 404)
    problem(await api.http.post(path + ":pause"), 404)
    assert (await api.http.get("/v1/webhooks")).json() == {"webhooks": []}
    problem(await api.http.delete("/v1/webhooks/wh_aaaaaaab"), 404)


async def test_nothing_secret_is_left_of_a_removed_webhook(api: Api) -> None:
    created = await api.create(headers={"Authorization": "Bearer hush"})
    await api.http.delete(f"/v1/webhooks/{created['id']}")
    row = await api.store.find_endpoint(id_of(created["id"]), removed=True)
    assert row is not None
    assert (row.status, row.settings) == (Status.REMOVED, b'{"description":{"topics":["a.#"]}}')


# --- secrets


async def test_a_secret_is_rotated(api: Api) -> None:
    """The new one is in the answer; the old one signs along for a day, or as long as is said."""
    created = await api.create()
    path = f"/v1/webhooks/{created['id']}/secret:rotate"
    answer = await api.http.post(path)
    assert answer.status_code == 200
    rotated = answer.json()
    assert (rotated["id"], rotated["scheme"]) == (created["id"], "v1")
    assert rotated["secret"].startswith("whsec_")
    assert rotated["secret"] != created["secret"]
    new, old = rotated["keys"]
    assert "expires" not in new
    assert (at(old["expires"]) - at(new["created"])).total_seconds() == pytest.approx(86_400, abs=1)
    assert len((await api.http.post(path, json={"overlap": 0})).json()["keys"]) == 1
    own = new_secret(Scheme.V1).text
    assert (await api.http.post(path, json={"secret": own, "overlap": 60})).json()["secret"] == own


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_a_private_key_is_rotated(api: Api) -> None:
    """The answer has the public half, and the set of keys has both for a while."""
    created = await api.create(signatures=["v1a"])
    path = f"/v1/webhooks/{created['id']}/secret:rotate"
    answer = await api.http.post(path, json={"scheme": "v1a"})
    assert "secret" not in answer.json()
    assert answer.json()["public_key"] == answer.json()["keys"][0]["public_key"]
    assert len((await api.http.get("/.well-known/jwks.json")).json()["keys"]) == 2


@pytest.mark.parametrize(
    ("members", "pointer", "said"),
    [
        ({"secret": "whsec_MTIz"}, "/secret", "the secret has 3 bytes"),
        ({"scheme": "v1a"}, "/scheme", "does not sign by v1a"),
        ({"scheme": "v2"}, "/scheme", "there is only v1 and v1a"),
        ({"overlap": -1}, "/overlap", "the overlap must be"),
        ({"overlap": 1e9}, "/overlap", "the overlap must be"),
        ({"secrets": "x"}, "/secrets", "there is no member"),
    ],
)
async def test_rotations_that_cannot_be(small: Api, members: dict[str, Any], pointer: str, said: str) -> None:
    created = await small.create()
    answer = await small.http.post(f"/v1/webhooks/{created['id']}/secret:rotate", json=members)
    assert problem(answer, 422, said)["pointer"] == pointer
    assert len((await small.show(created["id"]))["keys"]) == 1


async def test_there_are_so_many_live_secrets_at_most(small: Api) -> None:
    created = await small.create()
    path = f"/v1/webhooks/{created['id']}/secret:rotate"
    for _ in range(MAX_LIVE - 1):
        assert (await small.http.post(path)).status_code == 200
    problem(await small.http.post(path), 422, "10 secrets are live")
    refused = await small.http.post(path, json={"secret": created["secret"]})
    problem(refused, 422, "one that the endpoint has already")


async def test_the_set_of_public_keys(api: Api) -> None:
    """Has those of all webhooks that sign by v1a, and follows what is changed."""
    assert (await api.http.get("/.well-known/jwks.json")).json() == {"keys": []}
    await api.create()
    created = await api.create(signatures=["v1a"])
    answer = await api.http.get("/.well-known/jwks.json")
    assert answer.headers["content-type"] == "application/jwk-set+json"
    assert answer.headers["cache-control"] == "public, max-age=60"
    (jwk,) = answer.json()["keys"]
    public = base64.urlsafe_b64decode(jwk["x"] + "=")
    Ed25519PublicKey.from_public_bytes(public)
    assert base64.b64decode(created["keys"][0]["public_key"].removeprefix("whpk_")) == public
    await api.http.delete(f"/v1/webhooks/{created['id']}")
    assert (await api.http.get("/.well-known/jwks.json")).json() == {"keys": []}


# --- states


async def test_pause_and_resume(api: Api) -> None:
    """Twice is as good as once."""
    created = await api.create()
    path = f"/v1/webhooks/{created['id']}"
    for verb, state in (("pause", "paused"), ("pause", "paused"), ("resume", "active"), ("resume", "active")):
        answer = await api.http.post(f"{path}:{verb}")
        assert (answer.status_code, answer.json()["state"]) == (200, state)
        assert (await api.show(created["id"]))["state"] == state
    assert api.webhooks.looks == 2


@pytest.mark.parametrize("status", [Status.DISABLED, Status.GONE])
async def test_enabling_what_was_closed(api: Api, status: Status) -> None:
    """Only enabling opens it again; what is pending then stays so."""
    created = await api.create()
    await api.deliver(created["id"], 2)
    await api.close(created["id"], status)
    path = f"/v1/webhooks/{created['id']}"
    assert (await api.show(created["id"]))["state"] == status.value
    for verb in ("pause", "resume"):
        problem(
            await api.http.post(f"{path}:{verb}"), 409, f"the endpoint is {status.value}: enable it first"
        )
    assert (await api.http.post(f"{path}:enable")).json()["state"] == "active"
    assert (await api.http.get(f"{path}/jobs")).json() == {"jobs": []}
    assert (await api.show(created["id"]))["pending"] == 2


async def test_enabling_and_skipping(api: Api) -> None:
    """A job gives up what was held, and opens the webhook when it has: nothing is sent in between."""
    created = await api.create()
    held = await api.deliver(created["id"], 3)
    await api.close(created["id"], Status.DISABLED)
    path = f"/v1/webhooks/{created['id']}"
    answer = await api.http.post(f"{path}:enable", json={"held": "skip"})
    assert answer.status_code == 202
    (job,) = (await api.http.get(f"{path}/jobs")).json()["jobs"]
    assert (job["task"], job["state"], job["deliveries"]) == ("skip", "running", 0)
    assert answer.json() == (await api.http.get(answer.headers["location"])).json() == job
    assert (await api.show(created["id"]))["state"] == "disabled"
    (later,) = await api.deliver(created["id"], 1, first=4)
    await api.finish_jobs()
    (job,) = (await api.http.get(f"{path}/jobs")).json()["jobs"]
    assert (job["state"], job["deliveries"]) == ("done", 3)
    assert (await api.show(created["id"]))["state"] == "active"
    states = [(await api.http.get(f"/v1/deliveries/{each}")).json()["state"] for each in (*held, later)]
    assert states == ["failed", "failed", "failed", "pending"]


@pytest.mark.parametrize("members", [{"held": "drop"}, {"hold": "skip"}])
async def test_enabling_in_a_way_that_is_none(small: Api, members: dict[str, Any]) -> None:
    created = await small.create()
    answer = await small.http.post(f"/v1/webhooks/{created['id']}:enable", json=members)
    problem(answer, 422)


async def test_verbs_take_no_members(small: Api) -> None:
    created = await small.create()
    answer = await small.http.post(f"/v1/webhooks/{created['id']}:pause", json={"for": "1h"})
    problem(answer, 422, "nothing to be said in the body")


# --- trying it out


async def test_a_test_event(api: Api) -> None:
    """Is a delivery of its own, of no log, whatever the patterns are."""
    created = await api.create(filter={"never": 1})
    answer = await api.http.post(f"/v1/webhooks/{created['id']}/test")
    assert answer.status_code == 202
    delivery = answer.json()
    assert answer.headers["location"] == f"/v1/deliveries/{delivery['id']}"
    assert (delivery["topic"], delivery["state"], delivery["attempts"]) == ("webhook.test", "pending", 0)
    assert api.webhooks.looks == 1
    members = {"id", "webhook", "webhook_id", "event", "topic", "time", "state", "attempts", "next_attempt"}
    assert set(delivery) == members
    assert delivery["webhook_id"].startswith("msg_test-")
    again = await api.http.get(answer.headers["location"])
    assert again.json() == delivery


async def test_a_test_event_of_ones_own(api: Api) -> None:
    created = await api.create()
    body = {"topic": "orders.1", "type": "order.created", "data": {"a": [1, "ü"]}}
    answer = await api.http.post(f"/v1/webhooks/{created['id']}/test", json=body)
    assert answer.json()["topic"] == "orders.1"
    (message,) = (await api.store.find_messages([1])).values()
    assert (message.topic, message.type) == ("orders.1", "order.created")
    assert json.loads(b"{%b}" % message.body)["data"] == body["data"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"topic": "a.*"}, 422, "the topic"),
        ({"topic": ""}, 422, "topic"),
        ({"type": "x" * 300}, 422, "the type"),
        ({"data": "x" * 65_450}, 413, "65536"),
        ({"id": "mine"}, 422, "there is no member"),
    ],
)
async def test_test_events_that_cannot_be(small: Api, body: dict[str, Any], status: int, said: str) -> None:
    created = await small.create()
    problem(await small.http.post(f"/v1/webhooks/{created['id']}/test", json=body), status, said)
    assert (await small.show(created["id"]))["pending"] == 0


async def test_nothing_is_tested_that_is_not_sent_to(small: Api) -> None:
    """It would wait, and its owner with it."""
    created = await small.create()
    await small.http.post(f"/v1/webhooks/{created['id']}:pause")
    answer = await small.http.post(f"/v1/webhooks/{created['id']}/test")
    problem(answer, 409, "the webhook is paused: resume it first")


# --- consent

GRANTED: Final = with_status(200, "WebHook-Allowed-Origin: events.example.com", "WebHook-Allowed-Rate: 120")


async def test_a_receiver_is_asked_whether_it_agrees(small: Api) -> None:
    """By CloudEvents' handshake; the rate that it allows is the webhook's."""
    async with receiver(answers(GRANTED, GRANTED)) as asked:
        created = await small.create(url=asked.url, origin="events.example.com", rate=10)
        (request,) = asked.requests
        assert request.line == "OPTIONS /hook HTTP/1.1"
        assert request.headers["WebHook-Request-Origin"] == "events.example.com"
        assert request.headers["WebHook-Request-Rate"] == "600"
        assert created["rate"] == 2
        path = f"/v1/webhooks/{created['id']}"
        await small.http.patch(path, json={"description": "not asked again"})
        assert len(asked.requests) == 1
        assert (await small.http.patch(path, json={"rate": 100})).json()["rate"] == 2
        assert asked.requests[1].headers["WebHook-Request-Rate"] == "6000"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (with_status(200), "answered 200 without a WebHook-Allowed-Origin"),
        (with_status(200, "Allow: POST, OPTIONS"), "answered 200 without"),
        (with_status(405), "answered 405 without"),
        (with_status(200, "WebHook-Allowed-Origin: evil.example.com"), "that names the origin"),
        (with_status(200, "WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: many"), "neither * nor"),
        (with_status(200, "WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: 0"), "neither * nor"),
        (b"", "did not answer"),
    ],
)
async def test_whatever_else_it_says_is_no_consent(small: Api, answer: bytes, said: str) -> None:
    """Nothing is made then."""
    async with receiver(answers(answer, close=True)) as asked:
        refused = await small.http.post(
            "/v1/webhooks", json={**LEAST, "url": asked.url, "origin": "a.example"}
        )
    assert problem(refused, 422, said)["pointer"] == "/origin"
    assert (await small.http.get("/v1/webhooks")).json() == {"webhooks": []}


async def test_consent_to_everybody(small: Api) -> None:
    async with receiver(answers(with_status(204, "webhook-allowed-origin: *"))) as asked:
        assert (await small.create(url=asked.url, origin="a.example"))["rate"] is None


async def test_nobody_is_asked_without_an_origin(small: Api) -> None:
    async with receiver(always) as asked:
        await small.create(url=asked.url)
        assert asked.connections == 0


# --- when the store fails


async def test_nothing_is_known_while_the_store_is_away(small: Api) -> None:
    """Every request is answered 503, with when to come back; afterwards all is as it was."""
    created = await small.create()
    name = created["id"]
    (delivery,) = await small.deliver(name, 1)
    before = await small.show(name)
    store = small.store
    assert isinstance(store, FailingStore)
    requests = [
        ("GET", "/v1/webhooks", None),
        ("POST", "/v1/webhooks", LEAST),
        ("GET", f"/v1/webhooks/{name}", None),
        ("PATCH", f"/v1/webhooks/{name}", {"rate": 1}),
        ("DELETE", f"/v1/webhooks/{name}", None),
        ("POST", f"/v1/webhooks/{name}:pause", None),
        ("POST", f"/v1/webhooks/{name}/secret:rotate", {}),
        ("POST", f"/v1/webhooks/{name}/test", {}),
        ("GET", f"/v1/webhooks/{name}/deliveries", None),
        ("POST", f"/v1/webhooks/{name}/recover", {"since": "earliest"}),
        ("GET", f"/v1/webhooks/{name}/jobs", None),
        ("GET", f"/v1/deliveries/{delivery}", None),
        ("GET", f"/v1/deliveries/{delivery}/attempts", None),
        ("POST", f"/v1/deliveries/{delivery}:retry", None),
        ("GET", "/.well-known/jwks.json", None),
    ]
    for reads in (0, None):
        store.reads, store.writes = reads, 0
        for method, path, body in requests:
            if reads is None and method == "GET":
                continue
            answer = await small.http.request(method, path, json=body)
            problem(answer, 503, "webhooks cannot be read or stored at the moment")
            assert answer.headers["retry-after"] == "2"
    store.reads = store.writes = None
    assert await small.show(name) == before
    assert (await small.http.get(f"/v1/webhooks/{name}/jobs")).json() == {"jobs": []}
    assert len((await small.http.get("/v1/webhooks")).json()["webhooks"]) == 1
    assert small.webhooks.looks == 0


async def test_there_are_so_many_webhooks_at_most(small: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.webhooks_api.MAX_ENDPOINTS", 2)
    await small.create()
    created = await small.create()
    problem(await small.http.post("/v1/webhooks", json=LEAST), 409, "there are 2 webhooks")
    await small.http.delete(f"/v1/webhooks/{created['id']}")
    await small.create()


def test_the_epoch_of_these_tests_is_one() -> None:
    """Deliveries of a log are named by its epoch."""
    assert len(EPOCH) == 6
