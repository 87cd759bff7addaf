"""Tests of gateway.logs."""

from __future__ import annotations

import logging

import pytest

from gateway.logs import Facts


def _line(message: str, own: dict[str, object] | None = None, **extra: object) -> str:
    record = logging.getLogger("gateway.test").makeRecord(
        "gateway.test", logging.ERROR, "file", 1, message, (), None, extra=extra
    )
    return Facts(own).format(record)


def test_facts_are_shown_behind_the_message() -> None:
    """What a record carries as extra is on its line."""
    line = _line("log.commit_failed", reason="the disk is full", batch=7)
    assert line.endswith("ERROR gateway.test log.commit_failed reason='the disk is full' batch=7")


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\x1b[31m", "\u2028", ""])
def test_no_fact_breaks_the_line(value: str) -> None:
    """A value with line breaks or control characters is shown escaped, on the same line."""
    line = _line("x", fact=value)
    assert line.isprintable()
    assert line.endswith(f"fact={value!a}")


def test_every_line_says_which_worker() -> None:
    """The facts of a process are on each of its lines, in front of the record's own, which win."""
    assert _line("x", {"worker": 2}, reason="why").endswith("x worker=2 reason=why")
    assert _line("x", {"worker": 2}, worker=3).endswith("x worker=3")
