"""
The logbook: the numbers that logs have in the store, and what they are called.

A log is known by its epoch. If it turns out to have lost its end, its positions are given out again for other
events; then it counts as another log, which the store knows as `epoch~number`, `number` being the one that it
had before. So every replica that notices gives it the same new number.
"""

from __future__ import annotations

from webhooks.store import Store


class Logbook:
    """
    Remembers what the store says.

    Args:
        store: gives the numbers.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._epochs: dict[int, str] = {}  # by number
        self._current: dict[str, int] = {}

    async def number(self, epoch: str, seen: int = 0) -> int:
        """
        Return the number of a log, as it is now.

        Args:
            epoch: the log's.
            seen: the highest number known of any log. If that is another log's, and was given after this one
                had its own, this one has come back, from a backup perhaps: it counts as another.
        """
        number = self._current.get(epoch)
        if number is None or number < seen:
            number = await self.last_of(epoch)
            if number is None:
                number = await self._store.log_number(epoch)
                self._epochs[number] = epoch
            if number < seen:
                number = await self.replace(epoch, seen)
            self._current[epoch] = number
        return number

    async def replace(self, epoch: str, number: int) -> int:
        """Return the number that a log has from now on, of which it is known that it is not `number`."""
        text = f"{epoch}~{number}"
        another = await self._store.log_number(text)
        self._epochs[another] = text
        self._current[epoch] = max(another, self._current.get(epoch, 0))
        return another

    async def epoch(self, number: int) -> str | None:
        """Return the epoch of the log with a number; None for what is of no log."""
        if not number:
            return None
        if number not in self._epochs:
            await self._look()
        return _epoch(self._epochs[number])

    async def last_of(self, epoch: str) -> int | None:
        """Return the newest number of a log; None if it has none."""
        await self._look()
        return max((number for number, text in self._epochs.items() if _epoch(text) == epoch), default=None)

    async def _look(self) -> None:
        self._epochs = await self._store.logs()


def _epoch(text: str) -> str:
    return text.partition("~")[0]
