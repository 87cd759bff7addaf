"""The cursor's text, and the other ways to say where to begin."""

from __future__ import annotations

import pytest

from fanout.cursor import (
    MAX_COUNT,
    MAX_POSITION,
    Cursor,
    Earliest,
    Latest,
    Newest,
    Since,
    parse_start,
)
from fanout.errors import CursorError


@pytest.mark.parametrize(
    ("cursor", "text"),
    [
        (Cursor("abc234", 0, 0), "abc234-0-0000"),
        (Cursor("abcdef", 42, 0xBEEF), "abcdef-42-beef"),
        (Cursor("zzzzzz", MAX_POSITION, 1), "zzzzzz-9223372036854775807-0001"),
    ],
)
def test_a_cursor_as_text(cursor: Cursor, text: str) -> None:
    """A cursor is written as epoch, position and tag, and read back from that."""
    assert str(cursor) == text
    assert Cursor.parse(text) == cursor
    assert parse_start(text) == cursor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abcdef",
        "abcdef-1",
        "abcdef-1-beef-",
        "-1-beef",
        "abcde-1-beef",
        "abcdefg-1-beef",
        "ABCDEF-1-beef",
        "abcde1-1-beef",
        "abcdef--1-beef",
        "abcdef-01-beef",
        "abcdef-+1-beef",
        "abcdef-1-BEEF",
        "abcdef-1-bee",
        "abcdef-1-beeff",
        "abcdef-1-beef\n",
        " abcdef-1-beef",
        "abcdef-9223372036854775808-beef",
        "abcdef-99999999999999999999-beef",
        "abcdef-\u0661-beef",
        "a" * 10_000,
    ],
)
def test_what_is_no_cursor(text: str) -> None:
    """Anything but the one spelling of a cursor is refused, with a short sentence that shows what came."""
    with pytest.raises(CursorError, match="is no cursor") as refused:
        Cursor.parse(text)
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


def test_the_words() -> None:
    """`earliest` and `latest` name the two ends of the log."""
    assert parse_start("earliest") == Earliest()
    assert parse_start("latest") == Latest()


@pytest.mark.parametrize("count", [1, 30, MAX_COUNT])
def test_the_last_events(count: int) -> None:
    """`-N` asks for the last N events."""
    assert parse_start(f"-{count}") == Newest(count)


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-23T16:46:00Z", 1_795_452_360_000),
        ("2026-11-23T16:46:00.5Z", 1_795_452_360_500),
        ("2026-11-23T16:46:00.123456789Z", 1_795_452_360_123),
        ("2026-11-23t16:46:00z", 1_795_452_360_000),
        ("2026-11-23 16:46:00Z", 1_795_452_360_000),
        ("2026-11-23T17:46:00+01:00", 1_795_452_360_000),
        ("2026-11-23T17:46:00 01:00", 1_795_452_360_000),  # a plus that nobody percent-encoded
        ("2026-11-23T16:16:00-00:30", 1_795_452_360_000),
        ("1969-12-31T23:59:59.999Z", 0),
        ("0001-01-01T00:00:00Z", 0),
    ],
)
def test_times(text: str, time_ms: int) -> None:
    """A time in RFC 3339's form is read to the millisecond, in any zone; before 1970 there was nothing."""
    assert parse_start(text) == Since(time_ms)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Earliest",
        "newest",
        "-0",
        "-01",
        "-1000001",
        "-9999999",
        "-",
        "1",
        "0",
        "--1",
        "2026-11-23",
        "2026-11-23T16:46Z",
        "2026-11-23T16:46:00",
        "2026-13-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-11-23T24:00:01Z",
        "2026-11-23T16:46:00+25:00",
        "2026-11-23T16:46:00.1234567890Z",
        "\u0662026-11-23T16:46:00Z",
        "latest\n",
    ],
)
def test_what_is_no_start(text: str) -> None:
    """
    What names no start is refused, with a sentence that says which forms there are or what is wrong with
    the time.
    """
    with pytest.raises(CursorError, match=r"earliest, latest, -N|no point in time"):
        parse_start(text)
