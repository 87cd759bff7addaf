"""`sluice webhooks`: what is sent where, and what became of it, over the API of a gateway."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click
import msgspec

from gateway.api_client import ApiClient
from gateway.cli.asking import asking, limit_flag, print_json, print_table
from gateway.cli.ending import CANNOT, Unusable
from gateway.cli.options import read_time
from gateway.cli.tables import plain, short_time, table
from gateway.units import parse_seconds

WEBHOOKS: Final = "/v1/webhooks"
DELIVERIES: Final = "/v1/deliveries"
LOOK_SECONDS: Final = 0.2
"""Between looks at what is waited for."""
WAITED: Final = "20s"
"""How long the outcome of a test is waited for: longer than an attempt takes."""


@click.group()
def webhooks() -> None:
    """Have events sent to URLs, and see what became of them."""


def _command(name: str) -> Callable[[Callable[..., int]], click.Command]:
    """Make a command of a function; see `asking`."""
    return asking(webhooks, name)


def _overlap(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Return the value of a flag that is a time, or none at all."""
    return 0.0 if text is not None and parse_seconds(text) == 0 else read_time(_, __, text)


webhook_argument = click.argument("webhook", metavar="WEBHOOK")


# --- endpoints


@_command("list")
def list_(api: ApiClient, *, as_json: bool) -> int:
    """List all webhooks."""
    found = list(api.entries(WEBHOOKS, "webhooks"))
    rows = ([each["id"], each["state"], each["topics"], each["url"], each["description"]] for each in found)
    return print_table(found, ("WEBHOOK", "STATE", "TOPICS", "URL", "DESCRIPTION"), rows, as_json=as_json)


@_command("add")
@click.argument("target", metavar="TARGET")
@click.argument("topics", nargs=-1, required=True, metavar="PATTERN...")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only events of this type; repeatable.")
@click.option("--filter", "filter", metavar="JSON", help="Only events whose data is so.")
@click.option("--signature", "signatures", multiple=True, metavar="v1|v1a", help="How to sign; repeatable.")
@click.option("--body", metavar="FORM", help="event, cloudevents, cloudevents-binary or raw.")
@click.option("--order", metavar="none|fifo", help="In which order events are delivered.")
@click.option("--in-flight", type=int, metavar="N", help="Attempts that may be on their way together.")
@click.option("--rate", type=float, metavar="N", help="Attempts a second, at most.")
@click.option("--schedule", metavar="TIMES", help="Waits between attempts: 5s,5m,2h.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="Sent along; repeatable.")
@click.option("--origin", metavar="NAME", help="Ask the receiver whether it agrees, under this name.")
@click.option("--description", metavar="TEXT", help="Whatever you want to remember.")
@click.option("--secret-file", type=click.Path(path_type=Path), metavar="FILE", help="Secret to sign with.")
def add(
    api: ApiClient,
    target: str,
    topics: tuple[str, ...],
    *,
    as_json: bool,
    filter: str | None,  # noqa: A002  (as the flag is called)
    schedule: str | None,
    headers: tuple[str, ...],
    secret_file: Path | None,
    **members: Any,
) -> int:
    """Send events whose topics match a PATTERN to the URL TARGET, and print the secret to verify them by."""
    given = {
        **members,
        "filter": None if filter is None else _json(filter),
        "schedule": None if schedule is None else [_seconds(each) for each in schedule.split(",") if each],
        "headers": dict(map(_header, headers)),
        "secret": None if secret_file is None else _contents(secret_file),
    }
    description = {name: value for name, value in given.items() if value not in (None, (), {})}
    created = api.ask("POST", WEBHOOKS, {"url": target, "topics": topics, **description})
    if as_json:
        return print_json([created])
    click.echo(created["id"])
    return _print_secret(created)


@_command("show")
@webhook_argument
def show(api: ApiClient, webhook: str, *, as_json: bool) -> int:
    """Show all about one webhook."""
    found = api.ask("GET", _path(webhook))
    if as_json:
        return print_json([found])
    health = found.pop("health")
    found["keys"] = [f"{key['scheme']} {key.get('public_key', '')}".strip() for key in found["keys"]]
    click.echo(
        table(("MEMBER", "VALUE"), [*found.items(), *((f"health.{name}", health[name]) for name in health)])
    )
    return 0


@_command("pause")
@webhook_argument
def pause(api: ApiClient, webhook: str, *, as_json: bool) -> int:
    """Send nothing for now; events are kept for later."""
    return _print_state(api.ask("POST", _path(webhook, ":pause")), as_json=as_json)


@_command("resume")
@webhook_argument
def resume(api: ApiClient, webhook: str, *, as_json: bool) -> int:
    """Send again what was paused."""
    return _print_state(api.ask("POST", _path(webhook, ":resume")), as_json=as_json)


@_command("enable")
@webhook_argument
@click.option("--skip", is_flag=True, help="Give up what was held, then open it.")
def enable(api: ApiClient, webhook: str, *, skip: bool, as_json: bool) -> int:
    """Open a webhook that was disabled, or whose receiver was gone."""
    found = api.ask("POST", _path(webhook, ":enable"), {"held": "skip" if skip else "replay"})
    return _print_job(found, as_json=as_json) if "task" in found else _print_state(found, as_json=as_json)


@_command("rotate")
@webhook_argument
@click.option("--scheme", metavar="v1|v1a", help="Which secret, if the webhook has both.")
@click.option(
    "--overlap",
    callback=_overlap,
    metavar="TIME",
    help="How long the old secret signs along, a day by default; 0 if it leaked.",
)
def rotate(api: ApiClient, webhook: str, *, scheme: str | None, overlap: float | None, as_json: bool) -> int:
    """Replace the secret, and print the new one."""
    given = {"scheme": scheme, "overlap": overlap}
    members = {name: value for name, value in given.items() if value is not None}
    rotated = api.ask("POST", _path(webhook, "/secret:rotate"), members)
    return print_json([rotated]) if as_json else _print_secret(rotated)


@_command("remove")
@webhook_argument
def remove(api: ApiClient, webhook: str, *, as_json: bool) -> int:
    """Remove a webhook, with its deliveries."""
    api.ask("DELETE", _path(webhook))
    return print_json([{"id": webhook, "removed": True}]) if as_json else 0


# --- deliveries


@_command("test")
@webhook_argument
@click.option("--data", metavar="JSON", help="Data of the event.")
@click.option(
    "--wait", callback=read_time, default=WAITED, metavar="TIME", help="How long to wait for the answer."
)
def test(api: ApiClient, webhook: str, *, data: str | None, wait: float, as_json: bool) -> int:
    """Send an event that tests the receiver, and say what it answered. Exit code 1: it did not take it."""
    members = {} if data is None else {"data": _json(data)}
    delivery = api.ask("POST", _path(webhook, "/test"), members)
    deadline = time.monotonic() + wait
    while not delivery["attempts"] and delivery["state"] == "pending" and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        delivery = api.ask("GET", f"{DELIVERIES}/{delivery['id']}")
    attempts = list(api.entries(f"{DELIVERIES}/{delivery['id']}/attempts", "attempts", 1))
    if as_json:
        print_json([{**delivery, "last_attempt": attempts[0] if attempts else None}])
    else:
        click.echo(f"{delivery['id']} {_outcome(delivery, attempts)}")
    return 0 if delivery["state"] == "delivered" else CANNOT


def _outcome(delivery: dict[str, Any], attempts: list[dict[str, Any]]) -> str:
    if not attempts:
        return f"is {delivery['state']}: there was no attempt yet"
    last = attempts[0]
    said = f"{_said(last)} after {last['duration_ms']} ms"
    if delivery["state"] == "delivered":
        return f"was delivered: {said}"
    again = delivery.get("next_attempt")
    return f"was not delivered: {said}" + (f"; it is tried again at {again}" if again else "")


@_command("deliveries")
@webhook_argument
@click.option("--state", metavar="STATE", help="Only those: pending, delivered, failed, expired or held.")
@limit_flag
def deliveries(api: ApiClient, webhook: str, *, state: str | None, limit: int, as_json: bool) -> int:
    """List what is, was or will be sent, the newest events first."""
    query = {} if state is None else {"state": state}
    found = list(api.entries(_path(webhook, "/deliveries"), "deliveries", limit, **query))
    rows = (
        [
            each["id"],
            each["state"],
            each["topic"],
            short_time(each, "time"),
            each["attempts"],
            short_time(each, "next_attempt"),
        ]
        for each in found
    )
    titles = ("DELIVERY", "STATE", "TOPIC", "EVENT OF", "ATTEMPTS", "NEXT")
    return print_table(found, titles, rows, as_json=as_json)


@_command("attempts")
@click.argument("delivery", metavar="DELIVERY")
@limit_flag
def attempts(api: ApiClient, delivery: str, *, limit: int, as_json: bool) -> int:
    """List the attempts of a delivery, the last one first."""
    found = list(api.entries(f"{DELIVERIES}/{quote(delivery, safe='')}/attempts", "attempts", limit))
    rows = (
        [
            each["number"],
            short_time(each, "time"),
            _said(each),
            f"{each['duration_ms']} ms",
            each.get("response"),
        ]
        for each in found
    )
    return print_table(found, ("ATTEMPT", "TIME", "RESULT", "TOOK", "RESPONSE"), rows, as_json=as_json)


def _said(attempt: dict[str, Any]) -> str:
    return str(attempt.get("status") or attempt.get("error"))


@_command("retry")
@click.argument("deliveries", nargs=-1, required=True, metavar="DELIVERY...")
def retry(api: ApiClient, deliveries: tuple[str, ...], *, as_json: bool) -> int:
    """Try deliveries again, now and from the beginning of their schedule."""
    for each in deliveries:
        found = api.ask("POST", f"{DELIVERIES}/{quote(each, safe='')}:retry")
        if as_json:
            print_json([found])
        else:
            click.echo(f"{found['id']} is {found['state']}")
    return 0


@_command("recover")
@webhook_argument
@click.option("--since", required=True, metavar="WHEN", help="earliest, 2h, an RFC 3339 time, or a cursor.")
@click.option("--until", metavar="WHEN", help="The same; now if left out.")
@click.option("--wait", callback=read_time, metavar="TIME", help="Wait so long for it to be done.")
def recover(
    api: ApiClient, webhook: str, *, since: str, until: str | None, wait: float | None, as_json: bool
) -> int:
    """Try again all deliveries that failed, of events since a time. Exit code 1: it is not done yet."""
    members = {"since": _when(since), **({} if until is None else {"until": _when(until)})}
    job = api.ask("POST", _path(webhook, "/recover"), members)
    deadline = time.monotonic() + (wait or 0)
    while job["state"] != "done" and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        job = api.ask("GET", _path(webhook, f"/jobs/{job['id']}"))
    _print_job(job, as_json=as_json)
    return CANNOT if wait and job["state"] != "done" else 0


@_command("jobs")
@webhook_argument
def jobs(api: ApiClient, webhook: str, *, as_json: bool) -> int:
    """List what is done to many deliveries, and how far it is."""
    found = api.ask("GET", _path(webhook, "/jobs"))["jobs"]
    rows = ([each["id"], each["task"], each["state"], each["deliveries"]] for each in found)
    return print_table(found, ("JOB", "TASK", "STATE", "DELIVERIES"), rows, as_json=as_json)


# --- reading flags


def _path(webhook: str, rest: str = "") -> str:
    return f"{WEBHOOKS}/{quote(webhook, safe='')}{rest}"


def _json(text: str) -> msgspec.Raw:
    try:
        msgspec.json.decode(text)
        return msgspec.Raw(msgspec.json.format(text.encode(), indent=-1))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise click.UsageError(f"{text[:60]!r} is no JSON") from None


def _seconds(text: str) -> float:
    seconds = parse_seconds(text)
    if not seconds:
        raise click.UsageError(f"{text[:60]!r} is not a time over 0, in seconds or like 500ms, 5m or 7d")
    return seconds


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise click.UsageError("a header is given as NAME:VALUE")
    return name.strip(), value.strip()


def _contents(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeError) as error:
        raise Unusable(
            f"the secret cannot be read from {path}: {getattr(error, 'strerror', error)}"
        ) from None


def _when(text: str) -> str:
    """Return a place as the API takes it: a time that long ago is made of a duration."""
    seconds = parse_seconds(text)
    return text if seconds is None else (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


# --- printing


def _print_state(found: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        return print_json([found])
    click.echo(f"{found['id']} is {found['state']}")
    return 0


def _print_job(job: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        return print_json([job])
    click.echo(f"{job['id']} is {job['state']}: {job['deliveries']} deliveries")
    return 0


def _print_secret(found: dict[str, Any]) -> int:
    """Print what a receiver verifies by: a secret, public keys, or both."""
    publics = [key["public_key"] for key in found["keys"] if "public_key" in key]
    for each in ([found["secret"]] if "secret" in found else []) + publics[:1]:
        click.echo(plain(each))
    return 0
