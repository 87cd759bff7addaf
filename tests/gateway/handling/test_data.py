"""What a client handed in, as a handler gets it."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw, UnsetType

from gateway.handling.data import Unreadable, data_of


@given(st.binary())
def test_bytes_come_back(data: bytes) -> None:
    """As they were handed in."""
    assert data_of(UNSET, Raw(b'"%b"' % b64encode(data))) == data


def test_nothing_is_none() -> None:
    """So is null."""
    assert data_of(UNSET, UNSET) is None
    assert data_of(Raw(b"null"), UNSET) is None


@pytest.mark.parametrize(
    ("data", "data_base64"),
    [
        (UNSET, b'"%%%"'),
        (UNSET, b'"QQ"'),
        (UNSET, b'"\\u00e9"'),
        (UNSET, b"7"),
        (UNSET, b'"\xff"'),
        (b'"\xff"', UNSET),
        (b"{", UNSET),
        (b"[" * 5000 + b"]" * 5000, UNSET),
    ],
    ids=range(8),
)
def test_what_cannot_be_read_is_a_value(data: bytes | UnsetType, data_base64: bytes | UnsetType) -> None:
    """With the reason."""
    one, other = (UNSET if each is UNSET else Raw(each) for each in (data, data_base64))
    found = data_of(one, other)
    assert isinstance(found, Unreadable)
    assert found.why.startswith("its worker cannot read what was handed in: ")
