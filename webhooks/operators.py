"""
Operators: what each one in a filter makes of its operand, a function of one value.

Equality is that of JSON: true is not 1, and 1 is 1.0. What compares holds only for values of the operand's
kind; `$neq` and `$nin` also hold where there is nothing, as all that is not equal.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import repeat
from typing import Any, Final

from webhooks.errors import Invalid

Condition = Callable[[Any], bool]
"""Says whether something holds for a value."""


class Nothing:
    """A value that no value of JSON is equal to."""


MISSING: Final = Nothing()
"""What a condition sees where the data has nothing."""


def negated(condition: Condition) -> Condition:
    return lambda value: not condition(value)


def equal_to(operand: Any) -> Condition:
    """`$eq`, and what a scalar without an operator means."""
    if isinstance(operand, str):  # most are, and nothing but the same string is equal to one
        return lambda value: bool(value == operand)
    return lambda value: _equal(operand, value)


def _among(operand: Any) -> Condition:
    if not isinstance(operand, list) or not operand:
        raise Invalid("the operand is an array of values, at least one")
    strings = frozenset(each for each in operand if isinstance(each, str))
    others = [each for each in operand if not isinstance(each, str)]

    def holds(value: Any) -> bool:
        if isinstance(value, str):
            return value in strings
        return any(_equal(each, value) for each in others)

    return holds


def _comparison(compare: Callable[[Any, Any], bool]) -> Callable[[Any], Condition]:
    """Return the operator that compares numbers with numbers, and strings by their code points."""

    def make(operand: Any) -> Condition:
        if isinstance(operand, str):
            return lambda value: isinstance(value, str) and compare(value, operand)
        if _is_number(operand):
            return lambda value: _is_number(value) and compare(value, operand)
        raise Invalid("the operand is a number or a string")

    return make


def _affix(has: Callable[[str, str], bool]) -> Callable[[Any], Condition]:
    """Return the operator that looks at an end of a string."""

    def make(operand: Any) -> Condition:
        if not isinstance(operand, str):
            raise Invalid("the operand is a string")
        return lambda value: isinstance(value, str) and has(value, operand)

    return make


def _contains(operand: Any) -> Condition:
    """Return what looks for a scalar in an array, or for a text in a string."""
    if isinstance(operand, dict | list):
        raise Invalid("the operand is a string, a number, true, false or null")

    def holds(value: Any) -> bool:
        if isinstance(value, list):
            return _has_item(value, operand)
        return isinstance(value, str) and isinstance(operand, str) and operand in value

    return holds


def _exist(operand: Any) -> Condition:
    if not isinstance(operand, bool):
        raise Invalid("the operand is true or false")
    return lambda value: (value is not MISSING) is operand


OPERATORS: Final[dict[str, Callable[[Any], Condition]]] = {
    "$eq": equal_to,
    "$neq": lambda operand: negated(equal_to(operand)),
    "$gt": _comparison(operator.gt),
    "$gte": _comparison(operator.ge),
    "$lt": _comparison(operator.lt),
    "$lte": _comparison(operator.le),
    "$in": _among,
    "$nin": lambda operand: negated(_among(operand)),
    "$startsWith": _affix(str.startswith),
    "$endsWith": _affix(str.endswith),
    "$contains": _contains,
    "$exist": _exist,
}
"""By their names; each raises `Invalid` if its operand is none."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(operand: Any, value: Any) -> bool:
    """
    Say whether two values are the same JSON.

    The cost is bounded by the operand, however large the value is.
    """
    if isinstance(operand, bool) or isinstance(value, bool):  # to Python, true is 1
        return operand is value
    if isinstance(operand, list):
        return isinstance(value, list) and len(operand) == len(value) and all(map(_equal, operand, value))
    if isinstance(operand, dict):
        return (
            isinstance(value, dict)
            and operand.keys() == value.keys()
            and all(_equal(each, value[name]) for name, each in operand.items())
        )
    return bool(operand == value)


def _has_item(items: list[Any], scalar: Any) -> bool:
    """Say whether a scalar is among items, at the speed of C: an array can have very many."""
    if isinstance(scalar, bool):
        return any(map(operator.is_, items, repeat(scalar)))
    found = items.count(scalar)
    if found and scalar in (0, 1):  # to Python, so are false and true
        found -= sum(map(operator.is_, items, repeat(bool(scalar))))
    return found > 0
