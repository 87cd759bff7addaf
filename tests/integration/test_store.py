"""The store on a real server: made once, reached again, and a sentence for whatever cannot be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.log import LogDamaged, StoreUnavailable
from gateway.postgres import database as module
from gateway.postgres.consumers import PART
from gateway.postgres.database import Database
from gateway.postgres.schema import Connection
from tests.support.command import run_sluice
from tests.support.postgres import PASSWORD, USER, Postgres
from tests.support.quick import quickest
from tests.support.server import GatewayProcess, free_port
from tests.support.stores import DEADLINE, opened, usable

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as one:
        yield one


@pytest.fixture
def url(server: Postgres) -> str:
    """The address of a new, empty database."""
    return server.make()


async def _one(connection: Connection) -> Any:
    return await connection.fetchval("SELECT 1")


# --- the tables


async def test_the_tables_are_made_once(server: Postgres, url: str) -> None:
    """The first start makes the tables, the second one finds them; they lie in a schema of their own."""
    for _ in range(2):
        async with opened(url) as database:
            assert await database.run(_one) == 1
    assert server.query("SELECT part, version FROM sluicegate.versions", url) == [["consumers", "1"]]
    tables = server.query(
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname !~ '^(pg_|information)' ORDER BY 2", url
    )
    assert tables == [["sluicegate", "consumers"], ["sluicegate", "versions"]]


async def test_replicas_that_start_together_make_them_once(server: Postgres, url: str) -> None:
    """Of many that start at once on an empty database one makes the tables, and all have them."""
    slow = replace(PART, migrations=("SELECT pg_sleep(0.3);" + PART.migrations[0],))
    bases = [opened(url, [slow]) for _ in range(8)]
    started = await asyncio.gather(*(each.__aenter__() for each in bases))
    try:
        assert [await each.run(_one) for each in started] == [1] * 8
    finally:
        await asyncio.gather(*(each.__aexit__(None, None, None) for each in bases))
    assert server.query("SELECT part, version FROM sluicegate.versions", url) == [["consumers", "1"]]


async def test_a_newer_version_brings_the_tables_along(server: Postgres, url: str) -> None:
    """A new migration is done once, on what is there; a replica of the version before goes on meanwhile."""
    newer = replace(PART, migrations=(*PART.migrations, "ALTER TABLE consumers ADD COLUMN more int"))
    async with opened(url) as old:
        await old.run(lambda c: c.execute("INSERT INTO consumers VALUES ('a', '1')"))
        for _ in range(2):
            async with opened(url, [newer]) as new:
                rows = await new.run(lambda c: c.fetch("SELECT name, cursor, more FROM consumers"))
                assert [tuple(row) for row in rows] == [("a", "1", None)]
        await old.run(lambda c: c.execute("INSERT INTO consumers VALUES ('b', '1')"))
        await _away_and_back(server, old)
        assert await old.run(_one) == 1
    with pytest.raises(LogDamaged) as caught:
        async with opened(url):
            pass
    assert "a newer Sluicegate made the tables in the store at 127.0.0.1:" in str(caught.value)
    assert "(consumers: version 2, known: 1)" in str(caught.value)


async def test_a_migration_that_fails_leaves_nothing(server: Postgres, url: str) -> None:
    """Migrations are one transaction: when the last one fails, the first ones have not happened."""
    broken = replace(PART, migrations=(*PART.migrations, "ALTER TABLE nothing ADD COLUMN more int"))
    with pytest.raises(LogDamaged, match='its tables cannot be made or changed: relation "nothing" does not'):
        async with opened(url, [broken]):
            pass
    assert server.query("SELECT count(*) FROM pg_namespace WHERE nspname = 'sluicegate'", url) == [["0"]]


async def test_tables_that_go_are_not_made_again(server: Postgres, url: str) -> None:
    """When the tables go under a running replica it says so, and does not begin with empty ones by itself."""
    async with opened(url) as database:
        server.query("ALTER SCHEMA sluicegate RENAME TO hidden", url)
        with pytest.raises(StoreUnavailable, match=r"the tables in the store at .* have gone: restore them"):
            await database.run(lambda c: c.fetch("SELECT * FROM consumers"))
        assert "have gone" in str(database.trouble())
        await asyncio.to_thread(server.stop)
        await usable(database, lambda trouble: "cannot be reached" in trouble)
        await asyncio.to_thread(server.start)
        await usable(database, lambda trouble: "have gone" in trouble)
        server.query("ALTER SCHEMA hidden RENAME TO sluicegate", url)
        await usable(database)
        assert await database.run(lambda c: c.fetch("SELECT * FROM consumers")) == []


async def test_what_is_there_for_us_is_used(server: Postgres, url: str) -> None:
    """A user who may make no schema works in one that was made for it."""
    server.query(
        f"ALTER DATABASE {_name(url)} OWNER TO postgres; CREATE SCHEMA sluicegate AUTHORIZATION sluice", url
    )
    async with opened(url) as database:
        assert await database.run(_one) == 1


# --- what waiting does not change


async def _refused(address: str, sentence: str) -> str:
    with pytest.raises(LogDamaged, match=sentence) as caught:
        async with opened(address):
            pass
    assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_wrong_password_ends_the_start(server: Postgres, url: str) -> None:
    """A start with a wrong password, user or database is refused, with no password in the sentence."""
    said = await _refused(
        url.replace(PASSWORD, "wrong-one"), 'password authentication failed for user "sluice"'
    )
    assert "wrong-one" not in said
    await _refused(server.url("postgres", user="nobody-known"), "authentication failed for user")
    await _refused(server.url("not-there"), 'database "not-there" does not exist')


async def test_a_missing_right_ends_the_start(server: Postgres, url: str) -> None:
    """A user who may not make tables is told what to grant; nothing was made."""
    server.query(f"ALTER DATABASE {_name(url)} OWNER TO postgres", url)
    await _refused(
        url,
        r"its user may not make tables there \(permission denied for database .*\): GRANT CREATE ON DATABASE",
    )
    server.query("CREATE SCHEMA sluicegate", url)
    await _refused(url, r"may not make tables there \(permission denied for schema sluicegate\)")


async def test_tables_that_are_not_for_us_end_the_start(server: Postgres, url: str) -> None:
    """A user who may not use the tables that another one made is told what to grant."""
    async with opened(url):
        pass
    server.query("ALTER TABLE sluicegate.consumers OWNER TO postgres", url)
    await _refused(url, "may not use the table consumers: GRANT SELECT, INSERT, UPDATE, DELETE")
    server.query("GRANT SELECT, INSERT, UPDATE, DELETE ON sluicegate.consumers TO sluice", url)
    async with opened(url) as database:
        assert await database.run(_one) == 1
    server.query("ALTER SCHEMA sluicegate OWNER TO postgres", url)
    await _refused(url, "permission denied for schema sluicegate")


async def test_tables_of_somebody_else_end_the_start(server: Postgres, url: str) -> None:
    """A schema of our name with another program's tables is left alone."""
    server.query(
        "CREATE SCHEMA sluicegate AUTHORIZATION sluice; CREATE TABLE sluicegate.consumers (theirs int)", url
    )
    await _refused(url, "its schema sluicegate has tables of somebody else")
    assert server.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'sluicegate'", url) == [["1"]]


async def test_a_database_that_cannot_hold_every_text_is_refused(server: Postgres) -> None:
    """A database with another encoding than UTF-8 is refused before anything is made."""
    await _refused(
        server.make(encoding="LATIN1"), "has the encoding LATIN1: make a database with the encoding UTF8"
    )


async def test_an_old_server_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server older than what is needed is refused; here the newest one is made too old."""
    monkeypatch.setattr("gateway.postgres.schema.OLDEST", 990000)
    await _refused(url, r"is PostgreSQL \d+.*: 99 or newer is needed")


# --- TLS


@pytest.fixture(scope="module")
def secure() -> Iterator[Postgres]:
    with Postgres(tls=True) as one:
        yield one


@pytest.mark.parametrize(
    ("parameters", "encrypted"),
    [("?sslmode=disable", False), ("", True), ("?sslmode=require", True), ("?sslmode=verify-full", True)],
)
async def test_tls_is_as_the_address_says(secure: Postgres, parameters: str, encrypted: bool) -> None:
    """Without a word TLS is used when there is some; `verify-full` wants a certificate that is trusted."""
    if "verify" in parameters:
        parameters += f"&sslrootcert={secure.certificate}"
    async with opened(secure.make() + parameters) as database:
        sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert await database.run(lambda c: c.fetchval(sql)) is encrypted


async def test_a_certificate_that_is_not_trusted_ends_the_start(
    server: Postgres, secure: Postgres, tmp_path: Path
) -> None:
    """A certificate of somebody else, for another name, or none at all is refused when one was asked for."""
    with Postgres(tls=True) as other:
        parameters = f"?sslmode=verify-full&sslrootcert={other.certificate}"
        await _refused(
            secure.make() + parameters, "the certificate of the store at .* is not trusted: self-signed"
        )
    broken = tmp_path / "root.crt"
    broken.write_text("no certificate")
    await _refused(
        secure.make() + f"?sslmode=verify-ca&sslrootcert={broken}", "TLS cannot be used as the address"
    )
    await _refused(server.make() + "?sslmode=require", "offers no TLS, which sslmode demands")


# --- a server that is away


async def test_a_start_does_not_wait_for_a_server(server: Postgres, url: str) -> None:
    """A server that is away at the start is waited for in the background, and said to be away meanwhile."""
    server.stop()
    try:
        async with opened(url) as database:
            assert "cannot be reached: Connection refused" in str(database.trouble())
            with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
                await database.run(_one)
            assert caught.value.retry_after > 0
            await asyncio.to_thread(server.start)
            await usable(database)
            assert await database.run(_one) == 1
    finally:
        if not server.alive:
            server.start()


async def test_a_host_that_is_not_there_is_waited_for() -> None:
    """A name that nobody knows and a port that nobody has are no reason to end a start."""
    for where in ("no-such-host.invalid:5432", f"127.0.0.1:{free_port()}"):
        async with opened(f"postgresql://{USER}:{PASSWORD}@{where}/app") as database:
            assert f"the store at {where}/app cannot be reached" in str(database.trouble())


async def test_a_killed_server_is_noticed_and_found_again(server: Postgres, url: str) -> None:
    """A crash fails the work under way, and is over when the server is back."""
    async with opened(url) as database:
        working = asyncio.ensure_future(database.run(lambda c: c.fetchval("SELECT pg_sleep(3)")))
        await _is_sleeping(server, url)
        await asyncio.to_thread(server.kill)
        with pytest.raises(StoreUnavailable):
            await working
        assert database.trouble() is not None
        await asyncio.to_thread(server.start)
        await usable(database)
        assert await database.run(_one) == 1


async def test_an_idle_store_says_when_its_server_goes(server: Postgres, url: str) -> None:
    """A server that ends while nobody asks it anything is noticed within seconds."""
    async with opened(url) as database:
        await asyncio.to_thread(server.stop)
        try:
            await usable(database, lambda trouble: "cannot be reached" in trouble)
        finally:
            await asyncio.to_thread(server.start)
        await usable(database)


async def test_a_frozen_server_is_given_up_in_time(
    server: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of a server that stands still fails in time, and from then on at once."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 1.0)
    async with opened(url) as database:
        server.freeze()
        try:
            with pytest.raises(StoreUnavailable, match="does not answer"):
                await database.run(_one, seconds=1.0)

            async def refused() -> None:
                with pytest.raises(StoreUnavailable, match="does not answer"):
                    await database.run(_one)

            assert await quickest(refused) < 0.5
        finally:
            server.thaw()
        await usable(database)
        assert await database.run(_one) == 1


async def test_a_failed_statement_is_no_loss(url: str) -> None:
    """What fails on a server that answers is said for a while; other work goes on at once."""
    async with opened(url) as database:
        with pytest.raises(StoreUnavailable, match="division by zero"):
            await database.run(lambda c: c.fetchval("SELECT 1 / 0"))
        assert "division by zero" in str(database.trouble())
        assert await database.run(_one) == 1


async def test_a_failed_transaction_leaves_nothing(url: str) -> None:
    """Whatever ends a transaction early, nothing of it stays, and the next work has a clean connection."""

    async def work(connection: Connection) -> None:
        async with connection.transaction():
            await connection.execute("INSERT INTO consumers VALUES ('a', '1')")
            raise KeyError

    async with opened(url, connections=1) as database:
        with pytest.raises(KeyError):
            await database.run(work)
        assert await database.run(lambda c: c.fetchval("SELECT count(*) FROM consumers")) == 0


async def test_work_is_bounded_in_number_and_who_gives_up_frees_a_place(server: Postgres, url: str) -> None:
    """There are never more connections than allowed, and cancelled work gives its own back."""
    async with opened(url, connections=2) as database:
        sleeping = [
            asyncio.ensure_future(database.run(lambda c: c.fetchval("SELECT pg_sleep(4)"))) for _ in range(5)
        ]
        await _is_sleeping(server, url, 2)
        assert len(_backends(server, url)) == 2
        for each in sleeping:
            each.cancel()
        await asyncio.gather(*sleeping, return_exceptions=True)
        assert await database.run(_one) == 1
        assert database.trouble() is None


async def test_a_connection_that_was_cut_is_not_given_out(server: Postgres, url: str) -> None:
    """An idle connection that the server ended costs nobody an answer."""
    async with opened(url) as database:
        await database.run(_one)
        _cut_off(server, url)
        await _until_none(server, url)
        assert await database.run(_one) == 1


async def test_a_closed_store_takes_nothing(url: str) -> None:
    """Closing is idempotent, and work is refused afterwards."""
    async with opened(url) as database:
        await asyncio.gather(database.close(), database.close())
        with pytest.raises(StoreUnavailable, match="the store is closed"):
            await database.run(_one)


# --- what `sluice check` says


def _check(url: str) -> tuple[int, str]:
    done = run_sluice("check", "--data", "memory:", "--store", url)
    assert PASSWORD not in done.stdout + done.stderr
    return done.returncode, done.stderr or done.stdout.splitlines()[-1]


def test_check_says_what_it_found_and_changes_nothing(server: Postgres, url: str) -> None:
    """An empty database is left empty, and one that is in use is looked into."""
    name = url.rpartition("@")[2]
    for _ in range(2):
        code, said = _check(url)
        assert code == 0
        assert said.startswith(f"Store: {name} answers, PostgreSQL {server.version}, without TLS; ")
        assert said.endswith("; there is nothing of ours yet, serving will make it.")
    with GatewayProcess(store=url) as gateway:
        gateway.get("/v1/events?topic=a&consumer=me")
        code, said = _check(url)
        assert (code, said.partition("; ")[2]) == (0, "it holds 1 durable subscription.")


def test_check_refuses_what_a_start_would(server: Postgres, url: str) -> None:
    """A password, a right or a server that is missing is one line on the standard error, and exit code 1."""
    code, said = _check(url.replace(PASSWORD, "wrong-one"))
    assert (code, said.count("\n")) == (1, 1)
    assert "password authentication failed" in said
    server.query(f"ALTER DATABASE {_name(url)} OWNER TO postgres", url)
    code, said = _check(url)
    assert code == 1
    assert "its user may not make tables there: GRANT CREATE" in said
    code, said = _check(f"postgresql://127.0.0.1:{free_port()}/app")
    assert code == 1
    assert "cannot be reached: Connection refused" in said
    server.query("CREATE SCHEMA sluicegate AUTHORIZATION sluice", url)
    assert _check(url)[0] == 0


def test_check_refuses_what_a_newer_version_made(server: Postgres, url: str) -> None:
    """Tables of a newer version are refused, as a start refuses them."""
    with GatewayProcess(store=url):
        pass
    server.query("UPDATE sluicegate.versions SET version = 99", url)
    code, said = _check(url)
    assert code == 1
    assert "a newer Sluicegate made the tables" in said


# --- looking at the server


async def _away_and_back(server: Postgres, database: Database) -> None:
    """Have a store lose its server and find it again."""
    await asyncio.to_thread(server.stop)
    await usable(database, lambda trouble: "cannot be reached" in trouble)
    await asyncio.to_thread(server.start)
    await usable(database)


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _backends(server: Postgres, url: str) -> list[list[str]]:
    return server.query(
        "SELECT pid, query FROM pg_stat_activity WHERE application_name = 'sluicegate' AND datname = "
        "current_database()",
        url,
    )


def _cut_off(server: Postgres, url: str) -> None:
    """Have the server end all of our connections to a database."""
    server.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sluicegate' "
        "AND datname = current_database()",
        url,
    )


async def _is_sleeping(server: Postgres, url: str, count: int = 1) -> None:
    """Wait until so many statements that sleep are under way."""

    async def sleeping() -> int:
        backends = await asyncio.to_thread(_backends, server, url)
        return sum("pg_sleep" in query for _, query in backends)

    await _until(sleeping, count)


async def _until_none(server: Postgres, url: str) -> None:
    """Wait until we have no connection to a database."""

    async def backends() -> int:
        return len(await asyncio.to_thread(_backends, server, url))

    await _until(backends, 0)


async def _until(count: Callable[[], Awaitable[int]], expected: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while (found := await count()) != expected:
        assert time.monotonic() < deadline, f"there are {found}"
        await asyncio.sleep(0.02)
