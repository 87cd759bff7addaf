"""The store of durable subscriptions: what was acknowledged is there after a restart, and it is bounded."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.consumers import MAX_NAME, ConsumersFull
from gateway.log import LogDamaged, StoreUnavailable
from gateway.sqlite_consumers import FORMAT, SqliteConsumers
from gateway.sqlite_file import hold
from gateway.sqlite_log import LogInUse
from tests.support.log_events import events
from tests.support.log_events import opened as opened_log


@asynccontextmanager
async def opened(folder: Path | None, max_consumers: int = 100) -> AsyncIterator[SqliteConsumers]:
    """Start a store and close it at the end."""
    consumers = SqliteConsumers(folder, max_consumers=max_consumers)
    await consumers.start()
    try:
        yield consumers
    finally:
        await consumers.close()


async def test_foreign_file(tmp_path: Path) -> None:
    """A file of another program is refused in a sentence, and left as it was."""
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE consumers (name, cursor)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(
        LogDamaged, match=r"store\.db cannot be used as the store: it belongs to another program"
    ):
        async with opened(tmp_path):
            pass
    assert path.read_bytes() == before


async def test_in_use(tmp_path: Path) -> None:
    """A store is used by one process at a time, and beside a log."""
    async with opened(tmp_path) as consumers, opened_log(tmp_path) as log:
        with pytest.raises(LogInUse, match=r"store\.db is in use by another process"):
            async with opened(tmp_path):
                pass
        await asyncio.gather(consumers.remember("a", "1"), log.append(events("a")))


async def test_too_many(tmp_path: Path) -> None:
    """Names beyond the bound are refused, those known go on, and the bound holds over a restart."""
    async with opened(tmp_path, max_consumers=3) as consumers:
        outcomes = await asyncio.gather(
            *[consumers.remember(name, "1") for name in "abcde"], return_exceptions=True
        )
        full = [outcome for outcome in outcomes if isinstance(outcome, ConsumersFull)]
        assert len(full) == 2
        assert str(full[0]) == "there are 3 durable subscriptions already, which is the limit"
        with pytest.raises(ConsumersFull):
            await consumers.remember("f", "1")
        found = {name: await consumers.recall(name) for name in "abcde"}
        assert sorted(str(cursor) for cursor in found.values()) == ["1", "1", "1", "None", "None"]
    known = [name for name, cursor in found.items() if cursor]
    async with opened(tmp_path, max_consumers=3) as consumers:
        await consumers.remember(known[1], "2")
        with pytest.raises(ConsumersFull):
            await consumers.remember("z", "2")
        assert await consumers.recall("z") is None
        assert await consumers.recall(known[1]) == "2"


@pytest.mark.parametrize("name", ["nul\x00", "line\n", "surrogate\ud800"])
async def test_unprintable_name(name: str) -> None:
    """A name that SQLite could confuse with another is refused, and nobody else's acknowledgement with it."""
    async with opened(None) as consumers:
        good = consumers.remember("good", "1")
        with pytest.raises(ValueError, match="characters that cannot be printed"):
            consumers.remember(name, "1")
        await good


async def test_long_name() -> None:
    """A name that is too long for an index is refused; the longest is kept."""
    async with opened(None) as consumers:
        with pytest.raises(ValueError, match="more than 512 characters"):
            consumers.remember("n" * (MAX_NAME + 1), "1")
        await consumers.remember("n" * MAX_NAME, "1")
        assert await consumers.recall("n" * MAX_NAME) == "1"


async def test_closed(tmp_path: Path) -> None:
    """A closed store takes and gives nothing; what it had taken is stored first."""
    async with opened(tmp_path) as consumers:
        waiting = consumers.remember("a", "1")
        await asyncio.gather(consumers.close(), consumers.close())
        assert waiting.done()
        with pytest.raises(StoreUnavailable, match="the store is closed"):
            await consumers.remember("a", "2")
        with pytest.raises(StoreUnavailable, match="the store is closed"):
            await consumers.recall("a")
    async with opened(tmp_path) as consumers:
        assert await consumers.recall("a") == "1"


async def test_failed_commit(tmp_path: Path) -> None:
    """A store that cannot be written says so to everybody who waits, and works again afterwards."""
    async with opened(tmp_path) as consumers:
        assert consumers._file is not None
        connection = consumers._file.connection
        connection.execute("PRAGMA query_only=ON")
        outcomes = await asyncio.gather(
            *[consumers.remember(name, "1") for name in "aab"], return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
        assert await consumers.recall("a") is None
        connection.execute("PRAGMA query_only=OFF")
        await consumers.remember("a", "2")
        assert await consumers.recall("a") == "2"


@pytest.mark.parametrize("kind", ["file", "memory"])
async def test_remember_and_recall(tmp_path: Path, kind: str) -> None:
    """The latest cursor of each name is recalled, also while it is on its way to the disk."""
    async with opened(tmp_path if kind == "file" else None) as consumers:
        assert await consumers.recall("a") is None
        first = consumers.remember("a", "1")
        assert await consumers.recall("a") == "1"
        second = consumers.remember("a", "2")
        assert await consumers.recall("a") == "2"
        await asyncio.gather(first, second)
        assert await consumers.recall("a") == "2"


async def test_acknowledgements_are_merged(tmp_path: Path) -> None:
    """Of acknowledgements that are ready together the latest of each name is written, in one commit."""
    async with opened(tmp_path) as consumers:
        stored: list[dict[str, str]] = []
        store = consumers._store

        def counted(given: dict[str, str]) -> set[str]:
            stored.append(dict(given))
            return store(given)

        consumers._store = counted  # type: ignore[method-assign]  # the real one, counted
        await asyncio.gather(*[consumers.remember("ab"[index % 2], str(index)) for index in range(1000)])
        assert stored == [{"a": "998", "b": "999"}]


async def test_caller_that_gives_up(tmp_path: Path) -> None:
    """A caller that is cancelled while it waits disturbs no other."""
    async with opened(tmp_path) as consumers:
        first = asyncio.ensure_future(consumers.remember("a", "1"))
        second = consumers.remember("a", "2")
        first.cancel()
        await second
        assert await consumers.recall("a") == "2"


async def test_restart(tmp_path: Path) -> None:
    """Names of every kind keep their cursors over a restart."""
    names = ["plain", "with space", 'quote"', "back\\slash", "é€😀", "$[0]", "'", ",", ""]
    async with opened(tmp_path) as consumers:
        await asyncio.gather(*[consumers.remember(name, f"c{index}") for index, name in enumerate(names)])
        await consumers.remember("plain", "newer")
    async with opened(tmp_path) as consumers:
        found = [await consumers.recall(name) for name in names]
    assert found == ["newer", *[f"c{index}" for index in range(1, len(names))]]


# --- shared by several processes ---------------------------------------------------------------------------


@asynccontextmanager
async def shared(folder: Path, number: int, max_consumers: int = 100) -> AsyncIterator[list[SqliteConsumers]]:
    """Open one store several times, as the workers of a gateway do."""
    with hold(folder, FORMAT):
        stores = [SqliteConsumers(folder, max_consumers=max_consumers, shared=True) for _ in range(number)]
        await asyncio.gather(*(each.start() for each in stores))
        try:
            yield stores
        finally:
            await asyncio.gather(*(each.close() for each in stores))


async def test_what_one_remembers_all_recall(tmp_path: Path) -> None:
    """A cursor that was acknowledged in one process is the one that every other recalls."""
    async with shared(tmp_path, 3) as stores:
        for number, store in enumerate(stores * 5):
            await store.remember("a", str(number))
            assert [await each.recall("a") for each in stores] == [str(number)] * 3


async def test_many_writers_at_once(tmp_path: Path) -> None:
    """Processes that acknowledge at the same time wait for each other, and nothing is lost."""
    async with shared(tmp_path, 4) as stores:
        await asyncio.gather(
            *(store.remember(f"{at}-{n}", str(n)) for n in range(20) for at, store in enumerate(stores))
        )
        for at in range(4):
            for n in range(20):
                assert await stores[n % 4].recall(f"{at}-{n}") == str(n)


async def test_the_bound_holds_for_all_together(tmp_path: Path) -> None:
    """However many processes take new names, there are never more than the bound; known names go on."""
    async with shared(tmp_path, 3, max_consumers=10) as stores:
        outcomes = await asyncio.gather(
            *(store.remember(f"{at}-{n}", "1") for n in range(9) for at, store in enumerate(stores)),
            return_exceptions=True,
        )
        assert sum(outcome is None for outcome in outcomes) == 10
        assert sum(isinstance(outcome, ConsumersFull) for outcome in outcomes) == 17
        names = [f"{at}-{n}" for n in range(9) for at in range(3)]
        known = [name for name in names if await stores[0].recall(name)]
        assert len(known) == 10
        for at, name in enumerate(known):
            await stores[at % 3].remember(name, "2")
        for store in stores:
            with pytest.raises(ConsumersFull):
                await store.remember("new", "1")
    async with opened(tmp_path) as consumers:
        assert [await consumers.recall(name) for name in known] == ["2"] * 10


async def test_a_store_that_is_held_is_nobody_elses(tmp_path: Path) -> None:
    """Another gateway is refused while the store is held, whether or not anybody has it open."""
    with hold(tmp_path, FORMAT):
        with pytest.raises(LogInUse, match=r"store\.db is in use by another process"):
            async with opened(tmp_path):
                pass
        with pytest.raises(LogInUse), hold(tmp_path, FORMAT):
            pass
    async with opened(tmp_path):
        with pytest.raises(LogInUse), hold(tmp_path, FORMAT):
            pass


async def test_a_commit_that_fails_gives_the_store_back(tmp_path: Path) -> None:
    """A process whose commit fails says so, and does not keep the others from writing."""
    async with shared(tmp_path, 2) as (one, two):
        assert one._file is not None
        connection = one._file.connection
        connection.execute(
            "CREATE TEMP TRIGGER no BEFORE INSERT ON main.consumers BEGIN SELECT RAISE(FAIL, 'no'); END"
        )
        with pytest.raises(StoreUnavailable):
            await one.remember("a", "1")
        await two.remember("a", "2")
        connection.execute("DROP TRIGGER temp.no")
        await one.remember("b", "3")
        assert [await two.recall("a"), await two.recall("b")] == ["2", "3"]


async def test_a_process_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    """The others go on, with what it had committed and nothing of what it had not."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from gateway.sqlite_consumers import FORMAT\n"
        "from gateway.sqlite_file import SqliteFile\n"
        "connection = SqliteFile(Path(sys.argv[1]), FORMAT, print, shared=True).connection\n"
        "connection.execute('INSERT INTO consumers VALUES (?, ?)', ('kept', '1'))\n"
        "connection.execute('BEGIN IMMEDIATE')\n"
        "connection.execute('INSERT INTO consumers VALUES (?, ?)', ('lost', '1'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    async with shared(tmp_path, 1) as (store,):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program, str(tmp_path)], check=False
        )
        assert done.returncode == -signal.SIGKILL
        assert [await store.recall("kept"), await store.recall("lost")] == ["1", None]
        await store.remember("lost", "2")
        assert await store.recall("lost") == "2"
