"""Any bytes, and good examples changed a little, into everything that takes bytes from outside."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS

EXAMPLES: Final = {"operations": 250, "http": 300, "websocket": 300, "websocket deflate": 300}


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_taken_or_refused(name: str) -> None:
    """What must hold for a target holds for any bytes."""
    target = TARGETS[name]

    # The same each time, so that nobody's change is red for what another's run found.
    @settings(
        max_examples=EXAMPLES.get(name, 500),
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(target.corpus, target.words))
    def check(data: bytes) -> None:
        target.check(data)

    check()


@given(st.sampled_from(sorted(TARGETS)), st.data())
@settings(max_examples=50, derandomize=True, deadline=None)
def test_the_examples_are_good_to_begin_with(name: str, data: st.DataObject) -> None:
    """The examples themselves hold as well."""
    target = TARGETS[name]
    target.check(data.draw(st.sampled_from(target.corpus)))
