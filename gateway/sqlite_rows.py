"""
The log's table: one row for each group commit, or for each part of a large one.

Why not a row per event: Python's sqlite3 lets go of the interpreter at every step and has to win it back, which on
a busy event loop takes up to the switch interval (5 ms). One INSERT per event pays that per event, one row per commit
pays it once. The same holds for reading, so small rows are fetched many at a time, joined into one value.

A row's events are a MessagePack array of arrays. `crc` covers body and columns, so wrong bytes are never taken
for events. `offset` counts the bytes of all rows that were ever before it: the difference of two is the size of what lies
between, without adding up.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from secrets import choice
from typing import Any
from zlib import crc32

import msgspec

from fanout.cursor import EPOCH_ALPHABET, EPOCH_LENGTH
from fanout.event import OVERHEAD_BYTES, Event
from gateway.log import LogDamaged
from gateway.sqlite_file import Format

ROW_BYTES = 256 * 1024
"""A row holds about so many bytes at most, unless one event alone is larger: what is read and decoded at once."""

BLOCK_BYTES = ROW_BYTES
BLOCK_ROWS = 512
"""Small rows are read together until they make up a block of so many bytes or rows."""

TRIM_BYTES = 4 * 1024 * 1024
TRIM_ROWS = 1000
"""One step of retention deletes at most so much: a few milliseconds."""

FORMAT = Format(
    file="log.db",
    what="log",
    application_id=0x534C4731,  # "SLG1"
    version=1,
    schema=(
        "CREATE TABLE log (epoch TEXT, floor INTEGER, head INTEGER, tag INTEGER, time INTEGER, size INTEGER)",
        "CREATE TABLE batches (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, time INTEGER NOT NULL,"
        " offset INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL)",
        "CREATE INDEX batches_time ON batches (time)",
    ),
)

_COLUMNS = "first, last, time, offset, crc"
_Row = tuple[int, int, int, int, int, bytes]
_Fields = tuple[str, bytes, int, int, str | None, int, str | None]

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[_Fields])
_CRC_SLICE = 4096


@dataclass(frozen=True, slots=True)
class End:
    """The end of the log: what the next append builds on. All zero for a log that never held an event."""

    head: int
    tag: int
    time: int
    size: int  # bytes of all rows ever stored


@dataclass(frozen=True, slots=True)
class Limits:
    """How long events are kept; 0 is no limit."""

    age_ms: int
    bytes: int
    events: int


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What a step of retention did: the first position retained now, and whether more can be deleted at once."""

    first: int
    more: bool


def memory_of(events: list[Event]) -> int:
    """Return the bytes that events take in memory."""
    return sum([len(event.body) for event in events]) + OVERHEAD_BYTES * len(events)


def create(connection: sqlite3.Connection) -> None:
    """Fill a new file: the log gets the name by which its cursors are known."""
    epoch = "".join(choice(EPOCH_ALPHABET) for _ in range(EPOCH_LENGTH))
    connection.execute("INSERT INTO log VALUES (?, 1, 0, 0, 0, 0)", (epoch,))


class Rows:
    """The table behind one connection, used by one thread at a time. Its errors are sqlite3's and LogDamaged."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection = connection
        self._name = name  # of the file, for errors

    def epoch(self) -> str:
        """Return the log's name."""
        return str(self._one("SELECT epoch FROM log")[0])

    def floor(self) -> int:
        """Return the first retained position that was last written down."""
        return int(self._one("SELECT floor FROM log")[0])

    def end(self) -> End:
        """Return where the log ends: at its newest row, or where retention left it when it removed all rows."""
        end = End(*self._one("SELECT head, tag, time, size FROM log"))
        newest = self._fetch(f"SELECT {_COLUMNS}, body FROM batches ORDER BY first DESC LIMIT 1")
        if not newest:
            return end
        events = self._decoded(newest[0])
        _, last, time, offset, _, body = newest[0]
        return End(last, events[-1].tag, time, offset + len(body))

    def insert(self, end: End, events: list[Event]) -> End:
        """
        Store events behind `end` in one transaction; return the new end. Their times are made not to decrease.

        One statement, whatever the number of rows: in autocommit mode that is the transaction, with one wait for the disk.
        """
        values: list[int | bytes] = []
        time, size, first = end.time, end.size, end.head + 1
        for part in _parts(events):
            time = _monotonic(part, time)
            body = _encoded(part)
            last = first + len(part) - 1
            values += (first, last, time, size, _crc(first, last, time, size, body), body)
            size += len(body)
            first = last + 1
        marks = ",".join(["(?,?,?,?,?,?)"] * (len(values) // 6))
        self._connection.execute(f"INSERT INTO batches VALUES {marks}", values)
        return End(first - 1, events[-1].tag, time, size)

    def block(self, position: int, before: int) -> list[Event]:
        """
        Return the events of the row that holds `position`, or follows it, and of the next rows while the block is small.

        Only rows that begin before the position `before` count. Empty if there is none.

        Raises:
            LogDamaged: the first of these rows is damaged. A later one ends the block.
        """
        found = self._row_at(position)
        if found is None or found[0] >= before:
            return []
        events = self._decoded(found)
        room = BLOCK_BYTES - len(found[5])
        if room > BLOCK_BYTES // 2:
            events += self._following(found, before, room)
        return events

    def newest(self, max_bytes: int) -> list[Event]:
        """Return the newest events that take at most `max_bytes` in memory; oldest of them first."""
        parts: list[list[Event]] = []
        room = max_bytes
        rows = self._connection.execute(f"SELECT {_COLUMNS}, body FROM batches ORDER BY first DESC")
        for row in rows:
            events = self._decoded(row)
            parts.append(_newest(events, room))
            room -= memory_of(events)
            if room <= 0:
                break
        rows.close()
        return [event for part in reversed(parts) for event in part]

    def before_time(self, time_ms: int) -> int | None:
        """Return the position of the last event older than `time_ms`; None if every event stored is."""
        found = self._fetch(
            f"SELECT {_COLUMNS}, body FROM batches WHERE time >= ? ORDER BY time, first LIMIT 1", (time_ms,)
        )
        if not found:
            return None
        try:
            older = sum(event.time < time_ms for event in self._decoded(found[0]))
        except LogDamaged:
            older = 0  # early rather than never: whoever reads there is told
        return int(found[0][0]) - 1 + older

    def trim(self, end: End, limits: Limits, now: int, floor: int) -> Trimmed:
        """
        Take one step of retention: find the first position to be retained, delete some of what lies before.

        By count and by age it is exact to the event, by bytes to the row; the newest row stays whatever its size.
        """
        first = max(floor, self._first_retained(end, limits, now))
        (oldest,) = self._one("SELECT min(first) FROM batches")
        if oldest is None:
            return Trimmed(first, more=False)
        cut = self._cut(oldest, end, limits, first)
        if cut is None:
            return Trimmed(first, more=False)
        first = max(first, cut + 1)
        self._delete(cut, end, first)
        return Trimmed(first, more=True)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def save(self, end: End, floor: int) -> None:
        """Write down where the log begins and ends."""
        self._connection.execute(
            "UPDATE log SET floor = ?, head = ?, tag = ?, time = ?, size = ?",
            (floor, end.head, end.tag, end.time, end.size),
        )

    def _first_retained(self, end: End, limits: Limits, now: int) -> int:
        """Return the first position that count and age leave."""
        first = 1
        if limits.events:
            first = end.head - limits.events + 1
        if limits.age_ms:
            older = self.before_time(now - limits.age_ms)
            first = max(first, (end.head if older is None else older) + 1)
        return first

    def _cut(self, oldest: int, end: End, limits: Limits, first: int) -> int | None:
        """Return the last position of the rows that this step deletes, None if there is nothing to delete."""
        spare = end.size - limits.bytes if limits.bytes else 0  # rows that begin before it are too much
        (cut,) = self._one(
            "WITH step AS MATERIALIZED (SELECT last, offset FROM batches WHERE first >= ? ORDER BY first LIMIT ?)"
            " SELECT max(last) FROM step WHERE offset < (SELECT min(offset) FROM step) + ?"
            " AND (last < ? OR (offset < ? AND last < ?))",
            (oldest, TRIM_ROWS, TRIM_BYTES, first, spare, end.head),
        )
        return None if cut is None else int(cut)

    def _delete(self, cut: int, end: End, floor: int) -> None:
        """Delete the rows up to `cut`; in the same transaction write down the end, which may be in no row any more."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.execute("DELETE FROM batches WHERE first <= ?", (cut,))
            self.save(end, floor)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _row_at(self, position: int) -> _Row | None:
        """Return the row that holds `position`, or the first one behind it."""
        for sql in (
            f"SELECT {_COLUMNS}, body FROM batches WHERE first <= ? ORDER BY first DESC LIMIT 1",
            f"SELECT {_COLUMNS}, body FROM batches WHERE first > ? ORDER BY first LIMIT 1",
        ):
            found = self._fetch(sql, (position,))
            if found and found[0][1] >= position:
                return found[0]
        return None

    def _following(self, row: _Row, before: int, room: int) -> list[Event]:
        """Return the events of the rows behind `row` that fit into `room` bytes, up to a damaged one."""
        end = row[3] + len(row[5])
        (text,) = self._one(
            "WITH step AS MATERIALIZED"
            " (SELECT first AS f, offset AS o FROM batches WHERE first > ? AND first < ? ORDER BY first LIMIT ?)"
            " SELECT group_concat(printf('%d %d %d %d %d %s', first, last, time, offset, crc, hex(body)))"
            " FROM step JOIN batches ON first = f WHERE o + length(body) < ?",
            (row[0], before, BLOCK_ROWS, end + room),
        )
        events: list[Event] = []
        try:
            for found in _split(text):
                events += self._decoded(found)
        except LogDamaged:
            pass  # the next block begins with it, and says so
        return events

    def _decoded(self, row: _Row) -> list[Event]:
        """
        Return a row's events.

        Raises:
            LogDamaged: the row is not what was written.
        """
        first, last, time, offset, crc, body = row
        if _crc(first, last, time, offset, body) != crc:
            raise LogDamaged(f"{self._name} is damaged: the events {first} to {last} fail their checksum")
        try:
            fields = _DECODER.decode(body)
        except msgspec.MsgspecError as error:
            raise LogDamaged(f"{self._name} is damaged: the events {first} to {last} are unreadable") from error
        return [Event(*values, position) for position, values in enumerate(fields, first)]

    def _fetch(self, sql: str, values: tuple[int, ...] = ()) -> list[_Row]:
        return self._connection.execute(sql, values).fetchall()

    def _one(self, sql: str, values: tuple[int, ...] = ()) -> tuple[Any, ...]:
        (row,) = self._connection.execute(sql, values).fetchall()
        return row  # type: ignore[no-any-return]


def _encoded(events: list[Event]) -> bytes:
    return _ENCODER.encode([(e.topic, e.body, e.time, e.tag, e.key, e.expires, e.given_id) for e in events])


def _crc(first: int, last: int, time: int, offset: int, body: bytes) -> int:
    """Return a row's checksum, taken in slices: crc32 lets go of the interpreter for more than 5 KB."""
    crc = crc32(b"%d %d %d %d" % (first, last, time, offset))
    if len(body) <= _CRC_SLICE:
        return crc32(body, crc)
    view = memoryview(body)
    for start in range(0, len(body), _CRC_SLICE):
        crc = crc32(view[start : start + _CRC_SLICE], crc)
    return crc


def _monotonic(events: list[Event], time: int) -> int:
    """Raise times that are below `time` or a predecessor's; return the last."""
    for event in events:
        if event.time < time:
            event.time = time
        else:
            time = event.time
    return time


def _parts(events: list[Event]) -> Iterator[list[Event]]:
    """Cut events into rows of at most ROW_BYTES, or one event."""
    if sum([len(event.body) for event in events]) + 100 * len(events) <= ROW_BYTES:
        yield events
        return
    start = size = 0
    for index, event in enumerate(events):
        cost = len(event.body) + 100
        if size + cost > ROW_BYTES and index > start:
            yield events[start:index]
            start, size = index, 0
        size += cost
    yield events[start:]


def _newest(events: list[Event], room: int) -> list[Event]:
    """Return the last events that fit into `room` bytes of memory."""
    start = len(events)
    while start and (room := room - len(events[start - 1].body) - OVERHEAD_BYTES) >= 0:
        start -= 1
    return events[start:]


def _split(text: object) -> Iterator[_Row]:
    """Take rows apart that were joined into one value; by position, since a join promises no order."""
    if text is None:
        return
    rows = [piece.split(" ") for piece in str(text).split(",")]
    for first, last, time, offset, crc, body in sorted(rows, key=lambda row: int(row[0])):
        yield int(first), int(last), int(time), int(offset), int(crc), bytes.fromhex(body)
