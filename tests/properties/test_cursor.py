"""The cursor's text: read back as it was, harmless wherever it goes, and nothing else is taken for one."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import quote

from hypothesis import example, given
from hypothesis import strategies as st

from fanout.cursor import EPOCH_ALPHABET, EPOCH_LENGTH, MAX_POSITION, Cursor, Since, parse_start
from fanout.errors import CursorError

cursors = st.builds(
    Cursor,
    st.text(EPOCH_ALPHABET, min_size=EPOCH_LENGTH, max_size=EPOCH_LENGTH),
    st.integers(0, MAX_POSITION),
    st.integers(0, 0xFFFF),
)


@given(cursors)
def test_it_is_read_back(cursor: Cursor) -> None:
    """Every cursor is read back from its text, also where any start is allowed."""
    assert Cursor.parse(str(cursor)) == cursor
    assert parse_start(str(cursor)) == cursor


@given(cursors)
def test_it_needs_no_escaping(cursor: Cursor) -> None:
    """Its text goes unchanged through a URL, a header, a line of an event stream and a JSON string."""
    text = str(cursor)
    assert quote(text, safe="") == text
    assert json.dumps(text) == f'"{text}"'
    assert re.fullmatch(r"[a-z0-9-]{13,36}", text)


@given(cursors, st.data())
def test_a_changed_text_is_no_other_spelling(cursor: Cursor, data: st.DataObject) -> None:
    """A text with a character changed, added or taken away is refused, or is another cursor."""
    text = str(cursor)
    at = data.draw(st.integers(0, len(text)))
    changed = text[:at] + data.draw(st.text(max_size=2)) + text[at + data.draw(st.integers(0, 2)) :]
    try:
        parsed = Cursor.parse(changed)
    except CursorError:
        return
    assert (parsed == cursor) == (changed == text)
    assert str(parsed) == changed


@given(st.text())
@example("-1")
@example("latest")
def test_anything_is_a_start_or_refused(text: str) -> None:
    """Whatever comes is a start or a `CursorError`, never another failure."""
    try:
        parse_start(text)
    except CursorError as refused:
        said = str(refused)
    else:
        said = ""
    assert said.isprintable()


@given(st.integers(0, 253_402_300_799_999), st.integers(-23 * 60, 23 * 60))
def test_times_are_read_to_the_millisecond(time_ms: int, zone_minutes: int) -> None:
    """A time written in any zone is the same moment."""
    zone = timezone(timedelta(minutes=zone_minutes))
    try:
        local = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)).astimezone(zone)
    except OverflowError:  # the year 10,000 has begun there
        return
    assert parse_start(local.isoformat(timespec="microseconds")) == Since(time_ms)
