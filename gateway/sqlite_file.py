"""
One SQLite file of ours in the data folder: locked, recognised, checked, and refused in a clear sentence.

The log, the store of durable subscriptions and that of webhooks each keep one. What they share is here: a
lock against a second process, the recognition of damage, foreign files and newer versions *before anything is
written*, the settings that make a commit durable, and the words for what can go wrong later.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.log import LogDamaged

PAGE_BYTES = 4096
"""A small commit writes two pages. Larger pages cost the same CPU for any size of commit (measured)."""

CHECKPOINT_PAGES = 1000
"""4 MiB of write-ahead log per checkpoint stall a commit by milliseconds (measured), 16 MiB by up to 50."""

WAL_BYTES = 16 * 1024 * 1024
"""The write-ahead log's file is cut back to this once a checkpoint has emptied it."""

CHECKED_BYTES = 256 * 1024 * 1024
"""Up to this size a file is checked on every start, a larger one only after an unclean stop."""

_MAGIC = b"SQLite format 3\x00"
_PRIMARY = 0xFF  # the low byte of an extended result code (sqlite.org/rescode.html)


class LogInUse(LogDamaged):
    """Another process has the data folder's file open. The start is refused."""


@dataclass(frozen=True, slots=True)
class Format:
    """
    What makes a SQLite file one of ours: its name, the numbers in its header and its tables.

    Attributes:
        file: its name in the data folder.
        what: what it is, in messages.
        application_id: marks it as ours.
        version: of its tables.
        schema: makes the tables of version 1.
        changes: statements that make each later version from the one before.
    """

    file: str
    what: str
    application_id: int
    version: int
    schema: tuple[str, ...]
    changes: tuple[tuple[str, ...], ...] = ()


class SqliteFile:
    """
    A file of ours, opened and locked; or, without a folder, the same tables in memory.

    Args:
        folder: the data folder, made if missing; None keeps everything in memory.
        form: which file it is.
        fill: puts the first rows into a new file, within the transaction that makes its tables.
        shared: it is opened beside other processes, for one that has looked at it and holds the lock
            (`leave_open`).

    Raises:
        LogInUse: another process has it open.
        LogDamaged: it is damaged, foreign, of a newer version, or cannot be opened; it was left untouched.
    """

    def __init__(
        self,
        folder: Path | None,
        form: Format,
        fill: Callable[[sqlite3.Connection], None] = lambda _connection: None,
        *,
        shared: bool = False,
    ) -> None:
        self._form = form
        self._fill = fill
        self._shared = shared
        self._lock: int | None = None  # a descriptor
        self.path = None if folder is None else folder.resolve() / form.file
        try:
            self.connection = self._opened()
        except sqlite3.Error as error:
            self._release_lock()
            raise self.refusal(cause(error)) from error
        except OSError as error:
            self._release_lock()
            raise self.refusal(f"it cannot be opened ({error.strerror})") from error
        except BaseException:
            self._release_lock()
            raise

    def reader(self) -> sqlite3.Connection:
        """Return a second connection, which can only read; not for a file in memory."""
        assert self.path is not None
        return _connect(self.path.as_uri() + "?mode=ro")

    def refusal(self, why: str) -> LogDamaged:
        """Return the error that refuses the file: one sentence with its name, the cause and what to do."""
        name = self._form.file
        return LogDamaged(
            f"{self.path} cannot be used as the {self._form.what}: {why}; move {name} and {name}-wal away, "
            "restore them from a backup, or give another --data folder"
        )

    def size(self) -> int:
        """Return the bytes that the file and its write-ahead log take on the disk; 0 in memory."""
        if self.path is None:
            return 0
        return _size(self.path) + _size(_wal(self.path))

    def leave_open(self) -> None:
        """Close the connection and keep the lock, for processes that open the file `shared`."""
        self.connection.close()

    def close(self) -> None:
        """Close the connection, which empties the write-ahead log, and let other processes in."""
        try:
            self.connection.close()
        finally:
            self._release_lock()

    def _opened(self) -> sqlite3.Connection:
        """Return the connection that writes, to a file that was checked or just made."""
        if self.path is None:
            connection = _connect("file::memory:")
            self._make(connection)
            return connection
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._shared:
            self._take_lock(self.path.with_suffix(".lock"))
            if _size(self.path) or _size(_wal(self.path)):
                self._inspect(self.path)
        connection = _connect(self.path.as_uri())
        try:
            self._configure(connection)
            if _is_new(connection):
                self._make(connection)
            else:
                self._bring(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _take_lock(self, path: Path) -> None:
        """
        Lock the file for this process.

        The lock has a file of its own, because closing any descriptor of the database loses SQLite's locks on
        it.
        """
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LogInUse(
                f"{self.path} is in use by another process; stop that one, or give another --data folder"
            ) from None

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _inspect(self, path: Path) -> None:
        """
        Recognise and check the file through a connection that cannot write, not even when it closes.

        A file without a byte is fine: its creation was cut short.
        """
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) not in {_MAGIC, b""}:
                raise self.refusal("it is no SQLite database")
        unclean = _size(_wal(path)) > 0  # a clean stop leaves none
        connection = _connect(path.as_uri() + "?mode=ro")
        try:
            self._recognise(connection)
            if unclean or _size(path) <= CHECKED_BYTES:
                found = _ask(connection, "PRAGMA quick_check(1)")
                if found != "ok":
                    raise self.refusal(f"it is damaged ({' '.join(str(found).split())})")
        finally:
            connection.close()

    def _recognise(self, connection: sqlite3.Connection) -> None:
        """Refuse another program's file, and one that a newer version of this program made."""
        if _is_new(connection):
            return
        if _ask(connection, "PRAGMA application_id") != self._form.application_id:
            raise self.refusal("it belongs to another program")
        version = _ask(connection, "PRAGMA user_version")
        if version > self._form.version:
            raise self.refusal(f"a newer Sluicegate made it (format {version}, known: {self._form.version})")

    def _configure(self, connection: sqlite3.Connection) -> None:
        """Make commits durable, each with a wait for the disk, and keep the files bounded."""
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        if _ask(connection, "PRAGMA journal_mode=WAL") != "wal":
            raise self.refusal("its file system cannot hold a write-ahead log")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
        # Debian's SQLite overwrites what it deletes, which made retention four times as dear.
        connection.execute("PRAGMA secure_delete=OFF")

    def _make(self, connection: sqlite3.Connection) -> None:
        """Make the tables in one transaction, so that a file whose creation was cut short counts as new."""
        connection.execute("BEGIN IMMEDIATE")
        for statement in self._form.schema:
            connection.execute(statement)
        self._fill(connection)
        connection.execute(f"PRAGMA application_id={self._form.application_id}")
        self._change(connection, 1)
        connection.execute("COMMIT")

    def _bring(self, connection: sqlite3.Connection) -> None:
        """Bring the tables of an older version to this one, in one transaction."""
        version = _ask(connection, "PRAGMA user_version")
        if version < self._form.version:
            connection.execute("BEGIN IMMEDIATE")
            self._change(connection, version)
            connection.execute("COMMIT")

    def _change(self, connection: sqlite3.Connection, version: int) -> None:
        """Make the newest version from the one that is there."""
        for statements in self._form.changes[version - 1 :]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version={self._form.version}")


@contextmanager
def hold(folder: Path, form: Format) -> Iterator[None]:
    """
    Keep a file of a folder for processes that open it `shared`, and make it if there is none.

    Args:
        folder: the data folder.
        form: which file it is; there is nothing in a new one but what its tables come with.

    Raises:
        LogInUse: another process has it open.
        LogDamaged: it cannot be used; it was left untouched.
    """
    file = SqliteFile(folder, form)
    try:
        file.leave_open()
        yield
    finally:
        file.close()


def cause(error: sqlite3.Error) -> str:
    """Return in a few words why SQLite failed."""
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return "the disk is full"
    if is_damage(error):
        return f"it is damaged ({error})"
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return "another program holds it locked"
    return f"SQLite failed ({error})"


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether SQLite found the file itself broken."""
    return _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 for what Python's module raised by itself."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & _PRIMARY


STATEMENTS = 256
"""Prepared statements that a connection keeps: those about several rows have a text for each number."""


def _connect(uri: str) -> sqlite3.Connection:
    """
    Connect in autocommit mode: a statement is a transaction unless BEGIN says otherwise.

    A connection is used by one thread at a time, but in memory not always by the same one.
    """
    return sqlite3.connect(
        uri,
        timeout=5.0,
        isolation_level=None,
        check_same_thread=False,
        uri=True,
        cached_statements=STATEMENTS,
    )


def _ask(connection: sqlite3.Connection, sql: str) -> Any:
    """Return the single value that `sql` yields."""
    ((value,),) = connection.execute(sql).fetchall()
    return value


def _is_new(connection: sqlite3.Connection) -> bool:
    """Return whether nothing was ever stored: no table, no owner."""
    tables = _ask(connection, "SELECT count(*) FROM sqlite_schema")
    return bool(tables == 0 and _ask(connection, "PRAGMA application_id") == 0)


def _wal(path: Path) -> Path:
    """Return where SQLite keeps the write-ahead log of a database."""
    return path.with_name(path.name + "-wal")


def _size(path: Path) -> int:
    """Return the size of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
