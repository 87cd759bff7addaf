"""`sluice serve`: run the gateway."""

from __future__ import annotations

import click

from gateway.cli.options import settings_flags
from gateway.settings import Settings


@click.command()
@settings_flags
def serve(settings: Settings) -> int:
    """
    Run the gateway until SIGTERM or SIGINT.

    Sizes are bytes or texts like 64KiB, times are seconds or texts like 5m. A flag wins over its SLUICE_
    variable, that over the --config file.
    """
    from gateway.serving import serve as run  # noqa: PLC0415  # the server takes longer to import than --help to print

    return run(settings)
