"""Filters: what they hold for, held to a plain reading of the same rules, and what is too much to be one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from webhooks.errors import Invalid
from webhooks.filters import MAX_BYTES, MAX_DEPTH, MAX_PARTS, UNREADABLE, Filter, read
from webhooks.operators import MISSING


def matches(source: Any, data: Any) -> bool:
    """Say whether a source, written as JSON, holds for data."""
    return Filter(read(json.dumps(source).encode())).matches(read(json.dumps(data).encode()))


def refused(source: Any) -> Invalid:
    with pytest.raises(Invalid) as caught:
        Filter(source)
    return caught.value


ORDER = {
    "status": "paid",
    "total": 129.5,
    "items": 3,
    "gift": True,
    "note": None,
    "tags": ["new", "eu", 1, False],
    "customer": {"country": "DE", "name": "Ada", "address": {"zip": "10115"}},
}


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"status": "paid"},
        {"status": "paid", "gift": True, "note": None},
        {"total": 129.5},
        {"items": 3.0},
        {"customer": {"country": "DE", "address": {"zip": "10115"}}},
        {"customer": {}},
        {"customer": {"address": {"$eq": {"zip": "10115"}}}},
        {"tags": {"$eq": ["new", "eu", 1, False]}},
        {"total": {"$gte": 100, "$lt": 129.6}},
        {"total": {"$gt": 129.4, "$lte": 129.5}},
        {"status": {"$gte": "paia", "$lt": "paie"}},
        {"status": {"$neq": "open"}},
        {"nothing": {"$neq": "open"}},
        {"customer": {"country": {"$in": ["AT", "DE"]}}},
        {"items": {"$in": [1, 2, 3]}},
        {"note": {"$in": [None]}},
        {"customer": {"country": {"$nin": ["FR", 1, None]}}},
        {"nothing": {"$nin": ["FR"]}},
        {"status": {"$startsWith": "pa", "$endsWith": "id"}},
        {"status": {"$contains": "ai"}},
        {"tags": {"$contains": "eu"}},
        {"tags": {"$contains": 1}},
        {"tags": {"$contains": False}},
        {"note": {"$exist": True}},
        {"nothing": {"$exist": False}},
        {"nothing": {"deeper": {"$exist": False}}},
        {"$or": [{"status": "open"}, {"total": {"$gt": 100}}]},
        {"$and": [{"status": "paid"}, {"$not": {"items": 4}}]},
        {"items": {"$not": 4}},
        {"items": {"$or": [{"$eq": 1}, {"$gt": 2}]}},
        {"$not": {"$not": {}}},
    ],
)
def test_what_holds(source: dict[str, Any]) -> None:
    assert matches(source, ORDER)
    assert not matches({"$not": source}, ORDER)


@pytest.mark.parametrize(
    "source",
    [
        {"status": "open"},
        {"status": "Paid"},
        {"status": "paid", "gift": False},
        {"gift": 1},
        {"gift": "true"},
        {"items": True},
        {"items": "3"},
        {"note": False},
        {"note": {"$exist": False}},
        {"nothing": None},
        {"nothing": {"$exist": True}},
        {"status": {"length": 4}},
        {"customer": {"$eq": {"country": "DE"}}},
        {"customer": "DE"},
        {"tags": {"$eq": ["eu", "new", 1, False]}},
        {"tags": {"$eq": ["new", "eu", True, False]}},
        {"tags": {"$contains": True}},
        {"tags": {"$contains": 0}},
        {"tags": {"$contains": "e"}},
        {"status": {"$contains": 1}},
        {"total": {"$gt": 129.5}},
        {"total": {"$gt": "1"}},
        {"gift": {"$gte": 0}},
        {"note": {"$lt": 1}},
        {"nothing": {"$lt": 1}},
        {"items": {"$startsWith": "3"}},
        {"items": {"$in": [True, "3", [3]]}},
        {"gift": {"$in": [1]}},
        {"customer": {"country": {"$in": ["FR"]}}},
        {"$or": [{"status": "open"}, {"total": 1}]},
        {"$and": [{"status": "paid"}, {"total": 1}]},
        {"$not": {}},
    ],
)
def test_what_does_not_hold(source: dict[str, Any]) -> None:
    assert not matches(source, ORDER)
    assert matches({"$not": source}, ORDER)


@pytest.mark.parametrize(("source", "data"), [({"$eq": 5}, 5), ({"$startsWith": "a"}, "ab"), ({}, [])])
def test_data_need_not_be_an_object(source: dict[str, Any], data: Any) -> None:
    """Operators at the top speak of the data as a whole."""
    assert matches(source, data)


def test_data_that_is_no_json() -> None:
    """There is nothing in it: it satisfies only what is satisfied by nothing."""
    assert Filter({"a": {"$exist": False}}).matches(MISSING)
    assert not Filter({"a": 1}).matches(MISSING)
    assert not Filter({"$exist": True}).matches(MISSING)


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (b'{"a":1e999}', {"a": {"$gt": 10**300}}),
        (b'{"a":-1e999}', {"a": {"$lt": 0}}),
        (b'{"a":' + b"9" * 5000 + b"}", {"a": {"$gt": 10**300}}),
        (b'{"a":-' + b"9" * 5000 + b"}", {"a": {"$lt": 0}}),
        (b'{"a":123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
        ('{"a":1e999,"b":"\u00e9\\u00e9"}'.encode(), {"b": "\u00e9\u00e9"}),
    ],
)
def test_numbers_of_any_size(data: bytes, source: dict[str, Any]) -> None:
    """A number too large for Python is larger than any other."""
    assert Filter(source).matches(read(data))
    assert not Filter({"$not": source}).matches(read(data))


def test_data_nested_too_deeply_is_let_through() -> None:
    """Nothing can read it; an event too many is better than one lost."""
    for data in (b"[" * 5000 + b"]" * 5000, b"[1e999," * 5000 + b"1" + b"]" * 5000):
        assert read(data) is UNREADABLE
    assert Filter({"a": 1}).matches(UNREADABLE)
    assert Filter({"$not": {}}).matches(UNREADABLE)


def nested(levels: int) -> dict[str, Any]:
    """Return a filter with so many objects inside of each other."""
    source: dict[str, Any] = {}
    for _ in range(levels - 1):
        source = {"a": source}
    return source


def test_the_bounds_are_inside() -> None:
    """As deep, as long, and of as many parts as may be."""
    Filter(nested(MAX_DEPTH))
    Filter({str(at): at for at in range(MAX_PARTS)})
    Filter({"a": {"$in": list(range(MAX_PARTS))}})
    Filter({str(at): {"$contains": 1} for at in range(MAX_PARTS // 10)})
    Filter({"a": "x" * (MAX_BYTES - len('{"a":""}'))})


@pytest.mark.parametrize(
    ("source", "pointer", "said"),
    [
        ([], "", "a filter is an object"),
        (None, "", "a filter is an object"),
        ("paid", "", "a filter is an object"),
        ({"a": [1, 2]}, "/a", r"an array can be meant in two ways: say \$eq .*, or \$in "),
        ({"a": {"$regex": "(a+)+"}}, "/a/$regex", r"'\$regex' is no operator: there are \$eq, \$neq, "),
        ({"$where": "1"}, "/$where", "is no operator"),
        ({"a": {"$": 1}}, "/a/$", "is no operator"),
        ({"a": {"$" + "x" * 500: 1}}, "/a/$" + "x" * 500, r"'\$x{55}.*\.\.\.' is no operator"),
        ({"a/b": {"c~d": {"$gt": None}}}, "/a~1b/c~0d/$gt", "the operand is a number or a string"),
        ({"a": {"$gt": True}}, "/a/$gt", "a number or a string"),
        ({"a": {"$lte": [1]}}, "/a/$lte", "a number or a string"),
        ({"a": {"$startsWith": 1}}, "/a/$startsWith", "the operand is a string"),
        ({"a": {"$endsWith": None}}, "/a/$endsWith", "the operand is a string"),
        ({"a": {"$contains": {}}}, "/a/$contains", "the operand is a string, a number, true, false or null"),
        ({"a": {"$in": "abc"}}, "/a/$in", "an array of values, at least one"),
        ({"a": {"$in": []}}, "/a/$in", "an array of values, at least one"),
        ({"a": {"$nin": {}}}, "/a/$nin", "an array of values, at least one"),
        ({"a": {"$exist": 1}}, "/a/$exist", "the operand is true or false"),
        ({"$or": {}}, "/$or", "an array of filters, at least one"),
        ({"$or": []}, "/$or", "an array of filters, at least one"),
        ({"$and": [{}, 1]}, "/$and/1", "a filter is an object"),
        ({"$or": [{}, {"a": {"$x": 1}}]}, "/$or/1/a/$x", "is no operator"),
        ({"$not": [1]}, "/$not", "an array can be meant in two ways"),
        (nested(MAX_DEPTH + 1), "", "the filter is nested more than 12 deep"),
        ({"a": {"$eq": [[[[[[[[[[[[1]]]]]]]]]]]]}}, "", "nested more than 12 deep"),
        ({"a": "x" * (MAX_BYTES - 7)}, "", "the filter has 8193 bytes, more than 8192"),
        ({str(at): at for at in range(MAX_PARTS + 1)}, "", "more than 100 conditions"),
        ({"a": {"$in": list(range(MAX_PARTS + 1))}}, "", "more than 100 conditions"),
        ({"$or": [{"a": {"$in": list(range(60))}}, {"b": {"$nin": list(range(60))}}]}, "", "more than 100"),
        ({str(at): {"$contains": 1} for at in range(11)}, "", r"\(\$contains counts as 10\)"),
    ],
)
def test_what_is_no_filter_is_refused(source: Any, pointer: str, said: str) -> None:
    """With a sentence, and a pointer to the part that is wrong."""
    with pytest.raises(Invalid, match=said) as caught:
        Filter(source)
    assert caught.value.pointer == pointer


def test_very_deep_filters_are_refused() -> None:
    """However deep a filter is, refusing it is all that happens."""
    refused(nested(50_000))


def test_the_worst_is_bounded() -> None:
    """The dearest source, over data of a megabyte made to be dear, costs less than two seconds of CPU."""
    searches = Filter({"$and": [{"$contains": 1}] * (MAX_PARTS // 10 - 1)})
    texts = Filter({"$or": [{"$contains": "a" * 700 + "b"}] * (MAX_PARTS // 10 - 1)})
    items, text = read(b"[" + b"true," * 200_000 + b"1]"), "a" * 1_000_000
    begin = time.process_time()
    assert searches.matches(items)
    assert not texts.matches(text)
    assert time.process_time() - begin < 2


names = st.sampled_from(("a", "b", "$c"))
scalars = st.sampled_from((None, True, False, 0, 1, -2, 3, 0.0, 1.0, 1.5, -0.0, "", "a", "ab", "b", "1"))
data = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
comparable = st.sampled_from((-2, 0, 1, 3, 0.0, 1.5, "", "a", "ab"))
parts = st.one_of(
    st.tuples(st.sampled_from(("a", "b")), scalars),
    st.tuples(st.sampled_from(("$eq", "$neq")), data),
    st.tuples(st.sampled_from(("$gt", "$gte", "$lt", "$lte")), comparable),
    st.tuples(st.sampled_from(("$in", "$nin")), st.lists(data, min_size=1, max_size=3)),
    st.tuples(st.sampled_from(("$startsWith", "$endsWith")), st.sampled_from(("", "a", "b", "ab"))),
    st.tuples(st.just("$contains"), scalars),
    st.tuples(st.just("$exist"), st.booleans()),
)
filters = st.recursive(
    st.lists(parts, min_size=1, max_size=2).map(dict),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(("a", "b", "$not")), inner),
        st.tuples(st.sampled_from(("$and", "$or")), st.lists(inner, min_size=1, max_size=2)),
    ).map(lambda part: dict([part])),
    max_leaves=4,
)


def same(one: Any, other: Any) -> bool:
    """Say whether two values are the same JSON, by their types and then by their parts."""
    numbers = {int, float}
    if type(one) is not type(other) and not {type(one), type(other)} <= numbers:
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, dict):
        return set(one) == set(other) and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


def plainly(source: Any, found: list[Any]) -> bool:
    """Read a filter as its rules are written; `found` has the value, or nothing."""
    if not isinstance(source, dict):
        return bool(found) and same(source, found[0])
    return all(plainly_part(name, operand, found) for name, operand in source.items())


def plainly_part(name: str, operand: Any, found: list[Any]) -> bool:
    if not name.startswith("$"):
        members = found[0] if found and isinstance(found[0], dict) else {}
        return plainly(operand, [members[name]] if name in members else [])
    if name.startswith("$n"):
        return not {
            "$not": lambda: plainly(operand, found),
            "$neq": lambda: plainly_part("$eq", operand, found),
            "$nin": lambda: plainly_part("$in", operand, found),
        }[name]()
    return {
        "$and": lambda: all(plainly(each, found) for each in operand),
        "$or": lambda: any(plainly(each, found) for each in operand),
        "$exist": lambda: bool(found) is operand,
        "$eq": lambda: bool(found) and same(operand, found[0]),
        "$in": lambda: bool(found) and any(same(each, found[0]) for each in operand),
    }.get(name, lambda: bool(found) and plainly_compared(name, operand, found[0]))()


def plainly_compared(name: str, operand: Any, value: Any) -> bool:
    if name == "$contains" and isinstance(value, list):
        return any(same(operand, each) for each in value)
    if type(value) not in ({str} if isinstance(operand, str) else {int, float}):
        return False
    holds: dict[str, Callable[[], bool]] = {
        "$contains": lambda: isinstance(operand, str) and operand in value,
        "$startsWith": lambda: value[: len(operand)] == operand,
        "$endsWith": lambda: value[::-1][: len(operand)] == operand[::-1],
        "$gt": lambda: value > operand,
        "$gte": lambda: not value < operand,
        "$lt": lambda: value < operand,
        "$lte": lambda: not value > operand,
    }
    return holds[name]()


@settings(max_examples=300)
@given(filters, data)
def test_filters_hold_as_their_rules_say(source: dict[str, Any], data: Any) -> None:
    """The compiled filter agrees with the plain reading of the same rules, for any data."""
    assert Filter(source).matches(data) is plainly(source, [data])


anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(("a", "$eq", "$in", "$or", "$gt", "$exist", "")), inner, max_size=3),
    ),
    max_leaves=6,
)


@given(anything, data)
def test_anything_is_a_filter_or_is_refused(source: Any, data: Any) -> None:
    """Whatever JSON is given, it is refused by a sentence or says yes or no to any data."""
    said: object = None
    try:
        said = Filter(source).matches(data)
    except Invalid as invalid:
        said = invalid.detail
    assert said in (True, False) or isinstance(said, str)
