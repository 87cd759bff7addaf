"""Rows about a broker as the backbone: what clients of the gateway get, how late and how fast."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from bench.broker import Node, Peer, first
from bench.children import Load, Report, Served
from bench.lab import Lab
from bench.machine import forget_peak_rss, peak_rss_bytes
from bench.rows import (
    PUBLISHERS,
    SUBSCRIBERS,
    Side,
    busy,
    delivery_bytes,
    measure,
    middle,
    p50_ms,
    p99_ms,
    rate,
)
from bench.table import Result
from fanout.cursor import Cursor

BURST = 200


# ---- latency ----

FEW = 10  # subscribers where latency is measured
LATENCY_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream of events: how many requests a second, and how many events in each."""

    requests: int
    array: int

    @property
    def what(self) -> str:
        each = "one by one" if self.array == 1 else f"in arrays of {self.array}"
        return f"{self.requests * self.array:,} events/s {each}"


STREAMS = (Stream(100, 1), Stream(500, 10))


def latency(lab: Lab, row: str) -> list[Result]:
    """From before a publish by HTTP to WebSocket clients of the same and of another replica."""
    node = lab.broker()
    here, there = (lab.gateway("--backbone", node.url) for _ in range(2))
    loads = {"the same replica": lab.load(here), "another replica": lab.load(there)}
    for load in loads.values():
        load.open(FEW, wire="ws")
    producer, watch = lab.load(here), lab.peer("bare-watch", node)
    results = []
    for stream in STREAMS:
        publish = {"rate": stream.requests, "array": stream.array, "k": 64, "spin": False}
        alone = bare_latency(lab, producer, watch, publish | {"amqp": node.port, "exchange": "peers"})
        began, cpu = time.monotonic(), node.cpu_seconds()
        for where, load in loads.items():
            side = Side(load, publish | {"to": here.port, "fan": FEW})
            reports = [measure(lab, side, LATENCY_SECONDS) for _ in range(lab.rounds)]
            for name, quantile in (("p50", p50_ms), ("p99", p99_ms)):
                figure, base = middle(reports, quantile), alone[name]
                what = f"{name} from publish to receive on {where}, {stream.what}"
                results.append(Result(row, what, figure, "ms", base, "broker alone", figure / base, "", None))
        used = (node.cpu_seconds() - cpu) / (time.monotonic() - began)
        note = f"{stream.what}: the broker used {used:.0%} of the core that it shares"
        results[-1] = replace(results[-1], note=note)
    return results


def bare_latency(lab: Lab, producer: Load, watch: Peer, publish: dict[str, Any]) -> dict[str, float]:
    """The same without a gateway: to the broker and from it by bare framing."""
    answers = []
    for _ in range(lab.rounds):
        producer.publish(**publish)
        producer.measure(lab.warm_up)
        watch.ask()
        producer.measure(LATENCY_SECONDS * lab.length)
        answers.append(watch.ask())
        producer.halt()
    return {name: median(answer[name] for answer in answers) for name in ("p50", "p99")}


# ---- fan-out ----

FLAT_TARGET = 4_000_000


def flat(lab: Lab, row: str) -> list[Result]:
    """Deliveries to many clients of events that come in bursts, over HTTP and from others by AMQP."""
    node = lab.broker()
    server = lab.load(lab.gateway("--backbone", node.url))
    server.open(SUBSCRIBERS, wire="ws")
    floor = lab.load(lab.floor(delivery_bytes(server, BURST)))
    floor.open(SUBSCRIBERS, wire="ws")
    publish = {"array": BURST, "k": 4, "lead": 4 * BURST, "fan": SUBSCRIBERS, "spin": False}
    sides = [
        Side(server, publish),
        Side(server, publish | {"amqp": node.port}),
        Side(floor, publish),
    ]
    found: list[list[Report]] = [[] for _ in sides]
    for _ in range(lab.rounds):
        for side, reports in zip(sides, found, strict=True):
            reports.append(measure(lab, side, 1.5))
    base = middle(found[2], rate)
    results = []
    for how, reports in zip(("by HTTP", "by AMQP"), found[:2], strict=True):
        figure = middle(reports, rate)
        each = middle(reports, lambda r: r.deliveries / r.reads)
        what = f"flat out, bursts of {BURST} {how}, WebSocket"
        note = f"{how}: {busy(reports)}; floor: {busy(found[2])}; {each:.3g} events per read"
        goal, met = f"≥ {FLAT_TARGET:,} /s", figure >= FLAT_TARGET
        results.append(
            Result(row, what, figure, "deliveries/s", base, "floor", figure / base, goal, met, note)
        )
    return results


# ---- replay ----

STORED, FILL = 1_000_000, 5_000
RETURNING = 200
PLACES = 10  # where they come back: at the beginning, a tenth later, …
LIVE = 100
REPLAY_SECONDS = 150
REPLAY_MB = 64


def replay(lab: Lab, row: str) -> list[Result]:
    """Many events that are stored, read again by clients that come back at several places of the log."""
    node = lab.broker()
    stored = lab.scaled(STORED)
    flags = ("--backbone", node.url, "--retention-bytes", "0")
    fill(lab, node, flags, stored)
    server = lab.gateway(*flags)
    live, returning = lab.load(server), lab.load(server)
    live.open(LIVE, wire="ws", topic="live")
    live.publish(rate=50, k=PUBLISHERS, fan=LIVE, topic="live")
    live.measure(lab.warm_up)
    normal = live.measure(3 * lab.length)
    returning.yield_to_others()
    places = list(find_places(server, stored))
    forget_peak_rss(server.pid)
    before = peak_rss_bytes(server.pid)
    live.measure(0)
    began, cpu = time.monotonic(), server.cpu_seconds()
    for group in [come_back(returning, *place, stored) for place in places]:
        returning.command("caught", group=group, timeout=REPLAY_SECONDS).sound("coming back")
    took, cpu = time.monotonic() - began, server.cpu_seconds() - cpu
    meanwhile = live.command("report").sound("the live clients")
    live.halt()
    growth = (peak_rss_bytes(server.pid) - before) / 1e6
    deliveries = RETURNING // PLACES * sum(stored - before for _, before in places)
    figure, base = p99_ms(meanwhile), p99_ms(normal)
    what = f"{RETURNING} clients come back at {PLACES} places of {stored:,} events: all caught up after"
    note = (
        f"{deliveries:,} deliveries, {cpu / deliveries * 1e6:.2f} µs of CPU each; "
        f"p50 of the live clients {p50_ms(meanwhile):.1f} ms"
    )
    return [
        Result(row, what, took, "s", None, "", None, "all", True, note),
        Result(row, "what they get meanwhile", deliveries / took, "deliveries/s", None, "", None, "", None),
        Result(
            row, "growth of memory meanwhile", growth, "MB", None, "", None, "≤ 64 MB", growth <= REPLAY_MB
        ),
        Result(
            row,
            f"p99 of {LIVE} live clients meanwhile",
            figure,
            "ms",
            base,
            "before",
            figure / base,
            "≤ 5 x",
            figure <= 5 * base,
        ),
    ]


def fill(lab: Lab, node: Node, flags: Sequence[str], stored: int) -> None:
    """Fill the stream while no replica runs: the one that declares it ends at once."""
    server = lab.gateway(*flags)
    load = lab.load(server)
    server.stop()
    # One connection, for the numbers must be in the order of the stream.
    load.publish(amqp=node.port, array=FILL, lead=FILL, count=stored // FILL, serial=True)
    load.halt(finish=True, timeout=REPLAY_SECONDS)


def find_places(server: Served, stored: int) -> Iterator[tuple[Cursor, int]]:
    """Return where clients come back: cursors, and how many events are before each."""
    begin, _ = first(server, "earliest")
    for place in range(PLACES):
        cursor = Cursor(begin.epoch, begin.position - 1 + stored * place // PLACES, 0)
        yield cursor, first(server, str(cursor))[1] - 1


def come_back(load: Load, cursor: Cursor, before: int, stored: int) -> int:
    """Open the clients that come back to one place; returns their group."""
    n, query = RETURNING // PLACES, f"cursor={cursor}"
    return load.open(n, wire="ws", serial=True, query=query, after=before, goal=stored, lead=False).group
