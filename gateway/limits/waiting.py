"""
The waiting room: who has been let in, and has not yet said what for.

Pure. When too many wait, somebody has to go: the one who waited longest of the address that has the most
waiting. A crowd of honest clients has one or two each, and is soon out again; whoever wants to fill the room
has many, and loses those. Each step takes constant time, however many wait.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Guest = TypeVar("Guest", bound=Hashable)


class WaitingRoom(Generic[Guest]):
    """Who waits, by address."""

    def __init__(self) -> None:
        self._address: dict[Guest, Hashable] = {}
        self._guests: dict[Hashable, dict[Guest, None]] = {}  # of an address, who came first comes first
        # Addresses by how many of theirs wait; who has had so many for the longest time comes first.
        self._with: dict[int, dict[Hashable, None]] = {}
        self._most = 0  # that any address has waiting

    def __len__(self) -> int:
        return len(self._address)

    def __contains__(self, guest: object) -> bool:
        return guest in self._address

    def add(self, guest: Guest, address: Hashable) -> None:
        """Somebody waits from now on; who waited already begins again."""
        self.discard(guest)
        self._address[guest] = address
        guests = self._guests.setdefault(address, {})
        guests[guest] = None
        self._moved(address, len(guests) - 1, len(guests))

    def discard(self, guest: Guest) -> None:
        """Somebody waits no longer, if he did."""
        if guest not in self._address:
            return
        address = self._address.pop(guest)
        guests = self._guests[address]
        del guests[guest]
        if not guests:
            del self._guests[address]
        self._moved(address, len(guests) + 1, len(guests))

    def next_to_go(self) -> Guest:
        """
        Return who waited longest of the address that has the most waiting.

        Raises:
            LookupError: nobody waits.
        """
        if not self._address:
            raise LookupError("nobody waits")
        address = next(iter(self._with[self._most]))
        return next(iter(self._guests[address]))

    def _moved(self, address: Hashable, before: int, after: int) -> None:
        """An address has one more or one less waiting than before."""
        if before:
            same = self._with[before]
            del same[address]
            if not same:
                del self._with[before]
        if after:
            self._with.setdefault(after, {})[address] = None
        if after > self._most or (before == self._most and before not in self._with):
            self._most = after
