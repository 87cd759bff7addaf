"""`sluice serve`: run the gateway."""

from __future__ import annotations

import click

from gateway.cli.options import settings_flags
from gateway.settings import Settings, load


@click.command()
@settings_flags
def serve(settings: Settings) -> int:
    """
    Run the gateway until SIGTERM or SIGINT.

    With several --workers, SIGHUP reads the settings again and replaces the workers one after the other.

    Sizes are bytes or texts like 64KiB, times are seconds or texts like 5m. A flag wins over its SLUICE_
    variable, that over the --config file.
    """
    # Imported only now: the server takes longer to import than --help to print.
    if settings.workers > 1:
        from gateway.workers.start import supervise  # noqa: PLC0415  (it does without the server)

        given = dict(click.get_current_context().params)
        config = given.pop("config")
        return supervise(settings, lambda: load(given, config=config))
    from gateway.serving import serve as run  # noqa: PLC0415

    return run(settings)
