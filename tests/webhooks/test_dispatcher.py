"""From the log to receivers, with everything real: log, store, sender, sockets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import standardwebhooks

from fanout.event import Event
from gateway.app import Gateway
from gateway.settings import Settings
from tests.support.hooks import (
    added,
    changed,
    deliveries,
    got,
    hooks,
    in_turn,
    numbers,
    published,
    running,
    secret_of,
    stand,
)
from tests.support.receiver import OK, Peer, always, receiver, silent, until
from webhooks.description import Order
from webhooks.endpoint import Signal
from webhooks.records import Message, Standing, Status, Task
from webhooks.stored import endpoint_name

pytestmark = pytest.mark.integration

DELIVERED, PENDING = Standing.DELIVERED, Standing.PENDING
FAILED, EXPIRED = Standing.FAILED, Standing.EXPIRED
AT_ONCE = (0.1,) * 5


async def test_an_event_arrives_signed() -> None:
    """An event that is published after an endpoint was added arrives there, and verifies."""
    async with receiver(always) as found, running() as gateway:
        endpoint = await added(gateway, found.url, "orders.*")
        await published(gateway, "orders.1", 1)
        assert await got(found, 1) == [1]
        (request,) = found.requests
        (delivery,) = await stand(gateway, endpoint, DELIVERED)
        webhook = standardwebhooks.Webhook(secret_of(endpoint))
        event = webhook.verify(request.body.decode(), request.headers)
        assert event["topic"] == "orders.1"
        assert request.headers["webhook-id"] == f"msg_{event['cursor']}"
        assert delivery.event == event["id"] == "1"
        (attempt,) = await hooks(gateway).store.list_attempts(endpoint.id, delivery.message)
        assert (attempt.number, attempt.status, attempt.error) == (1, 200, None)


async def test_only_what_is_wanted_is_dispatched() -> None:
    """Topic, type and filter decide; what an endpoint does not want leaves no row."""
    async with receiver(always) as found, running() as gateway:
        by_type = await added(gateway, found.url, "a.#", types=("paid",))
        by_data = await added(gateway, found.url, "a.*", filter={"total": {"$gte": 10}})
        for number, (topic, type, total) in enumerate(
            [("a.1", "paid", 5), ("a.2", "open", 20), ("b.1", "paid", 20), ("a.1.2", "paid", 20)]
        ):
            data = json.dumps({"total": total}).encode()
            await gateway.intake.publish_one(topic, data, str(number), type)
        await stand(gateway, by_type, DELIVERED, DELIVERED)
        await stand(gateway, by_data, DELIVERED)
        assert [each.event for each in await deliveries(gateway, by_type)] == ["0", "3"]
        assert [each.event for each in await deliveries(gateway, by_data)] == ["1"]


async def test_an_endpoint_begins_at_the_head() -> None:
    """What was accepted before an endpoint was added is none of its business."""
    async with receiver(always) as found, running() as gateway:
        await published(gateway, "a", 1)
        first = await added(gateway, found.url)
        await published(gateway, "a", 2)
        second = await added(gateway, found.url)
        await published(gateway, "a", 3)
        await stand(gateway, first, DELIVERED, DELIVERED)
        await stand(gateway, second, DELIVERED)
        assert sorted(numbers(found)) == [2, 3, 3]


async def test_what_fails_is_tried_again_under_the_same_id() -> None:
    """After a 500 the same message comes again, and both attempts are written down."""
    async with receiver(in_turn(500, 503, 200)) as found, running() as gateway:
        endpoint = await added(gateway, found.url, schedule=AT_ONCE)
        await published(gateway, "a", 1)
        (delivery,) = await stand(gateway, endpoint, DELIVERED)
        assert len({each.headers["webhook-id"] for each in found.requests}) == 1
        attempts = await hooks(gateway).store.list_attempts(endpoint.id, delivery.message)
        assert [(each.number, each.status) for each in attempts] == [(3, 200), (2, 503), (1, 500)]
        assert delivery.attempts == delivery.tries == 3


async def test_a_schedule_ends_and_is_announced() -> None:
    """When the last attempt has failed the delivery is, and an operational event says so."""
    async with receiver(in_turn(400)) as found, receiver(always) as watcher, running() as gateway:
        endpoint = await added(gateway, found.url, "a", schedule=(0.1,))
        await added(gateway, watcher.url, "$webhooks.#")
        await published(gateway, "a", 1)
        await stand(gateway, endpoint, FAILED)
        await until(lambda: len(watcher.requests) == 1, "nothing was announced")
        event = json.loads(watcher.requests[0].body)
        assert event["topic"] == "$webhooks.delivery.exhausted"
        assert event["type"] == "webhook.delivery.exhausted"
        assert event["data"]["endpoint"] == endpoint_name(endpoint.id)
        assert (event["data"]["attempts"], event["data"]["status"]) == (2, 400)


async def test_failing_is_not_announced_to_who_did_not_ask() -> None:
    """An endpoint of `#` gets no operational events, so one that fails is not sent more and more."""
    async with receiver(in_turn(400)) as found, running() as gateway:
        endpoint = await added(gateway, found.url, schedule=())
        own = await added(gateway, found.url, "$webhooks.#", "none", schedule=())
        await published(gateway, "a", 1)
        await stand(gateway, endpoint, FAILED)
        await stand(gateway, own, FAILED)  # told of it, and not of that itself
        await published(gateway, "a", 2)
        await stand(gateway, endpoint, FAILED, FAILED)
        await stand(gateway, own, FAILED, FAILED)
        assert hooks(gateway).counters.announced == 2


async def test_410_ends_an_endpoint() -> None:
    """Who answers 410 gets nothing more; what is pending is held until the endpoint is enabled."""
    async with receiver(in_turn(410, 200)) as found, running() as gateway:
        endpoint = await added(gateway, found.url, in_flight=1)
        await published(gateway, "a", 1)
        await until(lambda: len(found.requests) == 1, "it was not sent")
        await published(gateway, "a", 2)
        store = hooks(gateway).store
        for _ in range(1000):
            row = await store.find_endpoint(endpoint.id)
            if row is not None and row.status == "gone":
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("it is still open")
        await stand(gateway, endpoint, PENDING, PENDING)
        await changed(gateway, endpoint, lambda each: each.ask(Signal.ENABLED))
        await stand(gateway, endpoint, DELIVERED, DELIVERED)
        assert numbers(found) == [1, 1, 2]


async def test_a_paused_endpoint_is_left_alone() -> None:
    """Events of a pause are kept and sent when it ends."""
    async with receiver(always) as found, running() as gateway:
        endpoint = await added(gateway, found.url)
        await changed(gateway, endpoint, lambda each: each.ask(Signal.PAUSED))
        for number in range(300):
            await published(gateway, "a", number)
        await stand(gateway, endpoint, *[PENDING] * 300)
        assert not found.requests
        await changed(gateway, endpoint, lambda each: each.ask(Signal.RESUMED))
        await stand(gateway, endpoint, *[DELIVERED] * 300)
        assert sorted(numbers(found)) == list(range(300))


async def test_fifo_keeps_the_order() -> None:
    """A delivery that fails holds up those behind it, and only these."""
    async with receiver(in_turn(500, 500, 200)) as found, receiver(always) as other, running() as gateway:
        fifo = await added(gateway, found.url, order=Order.FIFO, schedule=AT_ONCE)
        free = await added(gateway, other.url)
        for number in range(200):
            await published(gateway, "a", number)
        await stand(gateway, free, *[DELIVERED] * 200)
        await stand(gateway, fifo, *[DELIVERED] * 200)
        assert numbers(found) == [0, 0, *range(200)]


async def test_an_event_that_has_expired_is_not_sent() -> None:
    """The time to live ends while the endpoint is paused: the delivery is expired, without an attempt."""
    async with receiver(always) as found, running() as gateway:
        endpoint = await added(gateway, found.url)
        await changed(gateway, endpoint, lambda each: each.ask(Signal.PAUSED))
        await published(gateway, "a", 1, ttl=0.05)
        await published(gateway, "a", 2)
        await stand(gateway, endpoint, PENDING, PENDING)
        await asyncio.sleep(0.06)  # its time to live
        await changed(gateway, endpoint, lambda each: each.ask(Signal.RESUMED))
        await stand(gateway, endpoint, EXPIRED, DELIVERED)
        assert numbers(found) == [2]


async def test_rates_are_kept() -> None:
    """No more attempts begin than the rate allows."""
    async with receiver(always) as found, running() as gateway:
        endpoint = await added(gateway, found.url, rate=20)
        begun = asyncio.get_running_loop().time()
        for number in range(50):
            await published(gateway, "a", number)
        await stand(gateway, endpoint, *[DELIVERED] * 50)
        assert asyncio.get_running_loop().time() - begun > 29 / 20
        assert len(found.requests) == 50


async def test_a_changed_endpoint_is_as_it_is_now() -> None:
    """Another URL and other topics count from the next event on."""
    async with receiver(always) as before, receiver(always) as after, running() as gateway:
        endpoint = await added(gateway, before.url, "a")
        await published(gateway, "a", 1)
        await stand(gateway, endpoint, DELIVERED)
        await changed(gateway, endpoint, lambda each: each.change(_other(each, after.url, "b"), 0))
        await published(gateway, "a", 2)
        await published(gateway, "b", 3)
        await stand(gateway, endpoint, DELIVERED, DELIVERED)
        assert (numbers(before), numbers(after)) == ([1], [3])


def _other(endpoint: Any, url: str, topic: str) -> Any:
    return msgspec.structs.replace(endpoint.description, url=url, topics=(topic,))


async def test_a_removed_endpoint_gets_nothing() -> None:
    """Removing an endpoint ends its deliveries."""
    async with receiver(silent) as found, running() as gateway:
        endpoint = await added(gateway, found.url, in_flight=1)
        await published(gateway, "a", 1)
        await published(gateway, "a", 2)
        await until(lambda: len(found.requests) == 1, "it was not sent")
        store = hooks(gateway).store
        await store.change_endpoint(endpoint.id, endpoint.revision, Status.REMOVED, endpoint.settings, b"")
        hooks(gateway).look()
        await published(gateway, "a", 3)
        await until(lambda: not hooks(gateway).statistics().endpoints, "it is still there")
        assert len(found.requests) == 1


async def test_jobs_and_repeats_are_done() -> None:
    """What failed is sent again when its owner recovers it; a single one when he repeats it."""
    async with receiver(in_turn(*[400] * 30, 200)) as found, running() as gateway:
        endpoint = await added(gateway, found.url, schedule=())
        for number in range(30):
            await published(gateway, "a", number)
        failed = await stand(gateway, endpoint, *[FAILED] * 30)
        store = hooks(gateway).store
        assert await store.add_job(endpoint.id, Task.RECOVER, failed[9].message, failed[-1].message)
        hooks(gateway).look()
        await stand(gateway, endpoint, *[FAILED] * 10, *[DELIVERED] * 20)
        await store.repeat(endpoint.id, [failed[0].message])
        hooks(gateway).look()
        await stand(gateway, endpoint, DELIVERED, *[FAILED] * 9, *[DELIVERED] * 20)


async def test_what_is_no_event_is_sent() -> None:
    """A message of no log, such as a test event, is sent like any other."""
    async with receiver(always) as found, running() as gateway:
        endpoint = await added(gateway, found.url, "none")
        event: Event = gateway.intake.mint.event(gateway.intake.now(), "webhook.test", b"7")
        message = Message(0, "webhook.test", "x", "message", event.time, 0, event.body)
        assert await hooks(gateway).store.enqueue(endpoint.id, message)
        hooks(gateway).look()
        assert await got(found, 1) == [7]
        assert found.requests[0].headers["webhook-id"].startswith("msg_test-")


async def test_a_restart_loses_nothing(tmp_path: Path) -> None:
    """What was on its way at the end is sent by the next process; what was done is not."""
    stuck = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            if json.loads(request.body)["data"] % 2 and not stuck.is_set():
                await peer.gone()
                return
            await peer.send(OK)

    async with receiver(script) as found:
        async with running(tmp_path) as gateway:
            endpoint = await added(gateway, found.url)
            for number in range(20):
                await published(gateway, "a", number)
            await got(found, 20)
        stuck.set()
        async with running(tmp_path) as gateway:
            await stand(gateway, endpoint, *[DELIVERED] * 20)
        counts = [numbers(found).count(number) for number in range(20)]
        assert counts == [1, 2] * 10


async def test_a_gap_is_announced(tmp_path: Path) -> None:
    """What retention took before it was dispatched is told, and dispatching goes on behind it."""
    async with receiver(always) as found:
        async with running(tmp_path) as gateway:
            endpoint = await added(gateway, found.url, "#", "$webhooks.#")
            await published(gateway, "a", 0)
            await stand(gateway, endpoint, DELIVERED)
        async with running(tmp_path, webhooks=False) as gateway:
            for number in range(1, 50):
                await published(gateway, "a", number)
        async with running(tmp_path, retention_events=10) as gateway:
            await until(lambda: 49 in _data(found), "dispatching does not go on")
            await until(lambda: any(isinstance(each, dict) for each in _data(found)), "no gap was told")
            (gap,) = [each for each in _data(found) if isinstance(each, dict)]
            assert (gap["reason"], gap["after"], gap["upto"]) == ("expired", 1, 40)
            assert sorted(each for each in _data(found) if isinstance(each, int)) == [0, *range(40, 50)]


async def test_another_log_is_announced(tmp_path: Path) -> None:
    """When the log was made anew its events are dispatched from the first on, after a gap was told."""
    async with receiver(always) as found:
        async with running(tmp_path) as gateway:
            endpoint = await added(gateway, found.url, "#", "$webhooks.#")
            await published(gateway, "a", 0)
            await stand(gateway, endpoint, DELIVERED)
        for path in list(tmp_path.glob("log.db*")):  # noqa: ASYNC240  (a test may wait)
            path.unlink()
        async with running(tmp_path, webhooks=False) as gateway:
            await published(gateway, "a", 1)
        async with running(tmp_path) as gateway:
            await until(lambda: len(found.requests) == 3, "not all came")
            data = _data(found)
            assert data[:2] == [0, 1]
            assert data[2]["reason"] == "reset"


async def test_a_log_that_lost_its_end_is_another_one(tmp_path: Path) -> None:
    """Positions that are given out again are not mistaken for the events that had them."""
    async with receiver(always) as found:
        async with running(tmp_path / "d") as gateway:
            await published(gateway, "a", 0)
        backup = {path.name: path.read_bytes() for path in (tmp_path / "d").glob("log.db*")}
        async with running(tmp_path / "d") as gateway:
            endpoint = await added(gateway, found.url)
            for number in range(1, 4):
                await published(gateway, "a", number)
            await stand(gateway, endpoint, *[DELIVERED] * 3)
        for path in (tmp_path / "d").glob("log.db*"):
            path.unlink()
        for name, data in backup.items():
            (tmp_path / "d" / name).write_bytes(data)
        async with running(tmp_path / "d") as gateway:
            await until(lambda: hooks(gateway).counters.gaps == 1, "nobody noticed")
            for number in range(4, 7):
                await published(gateway, "a", number)
            await got(found, 6)
            assert sorted(numbers(found)) == list(range(1, 7))


def _data(found: Any) -> list[Any]:
    return [json.loads(each.body)["data"] for each in found.requests]


async def test_without_webhooks_there_are_none() -> None:
    """They can be switched off."""
    gateway = Gateway(Settings(data="memory:", webhooks=False))
    assert gateway.webhooks is None
