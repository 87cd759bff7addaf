"""What tests of the API of webhooks share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.postgres import Postgres
from tests.support.stores import opened
from tests.support.webhook_api import Api, serving
from webhooks.postgres_store import PART, PostgresStore
from webhooks.sqlite_store import SqliteStore


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres({"fsync": "off"}) as one:
        yield one


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.integration)])
async def api(request: pytest.FixtureRequest) -> AsyncIterator[Api]:
    """The API of either store."""
    if request.param == "sqlite":
        store = SqliteStore(None)
        await store.start()
        async with serving(store) as found:
            yield found
        await store.close()
    else:
        async with (
            opened(request.getfixturevalue("server").make(), [PART]) as database,
            serving(PostgresStore(database)) as found,
        ):
            yield found
