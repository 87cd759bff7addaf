"""The states of a connection, walked whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import pytest

from fanout.connection import TRANSITIONS, Connection, Overflow, Signal, Sink, State
from fanout.frames import Wire


def connection() -> Connection:
    """Return a connection that nobody writes to."""
    return Connection("c", cast("Sink", None), Wire.SSE)


def reached(begin: State, without: Iterable[State] = ()) -> set[State]:
    """Return the states that signals can lead to, except through `without`."""
    found, todo = {begin}, [begin]
    while todo:
        for state in TRANSITIONS[todo.pop()].values():
            if state not in found and state not in without:
                found.add(state)
                todo.append(state)
    return found


TABLE = [
    (State.CATCHING_UP, Signal.FULL, State.PAUSED),
    (State.CATCHING_UP, Signal.CAUGHT_UP, State.LIVE),
    (State.CATCHING_UP, Signal.REWOUND, State.CATCHING_UP),
    (State.CATCHING_UP, Signal.ENDED, State.CLOSED),
    (State.LIVE, Signal.FULL, State.PAUSED),
    (State.LIVE, Signal.REWOUND, State.CATCHING_UP),
    (State.LIVE, Signal.ENDED, State.CLOSED),
    (State.PAUSED, Signal.FULL, State.PAUSED),
    (State.PAUSED, Signal.DRAINED, State.CATCHING_UP),
    (State.PAUSED, Signal.REWOUND, State.PAUSED),
    (State.PAUSED, Signal.ENDED, State.CLOSED),
    (State.CLOSED, Signal.FULL, State.CLOSED),
    (State.CLOSED, Signal.DRAINED, State.CLOSED),
    (State.CLOSED, Signal.ENDED, State.CLOSED),
]


def test_the_table_is_this_one() -> None:
    """Every transition there is, and no other: who changes one has to say so here."""
    table = {(state, signal, then) for state, row in TRANSITIONS.items() for signal, then in row.items()}
    assert table == set(TABLE)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("signal", Signal)
def test_each_signal_in_each_state(state: State, signal: Signal) -> None:
    """A signal leads where the table says; one it does not have is a mistake, and changes nothing."""
    each = connection()
    each.state = state
    then = {signal: then for begin, signal, then in TABLE if begin is state}.get(signal)
    if then is None:
        with pytest.raises(KeyError):
            each.fire(signal)
        assert each.state is state
    else:
        each.fire(signal)
        assert each.state is then


def test_every_state_has_a_row_and_is_reached() -> None:
    """From a new connection every state can be reached."""
    assert set(TRANSITIONS) == set(State)
    assert reached(connection().state) == set(State)


@pytest.mark.parametrize("state", State)
def test_every_connection_can_end_and_none_comes_back(state: State) -> None:
    """Each state reaches CLOSED when the connection ends, and CLOSED is left by nothing."""
    assert TRANSITIONS[state][Signal.ENDED] is State.CLOSED
    assert set(TRANSITIONS[State.CLOSED].values()) == {State.CLOSED}


def test_only_a_drained_connection_becomes_live() -> None:
    """From PAUSED the only way to LIVE leads through CATCHING_UP: what was missed comes first."""
    assert State.LIVE not in reached(State.PAUSED, without=[State.CATCHING_UP])
    assert State.LIVE in reached(State.PAUSED)


@pytest.mark.parametrize("state", [State.CATCHING_UP, State.LIVE])
def test_whoever_is_written_to_can_become_full(state: State) -> None:
    """A connection that is written to is paused when its sink is full."""
    assert TRANSITIONS[state][Signal.FULL] is State.PAUSED


def test_a_new_connection_is_behind() -> None:
    """A new connection is catching up from the beginning, has fallen behind nobody, and gets everything."""
    new = connection()
    assert (new.state, new.position, new.fell_behind, new.overflow) == (
        State.CATCHING_UP,
        0,
        False,
        Overflow.CATCHUP,
    )
