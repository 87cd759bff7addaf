"""Names of endpoints and deliveries lead to their rows, and each row has one name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from webhooks.stored import delivery_key, delivery_name, endpoint_id, endpoint_name

ids = st.integers(0, 2**40 - 1)
messages = st.integers(0, 2**60 - 1)


@given(ids)
def test_a_name_leads_back_to_its_endpoint(id: int) -> None:
    assert endpoint_id(endpoint_name(id)) == id


@given(ids, messages)
def test_a_name_leads_back_to_its_delivery(endpoint: int, message: int) -> None:
    assert delivery_key(delivery_name(endpoint, message)) == (endpoint, message)


@given(st.text() | st.from_regex(r"(wh|dl)_[a-z2-7]{7,9}(_[a-z2-7]{11,13})?\n?", fullmatch=True))
def test_whatever_is_read_is_written_in_just_that_way(text: str) -> None:
    """So no two names are of one row."""
    if (id := endpoint_id(text)) is not None:
        assert endpoint_name(id) == text
    if (key := delivery_key(text)) is not None:
        assert delivery_name(*key) == text


def test_names_do_not_count() -> None:
    """Those that are made one after the other have little in common."""
    first, second = endpoint_name(1), endpoint_name(2)
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 7
