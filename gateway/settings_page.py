"""
The page `docs/settings.md`, made from the settings themselves: `python -m gateway.settings_page`.

A test compares it with the file, so the documentation cannot drift from the code.
"""

from __future__ import annotations

from gateway.setting import Field, Unit
from gateway.settings import FIELDS
from gateway.units import format_bytes, format_seconds

_HEAD = """\
# Settings

<!-- Made from gateway/settings.py by `make docs`; change it there. -->

Every setting can be given in three places. A flag wins over a variable, a variable over the file:

| where | how `retention_seconds` is written there |
|---|---|
| flag of `sluice serve` and `sluice check` | `--retention-seconds 7d` |
| variable | `SLUICE_RETENTION_SECONDS=7d` |
| TOML file, named by `--config` or `SLUICE_CONFIG` | `retention_seconds = "7d"`, or `604800` |

Sizes are plain numbers of bytes or texts like `64KiB`, `10MB`, `1GiB`; times are seconds or texts like
`500ms`, `90s`, `5m`, `2h`, `7d`; yes-or-no settings are `true` or `false`, as flags `--insecure` or
`--no-insecure`. An unknown key, an unknown `SLUICE_*` variable or a bad value is refused at the start, by one
sentence that says which and why, with exit code 2. `sluice check` does only that, and tries the data folder,
the log and the broker.

Three variables are no settings: `SLUICE_CONFIG`, the path of the file, and for the commands that ask a
gateway `SLUICE_URL`, its address, and `SLUICE_TOKEN`, [who asks](security.md#the-commands).

| setting | default | unit | what it is | why this default |
|---|---|---|---|---|
"""


def page() -> str:
    """Return the whole page."""
    return _HEAD + "".join(_row(field) for field in FIELDS.values())


def _row(field: Field) -> str:
    about = field.about
    unit = " · ".join(field.choices) if field.choices else about.unit.value
    return f"| `{field.name}` | {shown_default(field)} | {unit} | {about.what} | {about.why} |\n"


def shown_default(field: Field) -> str:
    """Return the default as a reader would write it."""
    if field.name == "data":
        return "`~/.local/share/sluicegate`"  # the real one depends on who starts it
    match field.about.unit:
        case Unit.BYTES:
            return format_bytes(field.default)
        case Unit.SECONDS:
            return format_seconds(field.default)
        case Unit.FLAG:
            return "true" if field.default else "false"
        case _:
            return f"`{field.default}`" if field.default != "" else "empty"


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201  # what it is for
