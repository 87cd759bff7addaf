"""`sluice tail`: events on the standard output, for as long as anybody reads it."""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import aclosing
from typing import Final

import click

from gateway.cli.ending import INTERRUPTED, Unusable
from gateway.cli.options import own_token, url_flag
from gateway.client import ClientError, Follower

OUTPUT: Final = 1
"""The standard output's descriptor; it is written to directly, so no event stays behind in a buffer."""

_READER_GONE: Final = "reader gone"


@click.command()
@click.argument("patterns", nargs=-1, required=True, metavar="PATTERN...")
@click.option(
    "--cursor",
    default="latest",
    metavar="CURSOR",
    help="Where to begin: earliest, latest, -N, an RFC 3339 time, or a cursor.",
)
@click.option(
    "--json/--data",
    "whole",
    default=True,
    help="Print the whole event (the default) or only its data, as JSON on one line.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@url_flag
def tail(patterns: tuple[str, ...], cursor: str, url: str, *, whole: bool, count: int | None) -> int:
    """
    Print the events whose topics match a PATTERN, as they come.

    In a PATTERN, * is one word and # is any number of words. When the connection is lost it is made again,
    and printing goes on where it stopped; what is missing then is told as a gap on the standard error.
    """
    try:
        follower = Follower(url, patterns, cursor, _notice, token=own_token())
        asyncio.run(_run(follower, count, whole=whole))
    except ClientError as error:
        raise Unusable(str(error)) from None
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        pass  # its reader has seen enough
    return 0


def _notice(text: str) -> None:
    click.echo(f"sluice tail: {text}", err=True)


async def _run(follower: Follower, count: int | None, *, whole: bool) -> None:
    """Print until there were `count` events or nobody reads any more."""
    printing = asyncio.ensure_future(_print(follower, count, whole=whole))
    if stat.S_ISFIFO(os.fstat(OUTPUT).st_mode):
        # The writing end of a pipe becomes "readable" when its reader goes: no need to wait for an event.
        asyncio.get_running_loop().add_reader(OUTPUT, printing.cancel, _READER_GONE)
    try:
        await printing
    except asyncio.CancelledError as cancelled:
        if cancelled.args != (_READER_GONE,):
            raise


async def _print(follower: Follower, count: int | None, *, whole: bool) -> None:
    async with aclosing(follower.events()) as events:
        async for event in events:
            _write((event.text if whole else event.data) + b"\n")
            if count is not None:
                count -= 1
                if count == 0:
                    return


def _write(line: bytes) -> None:
    """Write a line to the end; a reader who is slow holds everything up, and the log keeps what comes."""
    while line:
        line = line[os.write(OUTPUT, line) :]
