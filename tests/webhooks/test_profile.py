"""What the store keeps of an endpoint comes back as it was; names lead to their rows and nowhere else."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks import records
from webhooks.description import Description
from webhooks.endpoint import State
from webhooks.health import Record
from webhooks.keys import Keys
from webhooks.profile import (
    STATES,
    STATUSES,
    Profile,
    delivery_name,
    endpoint_name,
    new_mark,
    opened,
    read_delivery_name,
    read_endpoint_name,
    restored_health,
    stored_health,
)
from webhooks.records import Status
from webhooks.signature import Scheme, new_secret

NOW: Final = 1_795_452_360_123
BOTH: Final = (Scheme.V1, Scheme.V1A)

numbers = st.integers(1, 2**60 - 1)
marks = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=8, max_size=8)


def profile() -> Profile:
    description = Description(
        "https://example.com/", ("a.#",), filter={"a": {"$gte": 1.5}}, signatures=BOTH, rate=2.5
    )
    keys = Keys().completed(BOTH, NOW).rotated(new_secret(Scheme.V1), NOW + 1, 60)
    return Profile(description, keys)


def row(status: Status = Status.OPEN, health: bytes = b"") -> records.Endpoint:
    return records.Endpoint(7, 7, status, profile().stored(), health, NOW, NOW, 7)


def test_a_profile_comes_back() -> None:
    """Description, keys with their times, and mark are what they were."""
    before = profile()
    after = Profile.restored(before.stored())
    assert (after.description, after.mark) == (before.description, before.mark)
    assert [(key.secret.text, key.created, key.expires) for key in after.keys.all] == [
        (key.secret.text, key.created, key.expires) for key in before.keys.all
    ]


def test_health_comes_back() -> None:
    """The usual health, that all is well, takes no byte."""
    record = Record(failures=3, first_failure=NOW, last_failure=NOW + 1, open_until=NOW + 2)
    assert restored_health(stored_health(record)) == record
    assert stored_health(Record()) == b""
    assert restored_health(b"") == Record()


@pytest.mark.parametrize("status", STATES)
def test_an_endpoint_is_opened_as_it_was(status: Status) -> None:
    """It has its name, its state and its record."""
    stored = row(status, stored_health(Record(failures=2, first_failure=1, last_failure=2)))
    endpoint = opened(stored, lambda: 0.5, NOW)
    assert STATUSES[endpoint.state] is status
    assert read_endpoint_name(endpoint.id) == (7, Profile.restored(stored.settings).mark)
    assert endpoint.health.record.failures == 2
    assert len(endpoint.secrets(NOW + 2)) == 3


def test_every_state_is_stored_as_another_status() -> None:
    """No two are the same, and only a removed endpoint has none."""
    assert set(STATUSES) == set(State)
    assert set(STATES) == set(Status) - {Status.REMOVED}


@given(numbers, marks)
def test_a_name_leads_back(id: int, mark: str) -> None:
    """From the name of an endpoint to its row."""
    assert read_endpoint_name(endpoint_name(id, mark)) == (id, mark)


@given(numbers, marks, numbers)
def test_the_name_of_a_delivery_leads_back(endpoint: int, mark: str, message: int) -> None:
    """To the endpoint and the message."""
    assert read_delivery_name(delivery_name(endpoint, mark, message)) == (endpoint, mark, message)


@given(st.text() | st.from_regex(r"(wh|dlv)_[a-z2-7]{0,20}(_[a-z2-7]{0,14})?\n?", fullmatch=True))
def test_there_is_one_name_for_each(text: str) -> None:
    """Whatever is read as a name is written in just that way."""
    if (found := read_endpoint_name(text)) is not None:
        assert endpoint_name(*found) == text
    if (named := read_delivery_name(text)) is not None:
        assert delivery_name(*named) == text


def test_marks_differ() -> None:
    """Two endpoints have not the same one."""
    assert new_mark() != new_mark()
