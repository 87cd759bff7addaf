"""JSON of others as values."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.values import read_json

_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_TREES)
def test_it_reads_what_was_written(tree: Any) -> None:
    """As Python's own decoder does."""
    assert read_json(json.dumps(tree).encode()) == json.loads(json.dumps(tree))


@given(st.sampled_from("+-").map(lambda sign: sign.strip("+")), st.integers(310, 20_000))
@example("-", 999)  # the sign is no digit
def test_what_is_too_large_is_infinite(sign: str, digits: int) -> None:
    """With its sign, as an integer with a thousand digits and more, or with an exponent."""
    infinite = -math.inf if sign else math.inf
    text = f"{sign}{'7' * digits}"
    integer = int(text) if digits < 1000 else infinite
    # Beside a number that brings the other decoder in, strings and members stay what they are.
    document = f'{{"a": [{text}, {sign}1e{digits}, {text}.5], "\\u00e9": "\\n"}}'
    assert read_json(document.encode()) == {"a": [integer, infinite, infinite], "é": "\n"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[1e999", "delimiter"),
        (b"NaN", "malformed"),
        (b"Infinity", "malformed"),
        (b"[1e999, NaN]", "NaN is no JSON"),
        (b"[1e999, -Infinity]", "-Infinity is no JSON"),
        (b'"\xff"', "utf-8"),
        (b'[1e999, "\xff"]', "utf-8"),
        (b'"\\ud800"', "truncated"),
        (b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b"[1e999," * 5000 + b"1" + b"]" * 5000, "nested too deeply"),
    ],
    ids=range(12),
)
def test_what_is_no_json(data: bytes, why: str) -> None:
    """One kind of error, whatever the reason, so that nobody forgets another."""
    with pytest.raises(ValueError, match=why):
        read_json(data)


def test_what_is_in_range_is_read_by_the_faster_one() -> None:
    """The two agree on an integer of many digits."""
    text = b"9" * 300
    assert read_json(text) == msgspec.json.decode(text) == int(text)
