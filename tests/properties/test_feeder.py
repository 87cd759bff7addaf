"""
The feeder on a real event loop: connections behind the head get everything, while it waits for a slow log.

The actions and promises are those of `test_fanout_model`; but here the real feeder decides who is fed when,
and between any of its awaits something else may happen: a client leaves, goes back to an earlier cursor,
retention overtakes it, the log cannot be read for once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final, cast

import pytest

from fanout.connection import State
from fanout.cursor import Cursor
from fanout.event import Event
from fanout.frames import Wire
from gateway import feeder
from gateway.feeder import Feeder
from gateway.log import Log, LogDamaged, LogUnavailable
from gateway.streams import Streams
from tests.support.dice import Dice
from tests.support.fakes import Moment
from tests.support.model import ModelLog
from tests.support.readers import messages_in
from tests.support.world import Bounds, Client, Draft, World

STEPS: Final = 300

BY_HAND: Final = frozenset({"turn", "feed", "read_block", "feed_block", "settle"})
"""What the feeder does here by itself."""

TURNS: Final = 10_000
"""Turns of the loop after which everybody must be at the head; it takes some dozens."""


class SlowLog:
    """A log that takes some turns of the loop to read from, and now and then cannot."""

    def __init__(self, log: ModelLog, dice: random.Random) -> None:
        self._log = log
        self._dice = dice

    async def read(self, after: int, max_bytes: int) -> list[Event]:
        block = self._log.block(after, max_bytes).events
        for _ in range(self._dice.choice((0, 0, 1, 3, 10))):
            await asyncio.sleep(0)
        if self._dice.random() < 0.01:
            raise LogUnavailable("the disk is on fire", 1.0)
        return block if self._dice.random() < 0.5 else self._log.block(after, max_bytes).events


class RunningWorld(World):
    """
    A world whose feeder runs.

    Args:
        bounds: its sizes.
        dice: decides how slow the log is.
    """

    def __init__(self, bounds: Bounds, dice: random.Random) -> None:
        self.runs: asyncio.Task[None] | None = None
        self._dice = dice
        super().__init__(bounds)

    def _new_streams(self) -> Streams:
        if self.runs is not None:
            self.runs.cancel()
        self.feeder = Feeder(self.catchup, cast("Log", SlowLog(self.log, self._dice)))
        self.runs = asyncio.get_running_loop().create_task(self.feeder.run())
        return Streams(self.hub, self.catchup, self.feeder)

    def moment(self) -> Moment:
        return Moment(
            0, self.log.first - 1, self.window.floor, self._live
        )  # the feeder looks at the real clock

    async def wait_until_all_are_live(self) -> None:
        """Have everybody read until all are at the head; fail if that takes too long."""
        self.log.tell()
        for _ in range(TURNS):
            busy = [
                client
                for client in self.clients
                if (link := client.link) and (link.connection.state is not State.LIVE or link.sink.waiting)
            ]
            if not busy:
                self.settle()  # nothing is left to do but to compare
                assert self.feeder.backlog() == 0
                return
            for client in busy:
                self.take(client, 1 << 40)
            await asyncio.sleep(0)
        raise AssertionError("somebody never gets to the head")


async def live(seed: int) -> None:
    """Throw dice at a world that runs."""
    slowness = random.Random(seed)
    dice = Dice(seed, lambda bounds: RunningWorld(bounds, slowness), BY_HAND)
    world = cast("RunningWorld", dice.world)
    try:
        for _ in range(STEPS):
            dice.throw()
            for _ in range(slowness.choice((0, 0, 1, 2, 8))):
                await asyncio.sleep(0)
        await world.wait_until_all_are_live()
    except AssertionError as error:
        error.add_note("\n".join(dice.done[-60:]))
        raise
    finally:
        assert world.runs is not None
        assert not world.runs.done() or world.runs.cancelled() or world.runs.exception() is None
        world.runs.cancel()


@pytest.mark.parametrize("seed", range(40))
async def test_the_feeder_brings_everybody_to_the_head(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens between the feeder's awaits, no promise breaks, and in the end all are live."""
    monkeypatch.setattr(feeder, "SLICE_SECONDS", 1e-5)  # so that it gives way to the loop all the time
    monkeypatch.setattr(feeder, "BLOCK_BYTES", 3000)
    await live(seed)


async def test_the_loop_goes_on_while_a_log_in_memory_is_read() -> None:
    """
    A log that has every block at hand does not keep the loop from its other work until it is read to the
    end.
    """
    world = RunningWorld(Bounds(window_events=1, buffer_bytes=1 << 20), random.Random(0))
    world.feeder._log = cast("Log", world.log)
    for _ in range(20):
        world.publish([Draft("a", feeder.BLOCK_BYTES // 2)])
    client = world.arrive(["a"], Wire.SSE, "earliest", 1 << 30)
    assert client.link is not None
    reached = []
    while client.link.connection.state is not State.LIVE:
        reached.append(world.hub.position(client.link.connection))
        await asyncio.sleep(0)
        world.take(client, 1 << 30)
    assert len(set(reached)) > 15, f"from turn to turn of the loop it got to {reached}"
    assert world.runs is not None
    world.runs.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds."""
    for _ in range(TURNS):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never happens")


class DamagedLog:
    """A log whose events from 3 to 5 are lost; asked for them, it takes a turn to find out."""

    def __init__(self, log: ModelLog) -> None:
        self._log = log
        self.asked = 0

    async def read(self, after: int, max_bytes: int) -> list[Event]:
        if 2 <= after < 5:
            self.asked += 1
            await asyncio.sleep(0)
            raise LogDamaged("the events 3 to 5 fail their checksum", 5)
        return [event for event in self._log.stretch(after, max_bytes) if not event.position >= 3]


async def test_damage_costs_only_what_is_damaged() -> None:
    """Who goes back while the log finds a part lost gets what is before it, and a gap for that part alone."""
    world = RunningWorld(Bounds(window_events=1), random.Random(0))
    log = DamagedLog(world.log)
    world.feeder._log = cast("Log", log)
    world.publish([Draft(topic) for topic in ("a", "b", "b", "b", "b", "b")])
    client = world.arrive(["b"], Wire.WEBSOCKET, "earliest", 1 << 20)
    link = client.link
    assert link is not None
    await until(lambda: log.asked > 0)
    world.hub.subscribe(link.connection, ["a"], 0)
    await until(lambda: link.connection.state is State.LIVE)
    words = [
        message.cursor if message.kind == "event" else message.members.get("from")
        for message in messages_in(Wire.WEBSOCKET, link.sink.bytes_taken())
    ]
    assert [str(word).split("-")[1] for word in words[1:]] == ["2", "1", "2", "6"]
    assert world.runs is not None
    world.runs.cancel()


class WatchedLog:
    """A log that notes what was read of it; what is read at `held` waits until it is let go."""

    def __init__(self, log: ModelLog) -> None:
        self._log = log
        self.read_events = 0
        self.held: int | None = None
        self.asked: list[int] = []
        self.go_on = asyncio.Event()

    async def read(self, after: int, max_bytes: int) -> list[Event]:
        self.asked.append(after)
        events = self._log.stretch(after, max_bytes)
        await asyncio.sleep(0)
        if after == self.held:
            await self.go_on.wait()
        self.read_events += len(events)
        return events


def stored_world(events: int) -> tuple[RunningWorld, WatchedLog]:
    """Return a world with events of which the window holds one, and its log."""
    world = RunningWorld(Bounds(window_events=1), random.Random(0))
    log = WatchedLog(world.log)
    world.feeder._log = cast("Log", log)
    for _ in range(events // 100):
        world.publish([Draft("a")] * 100)
    return world, log


def come_back(world: RunningWorld, position: int, room: int = 1 << 30) -> Client:
    """A client comes back to a position."""
    return world.arrive(["a"], Wire.SSE, str(Cursor(world.log.epoch, position, 0)), room)


def is_live(client: Client) -> bool:
    return client.link is not None and client.link.connection.state is State.LIVE


async def test_clients_at_many_places_share_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that come back at ten places have the log read little more than once, not for each place."""
    monkeypatch.setattr(feeder, "BLOCK_BYTES", 5000)
    world, log = stored_world(2000)
    clients = [come_back(world, place * 200) for place in range(10)]
    await until(lambda: all(is_live(client) for client in clients))
    assert 1999 <= log.read_events < 1.5 * 2000  # in fair turns it would be 11,000
    for client in clients:
        world.take(client, 1 << 30)
    assert [len(client.seen) for client in clients] == [1 + 2000 - place * 200 for place in range(10)]
    assert world.runs is not None
    world.runs.cancel()


async def test_who_lacks_little_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that lacks little is live long before one that lacks everything has reached its place."""
    monkeypatch.setattr(feeder, "BLOCK_BYTES", 5000)
    world, _ = stored_world(2000)
    everything, little = come_back(world, 0), come_back(world, 1900)
    await until(lambda: is_live(little))
    assert everything.link is not None
    assert world.hub.position(everything.link.connection) < 600
    assert world.runs is not None
    world.runs.cancel()


async def test_slow_clients_are_not_read_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that take less at a time than others get the rest from what was read for those."""
    monkeypatch.setattr(feeder, "BLOCK_BYTES", 5000)
    world, log = stored_world(1000)
    quick = come_back(world, 0)
    slow = [come_back(world, 0, room) for room in (300, 700, 1500)]
    for _ in range(TURNS):
        await asyncio.sleep(0)
        for client in slow:
            world.take(client, 1 << 30)
        if all(is_live(client) for client in (quick, *slow)):
            break
    assert all(is_live(client) for client in (quick, *slow))
    assert log.read_events == 1000
    assert world.runs is not None
    world.runs.cancel()


async def test_what_was_read_of_another_log_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that was being read while the log became another one is given to nobody."""
    monkeypatch.setattr(feeder, "BLOCK_BYTES", 5000)
    world, log = stored_world(200)
    log.held = 0
    client = come_back(world, 0)
    await until(lambda: log.asked == [0])
    world.feeder.restart()
    log.held = None
    log.go_on.set()
    await until(lambda: is_live(client))
    assert log.asked[:2] == [0, 0]
    assert world.runs is not None
    world.runs.cancel()
