"""Flags: one for each setting, made from the settings themselves, and those of the client commands."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Final

import click

from gateway.setting import Field, SettingsError, Unit
from gateway.settings import FIELDS, Settings, load
from gateway.settings_page import shown_default
from gateway.units import parse_seconds

DEFAULT_URL: Final = "http://127.0.0.1:8000"

_METAVARS: Final = {Unit.TEXT: "TEXT", Unit.COUNT: "N", Unit.BYTES: "SIZE", Unit.SECONDS: "TIME"}


def settings_flags(command: Callable[[Settings], int]) -> Callable[..., int]:
    """Give a command a flag for every setting, and call it with the settings read from all sources."""

    @wraps(command)
    def with_settings(config: str | None, **flags: object) -> int:
        return command(load(flags, config=config))

    decorated: Callable[..., int] = with_settings
    for field in reversed(FIELDS.values()):
        decorated = _flag(field)(decorated)
    return click.option("--config", metavar="FILE", help="TOML file with settings. [$SLUICE_CONFIG]")(
        decorated
    )


def _flag(field: Field) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """
    Return the flag of one setting.

    Its value stays text: `load` reads it, with the same rules and the same refusals as everywhere.
    """
    default = shown_default(field).strip("`")
    text = f"{field.about.what} [{field.variable}, default {default}]"
    if field.about.unit is Unit.FLAG:
        return click.option(f"{field.flag}/--no-{field.flag[2:]}", field.name, default=None, help=text)
    metavar = "|".join(field.choices) or _METAVARS[field.about.unit]
    return click.option(field.flag, field.name, default=None, metavar=metavar, help=text)


url_flag = click.option(
    "--url",
    envvar="SLUICE_URL",
    default=DEFAULT_URL,
    show_default=True,
    metavar="URL",
    help="Address of the gateway. [$SLUICE_URL]",
)


def own_token() -> str:
    """
    Return the token, or API key, by which a command asks; empty if there is none.

    It has no flag: what is on a command line can be seen by everybody on the machine.

    Raises:
        SettingsError: it cannot be one; the text does not repeat it.
    """
    from gateway.client import TOKEN  # noqa: PLC0415  # serving needs no client

    token = os.environ.get(TOKEN, "").strip()
    if not all("!" <= each <= "~" for each in token):
        raise SettingsError(TOKEN, "this is no token and no API key: those have no spaces and are ASCII")
    return token


def read_time(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Return the value of a flag that is a time, as the settings take it: seconds, or text like `5m`."""
    if text is None:
        return None
    seconds = parse_seconds(text)
    if not seconds:
        raise click.BadParameter(f"{text!r} is not a time over 0, in seconds or like 500ms, 5m or 7d")
    return seconds
