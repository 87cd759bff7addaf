"""
Durable subscriptions: the cursor that each named consumer acknowledged last.

Where they are kept is for others to say: `gateway.sqlite_consumers` for a gateway on its own,
`gateway.postgres.consumers` for replicas that share them. Acknowledgements come often and only the latest of
a name counts, so both merge those that arrive while a commit is under way into the next (`gateway.batches`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.log import LogError

MAX_CONSUMERS: Final = 100_000
"""Names that are remembered: who makes one up for every request must not fill the disk."""

MAX_NAME: Final = 512
"""Characters of a name: what an index takes in any database, whoever asks for it."""

RETRY_FAILED: Final = 2.0
RETRY_CLOSED: Final = 5.0
"""Seconds after which a refused caller should try again."""


class ConsumersFull(LogError):
    """No further consumer can be remembered; those known go on as before."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"there are {limit} durable subscriptions already, which is the limit")
        self.limit = limit
        self.told = str(self)


@dataclass(frozen=True, slots=True)
class ConsumersStatistics:
    """What the store of cursors did since it started."""

    commits: int
    failures: int  # commits that failed
    commit_seconds: float  # how long the last one took


class Consumers(Protocol):
    """A durable map from the name of a consumer to the cursor it acknowledged last."""

    async def start(self) -> None:
        """
        Open the store.

        Raises:
            LogDamaged: it cannot be used.
        """

    def remember(self, name: str, cursor: str) -> asyncio.Future[None]:
        """
        Store a consumer's cursor; the future resolves when it, or a later one, is durable.

        Raises:
            ValueError: the name is longer than `MAX_NAME`, or cannot be printed.
            ConsumersFull: (through the future) the name is new and there are too many.
            StoreUnavailable: (through the future) it could not be made durable.
        """

    async def recall(self, name: str) -> str | None:
        """
        Return the cursor given last for a consumer, durable or about to be; None for an unknown name.

        Raises:
            StoreUnavailable: the store cannot be read.
        """

    def statistics(self) -> ConsumersStatistics:
        """Return what was done."""

    async def close(self) -> None:
        """Make everything given durable and close. Idempotent."""


def check_name(name: str) -> None:
    """
    Refuse a name that no store can keep: others' cursors are in the same commit.

    Raises:
        ValueError: it is too long, or has what cannot be printed, such as a NUL or a lone surrogate.
    """
    if len(name) > MAX_NAME:
        raise ValueError(f"the name of a consumer has more than {MAX_NAME} characters")
    if not name.isprintable():
        raise ValueError("the name of a consumer has characters that cannot be printed")
