"""Runs a gateway as a server of its own: sockets, signals, start and end."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Final

import uvicorn
import uvloop

from gateway import logs
from gateway.app import Gateway
from gateway.files import raise_limit
from gateway.listening import listen
from gateway.log import LogError
from gateway.server import KEEP_ALIVE_SECONDS, Doorkeeper, HttpProtocol, Server
from gateway.settings import Settings

SWITCH_SECONDS: Final = 0.0005
"""
How long the loop may keep the interpreter from the log's writer. Python's own 5 ms are asked for several
times a commit: a publish then waits 20 ms when the loop is busy, as when a crowd comes back.
"""

START_PATIENCE: Final = 3.0
"""Seconds for which a start waits for broker and store before the server opens without them, to say so."""


def serve(settings: Settings) -> int:
    """Run the server until it is told to stop; return the exit code."""
    logs.configure(settings.log_level)
    raise_limit()
    return uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    gateway = Gateway(settings)
    try:
        listeners = listen(
            settings.host, settings.port, settings.notsent_lowat, int(settings.stall_timeout * 1000)
        )
    except OSError as error:
        return _cannot(f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}")
    starting = asyncio.create_task(gateway.start())
    await asyncio.wait((starting,), timeout=START_PATIENCE if settings.backbone or settings.store else None)
    if starting.done():
        try:
            starting.result()
        except LogError as error:
            return _cannot(str(error))
    address = listeners[0].getsockname()
    doorkeeper = Doorkeeper((address[0], address[1]), settings.max_header_bytes, settings.header_timeout)
    watch = asyncio.create_task(doorkeeper.run())
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # what is here now stays: the collector need not look at it again
    gc.set_threshold(10_000, 10, 20)  # connections are long-lived objects by the thousand, not garbage
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    sys.stderr.write(f"sluice: serving on http://{shown}:{address[1]}, data in {settings.where_data_is}\n")
    server = Server(_server_config(gateway, doorkeeper), gateway.drain)
    starting.add_done_callback(lambda done: _started(done, server))
    try:
        await server.serve(listeners)
    finally:
        watch.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
            await gateway.close()
        await gateway.stop()
    failed = not starting.cancelled() and starting.exception() is not None
    return _cannot(str(starting.exception())) if failed else 0


def _started(starting: asyncio.Task[None], server: Server) -> None:
    """End a server whose gateway cannot start after all: the broker came, and refuses."""
    if not starting.cancelled() and starting.exception() is not None:
        server.exit()


def _server_config(gateway: Gateway, doorkeeper: Doorkeeper) -> uvicorn.Config:
    """Return uvicorn's configuration: our protocol class, and none of what it would do besides."""
    return uvicorn.Config(
        gateway.application(),
        http=type("BoundHttpProtocol", (HttpProtocol,), {"doorkeeper": doorkeeper}),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=10,
        backlog=4096,
    )


def _cannot(sentence: str) -> int:
    sys.stderr.write(f"sluice: {sentence}\n")
    return 1
