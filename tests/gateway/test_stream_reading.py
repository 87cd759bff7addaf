"""The live consumer rests when events come quickly and nobody here waits for them, and only then."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from gateway.amqp.frames import Delivery
from gateway.amqp.link import Link
from gateway.stream_reading import FEW, PACE_SECONDS, QUICK, REST_EVENTS, REST_SECONDS, Reading


class Rests:
    """A link that counts how often it is told to rest."""

    lost = None

    def __init__(self) -> None:
        self.rests: list[float] = []

    async def channel(self) -> int:
        return 1

    async def call(self, *_: Any) -> None:
        await asyncio.sleep(0)

    def write(self, data: bytes) -> None:
        assert data

    def rest(self, seconds: float) -> None:
        self.rests.append(seconds)


def _deliveries(count: int) -> list[Delivery]:
    return [Delivery(1, number, b"events", b"a", b"", b"", 0) for number in range(count)]


@pytest.mark.parametrize(
    ("reads", "waits", "rests"),
    [
        ([1] * (int(QUICK) - 1), False, 0),  # not enough of them to be quick
        ([1] * 100, False, 81),
        ([1] * 100, True, 0),  # somebody waits for his own
        ([FEW] * 100, False, 0),  # worth waking up for
    ],
)
async def test_reading_rests_between_small_reads(
    monkeypatch: pytest.MonkeyPatch, reads: list[int], waits: bool, rests: int
) -> None:
    """At one moment: the pace is what came; small reads rest once it is quick, each shorter than the last."""
    monkeypatch.setattr("time.monotonic", lambda: 7.0)
    link = Rests()
    reading = Reading(lambda _: None, lambda: waits)
    await reading.begin(cast("Link", link), "stream", "next")
    taken: list[Delivery] = []
    reading.go(taken.extend)
    for count in reads:
        reading.delivered(_deliveries(count))
    assert len(taken) == sum(reads)
    paces = range(int(QUICK), int(QUICK) + rests)
    assert link.rests == [min(REST_SECONDS, REST_EVENTS * PACE_SECONDS / pace) for pace in paces]


@pytest.mark.parametrize(("rate", "rest"), [(500, REST_SECONDS), (2000, REST_EVENTS / 2000)])
async def test_the_faster_events_come_the_shorter_are_the_rests(
    monkeypatch: pytest.MonkeyPatch, rate: int, rest: float
) -> None:
    """At a steady rate, so many events come together, unless that would take too long."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    link = Rests()
    reading = Reading(lambda _: None, lambda: False)
    await reading.begin(cast("Link", link), "stream", "next")
    reading.go(lambda _: None)
    for _ in range(rate):
        now[0] += 1 / rate
        reading.delivered(_deliveries(1))
    assert link.rests[-1] == pytest.approx(rest, rel=0.02)


async def test_slow_events_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 200 a second reading never rests, however long that goes on."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    link = Rests()
    reading = Reading(lambda _: None, lambda: False)
    await reading.begin(cast("Link", link), "stream", "next")
    reading.go(lambda _: None)
    for _ in range(1000):
        now[0] += 0.005
        reading.delivered(_deliveries(1))
    assert link.rests == []
