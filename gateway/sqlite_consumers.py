"""The cursors of durable subscriptions in `store.db`: a table with one row for each name, beside the log."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from gateway.auth import tables as access
from gateway.batches import Batches
from gateway.consumers import (
    MAX_CONSUMERS,
    RETRY_CLOSED,
    RETRY_FAILED,
    ConsumersFull,
    ConsumersStatistics,
    check_name,
)
from gateway.log import StoreUnavailable
from gateway.sqlite_file import Format, SqliteFile, cause
from gateway.sqlite_worker import Job, Worker

log = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = Format(
    file="store.db",
    what="store",
    application_id=0x534C5331,  # "SLS1"
    version=2,
    schema=("CREATE TABLE consumers (name TEXT PRIMARY KEY, cursor TEXT NOT NULL) WITHOUT ROWID",),
    changes=(access.SCHEMA,),
)


class SqliteConsumers:
    """
    The store in the file `store.db`; see `Consumers` for what it promises.

    Args:
        path: the data folder; None keeps everything in memory and forgets it on close.
        max_consumers: so many names are remembered; acknowledgements of further ones are refused.
        shared: other processes have the same file open, and one holds its lock (`sqlite_file.hold`).
    """

    def __init__(
        self, path: Path | None, *, max_consumers: int = MAX_CONSUMERS, shared: bool = False
    ) -> None:
        self._folder = path
        self._max = max_consumers
        self._shared = shared
        self._worker = Worker("store")
        self._storing: Batches[str, None] = Batches(self._commit)
        self._file: SqliteFile | None = None
        self._count = 0  # names stored; the thread's
        self._closing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """
        Open or make the store; see `Consumers.start`.

        Raises:
            LogInUse: another process has it open.
            LogDamaged: it cannot be used; it was left untouched.
        """
        self._worker.start()
        try:
            await self._worker.call(self._open)
        except BaseException:
            self._worker.run(Job(self._release, lambda _result, _error: None))
            self._worker.stop()
            raise

    def remember(self, name: str, cursor: str) -> asyncio.Future[None]:
        """Store a consumer's cursor; see `Consumers.remember`."""
        check_name(name)
        if self._closing is not None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.set_exception(StoreUnavailable("the store is closed", RETRY_CLOSED))
            return future
        return self._storing.give(name, cursor)

    async def recall(self, name: str) -> str | None:
        """Return the cursor given last for a consumer; see `Consumers.recall`."""
        if (cursor := self._storing.pending(name)) is not None:
            return cursor
        if self._closing is not None:
            raise StoreUnavailable("the store is closed", RETRY_CLOSED)
        try:
            return await self._worker.call(lambda: self._find(name))
        except sqlite3.Error as error:
            raise _unavailable(error) from error

    def statistics(self) -> ConsumersStatistics:
        """Return what was done."""
        return ConsumersStatistics(self._storing.done, self._storing.failures, self._storing.seconds)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """
        Have something done with the file, in its thread: the tables of others are in it as well.

        Raises:
            StoreUnavailable: it is closed.
            sqlite3.Error: it failed.
        """
        if self._closing is not None:
            raise StoreUnavailable("the store is closed", RETRY_CLOSED)

        def job() -> T:
            assert self._file is not None
            return work(self._file.connection)

        return await self._worker.call(job)

    async def close(self) -> None:
        """Store what was given and close; see `Consumers.close`."""
        if self._file is None and self._closing is None:
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._shut())
        await asyncio.shield(self._closing)

    async def _commit(self, given: dict[str, str]) -> dict[str, Exception]:
        """Have cursors stored; return the names for which there was no room."""
        try:
            refused = await self._worker.call(lambda: self._store(given))
        except sqlite3.Error as error:
            raise _unavailable(error) from error
        return {name: ConsumersFull(self._max) for name in refused}

    async def _shut(self) -> None:
        await self._storing.finished()
        await self._worker.call(self._release)
        self._worker.stop()

    # In the worker's thread.

    def _open(self) -> None:
        self._file = file = SqliteFile(self._folder, FORMAT, shared=self._shared)
        try:
            self._recount(file)
        except sqlite3.Error as error:
            raise file.refusal(cause(error)) from error

    def _release(self) -> None:
        """Close the file if it is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _recount(self, file: SqliteFile) -> None:
        ((self._count,),) = file.connection.execute("SELECT count(*) FROM consumers").fetchall()

    def _store(self, given: dict[str, str]) -> set[str]:
        """Store cursors in one transaction; return the names for which there was no room."""
        assert self._file is not None
        if not self._shared:
            return self._put(given, self._file)
        connection = self._file.connection
        connection.execute("BEGIN IMMEDIATE")  # from here on no other process writes
        try:
            refused = self._put(given, self._file)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        return refused

    def _put(self, given: dict[str, str], file: SqliteFile) -> set[str]:
        """
        Write cursors; return the names for which there was no room.

        They travel as one JSON text: a statement for each would win back the interpreter as often.
        """
        execute = file.connection.execute
        ((found,),) = execute(
            """
            SELECT json_group_array(value) FROM json_each(?)
            WHERE NOT EXISTS (SELECT 1 FROM consumers WHERE name = value)
            """,
            (_json(list(given)),),
        ).fetchall()
        new: list[str] = msgspec.json.decode(found)
        if new and self._shared:
            self._recount(file)
        refused = set(new[max(0, self._max - self._count) :])
        kept = [(name, cursor) for name, cursor in given.items() if name not in refused]
        if kept:
            execute(
                """
                INSERT INTO consumers
                SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?) WHERE true
                ON CONFLICT (name) DO UPDATE SET cursor = excluded.cursor
                """,
                (_json(kept),),
            )
            self._count += len(new) - len(refused)
        return refused

    def _find(self, name: str) -> str | None:
        """Return a stored cursor."""
        assert self._file is not None
        rows: list[tuple[str]]
        rows = self._file.connection.execute(
            "SELECT cursor FROM consumers WHERE name = ?", (name,)
        ).fetchall()
        return rows[0][0] if rows else None


def _unavailable(error: sqlite3.Error) -> StoreUnavailable:
    """Return what callers are told of a failure; the log hears of it here."""
    log.warning("store.failed: %s", cause(error))
    return StoreUnavailable(cause(error), RETRY_FAILED)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
