"""
Durable subscriptions: the cursor that each named consumer acknowledged last.

The store is a table with one row for each name, in a SQLite file beside the log. Acknowledgements come often
and only the latest of a name counts, so those that arrive while a commit is under way are merged into the
next.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from pathlib import Path
from typing import Protocol

import msgspec

from gateway.log import LogError, LogUnavailable
from gateway.sqlite_file import Format, SqliteFile, cause
from gateway.sqlite_worker import Job, Turns, Worker

log = logging.getLogger(__name__)

RETRY_FAILED = 2.0
RETRY_CLOSED = 5.0
"""Seconds after which a refused caller should try again."""

FORMAT = Format(
    file="store.db",
    what="store",
    application_id=0x534C5331,  # "SLS1"
    version=1,
    schema=("CREATE TABLE consumers (name TEXT PRIMARY KEY, cursor TEXT NOT NULL) WITHOUT ROWID",),
)


class ConsumersFull(LogError):
    """No further consumer can be remembered; those known go on as before."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"there are {limit} durable subscriptions already, which is the limit")
        self.limit = limit


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
            ValueError: the name has characters that cannot be printed, such as controls.
            ConsumersFull: (through the future) the name is new and there are too many.
            LogUnavailable: (through the future) it could not be made durable.
        """

    async def recall(self, name: str) -> str | None:
        """
        Return the cursor given last for a consumer, durable or about to be; None for an unknown name.

        Raises:
            LogUnavailable: the store cannot be read.
        """

    async def close(self) -> None:
        """Make everything given durable and close. Idempotent."""


class SqliteConsumers:
    """
    The store in the file `store.db`; see `Consumers` for what it promises.

    Args:
        path: the data folder; None keeps everything in memory and forgets it on close.
        max_consumers: so many names are remembered; acknowledgements of further ones are refused.
    """

    def __init__(self, path: Path | None, *, max_consumers: int = 100_000) -> None:
        self._folder = path
        self._max = max_consumers
        self._worker = Worker("store")
        self._turns = Turns(self._worker, self._choose)
        self._file: SqliteFile | None = None
        self._count = 0  # names stored; the worker's
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None
        self._given: dict[str, str] = {}  # waits for the next commit
        self._storing: dict[str, str] = {}  # is being committed
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}  # for the next commit

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
        self._loop = asyncio.get_running_loop()

    def remember(self, name: str, cursor: str) -> asyncio.Future[None]:
        """Store a consumer's cursor; see `Consumers.remember`."""
        if not name.isprintable():  # SQLite's JSON ends at a NUL, and a lone surrogate has no UTF-8
            raise ValueError("the name of a consumer has characters that cannot be printed")
        assert self._loop is not None, "the store was not started"
        future: asyncio.Future[None] = self._loop.create_future()
        if self._closing is not None:
            future.set_exception(LogUnavailable("the store is closed", RETRY_CLOSED))
            return future
        self._given[name] = cursor
        self._waiting.setdefault(name, []).append(future)
        self._turns.wake()
        return future

    async def recall(self, name: str) -> str | None:
        """Return the cursor given last for a consumer; see `Consumers.recall`."""
        cursor = self._given.get(name) or self._storing.get(name)
        if cursor is not None:
            return cursor
        if self._loop is None or self._closing is not None:
            raise LogUnavailable("the store is closed", RETRY_CLOSED)
        try:
            return await self._worker.call(lambda: self._find(name))
        except sqlite3.Error as error:
            raise LogUnavailable(cause(error), RETRY_FAILED) from error

    async def close(self) -> None:
        """Store what was given and close; see `Consumers.close`."""
        if self._loop is None:
            return
        if self._closing is None:
            self._closing = self._loop.create_task(self._shut())
        await asyncio.shield(self._closing)

    def _choose(self) -> Job | None:
        """Return the job that stores what was given, if anything was."""
        if not self._given:
            return None
        given, waiting = self._given, self._waiting
        self._given, self._waiting, self._storing = {}, {}, given

        def done(refused: set[str] | None, error: Exception | None) -> None:
            self._storing = {}
            for name, futures in waiting.items():
                full = refused is not None and name in refused
                _settle(futures, ConsumersFull(self._max) if full else error)

        return Job(lambda: self._store(given), done)

    async def _shut(self) -> None:
        await self._turns.finished()
        await self._worker.call(self._release)
        self._worker.stop()

    # In the worker's thread.

    def _open(self) -> None:
        self._file = file = SqliteFile(self._folder, FORMAT, lambda _connection: None)
        try:
            ((self._count,),) = file.connection.execute("SELECT count(*) FROM consumers").fetchall()
        except sqlite3.Error as error:
            raise file.refusal(cause(error)) from error

    def _release(self) -> None:
        """Close the file if it is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _store(self, given: dict[str, str]) -> set[str]:
        """
        Store cursors in one transaction; return the names for which there was no room.

        They travel as one JSON text: a statement for each would win back the interpreter as often.
        """
        assert self._file is not None
        execute = self._file.connection.execute
        ((found,),) = execute(
            """
            SELECT json_group_array(value) FROM json_each(?)
            WHERE NOT EXISTS (SELECT 1 FROM consumers WHERE name = value)
            """,
            (_json(list(given)),),
        ).fetchall()
        new: list[str] = msgspec.json.decode(found)
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


def _settle(futures: list[asyncio.Future[None]], error: Exception | None) -> None:
    """Tell those who wait what came of it."""
    if isinstance(error, sqlite3.Error):
        error = LogUnavailable(cause(error), RETRY_FAILED)
    for future in futures:
        if future.done():  # whoever waited was cancelled
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
