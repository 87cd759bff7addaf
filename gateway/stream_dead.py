"""
Dead letters: messages of the stream that cannot be events, and which replica sends them to the queue. Pure.

Every replica reads such a message, and one copy is enough. So each keeps it for a moment, of another length
each time; whoever comes first sends it, and a mark behind it that names its offset. The others read the mark
and forget the message. Nobody forgets it before the mark was read: so a replica that dies in between, or
loses its connection, makes a second copy at worst, and never a lost one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fanout.event import OVERHEAD_BYTES
from gateway.stream_messages import Received

MAX_BYTES: Final = 8 << 20
"""Memory for messages that wait. When there are more they are sent at once, and then not kept."""

SEPARATOR: Final = ","


class DeadLetters:
    """Messages that cannot be events, by their offsets, until somebody has sent them."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[Received, str]] = {}
        self._sent: set[int] = set()  # on the present connection; the mark was not read yet
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __getitem__(self, offset: int) -> tuple[Received, str]:
        """Return a message that waits, and why it is no event."""
        return self._waiting[offset]

    def note(self, message: Received, reason: str) -> bool:
        """Take a message; return whether too much waits, so that what is due should be sent at once."""
        if message.offset not in self._waiting:
            self._waiting[message.offset] = message, reason
            self._bytes += _size(message)
        while self._bytes > MAX_BYTES and self._sent:
            self._forget(min(self._sent))
        return self._bytes > MAX_BYTES

    def due(self, most: int) -> list[int]:
        """Return the offsets of what is to be sent next, in order, at most so many; it counts as sent."""
        offsets = [offset for offset in self._waiting if offset not in self._sent][:most]
        self._sent.update(offsets)
        return offsets

    def settled(self, nonce: str) -> None:
        """A mark names messages that were sent; whatever else it may say counts as nothing."""
        for text in nonce.split(SEPARATOR):
            if text.isdecimal() and len(text) < 20:
                self._forget(int(text))

    def lost(self) -> None:
        """The connection is gone: who knows whether what was sent has arrived."""
        self._sent.clear()

    def clear(self) -> None:
        """The stream is another one: its messages are gone."""
        self._waiting.clear()
        self._sent.clear()
        self._bytes = 0

    def _forget(self, offset: int) -> None:
        self._sent.discard(offset)
        known = self._waiting.pop(offset, None)
        if known is not None:
            self._bytes -= _size(known[0])


def naming(offsets: Iterable[int]) -> str:
    """Return what a mark says that names offsets."""
    return SEPARATOR.join(map(str, offsets))


def _size(message: Received) -> int:
    return len(message.delivery.body) + OVERHEAD_BYTES
