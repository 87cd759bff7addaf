"""
Grants: what the bearer of a token may do, decided from the claims of the token once they are known to be
true.

    publish      patterns of the topics it may publish to
    subscribe    patterns of the topics it may listen to
    requests     services it may ask, or `*` for all
    work         services it may work for, or `*` for all
    webhooks     whether it may have what it may listen to sent to webhooks
    history      seconds that a cursor may reach back; all that is retained if it is left out
    admin        whether it may use the doors of operators
    limits       limits of its own, in place of the gateway's
    tenant       the space its topics are in

What is not granted is denied: a token without these claims may do nothing. Other claims are passed over, as
RFC 7519 section 4 asks for.

A pattern is granted if it is *covered*: if every topic it matches is matched by the granted ones. Two things
are the same for every token:

- **Reserved topics**, those that begin with `$`, are granted only by patterns that begin with `$`, and a
  pattern that begins with a wildcard does not bring them (see `fanout.topics`).
- **A tenant** has a space of topics to itself. A topic gets the prefix `$tenant.NAME.` on its way in, and
  readers see it without. What a token of a tenant names is behind its own prefix, whatever it is; reserved
  topics are not for tenants. The prefix is reserved, so a token without a tenant reaches into one only if it
  is granted `$tenant.` patterns by that spelling.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from fanout.containment import Cover
from fanout.errors import ClaimError, TopicError
from fanout.topics import MAX_TOPIC_BYTES, RESERVED, TENANTS, check_pattern, check_topic, matches

MAX_PATTERNS: Final = 100
"""Patterns of one claim: each is looked at for each topic."""
MAX_SERVICES: Final = 100
MAX_HISTORY: Final = 315_360_000.0
"""Seconds, ten years."""
MAX_LIMIT: Final = 2**53 - 1
"""The largest whole number that every JSON parser reads as it is (RFC 8259 section 6)."""
MAX_REMEMBERED: Final = 32
"""Topics, and patterns, that are granted by one token and remembered: few, as there are many tokens."""

_ANY: Final = "*"
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)  # in JSON it is spelled as it is
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_PLACE = re.compile(r" - at `\$\.(.*)`$", re.DOTALL)

_Count = Annotated[int, Meta(ge=1, le=MAX_LIMIT)]
_Rate = Annotated[float, Meta(gt=0, le=MAX_LIMIT)]
_Patterns = Annotated[list[str], Meta(max_length=MAX_PATTERNS)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Limits of one subject; what is left out is the gateway's own.

    Attributes:
        connections: at a time.
        subscriptions: patterns of a connection.
        publish_rate: events a second.
        publish_bytes: bytes of bodies a second.
        message_bytes: bytes of one message or body.
        polls: a second.
        requests: in flight.
    """

    connections: _Count | UnsetType = UNSET
    subscriptions: _Count | UnsetType = UNSET
    publish_rate: _Rate | UnsetType = UNSET
    publish_bytes: _Count | UnsetType = UNSET
    message_bytes: _Count | UnsetType = UNSET
    polls: _Rate | UnsetType = UNSET
    requests: _Count | UnsetType = UNSET


class _Claims(msgspec.Struct, frozen=True, kw_only=True):
    """The claims as they come; a `null` is refused, because a tenant that is none would be no tenant."""

    publish: _Patterns = []
    subscribe: _Patterns = []
    requests: Annotated[list[str], Meta(max_length=MAX_SERVICES)] = []
    work: Annotated[list[str], Meta(max_length=MAX_SERVICES)] = []
    webhooks: bool = False
    history: float | UnsetType = UNSET
    admin: bool = False
    limits: Limits = Limits()
    tenant: str | UnsetType = UNSET


class Grants:
    """
    What a token grants.

    Args:
        publish: patterns of the topics it may publish to.
        subscribe: patterns of the topics it may listen to.
        requests: services it may ask; `*` is all.
        work: services it may work for; `*` is all. Not with a tenant: a worker sees the requests of all.
        webhooks: whether it may have what it may listen to sent to webhooks.
        history: seconds that a cursor may reach back; None is all that is retained.
        admin: whether it may use the doors of operators; not with a tenant, as those show all tenants.
        limits: limits of its own.
        tenant: the space its topics are in; None is the common one.

    Raises:
        ClaimError: one of them cannot be, naming the claim.
    """

    __slots__ = (
        "_listenable",
        "_listening",
        "_prefix",
        "_publishable",
        "_publishing",
        "admin",
        "history",
        "limits",
        "requests",
        "tenant",
        "webhooks",
        "work",
    )

    def __init__(
        self,
        *,
        publish: Iterable[str] = (),
        subscribe: Iterable[str] = (),
        requests: Iterable[str] = (),
        work: Iterable[str] = (),
        webhooks: bool = False,
        history: float | None = None,
        admin: bool = False,
        limits: Limits | None = None,
        tenant: str | None = None,
    ) -> None:
        if tenant is not None and not _TENANT.fullmatch(tenant):
            raise ClaimError("tenant", "it is no name: 1 to 64 of the letters A to Z, digits, `_` and `-`")
        if tenant is not None and admin:
            raise ClaimError("admin", "operators see all tenants, so a token of a tenant cannot be one's")
        self.work = frozenset(_checked("work", work, MAX_SERVICES, _check_service))
        if tenant is not None and self.work:
            raise ClaimError("work", "a worker sees the requests of all tenants, so it cannot be of one")
        if history is not None and not (math.isfinite(history) and 0 <= history <= MAX_HISTORY):
            raise ClaimError("history", f"it is not from 0 to {MAX_HISTORY:.0f} seconds")
        self.admin = admin
        self.history = history
        self.limits = limits or Limits()
        self.requests = frozenset(_checked("requests", requests, MAX_SERVICES, _check_service))
        self.tenant = tenant
        self.webhooks = webhooks
        self._prefix = "" if tenant is None else f"{TENANTS}{tenant}."
        self._publishing = _ByKind(_checked("publish", publish, MAX_PATTERNS, check_pattern))
        self._listening = _ByKind(_checked("subscribe", subscribe, MAX_PATTERNS, check_pattern))
        self._publishable: dict[str, str] = {}
        self._listenable: dict[str, str] = {}

    @classmethod
    def of(cls, claims: Mapping[str, Any]) -> Grants:
        """
        Read the claims of a token whose signature, times, issuer and audience were verified.

        Raises:
            ClaimError: a claim is not of its form, naming it.
        """
        try:
            read = msgspec.convert(claims, _Claims)
        except msgspec.ValidationError as error:
            raise _refusal(str(error)) from None
        except UnicodeError:  # Python's own parser of JSON lets half of a surrogate pair through
            raise ClaimError("", "they have half of a surrogate pair") from None
        return cls(
            publish=read.publish,
            subscribe=read.subscribe,
            requests=read.requests,
            work=read.work,
            webhooks=read.webhooks,
            history=None if read.history is UNSET else read.history,
            admin=read.admin,
            limits=read.limits,
            tenant=None if read.tenant is UNSET else read.tenant,
        )

    def publishing(self, topic: str) -> str | None:
        """
        Return the topic under which an event is published, or None if it is not granted.

        Raises:
            TopicError: it is no topic, or too long with the tenant's prefix.
        """
        stored = self._publishable.get(topic)
        if stored is None:
            stored = self._inward(check_topic(topic), "topic")
            if self._prefix and topic.startswith(RESERVED):
                return None
            if not any(matches(pattern, topic) for pattern in self._publishing.of(topic).patterns):
                return None
            if len(self._publishable) >= MAX_REMEMBERED:
                self._publishable.clear()
            self._publishable[topic] = stored
        return stored

    def subscribing(self, pattern: str) -> str | None:
        """
        Return the pattern to listen to for one that a bearer gave, or None if it is not granted as a whole.

        Raises:
            TopicError: it is no pattern, or too long with the tenant's prefix.
        """
        known = self._listenable.get(pattern)
        if known is not None:
            return known
        words = check_pattern(pattern).split(".")
        if self._prefix and words[0].startswith(RESERVED):
            return None
        inner = pattern
        if set(words) == {"#"} and self._prefix:
            inner = (
                "*.#"  # the same, but that the prefix alone, which is no topic of the tenant, is not in it
            )
        stored = self._inward(inner, "pattern")
        if not self._listening.of(pattern).covers(pattern):
            return None
        if len(self._listenable) >= MAX_REMEMBERED:
            self._listenable.clear()
        self._listenable[pattern] = stored
        return stored

    def outward(self, text: str) -> str | None:
        """
        Return a stored topic or pattern as the bearer knows it, without the tenant's prefix. None: it is in
        another space, and must not be shown.
        """
        if not self._prefix:
            return text
        inside = text.removeprefix(self._prefix)
        return inside if inside and inside != text else None

    def may_request(self, service: str) -> bool:
        """Tell whether it may ask a service."""
        return service in self.requests or _ANY in self.requests

    def may_work(self, service: str) -> bool:
        """Tell whether it may work for a service."""
        return service in self.work or _ANY in self.work

    def reaches_back_to(self, now_ms: int) -> int:
        """
        Return the time before which it may not see events, in milliseconds since the Unix epoch.

        Args:
            now_ms: the time it is, in the same unit.
        """
        return 0 if self.history is None else max(0, now_ms - int(self.history * 1000))

    def _inward(self, text: str, kind: str) -> str:
        """Put the tenant's prefix before a (checked) topic or pattern."""
        stored = self._prefix + text
        if self._prefix and len(stored.encode()) > MAX_TOPIC_BYTES:
            most = MAX_TOPIC_BYTES - len(self._prefix)
            raise TopicError(f"the {kind} has more than {most} bytes, the most of this tenant")
        return stored


class AllGrants(Grants):
    """What everybody may do where nobody is asked who they are: anything."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(requests=(_ANY,), work=(_ANY,), webhooks=True, admin=True)

    def publishing(self, topic: str) -> str:
        """Return a topic; see `Grants.publishing`."""
        return topic

    def subscribing(self, pattern: str) -> str:
        """Return a pattern; see `Grants.subscribing`."""
        return pattern


class _ByKind:
    """Granted patterns, those for reserved topics apart: neither kind grants the other's topics."""

    __slots__ = ("_common", "_reserved")

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = list(patterns)
        self._common = Cover(each for each in patterns if not each.startswith(RESERVED))
        self._reserved = Cover(each for each in patterns if each.startswith(RESERVED))

    def of(self, text: str) -> Cover:
        """Return the patterns that can grant a topic or a pattern."""
        return self._reserved if text.startswith(RESERVED) else self._common


def _checked(claim: str, texts: Iterable[str], most: int, check: Callable[[str], object]) -> list[str]:
    """Return the texts of a claim, each checked."""
    texts = list(texts)
    if len(texts) > most:
        raise ClaimError(claim, f"it has more than {most}")
    for at, text in enumerate(texts):
        try:
            check(text)
        except ValueError as error:
            raise ClaimError(f"{claim}[{at}]", str(error)) from None
    return texts


def _check_service(name: str) -> None:
    if name != _ANY and not _SERVICE.fullmatch(name):
        raise ValueError("it is no name of a service: 1 to 128 of the letters A to Z, digits, `.`, `_`, `-`")


def _refusal(message: str) -> ClaimError:
    """Return the error that one of msgspec's is; its message ends with the place: "- at `$.limits.polls`"."""
    place = _PLACE.search(message)
    if place is None:
        return ClaimError("", message)
    return ClaimError(place[1], message[: place.start()])
