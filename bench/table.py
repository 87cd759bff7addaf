"""What a row found, and the table of all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """
    One line of the table.

    Args:
        row: name of the row that measured it.
        what: the quantity.
        figure: its value for the server, in `unit`.
        base: the value it is compared with, measured in the same run; None if there is none.
        base_is: what the base is.
        ratio: figure / base, or base / figure, as the target asks; None without a base.
        target: in words.
        met: whether the target is met; None for a figure without a target.
        note: what a reader should know about this measurement.
    """

    row: str
    what: str
    figure: float
    unit: str
    base: float | None
    base_is: str
    ratio: float | None
    target: str
    met: bool | None
    note: str = ""


def number(value: float) -> str:
    """Three significant digits, thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _cells(result: Result) -> list[str]:
    verdict = {True: "ok", False: "MISSED", None: "-"}[result.met]
    base = "-" if result.base is None else f"{number(result.base)} ({result.base_is})"
    ratio = "-" if result.ratio is None else f"{result.ratio:.2f}"
    return [
        result.row,
        result.what,
        f"{number(result.figure)} {result.unit}",
        base,
        ratio,
        result.target,
        verdict,
    ]


HEADINGS = ["row", "what", "server", "floor or base", "ratio", "target", ""]


def render(results: Sequence[Result]) -> str:
    """The table as text, and the notes under it."""
    rows = [HEADINGS, *(_cells(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths).rstrip())
    notes = [f"{result.row}: {result.note}" for result in results if result.note]
    return "\n".join([*lines, "", *dict.fromkeys(notes)])
