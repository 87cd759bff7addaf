"""A little of the fuzzing that coverage leads, the same each time."""

from __future__ import annotations

from typing import Final

import pytest

from tests.fuzz.guided import Guided, fuzz
from tests.fuzz.targets import TARGETS, Target

RUNS: Final = 400


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_where_coverage_leads(name: str) -> None:
    """The inputs that reach something new, and what they are changed into, break nothing."""
    guided = fuzz(name, 1, lambda guided: guided.runs >= RUNS)
    assert len(guided.corpus) > len(TARGETS[name].corpus), "nothing new was reached: is it covered at all?"


def test_what_fails_is_said_in_its_smallest_form() -> None:
    """The note of a failure has only what it takes to fail."""

    def check(data: bytes) -> None:
        assert b"x" not in data

    with pytest.raises(AssertionError) as caught:
        Guided(Target(check, (b"abc" * 20 + b"x" + b"abc" * 20,)), 1)
    assert caught.value.__notes__ == ["The input was b'x'"]
