"""The limit of open files: every connection is one, and running out of them must not come as a surprise."""

from __future__ import annotations

import resource
from typing import Final

RESERVE: Final = 128
"""Files kept for everything that is not a streaming connection: the log, polls, publishers, operators."""


def raise_limit() -> None:
    """Use as many files as this process is allowed to ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def room_for_connections() -> int:
    """Return how many streaming connections the limit leaves room for; at least 1."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 30
    return max(1, soft - max(RESERVE, soft // 50))
