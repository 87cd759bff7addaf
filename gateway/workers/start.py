"""The start of a gateway of several workers: what must be there once, before any of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from gateway import logs, sqlite_consumers
from gateway.cli.ending import CANNOT
from gateway.listening import Port
from gateway.log import LogError
from gateway.settings import Settings
from gateway.sqlite_file import hold
from gateway.workers.charge import COMING, LEAVING, door_name
from gateway.workers.seat import Seat
from gateway.workers.supervisor import Supervisor
from webhooks import sqlite_store

MAX_SOCKET_PATH: Final = 107
"""Bytes that the path of a Unix socket may have (unix(7))."""


def supervise(settings: Settings, reread: Callable[[], Settings]) -> int:
    """
    Run the workers of a gateway until told to stop; return the exit code.

    Args:
        settings: those of the gateway.
        reread: returns them as they are to be from now on; asked on SIGHUP.
    """
    logs.configure(settings.log_level)
    with contextlib.ExitStack() as stack:
        try:
            port = stack.enter_context(contextlib.closing(Port(settings.host, settings.port)))
        except OSError as error:
            why = error.strerror or error
            return _cannot(f"cannot listen on {settings.host} port {settings.port}: {why}")
        try:
            folder = stack.enter_context(_private_folder())
            store = settings.data_folder or folder  # in memory it would be that of one worker alone
            if not settings.store:
                stack.enter_context(hold(store, sqlite_consumers.FORMAT))
                if settings.webhooks:
                    stack.enter_context(hold(store, sqlite_store.FORMAT))
            return asyncio.run(_run(settings, reread, port, folder, store))
        except LogError as error:
            return _cannot(str(error))
        except OSError as error:
            return _cannot(f"the workers cannot be started: {error}")


async def _run(
    settings: Settings, reread: Callable[[], Settings], port: Port, folder: Path, store: Path
) -> int:
    number = settings.workers
    seats = [Seat(index, number, port, folder, store) for index in range(number)]
    return await Supervisor(settings, reread, seats, port.address).run()


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """
    Make a folder that only our user can look into, for as long as the gateway runs.

    Raises:
        OSError: there is no place for it.
    """
    path = tempfile.mkdtemp(prefix="sluicegate-", dir=_short_enough())
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _short_enough() -> str:
    """Return a folder for temporary files in which the paths of sockets are not too long."""
    for name in ("RUNTIME_DIRECTORY", "TMPDIR"):  # systemd.exec(5), environ(7)
        folder = os.environ.get(name, "").partition(":")[0]
        longest = Path(folder, "sluicegate-12345678", door_name(99) + COMING + LEAVING)
        if folder and len(os.fsencode(longest)) <= MAX_SOCKET_PATH and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return "/tmp"  # noqa: S108  (what is made there is a folder of our own)


def _cannot(sentence: str) -> int:
    sys.stderr.write(f"sluice: {sentence}\n")
    return CANNOT
