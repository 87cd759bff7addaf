"""The store of webhooks in the PostgreSQL database that replicas share."""

from __future__ import annotations

from typing import Final, TypeVar

from gateway.postgres.database import Database
from gateway.postgres.schema import Connection, Part
from webhooks.asking import Ask, AskBulk, Operation, Request, Row
from webhooks.store import Store
from webhooks.tables import versions

T = TypeVar("T")

PART: Final = Part("webhooks", tuple(";\n".join(version) for version in versions("postgres")))

WRITE_SECONDS: Final = 15.0
"""How long a write may take: what it changes may be much."""


class PostgresStore(Store):
    """
    The store in PostgreSQL; see `Store` for what it promises.

    Args:
        database: the store that replicas share, with the part `PART`; whoever made it starts and closes it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(self) -> None:
        """Nothing is to be done; see `Store.start`."""

    async def close(self) -> None:
        """Nothing is to be done; see `Store.close`."""

    async def _write(self, operation: Operation[T]) -> T:
        async def work(connection: Connection) -> T:
            async with connection.transaction():
                return await _run(operation, connection)

        return await self._database.run(work, WRITE_SECONDS)

    async def _read(self, operation: Operation[T]) -> T:
        return await self._database.run(lambda connection: _run(operation, connection))


async def _run(operation: Operation[T], connection: Connection) -> T:
    """Answer what an operation asks until it returns."""
    try:
        request = next(operation)
        while True:
            request = operation.send(await _answer(connection, request))
    except StopIteration as end:
        result: T = end.value
        return result


async def _answer(connection: Connection, request: Request) -> list[Row]:
    if isinstance(request, Ask):
        return await connection.fetch(request.statement.postgres, *request.given)
    if isinstance(request, AskBulk):
        return await connection.fetch(request.bulk.postgres, *request.columns)
    return await connection.fetch(request.each.postgres, *request.columns)
