"""The embedded log against a plain list: whatever is done to it, it holds what the list holds."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fanout.event import Event
from gateway.log import LogUnavailable
from gateway.sqlite_log import SqliteLog
from gateway.sqlite_rows import ROW_BYTES
from tests.support.log_events import UNBOUNDED, event, everything, facts, trimmed

SIZES = st.sampled_from([0, 0, 0, 200, 3_000, 40_000, ROW_BYTES + 1])
AMOUNTS = st.sampled_from([1, 500, 5_000, 100_000, 1 << 24])


class LogModel(RuleBasedStateMachine):
    """
    A log with some retention, and a list of all events it ever took.

    By count and by age the model knows exactly which are retained; by bytes that depends on how the events
    were grouped into rows, so there it only knows the bounds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="sluicegate-log-"))
        self.settings: dict[str, Any] = {}
        self.now = 1_000_000
        self.events: list[Event] = []  # all that were ever appended
        self.delivered: list[Event] = []
        self.first = 1
        self.epoch: str | None = None

    @initialize(
        age=st.sampled_from([0, 5, 60]), kept=st.sampled_from([0, 1, 20]), size=st.sampled_from([0, 30_000])
    )
    def begin(self, age: int, kept: int, size: int) -> None:
        """Open a new log."""
        retention = {"retention_seconds": age, "retention_events": kept, "retention_bytes": size}
        self.settings = UNBOUNDED | retention | {"clock": lambda: self.now, "tail_bytes": 20_000}
        self._open()

    @rule(calls=st.lists(st.lists(SIZES, max_size=8), min_size=1, max_size=5), late=st.integers(0, 3_000))
    def append(self, calls: list[list[int]], late: int) -> None:
        """Append several calls at once, with times that sometimes go back."""
        batches = [
            [
                event(f"{len(self.events)}-{call}-{index}", size=size, time=self.now - late * (index % 2))
                for index, size in enumerate(sizes)
            ]
            for call, sizes in enumerate(calls)
        ]
        new = [one for batch in batches for one in batch]
        asked = [one.time for one in new]
        start = len(self.events)

        async def append() -> None:
            await asyncio.gather(*[self.log.append(batch) for batch in batches])

        self.runner.run(append())
        newest = self.events[-1].time if self.events else 0
        for position, (one, time) in enumerate(zip(new, asked, strict=True), start + 1):
            newest = max(newest, time)
            assert (one.position, one.time) == (position, newest)
        self.events += new
        self._forget(count=True)
        if self.settings["retention_bytes"]:
            self.trim()  # a large surplus starts it anyway, now or a little later

    @rule(sizes=st.lists(SIZES, min_size=1, max_size=4))
    def fail(self, sizes: list[int]) -> None:
        """Append when nothing can be written; that changes nothing at all."""
        assert self.log._file is not None
        connection = self.log._file.connection

        async def append() -> None:
            calls = [self.log.append([event("failed", size=size, time=self.now + 10_000)]) for size in sizes]
            outcomes = await asyncio.gather(*calls, self.log.append([]), return_exceptions=True)
            assert all(isinstance(outcome, LogUnavailable) for outcome in outcomes)

        connection.execute("PRAGMA query_only=ON")
        self.runner.run(append())
        connection.execute("PRAGMA query_only=OFF")

    @rule(seconds=st.integers(0, 10))
    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.now += seconds * 1_000

    @rule()
    def trim(self) -> None:
        """Let retention run."""
        self.runner.run(trimmed(self.log))
        self._forget(count=True, age=True, size=True)

    @rule()
    def reopen(self) -> None:
        """Restart."""
        self.runner.run(self.log.close())
        self._open()

    @rule(chance=st.randoms(use_true_random=False), amount=AMOUNTS)
    def read(self, chance: random.Random, amount: int) -> None:
        """Read once from anywhere."""
        after = chance.randint(0, len(self.events) + 1)
        found = self.runner.run(self.log.read(after, amount))
        expected = self.events[max(after, self.first - 1) :]
        assert bool(found) == bool(expected)
        assert [facts(one) for one in found] == [facts(one) for one in expected[: len(found)]]

    @rule(chance=st.randoms(use_true_random=False))
    def read_together(self, chance: random.Random) -> None:
        """Let several readers catch up at the same time, each from another place."""
        starts = [chance.randint(0, len(self.events)) for _ in range(8)]
        amounts = [chance.choice([1, 5_000, 1 << 24]) for _ in starts]

        async def read() -> list[list[Event]]:
            readers = [
                everything(self.log, after, amount) for after, amount in zip(starts, amounts, strict=True)
            ]
            return await asyncio.gather(*readers)

        for after, found in zip(starts, self.runner.run(read()), strict=True):
            expected = self.events[max(after, self.first - 1) :]
            assert [facts(one) for one in found] == [facts(one) for one in expected]

    @precondition(lambda self: self.events)
    @rule(chance=st.randoms(use_true_random=False), shift=st.integers(-1, 1))
    def find_time(self, chance: random.Random, shift: int) -> None:
        """Look for a time that some event has, or nearly has."""
        time = chance.choice(self.events).time + shift
        older = sum(one.time < time for one in self.events)
        assert self.runner.run(self.log.find_time(time)) == max(older, self.first - 1)

    @rule()
    def tail(self) -> None:
        """Ask for the newest events."""
        found = self.runner.run(self.log.tail())
        expected = self.events[self.first - 1 :]
        assert [facts(one) for one in found] == [facts(one) for one in expected[len(expected) - len(found) :]]

    @invariant()
    def agrees(self) -> None:
        """What the log says of itself is true, and everything was delivered once and in order."""
        if self.epoch is None:
            return
        assert (self.log.first, self.log.head) == (self.first, len(self.events))
        assert self.log.head_tag == (self.events[-1].tag if self.events else 0)
        assert self.log.epoch == self.epoch
        assert [one.position for one in self.delivered] == list(range(1, len(self.events) + 1))

    def teardown(self) -> None:
        """Close the log and check its end once more in a new one."""
        if self.epoch is not None:
            self.runner.run(self.log.close())
            self._open()
            self.agrees()
            self.runner.run(self.log.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def _open(self) -> None:
        self.log = SqliteLog(self.folder, **self.settings)
        self.runner.run(self.log.start(self.delivered.extend))
        self.epoch = self.epoch or self.log.epoch
        self._forget(count=True, age=True, size=True)

    def _forget(self, *, count: bool = False, age: bool = False, size: bool = False) -> None:
        """Move the first position that the model expects, as retention just did."""
        kept, seconds = self.settings["retention_events"], self.settings["retention_seconds"]
        if count and kept:
            self.first = max(self.first, len(self.events) - kept + 1)
        if age and seconds:
            self.first = max(
                self.first, 1 + sum(one.time < self.now - seconds * 1_000 for one in self.events)
            )
        if size and (limit := self.settings["retention_bytes"]):
            assert self.first <= self.log.first
            stored = sum(len(one.body) + 30 for one in self.events[self.log.first - 1 :])
            dropped = sum(len(one.body) + 60 for one in self.events[self.first - 1 :])
            assert self.log.first == self.first or dropped > limit, "more was forgotten than had to be"
            newest = max((len(one.body) for one in self.events[self.log.first - 1 :]), default=0)
            assert stored <= limit + 30 * len(self.events) + self._newest_row() or stored <= newest
            self.first = self.log.first

    def _newest_row(self) -> int:
        """Return the bytes of the newest row, which retention by bytes never forgets."""
        assert self.log._rows is not None
        rows = self.log._rows._fetch("SELECT length(body) FROM batches ORDER BY first DESC LIMIT 1")
        return int(rows[0][0]) if rows else 0


TestLogModel = LogModel.TestCase
TestLogModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
