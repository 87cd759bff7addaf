"""
From names to addresses, off the event loop: the system's own resolver in threads.

The system's, so that a webhook reaches what every other program on the machine reaches under that name: hosts
file, search domains, all that nsswitch names. Its calls wait and cannot be cut short, so threads do them, as
many as `threads`. What must not happen is that names whose servers never answer hold all of them: a name that
took long is remembered, and of such names only a few are looked up at a time. They wait for one another and
nobody waits for them.

Those who ask for a name while it is being looked up share the answer. It is kept no longer than that: each
new connection goes where the name leads then.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Protocol

MAX_ADDRESSES: Final = 16
"""Of one name; more are left out: nobody tries so many within a deadline."""
SLOW_SECONDS: Final = 1.0
"""Longer than a name server needs that is there."""
MAX_REMEMBERED: Final = 4096


class Unresolved(Exception):
    """A name has no address; the text is one sentence for who wrote the name."""


class Names(Protocol):
    """Knows the addresses of names."""

    async def addresses(self, host: str) -> tuple[str, ...]:
        """
        Return the addresses of a name, the best first, as sockets take them.

        Raises:
            Unresolved: it has none.
        """


@dataclass(eq=False, slots=True)
class _Lookup:
    """A name that is looked up for some who wait; `found` has no exception, which nobody might fetch."""

    host: str
    found: asyncio.Future[tuple[str, ...] | Unresolved]
    slow: bool
    waiting: int = 0


class SystemNames:
    """
    Names as the system resolves them.

    Args:
        threads: look-ups at a time.
        slow: of them, those of names that took long the last time.
        look_up: returns the addresses of a name, or raises `Unresolved`; waits.
    """

    def __init__(
        self, threads: int = 64, slow: int = 8, look_up: Callable[[str], tuple[str, ...]] | None = None
    ) -> None:
        self._most, self._most_slow = threads, slow
        self._look_up = look_up or system_look_up
        self._pending: dict[str, _Lookup] = {}
        self._ready: deque[_Lookup] = deque()
        self._behind: deque[_Lookup] = deque()  # those of slow names
        self._busy = self._busy_slow = 0
        self._slow: dict[str, None] = {}
        self._jobs: SimpleQueue[tuple[_Lookup, asyncio.AbstractEventLoop] | None] = SimpleQueue()
        self._threads = 0

    async def addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a name; see `Names`."""
        lookup = self._pending.get(host) or self._add(host)
        lookup.waiting += 1
        self._start()
        try:
            found = await asyncio.shield(lookup.found)
        finally:
            lookup.waiting -= 1
        if isinstance(found, Unresolved):
            raise Unresolved(str(found))
        return found

    def close(self) -> None:
        """Let the threads end; one that is inside of the system's resolver ends when that returns."""
        for lookup in self._pending.values():
            lookup.found.cancel()
        self._pending.clear()
        self._ready.clear()
        self._behind.clear()
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0

    def _add(self, host: str) -> _Lookup:
        slow = host in self._slow
        lookup = _Lookup(host, asyncio.get_running_loop().create_future(), slow)
        self._pending[host] = lookup
        (self._behind if slow else self._ready).append(lookup)
        return lookup

    def _start(self) -> None:
        """Give the threads what they may have."""
        while self._busy < self._most and (lookup := self._next()):
            self._busy += 1
            self._busy_slow += lookup.slow
            if self._busy > self._threads:
                self._threads += 1
                # A daemon, or a name server that does not answer could keep the process from ending.
                threading.Thread(target=self._work, name="webhook-names", daemon=True).start()
            self._jobs.put((lookup, asyncio.get_running_loop()))

    def _next(self) -> _Lookup | None:
        """Take the next look-up that somebody still waits for."""
        while True:
            if self._ready:
                lookup = self._ready.popleft()
            elif self._behind and self._busy_slow < self._most_slow:
                lookup = self._behind.popleft()
            else:
                return None
            if lookup.waiting:
                return lookup
            del self._pending[lookup.host]

    def _work(self) -> None:
        """Be one of the threads."""
        while (job := self._jobs.get()) is not None:
            lookup, loop = job
            begun = time.monotonic()
            found: tuple[str, ...] | Unresolved
            try:
                found = self._look_up(lookup.host)
            except Unresolved as error:
                found = error
            except Exception as error:  # noqa: BLE001  # the end of the thread: it must tell, or all wait
                found = Unresolved(f"the name could not be resolved: {type(error).__name__}")
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._found, lookup, found, time.monotonic() - begun)

    def _found(self, lookup: _Lookup, found: tuple[str, ...] | Unresolved, seconds: float) -> None:
        self._busy -= 1
        self._busy_slow -= lookup.slow
        self._slow.pop(lookup.host, None)
        if seconds > SLOW_SECONDS:
            self._slow[lookup.host] = None
            if len(self._slow) > MAX_REMEMBERED:
                del self._slow[next(iter(self._slow))]
        if self._pending.get(lookup.host) is lookup:
            del self._pending[lookup.host]
        if not lookup.found.done():
            lookup.found.set_result(found)
        self._start()


def system_look_up(host: str) -> tuple[str, ...]:
    """
    Return the addresses that the system knows for a name; waits.

    Raises:
        Unresolved: there are none, or they could not be asked for.
    """
    try:
        found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            raise Unresolved("the name does not exist, or has no address") from None
        raise Unresolved(f"the name could not be resolved: {error.strerror}") from None
    addresses = dict.fromkeys(str(address[0]) for *_, address in found)
    return tuple(addresses)[:MAX_ADDRESSES]
