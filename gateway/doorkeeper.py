"""The doorkeeper: connections that owe us a request are watched, and who asks is let in turn by turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gateway.arrival import Comer
from gateway.limits.guard import Guard
from gateway.limits.waiting import WaitingRoom

BEGUN_PER_TURN = 8
"""GET requests that are begun in one turn of the loop: less than a millisecond of work."""


class Doorkeeper:
    """
    Watches the connections that have not asked for anything yet, and lets those in turn by turn that did.

    Args:
        address: where the server listens.
        max_head: bytes a request's line and headers may have.
        timeout: seconds a client may take to send them.
        guard: knows the limits; there are none without.

    Attributes:
        room: the connections that have sent no complete request yet, but for those of proxies.
    """

    def __init__(
        self, address: tuple[str, int], max_head: int, timeout: float, guard: Guard | None = None
    ) -> None:
        self.address = address
        self.max_head = max_head
        self.timeout = timeout
        self.guard = guard or Guard()
        self.room: WaitingRoom[Comer] = WaitingRoom()
        self.leaving = False  # others take the connections now: each is closed behind its next answer
        self.waiting: dict[Comer, float] = {}  # since when its head has been due, oldest first
        self._lobby: deque[Callable[[], None]] = deque()
        self._entered = 0  # in this turn of the loop

    def expect(self, protocol: Comer) -> None:
        """A request is due from now on, and first its head."""
        self.waiting.pop(protocol, None)
        self.waiting[protocol] = asyncio.get_running_loop().time()
        self.wait(protocol)

    def wait(self, protocol: Comer) -> None:
        """A request is due, at some time; if too many are, one of those who owe it is dropped."""
        if protocol.address is None or protocol in self.room:
            return
        self.room.add(protocol, protocol.address)
        if 0 < self.guard.limits.waiting < len(self.room):
            last = self.room.next_to_go()
            self.complete(last)
            self.guard.refused["max_waiting"] += 1
            last.transport.abort()

    def arrived(self, protocol: Comer) -> None:
        """The head is there, or the connection gone."""
        self.waiting.pop(protocol, None)

    def complete(self, protocol: Comer) -> None:
        """The whole request is there, or the connection gone."""
        self.waiting.pop(protocol, None)
        self.room.discard(protocol)

    def enter(self, begin: Callable[[], None]) -> None:
        """
        Begin to answer a GET request: at once, or in a later turn of the loop if this one began enough.

        A crowd that (re)connects would otherwise be answered as a whole before the next event is delivered.
        """
        if not self._entered:
            asyncio.get_running_loop().call_soon(self._next_turn)
        if self._entered < BEGUN_PER_TURN and not self._lobby:
            self._entered += 1
            begin()
        else:
            self._lobby.append(begin)

    def _next_turn(self) -> None:
        self._entered = min(BEGUN_PER_TURN, len(self._lobby))
        if self._entered:
            asyncio.get_running_loop().call_soon(self._next_turn)
        for _ in range(self._entered):
            self._lobby.popleft()()

    async def run(self) -> None:
        """Close the connections whose head is overdue, until cancelled."""
        while True:
            await asyncio.sleep(min(1.0, self.timeout / 4))
            overdue = asyncio.get_running_loop().time() - self.timeout
            while self.waiting and next(iter(self.waiting.values())) < overdue:
                protocol = next(iter(self.waiting))
                del self.waiting[protocol]
                protocol.time_out()
