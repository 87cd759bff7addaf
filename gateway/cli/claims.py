"""The flags of commands that say what somebody may do: the claims of a token, or of an API key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from gateway.cli.options import read_time
from gateway.units import parse_seconds

F = TypeVar("F", bound=Callable[..., Any])


def _history(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Return the value of a flag that is a time, or none at all."""
    is_none = text is not None and parse_seconds(text) == 0
    return 0.0 if is_none else read_time(context, parameter, text)


_FLAGS: Final = (
    click.option("--subject", "sub", metavar="NAME", help="Whose it is."),
    click.option("--subscribe", multiple=True, metavar="PATTERN", help="Topics to listen to; repeatable."),
    click.option("--publish", multiple=True, metavar="PATTERN", help="Topics to publish to; repeatable."),
    click.option("--requests", multiple=True, metavar="SERVICE", help="A service to ask, or *; repeatable."),
    click.option("--work", multiple=True, metavar="SERVICE", help="A service to work for, or *; repeatable."),
    click.option("--webhooks", is_flag=True, help="May have webhooks for what it may listen to."),
    click.option(
        "--history", callback=_history, metavar="TIME", help="How far back it may look.  [default: all]"
    ),
    click.option("--tenant", metavar="NAME", help="The space that its topics are in."),
    click.option("--admin", is_flag=True, help="May use the doors of operators."),
)


def claim_flags(function: F) -> F:
    """Give a command these flags."""
    for flag in reversed(_FLAGS):
        function = flag(function)
    return function


def claims_of(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the claims that flags say; without those that were not given."""
    return {
        name: value
        for name, value in flags.items()
        if value is not None and value is not False and value != ()
    }
