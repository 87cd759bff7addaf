"""Descriptions: what an endpoint may be, changed as a whole or not at all, and where a mistake is."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.description import (
    MAX_IN_FLIGHT,
    MEMBERS,
    Description,
    Order,
    changed,
    created,
    restored,
    rotation,
)
from webhooks.envelope import Form
from webhooks.errors import Invalid
from webhooks.keys import OVERLAP
from webhooks.schedule import DEFAULT
from webhooks.signature import Scheme, new_secret

URL = "https://example.com/hook"
LEAST = {"url": URL, "topics": ["orders.#"]}


def admit(url: str) -> None:
    """Stand in for the guard: one URL is refused."""
    if "internal" in url:
        raise ValueError("nothing is sent there")


def given_as(members: object) -> dict[str, msgspec.Raw]:
    return MEMBERS.decode(members if isinstance(members, bytes) else json.dumps(members).encode())


def made(**members: Any) -> Description:
    return created(given_as({**LEAST, **members}), admit)[0]


def refused(members: object) -> Invalid:
    with pytest.raises(Invalid) as caught:
        created(given_as(members), admit)
    return caught.value


def test_the_least() -> None:
    """A URL and a pattern are enough; the rest is as most would want it."""
    description = made()
    assert description == Description(URL, ("orders.#",))
    assert (description.signatures, description.body, description.order) == (
        (Scheme.V1,),
        Form.EVENT,
        Order.NONE,
    )
    assert (description.schedule, description.rate, description.ceiling) == (DEFAULT, None, 16)


FULL = {
    **LEAST,
    "types": ["order.created"],
    "filter": {"total": {"$gte": 100}},
    "signatures": ["v1a", "v1"],
    "body": "cloudevents-binary",
    "order": "fifo",
    "in_flight": 4,
    "rate": 2,
    "schedule": [1, 2.5, 60],
    "headers": {"Authorization": "Bearer x"},
    "origin": "events.example.com",
    "description": "Für das Lager",
}


def test_the_most() -> None:
    """Everything that can be said comes out again as it was said."""
    description = created(given_as(FULL), admit)[0]
    assert json.loads(description.stored()) == FULL
    assert description.ceiling == 1, "in order means one at a time"


@pytest.mark.parametrize("members", [LEAST, FULL])
def test_what_is_stored_is_restored(members: dict[str, Any]) -> None:
    description = created(given_as(members), admit)[0]
    assert restored(description.stored()) == description


@pytest.mark.parametrize(
    "name", ["types", "filter", "body", "rate", "schedule", "headers", "origin", "secret"]
)
def test_null_is_as_good_as_nothing(name: str) -> None:
    assert made(**{name: None}) == made()


def test_a_schedule_of_one_attempt() -> None:
    """No waits are a schedule, not the lack of one."""
    assert made(schedule=[]).schedule == ()


@pytest.mark.parametrize(
    ("members", "pointer", "said"),
    [
        ({}, "/url", "url is missing"),
        ({"url": URL}, "/topics", "topics is missing"),
        ({"topics": ["a"], "url": None}, "/url", "url is missing"),
        ({**LEAST, "url": 1}, "/url", "url is wrong: Expected `str`, got `int`"),
        ({**LEAST, "url": "https://internal"}, "/url", "nothing is sent there"),
        ({**LEAST, "topics": "a"}, "/topics", "topics is wrong: Expected `array`, got `str`"),
        ({**LEAST, "topics": []}, "/topics", "there are 0 topics: there must be 1 to 100"),
        ({**LEAST, "topics": ["a"] * 101}, "/topics", "there are 101 topics"),
        ({**LEAST, "topics": ["a", 2]}, "/topics/1", "topics is wrong: Expected `str`, got `int`"),
        ({**LEAST, "topics": ["a", "b.c*"]}, "/topics/1", "a wildcard is part of a word"),
        ({**LEAST, "topics": ["a..b"]}, "/topics/0", "has an empty word"),
        ({**LEAST, "topics": ["a\r\nb"]}, "/topics/0", "has the character U+000D"),
        ({**LEAST, "types": ["a", ""]}, "/types/1", "'' is no type of an event"),
        ({**LEAST, "types": ["a\n"]}, "/types/0", "'a\\n' is no type"),
        ({**LEAST, "types": ["x" * 256]}, "/types/0", "is no type"),
        ({**LEAST, "types": ["x"] * 101}, "/types", "there are 101 types: there must be 0 to 100"),
        ({**LEAST, "filter": [1]}, "/filter", "filter is wrong: Expected `object | null`, got `array`"),
        ({**LEAST, "filter": {"a": {"$regex": "."}}}, "/filter/a/$regex", "'$regex' is no operator"),
        ({**LEAST, "signatures": []}, "/signatures", "there are 0 signatures: there must be 1 to 2"),
        ({**LEAST, "signatures": ["v1", "v1"]}, "/signatures", "a scheme is in signatures twice"),
        (
            {**LEAST, "signatures": ["v1", "v2"]},
            "/signatures/1",
            "signatures is wrong: there is only v1 and v1a",
        ),
        (
            {**LEAST, "body": "xml"},
            "/body",
            "there is only event and cloudevents and cloudevents-binary and raw",
        ),
        ({**LEAST, "order": "lifo"}, "/order", "order is wrong: there is only none and fifo"),
        ({**LEAST, "in_flight": 0}, "/in_flight", "in_flight must be 1 to 100"),
        ({**LEAST, "in_flight": MAX_IN_FLIGHT + 1}, "/in_flight", "in_flight must be 1 to 100"),
        ({**LEAST, "in_flight": 2.5}, "/in_flight", "in_flight is wrong: Expected `int`, got `float`"),
        ({**LEAST, "rate": 0}, "/rate", "the rate must be 0.01 to 10000 attempts a second"),
        ({**LEAST, "rate": -1}, "/rate", "the rate must be"),
        ({**LEAST, "rate": 10_001}, "/rate", "the rate must be"),
        ({**LEAST, "rate": True}, "/rate", "rate is wrong"),
        ({**LEAST, "schedule": [5, -1]}, "/schedule/1", "a wait must have 0.1 to 604800 seconds"),
        ({**LEAST, "schedule": ["5"]}, "/schedule/0", "schedule is wrong: Expected `float`, got `str`"),
        ({**LEAST, "schedule": [1] * 31}, "/schedule", "there are 31 waits"),
        ({**LEAST, "headers": {"X": 1}}, "/headers", "headers is wrong: Expected `str`, got `int`"),
        ({**LEAST, "headers": {"a/b": "x"}}, "/headers/a~1b", "is no name of a header"),
        ({**LEAST, "headers": {"X": "a\r\nY: b"}}, "/headers/X", "must be printable ASCII on one line"),
        ({**LEAST, "headers": {"Host": "x"}}, "/headers/Host", "is the gateway's own"),
        ({**LEAST, "origin": "a b"}, "/origin", "the origin must be a DNS name, like events.example.com"),
        ({**LEAST, "origin": "a\r\nX: b"}, "/origin", "the origin must be a DNS name"),
        ({**LEAST, "origin": "a\n"}, "/origin", "the origin must be a DNS name"),
        ({**LEAST, "origin": ".".join(["x" * 60] * 5)}, "/origin", "the origin must be a DNS name"),
        ({**LEAST, "description": "a\nb"}, "/description", "must be one line of at most 1000 characters"),
        ({**LEAST, "description": "x" * 1001}, "/description", "must be one line"),
        ({**LEAST, "secret": 1}, "/secret", "the secret is no string"),
        ({**LEAST, "secret": "whsec_MTIz"}, "/secret", "the secret has 3 bytes: it must have 24 to 64"),
        (
            {**LEAST, "tpoics": ["a"]},
            "/tpoics",
            "there is no member 'tpoics': there are url, topics, types, ",
        ),
        ({**LEAST, "id": "wh_1"}, "/id", "there is no member 'id'"),
        ({**LEAST, "id": None}, "/id", "there is no member 'id'"),
        ({**LEAST, "a/b~`x` - at `$.y`": 1}, "/a~1b~0`x` - at `$.y`", "there is no member"),
        ({**LEAST, "a\nb": 1}, "/a\nb", "there is no member 'a\\nb'"),
        ({**LEAST, "x" * 500: 1}, "/" + "x" * 500, "xxx...': there are"),
    ],
)
def test_what_cannot_be_is_refused(members: dict[str, Any], pointer: str, said: str) -> None:
    """With a sentence that says what is wrong, and a pointer to where."""
    invalid = refused(members)
    assert said in invalid.detail
    assert invalid.pointer == pointer


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (b'"rate":1e999', "rate is wrong: Number out of range"),
        (b'"in_flight":' + b"9" * 5000, "in_flight is wrong: Integer value out of range"),
        (b'"filter":{"a":' + b"9" * 5000 + b"}", "filter is wrong: Integer value out of range"),
        (b'"filter":' + b'{"a":' * 900 + b"1" + b"}" * 900, "nested"),
        (b'"description":"\xff"', "there is text that is not UTF-8 in it"),
        (b'"types":["\xff"]', "there is text that is not UTF-8 in it"),
        (b'"secret":"\xff"', "the secret is no string"),
        (b'"secret":' + b"[" * 900 + b"]" * 900, "the secret is no string"),
    ],
)
def test_json_that_is_made_to_hurt(member: bytes, said: str) -> None:
    """Numbers out of bounds, nesting without end, bytes that are no text."""
    assert said in refused(b'{"url":"https://example.com","topics":["a"],%b}' % member).detail


def test_a_secret_that_is_brought_along() -> None:
    """It must be for a scheme that the endpoint signs by."""
    secret = new_secret(Scheme.V1)
    description, brought = created(given_as({**LEAST, "secret": secret.text}), admit)
    assert brought is not None
    assert brought.text == secret.text
    assert secret.text.encode() not in description.stored()
    private = new_secret(Scheme.V1A).text
    invalid = refused({**LEAST, "secret": private})
    assert invalid.detail == "the secret is for v1a, which is not in signatures"
    assert created(given_as({**LEAST, "signatures": ["v1a"], "secret": private}), admit)[1] is not None


def test_a_change_replaces_members() -> None:
    """What is named is replaced as a whole, null puts the default back, the rest stays."""
    before = created(given_as(FULL), admit)[0]
    after = changed(before, given_as({"headers": {"X-A": "1"}, "filter": {"b": 2}, "rate": None}), admit)
    assert (after.headers, after.filter, after.rate) == ({"X-A": "1"}, {"b": 2}, None)
    assert msgspec.structs.replace(after, headers=before.headers, filter=before.filter, rate=before.rate) == (
        before
    )


def test_an_empty_change_changes_nothing() -> None:
    description = created(given_as(FULL), admit)[0]
    assert changed(description, {}, admit) == description


@pytest.mark.parametrize(
    ("members", "pointer", "said"),
    [
        ({"url": None}, "/url", "url is missing"),
        ({"topics": None}, "/topics", "topics is missing"),
        ({"url": "https://internal"}, "/url", "nothing is sent there"),
        ({"rate": 3, "order": "x"}, "/order", "there is only none and fifo"),
        ({"secret": "x"}, "/secret", "it is rotated"),
        ({"state": "paused"}, "/state", "there is no member 'state'"),
    ],
)
def test_a_change_is_refused_as_a_whole(members: dict[str, Any], pointer: str, said: str) -> None:
    description = made()
    with pytest.raises(Invalid, match=said) as caught:
        changed(description, given_as(members), admit)
    assert caught.value.pointer == pointer
    assert description == made()


def test_what_was_admitted_once_is_not_asked_again() -> None:
    """An endpoint whose URL is no longer admitted can still be changed, if its URL is left alone."""
    description = made()
    after = changed(description, given_as({"description": "x"}), lambda _: pytest.fail("asked"))
    assert after.description == "x"


def test_rotations() -> None:
    """By default a new v1 secret with a day of overlap; or a secret brought along, which says its scheme."""
    assert rotation({}) == (Scheme.V1, None, OVERLAP)
    assert rotation(given_as({"scheme": "v1a", "overlap": 0})) == (Scheme.V1A, None, 0)
    private = new_secret(Scheme.V1A)
    scheme, secret, _ = rotation(given_as({"secret": private.text}))
    assert (scheme, secret and secret.text) == (Scheme.V1A, private.text)


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"scheme": "v2"}, "/scheme"),
        ({"overlap": "1d"}, "/overlap"),
        ({"secret": "hunter2"}, "/secret"),
        ({"secret": new_secret(Scheme.V1).text, "scheme": "v1a"}, "/secret"),
        ({"secrets": []}, "/secrets"),
    ],
)
def test_rotations_that_cannot_be(members: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Invalid) as caught:
        rotation(given_as(members))
    assert caught.value.pointer == pointer
    assert "hunter2" not in caught.value.detail


values = st.recursive(
    st.sampled_from((None, True, 0, -1, 3, 1.5, "", "a", "v1", "fifo", "#", "x\r\ny")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("a", "$eq")), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from((*Description.__struct_fields__, "secret", "x")), values, max_size=5))
def test_anything_is_made_or_refused(members: dict[str, Any]) -> None:
    """Whatever JSON is given for whatever member: a description, or a sentence with a pointer into it."""
    try:
        description, _ = created(given_as({**LEAST, **members}), admit)
    except Invalid as invalid:
        found: Any = {**LEAST, **members}
        for name in invalid.pointer.split("/")[1:-1]:
            found = found[int(name) if isinstance(found, list) else name]
    else:
        assert restored(description.stored()) == description
