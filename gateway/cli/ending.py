"""How a command ends: the exit codes, and the error whose text is all that its user has to read."""

from __future__ import annotations

from typing import Final

CANNOT: Final = 1
REFUSED: Final = 2
INTERRUPTED: Final = 130
"""What a shell reports for a program that SIGINT ended: 128 and the signal's number."""


class Unusable(Exception):
    """The command cannot do what it was asked for; the text is one sentence."""
