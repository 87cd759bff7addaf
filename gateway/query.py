"""Reads a query string whose parameters are each given at most once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from urllib.parse import parse_qsl

from gateway.problems import Problem

MAX_PARAMETERS: Final = 16


def read_query(query: bytes, known: Collection[str]) -> dict[str, str]:
    """
    Return the parameters of a query string.

    Args:
        query: as it came, percent-encoded.
        known: the names of the parameters that there are.

    Raises:
        Problem: 422, there is another parameter, one twice, or it is not UTF-8.
    """
    if not query:
        return {}
    given: dict[str, str] = {}
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
        )
    except ValueError:
        raise Problem(422, "the query is not percent-encoded UTF-8, or has too many parameters") from None
    for name, value in pairs:
        if name not in known or name in given:
            there = f"may have {', '.join(known)}, each at most once" if known else "has no parameters here"
            raise Problem(422, f"the query {there}")
        given[name] = value
    return given
