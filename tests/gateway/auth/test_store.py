"""What replicas share about who may come in, in either store: order, bounds, and tickets that one gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from gateway.auth import registry, store
from gateway.auth.caller import Caller
from gateway.auth.registry import Registry, Revocation, StoredKey, new_key
from gateway.auth.store import (
    KEY,
    NOTE,
    REVOCATION,
    TICKET,
    AccessStore,
    EntriesFull,
    Entry,
    PostgresAccess,
    SqliteAccess,
)
from gateway.auth.tables import PART
from gateway.log import StoreUnavailable
from gateway.mint import now_ms
from gateway.sqlite_consumers import FORMAT, SqliteConsumers
from gateway.sqlite_file import hold
from tests.support.postgres import Postgres
from tests.support.stores import opened
from tests.support.tokens import NOW

Opening = Callable[[], AbstractAsyncContextManager[AccessStore]]
"""Opens the store as one more replica has it."""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres({"fsync": "off"}) as one:
        yield one


@asynccontextmanager
async def in_file(folder: Path) -> AsyncIterator[AccessStore]:
    """Open the store in a file that others have open as well."""
    file = SqliteConsumers(folder, shared=True)
    await file.start()
    try:
        yield SqliteAccess(file)
    finally:
        await file.close()


@asynccontextmanager
async def in_database(url: str) -> AsyncIterator[AccessStore]:
    async with opened(url, [PART]) as database:
        yield PostgresAccess(database)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.integration)])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opening]:
    """How each replica of a test opens its store."""
    if request.param == "sqlite":
        with hold(tmp_path, FORMAT):
            yield lambda: in_file(tmp_path)
    else:
        url = request.getfixturevalue("server").make()
        yield lambda: in_database(url)


@pytest.fixture
async def replicas(opening: Opening) -> AsyncIterator[list[AccessStore]]:
    """The store, as each of three replicas has it."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(opening()) for _ in range(3)]


def over() -> int:
    """Return a time that has just passed."""
    return now_ms() - 1


def later() -> int:
    """Return a time that is not reached in a test."""
    return now_ms() + 600_000


class TestStore:
    """One and the same for both."""

    async def test_what_changes_is_seen_by_all_in_its_order(self, replicas: list[AccessStore]) -> None:
        """An entry is listed with its last change; what was removed is listed as that."""
        one, two, three = replicas
        assert await one.changes(0) == []
        await one.put(KEY, "a", b"1", 0)
        await two.put(KEY, "b", bytes(range(256)), 9_999_999_999_999)
        await three.put(REVOCATION, "a", b"", 0)
        first = [
            Entry(KEY, "a", b"1", 0, 1),
            Entry(KEY, "b", bytes(range(256)), 9_999_999_999_999, 2),
            Entry(REVOCATION, "a", b"", 0, 3),
        ]
        for each in replicas:
            assert await each.changes(0) == first
        await two.put(KEY, "a", b"2", 5)
        assert await one.changes(0) == [*first[1:], Entry(KEY, "a", b"2", 5, 4)]
        assert await one.changes(3) == [Entry(KEY, "a", b"2", 5, 4)]
        assert await one.changes(4) == []
        before = now_ms()
        assert await three.remove(KEY, "b")
        (removed,) = await one.changes(4)
        assert (removed.kind, removed.name, removed.value, removed.revision) == (KEY, "b", None, 5)
        assert before + store.REMOVED_MS <= removed.expires <= now_ms() + store.REMOVED_MS
        assert not await two.remove(KEY, "b")
        assert not await two.remove(KEY, "never")
        await two.put(KEY, "b", b"again", 0)
        (again,) = await one.changes(5)
        assert (again.name, again.value) == ("b", b"again")

    async def test_it_is_there_after_a_restart(self, opening: Opening) -> None:
        """With its revisions, which go on."""
        async with opening() as one:
            await one.put(KEY, "é€😀'\"\\$1", b"1", 0)
            await one.put(TICKET, "t", b"2", later())
        async with opening() as one:
            await one.put(NOTE, "b", b"", 0)
            first, second = await one.changes(0)
            assert (first.name, second.name) == ("é€😀'\"\\$1", "b")
            assert second.revision > first.revision
            assert await one.take(TICKET, "t") == b"2"

    async def test_a_ticket_is_taken_by_one(self, replicas: list[AccessStore]) -> None:
        """Of all who come at once, at whichever replica, one gets it; the others get nothing, for ever."""
        for number in range(10):
            name = f"t{number}"
            await replicas[number % 3].put(TICKET, name, b"secret", later())
            takers = [replicas[taker % 3].take(TICKET, name) for taker in range(30)]
            got = await asyncio.gather(*takers)
            assert sorted(each for each in got if each is not None) == [b"secret"]
            assert [await each.take(TICKET, name) for each in replicas] == [None] * 3

    async def test_a_ticket_is_good_for_a_while(self, replicas: list[AccessStore]) -> None:
        """Then it is not there, whether or not somebody has swept."""
        one, two, _ = replicas
        await one.put(TICKET, "old", b"1", over())
        await one.put(TICKET, "new", b"2", later())
        assert await two.take(TICKET, "old") is None
        await one.sweep()
        assert await two.take(TICKET, "new") == b"2"

    async def test_tickets_are_not_followed(self, replicas: list[AccessStore]) -> None:
        """They are for whoever has one, and nobody else reads them."""
        one, two, _ = replicas
        await one.put(TICKET, "t", b"1", later())
        await one.put(KEY, "k", b"2", 0)
        assert [each.name for each in await two.changes(0)] == ["k"]
        assert await two.take(KEY, "t") is None

    async def test_revisions_are_seen_in_order(self, replicas: list[AccessStore]) -> None:
        """Whoever asks again and again for what is newer misses nothing that is written meanwhile."""
        one, two, three = replicas
        writing = True
        seen: dict[str, bytes | None] = {}

        async def follow(replica: AccessStore) -> None:
            revision = 0
            while True:
                last = not writing
                entries = await replica.changes(revision)
                revisions = [each.revision for each in entries]
                assert revisions == sorted(set(revisions))
                assert all(each > revision for each in revisions)
                for each in entries:
                    revision = each.revision
                    seen[each.name] = each.value
                if last:
                    return

        async def write(replica: AccessStore, writer: int) -> None:
            for number in range(40):
                await replica.put(KEY, f"{writer}-{number % 25}", b"%d" % number, 0)
                if number % 5 == 0:
                    await replica.remove(KEY, f"{writer}-{number % 25}")

        following = asyncio.create_task(follow(three))
        await asyncio.gather(*(write((one, two)[writer % 2], writer) for writer in range(6)))
        writing = False
        await following
        expected = {each.name: each.value for each in await one.changes(0)}
        assert len(expected) == 6 * 25
        assert seen == expected

    async def test_there_is_a_bound(
        self, replicas: list[AccessStore], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of each kind, for all replicas together; what is removed or over leaves room."""
        monkeypatch.setattr(store, "MAX_ENTRIES", 5)
        one, two, three = replicas

        async def put(number: int) -> bool:
            try:
                await replicas[number % 3].put(TICKET, f"t{number}", b"", later())
            except EntriesFull:
                return False
            return True

        done = await asyncio.gather(*map(put, range(20)))
        assert done.count(True) == 5
        for number, there in enumerate(done):
            if not there:
                assert await one.take(TICKET, f"t{number}") is None
        with pytest.raises(EntriesFull):
            await two.put(TICKET, "more", b"", later())
        await two.put(KEY, "k", b"", over())  # other kinds have room of their own
        assert await three.take(TICKET, f"t{done.index(True)}") == b""
        await two.put(TICKET, "more", b"", over())
        with pytest.raises(EntriesFull):
            await one.put(TICKET, "again", b"", later())
        await one.sweep()
        await one.put(TICKET, "again", b"", later())
        for number in range(5):
            await one.put(REVOCATION, f"r{number}", b"", 0)
        await three.remove(REVOCATION, "r0")
        await one.put(REVOCATION, "r5", b"", 0)

    async def test_what_is_over_is_swept(
        self, replicas: list[AccessStore], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was removed stays as long as somebody may not have seen it; what never ends stays."""
        one, two, _ = replicas
        await one.put(REVOCATION, "over", b"", over())
        await one.put(REVOCATION, "later", b"", later())
        await one.put(REVOCATION, "never", b"", 0)
        await one.put(KEY, "removed", b"", 0)
        await one.remove(KEY, "removed")
        await two.sweep()
        assert [each.name for each in await one.changes(0)] == ["later", "never", "removed"]
        monkeypatch.setattr(store, "REMOVED_MS", -1)
        await one.put(KEY, "removed", b"", 0)
        await one.remove(KEY, "removed")
        await two.sweep()
        assert [each.name for each in await one.changes(0)] == ["later", "never"]

    async def test_a_store_that_is_closed_says_so(self, opening: Opening) -> None:
        """So does one that is away: whoever asks can be told to come again."""
        async with opening() as one:
            pass
        for asked in (
            one.put(KEY, "a", b"", 0),
            one.remove(KEY, "a"),
            one.take(KEY, "a"),
            one.changes(0),
            one.sweep(),
        ):
            with pytest.raises(StoreUnavailable):
                await asked


# --- replicas that follow


def revocation(**members: str) -> tuple[str, bytes]:
    """Return the name and the value of a revocation of what was made before `NOW`."""
    made = Revocation(before=NOW, token=members.get("token"), subject=members.get("subject"))
    return made.name, msgspec.json.encode(made)


async def test_replicas_follow_each_other(
    replicas: list[AccessStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made or removed at one is known to the others, page by page, and to who starts later."""
    monkeypatch.setattr(store, "PAGE", 4)
    monkeypatch.setattr(registry, "PAGE", 4)
    one, two = Registry(replicas[0]), Registry(replicas[1])
    changed: list[str] = []
    two.on_change = lambda: changed.append("two")
    notes: list[tuple[str, bytes]] = []
    two.on_note = lambda name, value: notes.append((name, value))

    texts = []
    for number in range(11):
        text, id, digest = new_key()
        texts.append((text, id))
        stored = StoredKey(digest=digest, claims={"publish": ["a"]}, subject=f"s{number}", created=NOW)
        await replicas[number % 2].put(KEY, id, msgspec.json.encode(stored), 0)
    await one.follow()
    await two.follow()
    assert changed == ["two"]

    def known(by: Registry) -> list[str | None]:
        callers = [by.key(text) for text, _ in texts]
        return [None if each is None else each.subject for each in callers]

    assert known(one) == known(two) == [f"s{number}" for number in range(11)]
    await two.follow()
    assert changed == ["two"]

    await replicas[0].remove(KEY, texts[3][1])
    await replicas[0].put(REVOCATION, *revocation(subject="s4"), 0)
    await replicas[0].put(NOTE, "connection", b"expired", later())
    four = two.key(texts[4][0])
    assert isinstance(four, Caller)
    assert two.is_good(four, NOW)
    await two.follow()
    assert changed == ["two", "two"]
    assert notes == [("connection", b"expired")]
    assert known(two)[3] is None
    assert two.is_good(four, NOW)  # it was made at that moment, and not before
    older = Caller(four.grants, four.kind, "s4", four.id, NOW, four.expires)
    older.issued = NOW - 1
    assert not two.is_good(older, NOW)

    three = Registry(replicas[2])
    await three.follow()
    assert known(three) == known(two)
    assert three.revocations.keys() == two.revocations.keys()


async def test_a_replica_whose_store_is_away_goes_on(opening: Opening) -> None:
    """What it knew counts, and it counts how often it could not ask."""
    text, id, digest = new_key()
    stored = StoredKey(digest=digest, claims={}, subject="s", created=NOW)
    async with opening() as one:
        followed = Registry(one)
        await one.put(KEY, id, msgspec.json.encode(stored), 0)
        await followed.follow()
    await followed.follow()
    assert followed.failures == 1
    caller = followed.key(text)
    assert caller is not None
    assert followed.is_good(caller, NOW)


async def test_following_goes_on_by_itself(
    replicas: list[AccessStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is over is swept now and then."""
    monkeypatch.setattr(registry, "FOLLOW_SECONDS", 0.005)
    monkeypatch.setattr(registry, "SWEEP_SECONDS", 0.01)
    followed = Registry(replicas[0])
    text, id, digest = new_key()
    stored = StoredKey(digest=digest, claims={}, subject="s", created=NOW)
    await replicas[1].put(KEY, id, msgspec.json.encode(stored), over())
    await replicas[1].put(REVOCATION, "over", revocation(subject="s")[1], over())
    await followed.follow()
    assert (set(followed.keys), set(followed.revocations)) == ({id}, {"over"})
    running = asyncio.create_task(followed.run())
    name, value = revocation(token="t")
    await replicas[1].put(REVOCATION, name, value, 0)
    async with asyncio.timeout(30):
        while name not in followed.revocations or len(await replicas[1].changes(0)) != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        while followed.revocations.keys() != {name} or followed.keys:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert followed._named.keys() == {("token", "t")}
    assert followed.key(text) is None
    running.cancel()


async def test_entries_that_cannot_be_read_are_passed_over(replicas: list[AccessStore]) -> None:
    """Those of a later version, or damaged ones, take nothing away from the others."""
    text, id, digest = new_key()
    good = StoredKey(digest=digest, claims={}, subject="s", created=NOW)
    bad = StoredKey(digest=digest, claims={"publish": 1}, subject="s", created=NOW)
    one = replicas[0]
    await one.put(KEY, "bad", b"{", 0)
    await one.put(KEY, "worse", msgspec.json.encode(bad), 0)
    await one.put(REVOCATION, "bad", b"\xff", 0)
    await one.put("new kind", "a", b"", 0)
    await one.put(KEY, id, msgspec.json.encode(good), 0)
    followed = Registry(one)
    await followed.follow()
    assert followed.key(text) is not None
    assert set(followed.keys) == {id}
    assert followed.revocations == {}
