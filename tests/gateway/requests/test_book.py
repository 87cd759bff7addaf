"""The book: what it makes of the changes in a log, in any order in which they can come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from fanout.event import Event
from gateway.mint import Mint
from gateway.requests.book import Book
from gateway.requests.changes import TYPE, Change, State, Trouble, moment_of
from tests.support.requests import Changes

KEEP = 60_000
TOKENS = [f"rq_{letter * 28}" for letter in "abc"]
FOREVER = moment_of(2_000_000_000_000)


def begun(service: str = "reports", **members: Any) -> Change:
    return Change(state=State.QUEUED, service=service, expires=FOREVER, data=Raw(b"1"), **members)


def change(state: State, attempt: int = 1, **members: Any) -> Change:
    return Change(state=state, service=members.pop("service", "reports"), attempt=attempt, **members)


moves = st.tuples(
    st.sampled_from(TOKENS),
    st.one_of(
        st.just(begun()),
        st.just(begun("mail")),
        st.builds(
            change,
            st.sampled_from(State),
            st.integers(0, 4),
            service=st.sampled_from(["reports", "reports", "mail"]),
            failures=st.integers(0, 3),
        ),
        st.just(change(State.QUEUED, 0, retry=True, expires=FOREVER)),
    ),
)


def plain(history: list[Change]) -> tuple[Change, Change] | None:
    """Return what begins a request and what it is in the end, by the rules as one would say them."""
    first = now = None
    for each in history:
        if first is None or now is None:
            if each.state is State.QUEUED and each.expires is not UNSET and not each.retry:
                first, now = each, replace_attempt(each)
        elif each.service != first.service or now.state in (State.DONE, State.CANCELLED):
            continue
        elif now.state is State.FAILED:
            if each.retry and each.state is State.QUEUED:
                now = each
        elif each.state in (State.DONE, State.CANCELLED, State.FAILED) or (
            not each.retry and each.attempt >= now.attempt
        ):
            now = each
    return None if first is None or now is None else (first, now)


def replace_attempt(change: Change) -> Change:
    """Return the change that begins a request as the book has it: nobody had it yet."""
    return msgspec.structs.replace(change, attempt=0)


@given(st.lists(moves, max_size=40))
def test_it_is_what_the_rules_say(history: list[tuple[str, Change]]) -> None:
    """For each token, whatever comes in between, twice or too late; and the counts fit."""
    log, book = Changes(), Book(KEEP)
    for token, each in history:
        book.apply(log.event(token, each))
    unfinished: dict[str, int] = {}
    for token in TOKENS:
        expected = plain([each for name, each in history if name == token])
        request = book.get(token)
        if expected is None:
            assert request is None
            continue
        first, now = expected
        assert request is not None
        assert (request.service, request.state, request.attempt) == (first.service, now.state, now.attempt)
        assert (request.failures, request.latest <= log.position) == (now.failures, True)
        if not now.state.final:
            unfinished[first.service] = unfinished.get(first.service, 0) + 1
    assert {name: count for name, count in book.unfinished.items() if count} == unfinished
    assert book.upto == log.position


@given(st.lists(moves, max_size=30))
def test_repeats_of_a_log_change_nothing(history: list[tuple[str, Change]]) -> None:
    """What is seen twice, because a call was repeated, leaves every finished request as it was."""
    log, book = Changes(), Book(KEEP)
    for token, each in history:
        book.apply(log.event(token, each))
    finished = {each.token: replace(each) for each in book if each.state.final}
    for token, each in history:
        if token in finished and not each.retry:
            assert book.apply(log.event(token, each)) is None
    for token, before in finished.items():
        assert book.get(token) == before


def test_one_of_many_repeats_has_the_key() -> None:
    """A request is found by the id of its first event until it is forgotten."""
    log, book = Changes(), Book(KEEP)
    book.apply(log.event(TOKENS[0], begun(), "request.x"))
    found = book.by_key("request.x")
    assert found is not None
    assert found.token == TOKENS[0]
    book.apply(log.event(TOKENS[0], change(State.DONE)))
    assert book.sweep(log.now + KEEP - 1) == []
    assert book.by_key("request.x") is found
    assert book.sweep(log.now + KEEP) == []
    assert book.by_key("request.x") is book.get(TOKENS[0]) is None
    assert len(book) == 0


def test_what_is_not_done_in_time_is_named_until_it_is_over() -> None:
    """Nobody has to remember that; a log that could not store is asked again a second later."""
    log, book = Changes(), Book(KEEP)
    until = log.now + 10_000
    book.apply(log.event(TOKENS[0], Change(state=State.QUEUED, service="reports", expires=moment_of(until))))
    assert book.sweep(until - 1) == []
    assert [each.token for each in book.sweep(until)] == [TOKENS[0]]
    assert book.sweep(until + 500) == []
    assert [each.token for each in book.sweep(until + 1000)] == [TOKENS[0]]
    book.apply(log.event(TOKENS[0], change(State.FAILED, error=Trouble("expired"))))
    assert book.sweep(until + 5000) == []
    assert book.ended == {("reports", "expired"): 1}


def test_a_retry_lives_anew() -> None:
    """It counts again, and ends when it says."""
    log, book = Changes(), Book(KEEP)
    book.apply(log.event(TOKENS[0], begun()))
    book.apply(log.event(TOKENS[0], change(State.FAILED, 5, failures=5, error=Trouble("error"))))
    request = book.get(TOKENS[0])
    assert request is not None
    assert (request.reason, book.unfinished["reports"]) == ("error", 0)
    again = change(State.QUEUED, 5, retry=True, expires=moment_of(log.now + 3_600_000))
    assert book.apply(log.event(TOKENS[0], again)) is request
    assert (request.reason, request.failures, book.unfinished["reports"]) == ("", 0, 1)
    assert book.sweep(log.now + KEEP + 1) == []
    assert book.get(TOKENS[0]) is request


@pytest.mark.parametrize(
    ("topic", "type", "data"),
    [
        ("orders.1", TYPE, b'{"state":"queued","service":"reports","expires":"2030-01-01T00:00:00Z"}'),
        (f"requests.{TOKENS[0]}", "message", b'{"state":"queued","service":"reports"}'),
        ("requests.short", TYPE, b'{"state":"queued","service":"reports","expires":"2030-01-01T00:00:00Z"}'),
        (f"requests.{TOKENS[0]}", TYPE, b'{"state":"unheard-of","service":"reports"}'),
        (f"requests.{TOKENS[0]}", TYPE, b'{"state":"queued"}'),
        (f"requests.{TOKENS[0]}", TYPE, b"[1]"),
        (f"requests.{TOKENS[0]}", TYPE, b'{"state":"queued","service":"reports","expires":"soon"}'),
        (f"requests.{TOKENS[0]}", TYPE, b'{"state":"queued","service":"reports"}'),
    ],
)
def test_what_is_no_change_changes_nothing(topic: str, type: str, data: bytes) -> None:
    """Other events, of producers who know no better."""
    book = Book(KEEP)
    event: Event = Mint(1000, "x", own=True).event(1, topic, data, None, type)
    event.position = 7
    assert book.apply(event) is None
    assert (len(book), book.upto) == (0, 7)
