"""Tables and times for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

# What would move a terminal's cursor or colour, or break a row in two.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows with their columns below each other, each as wide as it has to be."""
    cells = [list(titles), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    return "\n".join(lines)


def plain(value: object) -> str:
    """Return a value on one line, without anything that a terminal would obey; a dash if there is none."""
    if value is None or value in ("", [], {}):
        return "-"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return _CONTROL.sub(" ", text)


def short_time(shown: dict[str, Any], name: str) -> str:
    """Return a time that an answer has, without its parts of a second; a dash if it has none."""
    text = shown.get(name)
    return f"{text[:10]} {text[11:19]}Z" if text else "-"
