"""
The event: what is published, in the form in which the log keeps it and every transport sends it.

Strategy: everything but the cursor is known when an event is admitted, so its JSON is encoded once, there,
and kept as `body`: the members after `"cursor"`. The log stores those bytes, and a frame for any wire is a
splice of cursor and body. Nobody parses the data again.
"""

from __future__ import annotations

from zlib import crc32

from fanout.topics import TENANTS, tenant_of

OVERHEAD_BYTES = 400
"""
What one event costs in memory beside its body: object, strings, its places in the window's indexes
(measured).
"""


def tag_of(event_id: str) -> int:
    """
    Return the 16-bit tag of an event id.

    A cursor carries the tag of the event it names, so that a position which names another event now
    (a log restored from a backup, offsets used again after a power loss) is noticed: one miss in 65,535.
    Never 0, which a cursor uses for "not known".
    """
    return crc32(event_id.encode()) & 0xFFFF or 1


class Event:
    """
    One event; immutable but for `position`, which the log gives, and the frames cached by the window.

    Args:
        topic: the dotted name it was published to.
        body: its JSON members after `"cursor"`, without the closing brace and without line breaks.
        time: milliseconds since the Unix epoch at which the log accepted it; never decreases along the log.
        tag: `tag_of` its id.
        key: the entity it is about; `overflow=latest` keeps the newest event of each key.
        expires: milliseconds since the epoch after which it is not delivered any more; 0 is never.
        given_id: its id if the producer chose one, the thing that makes publishing idempotent.
        position: its place in the log, 1 and up; 0 until the log has given it one.
    """

    __slots__ = ("body", "expires", "frames", "given_id", "key", "position", "tag", "time", "topic")

    def __init__(
        self,
        topic: str,
        body: bytes,
        time: int,
        tag: int,
        key: str | None = None,
        expires: int = 0,
        given_id: str | None = None,
        position: int = 0,
    ) -> None:
        self.topic = topic
        self.body = body
        self.time = time
        self.tag = tag
        self.key = key
        self.expires = expires
        self.given_id = given_id
        self.position = position
        self.frames: dict[int, bytes] | None = (
            None  # wire -> bytes; only the window fills it, and accounts for it
        )

    @property
    def unique(self) -> str | None:
        """Its id if the producer chose one, such that those of two tenants never meet."""
        id = self.given_id
        if id is not None and self.topic.startswith(TENANTS):
            return f"{tenant_of(self.topic)}\x1f{id}"  # no id has a control character
        return id

    def __repr__(self) -> str:
        return f"<Event {self.position} {self.topic} {len(self.body)} bytes>"
