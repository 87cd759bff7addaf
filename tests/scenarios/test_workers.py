"""Workers that fall or are replaced, under load: every client gets every event once, and in order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.support.followers import TRANSPORTS, Follower, check_account, publish_all, until
from tests.support.host import address_of
from tests.support.rabbitmq import Broker
from tests.support.workers import WorkersProcess, pid_of, pids_of

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]

CLIENTS = 16
BATCHES = 500
"""Events between two looks at whether the trouble is over."""

PAUSE = 0.02
"""Between two batches of 50: up to 2,500 events a second, if the machine can."""

END = "end"


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as node:
        yield node


@pytest.fixture
def gateway(broker: Broker, request: pytest.FixtureRequest) -> Iterator[WorkersProcess]:
    """Three workers, with a log of their own."""
    with WorkersProcess(
        backbone=broker.url, workers=3, stream=request.node.name, exchanges=request.node.name, drain_seconds=1
    ) as process:
        yield process


async def story(gateway: WorkersProcess, trouble: Callable[[], Awaitable[None]]) -> int:
    """Publish while clients follow, until the trouble is over; check the account, return the repeats."""
    followers = [
        Follower([address_of(gateway)], TRANSPORTS[number % 4], "load.#") for number in range(CLIENTS)
    ]
    count = repeats = 0
    async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
        for each in followers:
            tasks.create_task(each.run(END))
        troubling = tasks.create_task(_once_they_follow(followers, trouble))
        while not troubling.done():
            repeats += await publish_all([gateway], "load.1", range(count, count + BATCHES), PAUSE)
            count += BATCHES
        await gateway.apublish({"topic": "load.1", "data": END})
    for each in followers:
        assert each.data.pop() == END
    check_account(followers, count)
    assert sum(each.connects for each in followers) > CLIENTS, "nobody had to move"
    return repeats


async def _once_they_follow(followers: list[Follower], trouble: Callable[[], Awaitable[None]]) -> None:
    await until(lambda: all(len(each.data) > BATCHES for each in followers), "the events flow")
    await trouble()


async def test_workers_that_are_killed_lose_nothing(gateway: WorkersProcess) -> None:
    """Each worker is killed once under load: its clients go on where they were, at the others."""

    async def trouble() -> None:
        for index in range(2):
            os.kill(pid_of(gateway, index), signal.SIGKILL)
            await until(lambda: gateway.log_text().count("backbone.began") > 3 + index, "it is back")  # noqa: B023

    await story(gateway, trouble)
    assert gateway.log_text().count("worker.fell: signal SIGKILL") == 2
    assert await gateway.astop() == 0


async def test_a_rolling_restart_is_not_noticed(gateway: WorkersProcess) -> None:
    """All workers are replaced under load: clients are moved, and no publisher has to ask twice."""
    before = pids_of(gateway)

    async def trouble() -> None:
        os.kill(gateway.pid, signal.SIGHUP)
        await until(lambda: "reload.ended" in gateway.log_text(), "all are replaced")

    assert await story(gateway, trouble) == 0
    assert not pids_of(gateway).keys() & before.keys()
    assert "worker.fell" not in gateway.log_text()
    assert await gateway.astop() == 0
