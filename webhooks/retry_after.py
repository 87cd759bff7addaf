"""
`Retry-After`: how long a receiver asks to be left alone (RFC 9110 section 10.2.3).

Strategy: it comes from strangers, and nothing in it can do harm. What makes no sense, or lies in the past, is
no wish at all; what is longer than a day is a day. So a receiver with a wrong clock loses a day at worst.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

LONGEST_MS: Final = 86_400_000

_SECONDS = re.compile(r"([0-9]+)(\.[0-9]*)?", re.ASCII)
_CLOCK = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
# RFC 9110 section 5.6.7: the form to send, the one before it (with a weekday in full and a year of two
# digits), and that of C's asctime(). The weekday says nothing that the date does not.
_DATES = (
    re.compile(
        rf"(?:[a-z]{{3,9}}, ?)?(?P<day>\d\d?)[ -](?P<month>[a-z]{{3}})[ -](?P<year>\d{{4}}|\d\d) {_CLOCK}"
        r" (?:GMT|UTC|[+-]0000)",
        re.ASCII | re.IGNORECASE,
    ),
    re.compile(
        rf"[a-z]{{3}} (?P<month>[a-z]{{3}}) (?P<day>[ \d]\d) {_CLOCK} (?P<year>\d{{4}})",
        re.ASCII | re.IGNORECASE,
    ),
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def asked_ms(header: str | None, now: int) -> int:
    """
    Return for how long a receiver asks to be left alone: milliseconds, 0 to `LONGEST_MS`.

    Args:
        header: the value of its `Retry-After`, None if there was none.
        now: milliseconds since the Unix epoch.
    """
    if header is None:
        return 0
    text = header.strip(" \t")
    if (seconds := _SECONDS.fullmatch(text)) is not None:
        return _milliseconds(seconds[1], seconds[2] or "")
    return min(max(_instant(text, now) - now, 0), LONGEST_MS)


def _milliseconds(whole: str, fraction: str) -> int:
    """Return a number of seconds as milliseconds; Python reads no numbers with thousands of digits."""
    if len(whole.lstrip("0")) > 6:
        return LONGEST_MS
    return min(int(whole.lstrip("0") or 0) * 1000 + int(fraction[1:4].ljust(3, "0")), LONGEST_MS)


def _instant(text: str, now: int) -> int:
    """Return a date in milliseconds since the Unix epoch, 0 if it is none."""
    found = next((match for form in _DATES if (match := form.fullmatch(text))), None)
    if found is None or found["month"].lower() not in _MONTHS:
        return 0
    month = _MONTHS.index(found["month"].lower()) + 1
    # Second 60 is a leap second, which no date has here.
    clock = int(found["hour"]), int(found["minute"]), min(int(found["second"]), 59)
    try:
        date = datetime(_year(found["year"], now), month, int(found["day"]), *clock, tzinfo=UTC)
    except (ValueError, OverflowError):
        return 0
    return int(date.timestamp()) * 1000


def _year(text: str, now: int) -> int:
    """Return a year; one of two digits is never more than 50 years ahead (RFC 9110 section 5.6.7)."""
    if len(text) == 4:
        return int(text)
    latest = datetime.fromtimestamp(now // 1000, UTC).year + 50
    return latest - (latest - int(text)) % 100
