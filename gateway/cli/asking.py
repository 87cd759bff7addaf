"""Commands that ask a gateway over its API: how they are made, and how they print what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any
from urllib.parse import quote

import click
import msgspec

from gateway.api_client import ApiClient
from gateway.cli.ending import Unusable
from gateway.cli.options import own_token, url_flag
from gateway.cli.tables import table
from gateway.client import ClientError


def asking(group: click.Group, name: str) -> Callable[[Callable[..., int]], click.Command]:
    """
    Make a command of a function: it gets the gateway, and whether JSON is wanted, beside its own flags.

    Args:
        group: the commands it is one of.
        name: its name among them.
    """

    def decorate(function: Callable[..., int]) -> click.Command:
        @wraps(function)
        def run(url: str, **flags: Any) -> int:
            try:
                return function(ApiClient(url, own_token()), **flags)
            except ClientError as error:
                raise Unusable(str(error)) from None

        flagged = click.option("as_json", "--json", is_flag=True, help="Print JSON, one object a line.")(run)
        return group.command(name)(url_flag(flagged))

    return decorate


limit_flag = click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="At most so many.",
)


def remove_each(api: ApiClient, path: str, ids: Iterable[str], *, as_json: bool) -> int:
    """Remove what is under a path; return the exit code."""
    for id in ids:
        api.ask("DELETE", f"{path}/{quote(id, safe='')}")
    return print_json([]) if as_json else 0


def print_table(
    found: list[Any], titles: tuple[str, ...], rows: Iterable[list[Any]], *, as_json: bool
) -> int:
    """Print what was found, as a table or as JSON; return the exit code."""
    if as_json:
        return print_json(found)
    click.echo(table(titles, rows))
    return 0


def print_json(found: Iterable[Any]) -> int:
    """Print JSON, one object a line; return the exit code."""
    for each in found:
        click.echo(msgspec.json.encode(each))
    return 0
