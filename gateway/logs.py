"""How the gateway logs: one line per thing that happened, a dotted name and its facts as `key=value`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Final

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Facts(logging.Formatter):
    """
    Appends what a record was given as `extra`, which the standard formatter drops.

    Args:
        own: facts that every line has.
    """

    def __init__(self, own: Mapping[str, object] | None = None) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._own = dict(own or {})

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the standard library's name
        """Return the line without a traceback."""
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        facts = [f"{name}={_shown(value)}" for name, value in {**self._own, **extra}.items()]
        return " ".join([super().formatMessage(record), *facts])


def configure(level: str, worker: int | None = None) -> None:
    """
    Log to standard error, uvicorn only what is wrong.

    Args:
        level: from which level on: debug, info, warning, error.
        worker: which of several workers this is; every line says so.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Facts({"worker": worker} if worker is not None else None))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _shown(value: object) -> str:
    """Return a fact's value on one line; quoted if it has spaces or anything that is not printable ASCII."""
    text = str(value)
    return text if text.isascii() and text.isprintable() and text and " " not in text else ascii(text)
