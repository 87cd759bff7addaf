"""A stream that becomes another one: every client is told, once, whether it was there at the time or not."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import aio_pika
import pytest
from aiormq.exceptions import PublishError

from fanout.cursor import Cursor
from tests.support.accounts import DEADLINE, TRANSPORTS, Follower, until
from tests.support.crowd import Producer
from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess
from tests.support.stage import PAUSE, Play, scene

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]

EVENTS: Final = 20_000
AWAY: Final = 20
"""Clients that are not there when it happens."""


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker(niceness=0) as node:
        yield node


@pytest.fixture
def replicas(broker: Broker) -> Iterator[list[GatewayProcess]]:
    """Two replicas, on a broker that knows its stream by heart."""
    with ExitStack() as stack:
        two = [stack.enter_context(GatewayProcess(backbone=broker.url)) for _ in range(2)]
        broker.settle()
        yield two


async def _leave(followers: list[Follower]) -> list[Follower]:
    """Let clients of every transport follow for a while and go; return them."""
    leaving = followers[-AWAY:]
    del followers[-AWAY:]
    await asyncio.gather(*(each.connect(100 * number) for number, each in enumerate(leaving, 1)))
    return leaving


async def test_every_client_is_told_of_a_stream_made_anew(
    broker: Broker, replicas: list[GatewayProcess]
) -> None:
    """The stream is deleted under load: all are told `reset` once, also those who come back later."""
    story = Play("anew", replicas, clients=60 + AWAY)
    await story.begin()
    done = asyncio.Event()
    async with scene(replicas) as tasks:
        publishing = [tasks.create_task(each.publish_until(done, PAUSE)) for each in story.producers]
        await story.reaches(3000)
        away = await _leave(story.followers)
        following = [tasks.create_task(each.follow()) for each in story.followers]
        await story.reaches(EVENTS // 2)
        connection = await aio_pika.connect(broker.url)
        await (await connection.channel()).queue_delete("sluicegate")
        await connection.close()
        await until(
            lambda: all("backbone.reset" in each.log_text() for each in replicas), "both replicas notice"
        )
        noticed = {each.name: each.published for each in story.producers}
        await story.reaches(EVENTS)
        following += [tasks.create_task(each.follow()) for each in away]
        await story.reaches(EVENTS + 2000)
        done.set()
        await asyncio.gather(*publishing)
        story.followers += away
        await story.all_have_all()
        for task in following:
            task.cancel()
    result = story.account()
    result.check()
    for each in story.followers:
        assert [gap["reason"] for gap in each.gaps] == ["reset"], each.transport
    stretch = story.followers[0].stretch
    assert stretch is not None
    for name, number in noticed.items():
        first = story.ledger.due(stretch.epoch, name, 0, 10**9)
        assert first <= number, f"{name}: {number} was accepted into the new stream, which has {first} on"


async def test_clients_ahead_of_a_log_that_lost_its_end_are_told(
    broker: Broker, replicas: list[GatewayProcess], tmp_path: Path
) -> None:
    """
    The broker comes back with an older state of its disk: whoever was further is told `reset`, at once as
    well as when other messages have taken the positions.
    """
    story = Play("older", replicas)
    start = Cursor.parse(await story.begin())
    saved = tmp_path / "saved"
    async with scene(replicas, 280) as tasks:
        following = [tasks.create_task(each.follow()) for each in story.followers]
        await _publish(story.producers, EVENTS // 2)
        await story.all_have_all()
        await asyncio.to_thread(broker.stop)
        await asyncio.to_thread(shutil.copytree, broker.path / "mnesia", saved)
        await asyncio.to_thread(broker.start)
        await story.ready()
        for turn, taken in enumerate((0, 2000), 1):
            story.producers = [Producer(story.ports, f"lost-{turn}", ["older.lost"], batch=500)]
            await _publish(story.producers, 1000)
            await story.all_have_all()
            cursors = _cursors(story, start.epoch, f"lost-{turn}")
            for each in replicas:
                each.freeze()
            await asyncio.to_thread(_go_back, broker, saved)
            await _publish_plain(broker.url, taken)
            for each in replicas:
                each.thaw()
            story.change_history([f"turn{turn}-{number}" for number in range(4)])
            await _all_are_told(story.followers, turn)
            early = _late_comers(story, cursors[:10:2] + cursors[-5:])
            following += [tasks.create_task(each.follow()) for each in early]
            await _all_are_told(early, 1)
            done = asyncio.Event()
            publishing = [tasks.create_task(each.publish_until(done, PAUSE)) for each in story.producers]
            await story.reaches(EVENTS // 2)
            late = _late_comers(story, cursors[1:10:2] + cursors[-10:-5])
            following += [tasks.create_task(each.follow()) for each in late]
            await story.reaches(EVENTS // 2 + 1000)
            done.set()
            await asyncio.gather(*publishing)
            story.followers += early + late
            await story.all_have_all()
            story.account().check()
            for client in story.followers:
                told = [gap["reason"] for gap in client.gaps]
                assert told == ["reset"] * (1 if client in early + late else turn), client.gaps
            del story.followers[-20:]
        for task in following:
            task.cancel()


def _go_back(broker: Broker, saved: Path) -> None:
    """Give a broker the state of its disk that was saved."""
    broker.stop()
    shutil.rmtree(broker.path / "mnesia")
    shutil.copytree(saved, broker.path / "mnesia")
    broker.start()


def _cursors(story: Play, epoch: str, producer: str) -> list[str]:
    """Return the cursors of a producer's events."""
    places = story.ledger.places[epoch, producer]
    return [str(Cursor(epoch, place >> 16, place & 0xFFFF)) for place in places]


def _late_comers(story: Play, cursors: list[str]) -> list[Follower]:
    """Return clients that come with old cursors, on every transport."""
    ports = story.ports
    return [
        Follower(
            [ports[number % len(ports)]],
            itertools.repeat(TRANSPORTS[number % len(TRANSPORTS)]),
            story.ledger,
            [f"{story.name}.#"],
            cursor,
        )
        for number, cursor in enumerate(cursors)
    ]


async def _all_are_told(followers: list[Follower], times: int) -> None:
    """Wait until clients were told of so many gaps."""

    def lacking() -> list[tuple[str, str | None, int]]:
        return [
            (each.transport, each.cursor, each.connections) for each in followers if len(each.gaps) < times
        ]

    await until(lambda: not lacking(), "all are told", state=lacking)


async def _publish(producers: list[Producer], events: int) -> None:
    """Publish so many events through several producers together."""

    async def publish(producer: Producer) -> None:
        while producer.published < events // len(producers):
            await producer.publish()
        producer.close()

    await asyncio.gather(*(publish(each) for each in producers))


async def _publish_plain(url: str, messages: int) -> None:
    """Publish messages of somebody who knows nothing of us, each until the stream has it."""
    connection = await aio_pika.connect(url)
    try:
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange("events", ensure=False)

        async def publish(number: int) -> None:
            async with asyncio.timeout(DEADLINE):
                while True:
                    try:
                        await exchange.publish(aio_pika.Message(b"%d" % number), "other")
                    except PublishError:  # a broker that has just started has no queue for it yet
                        await asyncio.sleep(0.1)
                    else:
                        return

        await asyncio.gather(*(publish(number) for number in range(messages)))
    finally:
        await connection.close()
