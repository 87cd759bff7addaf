"""
The caller: who asks, and what they may do. Every door asks it before it does anything.

Nobody is asked who they are by a gateway without keys: everybody is `ANYBODY` there, and may do anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, unique
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from starlette.types import Scope

from fanout.errors import TopicError
from fanout.event import Event
from fanout.grants import AllGrants, Grants
from fanout.topics import RESERVED, matches
from gateway.mint import time_text
from gateway.problems import Problem
from gateway.requests.changes import token_in, topic_of

CALLER: Final = "sluicegate.caller"
"""The key under which a request's scope has its caller …"""
CREDENTIAL: Final = "sluicegate.credential"
"""… and the token or API key by which that is known …"""
CORS: Final = "sluicegate.cors"
"""… and the headers that let a page of an allowed origin read a stream, whose head is written elsewhere."""

LATEST: Final = 253_402_300_799
"""The last second that can be written as RFC 3339 has it."""

Takes = Callable[[str], bool]
"""Says whether the log takes events of a topic."""


@unique
class Kind(Enum):
    """By what a caller is known."""

    ANYBODY = "anybody"
    TOKEN = "token"  # noqa: S105  # a word, no secret
    KEY = "key"


class Caller:
    """
    One who asks.

    Args:
        grants: what they may do.
        kind: by what they are known.
        subject: whose token it is; None if it does not say.
        id: the token's own name, or the API key's.
        issued: when the token was made, in seconds since the Unix epoch; 0 if it does not say.
        expires: until when it is good, in the same unit.
        leeway: how many seconds of that are for clocks that differ.

    Attributes:
        taken: patterns that were taken from them after the token was made.
        seen: up to which change of what is revoked they were looked at.
    """

    __slots__ = (
        "__weakref__",
        "expires",
        "grants",
        "id",
        "issued",
        "kind",
        "leeway",
        "seen",
        "subject",
        "taken",
    )

    def __init__(
        self,
        grants: Grants,
        kind: Kind,
        subject: str | None = None,
        id: str | None = None,
        issued: float = 0.0,
        expires: float = math.inf,
        leeway: float = 0.0,
    ) -> None:
        self.grants = grants
        self.kind = kind
        self.subject = subject
        self.id = id
        self.issued = issued
        self.expires = expires
        self.leeway = leeway
        self.taken: tuple[str, ...] = ()
        self.seen = -1

    def again(self) -> Caller:
        """Return the same caller for another request."""
        return Caller(self.grants, self.kind, self.subject, self.id, self.issued, self.expires, self.leeway)

    @property
    def is_known(self) -> bool:
        """Whether they said who they are."""
        return self.kind is not Kind.ANYBODY

    @property
    def tenant(self) -> str:
        """Whose they are; empty if no tenant's."""
        return self.grants.tenant or ""

    @property
    def owner(self) -> str:
        """
        What tells them from others: the same for all tokens of one subject of one tenant; empty if it is not
        known who they are.
        """
        if not self.is_known or (self.subject is None and self.id is None and not self.tenant):
            return ""
        # None of them can have a control character: so a token's name is never taken for a subject.
        who = self.subject if self.subject is not None else f"\x1f{self.id or ''}"
        return f"{self.tenant}\x1f{who}"

    @property
    def mark(self) -> str:
        """What stands for the owner where others may see it; empty if there is none."""
        return blake2b(self.owner.encode(), digest_size=12).hexdigest() if self.owner else ""

    @property
    def ends_ms(self) -> int:
        """When the token is over as it says itself, in milliseconds since the Unix epoch."""
        return round(min(self.expires - self.leeway, LATEST) * 1000)

    @property
    def ends(self) -> str | None:
        """The same in RFC 3339; None if it never is."""
        return None if self.expires == math.inf else _written(self.ends_ms)

    # --- topics ---------------------------------------------------------------------------------------------

    def admit(self, events: Sequence[Event], takes: Takes) -> None:
        """
        Let events be published that were just minted, each to the topic that its producer named: from here on
        to the one under which it is stored.

        Raises:
            Problem: 403, one of them is not granted; 422, the log does not take its topic. Then none is
                published.
        """
        if not self.is_known:
            return
        for index, event in enumerate(events):
            try:
                event.topic = self._stored(event.topic, takes)
            except Problem as problem:
                raise (problem.at(index) if len(events) > 1 else problem) from None

    def _stored(self, topic: str, takes: Takes) -> str:
        try:
            stored = self.grants.publishing(topic)
        except TopicError as error:
            raise Problem(422, str(error), members={"pointer": "/topic"}) from None
        if stored is None or any(matches(pattern, stored) for pattern in self.taken):
            raise forbidden(f"the token does not grant publishing to {topic!a}", pointer="/topic")
        if stored != topic and not takes(stored):
            detail = f"the topic {topic!a} is none of those that this gateway takes (setting: exchanges)"
            raise Problem(422, detail, members={"pointer": "/topic"})
        return stored

    def listen(self, patterns: Iterable[str]) -> tuple[str, ...]:
        """
        Return the patterns to listen to for those that were asked for.

        Raises:
            Problem: 403, one of them is not granted as a whole; 422, it is none, or too long.
        """
        if not self.is_known:
            return tuple(patterns)
        return tuple(map(self._heard, patterns))

    def _granted(self, pattern: str) -> str | None:
        """
        Return the pattern to listen to, or None if it is not granted. Whoever may hand in requests may listen
        to what becomes of one whose token they know: nobody guesses it.
        """
        stored = self.grants.subscribing(pattern)
        if stored is None and self.grants.requests and not pattern.startswith(RESERVED):
            token = token_in(pattern)
            stored = None if token is None else topic_of(token, self.tenant)
        return stored

    def _heard(self, pattern: str) -> str:
        try:
            stored = self._granted(pattern)
        except TopicError as error:
            raise Problem(422, str(error)) from None
        if stored is None or self._is_taken(stored):
            raise forbidden(f"the token does not grant listening to {pattern!a}")
        return stored

    def _is_taken(self, stored: str) -> bool:
        if not self.taken:
            return False
        from fanout.containment import overlaps  # noqa: PLC0415  # seldom

        return any(overlaps(pattern, stored) for pattern in self.taken)

    def may_hear(self, stored: Iterable[str]) -> bool:
        """Tell whether all patterns, as they are stored, are granted: of a connection, or a webhook."""
        if not self.is_known:
            return True
        for pattern in stored:
            known = self.grants.outward(pattern)
            try:
                if known is None or self._granted(known) is None or self._is_taken(pattern):
                    return False
            except TopicError:
                return False
        return True

    def shown(self, stored: str) -> str:
        """Return a stored topic or pattern as this caller knows it; as it is if they do not know it."""
        known = self.grants.outward(stored)
        return stored if known is None else known

    # --- names ----------------------------------------------------------------------------------------------

    def scoped(self, name: str) -> str:
        """
        Return a name that a client chose, such as a consumer's, so that nobody else can spell it: a subject's
        are its own. The slash is in no name of a client.
        """
        return f"{self.mark}/{name}" if self.owner else name

    # --- doors ----------------------------------------------------------------------------------------------

    def check_admin(self) -> None:
        """
        Raises:
            Problem: 403, the door is for operators.
        """
        if not self.grants.admin:
            raise forbidden("this is for operators: the token does not grant `admin`")

    def check_request(self, service: str) -> None:
        """
        Raises:
            Problem: 403, the service may not be asked.
        """
        if not self.grants.may_request(service):
            raise forbidden("the token does not grant requests to this service")

    def check_work(self, service: str) -> None:
        """
        Raises:
            Problem: 403, the service may not be worked for.
        """
        if not self.grants.may_work(service):
            raise forbidden("the token does not grant work for this service")

    def check_webhooks(self) -> None:
        """
        Raises:
            Problem: 403, webhooks are not granted.
        """
        if not (self.grants.webhooks or self.grants.admin):
            raise forbidden("the token does not grant `webhooks`")


ANYBODY: Final = Caller(AllGrants(), Kind.ANYBODY)
"""The caller of a gateway that asks nobody who they are."""


def caller_of(scope: Scope) -> Caller:
    """Return the caller of a request; nobody in particular where no gate stands before the doors."""
    found: Caller = scope.get(CALLER, ANYBODY)
    return found


def expiry_of(caller: object) -> bytes:
    """Return the member of a message that says until when a caller is known; empty if for ever."""
    ends = caller.ends if isinstance(caller, Caller) else None
    return b"" if ends is None else b'"expires":"%b"' % ends.encode()


@lru_cache(1024)  # whoever comes back has the same token
def _written(time_ms: int) -> str:
    return time_text(time_ms).decode()


def forbidden(detail: str, pointer: str | None = None) -> Problem:
    """Return the answer to who is known and may not do it (RFC 6750, 3.1)."""
    return Problem(
        403,
        detail,
        headers={"www-authenticate": 'Bearer error="insufficient_scope"'},
        members={} if pointer is None else {"pointer": pointer},
    )


def unauthorized(*, given: bool) -> Problem:
    """
    Return the answer to who is not known.

    Why, their bearer is not told: whoever forges would learn from it.

    Args:
        given: whether there was something by which they could have been known (RFC 6750, 3.1: without, there
            is no error code).
    """
    if given:
        return Problem(
            401,
            "the token is not good, or not good any more",
            headers={"www-authenticate": 'Bearer error="invalid_token"'},
        )
    return Problem(401, "say who you are, by a token", headers={"www-authenticate": "Bearer"})
