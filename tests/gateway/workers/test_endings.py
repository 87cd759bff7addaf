"""What the supervisor does when a worker ends."""

from __future__ import annotations

import signal
from itertools import pairwise

import pytest

from gateway.workers.endings import PAUSE, STEADY_SECONDS, Ending, Pauses, Verdict, judge

KILLED = -signal.SIGKILL
TERMINATED = -signal.SIGTERM


def ending(code: int, *, asked: bool = False, ready: bool = False, seconds: float = 1.0) -> Ending:
    """Return how a process ended."""
    return Ending(code, seconds, asked=asked, ready=ready)


@pytest.mark.parametrize("code", [0, 1, 2, 3, KILLED, TERMINATED, -signal.SIGSEGV])
@pytest.mark.parametrize("served", [False, True])
def test_who_was_sent_away_is_gone(code: int, served: bool) -> None:
    """However a worker ends that was told to go: nothing follows from it."""
    assert judge(ending(code, asked=True), served=served) is Verdict.GONE


@pytest.mark.parametrize("code", [1, 2])
def test_a_refusal_at_the_start_stops_all(code: int) -> None:
    """A worker that cannot start before any of its number has served speaks for all."""
    assert judge(ending(code), served=False) is Verdict.STOP


@pytest.mark.parametrize("code", [1, 2])
def test_a_refusal_later_concerns_nobody_else(code: int) -> None:
    """What a restarted worker lacks may come back; the others serve on."""
    assert judge(ending(code), served=True) is Verdict.RESTART


@pytest.mark.parametrize("code", [0, 3, 134, KILLED, -signal.SIGSEGV, -signal.SIGBUS])
@pytest.mark.parametrize("served", [False, True])
def test_a_crash_is_made_good(code: int, served: bool) -> None:
    """Any other end that nobody asked for is followed by a restart, also during the start."""
    assert judge(ending(code), served=served) is Verdict.RESTART


@pytest.mark.parametrize(
    ("code", "asked", "ready", "orderly"),
    [
        (0, True, True, True),
        (0, False, True, True),
        (1, True, True, False),
        (KILLED, True, True, False),
        (TERMINATED, True, True, False),  # it was to drain, and did not
        (TERMINATED, True, False, True),  # it had not begun
        (-signal.SIGINT, True, False, True),
        (1, True, False, True),  # refused, and told to go at the same time
        (KILLED, True, False, False),
        (1, False, False, False),
    ],
)
def test_what_is_orderly(code: int, asked: bool, ready: bool, orderly: bool) -> None:
    """Exit code 0 is; and a worker that had not begun may be ended by the signal, or may have refused."""
    assert ending(code, asked=asked, ready=ready).orderly is orderly


@pytest.mark.parametrize(
    ("code", "text"),
    [(0, "exit code 0"), (3, "exit code 3"), (KILLED, "signal SIGKILL"), (-40, "signal 40")],
)
def test_an_ending_is_told_in_words(code: int, text: str) -> None:
    """A signal has its name, if it has one."""
    assert str(ending(code)) == text


def test_pauses_grow_up_to_a_bound_and_differ() -> None:
    """Each fall in a row doubles the pause, and chance halves it at most."""
    slow, quick = Pauses(), Pauses()
    longest = [slow.after(0.1, 1.0) for _ in range(100)]
    shortest = [quick.after(0.1, 0.0) for _ in range(100)]
    assert longest[0] == PAUSE[0]
    assert longest[-1] == PAUSE[1]
    assert all(after == min(2 * before, PAUSE[1]) for before, after in pairwise(longest))
    assert shortest == [each / 2 for each in longest]


def test_who_ran_steadily_begins_anew() -> None:
    """After a fall that had nothing to do with its start a worker is back soon."""
    pauses = Pauses()
    for _ in range(10):
        pauses.after(0.1, 1.0)
    assert pauses.after(STEADY_SECONDS, 1.0) == PAUSE[0]
    assert pauses.after(STEADY_SECONDS - 1, 1.0) == 2 * PAUSE[0]
