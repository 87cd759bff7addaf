"""
Rows about a broker as the backbone: what an event costs that is ingested from it or published to it.

What is compared with (bench/peers.py) runs on the gateway's core, in turn with it, and uses a stream of its
own that gets the same messages.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Protocol

from bench.broker import Node, Peer, head
from bench.children import Load, Served
from bench.lab import Lab
from bench.machine import wait_until
from bench.rows import Side, measure, middle, quietest
from bench.table import Result

BURST = 200  # messages that a producer writes at once when it is in a hurry
INGEST_SECONDS = 60
EXCHANGES = ("events", "peers", "peers")  # the gateway's own, and that of what it is compared with


# ---- ingest ----


class Consumer(Protocol):
    """What takes messages from the broker."""

    @property
    def pid(self) -> int:
        """Its process."""

    def cpu_seconds(self) -> float:
        """CPU time of its process so far."""

    def ingested(self) -> int:
        """How many messages it has taken."""


class Gateway:
    """The gateway as a consumer: its head tells how far it is."""

    def __init__(self, server: Served) -> None:
        self.pid = server.pid
        self.cpu_seconds = server.cpu_seconds
        self._server = server

    def ingested(self) -> int:
        return head(self._server)


@dataclass(frozen=True, slots=True)
class Ingest:
    """What it took to ingest some messages."""

    cpu: float  # µs for each
    rate: float  # messages a second, until the last was ingested


def ingest(consumer: Consumer, load: Load, publish: dict[str, Any], count: int, *, asleep: bool) -> Ingest:
    """Publish `count` messages and see all of them taken, none before the last is there if it is `asleep`."""
    goal = consumer.ingested() + count
    began, cpu = time.monotonic(), consumer.cpu_seconds()
    if asleep:
        os.kill(consumer.pid, signal.SIGSTOP)
    try:
        load.publish(**publish, count=count // publish["array"])
        load.halt(finish=True, timeout=INGEST_SECONDS)
    finally:
        if asleep:
            began = time.monotonic()
            os.kill(consumer.pid, signal.SIGCONT)
    wait_until(lambda: consumer.ingested() >= goal, "the last message to be ingested", INGEST_SECONDS)
    return Ingest((consumer.cpu_seconds() - cpu) / count * 1e6, count / (time.monotonic() - began))


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast messages come, and what ingesting one may cost then."""

    what: str
    publish: dict[str, Any]
    counts: tuple[int, int, int]  # messages of a round for the gateway, aio-pika and bare framing
    target: float  # µs
    asleep: bool = False  # they are all in the stream already


FLAT_OUT = {"rate": 0, "array": BURST, "k": 4, "lead": 4 * BURST}
PACES = (
    Pace("at 1,000 events/s", {"rate": 1000, "array": 1, "k": 8}, (2000, 2000, 2000), 25),
    Pace("as fast as the broker takes them", FLAT_OUT, (24_000, 8_000, 24_000), 12),
    Pace("flat out, from the stream", FLAT_OUT, (48_000, 8_000, 48_000), 12, asleep=True),
)


def ingesting(lab: Lab, row: str) -> list[Result]:
    """CPU per event that others publish, and nobody subscribes to, beside aio-pika and bare framing."""
    node = lab.broker()
    gateway = lab.gateway("--backbone", node.url)
    load = lab.load(gateway)
    consumers: list[Consumer] = [
        Gateway(gateway),
        lab.peer("aio-pika-consume", node),
        lab.peer("bare-consume", node),
    ]
    return [ingesting_at(lab, row, node, load, consumers, pace) for pace in PACES]


def ingesting_at(
    lab: Lab, row: str, node: Node, load: Load, consumers: Sequence[Consumer], pace: Pace
) -> Result:
    found: list[list[Ingest]] = [[] for _ in consumers]
    for number in range(-1, lab.rounds):  # the first is the warm-up
        for consumer, count, exchange, results in zip(consumers, pace.counts, EXCHANGES, found, strict=True):
            publish = pace.publish | {"amqp": node.port, "exchange": exchange}
            share = lab.length if number >= 0 else lab.warm_up / 2
            some = round(count * share / BURST) * BURST
            once = partial(ingest, consumer, load, publish, some, asleep=pace.asleep)
            if number >= 0:
                results.append(quietest(lab, once))
            else:
                once()
    figure, base, bare = (median(each.cpu for each in results) for results in found)
    rates = [median(each.rate for each in results) for results in found]
    note = (
        f"{pace.what}: bare framing {bare:.1f} µs; "
        f"ingested {rates[0]:,.0f} events/s, aio-pika {rates[1]:,.0f}, bare framing {rates[2]:,.0f}"
    )
    what = f"CPU per event ingested {pace.what}"
    goal, ratio = f"≤ {pace.target:g} µs", figure / base
    return Result(row, what, figure, "µs", base, "aio-pika", ratio, goal, figure <= pace.target, note)


# ---- publishing ----


@dataclass(frozen=True, slots=True)
class Calls:
    """How events are published: so many in a call, and so many calls under way."""

    what: str
    array: int
    k: int
    http: int  # connections over which the same is done by HTTP


CALLS = (Calls("singles", 1, 256, 32), Calls("arrays of 200", BURST, 4, 4))
LOG_EVENTS, PIKA_EVENTS = 24_000, 6_000
PUBLISH_TARGET = 25  # µs


def publishing(lab: Lab, row: str) -> list[Result]:
    """CPU per event published, confirmed and read back, beside aio-pika, which only has it confirmed."""
    node = lab.broker()
    log, pika = lab.peer("log", node), lab.peer("aio-pika-publish", node)
    load = lab.load(lab.gateway("--backbone", node.url))
    results = []
    for calls in CALLS:
        result = appending(lab, row, log, pika, calls)
        results += [result, by_http(lab, row, load, calls, result)]
    return results


def appending(lab: Lab, row: str, log: Peer, pika: Peer, calls: Calls) -> Result:
    """The log alone, in a process that does nothing else."""
    found: list[list[dict[str, float]]] = [[], []]
    for number in range(-1, lab.rounds):
        for peer, count, answers in zip((log, pika), (LOG_EVENTS, PIKA_EVENTS), found, strict=True):
            some = round(count * (lab.length if number >= 0 else lab.warm_up / 2) / BURST) * BURST
            once = partial(peer.ask, calls.array, calls.k, some)
            if number >= 0:
                answers.append(quietest(lab, once))
            else:
                once()
    figure, base = (median(each["cpu"] / each["count"] for each in answers) * 1e6 for answers in found)
    rates = [median(each["count"] / each["seconds"] for each in answers) for answers in found]
    what, goal = f"CPU per event appended to the stream, {calls.what}", f"≤ {PUBLISH_TARGET} µs"
    note = f"{calls.what}: {rates[0]:,.0f} events/s appended, aio-pika {rates[1]:,.0f}"
    met = figure <= PUBLISH_TARGET
    return Result(row, what, figure, "µs", base, "aio-pika", figure / base, goal, met, note)


def by_http(lab: Lab, row: str, load: Load, calls: Calls, alone: Result) -> Result:
    """The same over HTTP: what parsing, minting and answering come to."""
    publish = {"array": calls.array, "k": calls.http, "lead": calls.http * calls.array, "spin": False}
    reports = [measure(lab, Side(load, publish), 1.5) for _ in range(lab.rounds)]
    figure = middle(reports, lambda r: r.server_cpu / r.accepted * 1e6)
    rate = middle(reports, lambda r: r.accepted / r.seconds)
    slow = middle(reports, lambda r: r.publish_latency.p99 / 1e6)
    what = f"the same by HTTP, {calls.http} connections, {calls.what}"
    note = f"by HTTP, {calls.what}: {rate:,.0f} events/s, p99 of a publish {slow:.1f} ms"
    return Result(row, what, figure, "µs", alone.figure, "log alone", figure / alone.figure, "", None, note)
