"""Retry-After: every form of the RFC is understood, and nothing in it can do harm."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.retry_after import LONGEST_MS, asked_ms

NOW = int(datetime(2026, 11, 6, 8, 49, 37, tzinfo=UTC).timestamp()) * 1000


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0),
        ("1", 1),
        ("120", 120),
        (" 120\t", 120),
        ("0000000000120", 120),
        ("1.5", 1.5),
        ("2.", 2),
        ("86400", 86_400),
        # The three forms of a date (RFC 9110 section 5.6.7).
        ("Fri, 06 Nov 2026 08:50:37 GMT", 60),
        ("Friday, 06-Nov-26 08:50:37 GMT", 60),
        ("Fri Nov  6 08:50:37 2026", 60),
        # What some write instead.
        ("06 Nov 2026 08:50:37 GMT", 60),
        ("fri, 6 nov 2026 08:50:37 UTC", 60),
        ("Fri, 06 Nov 2026 08:50:37 +0000", 60),
        ("Mon, 06 Nov 2026 08:50:37 GMT", 60),  # it was no Monday
        ("Fri, 06 Nov 2026 08:49:60 GMT", 22),  # a leap second
    ],
)
def test_what_a_receiver_asks_for(header: str, seconds: float) -> None:
    """A number of seconds, or a date in any form of HTTP's."""
    assert asked_ms(header, NOW) == seconds * 1000


@pytest.mark.parametrize(
    "header",
    [
        "86401",
        "99999999999",
        "9" * 5000,
        "0" * 5000 + "9" * 5000,
        "99999999.9",
        "1000000." + "9" * 5000,
        "Fri, 06 Nov 2076 08:50:37 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 06 Nov 2569 08:49:37 GMT",  # the Buddhist calendar's 2026
        "Friday, 06-Nov-27 08:50:37 GMT",
    ],
)
def test_a_day_is_the_most(header: str) -> None:
    """Whoever asks for more than a day gets a day."""
    assert asked_ms(header, NOW) == LONGEST_MS == 86_400_000


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        " ",
        "-1",
        "-120",
        "+120",
        "1e9",
        "0x10",
        "1,5",
        "1 2",
        "120s",
        "soon",
        "nan",
        "inf",
        "NaN, 06 Nov 2026",
        ".5",
        "١٢٠",  # digits, but not ASCII's
        "120\n",
        "Fri, 06 Nov 2026 08:48:37 GMT",  # past
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Fri, 06 Nov 0000 08:48:37 GMT",
        "Mon, 06 Nov 0008 08:48:37 GMT",  # the eighth year of Reiwa
        "Friday, 06-Nov-77 08:50:37 GMT",  # 1977: not more than 50 years ahead
        "Fri, 31 Nov 2026 08:50:37 GMT",
        "Mon, 29 Feb 2027 08:50:37 GMT",
        "Fri, 00 Nov 2026 08:50:37 GMT",
        "Fri, 06 Nov 2026 24:50:37 GMT",
        "Fri, 06 Nov 2026 08:60:37 GMT",
        "Fri, 06 Nov 2026 08:50:37 PST",
        "Fri, 06 Nov 2026 08:50:37 +0900",
        "Fri, 06 Nov 2026 08:50:37",
        "Fri, 06 Brumaire 2026 08:50:37 GMT",
        "Fri, 06 Fru 2026 08:50:37 GMT",
        "2026-11-06T08:50:37Z",
        "Fri Nov 66 08:50:37 2026",
        "x" * 100_000,
        "1" + "," * 100_000,
        "Fri, " * 20_000,
    ],
)
def test_what_is_no_wish(header: str | None) -> None:
    """What makes no sense, or has passed, is as good as no header."""
    assert asked_ms(header, NOW) == 0


@given(st.integers(0, 86_400), st.integers(0, 2**37))
def test_a_date_is_as_good_as_seconds(seconds: int, now: int) -> None:
    """A date says the same as the seconds until then, whenever that is."""
    date = format_datetime(datetime.fromtimestamp(now + seconds, UTC), usegmt=True)
    assert asked_ms(date, now * 1000) == asked_ms(str(seconds), now * 1000) == seconds * 1000


@given(st.text(), st.integers(0, 2**43))
def test_nothing_does_harm(header: str, now: int) -> None:
    """Whatever a receiver says, the wait is within a day."""
    assert 0 <= asked_ms(header, now) <= LONGEST_MS


@given(st.from_regex(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", fullmatch=True))
def test_no_date_does_harm(header: str) -> None:
    assert 0 <= asked_ms(header, NOW) <= LONGEST_MS
