"""The store of webhooks against a plain model, in SQLite and in PostgreSQL: it does not matter which."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from gateway.postgres.address import Address
from gateway.postgres.database import Database
from tests.support.postgres import Postgres
from tests.support.webhook_model import StoreMachine
from webhooks.postgres_store import PART, PostgresStore
from webhooks.sqlite_store import SqliteStore
from webhooks.store import Store
from webhooks.tables import VERSIONS

EXAMPLES: Final = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as one:
        yield one


def test_sqlite_is_as_the_model(runner: asyncio.Runner) -> None:
    """In a file, which is closed and opened again in between."""

    class Machine(StoreMachine):
        def __init__(self) -> None:
            self._folder = TemporaryDirectory()
            self._open()
            super().__init__(lambda: self._real, runner.run, self._again)

        def _open(self) -> None:
            self._real: Store = SqliteStore(Path(self._folder.name))
            runner.run(self._real.start())

        def _again(self) -> None:
            runner.run(self._real.close())
            self._open()

        def teardown(self) -> None:
            try:
                super().teardown()
            finally:
                runner.run(self._real.close())
                self._folder.cleanup()

    run_state_machine_as_test(Machine, settings=settings(EXAMPLES, max_examples=15))


def test_sqlite_in_memory_is_as_the_model(runner: asyncio.Runner) -> None:
    """In memory, where one connection reads and writes."""

    class Machine(StoreMachine):
        def __init__(self) -> None:
            real = SqliteStore(None)
            runner.run(real.start())
            super().__init__(lambda: real, runner.run)

        def teardown(self) -> None:
            try:
                super().teardown()
            finally:
                runner.run(self.store.close())

    run_state_machine_as_test(Machine, settings=settings(EXAMPLES, max_examples=150))


@pytest.mark.integration
def test_postgres_is_as_the_model(runner: asyncio.Runner) -> None:
    """In a database."""
    with Postgres({"fsync": "off"}) as server:
        url = server.make()
        database = Database(Address.parse(url), [PART], connections=4)
        runner.run(database.start())
        real = PostgresStore(database)

        class Machine(StoreMachine):
            def __init__(self) -> None:
                runner.run(_empty(database))
                super().__init__(lambda: real, runner.run)

        run_state_machine_as_test(Machine, settings=settings(EXAMPLES, max_examples=30))
        runner.run(database.close())


async def _empty(database: Database) -> None:
    """Put everything back to how a new store is."""
    tables = "logs, owners, endpoints, messages, deliveries, attempts, jobs"
    await database.run(
        lambda connection: connection.execute(
            f"TRUNCATE {tables}; UPDATE counters SET value = 0; UPDATE buckets SET owner = 0, position = -1"
        )
    )


def test_there_is_one_version() -> None:
    """A change of the tables is a new version: nobody edits one that is in use."""
    assert len(VERSIONS) == 1
