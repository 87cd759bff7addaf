"""
Filters: conditions on the data of an event, as JSON that looks like the data.

    {"status": "paid", "total": {"$gte": 100}, "customer": {"country": {"$in": ["DE", "AT"]}}}

A name is that of a member, and what stands there must hold for its value: a scalar is equal to it, an object
is a filter of it. Names that begin with `$` are operators. All parts of an object must hold.

Strategy: a filter is written by somebody who may not mean well, or not know better, and is tried on every
event. So there is nothing in it whose cost could surprise: no regular expressions, no way through the items
of an array but a search for one value, and bounds on its size, depth and parts. It is compiled once, to
functions of one value.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.values import read_json
from webhooks.errors import Invalid, shown, step
from webhooks.operators import MISSING, OPERATORS, Condition, Nothing, equal_to, negated

MAX_BYTES: Final = 8 * 1024
"""Bytes of a filter, written without white space."""
MAX_DEPTH: Final = 12
"""Objects and arrays inside of each other."""
MAX_PARTS: Final = 100
"""Conditions. Each value of `$in` is one, and `$contains`, which searches, is ten."""

UNREADABLE: Final = Nothing()
"""
What stands for data that cannot be read, being nested too deeply. Every filter lets it through: better one
event too many than one lost.
"""

_SEARCH_PARTS: Final = 10
_GROUPS: Final = ("$and", "$or", "$not")
_NO_FILTER: Final = "a filter is an object: conditions by the names of members"


class Filter:
    """
    A filter.

    Args:
        source: the filter as decoded JSON.

    Raises:
        Invalid: it is none, or too much; the pointer leads to the part that is wrong.
    """

    def __init__(self, source: Any) -> None:
        _check_depth(source, MAX_DEPTH)
        if (size := len(msgspec.json.encode(source))) > MAX_BYTES:
            raise Invalid(f"the filter has {size} bytes, more than {MAX_BYTES}")
        compiler = _Compiler()
        self._holds = compiler.filter(source)
        if compiler.parts > MAX_PARTS:
            raise Invalid(
                f"the filter has more than {MAX_PARTS} conditions ($contains counts as {_SEARCH_PARTS})"
            )

    def matches(self, data: Any) -> bool:
        """Say whether it holds for an event's data, decoded by `read`; `MISSING` if that is no JSON."""
        return data is UNREADABLE or self._holds(data)


def read(data: bytes) -> Any:
    """
    Decode an event's data, of which it is known that it is JSON, for filters.

    A number that is too large for any other is infinite, with its sign.
    """
    try:
        return read_json(data)
    except ValueError:
        return UNREADABLE


class _Compiler:
    """Makes functions of filters, and counts their parts."""

    def __init__(self) -> None:
        self.parts = 0

    def filter(self, source: Any) -> Condition:
        """Return what an object means: all of its members hold."""
        if not isinstance(source, dict):
            raise Invalid(_NO_FILTER)
        conditions: list[Condition] = []
        for name, operand in source.items():
            try:
                conditions.append(self._part(name, operand))
            except Invalid as invalid:
                raise invalid.under(step(name)) from None
        return conditions[0] if len(conditions) == 1 else _all(conditions)

    def _part(self, name: str, operand: Any) -> Condition:
        if not name.startswith("$"):
            return _member(name, self._condition(operand))
        if name in _GROUPS:
            return self._group(name, operand)
        make = OPERATORS.get(name)
        if make is None:
            known = ", ".join((*OPERATORS, *_GROUPS))
            raise Invalid(f"{shown(name)} is no operator: there are {known}")
        self.parts += _weight(name, operand)
        return make(operand)

    def _condition(self, source: Any) -> Condition:
        """Return what stands behind a member's name."""
        if isinstance(source, dict):
            return self.filter(source)
        if isinstance(source, list):
            raise Invalid(
                "an array can be meant in two ways: say $eq for the same array, or $in for one of these"
            )
        self.parts += 1
        return equal_to(source)

    def _group(self, name: str, operand: Any) -> Condition:
        self.parts += 1
        if name == "$not":
            return negated(self._condition(operand))
        if not isinstance(operand, list) or not operand:
            raise Invalid("the operand is an array of filters, at least one")
        conditions: list[Condition] = []
        for index, source in enumerate(operand):
            try:
                conditions.append(self.filter(source))
            except Invalid as invalid:
                raise invalid.under(step(index)) from None
        return _all(conditions) if name == "$and" else _any(conditions)


def _weight(name: str, operand: Any) -> int:
    """Return as how many parts an operator counts."""
    if name == "$contains":
        return _SEARCH_PARTS
    return len(operand) if name in ("$in", "$nin") and isinstance(operand, list) else 1


def _member(name: str, condition: Condition) -> Condition:
    def holds(value: Any) -> bool:
        return condition(value.get(name, MISSING) if isinstance(value, dict) else MISSING)

    return holds


def _all(conditions: list[Condition]) -> Condition:
    return lambda value: all(condition(value) for condition in conditions)


def _any(conditions: list[Condition]) -> Condition:
    return lambda value: any(condition(value) for condition in conditions)


def _check_depth(source: Any, levels: int) -> None:
    """Refuse what is nested too deeply, before anything else walks through it."""
    if not isinstance(source, dict | list):
        return
    if levels == 0:
        raise Invalid(f"the filter is nested more than {MAX_DEPTH} deep")
    for each in source.values() if isinstance(source, dict) else source:
        _check_depth(each, levels - 1)
