"""Stores in the test's own process, on a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from gateway.postgres.address import Address
from gateway.postgres.consumers import PART, PostgresConsumers
from gateway.postgres.database import Database
from gateway.postgres.schema import Part

DEADLINE: Final = 30.0
"""Seconds for whatever a test waits for."""


@asynccontextmanager
async def opened(
    url: str, parts: Sequence[Part] = (PART,), *, connections: int = 2
) -> AsyncIterator[Database]:
    """Start a store and close it at the end."""
    database = Database(Address.parse(url), parts, connections=connections)
    try:
        await database.start()
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def consumers(url: str, *, max_consumers: int = 100_000) -> AsyncIterator[PostgresConsumers]:
    """Open a store of cursors, with a database of its own, as a replica has it."""
    async with opened(url) as database:
        found = PostgresConsumers(database, max_consumers=max_consumers)
        await found.start()
        try:
            yield found
        finally:
            await found.close()


async def usable(database: Database, expected: Callable[[str], bool] = lambda trouble: not trouble) -> None:
    """Wait until a store can be used; or until its trouble is what is expected."""
    deadline = time.monotonic() + DEADLINE
    while not expected(database.trouble() or ""):
        assert time.monotonic() < deadline, f"its trouble is {database.trouble()}"
        await asyncio.sleep(0.02)
