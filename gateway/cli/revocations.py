"""`sluice revocations`: what is not good any more, made, listed and taken back by operators."""

from __future__ import annotations

from typing import Any, Final

import click

from gateway.api_client import ApiClient
from gateway.cli.asking import asking, limit_flag, print_json, print_table, remove_each
from gateway.cli.options import read_time
from gateway.cli.tables import short_time

PATH: Final = "/v1/revocations"
_NAMES: Final = ("subject", "token", "tenant", "topic")
_TITLES: Final = ("ID", "SUBJECT", "TOKEN", "TENANT", "TOPIC", "BEFORE", "REASON")


@click.group()
def revocations() -> None:
    """Revoke tokens, and see what was revoked. Needs a token with `admin` in SLUICE_TOKEN."""


@asking(revocations, "create")
@click.option("--subject", metavar="NAME", help="Tokens of that subject.")
@click.option("--token", metavar="ID", help="The token of that name (`jti`).")
@click.option("--tenant", metavar="NAME", help="Tokens of that tenant.")
@click.option("--topic", metavar="PATTERN", help="Not tokens, but their right to these topics.")
@click.option("--before", metavar="TIME", help="Only those that were made before then.  [default: now]")
@click.option(
    "--for", "seconds", callback=read_time, metavar="TIME", help="How long it lasts.  [default: for ever]"
)
@click.option("--reason", default="", metavar="TEXT", help="Why, for people.")
def create(api: ApiClient, *, as_json: bool, **what: Any) -> int:
    """
    Revoke what is named; of several all must be so. Connections end within a second, on all replicas that
    have one store.
    """
    if not any(what[name] for name in _NAMES):
        raise click.UsageError("say what is revoked: --subject, --token, --tenant or --topic")
    made = api.ask("POST", PATH, what)
    if as_json:
        return print_json([made])
    click.echo(made["id"])
    return 0


@asking(revocations, "list")
@limit_flag
def list_(api: ApiClient, *, limit: int, as_json: bool) -> int:
    """List what was revoked."""
    found = list(api.entries(PATH, "revocations", limit))
    rows = (
        [
            each["id"],
            *(each[name] or "" for name in _NAMES),
            short_time(each, "before"),
            each["reason"],
        ]
        for each in found
    )
    return print_table(found, _TITLES, rows, as_json=as_json)


@asking(revocations, "remove")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def remove(api: ApiClient, ids: tuple[str, ...], *, as_json: bool) -> int:
    """Take revocations back."""
    return remove_each(api, PATH, ids, as_json=as_json)
