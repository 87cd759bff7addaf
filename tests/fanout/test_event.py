"""The event and its tag."""

from __future__ import annotations

from fanout.event import Event, tag_of


def test_a_tag_fits_into_a_cursor() -> None:
    """A tag has 16 bits, is never 0 ("not known"), and the same id has the same tag everywhere and always."""
    tags = [tag_of(f"event-{number}") for number in range(200_000)]
    assert min(tags) == 1
    assert max(tags) == 0xFFFF
    assert tag_of("123456789") == 0x3926  # the check value of CRC-32 is CBF43926


def test_ids_rarely_share_a_tag() -> None:
    """Ids that differ in one character have different tags nearly always: that is what a tag is for."""
    shared = sum(tag_of(f"event-{number}") == tag_of(f"event-{number + 1}") for number in range(10_000))
    assert shared < 10


def test_an_event_has_no_position_before_the_log_gave_it_one() -> None:
    """A new event has position 0, no frames, and nothing that was not given."""
    event = Event("orders.1", b'"topic":"orders.1"', 1000, 7)
    assert (event.position, event.frames, event.key, event.expires, event.given_id) == (
        0,
        None,
        None,
        0,
        None,
    )
    assert repr(event) == "<Event 0 orders.1 18 bytes>"
