"""
The rows of the bench: what each measures, beside what, and the target it is held to.

Method. Server and floor run on one core, the load client and this harness on another. Both sides are up at
the same time and are measured in turn, in short rounds (server, floor, server, floor) after a warm-up each,
so that a machine that drifts does so for both; the median of the rounds counts. CPU time is that of the whole
server process, read from outside at the borders of a round. A delivery is one event received and counted by
one client. After each round everything owed must have arrived, in order and once, or the row fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

from bench.children import Load, Report, Served
from bench.lab import Lab
from bench.machine import open_files, pss_bytes, wait_until
from bench.table import Result
from bench.tokens import paired_tokens, shared_tokens

DATA_BYTES = 128
SUBSCRIBERS = 1000
PUBLISHERS = 8  # where latency is judged: so many that none waits for another's answer
QUIET = 0.1  # the share of both cores that others may use in a round
NAMES = {"ws": "WebSocket", "sse": "SSE"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Side:
    """One server under one load."""

    load: Load
    publish: dict[str, Any]  # arguments of the load client's `publish`


def rounds(lab: Lab, sides: Sequence[Side], seconds: float) -> list[list[Report]]:
    """Measure each side in turn, several times; returns the reports of each side."""
    reports: list[list[Report]] = [[] for _ in sides]
    for _ in range(lab.rounds):
        for side, found in zip(sides, reports, strict=True):
            found.append(measure(lab, side, seconds))
    return reports


def measure(lab: Lab, side: Side, seconds: float) -> Report:
    """Measure one round of so many seconds."""

    def once() -> Report:
        side.load.publish(**{"spin": True} | side.publish)
        side.load.measure(lab.warm_up)
        report = side.load.measure(seconds * lab.length)
        side.load.halt()
        return report

    return quietest(lab, once)


def quietest(lab: Lab, once: Callable[[], T]) -> T:
    """Do one round; again, within bounds, if others used the cores meanwhile. The quietest counts."""
    tries: list[tuple[float, T]] = []
    while True:
        before = lab.others_seconds()
        began = time.monotonic()
        found = once()
        took = time.monotonic() - began
        tries.append(((lab.others_seconds() - before) / took, found))
        if tries[-1][0] < QUIET or not lab.may_repeat(took):
            return min(tries, key=lambda each: each[0])[1]


def delivery_bytes(load: Load, array: int) -> int:
    """Bytes on the wire per delivery, from a few requests; they warm the server up as well."""
    load.publish(rate=100, array=array, fan=SUBSCRIBERS, count=20)
    report = load.halt(finish=True)
    return round(report.bytes / report.deliveries)


def pair(lab: Lab, wire: str, array: int = 1) -> tuple[Load, Load]:
    """Server and floor with the same subscribers and the same bytes per delivery."""
    server = lab.load(lab.gateway())
    server.open(SUBSCRIBERS, wire=wire, dense=True)
    floor = lab.load(lab.floor(delivery_bytes(server, array)))
    floor.open(SUBSCRIBERS, wire=wire, dense=True)
    delivery_bytes(floor, array)
    return server, floor


def micros(report: Report) -> float:
    """Server CPU per delivery in µs."""
    return report.server_cpu / report.deliveries * 1e6


def middle(reports: Sequence[Report], of: Callable[[Report], float]) -> float:
    return median(of(report) for report in reports)


# ---- fan-out ----


def paced(lab: Lab, row: str, wire: str) -> list[Result]:
    publish = {"rate": 50, "fan": SUBSCRIBERS}
    server, floor = rounds(lab, [Side(load, publish) for load in pair(lab, wire)], 2)
    figure, base = middle(server, micros), middle(floor, micros)
    what = f"CPU per delivery at 50 events/s, {NAMES[wire]}"
    note = f"p99 latency {middle(server, p99_ms):.1f} ms, floor {middle(floor, p99_ms):.1f} ms"
    return [
        Result(row, what, figure, "µs", base, "floor", figure / base, "≤ 1.4 x", figure <= 1.4 * base, note)
    ]


def p50_ms(report: Report) -> float:
    return report.latency.p50 / 1e6


def p99_ms(report: Report) -> float:
    return report.latency.p99 / 1e6


def rate(report: Report) -> float:
    return report.deliveries / report.seconds


def busy(reports: Sequence[Report]) -> str:
    """How full both cores were: the client's must have had room for the figure to be the server's."""
    server, client = (
        middle(reports, lambda r: r.server_cpu / r.seconds),
        middle(reports, lambda r: r.own_cpu / r.seconds),
    )
    return f"server {server:.0%} and client {client:.0%} busy, {middle(reports, micros):.3g} µs/delivery"


def flat_out(lab: Lab, loads: tuple[Load, Load], array: int, k: int) -> tuple[float, float, str]:
    """Deliveries/s of server and floor with `k` requests in flight, and what to note about it."""
    publish = {"array": array, "k": k, "lead": 2 * array, "fan": SUBSCRIBERS}
    server, floor = rounds(lab, [Side(load, publish) for load in loads], 1.5)
    each = middle(server, lambda r: r.deliveries / r.reads)
    note = f"{busy(server)}; floor: {busy(floor)}; {each:.3g} events per read"
    return middle(server, rate), middle(floor, rate), note


def singles(lab: Lab, row: str, wire: str) -> list[Result]:
    """Single events; with two in flight, two that wait together become one commit and one write."""
    loads = pair(lab, wire)
    results = []
    for k in (2, 1):
        figure, base, note = flat_out(lab, loads, 1, k)
        what = f"flat out, one by one, {k} in flight, {NAMES[wire]}"
        met, note = figure >= 0.75 * base, f"{k} in flight: {note}"
        ratio = figure / base
        results.append(Result(row, what, figure, "deliveries/s", base, "floor", ratio, "≥ 0.75 x", met, note))
    return results


def arrays(lab: Lab, row: str, wire: str, target: float) -> list[Result]:
    figure, base, note = flat_out(lab, pair(lab, wire, 200), 200, 2)
    what, ratio = f"flat out, arrays of 200, {NAMES[wire]}", figure / base
    goal, met = f"≥ {target:,.0f} /s", figure >= target
    return [Result(row, what, figure, "deliveries/s", base, "floor", ratio, goal, met, note)]


# ---- connections ----


def idle(lab: Lab, row: str, wire: str, target_kb: float) -> list[Result]:
    """Memory of idle connections, after heartbeats and the answers to them have left their traces."""
    n = lab.scaled(10_000)
    server, floor = lab.gateway("--heartbeat-seconds", "3"), lab.floor(300)
    fresh, after = occupy(lab, server, wire, n, 7)
    base, _ = occupy(lab, floor, wire, n, 0)
    what, note = (
        f"memory of each of {n:,} idle connections, {NAMES[wire]}",
        f"{fresh:.2f} KB before the first heartbeats",
    )
    goal = f"≤ {target_kb:g} KB"
    return [Result(row, what, after, "KB", base, "floor", None, goal, after <= target_kb, note)]


def occupy(lab: Lab, server: Served, wire: str, n: int, pause: float) -> tuple[float, float]:
    """KB per connection when all are open, and again after a pause in seconds."""
    load = lab.load(server)
    load.close(load.open(100, wire=wire).group)  # whatever the first connections load once and for all
    wait_until(lambda: open_files(server.pid) < 100, "the first connections to be closed", 10)
    before = pss_bytes(server.pid)
    load.open(n, wire=wire)
    fresh = pss_bytes(server.pid)
    load.measure(pause)
    return (fresh - before) / n / 1000, (pss_bytes(server.pid) - before) / n / 1000


def connect(lab: Lab, row: str, wire: str) -> list[Result]:
    loads = [lab.load(lab.gateway()), lab.load(lab.floor(300))]
    spent: list[list[float]] = [[], []]
    for _ in range(lab.rounds + 1):  # the first is the warm-up
        for load, found in zip(loads, spent, strict=True):
            found.append(connect_once(load, wire, lab.scaled(5000)))
    figure, base = (1 / median(found[1:]) for found in spent)
    what, met = f"connects per second of server CPU, {NAMES[wire]}", figure >= 8000
    return [Result(row, what, figure, "/s", base, "floor", figure / base, "≥ 8,000 /s", met)]


def tokens(lab: Lab, row: str) -> list[Result]:
    """
    Connects of clients that say who they are, each by a token of its own, beside those of clients that are
    not asked. The first time each signature is verified; from then on the token is remembered.
    """
    n = lab.scaled(5000)
    loads = [lab.load(lab.gateway())]
    for flags, made in (shared_tokens(n), paired_tokens(lab, n)):
        loads.append(lab.load(lab.gateway(*flags), lab.file("tokens", "\n".join(made) + "\n")))
    spent: list[list[float]] = [[] for _ in loads]
    for _ in range(lab.rounds + 1):
        for load, found in zip(loads, spent, strict=True):
            found.append(connect_once(load, "ws", n))
    base = 1 / median(spent[0][1:])
    results = []
    for name, found in zip(("HS256", "EdDSA"), spent[1:], strict=True):
        figure = 1 / median(found[1:])
        note = f"{1 / found[0]:,.0f} /s ({1 / found[0] / base:.2f}) when each token comes for the first time"
        what, ratio = f"connects per second of server CPU with a token, {name}", figure / base
        results.append(
            Result(row, what, figure, "/s", base, "without keys", ratio, "≥ 0.7 x", ratio >= 0.7, note)
        )
    return results


def connect_once(load: Load, wire: str, n: int) -> float:
    """Server CPU seconds of one connect, from the SYN to the first message; closing is not counted."""
    before = open_files(load.server.pid)
    report = load.open(n, wire=wire, flight=64)
    load.close(report.group)
    wait_until(lambda: open_files(load.server.pid) <= before, "the connections to be closed", 20)
    return report.server_cpu / n


# ---- clients that never read ----


def stalled(lab: Lab, row: str) -> list[Result]:
    """The fast clients' latency while a tenth of all clients reads nothing, and without that tenth."""
    fast, slow = SUBSCRIBERS * 9 // 10, SUBSCRIBERS // 10
    load = lab.load(lab.gateway("--stall-timeout", "300"))
    load.open(fast, wire="ws", dense=True)
    paced_side = Side(load, {"rate": 50, "k": PUBLISHERS, "fan": fast})
    flood = {"rate": 20, "array": 200, "lead": 400, "fan": fast, "count": 20}
    alone: list[Report] = []
    beside: list[Report] = []
    for _ in range(lab.rounds):
        alone.append(measure(lab, paced_side, 2))
        group = load.open(slow, wire="ws", stall=True).group
        load.publish(**flood)
        load.halt(finish=True)
        beside.append(measure(lab, paced_side, 2))
        load.close(group)
    figure, base = middle(beside, p99_ms), middle(alone, p99_ms)
    what, ratio = "p99 of the fast clients, 10 % stalled", figure / base
    return [Result(row, what, figure, "ms", base, "without them", ratio, "≤ 1.2 x", ratio <= 1.2)]


BULK_BYTES, BULK_ARRAY = 1000, 100


def bulk(load: Load, megabytes: float) -> None:
    """Let the log grow by so much of a topic that only stalled clients subscribe to."""
    count = round(megabytes * 1e6 / (BULK_BYTES + 130) / BULK_ARRAY)
    load.publish(topic="bulk", data=BULK_BYTES, array=BULK_ARRAY, k=4, lead=4 * BULK_ARRAY, count=count)
    load.halt(finish=True, timeout=60)


def stalled_memory(lab: Lab, row: str) -> list[Result]:
    """What a client that never reads costs, with the window full before, during and after."""
    n = lab.scaled(1000)
    server = lab.gateway("--stall-timeout", "300")
    load = lab.load(server)
    load.open(1, wire="ws", topic="quiet", lead=False)
    bulk(load, 120)  # more than the window holds: from here on it has its full size
    before = pss_bytes(server.pid)
    load.open(n, wire="ws", topic="bulk", stall=True)
    bulk(load, 5)
    load.measure(0.5)
    full = pss_bytes(server.pid)
    bulk(load, 100)
    load.measure(0.5)
    after = pss_bytes(server.pid)
    each, growth = (full - before) / n / 1000, (after - full) / 1e6
    what = f"user-space memory of each of {n:,} stalled clients"
    note = (
        f"PSS {before / 1e6:.1f} MB before, {full / 1e6:.1f} with them, {after / 1e6:.1f} after 100 MB more"
    )
    return [
        Result(row, what, each, "KB", None, "", None, "≤ 80 KB", each <= 80, note),
        Result(
            row,
            "growth of all while the log grows by 100 MB",
            growth,
            "MB",
            None,
            "",
            None,
            "≤ 5 MB",
            growth <= 5,
        ),
    ]


# ---- publishing ----


def publish(lab: Lab, row: str, array: int, k: int, target: float) -> list[Result]:
    """Events accepted per second over HTTP, each answered once it is durable; nobody subscribes."""
    server, floor = lab.load(lab.gateway()), lab.load(lab.floor(300, durable=True))
    arguments = {"array": array, "k": k, "lead": k * array}
    found = rounds(lab, [Side(server, arguments), Side(floor, arguments)], 2)
    figure, base = (middle(reports, lambda r: r.accepted / r.seconds) for reports in found)
    cpu = middle(found[0], lambda r: r.server_cpu / r.accepted * 1e6)
    slow = middle(found[0], lambda r: r.publish_latency.p99 / 1e6)
    note = f"{cpu:.1f} µs of CPU an event, p99 of a publish {slow:.1f} ms"
    if not lab.on_disk:
        note += "; the data folder is in memory, where fsync costs nothing: set TMPDIR to a folder on a disk"
    what = f"durable publishes, {f'arrays of {array}, ' if array > 1 else 'singles, '}{k} connections"
    ratio, met = figure / base, figure >= target
    return [Result(row, what, figure, "events/s", base, "floor", ratio, f"≥ {target:,.0f} /s", met, note)]


# ---- scale ----


def connections(lab: Lab, row: str) -> list[Result]:
    """CPU per delivery with 100 connections and with 18,000, less what publishing costs without them."""
    few, many = 100, lab.scaled(18_000)
    cost = publish_cost(lab)
    small_gateway, large_gateway = lab.gateway(), lab.gateway()
    sides = [
        crowd(lab, small_gateway, few),
        crowd(lab, large_gateway, many - few),
        crowd(lab, large_gateway, few, "few"),  # and so the large one has its full number of connections
    ]
    sample = counted(sides[0], 20)
    size = round(sample.bytes / sample.deliveries)
    sides += [crowd(lab, lab.floor(size), n) for n in (few, many)]
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(lab.rounds):
        for side, spent, publish_cpu in zip(sides, found, (cost, cost, cost, 0, 0), strict=True):
            counted(side, 2)  # a warm-up
            report = counted(side, max(6, round(side.publish["rate"] * 1.5 * lab.length)))
            spent.append((report.server_cpu - report.sent * publish_cpu) / report.deliveries * 1e6)
    small, large, part, floor_small, floor_large = (median(spent) for spent in found)
    growth, floor_growth, part_growth = large / small, floor_large / floor_small, part / small
    what, base = f"CPU per delivery, {many:,} connections", f"{few} connections"
    note = (
        f"a publish alone ({cost * 1e6:.0f} µs) is subtracted; the floor grows {floor_growth:.2f} x, "
        f"from {floor_small:.2f} to {floor_large:.2f} µs"
    )
    part_what = f"the same, but {few} of them receive"
    return [
        Result(row, what, large, "µs", small, base, growth, "< 1.3 x", growth < 1.3, note),
        Result(row, part_what, part, "µs", small, base, part_growth, "< 1.3 x", part_growth < 1.3),
    ]


def publish_cost(lab: Lab) -> float:
    """Server CPU seconds of a single publish that nobody receives."""
    report = measure(lab, Side(lab.load(lab.gateway()), {"rate": 500}), 1)
    return report.server_cpu / report.sent


def crowd(lab: Lab, server: Served, n: int, topic: str = "bench") -> Side:
    """`n` subscribers of a topic and about 50,000 deliveries a second."""
    load = lab.load(server)
    load.open(n, wire="ws", topic=topic)
    return Side(load, {"rate": 50_000 / n, "fan": n, "topic": topic})


def counted(side: Side, count: int) -> Report:
    """Publish exactly `count` requests: at a few events a second the borders of a timed round would blur."""
    side.load.publish(**side.publish, count=count, spin=True)
    return side.load.halt(finish=True)


def topics(lab: Lab, row: str) -> list[Result]:
    """CPU per event published singly to a random one of 10 or of 100,000 topics; two clients receive each."""
    n, each = 2000, 100
    many = lab.scaled(100_000)
    few_load, many_load = lab.load(lab.gateway()), lab.load(lab.gateway())
    few_load.open(20, wire="ws", topics=10, each=1)
    few_load.open(n - 20, wire="ws", topic="quiet", lead=False)
    many_load.open(n * many // 100_000, wire="ws", topics=many, each=each, timeout=60)
    sides = [
        Side(few_load, {"fan": 2, "lead": 1, "topics": 10}),
        Side(many_load, {"fan": 2, "lead": 1, "topics": many}),
    ]
    found = rounds(lab, sides, 1.5)
    small, large = (middle(reports, lambda r: r.server_cpu / r.sent * 1e6) for reports in found)
    what, growth = f"CPU per event, {many:,} topics", large / small
    return [Result(row, what, large, "µs", small, "10 topics", growth, "< 1.3 x", growth < 1.3)]


# ---- resuming ----


def resume(lab: Lab, row: str) -> list[Result]:
    """2,000 clients come back at once, 1,000 events behind, while 1,000 live clients go on."""
    n, back = lab.scaled(2000), 1000
    # All are of one address, connect before any of them asks, and are no attack.
    server = lab.gateway("--max-waiting", str(2 * n))
    live, returning = lab.load(server), lab.load(server)
    returning.yield_to_others()  # what it reads must not make the live clients on the same core look late
    live.open(SUBSCRIBERS, wire="ws", dense=True)
    live.publish(rate=100, fan=SUBSCRIBERS, count=1)
    start = live.halt(finish=True)
    live.publish(rate=20, array=100, fan=SUBSCRIBERS, lead=200, count=back // 100)
    head = live.halt(finish=True).head
    live.publish(rate=50, k=PUBLISHERS, fan=SUBSCRIBERS)
    live.measure(lab.warm_up)
    normal = live.measure(3 * lab.length)
    live.measure(0)
    group = returning.open(
        n,
        wire="ws",
        dense=True,
        query=f"cursor={start.cursor}",
        after=start.head,
        goal=head,
        flight=n,
        lead=False,
    )
    caught = returning.command("caught", group=group.group).sound("resuming")
    meanwhile = live.command("report").sound("the live clients")
    live.halt()
    figure, base = p99_ms(meanwhile), p99_ms(normal)
    note = f"{caught.deliveries:,} events received again, p99 watched for {meanwhile.seconds:.2f} s"
    what = f"{n:,} clients resume {back:,} events: all caught up after"
    ratio = figure / base
    return [
        Result(row, what, caught.caught_after, "s", None, "", None, "all", True, note),
        Result(
            row,
            "p99 of 1,000 live clients meanwhile",
            figure,
            "ms",
            base,
            "before",
            ratio,
            "≤ 5 x",
            ratio <= 5,
        ),
    ]


@dataclass(frozen=True, slots=True)
class Row:
    """A row by its name on the command line, and about how many seconds it takes."""

    name: str
    seconds: int
    measure: Callable[[Lab, str], list[Result]]
    beside_floor: bool = True


ROWS = (
    Row("ws50", 15, lambda lab, row: paced(lab, row, "ws")),
    Row("sse50", 15, lambda lab, row: paced(lab, row, "sse")),
    Row("ws-flat", 24, lambda lab, row: singles(lab, row, "ws")),
    Row("sse-flat", 24, lambda lab, row: singles(lab, row, "sse")),
    Row("ws-arrays", 14, lambda lab, row: arrays(lab, row, "ws", 5_000_000)),
    Row("sse-arrays", 14, lambda lab, row: arrays(lab, row, "sse", 4_000_000)),
    Row("ws-idle", 9, lambda lab, row: idle(lab, row, "ws", 4)),
    Row("sse-idle", 9, lambda lab, row: idle(lab, row, "sse", 3)),
    Row("ws-connect", 5, lambda lab, row: connect(lab, row, "ws")),
    Row("sse-connect", 5, lambda lab, row: connect(lab, row, "sse")),
    Row("tokens", 8, tokens, beside_floor=False),
    Row("stalled", 20, stalled, beside_floor=False),
    Row("stalled-memory", 5, stalled_memory, beside_floor=False),
    Row("publish-arrays", 16, lambda lab, row: publish(lab, row, 200, 4, 80_000), beside_floor=False),
    Row("publish-singles", 16, lambda lab, row: publish(lab, row, 1, 32, 5_000), beside_floor=False),
    Row("connections", 45, connections),
    Row("topics", 15, topics, beside_floor=False),
    Row("resume", 7, resume, beside_floor=False),
)
