"""
Changes: what the log says about requests.

Every change of a request is an event on the topic `requests.<token>`, in the space of its tenant. So whoever
knows the token can follow it by any transport, and every replica that reads the log knows what became of it.
Nothing else is stored.
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from enum import Enum, unique
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from fanout.event import Event
from fanout.topics import TENANTS, shown_topic

TOPICS: Final = "requests."
"""How the topics of requests begin; the token follows."""

TYPE: Final = "sluice.request"
"""The type of their events. Types that begin so are not taken from producers, so nobody else makes them."""

TOKEN: Final = re.compile(r"rq_[A-Za-z0-9_-]{28}", re.ASCII)
SERVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
"""Names of services; also words of topics and parts of paths."""


@unique
class State(Enum):
    """Where a request stands."""

    QUEUED = "queued"
    """It waits for a worker, for the first time or again."""
    RUNNING = "running"
    """A worker has it."""
    DONE = "done"
    """Its result is there."""
    FAILED = "failed"
    """Nobody tries it any more: the dead letter of other systems. An operator can have it tried again."""
    CANCELLED = "cancelled"
    """Its client took it back."""

    @property
    def final(self) -> bool:
        """Whether no worker changes it any more."""
        return self in (State.DONE, State.FAILED, State.CANCELLED)


class Trouble(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    Why a request failed, or an attempt.

    Attributes:
        reason: one word: `error` the handler raised, `timeout` it took too long, `lost` its worker went
            silent, `refused` the handler said never again, or its worker cannot read what was handed in,
            `result` what it returned cannot be a result, `expired` nobody had done it in time, `gone`
            retention took its data.
        detail: a sentence for people.
    """

    reason: str
    detail: str = ""


class Change(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """
    One change, as the data of its event.

    Attributes:
        state: what it is now.
        service: who is asked.
        attempt: how often a worker had it, this time included.
        failures: how many of these times ended badly, since it was last handed in.
        expires: when nobody cares any more; in the event that begins it, and when it is tried again.
        next: queued again, but not to be tried before.
        data: what the client handed in; in the event that begins it.
        data_base64: the same, of a body that is no text.
        progress: whatever its handler says of it.
        result: what came of it.
        error: why it failed, or the last attempt.
        retry: an operator has a failed one tried again.
        lease: stands for the lease of the worker that has it, so that any replica can tell it.
        tenant: whose client handed it in; empty for those that are no tenant's.
        owner: stands for the client who handed it in, in the event that begins it; empty if nobody knows
            them.
    """

    state: State
    service: str
    attempt: int = 0
    failures: int = 0
    expires: datetime | UnsetType = UNSET
    next: datetime | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    data_base64: Raw | UnsetType = UNSET
    progress: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Trouble | UnsetType = UNSET
    retry: bool = False
    lease: str | UnsetType = UNSET
    tenant: str = ""
    owner: str = ""


class _Envelope(msgspec.Struct):
    """As much of an event's JSON as says whether it is a change."""

    type: str = ""
    data: Raw = Raw(b"null")


_envelopes: Final = msgspec.json.Decoder(_Envelope)
_changes: Final = msgspec.json.Decoder(Change)


def new_token() -> str:
    """Return a token that nobody can guess: 168 random bits, as a word of a topic."""
    return f"rq_{secrets.token_urlsafe(21)}"


def topic_of(token: str, tenant: str = "") -> str:
    """Return the topic of a request: in the space of the tenant whose client handed it in."""
    return f"{TENANTS}{tenant}.{TOPICS}{token}" if tenant else f"{TOPICS}{token}"


def is_of_requests(topic: str) -> bool:
    """Tell whether a topic is one of requests. Asked for every event, so it looks no closer."""
    return topic.startswith(TOPICS) or (topic.startswith(TENANTS) and shown_topic(topic).startswith(TOPICS))


def token_in(topic: str) -> str | None:
    """Return the token that a topic names; None if it names none."""
    shown = shown_topic(topic)
    if not shown.startswith(TOPICS):
        return None
    token = shown[len(TOPICS) :]
    return token if TOKEN.fullmatch(token) else None


def token_of(event: Event) -> str | None:
    """Return the token that an event's topic names; None if it names none."""
    return token_in(event.topic)


def change_of(event: Event) -> Change | None:
    """Return the change that an event on such a topic is; None if it is something else."""
    try:
        envelope = _envelopes.decode(b"{%b}" % event.body)
        return _changes.decode(envelope.data) if envelope.type == TYPE else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def ms_of(moment: datetime) -> int:
    """Return milliseconds since the Unix epoch."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def moment_of(time_ms: int) -> datetime:
    """Return the moment so many milliseconds after the Unix epoch."""
    return datetime.fromtimestamp(time_ms / 1000, UTC)
