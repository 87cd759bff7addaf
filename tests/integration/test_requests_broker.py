"""Requests on a broker: workers that take them from there, and replicas that know of each other's."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pika
import pytest

from gateway.requests.buckets import BUCKETS, DELIVERIES, bucket_of, key_of, queue_of
from gateway.requests.changes import new_token
from tests.integration.test_worker import HANDLER, NUMBERS, NUMBERS_SEEN
from tests.support.accounts import until
from tests.support.clients import fetch
from tests.support.clients import until as until_asked
from tests.support.command import run_sluice
from tests.support.host import address_of
from tests.support.rabbitmq import Broker
from tests.support.requests import Api
from tests.support.server import GatewayProcess
from tests.support.worker import WorkerProcess

pytestmark = pytest.mark.integration

LEASE = 2
"""Seconds for which a worker may be silent."""


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def broker(stack: ExitStack) -> Broker:
    return stack.enter_context(Broker(niceness=0))


@pytest.fixture(scope="module")
def replicas(stack: ExitStack, broker: Broker) -> list[GatewayProcess]:
    return [
        stack.enter_context(
            GatewayProcess(
                backbone=broker.url,
                name=name,
                services="reports,mail,slow,odd,none,leased",
                request_result_bytes=2000,
                request_tries=2,
                request_backoff=0.1,
                request_lease=LEASE,
            )
        )
        for name in "ab"
    ]


@pytest.fixture
def apis(replicas: list[GatewayProcess]) -> tuple[Api, Api]:
    one, other = (Api(address_of(each)) for each in replicas)
    return one, other


async def test_a_lease_is_good_at_any_replica(broker: Broker, apis: tuple[Api, Api]) -> None:
    """Workers behind a balancer lease here and speak there, and whoever gave the lease hears of it."""
    one, other = apis
    verbs: list[tuple[str, dict[str, Any], str]] = [
        ("complete", {"result": 1}, "done"),
        ("fail", {"detail": "no", "again": False}, "failed"),
        ("release", {}, "queued"),
        ("fail", {"detail": "no"}, "queued"),
    ]
    for verb, members, state in verbs:
        token = await one.submit("leased", verb)
        (lease,) = await one.lease("leased", wait=30)
        assert lease["token"] == token
        said = await other.post(f"/v1/leases/{lease['lease']}:progress", {"progress": 5})
        assert said.status == 200, said
        assert (await one.show(token))["progress"] == 5
        assert (await other.end(lease, "progress", {})).status == 200
        wrong = {"lease": lease["lease"][:-1] + ("a" if lease["lease"][-1] != "a" else "b")}
        assert (await other.end(wrong, verb, members or None)).status == 404
        assert (await other.end(lease, verb, members or None)).status == 204
        for api in apis:
            assert (await api.end(lease, verb, members or None)).status == 404
        if state == "queued":
            (again,) = await one.lease("leased", wait=30)
            assert (again["token"], again["attempt"]) == (token, 2)
            assert (await other.end(again, "complete", {"result": 2})).status == 204
        final = "done" if state == "queued" else state
        assert (await one.show(token, wait=5))["state"] == final
    await until(lambda: left(broker, "leased") == 0, "the queues are empty")
    for api in apis:
        services = (await fetch(api.address, "/v1/services")).json["services"]
        assert {each["service"]: each["running"] for each in services}["leased"] == 0


async def either(apis: tuple[Api, Api], service: str) -> list[Any]:
    """Ask both for a request, and return what the first has that has one."""
    asking = [asyncio.create_task(api.lease(service, wait=30)) for api in apis]
    done, waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    return [lease for task in done for lease in task.result()]


async def test_a_lease_goes_on_by_what_is_said_elsewhere(apis: tuple[Api, Api]) -> None:
    """It does not lapse while its worker reports to another replica, and does when it does not."""
    one, other = apis
    token = await one.submit("leased", 1)
    (lease,) = await one.lease("leased", wait=30)
    for _ in range(5):
        await asyncio.sleep(LEASE / 2)
        assert (await other.end(lease, "progress", {})).status == 200
    (again,) = await either(apis, "leased")
    assert (again["token"], again["attempt"]) == (token, 2)
    assert (await one.end(lease, "complete", {"result": 1})).status == 404
    assert (await one.end(again, "complete", {"result": 2})).status == 204
    assert (await other.show(token, wait=5))["result"] == 2


def publish(broker: Broker, routing_key: str, body: bytes, **headers: Any) -> None:
    """Publish past the gateways."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        properties = pika.BasicProperties(type="sluice.request", headers=headers, delivery_mode=2)
        connection.channel().basic_publish("events", routing_key, body, properties)


def left(broker: Broker, service: str) -> int:
    """Return how many messages are in the queues of a service."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        names = [queue_of("sluicegate", service, bucket) for bucket in range(BUCKETS)]
        return sum(channel.queue_declare(name, passive=True).method.message_count for name in names)


async def test_a_worker_works_past_the_gateways(broker: Broker, apis: tuple[Api, Api]) -> None:
    """What its handler returns is the result, what it raises is the reason; and its queues are empty then."""
    one, other = apis
    with WorkerProcess(broker.url, "reports", HANDLER, concurrency=4, name="w"):
        wanted: dict[Any, dict[str, Any]] = {
            1: {"result": {"data": 1, "attempt": 1}},
            "refuse": {"error": {"reason": "refused", "detail": "not this one"}},
            "fail": {"error": {"reason": "error", "detail": "ValueError: no luck"}, "attempt": 2},
            "large": {"error": {"reason": "result"}},
            "larger": {"error": {"reason": "result"}},
        }
        tokens = {data: await one.submit("reports", data) for data in wanted}
        for data, expected in wanted.items():
            shown = await other.show(tokens[data], wait=30)
            for name, value in expected.items():
                got = shown[name]
                assert (got | value if isinstance(got, dict) else value) == got, (data, shown)
        await until(lambda: left(broker, "reports") == 0, "the queues are empty")
        again = await other.post(f"/v1/requests/{tokens['fail']}:retry")
        assert again.status == 202, again
        shown = await one.show(tokens["fail"], wait=30)
        assert (shown["state"], shown["attempt"]) == ("failed", 4)
        groups = (await fetch(one.address, "/v1/replicas")).json["groups"]
        assert [each["name"] for each in groups["service.reports"]] == ["w"]


async def test_any_replica_knows_at_once(apis: tuple[Api, Api]) -> None:
    """What was handed in at one is found, and can be taken back, at the other; nobody is told more."""
    one, other = apis
    for _ in range(20):
        token = await one.submit("none", 1)
        assert (await other.show(token))["state"] == "queued"
        assert (await fetch(other.address, f"/v1/requests/{token}", method="DELETE")).status == 200
        assert (await one.show(token))["state"] == "cancelled"
    assert (await fetch(one.address, f"/v1/requests/{new_token()}")).status == 404


async def test_repeats_through_all_replicas_are_one_request(broker: Broker, apis: tuple[Api, Api]) -> None:
    """Calls with one key, at the same time and at both, get one token, and the handler runs once."""
    with WorkerProcess(broker.url, "mail", HANDLER, concurrency=4):
        for number in range(5):
            calls = [api.submit("mail", number, idempotency_key=f"k{number}") for api in apis * 4]
            tokens = set(await asyncio.gather(*calls))
            assert len(tokens) == 1
            (token,) = tokens
            assert (await apis[0].show(token, wait=30))["attempt"] == 1
            states = await changes(apis[1], token)
            assert Counter(states)["done"] == Counter(states)["running"] == 1, states


async def changes(api: Api, token: str) -> list[str]:
    """Return the states of a request, in order."""
    query = [("topic", f"requests.{token}"), ("cursor", "earliest")]
    events = (await fetch(api.address, "/v1/events", query)).json["events"]
    return [each["data"]["state"] for each in events]


async def test_who_works_on_what_was_taken_back_is_stopped(broker: Broker, apis: tuple[Api, Api]) -> None:
    """It hears of it, and what waits behind is next."""
    one, other = apis
    with WorkerProcess(broker.url, "slow", HANDLER, drain_seconds=0.1) as worker:
        token = await one.submit("slow", "slow")
        await until_asked(lambda: _is(other, token, "running"), "it runs")
        assert (await fetch(other.address, f"/v1/requests/{token}", method="DELETE")).status == 200
        await until(lambda: "worker.lost" in worker.log_text(), "the worker hears of it")
        again = await one.submit("slow", "slow")
        await until_asked(lambda: _is(other, again, "running"), "the next one runs")
        assert worker.stop() == 0
        assert "worker.released" in worker.log_text()
    (lease,) = await other.lease("slow", wait=30)
    assert (lease["token"], lease["attempt"]) == (again, 2)
    await other.end(lease, "complete", {"result": 1})
    assert (await one.show(again, wait=30))["result"] == 1
    await until(lambda: left(broker, "slow") == 0, "the queues are empty")


async def test_what_expired_can_be_tried_again(broker: Broker, apis: tuple[Api, Api]) -> None:
    """By the very worker that was there when it did."""
    one, other = apis
    with WorkerProcess(broker.url, "slow", HANDLER) as worker:
        busy = await one.submit("slow", "slow")
        await until_asked(lambda: _is(other, busy, "running"), "the worker is busy")
        answer = await one.post("/v1/requests/slow?ttl=1", 7)
        token = answer.json["token"]
        await until_asked(lambda: _is(other, token, "failed"), "it expires")
        assert (await fetch(other.address, f"/v1/requests/{busy}", method="DELETE")).status == 200
        await until(lambda: "worker.lost" in worker.log_text(), "the worker is free")
        assert (await other.post(f"/v1/requests/{token}:retry")).status == 202
        assert (await one.show(token, wait=20))["state"] == "done"


async def _is(api: Api, token: str, state: str) -> bool:
    return bool((await api.show(token))["state"] == state)


async def test_what_a_worker_cannot_read_fails(broker: Broker, apis: tuple[Api, Api]) -> None:
    """Messages of another version, or from nobody, hold up nothing."""
    with WorkerProcess(broker.url, "odd", HANDLER) as worker:
        for number, body in enumerate((b"{", b'{"state":"queued"}', b'{"state":"done","service":"odd"}')):
            publish(broker, key_of("sluicegate", "odd", number), body)
        expired = b'{"state":"queued","service":"odd","expires":"2020-01-01T00:00:00"}'  # of no time zone
        publish(broker, key_of("sluicegate", "odd", 4), expired)
        token = await apis[0].submit("odd", 1)
        assert (await apis[1].show(token, wait=30))["state"] == "done"
        await until(lambda: left(broker, "odd") == 0, "the queues are empty")
        assert worker.log_text().count("worker.unreadable") == 3


async def test_a_worker_takes_numbers_of_any_size(broker: Broker, apis: tuple[Api, Api]) -> None:
    """As one at a gateway's door does."""
    with WorkerProcess(broker.url, "odd", HANDLER) as worker:
        token = await apis[0].submit("odd", NUMBERS)
        shown = await apis[1].show(token, wait=30)
        assert (shown["state"], shown.get("result")) == ("done", NUMBERS_SEEN), shown
        assert worker.stop() == 0


@pytest.mark.parametrize("data", [b'"%%%"', b'"\\u00e9"', b'"QQ"', b"7"])
async def test_data_that_cannot_be_read_fails_its_request(
    broker: Broker, apis: tuple[Api, Api], data: bytes
) -> None:
    """Whoever may publish on the broker may publish anything; the next one is done by the same worker."""
    expires = (await apis[0].show(await apis[0].submit("none", 1)))["expires"].encode()
    mine = new_token()
    body = b'{"state":"queued","service":"odd","expires":"%b","data_base64":%b}' % (expires, data)
    bucket = key_of("sluicegate", "odd", bucket_of(mine))
    with WorkerProcess(broker.url, "odd", HANDLER) as worker:
        publish(broker, f"requests.{mine}", body, key=mine, BCC=[bucket])
        await until_asked(lambda: _is(apis[1], mine, "failed"), "it fails")
        error = (await apis[1].show(mine))["error"]
        assert error["reason"] == "refused"
        assert error["detail"].startswith("its worker cannot read what was handed in: ")
        token = await apis[0].submit("odd", 1)
        assert (await apis[1].show(token, wait=30))["state"] == "done"
        assert worker.stop() == 0


async def test_what_no_worker_survives_fails(broker: Broker, apis: tuple[Api, Api]) -> None:
    """A request with which so many workers vanished is given to no other."""
    token = await apis[0].submit("none", 1)
    body = json.dumps({"state": "queued", "service": "odd", "data": 1}).encode()
    headers: dict[str, Any] = {
        "BCC": [key_of("sluicegate", "odd", bucket_of(token))],
        "x-delivery-count": DELIVERIES,
    }
    mine = new_token()
    expires = (await apis[0].show(token))["expires"]
    body = json.dumps({"state": "queued", "service": "odd", "data": 1, "expires": expires}).encode()
    publish(broker, f"requests.{mine}", body, key=mine, **headers)
    with WorkerProcess(broker.url, "odd", HANDLER):
        shown = await apis[1].show(mine, wait=30)
    assert (shown["state"], shown["error"]["reason"]) == ("failed", "lost")


async def test_a_worker_waits_for_its_broker(apis: tuple[Api, Api]) -> None:
    """It goes on when the broker was away, with what it was doing."""
    with Broker(niceness=0) as broker, ExitStack() as stack:
        gateway = stack.enter_context(GatewayProcess(backbone=broker.url, services="reports"))
        worker = stack.enter_context(WorkerProcess(broker.url, "reports", HANDLER))
        api = Api(address_of(gateway))
        token = await api.submit("reports", 1)
        assert (await api.show(token, wait=30))["state"] == "done"
        await asyncio.to_thread(broker.restart)
        await until(lambda: "worker.waiting" in worker.log_text(), "it says that it waits")

        async def handed_in() -> bool:
            answer = await api.post("/v1/requests/reports", 2, idempotency_key="k")
            return answer.status == 202

        await until_asked(handed_in, "the gateway takes it")
        token = await api.submit("reports", 2, idempotency_key="k")
        assert (await api.show(token, wait=60))["state"] == "done"
        assert worker.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["--timeout=1h"], 2, "takes back what is not done in half an hour"),
        (["--backbone=nonsense"], 1, "backbone"),
        (["--exchanges=,"], 1, "exchanges"),
        (["--backbone={wrong}"], 1, "Login was refused"),
        (["--exchanges=amq.fanout"], 1, "refuses"),
    ],
)
def test_what_is_refused(broker: Broker, arguments: list[str], code: int, why: str) -> None:
    """One sentence, and the exit code of other commands."""
    wrong = broker.url.replace("guest:guest", "guest:wrong")
    given = [each.format(wrong=wrong) for each in arguments]
    environ = {"SLUICE_BACKBONE": broker.url}
    done = run_sluice("worker", "json:loads", "--service=reports", *given, environ=environ)
    assert (done.returncode, why in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_requests_need_their_topics_in_the_log() -> None:
    """A gateway whose exchange brings it no events of requests does not start."""
    done = run_sluice(
        "check", "--data=memory:", "--backbone=amqp://x", "--services=reports", "--exchanges=events:orders.#"
    )
    assert done.returncode == 2
    assert "requests are events on requests.#" in done.stderr
