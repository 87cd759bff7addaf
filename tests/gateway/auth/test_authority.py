"""Keys, tickets and revocations over a real store: who is known by them, and who is not any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.auth.authority import Authority
from gateway.auth.registry import Registry, Revocation, StoredKey, new_key
from gateway.auth.sources import SharedKey
from gateway.auth.store import KEY, REVOCATION, SqliteAccess
from gateway.problems import Problem
from gateway.sqlite_consumers import SqliteConsumers
from tests.support.tokens import NOW, SECRET, token


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteAccess]:
    """The store in a file."""
    file = SqliteConsumers(tmp_path)
    await file.start()
    yield SqliteAccess(file)
    await file.close()


@pytest.fixture
async def authority(store: SqliteAccess) -> Authority:
    """An authority that follows it."""
    made = Authority([SharedKey(SECRET)], Registry(store), clock=lambda: NOW)
    await made.start()
    return made


async def refused(authority: Authority, text: str) -> None:
    """Expect that nobody is known by a text."""
    with pytest.raises(Problem) as problem:
        await authority.known(text)
    assert problem.value.status == 401
    assert problem.value.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def test_a_ticket_is_good_once(authority: Authority) -> None:
    """The second who comes with it is refused, and so is whoever makes one up."""
    ticket = await authority.ticket(token({"sub": "alice", "subscribe": ["a"]}))
    text, caller = await authority.redeem(ticket)
    assert caller.subject == "alice"
    assert caller.listen(["a"]) == ("a",)
    for text in (ticket, "made-up", "x" * 1000, ""):
        with pytest.raises(Problem) as problem:
            await authority.redeem(text)
        assert problem.value.status == 401


async def test_a_key_is_known_until_it_is_removed(authority: Authority, store: SqliteAccess) -> None:
    """By its whole text and by nothing else; the store has only a digest of its secret."""
    text, id, digest = new_key()
    stored = StoredKey(digest=digest, claims={"publish": ["a.#"]}, subject="service", created=NOW)
    await store.put(KEY, id, msgspec.json.encode(stored), 0)
    await authority.registry.follow()
    assert (await authority.known(text)).subject == "service"
    await refused(authority, text + "x")
    await refused(authority, f"sk_{id}_")
    await store.remove(KEY, id)
    await authority.registry.follow()
    await refused(authority, text)


@pytest.mark.parametrize(
    ("revocation", "others"),
    [
        (Revocation(before=NOW, subject="alice"), {"sub": "bob", "iat": NOW - 60}),
        (Revocation(before=NOW, token="one"), {"sub": "alice", "jti": "two", "iat": NOW - 60}),
        (Revocation(before=NOW, subject="alice", tenant="acme"), {"sub": "alice", "iat": NOW - 60}),
    ],
    ids=["subject", "token", "tenant"],
)
async def test_who_is_revoked(
    authority: Authority, store: SqliteAccess, revocation: Revocation, others: dict[str, object]
) -> None:
    """Those who are meant are refused, also by replicas that start later; others and newer tokens are not."""
    tenant = {} if revocation.tenant is None else {"tenant": revocation.tenant}
    meant = {"sub": "alice", "jti": "one", "iat": NOW - 60, **tenant}
    caller = await authority.known(token(meant))
    assert authority.registry.is_good(caller, NOW)
    await store.put(REVOCATION, revocation.name, msgspec.json.encode(revocation), 0)
    await authority.registry.follow()
    assert not authority.registry.is_good(caller, NOW)
    await refused(authority, token(meant))
    await authority.known(token(others))
    await authority.known(token({**meant, "iat": NOW}))
    later = Authority([SharedKey(SECRET)], Registry(store), clock=lambda: NOW)
    await later.start()
    await refused(later, token(meant))


async def test_a_topic_is_taken(authority: Authority, store: SqliteAccess) -> None:
    """What overlaps with it is not granted any more; the token is good for the rest."""
    revocation = Revocation(before=NOW, topic="a.b.#")
    await store.put(REVOCATION, revocation.name, msgspec.json.encode(revocation), 0)
    await authority.registry.follow()
    caller = await authority.known(token({"sub": "alice", "subscribe": ["#"], "iat": NOW - 1}))
    assert caller.listen(["a.c"]) == ("a.c",)
    for pattern in ("a.b", "a.b.c", "a.*", "#", "*.b"):
        with pytest.raises(Problem) as problem:
            caller.listen([pattern])
        assert problem.value.status == 403
