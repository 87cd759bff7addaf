"""
The ids in the stream: which message is there for the second time. Pure.

A producer that got no answer publishes again, perhaps through another replica, and the first attempt may have
reached the stream as well. Every replica reads both, in the same order with the same times, and leaves out
the second: so all of them give clients the same events.

Limits: ids are known from where this replica began to read (the tail it starts with); the oldest go first
when there are too many.
"""

from __future__ import annotations

from typing import Final

GENERATIONS: Final = 8
_SHIFT: Final = 44  # bits for a time in ms: until the year 2527


class Seen:
    """
    The ids of the last `window_ms` of the stream.

    Args:
        window_ms: for how long an id counts, by the times of the events; 0 is not at all.
        max_ids: how many are remembered at most.
    """

    def __init__(self, window_ms: int, max_ids: int) -> None:
        self._window_ms = window_ms if max_ids else 0
        self._share = max(max_ids // GENERATIONS, 1)
        self._step_ms = max(window_ms // GENERATIONS, 1)
        # Dicts of strings and numbers: the garbage collector does not walk through them.
        self._generations: list[tuple[int, dict[str, int]]] = []  # newest first, with when each began

    def original(self, id: str, position: int, time: int) -> int | None:
        """
        Note the id of the event at `position`.

        Returns:
            The position of the event that had the id before; None if it is new, and then it is remembered.
        """
        if not self._window_ms:
            return None
        for _, ids in self._generations:
            known = ids.get(id)
            if known is not None and time - (known & (1 << _SHIFT) - 1) < self._window_ms:
                return known >> _SHIFT
        self._newest(time)[id] = position << _SHIFT | time
        return None

    def clear(self) -> None:
        """Forget all."""
        self._generations.clear()

    def _newest(self, time: int) -> dict[str, int]:
        """Return the dict for an id of this time; old ones go."""
        generations = self._generations
        if generations:
            began, ids = generations[0]
            if time - began < self._step_ms and len(ids) < self._share:
                return ids
        generations.insert(0, (time, {}))
        # A generation ends where the next begins: old enough, or one too many.
        while len(generations) > 1 and (
            len(generations) > GENERATIONS + 1 or time - generations[-2][0] >= self._window_ms
        ):
            generations.pop()
        return generations[0][1]
