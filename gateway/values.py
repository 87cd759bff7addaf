"""
JSON of others as values. Pure.

JSON is checked at the door and kept as it came, so it may have in it what Python cannot hold: numbers have no
bounds there (RFC 8259 section 6).
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

import msgspec

_DIGITS: Final = 1000
"""Python reads no integer with thousands of digits, for that takes quadratic time; `float` reads any text."""

_decode = msgspec.json.Decoder().decode


def read_json(data: bytes) -> Any:
    """
    Decode JSON. A number that is too large for any other is infinite, with its sign.

    Raises:
        ValueError: it is no JSON, or nested too deeply; the text says which.
    """
    try:
        return _decode(data)
    except msgspec.ValidationError:  # of a decoder without a type: a number out of range
        return _read_large(data)
    except RecursionError:
        raise _too_deep() from None


def _read_large(data: bytes) -> Any:
    """Decode JSON with numbers that msgspec refuses."""
    try:
        return json.loads(data, parse_int=_number, parse_constant=_refuse)
    except RecursionError:
        raise _too_deep() from None


def _number(text: str) -> int | float:
    return int(text) if len(text.lstrip("-")) < _DIGITS else float(text)


def _refuse(name: str) -> NoReturn:
    """Refuse what Python takes for numbers and JSON does not."""
    raise ValueError(f"{name} is no JSON")


def _too_deep() -> ValueError:
    return ValueError("it is nested too deeply")
