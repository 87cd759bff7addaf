"""Five thousand requests for three workers, of which one dies, stands still, or loses its gateway."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any, Final

import pytest

from fanout.heartbeat import DEAD_AFTER
from fanout.ring import Ring
from gateway.requests.buckets import BUCKETS, bucket_of
from tests.support.accounts import until
from tests.support.clients import Closed, Ended, Refused, fetch, open_subscriber
from tests.support.clients import until as until_asked
from tests.support.host import address_of
from tests.support.rabbitmq import Broker
from tests.support.requests import Api
from tests.support.server import GatewayProcess
from tests.support.worker import WorkerProcess

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]

REQUESTS: Final = 5_000
WORKERS: Final = 3
CLIENTS: Final = 20
CONCURRENCY: Final = 8
LEASE: Final = 3
"""Seconds for which a worker may be silent."""

TAKE_OVER: Final = 5.0
"""Seconds after that by which others have what it had."""

HANDLER: Final = """
import os, time

def handle(request):
    time.sleep(0.005)
    if request.data % 500 == 499:
        raise ValueError("never works")
    return [request.data, os.getpid()]
"""
HOPELESS: Final = REQUESTS // 500


@dataclass
class Story:
    """
    Everything that the log said.

    Attributes:
        changes: of each request, in order.
    """

    changes: dict[str, list[Any]] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)

    def take(self, event: Any) -> None:
        token = event["topic"].removeprefix("requests.")
        self.changes.setdefault(token, []).append(event["data"])
        self.times.setdefault(token, []).append(datetime.fromisoformat(event["time"]).timestamp())

    @property
    def ended(self) -> int:
        return sum(each[-1]["state"] in ("done", "failed") for each in self.changes.values())

    def running(self) -> set[str]:
        """Return the requests that a worker has at the moment."""
        return {token for token, each in self.changes.items() if each[-1]["state"] == "running"}

    def again(self, token: str, since: float) -> float:
        """Return how many seconds after a time a request was next begun, or had ended."""
        return min(time - since for time in self.times[token] if time > since)


@pytest.fixture
def gateway() -> Iterator[GatewayProcess]:
    with GatewayProcess(services="reports", request_lease=LEASE, request_backoff=0.1, request_tries=3) as one:
        yield one


async def _submit_all(gateway: GatewayProcess) -> list[str]:
    """Hand everything in; what is not answered is handed in again under the same key."""
    api = Api(address_of(gateway))
    numbers = iter(range(REQUESTS))
    tokens: list[str] = []

    async def client() -> None:
        for number in numbers:
            while True:
                try:
                    answer = await api.post("/v1/requests/reports", number, idempotency_key=f"n-{number}")
                except (OSError, EOFError, TimeoutError, AssertionError):
                    answer = None
                if answer is not None and answer.status == 202:
                    tokens.append(answer.json["token"])
                    break
                await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CLIENTS):
            tasks.create_task(client())
    return tokens


async def _follow(gateway: GatewayProcess, story: Story) -> None:
    """Read what the log says, over restarts of the gateway."""
    cursor = "earliest"
    while True:
        try:
            async with open_subscriber(address_of(gateway), "ndjson", "requests.*", cursor=cursor) as reader:
                while True:
                    message = await reader.next()
                    if "topic" in message:
                        story.take(message)
                    cursor = message.get("cursor", cursor)
        except (Ended, Closed, Refused, OSError, EOFError, TimeoutError):
            await asyncio.sleep(0.1)


async def _has_failed(gateway: GatewayProcess) -> bool:
    """Say whether a gateway, that may just have started, lists those that never work."""
    answer = await fetch(address_of(gateway), "/v1/requests", [("state", "failed"), ("limit", "1000")])
    return answer.status == 200 and len(answer.json["requests"]) == HOPELESS


async def _all_take_part(gateway: GatewayProcess) -> bool:
    """Say whether all workers own their share, and both replicas theirs."""
    shown = (await fetch(address_of(gateway), "/v1/replicas")).json
    workers = shown["groups"].get("service.reports", [])
    return [each["state"] for each in [*workers, *shown["replicas"]]] == ["alive"] * (WORKERS + 2)


async def _play(
    gateway: GatewayProcess,
    trouble: Callable[[list[WorkerProcess], Story], Awaitable[None]],
    source: str | None = None,
    flags: dict[str, Any] | None = None,
    repeats: int = 0,
) -> Story:
    """
    Have everything done, with trouble in the middle; check what became of each.

    Args:
        gateway: where requests are handed in.
        trouble: what happens.
        source: where workers get them from; the gateway unless given.
        flags: more, of workers.
        repeats: how many may be done twice.
    """
    story = Story()
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                WorkerProcess(
                    source or gateway.url,
                    "reports",
                    HANDLER,
                    concurrency=CONCURRENCY,
                    name=f"w{n}",
                    **(flags or {}),
                )
            )
            for n in range(WORKERS)
        ]
        if source is not None:
            await until_asked(lambda: _all_take_part(gateway), "all workers are in the ring")
        async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
            following = tasks.create_task(_follow(gateway, story))
            submitting = tasks.create_task(_submit_all(gateway))
            await until(lambda: story.ended > REQUESTS // 5, "a fifth is done")
            await trouble(workers, story)
            tokens = await submitting
            await until(lambda: story.ended >= REQUESTS, "all are done", state=lambda: story.ended)
            following.cancel()
    assert len(set(tokens)) == REQUESTS
    assert set(tokens) == set(story.changes)
    finals = Counter(
        sum(each["state"] in ("done", "failed") for each in changes) for changes in story.changes.values()
    )
    states = Counter(changes[-1]["state"] for changes in story.changes.values())
    attempts = Counter(changes[-1]["attempt"] for changes in story.changes.values())
    print(f"{dict(states)}, attempts {dict(sorted(attempts.items()))}")
    assert states == {"done": REQUESTS - HOPELESS, "failed": HOPELESS}
    twice = REQUESTS - finals[1]
    print(f"{twice} were done, and done again by somebody who could not know")
    assert twice <= repeats
    assert finals.keys() <= {1, 2}
    results = [each[-1]["result"][0] for each in story.changes.values() if each[-1]["state"] == "done"]
    assert sorted(results) == [n for n in range(REQUESTS) if n % 500 != 499]
    await until_asked(lambda: _has_failed(gateway), "those that never work are listed")
    return story


async def test_a_worker_that_is_killed(gateway: GatewayProcess) -> None:
    """What it had is begun by others soon after its lease has ended; everything is done once."""
    had: set[str] = set()
    killed = 0.0

    async def trouble(workers: list[WorkerProcess], story: Story) -> None:
        nonlocal killed
        listed = (await fetch(address_of(gateway), "/v1/services")).json
        assert listed["services"][0]["unfinished"] > 0
        workers[0].kill()
        await asyncio.sleep(1)  # what was answered before is written down by now
        had.update(story.running())
        killed = max(max(story.times[token]) for token in had)

    story = await _play(gateway, trouble)
    lost = [
        token
        for token in had
        if any(each.get("error", {}).get("reason") == "lost" for each in story.changes[token])
    ]
    waits = [story.again(token, killed) for token in lost]
    print(f"{len(lost)} were with it, and were begun again after at most {max(waits):.1f} s")
    assert 0 < len(lost) <= 8
    assert max(waits) < LEASE + TAKE_OVER


async def test_a_worker_that_stands_still(gateway: GatewayProcess) -> None:
    """What it had is done by others; what it says afterwards is too late, and it goes on with new ones."""

    async def trouble(workers: list[WorkerProcess], story: Story) -> None:
        workers[0].freeze()
        try:
            ended = story.ended
            await until(lambda: story.ended > ended + 100, "others go on")
            await asyncio.sleep(LEASE + 1)
        finally:
            workers[0].thaw()

    story = await _play(gateway, trouble)
    reasons = Counter(
        each["error"]["reason"] for changes in story.changes.values() for each in changes if "error" in each
    )
    print(dict(reasons))
    assert 0 < reasons["lost"] <= 8


async def test_a_gateway_that_is_killed(gateway: GatewayProcess) -> None:
    """Its workers and clients wait for it, and no request and no result is lost."""

    async def trouble(_: list[WorkerProcess], story: Story) -> None:
        for _time in range(3):
            ended = story.ended
            gateway.kill()
            await gateway.astart()
            await until(lambda ended=ended: story.ended > ended + 200, "it goes on")  # type: ignore[misc]

    await _play(gateway, trouble)
    assert "Traceback" not in gateway.log_text()


# --- on a broker --------------------------------------------------------------------------------------------

NAMES: Final = tuple(f"w{number}" for number in range(WORKERS))


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker(niceness=0) as node:
        yield node


@pytest.fixture
def replicas(broker: Broker) -> Iterator[list[GatewayProcess]]:
    """Two gateways on one log; the workers are on the broker, past both."""
    name = f"story{next(_stories)}"
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                GatewayProcess(
                    services="reports",
                    request_backoff=0.1,
                    request_tries=3,
                    backbone=broker.url,
                    stream=name,
                    exchanges=f"{name}.events:#",
                    name=f"g{number}",
                )
            )
            for number in range(2)
        ]


_stories = count()


class Served:
    """
    Which worker had which bucket, by what was done.

    Args:
        story: what the log said.
        since: only what was done then or later.
    """

    def __init__(self, story: Story, since: float) -> None:
        self.by_bucket: dict[int, set[int]] = {}
        self.first: dict[tuple[int, int], float] = {}
        for token, changes in story.changes.items():
            time = story.times[token][-1]
            if changes[-1]["state"] == "done" and time >= since:
                bucket, pid = bucket_of(token), changes[-1]["result"][1]
                self.by_bucket.setdefault(bucket, set()).add(pid)
                self.first[bucket, pid] = min(self.first.get((bucket, pid), time), time)


async def _play_on_broker(
    broker: Broker, replicas: list[GatewayProcess], trouble: Callable[[WorkerProcess], Awaitable[None]]
) -> None:
    """The first of three workers has trouble: its buckets are the others' soon, and theirs do not move."""
    begun = 0.0
    pids: list[int] = []

    async def happens(workers: list[WorkerProcess], _: Story) -> None:
        nonlocal begun
        pids.extend(each.pid for each in workers)
        begun = time.time()
        await trouble(workers[0])

    stream = replicas[0].settings["stream"]
    owners = {bucket: Ring(NAMES, buckets=BUCKETS).owner_of(bucket) for bucket in range(BUCKETS)}
    flags = {"stream": stream, "exchanges": f"{stream}.events:#"}
    story = await _play(replicas[0], happens, broker.url, flags, CONCURRENCY)
    after = Served(story, begun + 1)
    mine = {bucket for bucket, owner in owners.items() if owner == NAMES[0]}
    moved = [
        bucket
        for bucket, served in after.by_bucket.items()
        if bucket not in mine and served != {pids[NAMES.index(str(owners[bucket]))]}
    ]
    waits = [
        min(time for (each, pid), time in after.first.items() if each == bucket and pid != pids[0]) - begun
        for bucket in mine & after.by_bucket.keys()
    ]
    print(
        f"{len(mine)} buckets of {BUCKETS} were the first one's, and were served by others after "
        f"{min(waits):.1f} to {max(waits):.1f} s; of the others' {len(moved)} moved"
    )
    assert not moved
    assert len(waits) == len(mine)
    assert max(waits) < DEAD_AFTER + TAKE_OVER
    await until_asked(lambda: _has_failed(replicas[1]), "the other replica lists them as well")


async def test_a_worker_on_the_broker_that_is_killed(broker: Broker, replicas: list[GatewayProcess]) -> None:
    """Everything is done once, its buckets are others' soon, and nothing else moves."""

    async def kill(worker: WorkerProcess) -> None:
        worker.kill()

    await _play_on_broker(broker, replicas, kill)


async def test_a_worker_on_the_broker_that_stands_still(
    broker: Broker, replicas: list[GatewayProcess]
) -> None:
    """The same for one that keeps its connection, until the broker ends that."""

    async def freeze(worker: WorkerProcess) -> None:
        worker.freeze()

    await _play_on_broker(broker, replicas, freeze)


async def test_replicas_that_are_killed_under_workers_of_a_broker(
    broker: Broker, replicas: list[GatewayProcess]
) -> None:
    """First the one, then the other: what is due is tried again by whoever is left, and nothing is lost."""

    async def trouble(_: list[WorkerProcess], story: Story) -> None:
        replicas[1].kill()
        ended = story.ended
        await until(lambda: story.ended > ended + 200, "it goes on")
        await replicas[1].astart()
        replicas[0].kill()
        await replicas[0].astart()

    stream = replicas[0].settings["stream"]
    flags = {"stream": stream, "exchanges": f"{stream}.events:#"}
    await _play(replicas[0], trouble, broker.url, flags, CONCURRENCY)
