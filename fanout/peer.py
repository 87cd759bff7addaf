"""What a member knows of the others: each of them, and the view that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fanout.heartbeat import State


@dataclass(frozen=True, slots=True)
class View:
    """
    Who is in the ring, as one member has it.

    Attributes:
        version: greater than that of every view that this member had or heard of when it changed to this
            one. So two that name the same version and members have left all that came before.
        members: names in the ring, in order.
        digest: stands for the members.
    """

    version: int
    members: tuple[str, ...]
    digest: str


@dataclass(slots=True)
class Peer:
    """
    Another member, as this one knows it.

    Attributes:
        name: of the member.
        born: which process.
        incarnation: the last one heard of.
        number: of the last heartbeat heard.
        said: the state that it said it is in.
        heard: when.
        version: of the view that it said it has.
        digest: of that view.
        doubt: until when this member may own anything, as the other suspects it.
        suspected: whether it has been silent.
        gone: whether the broker says that it is gone.
        died: when it was buried.
    """

    name: str
    born: int
    incarnation: int = -1
    number: int = -1
    said: State = State.APART
    heard: float = -math.inf
    version: int = -1
    digest: str = ""
    doubt: float = math.inf
    suspected: bool = False
    gone: bool = False
    died: float | None = None

    @property
    def state(self) -> State:
        """Where it stands, as this member sees it."""
        if self.died is not None:
            return State.DEAD
        return State.SUSPECT if self.suspected and self.said is State.ALIVE else self.said
