"""Chance, loaded: lets happen to a world what is interesting, more often than what is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from fanout.connection import Overflow
from fanout.frames import STREAM_WIRES, Wire
from tests.support.world import PATTERNS, TOPICS, Bounds, Client, Draft, World

MAX_CLIENTS: Final = 4

SIZES: Final = (0, 0, 10, 60, 150, 300, 700, 2500)
ROOMS: Final = (0, 1, 200, 600, 1500, 5000, 1 << 20)
PORTIONS: Final = (1, 30, 120, 400, 1000, 4000, 1 << 30)
KEYS: Final = (None, None, "k", "l", "m")
TTLS: Final = (0, 0, 0, 300, 1500, 5000)
PAUSES: Final = (1, 200, 600, 3000)
OVERFLOWS: Final = (Overflow.CATCHUP, Overflow.LATEST, *Overflow)
STARTS: Final = ("latest", "earliest", "-1", "-3", "-30")
REWINDS: Final = ("latest", "earliest", "-2", "seen", "seen", "seen")
BLOCKS: Final = (1, 1000, 3000, 1 << 30)
TAILS: Final = (0, 1000, 3000, 1 << 30)


class Dice:
    """
    A world, and what happens to it.

    Args:
        seed: makes it repeatable.
        make: makes the world.
        without: names of actions that do not happen.
    """

    def __init__(
        self, seed: int, make: Callable[[Bounds], World], without: frozenset[str] = frozenset()
    ) -> None:
        self.random = random.Random(seed)
        pick = self.random.choice
        self.world = make(
            Bounds(
                pick((300, 1000, 3000)),
                pick((1500, 20_000, 1_000_000)),
                pick((3, 20, 1000)),
                pick((0, 0, 2000)),
            )
        )
        self.done: list[str] = []  # what happened, for the failure's text
        client = self._client
        actions: list[tuple[float, str, Callable[[], tuple[Any, ...]]]] = [
            (6, "publish", lambda: ([self._draft() for _ in range(pick((1, 1, 2, 5)))],)),
            (7, "take", lambda: (client(), pick(PORTIONS))),
            (4, "turn", lambda: (client(),)),
            (4, "feed", lambda: (client(),)),
            (1, "read_block", lambda: (client(), pick(BLOCKS))),
            (2, "feed_block", lambda: (client(), pick((0, 1, 2)))),
            (1, "leave", lambda: (client(), pick(PORTIONS))),
            (4, "come", lambda: (client(), self._wire(), pick(STARTS), pick(ROOMS))),
            (1, "subscribe", lambda: (client(), self._patterns(), pick(REWINDS), self.random.randrange(30))),
            (0.6, "unsubscribe", lambda: (client(), self.random.randrange(6))),
            (1, "heartbeat", lambda: ()),
            (1, "pass_time", lambda: (pick(PAUSES),)),
            (0.2, "trim", lambda: (self.random.randrange(12),)),
            (0.2, "tell", lambda: ()),
            (0.1, "restart", lambda: (pick(PORTIONS), pick(TAILS))),
            (0.04, "recreate", lambda: (pick(PORTIONS), self.random.randrange(8))),
            (0.06, "truncate", lambda: (pick(PORTIONS), pick((1, 3, 8)), pick((0, 2, 9)), pick(TAILS))),
            (0.1, "settle", lambda: ()),
        ]  # fmt: skip
        self._actions = [action for action in actions if action[1] not in without]
        self._weights = [weight for weight, _, _ in self._actions]
        self._favourites = self._any_patterns(), self._any_patterns()
        self._wires = pick(STREAM_WIRES), pick(STREAM_WIRES)
        for _ in range(MAX_CLIENTS):
            self.world.arrive(self._patterns(), self._wire(), pick(STARTS), pick(ROOMS), pick(OVERFLOWS))

    def throw(self) -> None:
        """Let something happen."""
        _, name, arguments = self.random.choices(self._actions, self._weights)[0]
        given = arguments()
        self.done.append(f"{name}{tuple(self._shown(each) for each in given)}")
        if self.random.random() < 0.02:
            self.world.poll(self._client(), "latest", self.random.choice((1, 3, 100)))
        getattr(self.world, name)(*given)
        self.world.check()

    def _client(self) -> Client:
        return self.random.choice(self.world.clients)

    def _any_patterns(self) -> list[str]:
        return self.random.sample(PATTERNS, self.random.choice((1, 1, 2, 3)))

    def _patterns(self) -> list[str]:
        """Return patterns; often those of others, who then share what is made for them."""
        return self.random.choice((*self._favourites, self._any_patterns()))

    def _wire(self) -> Wire:
        """Return a wire, often that of others."""
        return self.random.choice((*self._wires, self.random.choice(STREAM_WIRES)))

    def _draft(self) -> Draft:
        pick = self.random.choice
        return Draft(pick(TOPICS), pick(SIZES), pick(KEYS), pick(TTLS))

    def _shown(self, given: object) -> object:
        return self.world.clients.index(given) if isinstance(given, Client) else given
