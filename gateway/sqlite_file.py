"""
One SQLite file of ours in the data folder: locked, recognised, checked, and refused in a clear sentence.

The log and the store of durable subscriptions each keep one. What they share is here: a lock against a second
process, the recognition of damage, foreign files and newer versions *before anything is written*, the settings that
make a commit durable, and the words for what can go wrong later.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.log import LogDamaged

PAGE_BYTES = 8192
"""Measured: commits of 1 to 200 events cost the same CPU as with 4096, and deleting follows half as many pages."""

CHECKPOINT_PAGES = 500
"""4 MiB of write-ahead log per checkpoint: a stall of a few milliseconds; 16 MiB stalled commits by 50."""

WAL_BYTES = 16 * 1024 * 1024
"""The write-ahead log's file is cut back to this once a checkpoint has emptied it."""

CHECKED_BYTES = 256 * 1024 * 1024
"""Up to this size a file is checked on every start, not only after an unclean stop."""

_MAGIC = b"SQLite format 3\x00"
_PRIMARY = 0xFF  # an extended result code's low byte is the primary one (sqlite.org/rescode.html)
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class LogInUse(LogDamaged):
    """Another process has the data folder's file open. The start is refused."""


@dataclass(frozen=True, slots=True)
class Format:
    """What makes a SQLite file one of ours: its name, the number in its header, its version and its tables."""

    file: str
    what: str
    application_id: int
    version: int
    schema: tuple[str, ...]


class SqliteFile:
    """
    A file of ours, opened and locked; or, without a folder, the same tables in memory.

    Args:
        folder: the data folder, made if missing; None keeps everything in memory.
        form: which file it is.
        create: fills a new file, within the transaction that makes its tables.

    Raises:
        LogInUse: another process has it open.
        LogDamaged: it is damaged, foreign, newer than this program, or cannot be opened; it was left untouched.
    """

    def __init__(self, folder: Path | None, form: Format, create: Callable[[sqlite3.Connection], None]) -> None:
        self._form = form
        self._create = create
        self._lock: int | None = None
        self.path = None if folder is None else folder.resolve() / form.file
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._take_lock(self.path.with_suffix(".lock"))
                self._check_head(self.path)
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
        """Return a second connection that can only read; not for a file in memory."""
        assert self.path is not None
        return _connect(self.path.as_uri() + "?mode=ro")

    def refusal(self, why: str) -> LogDamaged:
        """Return the error that refuses the file, in one sentence with its name, the cause and what to do."""
        return LogDamaged(
            f"{self.path} is not usable as Sluicegate's {self._form.what}: {why}; "
            f"move {self._form.file}, {self._form.file}-wal and {self._form.file}-shm away, restore them from a "
            "backup, or give another --data folder"
        )

    def size(self) -> int:
        """Return the bytes the file and its write-ahead log take on the disk; 0 in memory."""
        if self.path is None:
            return 0
        return sum(_size(Path(f"{self.path}{suffix}")) for suffix in ("", "-wal"))

    def close(self) -> None:
        """Close the connection, which empties the write-ahead log, and let other processes in."""
        try:
            self.connection.close()
        finally:
            self._release_lock()

    def _take_lock(self, path: Path) -> None:
        """
        Lock the file for this process.

        The lock has a file of its own: SQLite's locks on the database are lost when any descriptor of it closes.
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

    def _check_head(self, path: Path) -> None:
        """Refuse what is no SQLite file without letting SQLite touch it. Empty is fine: a creation cut short."""
        if not path.exists():
            return
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
        if head and head != _MAGIC:
            raise self.refusal("it is not a SQLite database")

    def _opened(self) -> sqlite3.Connection:
        """Return the connection that writes, to a file that was checked or just made."""
        if self.path is None:
            connection = _connect("file::memory:")
            self._make(connection)
            return connection
        if _size(self.path) or _size(Path(f"{self.path}-wal")):
            self._inspect(self.path)
        connection = _connect(self.path.as_uri())
        try:
            self._configure(connection)
            if _is_new(connection):
                self._make(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _inspect(self, path: Path) -> None:
        """Recognise the file through a connection that cannot write to it, not even when it closes."""
        unclean = _size(Path(f"{path}-wal")) > 0  # a clean stop leaves none
        connection = _connect(path.as_uri() + "?mode=ro")
        try:
            self._recognise(connection)
            if unclean or _size(path) <= CHECKED_BYTES:
                found = _ask(connection, "PRAGMA quick_check(1)")
                if found != "ok":
                    raise self.refusal(f"it is damaged ({found})")
        finally:
            connection.close()

    def _recognise(self, connection: sqlite3.Connection) -> None:
        """Refuse another program's file, and one of a newer version of this program."""
        if _is_new(connection):
            return
        if _ask(connection, "PRAGMA application_id") != self._form.application_id:
            raise self.refusal("it belongs to another program")
        version = _ask(connection, "PRAGMA user_version")
        if int(version) > self._form.version:
            raise self.refusal(
                f"a newer Sluicegate made it (version {version}, this one knows {self._form.version})"
            )

    def _configure(self, connection: sqlite3.Connection) -> None:
        """Make commits durable (WAL with an fsync each) and keep the files bounded."""
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        mode = _ask(connection, "PRAGMA journal_mode=WAL")
        if mode != "wal":
            raise self.refusal("its file system cannot hold a write-ahead log")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")

    def _make(self, connection: sqlite3.Connection) -> None:
        """Make the tables in one transaction, so that a creation cut short leaves a file that counts as new."""
        connection.execute("BEGIN IMMEDIATE")
        for statement in self._form.schema:
            connection.execute(statement)
        self._create(connection)
        connection.execute(f"PRAGMA application_id={self._form.application_id}")
        connection.execute(f"PRAGMA user_version={self._form.version}")
        connection.execute("COMMIT")


def cause(error: sqlite3.Error) -> str:
    """Return in a few words why SQLite failed."""
    code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
    if code == sqlite3.SQLITE_FULL:
        return "the disk is full"
    if code in _DAMAGE:
        return f"it is damaged ({error})"
    if code == sqlite3.SQLITE_BUSY:
        return "another program holds it locked"
    return f"the disk refuses ({error})"


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether SQLite found the file itself broken."""
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY in _DAMAGE


def _connect(uri: str) -> sqlite3.Connection:
    """
    Connect in autocommit mode: a statement is a transaction unless BEGIN says otherwise.

    Connections are made by one thread and used by one at a time, not always the same one.
    """
    return sqlite3.connect(uri, timeout=5.0, isolation_level=None, check_same_thread=False, uri=True)


def _ask(connection: sqlite3.Connection, sql: str) -> int | str:
    """Return the single value that `sql` yields."""
    (row,) = connection.execute(sql).fetchall()
    value: int | str = row[0]
    return value


def _is_new(connection: sqlite3.Connection) -> bool:
    """Return whether nothing was ever stored: no table, no owner."""
    return _ask(connection, "SELECT count(*) FROM sqlite_schema") == 0 == _ask(connection, "PRAGMA application_id")


def _size(path: Path) -> int:
    """Return the size of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
