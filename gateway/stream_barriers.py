"""
Barriers: how a replica finds out that it has read everything that is in the stream at a moment.

It publishes a mark and waits until that is read back. Those who ask within a moment share one: a crowd that
comes back must not fill the stream with marks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from secrets import token_hex
from typing import Final

from gateway.stream_marks import BARRIER
from gateway.stream_messages import Mark

SHARE_SECONDS: Final = 0.02


class Barriers:
    """
    Those on the way, on one connection after the other.

    Args:
        publish: publishes a mark.
    """

    def __init__(self, publish: Callable[[Mark], None]) -> None:
        self._publish = publish
        self._waiting: dict[str, asyncio.Future[None]] = {}  # by nonce
        self._next: asyncio.Future[None] | None = None  # for those who share the next one

    def set(self) -> asyncio.Future[None]:
        """Set a barrier; the future is done when it was read, and cancelled when the connection is lost."""
        return self._set(asyncio.get_running_loop().create_future())

    def shared(self) -> asyncio.Future[None]:
        """As `set`, a moment later and together with others: not to be cancelled."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            loop.call_later(SHARE_SECONDS, self._set_next)
        return self._next

    def read(self, nonce: str) -> None:
        """A barrier was read."""
        future = self._waiting.get(nonce)
        if future is not None and not future.done():
            future.set_result(None)

    def lost(self) -> None:
        """The connection is lost, with all barriers that were not read."""
        for future in list(self._waiting.values()):
            future.cancel()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _set_next(self) -> None:
        future, self._next = self._next, None
        if future is not None:
            self._set(future)

    def _set(self, future: asyncio.Future[None]) -> asyncio.Future[None]:
        nonce = token_hex(5)
        self._waiting[nonce] = future
        future.add_done_callback(lambda _: self._waiting.pop(nonce, None))
        self._publish(Mark(BARRIER, "", nonce))
        return future
