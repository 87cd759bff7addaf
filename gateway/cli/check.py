"""`sluice check`: would `sluice serve` start with these settings? Changes nothing."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli.ending import Unusable
from gateway.cli.options import settings_flags
from gateway.log import LogDamaged
from gateway.settings import Settings
from gateway.sqlite_log import LogInUse, SqliteLog
from gateway.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from gateway.amqp.topology import Topology
    from gateway.stream_check import Found

LOG_FILE = "log.db"


@click.command()
@settings_flags
def check(settings: Settings) -> int:
    """
    Try the settings, the data folder, the log or the broker, and the store, and say what was found.

    Nothing is changed or made. Exit code 0: `sluice serve` with the same flags would start; 1: the data
    folder, the log, the broker or the store cannot be used; 2: a setting is wrong.
    """
    click.echo("Settings: every one of them is good.")
    folder = settings.data_folder
    if settings.backbone and settings.store:
        click.echo("Data: on the broker and in the store; no folder is used.")
    elif folder is None:
        click.echo("Data: kept in memory only, and gone when the gateway ends.")
    else:
        click.echo(f"Data folder: {_folder_found(folder)}")
    if settings.backbone:
        for line in _broker_found(settings):
            click.echo(line)
    elif folder is not None:
        click.echo(f"Log: {asyncio.run(_log_found(folder))}")
    if settings.store:
        click.echo(f"Store: {asyncio.run(_store_found(settings.store))}")
    return 0


def _broker_found(settings: Settings) -> Iterator[str]:
    """
    Return what is to be said about a broker that can be used.

    Raises:
        Unusable: it cannot.
    """
    from gateway.amqp.link import LinkError  # noqa: PLC0415  (nobody else pays for it)
    from gateway.backbone import address, topology  # noqa: PLC0415
    from gateway.stream_check import look  # noqa: PLC0415

    where, wanted = address(settings), topology(settings)
    try:
        found = asyncio.run(look(where, wanted))
    except LinkError as error:
        raise Unusable(str(error)) from None
    yield f"Broker: RabbitMQ {found.version} at {found.host}, cluster {found.cluster}."
    for sentence in found.unreachable.values():
        yield f"Broker: {sentence}."
    for name, there in found.exchanges.items():
        what = "is there" if there else "is not there yet; serving will make it"
        yield f"Exchange: {name!r} {what}."
    yield f"Stream: {_stream_found(wanted, found)}"
    yield f"Retention: {_retention(wanted)}"
    if found.stream:
        yield f"Replicas: {_replicas_found(found)}"
    bound = ", ".join(f"{name}:{pattern}" for name, pattern in wanted.bindings)
    yield f"Bindings: {bound}; what is not bound yet, serving will bind."
    if found.dead is None:
        yield f"Dead letters: the queue {wanted.dead!r} is not there yet; serving will make it."
    else:
        yield f"Dead letters: the queue {wanted.dead!r} is there, and holds {found.dead}."
    yield f"Permissions: the user {where.user!r} may do all that serving does."


def _stream_found(wanted: Topology, found: Found) -> str:
    from gateway.stream_check import told_time  # noqa: PLC0415  (nobody else pays for it)

    if not found.stream:
        return f"{wanted.stream!r} is not there yet; serving will make it."
    as_set = f"{wanted.stream!r} is there, as the settings have it, and "
    if found.oldest is None or found.newest is None:
        return f"{as_set}empty."
    at = told_time(found.oldest)
    since = (
        "" if at is None else f", the oldest from {dt.datetime.fromtimestamp(at, dt.UTC):%Y-%m-%d %H:%M} UTC"
    )
    return f"{as_set}holds the positions {found.oldest.offset + 1} to {found.newest.offset + 1}{since}."


def _retention(wanted: Topology) -> str:
    limits = []
    if wanted.max_age_seconds:
        limits.append(format_seconds(wanted.max_age_seconds))
    if wanted.max_bytes:
        limits.append(format_bytes(wanted.max_bytes))
    bound = " or ".join(limits) or "no limit"
    return (
        f"{bound}, in segments of {format_bytes(wanted.segment_bytes)}; a policy of the broker would win, "
        "and cannot be seen from here."
    )


def _replicas_found(found: Found) -> str:
    text = f"the stream can be read from {', '.join(found.replicas)}"
    return f"{text}, but not from {', '.join(found.bare)}." if found.bare else f"{text}."


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


async def _store_found(text: str) -> str:
    """
    Return what is to be said about a PostgreSQL store that can be used.

    Raises:
        Unusable: it cannot, or not now.
    """
    from gateway.postgres.address import Address  # noqa: PLC0415  (nobody else pays for it)
    from gateway.postgres.consumers import PART  # noqa: PLC0415
    from gateway.postgres.inspection import inspect  # noqa: PLC0415

    try:
        return await inspect(Address.parse(text), [PART])
    except LogDamaged as error:
        raise Unusable(str(error)) from None
