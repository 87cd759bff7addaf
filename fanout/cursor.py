"""
The cursor: a position in one particular log, as text that fits a URL, a header, an SSE `id:` and a JSON
string.

Its text is `<epoch>-<position>-<tag>`. The *epoch* names the log and is drawn when the log is created, so a
cursor of a recreated log is recognised. The *tag* is that of the event at the position, so a log whose
positions were used again (restored from a backup, truncated by a power loss) is recognised too; tag 0 is "not
known": nothing to compare. Only characters that need no escaping and no CORS preflight occur. Clients must
treat it as opaque.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from fanout.errors import CursorError

EPOCH_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
EPOCH_LENGTH = 6
MAX_POSITION = 2**63 - 1
MAX_COUNT = 1_000_000

_CURSOR = re.compile(r"([a-z2-7]{6})-(0|[1-9][0-9]{0,18})-([0-9a-f]{4})", re.ASCII)
_COUNT = re.compile(r"-[1-9][0-9]{0,6}", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a log: everything up to and including the event at `position` has been seen."""

    epoch: str
    position: int
    tag: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.position}-{self.tag:04x}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """
        Read a cursor's text.

        Raises:
            CursorError: it is not the text of a cursor.
        """
        match = _CURSOR.fullmatch(text)
        if match is None or int(match[2]) > MAX_POSITION:
            raise CursorError(f"{_shown(text)} is no cursor")
        return cls(match[1], int(match[2]), int(match[3], 16))


@dataclass(frozen=True, slots=True)
class Earliest:
    """Start at the oldest retained event."""


@dataclass(frozen=True, slots=True)
class Latest:
    """Start behind the newest event."""


@dataclass(frozen=True, slots=True)
class Newest:
    """Start so that the last `count` matching events come first."""

    count: int


@dataclass(frozen=True, slots=True)
class Since:
    """Start at the first event accepted at or after `time_ms` (milliseconds since the Unix epoch)."""

    time_ms: int


Start = Cursor | Earliest | Latest | Newest | Since


def parse_start(text: str) -> Start:
    """
    Read where a client wants to start: `earliest`, `latest`, `-N`, an RFC 3339 time or a cursor seen before.

    Raises:
        CursorError: it is none of these, with a sentence that names the forms.
    """
    if text == "earliest":
        return Earliest()
    if text == "latest":
        return Latest()
    if _COUNT.fullmatch(text) and int(text[1:]) <= MAX_COUNT:
        return Newest(int(text[1:]))
    # A "+" of a time zone that was not percent-encoded arrives as a space: there is only one thing it can
    # mean.
    time = re.sub(r" (\d\d:\d\d)$", r"+\1", text)
    if _TIME.fullmatch(time):
        return Since(_milliseconds(time))
    try:
        return Cursor.parse(text)
    except CursorError:
        raise CursorError(
            f"{_shown(text)} is no cursor: give earliest, latest, -N (N up to {MAX_COUNT}), "
            "an RFC 3339 time, or a cursor received before"
        ) from None


def _milliseconds(text: str) -> int:
    """Return the RFC 3339 time `text` (section 5.6) as milliseconds since the Unix epoch, never negative."""
    fraction = re.search(r"\.(\d+)", text)
    whole = re.sub(r"\.\d+", "", text.upper().replace("Z", "+00:00"))
    try:
        seconds = int(datetime.fromisoformat(whole).timestamp())
    except (ValueError, OverflowError):
        raise CursorError(f"{_shown(text)} is no point in time") from None
    return max(0, seconds * 1000 + (int(fraction[1][:3].ljust(3, "0")) if fraction else 0))


def _shown(text: str) -> str:
    """Return `text` fit for an error message: short, and with nothing that could break a log line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
