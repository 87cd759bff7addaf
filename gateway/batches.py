"""
Work for a store in batches: what is asked for while one batch is under way is the next one.

So the number of commits or queries is bounded by how fast the store answers, not by how many ask. For one key
only what was given last counts: whoever gave something before it hears what became of the later one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Generic, TypeVar

V = TypeVar("V")
R = TypeVar("R")

MOST: Final = 5000
"""Keys of one batch; a database takes a good 100 ms for so many (measured)."""


class Batches(Generic[V, R]):
    """
    Gathers values by key and has them dealt with, a batch at a time; lives on the event loop.

    Args:
        do: deals with a batch and returns the outcome of each key; an exception among them is raised to who
            waits for that key, and a key without an outcome has None. What `do` raises is raised to all.

    Attributes:
        done: batches that were dealt with.
        failures: batches for which `do` raised.
        seconds: how long the last one took.
    """

    def __init__(self, do: Callable[[dict[str, V]], Awaitable[Mapping[str, R | Exception]]]) -> None:
        self.done = 0
        self.failures = 0
        self.seconds = 0.0
        self._do = do
        self._given: dict[str, V] = {}  # waits for the next batch
        self._waiting: dict[str, list[asyncio.Future[R | None]]] = {}  # for that too
        self._doing: dict[str, V] = {}  # is being dealt with
        self._task: asyncio.Task[None] | None = None

    def give(self, key: str, value: V) -> asyncio.Future[R | None]:
        """Give a value for the next batch; the future is the outcome of its key there."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R | None] = loop.create_future()
        self._given[key] = value
        self._waiting.setdefault(key, []).append(future)
        if self._task is None:  # begins in the next turn of the loop: who is ready in this one shares a batch
            self._task = loop.create_task(self._work())
        return future

    def pending(self, key: str) -> V | None:
        """Return what was given last for a key and is not dealt with."""
        return self._given.get(key, self._doing.get(key))

    async def finished(self) -> None:
        """Wait until everything that was given is dealt with."""
        while self._task is not None:
            await asyncio.wait((self._task,))

    async def _work(self) -> None:
        try:
            while self._given:
                await self._next()
        finally:
            self._task = None

    async def _next(self) -> None:
        """Deal with one batch."""
        keys = list(self._given)[:MOST]
        self._doing = {key: self._given.pop(key) for key in keys}
        waiting = {key: self._waiting.pop(key) for key in keys}
        begun = time.monotonic()
        try:
            outcomes = await self._do(self._doing)
        except Exception as error:  # noqa: BLE001  (it is the outcome of all)
            outcomes = dict.fromkeys(keys, error)
            self.failures += 1
        else:
            self.done += 1
            self.seconds = time.monotonic() - begun
        finally:
            self._doing = {}
        for key, futures in waiting.items():
            _settle(futures, outcomes.get(key))


def _settle(futures: list[asyncio.Future[R | None]], outcome: R | Exception | None) -> None:
    """Tell those who wait what came of it."""
    for future in futures:
        if future.done():  # whoever waited was cancelled
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
