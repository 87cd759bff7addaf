"""
The driver: one connection to the server, and what its errors mean. The only file that uses asyncpg.

Errors are sorted by what helps. *Refused* is what no waiting changes: a wrong password, a database that is
not there, a right that is missing; a start ends with it. *Lost* means that the server cannot be reached or
has let go of us: it is asked again in a while. All else is about one statement; others may go well.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Any, Final, Protocol, cast

import asyncpg

from gateway.log import LogDamaged, StoreUnavailable
from gateway.postgres.address import Address
from gateway.postgres.schema import SCHEMA, Connection

CONNECT_SECONDS: Final = 5.0

RETRY_DOWN: Final = 2.0
"""Seconds after which a refused caller should try again."""

_SESSION: Final = {
    "application_name": "sluicegate",
    "search_path": SCHEMA,
    "timezone": "UTC",
    "jit": "off",  # statements are short; compiling one would take longer
    # Lists of rows are given as parameters. By their length they may look as if reading a whole table were
    # cheaper than looking some rows up, which it is not for long.
    "plan_cache_mode": "force_generic_plan",
    # What a replica that was frozen or cut off leaves behind must not hold its locks for long.
    "statement_timeout": "4s",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}

_REFUSED: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,  # and with it a wrong password
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.DuplicateTableError,
    asyncpg.ClientConfigurationError,
)
_LOST: Final = (
    OSError,  # and with it a timeout
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.ReadOnlySQLTransactionError,  # the server has become a standby
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
)


class DriverConnection(Connection, Protocol):
    """A connection that can be ended; made by `connect`."""

    async def close(self, *, timeout: float) -> None:  # noqa: ASYNC109  (the driver's own word)
        """Say goodbye and close."""

    def terminate(self) -> None:
        """Cut it off."""

    def is_closed(self) -> bool:
        """Return whether it was closed, by whomever."""


async def connect(address: Address) -> DriverConnection:
    """
    Connect to the first of the hosts that takes writes.

    Raises:
        Exception: see `refusal` and `is_lost`.
    """
    connection = await asyncpg.connect(
        address.text,
        timeout=CONNECT_SECONDS,
        server_settings=_SESSION,
        target_session_attrs="read-write",
    )
    return cast("DriverConnection", connection)


def where(address: Address) -> str:
    """Return what messages call the store."""
    return f"the store at {address.name}"


def refusal(error: BaseException, address: Address) -> LogDamaged | None:
    """Return the sentence that ends a start, if the error is one that no waiting changes."""
    if isinstance(error, LogDamaged):
        return error
    store, why = where(address), None
    match error:
        case asyncpg.InsufficientPrivilegeError():
            why = may_not_make(address, f" ({_said(error)})")
        case asyncpg.DuplicateTableError():
            why = f"{store}: its schema {SCHEMA} has tables of somebody else ({_said(error)})"
        case ssl.SSLCertVerificationError():
            why = f"the certificate of {store} is not trusted: {error.verify_message}"
        case ssl.SSLError() if not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            why = f"{store}: TLS cannot be used as the address says ({error.reason or error})"
        case ConnectionError() if "rejected SSL upgrade" in str(error):
            why = f"{store} offers no TLS, which sslmode demands"
        case _ if isinstance(error, _REFUSED):
            why = f"{store}: {_said(error)}"
    return None if why is None else LogDamaged(why)


def may_not_make(address: Address, said: str = "") -> str:
    """Return the sentence about a user who lacks the right to make our tables."""
    return (
        f"{where(address)}: its user may not make tables there{said}: GRANT CREATE ON DATABASE … TO …, or "
        f"make the schema for it, CREATE SCHEMA {SCHEMA} AUTHORIZATION …"
    )


def is_lost(error: BaseException) -> bool:
    """Return whether an error means that the server cannot be reached, or let go of us."""
    return isinstance(error, _LOST) and not isinstance(error, asyncpg.ClientConfigurationError)


def failed_migration(error: BaseException, address: Address) -> LogDamaged | None:
    """Return the sentence that ends a start whose migrations cannot be done, if it is not for being away."""
    if (refused := refusal(error, address)) is not None:
        return refused
    if not isinstance(error, asyncpg.PostgresError) or is_lost(error):
        return None
    return LogDamaged(f"{where(address)}: its tables cannot be made or changed: {_said(error)}")


def unavailable(error: BaseException, address: Address) -> StoreUnavailable:
    """Return the error that callers get for one of the server's, or of the way there."""
    store = where(address)
    match error:
        case TimeoutError():
            return StoreUnavailable(f"{store} does not answer", RETRY_DOWN)
        case asyncpg.TargetServerAttributeNotMatched():
            return StoreUnavailable(f"{store} takes no writes: it is a standby, or read-only", RETRY_DOWN)
        case OSError():
            return StoreUnavailable(f"{store} cannot be reached: {_system_said(error)}", RETRY_DOWN)
        case asyncpg.DiskFullError():
            return StoreUnavailable(f"the disk of {store} is full", RETRY_DOWN)
        case asyncpg.UndefinedTableError() | asyncpg.InvalidSchemaNameError():
            return StoreUnavailable(tables_gone(address), RETRY_DOWN)
    return StoreUnavailable(f"{store}: {_said(error)}", RETRY_DOWN)


def tables_gone(address: Address) -> str:
    """Return the sentence about tables that were there and are not."""
    return (
        f"the tables in {where(address)} have gone: restore them from a backup, or restart the gateways, "
        "which begins with empty ones"
    )


def is_expected(error: BaseException) -> bool:
    """Return whether an error is one of the driver, the server or the way there, and no mistake of ours."""
    return isinstance(
        error, (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
    )


def _system_said(error: OSError) -> str:
    """Return the system's words for an error, which the event loop may have replaced by its own."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)


def _said(error: BaseException) -> str:
    """Return what the server or the driver said, on one line and without its hints."""
    said: Any = getattr(error, "message", None) or (error.args[0] if error.args else type(error).__name__)
    return str(said).partition("\n")[0].strip()
