"""How long something takes at best: for promises about time, on machines that stall now and then."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable


async def quickest(work: Callable[[], Awaitable[object]], times: int = 3) -> float:
    """
    Return the seconds of the fastest of several runs.

    What waits for somebody who stands still waits every time. What was only held up by the machine, for a
    moment, is not held up three times in a row.

    Args:
        work: what is done, once for each run; what it raises ends them all.
        times: how many runs.
    """
    taken = []
    for _ in range(times):
        begun = time.monotonic()
        await work()
        taken.append(time.monotonic() - begun)
    return min(taken)
