"""`sluice worker`: run a handler for the requests of a service."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket

import click

from gateway.cli.ending import Unusable
from gateway.cli.options import DEFAULT_URL, own_token, read_time
from gateway.requests.changes import SERVICE

LONGEST_ON_BROKER = 29 * 60.0
"""Seconds: RabbitMQ's `consumer_timeout` is 30 minutes."""


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
    "--backbone",
    envvar="SLUICE_BACKBONE",
    metavar="URL",
    help="Address of the broker: take its share of the requests from there, past any gateway. "
    "[$SLUICE_BACKBONE]",
)
@click.option(
    "--stream",
    metavar="NAME",
    help="The gateways' setting `stream`, with --backbone.",
)
@click.option(
    "--exchanges",
    metavar="LIST",
    help="The gateways' setting `exchanges`, with --backbone.",
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
    backbone: str | None,
    stream: str | None,
    exchanges: str | None,
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
    # `--help` needs none of these.
    from gateway.handling.loading import load  # noqa: PLC0415
    from gateway.handling.runtime import Runtime  # noqa: PLC0415
    from gateway.handling.source import ClosableSource, SourceError  # noqa: PLC0415
    from gateway.logs import configure  # noqa: PLC0415

    if not SERVICE.fullmatch(service):
        raise click.BadParameter("1 to 64 letters, digits, _ and -", param_hint="--service")
    configure(log_level)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for each request

    own_name = name or f"{socket.gethostname()}-{os.getpid()}"
    if backbone is not None and seconds > LONGEST_ON_BROKER:
        why = f"a broker takes back what is not done in half an hour: at most {LONGEST_ON_BROKER:g} seconds"
        raise click.BadParameter(why, param_hint="--timeout")

    def source_of() -> ClosableSource:
        if backbone is None:
            from gateway.handling.http_source import HttpSource  # noqa: PLC0415

            return HttpSource(gateway_url, service, own_name, own_token())
        from gateway.backbone import address, bindings  # noqa: PLC0415
        from gateway.handling.broker_source import BrokerSource  # noqa: PLC0415
        from gateway.setting import SettingsError  # noqa: PLC0415
        from gateway.settings import load  # noqa: PLC0415

        given = {"backbone": backbone, "stream": stream, "exchanges": exchanges}
        try:
            settings = load(given, os.environ)
        except SettingsError as error:
            raise SourceError(str(error)) from None
        exchange = bindings(settings.exchanges)[0][0]
        return BrokerSource(address(settings), settings.stream, exchange, service, own_name, concurrency)

    async def work() -> None:
        source = source_of()
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
