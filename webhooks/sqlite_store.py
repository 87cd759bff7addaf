"""
The store of webhooks in a file of the data folder, `webhooks.db`.

One thread writes. What is asked of it while a transaction is under way is one transaction together, with one
wait for the disk: dispatching, results and what an API wants. Each operation is undone by itself if it is
refused. Another thread reads, so that a long list holds nobody up.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from gateway.log import StoreUnavailable
from gateway.sqlite_file import Format, SqliteFile, cause
from gateway.sqlite_worker import Job, Turns, Worker
from webhooks.asking import Ask, AskBulk, Bulk, Operation, Request, Row
from webhooks.store import Store
from webhooks.tables import versions

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_FAILED: Final = 2.0
RETRY_CLOSED: Final = 5.0
"""Seconds after which a refused caller should try again."""

FEW_ROWS: Final = 16
"""So many are always one statement: what is asked of a driver costs more than what it says."""

_FIRST, *_LATER = versions("sqlite")

FORMAT: Final = Format(
    file="webhooks.db",
    what="store of webhooks",
    application_id=0x534C5731,  # "SLW1"
    version=1 + len(_LATER),
    schema=tuple(_FIRST),
    changes=tuple(map(tuple, _LATER)),
)


@dataclass(frozen=True, slots=True)
class _Write:
    """An operation that waits for its turn, and who waits for it."""

    operation: Operation[Any]
    future: asyncio.Future[Any]


class SqliteStore(Store):
    """
    The store in a SQLite file; see `Store` for what it promises.

    Args:
        path: the data folder; None keeps everything in memory and forgets it on close.
        shared: other processes have the same file open, and one holds its lock.
    """

    def __init__(self, path: Path | None, *, shared: bool = False) -> None:
        self._folder = path
        self._shared = shared
        self._worker = Worker("webhooks-writer")
        self._reading = self._worker if path is None else Worker("webhooks-reader")
        self._turns = Turns(self._worker, self._choose)
        self._file: SqliteFile | None = None
        self._reader: sqlite3.Connection | None = None
        self._waiting: list[_Write] = []
        self._closing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """
        Open or make the file; see `Store.start`.

        Raises:
            LogInUse: another process has it open.
            LogDamaged: it cannot be used; it was left untouched.
        """
        self._worker.start()
        if self._reading is not self._worker:
            self._reading.start()
        try:
            await self._worker.call(self._open)
        except BaseException:
            self._end_threads()
            raise

    async def close(self) -> None:
        """Finish what is under way and close; see `Store.close`."""
        if self._file is None and self._closing is None:
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._shut())
        await asyncio.shield(self._closing)

    async def _write(self, operation: Operation[T]) -> T:
        self._check()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Write(operation, future))
        self._turns.wake()
        return await future

    async def _read(self, operation: Operation[T]) -> T:
        self._check()
        connection = self._reader
        assert connection is not None
        try:
            return await self._reading.call(lambda: _run(operation, connection))
        except sqlite3.Error as error:
            raise _unavailable(error) from error

    def _check(self) -> None:
        if self._closing is not None or self._file is None:
            raise StoreUnavailable("the store is closed", RETRY_CLOSED)

    def _choose(self) -> Job | None:
        """Return the job that does what is waiting, if anything is."""
        writes, self._waiting = self._waiting, []
        if not writes or self._file is None:
            return None
        connection = self._file.connection

        def done(outcomes: list[Any] | None, error: Exception | None) -> None:
            if error is not None:
                outcomes = [_unavailable(error) if isinstance(error, sqlite3.Error) else error] * len(writes)
            for write, outcome in zip(writes, outcomes or (), strict=True):
                _settle(write.future, outcome)

        return Job(lambda: _transact(connection, [write.operation for write in writes]), done)

    async def _shut(self) -> None:
        await self._turns.finished()
        if self._reading is not self._worker:
            await self._reading.call(self._close_reader)
        await self._worker.call(self._release)
        self._end_threads()

    def _end_threads(self) -> None:
        self._worker.stop()
        if self._reading is not self._worker:
            self._reading.stop()

    # In the threads.

    def _open(self) -> None:
        self._file = file = SqliteFile(self._folder, FORMAT, shared=self._shared)
        self._reader = file.connection if self._folder is None else file.reader()

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _transact(connection: sqlite3.Connection, operations: list[Operation[Any]]) -> list[Any]:
    """Run operations in one transaction; return the outcome of each, which may be an exception."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if len(operations) == 1:
            outcomes = [_run(operations[0], connection)]  # it needs no part of the transaction for itself
        else:
            outcomes = [_attempt(connection, operation) for operation in operations]
        connection.execute("COMMIT")
    except sqlite3.Error:
        raise
    except Exception as error:  # noqa: BLE001  (it is the outcome)
        outcomes = [error]
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return outcomes


def _attempt(connection: sqlite3.Connection, operation: Operation[Any]) -> Any:
    """Run an operation; if it raises, undo it and return what it raised."""
    connection.execute("SAVEPOINT operation")
    try:
        outcome = _run(operation, connection)
    except sqlite3.Error:  # the whole transaction is in doubt
        raise
    except Exception as error:  # noqa: BLE001  (it is the outcome)
        connection.execute("ROLLBACK TO operation")
        outcome = error
    connection.execute("RELEASE operation")
    return outcome


def _run(operation: Operation[T], connection: sqlite3.Connection) -> T:
    """Answer what an operation asks until it returns."""
    try:
        request = next(operation)
        while True:
            request = operation.send(_answer(connection, request))
    except StopIteration as end:
        result: T = end.value
        return result


def _answer(connection: sqlite3.Connection, request: Request) -> list[Row]:
    if isinstance(request, Ask):
        given = [json.dumps(each) if isinstance(each, list) else each for each in request.given]
        return connection.execute(request.statement.sqlite, given).fetchall()
    if isinstance(request, AskBulk):
        _fill(connection, request.bulk, list(zip(*request.columns, strict=True)))
        return []
    rows: list[Row] = []
    for numbers in zip(*request.columns, strict=True):
        rows += connection.execute(request.each.sqlite, numbers).fetchall()
    return rows


def _fill(connection: sqlite3.Connection, bulk: Bulk, rows: list[Row]) -> None:
    """Give rows to a statement; of many, in parts of a few sizes, so that few statements are prepared."""
    done = 0
    while (left := len(rows) - done) > 0:
        size = left if left <= FEW_ROWS else min(Bulk.MOST, 1 << (left.bit_length() - 1))
        part = rows[done : done + size]
        connection.execute(bulk.sqlite(size), [value for row in part for value in row])
        done += size


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():  # whoever waited was cancelled
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _unavailable(error: sqlite3.Error) -> StoreUnavailable:
    """Return what callers are told of a failure; the log hears of it here."""
    log.warning("webhooks.store_failed: %s", cause(error))
    return StoreUnavailable(cause(error), RETRY_FAILED)
