"""
The commands of `sluice`, one in each module.

A command is imported when it is called, so that none waits for what only another needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

COMMANDS: Final = {
    "serve": "Run the gateway.",
    "publish": "Publish one event, or one from each line of the input.",
    "tail": "Print events as they come, across restarts of the gateway.",
    "webhooks": "Have events sent to URLs, and see what became of them.",
    "requests": "See what was handed in for workers, and have it tried again.",
    "worker": "Run a handler for the requests of a service.",
    "token": "Make a token that says who asks, and what they may do.",
    "keys": "Make, list and remove API keys.",
    "revocations": "Revoke tokens, and see what was revoked.",
    "check": "Try the settings, the data folder, and the log or the broker, and say what was found.",
}
"""Each command and what it is for, in the order in which a newcomer meets them."""


class Commands(click.Group):
    """The group of all commands; knows their names without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"gateway.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sluicegate", prog_name="sluice")
def sluice() -> None:
    """Sluicegate, a real-time push gateway: every client is a cursor into one durable log."""
