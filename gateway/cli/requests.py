"""`sluice requests`: what was handed in for workers and what became of it, over the API of a gateway."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote, urlencode

import click

from gateway.api_client import ApiClient
from gateway.cli.asking import asking, limit_flag, print_json, print_table
from gateway.cli.tables import short_time, table

REQUESTS: Final = "/v1/requests"
_TITLES: Final = ("TOKEN", "SERVICE", "STATE", "ATTEMPT", "CREATED", "UPDATED", "REASON")


@click.group()
def requests() -> None:
    """See what was handed in for workers, and have it tried again."""


service_flag = click.option("--service", metavar="NAME", help="Only those of this service.")
token_argument = click.argument("token", metavar="TOKEN")
tokens_argument = click.argument("tokens", nargs=-1, required=True, metavar="TOKEN...")


@asking(requests, "list")
@service_flag
@click.option("--state", metavar="STATE", help="Only those: queued, running, done, failed or cancelled.")
@limit_flag
def list_(api: ApiClient, *, service: str | None, state: str | None, limit: int, as_json: bool) -> int:
    """List requests that are unfinished, or were finished lately, the eldest first."""
    return _list(api, limit, as_json=as_json, service=service, state=state)


@asking(requests, "dead")
@service_flag
@limit_flag
def dead(api: ApiClient, *, service: str | None, limit: int, as_json: bool) -> int:
    """List requests that have failed and that nobody tries any more, with the reason."""
    return _list(api, limit, as_json=as_json, service=service, state="failed")


@asking(requests, "show")
@token_argument
@click.option(
    "--wait", type=click.FloatRange(0, 60), default=0, metavar="SECONDS", help="Wait until it is finished."
)
def show(api: ApiClient, token: str, *, wait: float, as_json: bool) -> int:
    """Show all about one request."""
    query = f"?{urlencode({'wait': f'{wait:g}'})}" if wait else ""
    path = f"{_path(token)}{query}"
    if as_json:
        click.echo(api.line("GET", path))  # what a worker said may be more than Python can hold
        return 0
    found = api.ask("GET", path)
    click.echo(table(("MEMBER", "VALUE"), list(found.items())))
    return 0


@asking(requests, "retry")
@tokens_argument
def retry(api: ApiClient, tokens: tuple[str, ...], *, as_json: bool) -> int:
    """Have failed requests tried again, as if they had just been handed in."""
    return _each(api, "POST", tokens, ":retry", as_json=as_json)


@asking(requests, "cancel")
@tokens_argument
def cancel(api: ApiClient, tokens: tuple[str, ...], *, as_json: bool) -> int:
    """Take requests back."""
    return _each(api, "DELETE", tokens, "", as_json=as_json)


@asking(requests, "services")
def services(api: ApiClient, *, as_json: bool) -> int:
    """List the services, and how much there is to do."""
    found = api.ask("GET", "/v1/services")["services"]
    counts = ("unfinished", "running", "waiting_workers")  # which only some are told
    rows = ([each["service"], *(each.get(name) for name in counts)] for each in found)
    return print_table(found, ("SERVICE", "UNFINISHED", "RUNNING", "WORKERS WAIT"), rows, as_json=as_json)


def _list(api: ApiClient, limit: int, *, as_json: bool, **query: str | None) -> int:
    given = {name: value for name, value in query.items() if value is not None}
    found = list(api.entries(REQUESTS, "requests", limit, **given))
    rows = (
        [
            each["token"],
            each["service"],
            each["state"],
            each["attempt"],
            short_time(each, "created"),
            short_time(each, "updated"),
            each.get("reason"),
        ]
        for each in found
    )
    return print_table(found, _TITLES, rows, as_json=as_json)


def _each(api: ApiClient, method: str, tokens: tuple[str, ...], verb: str, *, as_json: bool) -> int:
    for each in tokens:
        found: dict[str, Any] = api.ask(method, f"{_path(each)}{verb}")
        if as_json:
            print_json([found])
        else:
            click.echo(f"{found['token']} is {found['state']}")
    return 0


def _path(token: str) -> str:
    return f"{REQUESTS}/{quote(token, safe='')}"
