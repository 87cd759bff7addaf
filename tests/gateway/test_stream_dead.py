"""Dead letters: sent once if all goes well, twice if it does not, and never not at all."""

from __future__ import annotations

from gateway.amqp.frames import Delivery
from gateway.amqp.properties import OFFSET, encode, encode_headers
from gateway.stream_dead import MAX_BYTES, DeadLetters, naming
from gateway.stream_messages import Received


def _message(offset: int, size: int = 1) -> Received:
    header = encode(b"text/plain", encode_headers({OFFSET: offset}))
    return Received(Delivery(1, 1, b"events", b"a..b", header, b"x" * size, size))


def _noted(*offsets: int) -> DeadLetters:
    dead = DeadLetters()
    for offset in offsets:
        assert not dead.note(_message(offset), "no topic")
    return dead


def test_what_was_sent_is_not_due_again() -> None:
    dead = _noted(3, 5, 9)
    assert dead.due(2) == [3, 5]
    assert dead.due(2) == [9]
    assert dead.due(2) == []
    message, reason = dead[5]
    assert (message.offset, reason) == (5, "no topic")


def test_a_mark_settles_what_it_names() -> None:
    """Whoever reads that another replica was first forgets the message, and nothing else."""
    dead = _noted(3, 5, 9)
    dead.settled(naming([5, 9, 12]))
    assert dead.due(10) == [3]
    dead.settled(naming([3]))
    assert len(dead) == 0


def test_it_is_due_again_when_the_connection_was_lost() -> None:
    """Until the mark was read nobody knows whether the message arrived."""
    dead = _noted(3, 5)
    assert dead.due(10) == [3, 5]
    dead.settled("3")
    dead.lost()
    assert dead.due(10) == [5]


def test_marks_that_say_nonsense_say_nothing() -> None:
    dead = _noted(3)
    for nonce in ("", ",", "x", "-3", "3.0", "³", "9" * 5000, "3x", " 3"):
        dead.settled(nonce)
    assert dead.due(10) == [3]


def test_another_stream_has_other_messages() -> None:
    dead = _noted(3)
    dead.clear()
    assert dead.due(10) == []
    dead.settled("3")
    assert len(dead) == 0


def test_memory_is_bounded() -> None:
    """When too much waits it is sent at once, and what was sent makes room for what was not."""
    dead = DeadLetters()
    size = MAX_BYTES // 4
    said = [dead.note(_message(offset, size), "too long") for offset in range(4)]
    assert said == [False, False, False, True]
    assert dead.due(10) == [0, 1, 2, 3]
    assert not dead.note(_message(4, size), "too long")
    assert len(dead) == 3
    assert dead.due(10) == [4]


def test_the_same_message_counts_once() -> None:
    """A message that is read a second time after a reconnection is known."""
    dead = _noted(3, 3)
    assert dead.due(10) == [3]
    dead.settled("3")
    assert len(dead) == 0
