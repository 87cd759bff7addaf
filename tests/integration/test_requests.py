"""Requests over HTTP: handed in, leased, finished; and everything that is refused on the way."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.clients import Address, fetch, metric, open_subscriber
from tests.support.clients import until as until_asked
from tests.support.host import address_of
from tests.support.rabbitmq import Broker
from tests.support.requests import Api
from tests.support.server import GatewayProcess

DEADLINE = 30.0
NOBODY = f"rq_{'a' * 28}"


@pytest.fixture(scope="module", params=["embedded", "backbone"])
def process(request: pytest.FixtureRequest) -> Iterator[GatewayProcess]:
    """A gateway on its own log, and one on a broker: clients and workers cannot tell."""
    with ExitStack() as stack:
        more: dict[str, Any] = {}
        if request.param == "backbone":
            more["backbone"] = stack.enter_context(Broker(niceness=0)).url
        yield stack.enter_context(
            GatewayProcess(
                services="reports,mail,narrow,odd,short,crash",
                request_bytes=2000,
                request_result_bytes=1000,
                request_queue=3,
                request_tries=2,
                request_backoff=0.1,
                request_lease=1,
                **more,
            )
        )


@pytest.fixture
def on_broker(process: GatewayProcess) -> bool:
    return "backbone.began" in process.log_text()


@pytest.fixture
def address(process: GatewayProcess) -> Address:
    return address_of(process)


@pytest.fixture
async def api(address: Address) -> AsyncIterator[Api]:
    """A gateway whose services have nothing to do, before and after."""
    one = Api(address)
    yield one
    listed = (await fetch(address, "/v1/requests", [("limit", "1000")])).json["requests"]
    for each in listed:
        if each["state"] in ("queued", "running"):
            await fetch(address, f"/v1/requests/{each['token']}", method="DELETE")


# --- the way of a request


async def test_from_hand_to_hand(api: Api) -> None:
    """Handed in, leased, told of, finished; a long poll and a stream are told on the way."""
    made = await api.post("/v1/requests/reports", {"month": 11})
    assert made.status == 202
    token, cursor = made.json["token"], made.json["cursor"]
    assert made.head["location"] == made.json["status_url"] == f"/v1/requests/{token}"
    queued = await fetch(api.address, f"/v1/requests/{token}")
    assert queued.json["state"] == "queued"
    assert int(queued.head["retry-after"]) > 0
    assert queued.head["cache-control"] == "no-store"
    async with open_subscriber(api.address, "sse", f"requests.{token}", cursor=cursor) as reader:
        waiting = asyncio.create_task(api.show(token, wait=30))
        (lease,) = await api.lease("reports")
        assert (lease["token"], lease["data"], lease["attempt"]) == (token, {"month": 11}, 1)
        answer = await api.end(lease, "progress", {"progress": {"percent": 50}})
        assert (answer.status, answer.json) == (200, {"seconds": 1.0})
        running = await api.show(token)
        assert (running["state"], running["progress"]) == ("running", {"percent": 50})
        assert (await api.end(lease, "complete", {"result": {"url": "x"}})).status == 204
        done = await waiting
        assert (done["state"], done["result"], done["attempt"]) == ("done", {"url": "x"}, 1)
        events = [(await reader.next())["data"] for _ in range(4)]
    assert [each["state"] for each in events] == ["queued", "running", "running", "done"]
    assert events[0]["data"] == {"month": 11}
    assert events[3]["result"] == {"url": "x"}
    found = await fetch(api.address, f"/v1/requests/{token}")
    assert "retry-after" not in found.head


@pytest.mark.parametrize(
    ("body", "kind", "member", "data"),
    [
        (b'{"a": [1, 2]}', "application/json", "data", {"a": [1, 2]}),
        (b'{\n "a": 1\n}', "application/json", "data", {"a": 1}),
        (b"", "application/x-www-form-urlencoded", "data", None),
        ("grüße".encode(), "text/plain; charset=utf-8", "data", "grüße"),
        (b"\x00\xff", "application/octet-stream", "data_base64", base64.b64encode(b"\x00\xff").decode()),
    ],
)
async def test_what_can_be_handed_in(api: Api, body: bytes, kind: str, member: str, data: Any) -> None:
    """Any body, as for publishing; the worker gets JSON."""
    made = await fetch(
        api.address, "/v1/requests/mail", (), [("Content-Type", kind)], method="POST", body=body
    )
    assert made.status == 202
    (lease,) = await api.lease("mail")
    assert lease[member] == data
    assert ("data" in lease) != ("data_base64" in lease)
    assert (await api.end(lease, "complete")).status == 204
    assert (await api.show(made.json["token"]))["result"] is None


async def test_polling_costs_little(api: Api) -> None:
    """The tag says whether anything has changed; with `wait` the answer comes when it has."""
    token = await api.submit("reports", 1)
    path = f"/v1/requests/{token}"
    tag = (await fetch(api.address, path)).head["etag"]
    same = await fetch(api.address, path, (), [("If-None-Match", tag)])
    assert (same.status, same.body, same.head["etag"]) == (304, b"", tag)
    waiting = asyncio.create_task(fetch(api.address, path, [("wait", "30")], [("If-None-Match", tag)]))
    (lease,) = await api.lease("reports")
    changed = await waiting
    assert (changed.status, changed.json["state"]) == (200, "running")
    over = await fetch(api.address, path, [("wait", "0.2")], [("If-None-Match", changed.head["etag"])])
    assert over.status == 304
    assert (await api.end(lease, "complete", {"result": 1})).status == 204
    assert (await fetch(api.address, path, [("wait", "30")])).json["state"] == "done"


async def test_the_same_call_again_is_the_same_request(api: Api) -> None:
    """With the key; other data, or another service, under it is a mistake."""
    tokens = {await api.submit("reports", {"a": 1}, idempotency_key="one") for _ in range(3)}
    assert len(tokens) == 1
    again = await asyncio.gather(*(api.submit("mail", 5, idempotency_key="one") for _ in range(5)))
    assert len(set(again)) == 1
    assert not tokens.intersection(again)
    other = await api.post("/v1/requests/reports", {"a": 2}, idempotency_key="one")
    assert (other.status, other.problem["detail"]) == (
        422,
        "that idempotency key was used for another request",
    )


async def test_a_client_takes_its_request_back(api: Api) -> None:
    """No worker gets it; one that has it is told, and what it says then is too late."""
    early, late = await api.submit("reports", 1), await api.submit("reports", 2)
    gone = await fetch(api.address, f"/v1/requests/{early}", method="DELETE")
    assert (gone.status, gone.json["state"]) == (200, "cancelled")
    (lease,) = await api.lease("reports", most=5)
    assert lease["token"] == late
    assert (await fetch(api.address, f"/v1/requests/{late}", method="DELETE")).status == 200
    for verb, members in (("progress", {}), ("complete", {"result": 1}), ("fail", {}), ("release", None)):
        assert (await api.end(lease, verb, members)).status == 404
    assert (await api.show(late))["state"] == "cancelled"
    assert (await fetch(api.address, f"/v1/requests/{late}", method="DELETE")).status == 200  # as it is


async def test_failures_are_tried_again_until_it_is_enough(api: Api) -> None:
    """Two tries here; the reason stays, an operator can have it tried again, and then it can be done."""
    token = await api.submit("reports", {"n": 1})
    for attempt in (1, 2):
        (lease,) = await api.lease("reports")
        assert lease["attempt"] == attempt
        assert (await api.end(lease, "fail", {"reason": "error", "detail": f"no {attempt}"})).status == 204
    failed = await api.show(token)
    assert (failed["state"], failed["error"]) == ("failed", {"reason": "error", "detail": "no 2"})
    listed = (await fetch(api.address, "/v1/requests", [("state", "failed")])).json["requests"]
    assert [each["reason"] for each in listed if each["token"] == token] == ["error"]
    again = await api.post(f"/v1/requests/{token}:retry")
    assert (again.status, again.json["state"]) == (202, "queued")
    (lease,) = await api.lease("reports")
    assert (lease["attempt"], lease["data"]) == (3, {"n": 1})
    await api.end(lease, "complete", {"result": "at last"})
    assert (await api.show(token))["result"] == "at last"
    assert (await api.post(f"/v1/requests/{token}:retry")).status == 409


async def test_a_worker_can_say_never_again(api: Api) -> None:
    """And when to try again, if it does."""
    token = await api.submit("reports", 1)
    (lease,) = await api.lease("reports")
    await api.end(lease, "fail", {"reason": "refused", "detail": "nonsense", "again": False})
    assert (await api.show(token))["error"] == {"reason": "refused", "detail": "nonsense"}
    token = await api.submit("reports", 2)
    (lease,) = await api.lease("reports")
    await api.end(lease, "fail", {"delay": 3600})
    waiting = await api.show(token)
    assert (waiting["state"], waiting["error"]["reason"]) == ("queued", "error")
    assert waiting["next"] > waiting["updated"]
    assert await api.lease("reports", wait=0) == []


async def test_a_worker_that_falls_silent_loses_its_request(api: Api) -> None:
    """Another gets it; what the first one says then is too late."""
    token = await api.submit("reports", 1)
    (first,) = await api.lease("reports", worker="silent")
    (second,) = await api.lease("reports", wait=30, worker="other")
    assert (second["token"], second["attempt"]) == (token, 2)
    assert (await api.end(first, "complete", {"result": "first"})).status == 404
    assert (await api.end(second, "complete", {"result": "second"})).status == 204
    assert (await api.show(token))["result"] == "second"
    assert await metric(api.address, "sluice_requests_lapsed_total") > 0


async def test_what_is_given_back_counts_as_no_failure(api: Api) -> None:
    """A worker that goes away has not failed."""
    token = await api.submit("reports", 1)
    for attempt in range(1, 6):
        (lease,) = await api.lease("reports")
        assert (lease["token"], lease["attempt"]) == (token, attempt)
        assert (await api.end(lease, "release")).status == 204


async def test_nobody_waits_for_ever(api: Api) -> None:
    """What is not done in time has failed, though nobody ever asked for it."""
    made = await api.post("/v1/requests/short?ttl=0.5", 1)
    shown = await api.show(made.json["token"], wait=30)
    assert (shown["state"], shown["error"]["reason"]) == ("failed", "expired")
    assert await api.lease("short", wait=0) == []


async def test_what_is_taken_in_can_be_handed_out(api: Api) -> None:
    """However deeply it is nested: what a worker could not be given, or a client not be shown, is refused."""
    taken, refused = 0, 0
    for depth in (100, *range(740, 790), *range(960, 990)):
        deep = b"[" * depth + b"]" * depth
        answer = await api.post("/v1/requests/mail", deep)
        if answer.status == 422:
            assert "nested" in answer.problem["detail"]
            refused += 1
            continue
        assert answer.status == 202
        taken += 1
        (lease,) = await api.lease("mail")
        assert lease["token"] == answer.json["token"]
        done = await api.end(lease, "complete", {"result": None})
        assert done.status == 204
    assert taken > 1
    assert refused > 1


async def test_many_are_leased_at_once_and_workers_take_turns(api: Api, *, on_broker: bool) -> None:
    """Each request goes to one of them, the oldest first, and who waits longest is first."""
    waiting = [asyncio.create_task(api.lease("mail", worker=f"w{number}")) for number in range(3)]
    await until_asked(lambda: _waiting(api, "mail", 3), "three workers wait")
    tokens = [await api.submit("mail", number) for number in range(3)]
    got = [lease["token"] for task in waiting for lease in await task]
    assert sorted(got) == sorted(tokens)
    tokens = [await api.submit("narrow", number) for number in range(3)]
    leases: list[Any] = []
    while len(leases) < 3:  # on a broker they come from several queues
        leases += await api.lease("narrow", most=5)
    came = [each["token"] for each in leases]
    assert (sorted(came), sorted(tokens)) == (sorted(tokens), sorted(came))
    assert on_broker or came == tokens
    for each in leases:
        assert (await api.end(each, "complete", {"result": 1})).status == 204


async def _waiting(api: Api, service: str, count: int) -> bool:
    services = (await fetch(api.address, "/v1/services")).json["services"]
    return any(each["service"] == service and each["waiting_workers"] == count for each in services)


async def test_a_full_service_refuses(api: Api) -> None:
    """Others do not; and when something was done there is room again."""
    for number in range(3):
        await api.submit("narrow", number)
    refused = await api.post("/v1/requests/narrow", 4)
    assert refused.status == 429
    assert int(refused.head["retry-after"]) > 0
    await api.submit("mail", 1)
    (lease,) = await api.lease("narrow")
    assert (await api.post("/v1/requests/narrow", 4)).status == 429
    await api.end(lease, "complete", {"result": 1})
    await api.submit("narrow", 4)


async def test_a_result_that_is_too_large(api: Api) -> None:
    """The request has failed by it, and the worker knows; a progress like that is only refused."""
    token = await api.submit("reports", 1)
    (lease,) = await api.lease("reports")
    assert (await api.end(lease, "progress", {"progress": "x" * 1001})).status == 413
    assert (await api.show(token))["state"] == "running"
    refused = await api.end(lease, "complete", {"result": "x" * 1001})
    assert (refused.status, "1003 bytes" in refused.problem["detail"]) == (413, True)
    assert (await api.show(token))["error"]["reason"] == "result"


# --- what is refused


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "why"),
    [
        ("POST", "/v1/requests/unheard-of", b"1", {}, 404, "no service 'unheard-of'"),
        ("POST", "/v1/requests/Reports", b"1", {}, 404, "no service"),
        ("POST", "/v1/requests/reports", b"x" * 2001, {}, 413, "2000"),
        ("POST", "/v1/requests/reports", b"{", {"Content-Type": "application/json"}, 400, "no valid JSON"),
        ("POST", "/v1/requests/reports", b"[" * 1900, {"Content-Type": "application/json"}, 422, "deeply"),
        ("POST", "/v1/requests/reports", b'"\xff"', {"Content-Type": "application/json"}, 400, "utf-8"),
        ("POST", "/v1/requests/reports", b"1", {"Idempotency-Key": "a b"}, 422, "Idempotency-Key"),
        ("POST", "/v1/requests/reports", b"1", {"Idempotency-Key": "a" * 256}, 422, "Idempotency-Key"),
        ("POST", "/v1/requests/reports?ttl=0", b"1", {}, 422, "ttl"),
        ("POST", "/v1/requests/reports?ttl=-1", b"1", {}, 422, "ttl"),
        ("POST", "/v1/requests/reports?ttl=1e9", b"1", {}, 422, "ttl"),
        ("POST", "/v1/requests/reports?ttl=nan", b"1", {}, 422, "ttl"),
        ("POST", "/v1/requests/reports?other=1", b"1", {}, 422, "query"),
        ("POST", "/v1/requests/reports", b"1", {"Origin": "https://elsewhere.example"}, 403, "origin"),
        ("PUT", "/v1/requests/reports", b"1", {}, 405, ""),
        ("GET", f"/v1/requests/{NOBODY}", None, {}, 404, "no such request"),
        ("GET", "/v1/requests/reports", None, {}, 404, "no such request"),
        ("GET", "/v1/requests/x%00y", None, {}, 404, "no such request"),
        ("GET", f"/v1/requests/{NOBODY}?wait=61", None, {}, 422, "wait"),
        ("GET", f"/v1/requests/{NOBODY}?wait=-1", None, {}, 422, "wait"),
        ("DELETE", f"/v1/requests/{NOBODY}", None, {}, 404, "no such request"),
        ("POST", f"/v1/requests/{NOBODY}:retry", b"", {}, 404, "no such request"),
        ("GET", "/v1/requests?state=dead", None, {}, 422, "state is one of"),
        ("GET", "/v1/requests?service=nope", None, {}, 404, "no service"),
        ("GET", "/v1/requests?limit=0", None, {}, 422, "limit"),
        ("GET", "/v1/requests?page=x", None, {}, 422, "page"),
        ("POST", "/v1/services/unheard-of:lease", b"{}", {}, 404, "no service"),
        ("POST", "/v1/services/odd:lease", b"[]", {}, 422, "object"),
        ("POST", "/v1/services/odd:lease", b"{", {}, 400, "JSON"),
        ("POST", "/v1/services/odd:lease", b'{"max": 0}', {}, 422, "max"),
        ("POST", "/v1/services/odd:lease", b'{"max": 101}', {}, 422, "max"),
        ("POST", "/v1/services/odd:lease", b'{"max": "1"}', {}, 422, "max"),
        ("POST", "/v1/services/odd:lease", b'{"wait": 61}', {}, 422, "wait"),
        ("POST", "/v1/services/odd:lease", b'{"worker": ""}', {}, 422, "worker"),
        ("POST", "/v1/services/odd:lease", b'{"worker": "a\\nb"}', {}, 422, "worker"),
        ("POST", "/v1/services/odd:lease", b'{"other": 1}', {}, 422, "other"),
        ("POST", "/v1/leases/nobody:complete", b'{"result": 1}', {}, 404, "no such lease"),
        ("POST", "/v1/leases/nobody:progress", b"{}", {}, 404, "no such lease"),
        ("POST", "/v1/leases/nobody:fail", b"{}", {}, 404, "no such lease"),
        ("POST", "/v1/leases/nobody:release", b"", {}, 404, "no such lease"),
        ("POST", "/v1/leases/nobody:fail", b'{"reason": "because"}', {}, 422, "reason is one of"),
        ("POST", "/v1/leases/nobody:fail", b'{"delay": -1}', {}, 422, "delay"),
        ("POST", "/v1/leases/nobody:fail", b'{"again": "no"}', {}, 422, "again"),
        ("POST", "/v1/leases/nobody:complete", b'{"results": 1}', {}, 422, "results"),
        ("POST", "/v1/leases/nobody:explode", b"", {}, 404, ""),
        ("GET", "/v1/leases/nobody:complete", None, {}, 405, ""),
        ("POST", "/v1/topics/requests.x", b"1", {}, 202, ""),
    ],
)
async def test_what_is_refused(
    address: Address,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    status: int,
    why: str,
) -> None:
    """With the right status, a sentence, and without a trace: nothing was handed in."""
    known = len((await fetch(address, "/v1/requests", [("limit", "1000")])).json["requests"])
    target, _, query = path.partition("?")
    pairs = [tuple(each.split("=", 1)) for each in query.split("&") if each]
    answer = await fetch(address, target, pairs, list(headers.items()), method=method, body=body)  # type: ignore[arg-type]
    assert answer.status == status, answer
    if status >= 400:
        assert why.lower() in answer.problem["detail"].lower()
    assert len((await fetch(address, "/v1/requests", [("limit", "1000")])).json["requests"]) == known


@pytest.mark.parametrize("type", ["sluice.request", "sluice.anything"])
async def test_nobody_says_what_only_the_gateway_knows(api: Api, type: str) -> None:
    """The state of a request cannot be published, by any door."""
    token = await api.submit("reports", 1)
    forged = {
        "topic": f"requests.{token}",
        "type": type,
        "data": {"state": "done", "service": "reports", "result": "forged"},
    }
    for body in (forged, [forged]):
        answer = await api.post("/v1/events", body)
        assert (answer.status, "/type" in answer.problem["pointer"]) == (422, True)
    async with open_subscriber(api.address, "websocket", "x") as client:
        await client.send({"op": "publish", **forged})
        assert (await client.next())["status"] == 422
    untyped = {"topic": f"requests.{token}", "data": forged["data"]}
    assert (await api.post("/v1/events", untyped)).status == 202
    cloud = {"specversion": "1.0", "id": "1", "source": "s", "type": type, "topic": f"requests.{token}"}
    headers = [("Content-Type", "application/cloudevents+json")]
    sent = json.dumps({**cloud, "data": forged["data"]}).encode()
    assert (await fetch(api.address, "/v1/events", (), headers, method="POST", body=sent)).status == 422
    assert (await api.show(token))["state"] == "queued"


async def test_pages_of_requests(api: Api) -> None:
    """Every request once, in the order in which they came."""
    tokens = [await api.submit("odd", number) for number in range(3)]
    found, page = [], None
    while True:
        query = [("service", "odd"), ("state", "queued"), ("limit", "2")]
        answer = (
            await fetch(api.address, "/v1/requests", [*query, *([("page", page)] if page else [])])
        ).json
        found += [each["token"] for each in answer["requests"]]
        page = answer.get("next")
        if page is None:
            break
    assert found == tokens


async def test_without_services_there_are_none(own: Address) -> None:
    """The list of services is empty, and the other paths are not there at all."""
    assert (await fetch(own, "/v1/services")).json == {"services": []}
    for path in ("/v1/requests", f"/v1/requests/{NOBODY}", "/v1/services/reports:lease"):
        assert (await fetch(own, path)).status == 404


# --- crashes


async def test_a_crash_loses_no_request_and_no_result(address: Address) -> None:
    """After kill -9 all are where they were; who was at work is asked again, its old lease is none."""
    with GatewayProcess(services="reports", request_lease=30) as process:
        api = Api(address_of(process))
        done, failed, running, queued = [await api.submit("reports", number) for number in range(4)]
        leases = {each["token"]: each for each in await api.lease("reports", most=3)}
        await api.end(leases[done], "complete", {"result": "it"})
        await api.end(leases[failed], "fail", {"detail": "no", "again": False})
        await api.end(leases[running], "progress", {"progress": 1})
        await api.post("/v1/requests/reports", 9, idempotency_key="k")
        process.kill()
        await process.astart()
        await until_asked(lambda: _is_known(api, queued), "the requests are read")
        assert (await api.show(done))["result"] == "it"
        assert (await api.show(failed))["error"]["detail"] == "no"
        assert (await api.show(running))["progress"] == 1
        assert (await api.end(leases[running], "complete", {"result": 1})).status == 404
        again = {each["data"]: each for each in await api.lease("reports", most=10)}
        assert sorted(again) == [2, 3, 9]
        assert (again[2]["token"], again[2]["attempt"]) == (running, 2)
        same = await api.post("/v1/requests/reports", 9, idempotency_key="k")
        assert same.json["token"] == again[9]["token"]


async def _is_known(api: Api, token: str) -> bool:
    return (await fetch(api.address, f"/v1/requests/{token}")).status == 200


async def test_a_drain_answers_who_waits(address: Address) -> None:
    """Clients and workers that wait get their answer before the gateway goes."""
    with GatewayProcess(services="reports") as process:
        api = Api(address_of(process))
        token = await api.submit("reports", 1)
        (lease,) = await api.lease("reports")
        waiting = asyncio.create_task(api.show(token, wait=60))
        leasing = asyncio.create_task(api.lease("reports", wait=60))
        await until_asked(lambda: _waiting(api, "reports", 1), "a worker waits")
        await process.astop()
        assert (await waiting)["state"] == "running"
        assert await leasing == []
        assert lease["token"] == token
