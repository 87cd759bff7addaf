"""The embedded log: what it refuses, what it promises, and what it forgets."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fanout.event import OVERHEAD_BYTES, Event
from gateway.log import LogBusy, LogDamaged, LogUnavailable
from gateway.sqlite_file import SqliteFile
from gateway.sqlite_log import LogInUse, SqliteLog
from gateway.sqlite_reader import Block, Blocks
from gateway.sqlite_rows import FORMAT, ROW_BYTES, End, Rows, fill
from tests.support.log_events import (
    UNBOUNDED,
    event,
    events,
    everything,
    facts,
    opened,
    trimmed,
)


@pytest.fixture(params=["file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """A data folder, and then none: whatever does not restart holds for both."""
    return tmp_path if request.param == "file" else None


async def _filled(folder: Path, *, count: int = 50, size: int = 3000) -> None:
    """Make a log of one event per row."""
    async with opened(folder) as log:
        for index in range(count):
            await log.append([event(f"e{index}", size=size)])


async def _refusal(folder: Path) -> str:
    """Return the sentence with which a log is refused, after checking that nothing in its folder changed."""
    before = _contents(folder)
    with pytest.raises(LogDamaged) as caught:
        async with opened(folder):
            pass
    assert _contents(folder) == before, "a refused file must stay as it was"
    sentence = str(caught.value)
    assert str(folder / "log.db") in sentence
    assert "\n" not in sentence
    return sentence


def _contents(folder: Path) -> dict[str, bytes]:
    """Return the database files that hold something; the shared-memory index is SQLite's scratch space."""
    return {
        path.name: path.read_bytes()
        for path in folder.glob("log.db*")
        if path.suffix != ".db-shm" and path.stat().st_size
    }


def _names(folder: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def _row_offset(path: Path, name: str) -> int:
    """Return where in the file the body of an event is."""
    offset = path.read_bytes().find(b'"id":"%s"' % name.encode())
    assert offset > 0, f"{name} is not in {path.name}"
    return offset


def _damage(path: Path, offset: int) -> None:
    """Flip one bit."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def _foreign(folder: Path, mode: str) -> None:
    """Put another program's database in the log's place, as a crash of that program would leave it."""
    connection = sqlite3.connect(folder / "origin.db")
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute("PRAGMA application_id=77")
    connection.execute("CREATE TABLE batches (x)")
    connection.execute("INSERT INTO batches VALUES (1)")
    connection.commit()
    for path in list(folder.glob("origin.db*")):
        shutil.copy(path, folder / path.name.replace("origin", "log"))
    connection.close()


class TestRefusal:
    """A file that cannot be used is refused at the start, in one sentence, and left as it was."""

    async def test_no_database(self, tmp_path: Path) -> None:
        """A file that is no SQLite database is refused."""
        (tmp_path / "log.db").write_bytes(b"The diary of a gateway.\n" * 1000)
        sentence = await _refusal(tmp_path)
        assert "it is no SQLite database" in sentence
        assert "or give another --data folder" in sentence

    async def test_garbage_behind_a_valid_head(self, tmp_path: Path) -> None:
        """A file that only begins like a SQLite database is refused."""
        (tmp_path / "log.db").write_bytes(b"SQLite format 3\x00" + bytes(range(256)) * 64)
        assert "log.db cannot be used as the log: " in await _refusal(tmp_path)

    @pytest.mark.parametrize("mode", ["delete", "wal"])
    async def test_another_programs_database(self, tmp_path: Path, mode: str) -> None:
        """A database of another program is refused, also when that left a write-ahead log behind."""
        _foreign(tmp_path, mode)
        assert "it belongs to another program" in await _refusal(tmp_path)

    async def test_newer_version(self, tmp_path: Path) -> None:
        """A log that a newer version made is refused."""
        await _filled(tmp_path)
        with sqlite3.connect(tmp_path / "log.db") as connection:
            connection.execute("PRAGMA user_version=2")
        connection.close()
        assert "a newer Sluicegate made it (format 2, known: 1)" in await _refusal(tmp_path)

    @pytest.mark.parametrize("kept", [100, 4096, 100_000])
    async def test_truncated(self, tmp_path: Path, kept: int) -> None:
        """A file that lost its end is refused."""
        await _filled(tmp_path)
        os.truncate(tmp_path / "log.db", kept)
        assert "it is damaged" in await _refusal(tmp_path)

    async def test_damaged_structure(self, tmp_path: Path) -> None:
        """A file whose pages do not fit together is refused."""
        await _filled(tmp_path)
        path = tmp_path / "log.db"
        with path.open("r+b") as file:
            file.seek(3 * 4096)
            file.write(b"\x55" * 4096)
        assert "it is damaged" in await _refusal(tmp_path)

    async def test_damaged_newest_events(self, tmp_path: Path) -> None:
        """One wrong bit in what the start reads is noticed."""
        await _filled(tmp_path)
        path = tmp_path / "log.db"
        _damage(path, _row_offset(path, "e49") + 1000)
        assert "the events 50 to 50 fail their checksum" in await _refusal(tmp_path)

    async def test_folder_is_a_file(self, tmp_path: Path) -> None:
        """A data folder that is a file is refused with the system's reason."""
        (tmp_path / "data").write_text("x")
        with pytest.raises(LogDamaged, match=r"it cannot be opened \((File exists|Not a directory)\)"):
            async with opened(tmp_path / "data"):
                pass

    async def test_in_use(self, tmp_path: Path) -> None:
        """A log that is open already, in this process or another, is refused, and free again afterwards."""
        script = (
            "import asyncio, sys\n"
            "from pathlib import Path\n"
            "from tests.support.log_events import opened\n"
            "async def main():\n"
            "    async with opened(Path(sys.argv[1])):\n"
            "        print('open', flush=True)\n"
            "        sys.stdin.read()\n"
            "asyncio.run(main())\n"
        )
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert await child.stdout.readline() == b"open\n"
        with pytest.raises(LogInUse, match=r"log\.db is in use by another process; stop that one"):
            async with opened(tmp_path):
                pass
        await child.communicate(b"")
        async with opened(tmp_path):
            with pytest.raises(LogInUse):
                async with opened(tmp_path):
                    pass
        async with opened(tmp_path) as log:
            await log.append(events("a"))

    async def test_start_that_is_cancelled(self, tmp_path: Path) -> None:
        """A start that is given up leaves the log free for the next."""
        log = SqliteLog(tmp_path, **UNBOUNDED)
        task = asyncio.create_task(log.start(lambda _: None))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with opened(tmp_path) as again:
            await again.append(events("a"))

    @pytest.mark.parametrize("left", [b"", b"a database in WAL mode without tables"])
    async def test_creation_cut_short(self, tmp_path: Path, left: bytes) -> None:
        """What a crash during the very first start leaves is no damage."""
        path = tmp_path / "log.db"
        path.write_bytes(b"")
        if left:
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.close()
            assert path.stat().st_size
        async with opened(tmp_path) as log:
            await log.append(events("a"))
            assert log.head == 1


class TestAppend:
    """Events get positions, are durable, are delivered, and only then acknowledged."""

    async def test_group_commit(self, folder: Path | None) -> None:
        """Calls that are ready together share one commit, and each event gets the next position."""
        batches: list[list[Event]] = []
        async with opened(folder, batches.append) as log:
            calls = [events(f"{index}a", f"{index}b") for index in range(500)]
            await asyncio.gather(*[log.append(call) for call in calls])
            assert log.statistics().commits == 1
            assert [len(batch) for batch in batches] == [1000]
            assert [event.position for call in calls for event in call] == list(range(1, 1001))
            assert (log.first, log.head, log.head_tag) == (1, 1000, calls[-1][-1].tag)

    async def test_gathers_while_a_commit_runs(self, folder: Path | None) -> None:
        """What is appended one by one during a commit goes into the next one together."""
        async with opened(folder) as log:

            async def publish(name: str) -> None:
                for index in range(20):
                    await log.append(events(f"{name}-{index}"))

            await asyncio.gather(*[publish(str(index)) for index in range(50)])
            assert log.head == 1000
            assert log.statistics().commits <= 200

    async def test_order_of_visibility(self, folder: Path | None) -> None:
        """The head moves, then the batch is delivered, then the callers hear of it."""
        story: list[str] = []
        log = SqliteLog(folder, **UNBOUNDED)

        def deliver(batch: list[Event]) -> None:
            assert log.head == batch[-1].position
            assert not future.done()
            story.append("delivered")

        await log.start(deliver)
        future = log.append(events("a"))
        future.add_done_callback(lambda _: story.append("acknowledged"))
        assert log.head == 0
        await future
        await log.append([])
        await log.close()
        assert story == ["delivered", "acknowledged"]

    async def test_durable_before_it_is_delivered(self, tmp_path: Path) -> None:
        """When a batch is delivered, another connection finds it in the file."""
        seen: list[int] = []

        def deliver(_: list[Event]) -> None:
            other = sqlite3.connect(tmp_path / "log.db")
            seen.extend(other.execute("SELECT max(last) FROM batches").fetchone())
            other.close()

        async with opened(tmp_path, deliver) as log:
            for name in "abc":
                await log.append(events(name))
            assert log._file is not None
            (level,) = log._file.connection.execute("PRAGMA synchronous").fetchone()
            assert level == 2, "a commit has to wait for the disk"
        assert seen == [1, 2, 3]

    async def test_nothing_to_append(self, folder: Path | None) -> None:
        """An empty call is acknowledged after everything that was queued before it."""
        async with opened(folder) as log:
            await log.append([])
            order: list[str] = []
            first = log.append(events("a"))
            first.add_done_callback(lambda _: order.append("a"))
            empty = log.append([])
            empty.add_done_callback(lambda _: order.append("empty"))
            await asyncio.gather(first, empty)
            await asyncio.sleep(0)
            assert order == ["a", "empty"]
            assert log.head == 1

    async def test_caller_that_gives_up(self, folder: Path | None) -> None:
        """A caller that is cancelled while it waits disturbs nobody."""
        async with opened(folder) as log:
            task = asyncio.ensure_future(log.append(events("a")))
            other = log.append(events("b"))
            task.cancel()
            await other
            assert log.head == 2

    async def test_delivery_that_fails(self, folder: Path | None, caplog: pytest.LogCaptureFixture) -> None:
        """An error in whom events are delivered to is logged; the events are durable all the same."""

        def deliver(_: list[Event]) -> None:
            raise ValueError("no")

        async with opened(folder, deliver) as log:
            await log.append(events("a"))
            await log.append(events("b"))
            assert len(await everything(log)) == 2
        assert [record.message for record in caplog.records] == ["log.delivery_failed"] * 2

    async def test_failed_commit(self, folder: Path | None, caplog: pytest.LogCaptureFixture) -> None:
        """A failed commit takes along all that is queued behind it, uses up nothing, and is logged once."""
        async with opened(folder) as log:
            await log.append(events("a"))
            assert log._file is not None
            connection = log._file.connection
            connection.execute("PRAGMA query_only=ON")
            for _ in range(2):
                calls = [[event("b", size=2_000_000)], events("c"), []]  # the first is a commit of its own
                futures = [log.append(call) for call in calls]
                outcomes = await asyncio.gather(*futures, return_exceptions=True)
                assert all(isinstance(outcome, LogUnavailable) for outcome in outcomes)
            connection.execute("PRAGMA query_only=OFF")
            assert (log.head, log.statistics().failures) == (1, 2)
            assert log.statistics().queued_events == log.statistics().queued_bytes == 0
            await log.append(events("d"))
            assert [e.tag for e in await everything(log)] == [e.tag for e in events("a", "d")]
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
            "log.commit_failed"
        ]

    async def test_too_many_events(self, folder: Path | None) -> None:
        """The queue's bound in events refuses a call as a whole and says when to come back."""
        async with opened(folder, queue_events=10) as log:
            accepted = [log.append(events(*"12345")), log.append(events(*"6789"))]
            with pytest.raises(LogBusy) as caught:
                log.append(events("x", "y"))
            assert 0 < caught.value.retry_after <= 5
            assert log.statistics().queued_events == 9
            accepted.append(log.append(events("0")))
            accepted.append(log.append([]))
            await asyncio.gather(*accepted)
            assert [e.tag for e in await everything(log)] == [e.tag for e in events(*"1234567890")]
            assert log.statistics().queued_events == log.statistics().queued_bytes == 0

    async def test_too_many_bytes(self, folder: Path | None) -> None:
        """The queue's bound in bytes refuses too, but never a call for which nothing is in the way."""
        async with opened(folder, queue_bytes=10_000) as log:
            await log.append([event("large", size=50_000)])
            first = log.append([event("a", size=9_000)])
            with pytest.raises(LogBusy):
                log.append([event("b", size=1_000)])
            await first
            assert [len(e.body) for e in await everything(log)] == [50_000, 9_000]

    async def test_closed(self, folder: Path | None) -> None:
        """A closed log takes and gives nothing, and can be closed again."""
        async with opened(folder) as log:
            waiting = log.append(events("a"))
            await asyncio.gather(log.close(), log.close())
            assert waiting.done(), "what was queued is committed first"
            with pytest.raises(LogUnavailable, match="the log is closed"):
                await log.append(events("b"))
            with pytest.raises(LogUnavailable, match="the log is closed"):
                await log.read(0, 1)
            with pytest.raises(LogUnavailable, match="the log is closed"):
                await log.find_time(0)
            assert log.head == 1

    async def test_times_do_not_decrease(self, tmp_path: Path) -> None:
        """A clock that goes back does not take the log with it, not even over a restart."""
        async with opened(tmp_path) as log:
            await log.append([event("a", time=5), event("b", time=3), event("c", time=9)])
            await log.append([event("d", time=8)])
        async with opened(tmp_path) as log:
            late = event("e", time=1)
            await log.append([late])
            assert late.time == 9
            assert [e.time for e in await everything(log)] == [5, 5, 9, 9, 9]

    async def test_statistics(self, tmp_path: Path) -> None:
        """What the log did is counted."""
        async with opened(tmp_path) as log:
            await log.append([event("a", size=1000), event("b", size=1000)])
            future = log.append(events("c"))
            statistics = log.statistics()
            assert statistics.queued_events == 1
            assert statistics.queued_bytes == OVERHEAD_BYTES + len(events("c")[0].body)
            assert (statistics.commits, statistics.events, statistics.failures) == (1, 2, 0)
            assert 2000 < statistics.bytes < 2200
            assert statistics.commit_ms > 0
            assert statistics.file_bytes > 2000
            await future


class TestRead:
    """Whoever has a position can go on from there, and gets what was written or an error."""

    async def test_everything_an_event_has(self, folder: Path | None) -> None:
        """Each field comes back as it was, also in rows that are read together."""
        body = b'"topic":"a.b","data":{"\xc3\xa9":1}'
        written = [
            Event("a.b", body, 5, 0xFFFF, key="k,e y", expires=2**60, given_id="'"),
            Event("c", b"", 6, 0, key="", given_id=""),
            event("plain", time=7),
        ]
        async with opened(folder) as log:
            for one in written:
                await log.append([one])
            await log.append([event("x", time=8), event("y", time=8)])
            found = await everything(log)
            assert [facts(e) for e in found[:3]] == [facts(e) for e in written]
            assert [e.position for e in found] == [1, 2, 3, 4, 5]

    async def test_size_of_a_read(self, folder: Path | None) -> None:
        """A read returns about as many bytes as asked for, and at least one event."""
        async with opened(folder) as log:
            await log.append([event(str(index), size=600) for index in range(100)])
            for index in range(100):
                await log.append([event(f"{index}-single", size=600)])
            assert [e.position for e in await log.read(0, 1)] == [1]
            assert [e.position for e in await log.read(99, 1)] == [100]
            assert [e.position for e in await log.read(95, 10_000)] == list(range(96, 106))
            assert await log.read(200, 1000) == []
            assert await log.read(10**9, 1000) == []

    async def test_large_events(self, tmp_path: Path) -> None:
        """Rows are bounded: a large batch is cut, a large event has its own; every event comes back."""
        sizes = [100] * 3000 + [ROW_BYTES * 2] + [100] * 10 + [ROW_BYTES - 100] * 3 + [20_000_000]
        async with opened(tmp_path) as log:
            await log.append([event(str(index), size=size) for index, size in enumerate(sizes)])
            assert log.statistics().commits == 1
            found = await everything(log, max_bytes=100_000)
            assert [len(e.body) for e in found] == sizes
            assert [e.tag for e in found] == [event(str(index)).tag for index in range(len(sizes))]
        connection = sqlite3.connect(tmp_path / "log.db")
        rows = connection.execute("SELECT last - first + 1, length(body) FROM batches").fetchall()
        connection.close()
        assert len(rows) > 5
        assert all(length <= ROW_BYTES * 1.1 for count, length in rows if count > 1)

    async def test_readers_share_a_block(self, folder: Path | None) -> None:
        """A thousand clients that resume at once from about the same place cost one look into the file."""
        async with opened(folder) as log:
            await log.append([event(str(index)) for index in range(400)])
            loads = _count_loads(log)
            found = await asyncio.gather(*[log.read(index % 400, 1 << 20) for index in range(1000)])
            assert [batch[0].position for batch in found] == [index % 400 + 1 for index in range(1000)]
            assert all(batch[-1].position == 400 for batch in found)
            assert len(loads) == 1

    async def test_small_rows_are_read_together(self, folder: Path | None) -> None:
        """Events that were committed one by one do not cost a look into the file each."""
        async with opened(folder) as log:
            for index in range(300):
                await log.append([event(str(index))])
            loads = _count_loads(log)
            found = await everything(log, max_bytes=1 << 20)
            assert [e.position for e in found] == list(range(1, 301))
            assert len(loads) == 1

    async def test_blocks_do_not_overlap(self, folder: Path | None) -> None:
        """What is in memory already is not read a second time by whoever comes from further back."""
        async with opened(folder) as log:
            for index in range(30):
                await log.append([event(str(index))])
            await log.read(19, 1)
            await log.read(9, 1)
            assert [e.position for e in await everything(log)] == list(range(1, 31))
            assert log._reader is not None
            blocks = sorted(log._reader._blocks._blocks.values(), key=lambda block: block.first)
            assert [(block.first, block.last) for block in blocks] == [(1, 9), (10, 19), (20, 30)]

    async def test_reading_while_writing(self, folder: Path | None) -> None:
        """A reader that follows the head gets every event once and in order."""
        async with opened(folder) as log:

            async def write() -> None:
                for index in range(300):
                    await log.append(events(*[f"{index}-{part}" for part in range(index % 7 + 1)]))

            async def follow() -> list[Event]:
                found: list[Event] = []
                while not writer.done() or len(found) < log.head:
                    after = found[-1].position if found else 0
                    found += await log.read(after, 5_000)
                    await asyncio.sleep(0)
                return found

            writer = asyncio.create_task(write())
            for found in await asyncio.gather(*[follow() for _ in range(5)]):
                assert [e.position for e in found] == list(range(1, log.head + 1))

    async def test_reader_that_gives_up(self, folder: Path | None) -> None:
        """A reader that is cancelled while it waits disturbs no other."""
        async with opened(folder) as log:
            await log.append(events(*"abc"))
            first = asyncio.create_task(log.read(0, 1))
            second = asyncio.create_task(log.read(0, 1))
            await asyncio.sleep(0)
            first.cancel()
            assert [e.position for e in await second] == [1]

    async def test_damaged_row(self, tmp_path: Path) -> None:
        """A row that fails its checksum is an error for whoever needs it, and for nobody else."""
        await _filled(tmp_path)
        path = tmp_path / "log.db"
        _damage(path, _row_offset(path, "e20") + 1000)
        async with opened(tmp_path, tail_bytes=10_000) as log:
            found = await log.read(0, 1 << 20)
            assert [e.position for e in found] == list(range(1, 21))
            with pytest.raises(LogDamaged, match=r"log\.db is damaged: the events 21 to 21 fail"):
                await log.read(20, 1 << 20)
            assert [e.position for e in await everything(log, after=21)] == list(range(22, 51))
            await log.append(events("goes on"))
            assert log.head == 51

    async def test_damaged_position(self, tmp_path: Path) -> None:
        """A row that is not where it belongs fails its checksum, whatever its events."""
        async with opened(tmp_path) as log:
            for name in "abcdef":
                await log.append(events(name))
        connection = sqlite3.connect(tmp_path / "log.db")
        connection.execute("DELETE FROM batches WHERE first = 2")
        connection.execute("UPDATE batches SET first = 2, last = 2 WHERE first = 3")
        connection.commit()
        connection.close()
        async with opened(tmp_path, tail_bytes=1) as log:
            assert [e.position for e in await log.read(0, 1 << 20)] == [1]
            with pytest.raises(LogDamaged, match="the events 2 to 2"):
                await log.read(1, 1 << 20)
            assert [e.position for e in await log.read(2, 1 << 20)] == [4, 5, 6]

    async def test_find_time(self, folder: Path | None) -> None:
        """A time is found to the event, within a row and between rows."""
        async with opened(folder) as log:
            assert await log.find_time(5) == 0
            await log.append([event(str(time), time=time) for time in (10, 10, 20, 30)])
            await log.append([event(str(time), time=time) for time in (30, 40)])
            await log.append([event("41", time=41)])
            times = {0: 0, 10: 0, 11: 2, 20: 2, 21: 3, 30: 3, 31: 5, 40: 5, 41: 6, 42: 7, 10**15: 7}
            assert {time: await log.find_time(time) for time in times} == times

    async def test_tail(self, tmp_path: Path) -> None:
        """The newest events are there for the window, as many as fit into its memory."""
        async with opened(tmp_path) as log:
            assert await log.tail() == []
            await log.append([event(str(index), size=1000) for index in range(50)])
            await log.append([event("last", given_id="last")])
            assert len(await log.tail()) == 51
        room = 10 * (1000 + OVERHEAD_BYTES) + OVERHEAD_BYTES + len(event("last").body)
        for tail_bytes, count in ((room, 11), (room - 1, 10), (1, 0)):
            async with opened(tmp_path, tail_bytes=tail_bytes) as log:
                found = await log.tail()
                assert [e.position for e in found] == list(range(52 - count, 52))
                assert [facts(e) for e in await log.tail()] == [facts(e) for e in found]
                await log.append(events("newer"))
                assert log.head == 52
                assert [e.position for e in await log.tail()][-1:] == ([52] if count else [])
            connection = sqlite3.connect(tmp_path / "log.db")
            connection.execute("DELETE FROM batches WHERE first = 52")
            connection.commit()
            connection.close()


def _count_loads(log: SqliteLog) -> list[int]:
    """Return a list that grows with every look of the reader into the table."""
    assert log._reader is not None
    rows, loads = log._reader._rows, []
    block = rows.block

    def counted(position: int, before: int) -> list[Event]:
        loads.append(position)
        return block(position, before)

    rows.block = counted  # type: ignore[method-assign]  # the real one, counted
    return loads


class TestRetention:
    """What is too old, too much or too many is forgotten, and positions go on."""

    async def test_by_count(self, folder: Path | None) -> None:
        """Exactly so many events are kept, at every moment."""
        async with opened(folder, retention_events=10) as log:
            await log.append([event(str(index)) for index in range(8)])
            assert log.first == 1
            await log.append([event(str(index)) for index in range(8)])
            assert (log.first, log.head) == (7, 16)
            assert [e.position for e in await log.read(0, 1 << 20)] == list(range(7, 17))
            await trimmed(log)
            assert [e.position for e in await log.read(3, 1 << 20)] == list(range(7, 17))
            await log.append([event(str(index)) for index in range(100)])
            await trimmed(log)
            assert [e.position for e in await everything(log)] == list(range(107, 117))

    async def test_by_age(self, folder: Path | None) -> None:
        """Exactly what is older than allowed is forgotten, within a batch too, and at last everything."""
        now = [10_000]
        async with opened(folder, retention_seconds=5, clock=lambda: now[0]) as log:
            await log.append([event(str(time), time=time) for time in (5_000, 6_000, 7_000, 8_000)])
            await trimmed(log)
            assert log.first == 1
            now[0] = 11_500
            await trimmed(log)
            assert log.first == 3
            assert [e.time for e in await everything(log)] == [7_000, 8_000]
            assert await log.find_time(0) == 2
            now[0] = 20_000
            await trimmed(log)
            assert (log.first, log.head) == (5, 4)
            assert await everything(log) == []
            assert await log.tail() == []
            assert await log.find_time(0) == 4
            await log.append([event("new", time=20_000)])
            assert [e.position for e in await everything(log)] == [5]

    async def test_by_bytes(self, folder: Path | None) -> None:
        """No more than so many stored bytes are kept, but always the newest row."""
        async with opened(folder, retention_bytes=10_000) as log:
            for index in range(30):
                await log.append([event(str(index), size=1_000)])
            await trimmed(log)
            assert log.head - log.first + 1 == 9
            assert [e.position for e in await everything(log)] == list(range(22, 31))
            await log.append([event("large", size=50_000)])
            await trimmed(log)
            assert (log.first, log.head) == (31, 31)
            assert len((await everything(log))[0].body) == 50_000

    async def test_without_being_told(self, folder: Path | None) -> None:
        """Retention runs by itself: once in a while, and early when the log grows fast."""
        async with opened(folder, retention_bytes=100_000, trim_seconds=3600) as log:
            for index in range(100):
                await log.append([event(str(index), size=100_000)])
            await log.append([])
            assert log.head - log.first < 60
        async with opened(None, retention_seconds=1, clock=lambda: 10_000, trim_seconds=0.001) as log:
            future = log.append([event("old", time=1)])
            await future
            deadline = asyncio.get_running_loop().time() + 10
            while log.first != 2:
                assert asyncio.get_running_loop().time() < deadline, "the timer never fired"
                await asyncio.sleep(0.001)

    async def test_file_stays_bounded(self, tmp_path: Path) -> None:
        """Space is used again: five times what is kept is written, and the file stays below twice that."""
        kept = 20_000_000
        async with opened(tmp_path, retention_bytes=kept) as log:
            for index in range(1000):
                await log.append([event(f"{index}-{part}", size=1_000) for part in range(100)])
                assert log.statistics().file_bytes < 2 * kept
            assert log.statistics().bytes > 5 * kept
        assert _names(tmp_path) == ["log.db", "log.lock"]

    async def test_rows_are_deleted(self, tmp_path: Path) -> None:
        """What was forgotten is not in the file any more."""
        async with opened(tmp_path, retention_events=5) as log:
            for index in range(50):
                await log.append([event(str(index)), event(f"{index}b")])
            await trimmed(log)
        connection = sqlite3.connect(tmp_path / "log.db")
        assert connection.execute("SELECT min(first), count(*) FROM batches").fetchall() == [(95, 3)]
        connection.close()

    async def test_many_steps(self, tmp_path: Path) -> None:
        """A bound that was lowered takes effect in steps, at the latest when nothing else is to do."""
        async with opened(tmp_path) as log:
            for index in range(120):
                await log.append([event(f"{index}-{part}", size=1_000) for part in range(100)])
        async with opened(tmp_path, retention_bytes=100_000) as log:
            await trimmed(log)
            assert log.first == 12_001 - 100
            assert [e.position for e in await everything(log)] == list(range(log.first, 12_001))

    async def test_with_a_damaged_row(self, tmp_path: Path) -> None:
        """Damage does not stop retention: the row is forgotten when its time has come."""
        now = [1_000]
        await _filled(tmp_path)
        path = tmp_path / "log.db"
        _damage(path, _row_offset(path, "e20") + 1000)
        async with opened(tmp_path, tail_bytes=1, retention_seconds=1, clock=lambda: now[0]) as log:
            assert log.first == 1
            now[0] = 10_000
            await trimmed(log)
            assert log.first == 51


class TestRestart:
    """A log goes on where it was."""

    async def test_everything_is_there(self, tmp_path: Path) -> None:
        """Name, positions and events survive."""
        async with opened(tmp_path) as log:
            await log.append([event(str(index), size=100) for index in range(1000)])
            epoch, before = log.epoch, await everything(log)
            assert len(epoch) == 6
        async with opened(tmp_path) as log:
            assert (log.epoch, log.first, log.head, log.head_tag) == (epoch, 1, 1000, before[-1].tag)
            assert [facts(e) for e in await everything(log)] == [facts(e) for e in before]
            await log.append(events("next"))
            assert log.head == 1001
        shutil.rmtree(tmp_path)
        async with opened(tmp_path) as log:
            assert log.epoch != epoch
            assert log.head == 0

    async def test_positions_never_repeat(self, tmp_path: Path) -> None:
        """Positions go on when nothing at all is left of the log but its end, and so does time."""
        now = [1_000]
        settings: dict[str, Any] = {"retention_seconds": 1, "clock": lambda: now[0]}
        async with opened(tmp_path, **settings) as log:
            await log.append([event(str(index), time=now[0]) for index in range(7)])
            tag = log.head_tag
            now[0] = 5_000
            await trimmed(log)
            assert log.first == 8
        for _ in range(2):
            async with opened(tmp_path, **settings) as log:
                assert (log.first, log.head, log.head_tag) == (8, 7, tag)
        async with opened(tmp_path, **settings) as log:
            new = event("new", time=0)
            await log.append([new])
            assert (new.position, new.time) == (8, 1_000)

    async def test_crash_when_nothing_is_left(self, tmp_path: Path) -> None:
        """A crash right after retention removed everything does not lose the end of the log."""
        now = [1_000]
        crashed = tmp_path / "crashed"
        crashed.mkdir()
        async with opened(tmp_path, retention_seconds=1, clock=lambda: now[0]) as log:
            await log.append([event(str(index), time=now[0]) for index in range(7)])
            now[0] = 5_000
            await trimmed(log)
            for name in ("log.db", "log.db-wal"):  # what a kill -9 at this moment would leave
                shutil.copy(tmp_path / name, crashed / name)
        async with opened(crashed) as log:
            assert (log.first, log.head) == (8, 7)

    async def test_size_is_remembered(self, tmp_path: Path) -> None:
        """Retention by bytes goes on counting where it was."""
        for index in range(20):
            async with opened(tmp_path, retention_bytes=5_000) as log:
                await log.append([event(str(index), size=1_000)])
        async with opened(tmp_path, retention_bytes=5_000) as log:
            assert (log.first, log.head) == (17, 20)

    async def test_first_does_not_go_back(self, tmp_path: Path) -> None:
        """What was announced as forgotten stays so, with more generous settings and a clock set back too."""
        now = [10_000]
        async with opened(tmp_path, retention_seconds=5, clock=lambda: now[0]) as log:
            await log.append([event(str(time), time=time) for time in range(1_000, 11_000, 1_000)])
            await trimmed(log)
            assert log.first == 5
        now[0] = 2_000
        async with opened(tmp_path, retention_seconds=500, clock=lambda: now[0]) as log:
            assert log.first == 5
            await trimmed(log)
            assert log.first == 5

    async def test_retention_at_the_start(self, tmp_path: Path) -> None:
        """What became too old while the gateway was down is not served."""
        async with opened(tmp_path) as log:
            await log.append([event(str(time), time=time) for time in range(1_000, 11_000, 1_000)])
        async with opened(tmp_path, retention_seconds=5, clock=lambda: 10_000) as log:
            assert log.first == 5
            assert [e.position for e in await log.tail()] == list(range(5, 11))
        async with opened(tmp_path, retention_events=2) as log:
            assert log.first == 9
            assert [e.position for e in await log.tail()] == [9, 10]


class TestRows:
    """The table by itself."""

    def test_only_rows_before_a_position(self, tmp_path: Path) -> None:
        """What begins at the given position or behind it is not read: it may not be visible yet."""
        rows = _rows()
        end = End(0, 0, 0, 0)
        for name in "abcdef":
            end = rows.insert(end, events(name, name))
        assert [e.position for e in rows.block(1, 13)] == list(range(1, 13))
        assert [e.position for e in rows.block(4, 7)] == [3, 4, 5, 6]
        assert rows.block(7, 7) == []
        assert rows.block(13, 20) == []

    def test_index_finds_times(self) -> None:
        """Neither a time nor a position makes SQLite look at every row."""
        rows = _rows()
        for sql in (
            "SELECT * FROM batches WHERE time >= ? ORDER BY time, first LIMIT 1",
            "SELECT * FROM batches WHERE first <= ? ORDER BY first DESC LIMIT 1",
        ):
            plan = rows._fetch(f"EXPLAIN QUERY PLAN {sql}", (1,))
            assert [step[3].split(" ")[0] for step in plan] == ["SEARCH"]


def _rows() -> Rows:
    return Rows(SqliteFile(None, FORMAT, fill).connection, "memory")


class TestBlocks:
    """The cache of decoded blocks."""

    def test_bounded(self) -> None:
        """The least recently used blocks go when there are too many bytes; one block always fits."""
        one = OVERHEAD_BYTES + 100
        blocks = Blocks(3 * 10 * one)
        for start in (1, 11, 21):
            blocks.add(_block(start, 10))
        assert blocks.read(5, 1)
        blocks.add(_block(31, 10))
        assert [bool(blocks.read(start, 1)) for start in (1, 11, 21, 31)] == [True, False, True, True]
        blocks.add(_block(41, 100))
        assert [bool(blocks.read(start, 1)) for start in (1, 21, 31, 41)] == [False, False, False, True]

    def test_read_over_blocks(self) -> None:
        """A read goes on from block to block as long as they adjoin, and stops at a hole."""
        blocks = Blocks(1 << 20)
        for start in (1, 11, 31):
            blocks.add(_block(start, 10))
        assert [e.position for e in blocks.read(8, 1 << 20)] == list(range(8, 21))
        assert [e.position for e in blocks.read(8, 5 * (100 + OVERHEAD_BYTES))] == [8, 9, 10, 11, 12]
        assert blocks.read(21, 1 << 20) == []
        assert (blocks.following(8), blocks.following(20), blocks.following(31)) == (11, 31, None)


def _block(first: int, count: int) -> Block:
    found = [event(str(index), size=100) for index in range(count)]
    for position, one in enumerate(found, first):
        one.position = position
    return Block(found)


@pytest.mark.parametrize(("kept", "first"), [(0, 51), (10, 41)])
async def test_first_knows_what_retention_deleted_just_now(tmp_path: Path, kept: int, first: int) -> None:
    """When a read finds events gone that `first` still counts, `first` says so by the time it returns."""
    await _filled(tmp_path, count=50, size=10)
    async with opened(tmp_path) as log:
        assert log.first == 1
        deleting = sqlite3.connect(tmp_path / "log.db")
        deleting.execute("DELETE FROM batches WHERE last <= ?", (50 - kept,))
        deleting.commit()
        deleting.close()
        events = await log.read(0, 1 << 20)

    assert [event.position for event in events] == list(range(first, 51))
    assert log.first == first
