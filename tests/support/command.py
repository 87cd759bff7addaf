"""The command `sluice` as a real child process, run to its end or left running."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

from tests.support.server import clean_environment

DEADLINE = 30.0
"""Seconds after which a command that should have ended fails the test."""


def sluice_command(*arguments: str) -> list[str]:
    """Return the command line of `sluice` with these arguments."""
    return [sys.executable, "-m", "gateway", *arguments]


def run_sluice(
    *arguments: str, input: bytes = b"", environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `sluice` to its end, with `input` on its standard input; return its exit code and what it said."""
    done = subprocess.run(
        sluice_command(*arguments),
        input=input,
        capture_output=True,
        check=False,
        timeout=DEADLINE,
        env={**clean_environment(), **(environ or {})},
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def start_sluice(*arguments: str) -> subprocess.Popen[bytes]:
    """Start `sluice` with pipes for what it says, and leave it running."""
    return subprocess.Popen(
        sluice_command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    )
