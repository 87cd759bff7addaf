"""How the gateway logs: one line per thing that happened, a dotted name and its facts as `key=value`."""

from __future__ import annotations

import logging
import sys
from typing import Final

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Facts(logging.Formatter):
    """Appends what a record was given as `extra`, which the standard formatter drops."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the standard library's name
        """Return the line without a traceback."""
        facts = [f"{name}={_shown(value)}" for name, value in vars(record).items() if name not in _STANDARD]
        return " ".join([super().formatMessage(record), *facts])


def configure(level: str) -> None:
    """Log to standard error, from `level` (debug, info, warning, error) on; uvicorn only what is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Facts())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _shown(value: object) -> str:
    """Return a fact's value on one line; quoted if it has spaces or anything that is not printable ASCII."""
    text = str(value)
    return text if text.isascii() and text.isprintable() and text and " " not in text else ascii(text)
