"""
The soak: two replicas on one broker under a steady load for long, while clients come and go.

    make soak                                     # ten minutes at 2,000 events a second
    make soak ARGS="--minutes 60 --rate 500"
    make soak ARGS="--dedup-seconds 20"       # memory has its size after two minutes, not after six

Producers publish through both replicas, at a rate that does not depend on the answers. Most clients follow
one producer each and stay for some seconds; a few follow everything. They use every transport, leave at any
moment, and come back with their cursors to the other replica. At the end everyone must have had every event
that was for him once, in order, and at the same cursor as the others. The memory of each process is told each
minute.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from tests.support.accounts import Account, Follower, Ledger, account, crowd, until
from tests.support.crowd import Producer, pss, ready
from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess

PRODUCERS: Final = 40
BATCH: Final = 10
FOLLOW_ALL: Final = 6
"""Clients that follow every producer; the others have one each."""

STAY_SECONDS: Final = (1.0, 30.0)
AWAY_SECONDS: Final = (0.0, 5.0)
MIB: Final = 1 << 20


@dataclass(slots=True)
class Soak:
    """
    One run.

    Attributes:
        seconds: how long events are published.
        rate: events a second, of all producers.
        clients: how many follow.
        sample_seconds: how often memory is looked at.
        memory: what was seen: the second, and the MiB of each replica.
        late: the longest that a producer was behind its rate, in seconds.
    """

    seconds: float
    rate: float
    clients: int
    sample_seconds: float
    memory: list[tuple[float, list[float]]] = field(default_factory=list)
    late: float = 0.0

    async def run(self, replicas: Sequence[GatewayProcess]) -> Account:
        """Publish, follow, come and go; return the account."""
        ports = [each.port for each in replicas]
        for port in ports:
            await ready(port)
        receipt = await replicas[0].apublish({"topic": "soak.begin", "data": ["begin", 0]})
        start: str = receipt["cursor"]
        producers = [
            Producer(
                [*ports[number % 2 :], *ports[: number % 2]], f"p{number}", [f"soak.p{number}"], batch=BATCH
            )
            for number in range(PRODUCERS)
        ]
        followers = crowd(self.clients, ports, Ledger(), ["soak.#"], start)
        wanted = dict.fromkeys(followers, producers)
        for number, each in enumerate(followers[FOLLOW_ALL:]):
            wanted[each] = [producers[number % PRODUCERS]]
            each.topics = (f"soak.p{number % PRODUCERS}",)
        async with asyncio.TaskGroup() as tasks:
            done = asyncio.Event()
            visits = [tasks.create_task(self._visit(each, done)) for each in followers]
            sampling = tasks.create_task(self._sample(replicas))
            await asyncio.gather(*(self._publish(each, number) for number, each in enumerate(producers)))
            sampling.cancel()
            done.set()
            await until(
                lambda: all(each.has(_numbers(some)) for each, some in wanted.items()),
                "all clients have all events",
            )
            for visit in visits:
                visit.cancel()
        return total([account([each], some) for each, some in wanted.items()])

    async def _publish(self, producer: Producer, number: int) -> None:
        """Publish at the rate, each producer at moments of its own."""
        loop = asyncio.get_running_loop()
        pause = BATCH * PRODUCERS / self.rate
        began = loop.time()
        due = began + pause * number / PRODUCERS
        try:
            while due < began + self.seconds:
                await asyncio.sleep(max(0.0, due - loop.time()))
                await producer.publish()
                self.late = max(self.late, loop.time() - due)
                due += pause
        finally:
            producer.close()

    async def _visit(self, follower: Follower, done: asyncio.Event) -> None:
        """Follow for a while, leave without a word, come back; at the end stay."""
        while not done.is_set():
            visit = asyncio.ensure_future(follower.follow())
            ends = asyncio.ensure_future(done.wait())
            try:
                await asyncio.wait([ends], timeout=random.uniform(*STAY_SECONDS))
            finally:
                ends.cancel()
                visit.cancel()
                await asyncio.wait([visit])
            if not done.is_set():
                await asyncio.sleep(random.uniform(*AWAY_SECONDS))
        await follower.follow()

    async def _sample(self, replicas: Sequence[GatewayProcess]) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(self.sample_seconds)
            seconds = time.monotonic() - began
            self.memory.append((seconds, [pss(each.pid) / MIB for each in replicas]))
            shown = ", ".join(f"{each:.1f}" for each in self.memory[-1][1])
            print(f"after {seconds:4.0f} s: the replicas have {shown} MiB", flush=True)  # noqa: T201


def _numbers(producers: Sequence[Producer]) -> dict[str, int]:
    """Return how many events each published."""
    return {each.name: each.published for each in producers}


def total(accounts: Sequence[Account]) -> Account:
    """Return several accounts of clients with one ledger as one."""
    return Account(
        clients=sum(each.clients for each in accounts),
        expected=sum(each.expected for each in accounts),
        seen=sum(each.seen for each in accounts),
        lost=sum(each.lost for each in accounts),
        twice=sum(each.twice for each in accounts),
        disordered=sum(each.disordered for each in accounts),
        differing=accounts[0].differing,
        gaps=sum((each.gaps for each in accounts), Counter()),
        connections=sum(each.connections for each in accounts),
    )


def main() -> int:
    """Run it by itself."""
    parser = argparse.ArgumentParser("python -m tests.support.soak", description="A steady load for long.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=2000, help="events a second")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--dedup-seconds", type=float, help="for how long replicas remember ids")
    options = parser.parse_args()
    settings = {} if options.dedup_seconds is None else {"dedup_seconds": options.dedup_seconds}
    soak = Soak(options.minutes * 60, options.rate, options.clients, sample_seconds=60)
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(niceness=0))
        replicas = [stack.enter_context(GatewayProcess(backbone=broker.url, **settings)) for _ in range(2)]
        result = asyncio.run(soak.run(replicas))
    print(f"{result}; producers were {soak.late:.1f} s late at most")  # noqa: T201
    result.check()
    return 0


if __name__ == "__main__":
    sys.exit(main())
