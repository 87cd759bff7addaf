"""The waiting room against a list of who came when: who has to go is the oldest of the busiest address."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.waiting import WaitingRoom

GUESTS = 12
ADDRESSES = "abcd"

steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, GUESTS), st.sampled_from(ADDRESSES)),
        st.tuples(st.just("discard"), st.integers(1, GUESTS), st.just("")),
        st.tuples(st.just("go"), st.just(0), st.just("")),
    ),
    max_size=100,
)


@given(steps)
def test_the_oldest_of_the_busiest_goes(steps: list[tuple[str, int, str]]) -> None:
    """At any time: nobody's address has more waiting, and nobody of that address waits for longer."""
    room: WaitingRoom[int] = WaitingRoom()
    came: list[tuple[int, str]] = []  # oldest first
    for what, named, address in steps:
        guest = room.next_to_go() if what == "go" and came else named
        if what == "go":
            room.discard(guest)
        elif what == "add":
            room.add(guest, address)
        else:
            room.discard(guest)
        came = [each for each in came if each[0] != guest]
        if what == "add":
            came.append((guest, address))
        assert len(room) == len(came)
        assert all((each in room) == any(each == one for one, _ in came) for each in range(1, GUESTS + 1))
        if came:
            many = Counter(one for _, one in came)
            going = room.next_to_go()
            its = next(one for each, one in came if each == going)
            assert many[its] == max(many.values())
            assert going == next(each for each, one in came if one == its)


def test_an_empty_room() -> None:
    """Nobody can be asked to go where nobody is; who is not there may be taken out."""
    room: WaitingRoom[int] = WaitingRoom()
    with pytest.raises(LookupError):
        room.next_to_go()
    room.add(1, "a")
    room.discard(1)
    room.discard(1)
    with pytest.raises(LookupError):
        room.next_to_go()


def test_a_flood_takes_its_own_places() -> None:
    """Whoever floods the room loses what he has there, as long as anybody has less."""
    room: WaitingRoom[tuple[str, int]] = WaitingRoom()
    honest = [(f"honest{number}", number) for number in range(50)]
    for each in honest:
        room.add(each, each[0])
    for number in range(10_000):
        room.add(("attacker", number), f"attacker{number % 3}")
        if len(room) > 100:
            room.discard(room.next_to_go())
    assert all(each in room for each in honest)
    assert len(room) == 100
