"""
Pages of long lists: how many entries one has, and the text that leads to the next.

That text is opaque to whoever gets it. It says of which list it is, so that it is good for no other.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

import msgspec

from gateway.problems import Problem

MAX_LISTED: Final = 1000
LISTED: Final = 100

_PLACE: Final = msgspec.msgpack.Decoder(tuple[str, list[int]])


def read_limit(text: str | None) -> int:
    """
    Return how much of a list is asked for; `LISTED` if nothing is said.

    Raises:
        Problem: 422, it is no number, or out of bounds.
    """
    if text is None:
        return LISTED
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_LISTED:
        raise Problem(422, f"limit is a whole number from 1 to {MAX_LISTED}")
    return int(text)


def write_page(of: str, *place: int) -> str:
    """Return the text that leads to the page behind a place, as numbers, of the list with a name."""
    return urlsafe_b64encode(msgspec.msgpack.encode((of, place))).rstrip(b"=").decode()


def read_page(text: str | None, of: str, first: tuple[int, ...], most: tuple[int, ...]) -> tuple[int, ...]:
    """
    Return the place that a text leads to.

    Args:
        text: what `write_page` returned; None for the first page.
        of: the name of the list.
        first: the place before the first page.
        most: the greatest that each number of a place can be; -1 is the least.

    Raises:
        Problem: 422, it leads nowhere in this list.
    """
    if text is None:
        return first
    try:
        name, place = _PLACE.decode(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        good = name == of and write_page(name, *place) == text and len(place) == len(first)
    except ValueError:
        good, place = False, []
    if not good or any(not -1 <= number <= bound for number, bound in zip(place, most, strict=True)):
        raise Problem(422, "the page is none of this list: give what the page before calls next, as it is")
    return tuple(place)
