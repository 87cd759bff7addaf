"""What `sluice check` says about a store: would a gateway start on it? Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from gateway.log import LogDamaged
from gateway.postgres import driver
from gateway.postgres.address import Address
from gateway.postgres.schema import Connection, Part, look, refuse_newer

SECONDS: Final = 10.0

_TLS: Final = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
_MAY_MAKE: Final = """
SELECT COALESCE((SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = 'sluicegate'),
                has_database_privilege(current_database(), 'CREATE'))
"""


async def inspect(address: Address, parts: Sequence[Part]) -> str:
    """
    Return what is to be said about a store that can be used.

    Raises:
        LogDamaged: it cannot, or not now; the sentence says why.
    """
    try:
        async with asyncio.timeout(SECONDS):
            connection = await driver.connect(address)
            try:
                async with connection.transaction(readonly=True):
                    return await _described(connection, address, parts)
            finally:
                connection.terminate()
    except BaseException as error:
        if (refusal := driver.refusal(error, address)) is not None:
            raise refusal from error
        if driver.is_expected(error):
            raise LogDamaged(str(driver.unavailable(error, address))) from error
        raise


async def _described(connection: Connection, address: Address, parts: Sequence[Part]) -> str:
    where = driver.where(address)
    found = await look(connection, where)
    refuse_newer(found, parts, where)
    if not found.is_current(parts) and not await connection.fetchval(_MAY_MAKE):
        raise LogDamaged(driver.may_not_make(address))
    tls = "with" if await connection.fetchval(_TLS) else "without"
    head = f"{address.name} answers, PostgreSQL {found.server}, {tls} TLS;"
    if found.versions is None:
        return f"{head} there is nothing of ours yet, serving will make it."
    count = await connection.fetchval("SELECT count(*) FROM consumers")
    rest = "" if found.is_current(parts) else ", and serving will bring its tables up to date"
    return f"{head} it holds {count} durable subscription{'s' * (count != 1)}{rest}."
