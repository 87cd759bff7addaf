"""
A stage for scenarios on a broker: replicas under load, trouble in the middle, and the account at the end.

    account = await play("restart", replicas, trouble)

Producers publish at a steady rate through all replicas, each event until a replica says 202; clients on every
transport follow from before the first event. The trouble begins when a third of the events is published, and
publishing goes on until it is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from tests.support.accounts import DEADLINE, Account, Follower, Ledger, account, crowd, until
from tests.support.crowd import Producer, ready
from tests.support.server import GatewayProcess

CLIENTS: Final = 60
EVENTS: Final = 20_000
PRODUCERS: Final = 4
BATCH: Final = 100
PAUSE: Final = 0.08
"""Seconds between two requests of a producer: up to 5,000 events a second from all of them."""

Trouble = Callable[[], Awaitable[None]]


class Play:
    """
    Clients and producers of one scenario.

    Args:
        name: of the scenario; its topics begin with it.
        replicas: who serves.
        clients: how many follow.
    """

    def __init__(
        self,
        name: str,
        replicas: Sequence[GatewayProcess],
        *,
        clients: int = CLIENTS,
    ) -> None:
        self.name = name
        self.replicas = list(replicas)
        self.ledger = Ledger()
        self.ports = [each.port for each in replicas]
        self.producers: list[Producer] = []
        self.followers: list[Follower] = []
        self._clients = clients
        self._make_producers([f"{name}-{number}" for number in range(PRODUCERS)])

    def _make_producers(self, topics: Sequence[str]) -> None:
        turns = [self.ports[number:] + self.ports[:number] for number in range(len(self.ports))]
        self.producers = [
            Producer(turns[number % len(turns)], topic, [f"{self.name}.{topic}"], batch=BATCH)
            for number, topic in enumerate(topics)
        ]

    async def begin(self) -> str:
        """Wait until all replicas are ready, and make the clients, at a place that is known; return it."""
        await self.ready()
        receipt = await self.replicas[0].apublish({"topic": f"{self.name}.begin", "data": ["begin", 0]})
        start: str = receipt["cursor"]
        self.followers = crowd(self._clients, self.ports, self.ledger, [f"{self.name}.#"], start)
        return start

    async def ready(self) -> None:
        """Wait until all replicas are ready."""
        async with asyncio.timeout(DEADLINE):
            for each in self.replicas:
                await ready(each.port)

    def change_history(self, names: Sequence[str]) -> None:
        """From now on the positions are those of other events, by producers of these names."""
        self.ledger = Ledger()
        for each in self.followers:
            each.ledger = self.ledger
        self._make_producers(names)

    @property
    def published(self) -> int:
        return sum(each.published for each in self.producers)

    async def reaches(self, events: int) -> None:
        """Wait until so many events were accepted."""
        await until(lambda: self.published >= events, f"{events} events are accepted")

    async def all_have_all(self) -> None:
        """Wait until every client has what was published."""
        numbers = {each.name: each.published for each in self.producers}

        def lacking() -> list[tuple[str, str | None, int, dict[str, int]]]:
            return [
                (each.transport, each.cursor, each.connections, each.stretch.next if each.stretch else {})
                for each in self.followers
                if not each.has(numbers)
            ]

        await until(lambda: not lacking(), f"all clients have all of {numbers}", state=lacking)

    def account(self) -> Account:
        """Return the account, and print it."""
        result = account(self.followers, self.producers)
        retries = sum(each.retries for each in self.producers)
        print(f"{self.name}: {self.published:,} events, {retries} repeated requests; {result}")  # noqa: T201
        return result


@asynccontextmanager
async def scene(replicas: Sequence[GatewayProcess], seconds: float = 240) -> AsyncIterator[asyncio.TaskGroup]:
    """Own the tasks of a scenario; what the replicas said is part of a failure."""
    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseException as error:
        for number, each in enumerate(replicas):
            error.add_note(f"Replica {number} said:\n{each.log_text()[-4000:]}")
        raise


async def play(
    name: str,
    replicas: Sequence[GatewayProcess],
    trouble: Trouble,
    *,
    extra: Sequence[Producer] = (),
    events: int = EVENTS,
    seconds: float = 240,
) -> Play:
    """
    Publish while clients follow, with trouble in the middle; check the account.

    Args:
        name: of the scenario.
        replicas: who serves.
        trouble: what happens.
        extra: more producers, who publish as well; their topics begin with the name.
        events: how many there are at least.
        seconds: how long it may take.
    """
    story = Play(name, replicas)
    story.producers += extra
    await story.begin()
    done = asyncio.Event()
    async with scene(replicas, seconds) as tasks:
        following = [tasks.create_task(each.follow()) for each in story.followers]
        publishing = [tasks.create_task(each.publish_until(done, PAUSE)) for each in story.producers]
        await story.reaches(events // 3)
        await trouble()
        await story.reaches(max(events, story.published + events // 10))
        done.set()
        await asyncio.gather(*publishing)
        await story.all_have_all()
        for task in following:
            task.cancel()
    result = story.account()
    result.check()
    assert not result.gaps, str(result)
    return story
