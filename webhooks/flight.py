"""The flight: an attempt while it is under way, from its start to its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from webhooks.attempt import Outcome, Target

if TYPE_CHECKING:
    from webhooks.link import Link

Done = Callable[[Outcome], None]
"""Called on the event loop with what came of an attempt; must not wait. What it raises is logged."""


class Phase(Enum):
    """What a flight waits for; in words, what had not happened when its deadline passed."""

    RESOLVING = "the name was not resolved"
    CONNECTING = "no connection could be made"
    ENCRYPTING = "the TLS handshake did not end"
    ASKING = "no answer came"
    READING = "the head of the answer did not end"


class Flight:
    """
    An attempt under way.

    Args:
        target: where it goes.
        head: the request's head.
        body: the request's body.
        wanted: names of headers of the answer that are kept, in lower case.
        done: told the outcome.
        started: the loop's time.
    """

    __slots__ = ("body", "done", "head", "link", "phase", "started", "target", "task", "wanted")

    def __init__(
        self,
        target: Target,
        head: bytes,
        body: bytes,
        wanted: frozenset[bytes],
        done: Done,
        started: float,
    ) -> None:
        self.target = target
        self.head = head
        self.body = body
        self.wanted = wanted
        self.done = done
        self.started = started
        self.phase = Phase.ASKING
        self.link: Link | None = None  # that it has been sent on
        self.task: asyncio.Task[None] | None = None  # that makes a link for it
