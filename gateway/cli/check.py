"""`sluice check`: would `sluice serve` start with these settings? Changes nothing."""

from __future__ import annotations

import asyncio
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click

from gateway.cli.ending import Unusable
from gateway.cli.options import settings_flags
from gateway.log import LogDamaged
from gateway.settings import Settings
from gateway.sqlite_log import LogInUse, SqliteLog

LOG_FILE = "log.db"


@click.command()
@settings_flags
def check(settings: Settings) -> int:
    """
    Try the settings, the certificate, the data folder, the log or the broker, and the store.

    It says what was found; nothing is changed or made. Exit code 0: `sluice serve` with the same flags would
    start; 1: the certificate, the data folder, the log, the broker or the store cannot be used; 2: a setting
    is wrong.
    """
    click.echo("Settings: every one of them is good.")
    if settings.asks:
        click.echo(f"Tokens: {asyncio.run(_keys_found(settings))}")
    if settings.tls_cert:
        click.echo(f"TLS: {_certificate_found(settings)}")
    folder = settings.data_folder
    if settings.backbone and settings.store:
        click.echo("Data: on the broker and in the store; no folder is used.")
    elif folder is None:
        click.echo("Data: kept in memory only, and gone when the gateway ends.")
    else:
        click.echo(f"Data folder: {_folder_found(folder)}")
    if settings.backbone:
        from gateway.cli.broker import broker_found  # noqa: PLC0415  (nobody else pays for it)

        for line in broker_found(settings):
            click.echo(line)
    elif folder is not None:
        click.echo(f"Log: {asyncio.run(_log_found(folder))}")
    if settings.store:
        click.echo(f"Store: {asyncio.run(_store_found(settings))}")
    return 0


def _certificate_found(settings: Settings) -> str:
    """
    Return what is to be said about a certificate that can be used.

    Raises:
        Unusable: it cannot.
    """
    from gateway.tls import Tls, TlsError  # noqa: PLC0415  (nobody else pays for it)

    try:
        tls = Tls(settings.tls_cert, settings.tls_key)
    except TlsError as error:
        raise Unusable(str(error)) from None
    when = datetime.fromtimestamp(tls.expires, UTC)
    return f"the certificate {'expired' if when < datetime.now(UTC) else 'expires'} on {when:%Y-%m-%d}."


async def _keys_found(settings: Settings) -> str:
    """
    Return what is to be said about the keys for tokens.

    Raises:
        Unusable: there are none.
    """
    from gateway.auth.keyset import BadKey  # noqa: PLC0415  (nobody else pays for it)
    from gateway.auth.sources import sources  # noqa: PLC0415

    try:
        found = sources(settings.jwt_key, settings.jwks)
    except BadKey as error:
        raise Unusable(f"jwks: {error}") from None
    await asyncio.gather(*(each.start() for each in found))
    if any(each.keys is None for each in found):
        raise Unusable("jwks: the keys cannot be had from there at the moment")
    count = sum(len(each.keys) for each in found if each.keys is not None)
    return f"they are verified by {count} {'key' if count == 1 else 'keys'}."


def _folder_found(folder: Path) -> str:
    """
    Return what is to be said about a data folder that can be used.

    Raises:
        Unusable: it cannot.
    """
    if folder.is_dir():
        _try_writing(folder)
        return f"{folder} is there and can be written to."
    if folder.exists():
        raise Unusable(f"the data folder {folder} is a file, not a folder")
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise Unusable(f"the data folder {folder} cannot be made: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise Unusable(f"the data folder {folder} cannot be made: {parent} cannot be written to")
    return f"{folder} is not there yet; serving will make it."


def _try_writing(folder: Path) -> None:
    """Write a file that goes away by itself: only that also notices a full or read-only disk."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        raise Unusable(f"the data folder {folder} cannot be written to: {error.strerror}") from None


async def _log_found(folder: Path) -> str:
    """
    Return what is to be said about a log that can be used.

    Raises:
        Unusable: it cannot.
    """
    if not (folder / LOG_FILE).exists():
        return "there is none yet; serving will make it."
    # Without retention: looking must not be what deletes.
    log = SqliteLog(folder, retention_seconds=0, retention_bytes=0, retention_events=0, tail_bytes=0)
    try:
        await log.start(lambda _: None)
    except LogInUse:
        return "a gateway is serving it now."
    except LogDamaged as error:
        raise Unusable(str(error)) from None
    try:
        return f"it opens, and holds {log.head + 1 - log.first} of {log.head} events."
    finally:
        await log.close()


async def _store_found(settings: Settings) -> str:
    """
    Return what is to be said about a PostgreSQL store that can be used.

    Args:
        settings: name it, and say what is kept there.

    Raises:
        Unusable: it cannot, or not now.
    """
    from gateway.postgres.address import Address  # noqa: PLC0415  (nobody else pays for it)
    from gateway.postgres.inspection import inspect  # noqa: PLC0415
    from gateway.store_parts import parts_of  # noqa: PLC0415

    try:
        return await inspect(Address.parse(settings.store), parts_of(settings))
    except LogDamaged as error:
        raise Unusable(str(error)) from None
