"""`sluice worker`: run a handler for the requests of a service."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket

import click

from gateway.cli.ending import Unusable
from gateway.cli.options import DEFAULT_URL, read_time
from gateway.requests.changes import SERVICE


@click.command()
@click.argument("handler", metavar="MODULE:HANDLER")
@click.option("--service", required=True, metavar="NAME", help="Whose requests it works on.")
@click.option(
    "--gateway",
    "gateway_url",
    envvar="SLUICE_URL",
    default=DEFAULT_URL,
    show_default=True,
    metavar="URL",
    help="Address of the gateway that gives them out. [$SLUICE_URL]",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    metavar="N",
    help="How many requests it works on at a time.",
)
@click.option(
    "--timeout",
    "seconds",
    callback=read_time,
    default="5m",
    show_default=True,
    metavar="TIME",
    help="How long the handler may take for one.",
)
@click.option("--name", metavar="NAME", help="Under which operators see it.  [default: host and process]")
@click.option(
    "--drain-seconds",
    callback=read_time,
    default="10s",
    show_default=True,
    metavar="TIME",
    help="How long what runs may take on SIGTERM; the rest is given back.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="How much is logged.",
)
def worker(
    handler: str,
    *,
    service: str,
    gateway_url: str,
    concurrency: int,
    seconds: float,
    name: str | None,
    drain_seconds: float,
    log_level: str,
) -> int:
    """
    Run a handler for the requests of a service, until SIGTERM or SIGINT.

    MODULE:HANDLER is a function, `def handle(request)` or `async def handle(request)`; modules of the current
    folder come first. It gets `request.data`, `request.token`, `request.attempt` and
    `request.progress(value)`, and what it returns is the result. If it raises, the request is tried again
    later; `gateway.handling.Refused` says that there is no use in that.
    """
    from gateway.handling.http_source import HttpSource  # noqa: PLC0415  (`--help` needs none of these)
    from gateway.handling.loading import load  # noqa: PLC0415
    from gateway.handling.runtime import Runtime  # noqa: PLC0415
    from gateway.handling.source import SourceError  # noqa: PLC0415
    from gateway.logs import configure  # noqa: PLC0415

    if not SERVICE.fullmatch(service):
        raise click.BadParameter("1 to 64 letters, digits, _ and -", param_hint="--service")
    configure(log_level)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for each request

    async def work() -> None:
        source = HttpSource(gateway_url, service, name or f"{socket.gethostname()}-{os.getpid()}")
        runtime = Runtime(source, load(handler), concurrency=concurrency, timeout=seconds)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, runtime.drain)
        try:
            await runtime.run(drain_seconds)
        finally:
            await source.close()

    try:
        asyncio.run(work())
    except SourceError as error:
        raise Unusable(str(error)) from None
    return 0
