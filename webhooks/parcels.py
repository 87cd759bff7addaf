"""
Parcels: messages as they are sent, made once for all endpoints, and kept in memory within bounds.

What was just dispatched is here already; what comes from the store is put here when its delivery is fetched.
A message that had to make room is asked for again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from fanout.event import tag_of
from webhooks import envelope, records
from webhooks.envelope import message_id
from webhooks.records import LOG_BITS

MAX_BYTES: Final = 32 << 20
OVERHEAD_BYTES: Final = 1500
"""What a message costs beside its body, objects and headers included (measured)."""


@dataclass(slots=True)
class Parcel:
    """
    A message as it is sent.

    Attributes:
        content: its forms.
        time: milliseconds since the Unix epoch at which it was accepted.
        expires: milliseconds since the epoch after which it is not sent any more; 0 is never.
        size: bytes that it takes in memory, about.
    """

    content: envelope.Message
    time: int
    expires: int
    size: int


class Parcels:
    """
    Those in memory, by the numbers of their messages.

    Args:
        max_bytes: what they may take together; one alone may take more.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, Parcel] = OrderedDict()
        self.bytes = 0

    def __contains__(self, number: int) -> bool:
        return number in self._kept

    def get(self, number: int) -> Parcel | None:
        """Return a parcel if it is here."""
        return self._kept.get(number)

    def put(self, number: int, parcel: Parcel) -> None:
        """Keep a parcel; the oldest make room."""
        before = self._kept.pop(number, None)
        if before is not None:
            self.bytes -= before.size
        self._kept[number] = parcel
        self.bytes += parcel.size
        while self.bytes > self._max_bytes and len(self._kept) > 1:
            self.bytes -= self._kept.popitem(last=False)[1].size


def parcel(content: envelope.Message, time: int, expires: int) -> Parcel:
    """Return a message as a parcel; its body counts twice, because a form is made of it."""
    return Parcel(content, time, expires, 2 * len(content.event) + OVERHEAD_BYTES)


def restored(message: records.Message, epoch: str | None) -> Parcel:
    """
    Return a message of the store as a parcel.

    Args:
        message: the message.
        epoch: the name of its log; None if it is of none.
    """
    name, cursor = named(message.number, message.event, message.time, epoch)
    return parcel(envelope.Message(name, cursor, message.body), message.time, message.expires)


def named(number: int, event: str, time: int, epoch: str | None) -> tuple[str, str]:
    """
    Return the `webhook-id` of a message, and the cursor of its event.

    Args:
        number: of the message.
        event: id of the event.
        time: milliseconds since the Unix epoch at which it was accepted.
        epoch: the name of its log; None if it is of none, and no cursor leads to it.
    """
    if epoch is None:  # the time sets it apart from those of another store
        return f"msg_test-{number}-{time}", ""
    cursor = f"{epoch}-{number & ((1 << LOG_BITS) - 1)}-{tag_of(event):04x}"
    return message_id(cursor), cursor
