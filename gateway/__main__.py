"""The command `sluice`: runs one command and turns what went wrong into one sentence and an exit code."""

from __future__ import annotations

import sys

import click

from gateway.cli import sluice
from gateway.cli.ending import CANNOT, INTERRUPTED, REFUSED, Unusable
from gateway.setting import SettingsError


def main(arguments: list[str] | None = None) -> int:
    """
    Run the command line and return the exit code.

    0 is done, 1 could not be done, 2 was asked for in a wrong way (settings, flags), 130 was interrupted.
    """
    try:
        code = sluice.main(arguments, prog_name="sluice", standalone_mode=False)
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SettingsError as error:
        return _say(str(error), REFUSED)
    except Unusable as error:
        return _say(str(error), CANNOT)
    return code if isinstance(code, int) else 0


def _say(sentence: str, code: int) -> int:
    click.echo(f"sluice: {sentence}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
