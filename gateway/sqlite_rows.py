"""
The log's table: one row for each group commit, or for each part of a large one.

Why not a row per event: Python's sqlite3 lets go of the interpreter at every step and has to win it back,
which on a busy event loop takes up to the switch interval (5 ms). One INSERT per event pays that per event,
one row per commit pays it once. The same holds for reading, so small rows are fetched many at a time, joined
into one value.

A row's events are a MessagePack array of arrays. `crc` covers body and columns, so wrong bytes are never
taken for events. `start` counts the bytes of all rows that were ever before it: the difference of two is the
size of what lies between, without adding up.
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
"""A row holds events of about so many bytes, or a single one: what is read and decoded at once."""

BLOCK_ROWS = 512
"""Small rows are read together until they make up ROW_BYTES, or are so many."""

TRIM_BYTES = 4 * 1024 * 1024
TRIM_ROWS = 1000
"""One step of retention deletes about so much: two milliseconds."""

FORMAT = Format(
    file="log.db",
    what="log",
    application_id=0x534C4731,  # "SLG1"
    version=1,
    schema=(
        # One row: the log's name, the first position retained and the end when they were last written down.
        """CREATE TABLE log (
            epoch TEXT NOT NULL,
            floor INTEGER NOT NULL,
            head INTEGER NOT NULL,
            tag INTEGER NOT NULL,
            time INTEGER NOT NULL,
            size INTEGER NOT NULL
        )""",
        """CREATE TABLE batches (
            first INTEGER PRIMARY KEY,  -- position
            last INTEGER NOT NULL,
            time INTEGER NOT NULL,  -- of the last event
            start INTEGER NOT NULL,
            crc INTEGER NOT NULL,
            body BLOB NOT NULL
        )""",
        "CREATE INDEX batches_time ON batches (time)",
    ),
)

_Row = tuple[int, int, int, int, int, bytes]  # the columns of `batches`
_Fields = tuple[str, bytes, int, int, str | None, int, str | None]  # the arguments of Event

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[_Fields])
_FIELD_BYTES = 50  # what an event's fields take beside body, topic, key and id; estimated high
_CRC_BYTES = 4096


@dataclass(frozen=True, slots=True)
class End:
    """The end of the log, what the next append builds on; all zero if there never was an event."""

    head: int
    tag: int
    time: int
    size: int  # bytes of all rows that were ever stored


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept; 0 is no limit."""

    age_ms: int
    bytes: int
    events: int


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What a step of retention left."""

    first: int  # the first position retained
    start: int  # of the first row retained
    more: bool  # whether another step may find something to delete


def memory_of(events: list[Event]) -> int:
    """Return the bytes that events take in memory."""
    return sum([len(event.body) for event in events]) + OVERHEAD_BYTES * len(events)


def fill(connection: sqlite3.Connection) -> None:
    """Fill a new file: the log gets the name by which its cursors are known."""
    epoch = "".join(choice(EPOCH_ALPHABET) for _ in range(EPOCH_LENGTH))
    connection.execute("INSERT INTO log VALUES (?, 1, 0, 0, 0, 0)", (epoch,))


class Rows:
    """
    The table behind one connection, used by one thread at a time.

    Every method raises what sqlite3 raises, and LogDamaged for a row that is not what was written.
    """

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection = connection
        self._name = name  # of the file, for errors

    def epoch(self) -> str:
        """Return the log's name."""
        return str(self._one("SELECT epoch FROM log")[0])

    def floor(self) -> int:
        """Return the first position retained, as it was last written down."""
        return int(self._one("SELECT floor FROM log")[0])

    def end(self) -> End:
        """Return where the log ends: with its newest row, or where it did when retention removed all."""
        for row in self._fetch("SELECT * FROM batches ORDER BY first DESC LIMIT 1"):
            _, last, time, start, _, body = row
            return End(last, self._events(row)[-1].tag, time, start + len(body))
        return End(*self._one("SELECT head, tag, time, size FROM log"))

    def insert(self, end: End, events: list[Event]) -> End:
        """
        Store events behind `end` in one transaction and return the new end. Times are raised if they
        decrease.

        It is one statement whatever the number of rows: in autocommit mode that is a transaction of its own.
        """
        values: list[int | bytes] = []
        first, time, size = end.head + 1, end.time, end.size
        for part in _parts(events):
            last = first + len(part) - 1
            time = _raise_times(part, time)
            body = _encoded(part)
            values += (first, last, time, size, _crc(first, last, time, size, body), body)
            first, size = last + 1, size + len(body)
        rows = ",".join(["(?,?,?,?,?,?)"] * (len(values) // 6))
        self._connection.execute(f"INSERT INTO batches VALUES {rows}", values)  # noqa: S608  (question marks)
        return End(first - 1, events[-1].tag, time, size)

    def block(self, position: int, before: int) -> list[Event]:
        """
        Return the events of the row that holds `position`, or else follows it, and of the next while they are
        small.

        Only rows that begin before the position `before` count. A damaged one behind the first ends the
        block.
        """
        row = self._row_at(position)
        if row is None or row[0] >= before:
            return []
        events = self._events(row)
        room = ROW_BYTES - len(row[5])
        if room > ROW_BYTES // 2:
            events += self._following(row, before, room)
        return events

    def newest(self, max_bytes: int) -> list[Event]:
        """Return the newest events that take at most `max_bytes` in memory; oldest of them first."""
        parts: list[list[Event]] = []
        rows = self._connection.execute("SELECT * FROM batches ORDER BY first DESC")
        for row in rows:
            events = self._events(row)
            parts.append(_last(events, max_bytes))
            max_bytes -= memory_of(events)
            if max_bytes <= 0:
                break
        rows.close()
        return [event for part in reversed(parts) for event in part]

    def before_time(self, time_ms: int) -> int | None:
        """Return the position of the last event older than `time_ms`, None if all are."""
        for row in self._fetch(
            "SELECT * FROM batches WHERE time >= ? ORDER BY time, first LIMIT 1", (time_ms,)
        ):
            try:
                older = sum(event.time < time_ms for event in self._events(row))
            except LogDamaged:
                older = 0  # rather a row too early than no answer; whoever reads there is told
            return int(row[0]) - 1 + older
        return None

    def trim(self, end: End, limits: Limits, now: int, floor: int, step_bytes: int = TRIM_BYTES) -> Trimmed:
        """
        Take one step of retention: find the first position to keep, delete a part of what lies before.

        By count and by age it is exact to the event, by bytes to the row. The newest row stays whatever its
        size.
        """
        first = max(floor, self._first_kept(end, limits, now))
        oldest = self._oldest()
        if oldest is None:
            return Trimmed(first, end.size, more=False)
        cut = self._cut(oldest[0], first, end, limits, step_bytes)
        if cut is None:
            return Trimmed(first, oldest[1], more=False)
        first = max(first, cut + 1)
        self._delete(cut, end, first)
        oldest = self._oldest()
        return Trimmed(first, end.size if oldest is None else oldest[1], more=True)

    def save(self, end: End, floor: int) -> None:
        """Write down where the log begins and ends."""
        self._connection.execute(
            "UPDATE log SET floor = ?, head = ?, tag = ?, time = ?, size = ?",
            (floor, end.head, end.tag, end.time, end.size),
        )

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()

    def _first_kept(self, end: End, limits: Limits, now: int) -> int:
        """Return the first position that count and age allow."""
        first = end.head - limits.events + 1 if limits.events else 1
        if limits.age_ms:
            older = self.before_time(now - limits.age_ms)
            first = max(first, (end.head if older is None else older) + 1)
        return first

    def _oldest(self) -> tuple[int, int] | None:
        """Return the first position and the start of the oldest row."""
        rows: list[tuple[int, int]]
        rows = self._fetch("SELECT first, start FROM batches ORDER BY first LIMIT 1")
        return rows[0] if rows else None

    def _cut(self, oldest: int, first: int, end: End, limits: Limits, step_bytes: int) -> int | None:
        """Return the last position of the rows that this step deletes, None if there is nothing to delete."""
        surplus = end.size - limits.bytes if limits.bytes else 0  # a row that starts before it is too much
        (cut,) = self._one(
            """
            WITH step AS MATERIALIZED (
                SELECT last, start FROM batches WHERE first >= ? ORDER BY first LIMIT ?
            )
            SELECT max(last) FROM step
            WHERE (last < ? OR (start < ? AND last < ?)) AND start < (SELECT min(start) FROM step) + ?
            """,
            (oldest, TRIM_ROWS, first, surplus, end.head, step_bytes),
        )
        return None if cut is None else int(cut)

    def _delete(self, cut: int, end: End, floor: int) -> None:
        """Delete the rows up to `cut`, and with them write down the end, which may be in no row any more."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.execute("DELETE FROM batches WHERE first <= ?", (cut,))
            self.save(end, floor)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite ends it by itself on some errors
                self._connection.execute("ROLLBACK")
            raise

    def _row_at(self, position: int) -> _Row | None:
        """Return the row that holds `position`, or else the first one behind it."""
        rows: list[_Row] = self._fetch(
            "SELECT * FROM batches WHERE first <= ? ORDER BY first DESC LIMIT 1", (position,)
        )
        if not rows or rows[0][1] < position:
            rows = self._fetch("SELECT * FROM batches WHERE first > ? ORDER BY first LIMIT 1", (position,))
        return rows[0] if rows else None

    def _following(self, row: _Row, before: int, room: int) -> list[Event]:
        """Return the events of the rows behind `row` that fit into `room` bytes, up to a damaged one."""
        (joined,) = self._one(
            """
            WITH step AS MATERIALIZED (
                SELECT first AS f, start AS s FROM batches WHERE first > ? AND first < ? ORDER BY first LIMIT
                ?
            )
            SELECT group_concat(printf('%d %d %d %d %d %s', first, last, time, start, crc, hex(body)))
            FROM step JOIN batches ON first = f WHERE s + length(body) <= ?
            """,
            (row[0], before, BLOCK_ROWS, row[3] + len(row[5]) + room),
        )
        events: list[Event] = []
        try:
            for following in _split(joined):
                events += self._events(following)
        except LogDamaged:
            pass  # the next block begins with it, and raises
        return events

    def _events(self, row: _Row) -> list[Event]:
        """Return a row's events; raise LogDamaged unless they are what was written."""
        first, last, time, start, crc, body = row
        if _crc(first, last, time, start, body) != crc:
            sentence = f"{self._name} is damaged: the events {first} to {last} fail their checksum"
            raise LogDamaged(sentence, last)
        return [Event(*fields, position) for position, fields in enumerate(_DECODER.decode(body), first)]

    def _fetch(self, sql: str, values: tuple[int, ...] = ()) -> list[Any]:
        return self._connection.execute(sql, values).fetchall()

    def _one(self, sql: str, values: tuple[int, ...] = ()) -> tuple[Any, ...]:
        (row,) = self._fetch(sql, values)
        return tuple(row)


def _encoded(events: list[Event]) -> bytes:
    return _ENCODER.encode([(e.topic, e.body, e.time, e.tag, e.key, e.expires, e.given_id) for e in events])


def _crc(first: int, last: int, time: int, start: int, body: bytes) -> int:
    """Return a row's checksum; in slices, because crc32 lets go of the interpreter for more than 5 KB."""
    crc = crc32(b"%d %d %d %d" % (first, last, time, start))
    if len(body) <= _CRC_BYTES:
        return crc32(body, crc)
    view = memoryview(body)
    for index in range(0, len(body), _CRC_BYTES):
        crc = crc32(view[index : index + _CRC_BYTES], crc)
    return crc


def _raise_times(events: list[Event], time: int) -> int:
    """Raise each time that is less than `time` or the one before it; return the last."""
    for event in events:
        if event.time < time:
            event.time = time
        else:
            time = event.time
    return time


def _parts(events: list[Event]) -> Iterator[list[Event]]:
    """Cut events into parts of about ROW_BYTES at most, or of one event."""
    if sum([len(event.body) for event in events]) + _FIELD_BYTES * len(events) <= ROW_BYTES:
        yield events
        return
    begin = size = 0
    for index, event in enumerate(events):
        cost = len(event.body) + _FIELD_BYTES
        if size + cost > ROW_BYTES and index > begin:
            yield events[begin:index]
            begin, size = index, 0
        size += cost
    yield events[begin:]


def _last(events: list[Event], room: int) -> list[Event]:
    """Return the last events that fit into `room` bytes of memory."""
    begin = len(events)
    while begin and (room := room - len(events[begin - 1].body) - OVERHEAD_BYTES) >= 0:
        begin -= 1
    return events[begin:]


def _split(joined: str | None) -> Iterator[_Row]:
    """Take joined rows apart; sorted, since SQLite does not promise in which order it joins."""
    if joined is None:
        return
    rows = [row.split(" ") for row in joined.split(",")]
    for first, last, time, start, crc, body in sorted(rows, key=lambda row: int(row[0])):
        yield int(first), int(last), int(time), int(start), int(crc), bytes.fromhex(body)
