"""Heartbeats as messages on the broker: JSON, so that whoever listens there can read them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from fanout.heartbeat import Heartbeat, State

VERSION: Final = 1
MAX_BYTES: Final = 64 * 1024
"""Largest message that is read: of a thousand members that suspect each other."""


class Facts(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    What a member tells of itself beside its heartbeat.

    Attributes:
        url: under which clients reach this very process; empty if they cannot.
        version: of the program.
        connections: that it has.
    """

    url: str = ""
    version: str = ""
    connections: int = 0


@dataclass(slots=True)
class Seen:
    """
    A member as it was last heard of.

    Attributes:
        group: what it shares in.
        heartbeat: the newest.
        facts: what it told of itself.
        heard: when, by this process's clock.
    """

    group: str
    heartbeat: Heartbeat
    facts: Facts
    heard: float


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    v: Literal[1]
    group: str
    name: str
    born: int
    incarnation: int
    number: int
    state: State
    version: int
    digest: str
    doubts: tuple[tuple[str, int, int], ...] = ()
    dead: tuple[tuple[str, int, int], ...] = ()
    facts: Facts = Facts()


_decoder: Final = msgspec.json.Decoder(_Message)
_FIELDS: Final = tuple(Heartbeat.__dataclass_fields__)


def encode(group: str, heartbeat: Heartbeat, facts: Facts) -> bytes:
    """Return the message of a heartbeat."""
    members: dict[str, Any] = {name: getattr(heartbeat, name) for name in _FIELDS}
    return msgspec.json.encode(_Message(v=VERSION, group=group, facts=facts, **members))


def decode(body: bytes) -> tuple[str, Heartbeat, Facts] | None:
    """Return the group, the heartbeat and the facts of a message; None if it is none of this version."""
    if len(body) > MAX_BYTES:
        return None
    try:
        message = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return message.group, Heartbeat(*(getattr(message, name) for name in _FIELDS)), message.facts
