"""`sluice keys`: API keys of a gateway, made, listed and removed by operators."""

from __future__ import annotations

from typing import Any, Final

import click

from gateway.api_client import ApiClient
from gateway.cli.asking import asking, limit_flag, print_json, print_table, remove_each
from gateway.cli.claims import claim_flags, claims_of
from gateway.cli.options import read_time
from gateway.cli.tables import short_time

PATH: Final = "/v1/keys"
_TITLES: Final = ("ID", "SUBJECT", "CREATED", "EXPIRES", "DESCRIPTION")


@click.group()
def keys() -> None:
    """Make, list and remove API keys. Needs a token with `admin` in SLUICE_TOKEN."""


@asking(keys, "create")
@claim_flags
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@click.option(
    "--for", "seconds", callback=read_time, metavar="TIME", help="How long it is good.  [default: for ever]"
)
def create(
    api: ApiClient, *, description: str, seconds: float | None, as_json: bool, sub: str | None, **claims: Any
) -> int:
    """Make an API key and print it; it cannot be shown again."""
    if sub is None:
        raise click.UsageError("say whose it is: --subject NAME")
    wanted = {"subject": sub, "claims": claims_of(claims), "description": description, "seconds": seconds}
    made = api.ask("POST", PATH, wanted)
    if as_json:
        return print_json([made])
    click.echo(made["key"])
    return 0


@asking(keys, "list")
@limit_flag
def list_(api: ApiClient, *, limit: int, as_json: bool) -> int:
    """List API keys, without what makes them work."""
    found = list(api.entries(PATH, "keys", limit))
    rows = (
        [
            each["id"],
            each["subject"],
            short_time(each, "created"),
            short_time(each, "expires"),
            each["description"],
        ]
        for each in found
    )
    return print_table(found, _TITLES, rows, as_json=as_json)


@asking(keys, "remove")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def remove(api: ApiClient, ids: tuple[str, ...], *, as_json: bool) -> int:
    """Have API keys open nothing any more; their connections end within a second."""
    return remove_each(api, PATH, ids, as_json=as_json)
