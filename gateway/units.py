"""Sizes and times as people write them: `64KiB`, `10MB`, `500ms`, `7d`."""

from __future__ import annotations

import re
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
DAY: Final = 86_400
WEEK: Final = 7 * DAY

_SIZE: Final = re.compile(r"(\d{1,18}(?:\.\d{1,9})?) ?(|b|[kmgt]i?b)", re.ASCII | re.IGNORECASE)
_TIME: Final = re.compile(r"(\d{1,18}(?:\.\d{1,9})?) ?(|ms|s|m|h|d|w)", re.ASCII)
_BYTES_IN: Final = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 1024 * GIB,
}
_SECONDS_IN: Final = {
    "": 1.0,
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": float(DAY),
    "w": float(WEEK),
}


def parse_bytes(text: str) -> int | None:
    """Return a size like `64KiB`, `10MB` or `4096` in bytes; None if it is no whole number of bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    size = float(match[1]) * _BYTES_IN[match[2].lower()]
    return int(size) if size == int(size) else None


def parse_seconds(text: str) -> float | None:
    """Return a time like `500ms`, `90`, `5m` or `7d` in seconds; None if it is no time."""
    match = _TIME.fullmatch(text.strip())
    return None if match is None else float(match[1]) * _SECONDS_IN[match[2]]


def format_bytes(size: int) -> str:
    """Return `size` in the largest binary unit that divides it: `64 KiB`."""
    for name, unit in (("TiB", 1024 * GIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B" if size else "0"


def format_seconds(seconds: float) -> str:
    """Return a time in the largest unit that divides it: `7 d`."""
    for name, unit in (("d", DAY), ("h", 3600), ("m", 60)):
        if seconds and seconds % unit == 0:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.12g} s" if seconds else "0"
