"""Runs a gateway as a server of its own: sockets, signals, start and end."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

import uvicorn
import uvloop
from starlette.applications import Starlette

from gateway import logs
from gateway.app import Gateway
from gateway.doorkeeper import Doorkeeper
from gateway.files import raise_limit
from gateway.limits.guard import Guard, Limits
from gateway.listening import listen
from gateway.log import LogError
from gateway.protocol import HttpProtocol
from gateway.proxies import TrustedProxies
from gateway.server import KEEP_ALIVE_SECONDS, Server
from gateway.setting import SettingsError
from gateway.settings import Settings
from gateway.tls import Tls, TlsError

if TYPE_CHECKING:
    from gateway.workers.worker import Worker

SWITCH_SECONDS: Final = 0.0005
"""
How long the loop may keep the interpreter from the log's writer. Python's own 5 ms are asked for several
times a commit: a publish then waits 20 ms when the loop is busy, as when a crowd comes back.
"""

START_PATIENCE: Final = 3.0
"""Seconds for which a start waits for broker and store before the server opens without them, to say so."""


def serve(settings: Settings, worker: Worker | None = None) -> int:
    """
    Run the server until it is told to stop; return the exit code.

    Args:
        settings: those of the gateway.
        worker: which of several workers this process is; None if it is the only one.
    """
    logs.configure(settings.log_level, None if worker is None else worker.index)
    raise_limit()
    return uvloop.run(_serve(settings, worker))


async def _serve(settings: Settings, worker: Worker | None) -> int:
    try:
        gateway = Gateway(settings, worker)
    except SettingsError as error:
        return _cannot(str(error), worker)
    try:
        gateway.tls = tls = Tls.of(settings)
    except TlsError as error:
        return _cannot(str(error), worker)
    try:
        listeners = _listeners(settings, worker)
    except OSError as error:
        return _cannot(f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}")
    address = listeners[0].getsockname()
    proxies = TrustedProxies.parse(settings.trusted_proxies) if settings.trusted_proxies else None
    doorkeeper = _doorkeeper(gateway, (address[0], address[1]), proxies)
    protocol = type("BoundHttpProtocol", (HttpProtocol,), {"doorkeeper": doorkeeper, "proxies": proxies})
    server = Server(_server_config(gateway.application(), protocol), gateway.drain, tls)
    door = None if worker is None else await _attend(gateway, worker, server, protocol)
    starting = asyncio.create_task(gateway.start())
    await _begun(starting, settings, worker)
    if starting.done():
        try:
            starting.result()
        except LogError as error:
            return _cannot(str(error), worker)
    watch = asyncio.create_task(_watch(doorkeeper, tls))
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # what is here now stays: the collector need not look at it again
    # Connections are long-lived objects by the thousand, not garbage: the collector is to look at all of them
    # seldom. But often at the newest: 10,000 that a flood leaves behind take it 20 ms.
    gc.set_threshold(2_000, 50, 20)
    if worker is None:
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        sys.stderr.write(
            f"sluice: serving on {settings.scheme}://{shown}:{address[1]}, data in {settings.where_data_is}\n"
        )
    if starting.done():
        _started(starting, server, worker)
    else:
        starting.add_done_callback(lambda done: _started(done, server, worker))
    try:
        await server.serve(listeners)
    finally:
        watch.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
            await gateway.close()
        await gateway.stop()
        if door is not None:
            door.close()
    failed = not starting.cancelled() and starting.exception() is not None
    return _cannot(str(starting.exception()), worker) if failed else 0


def _doorkeeper(gateway: Gateway, address: tuple[str, int], proxies: TrustedProxies | None) -> Doorkeeper:
    """Return a gateway's doorkeeper, with the guard who knows its limits."""
    settings = gateway.settings
    guard = Guard(Limits.of(settings), proxies)
    gateway.streams.closed = guard.closed
    gateway.intake.refuses = lambda: guard.no_memory() if guard.memory.reached else None
    gateway.doorkeeper = Doorkeeper(address, settings.max_header_bytes, settings.header_timeout, guard)
    return gateway.doorkeeper


async def _watch(doorkeeper: Doorkeeper, tls: Tls | None) -> None:
    """Do what the server does by the clock, until cancelled."""
    await asyncio.gather(
        doorkeeper.run(), doorkeeper.guard.memory.run(), *([] if tls is None else [tls.watch()])
    )


def _listeners(settings: Settings, worker: Worker | None) -> list[socket.socket]:
    """
    Return the sockets to take connections from.

    Raises:
        OSError: an address is in use, not ours, or the name is unknown.
    """
    if worker is not None:
        return worker.listeners()
    return listen(settings.host, settings.port, settings.notsent_lowat, int(settings.stall_timeout * 1000))


async def _begun(starting: asyncio.Task[None], settings: Settings, worker: Worker | None) -> None:
    """Wait until the gateway has started, or is to be served although it has not."""
    if worker is None:
        waits = settings.backbone or settings.store
        await asyncio.wait((starting,), timeout=START_PATIENCE if waits else None)
        return
    opening = asyncio.create_task(worker.told_to_open.wait())
    await asyncio.wait((starting, opening), return_when=asyncio.FIRST_COMPLETED)
    opening.cancel()


async def _attend(
    gateway: Gateway, worker: Worker, server: Server, protocol: type[HttpProtocol]
) -> asyncio.AbstractServer:
    """Be one of several from now on: hear the supervisor, and answer the siblings at the private door."""

    def leave() -> None:
        protocol.doorkeeper.leaving = True
        server.leave(gateway.settings.drain_seconds)

    server.on_open = worker.serving
    worker.attend(leave)
    config = _server_config(gateway.alone(), protocol)
    visitor = partial(protocol, config=config, server_state=server.server_state, app_state={})
    return await asyncio.get_running_loop().create_unix_server(visitor, sock=worker.door())


def _started(starting: asyncio.Task[None], server: Server, worker: Worker | None) -> None:
    """Tell that the gateway is ready, or end its server: the broker came after all, and refuses."""
    if starting.cancelled():
        return
    if starting.exception() is not None:
        server.exit()
    elif worker is not None:
        worker.ready()


def _server_config(application: Starlette, protocol: type[HttpProtocol]) -> uvicorn.Config:
    """Return uvicorn's configuration: our protocol class, and none of what it would do besides."""
    return uvicorn.Config(
        application,
        http=protocol,
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


def _cannot(sentence: str, worker: Worker | None = None) -> int:
    """Say why it cannot be served, or have the supervisor say it; return the exit code."""
    if worker is not None:
        worker.refuse(sentence)
    else:
        sys.stderr.write(f"sluice: {sentence}\n")
    return 1
