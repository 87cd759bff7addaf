"""
The registry: API keys and revocations as this replica knows them, kept up with the store.

It asks the store for what has changed twice a second, so what is revoked anywhere counts everywhere within a
second; where it was revoked, at once. A store that is away changes nothing: what was known goes on to count.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Any, Final

import msgspec

from fanout.errors import ClaimError
from fanout.grants import Grants
from gateway.auth.caller import Caller, Kind
from gateway.auth.store import KEY, NOTE, PAGE, REVOCATION, AccessStore, Entry
from gateway.log import StoreUnavailable

log = logging.getLogger(__name__)

FOLLOW_SECONDS: Final = 0.5
SWEEP_SECONDS: Final = 60.0
NOTE_SECONDS: Final = 30.0
"""How long replicas have to take a note in."""

PREFIX: Final = "sk_"
"""How API keys begin, so that they are told from tokens, and found by whoever looks for leaked ones."""


class Revocation(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """
    What is not good any more. All that it names must be so for it to count.

    Attributes:
        before: tokens made before that moment, in seconds since the Unix epoch; and those that do not say.
        subject: of that subject.
        token: with that name (`jti`).
        tenant: of that tenant.
        topic: not the token as a whole, but its right to topics that this pattern, as it is stored, matches.
        reason: for people.
    """

    before: float
    subject: str | None = None
    token: str | None = None
    tenant: str | None = None
    topic: str | None = None
    reason: str = ""

    def concerns(self, caller: Caller) -> bool:
        """Tell whether a caller is meant."""
        return (
            self.subject in (None, caller.subject)
            and self.token in (None, caller.id)
            and self.tenant in (None, caller.tenant)
            and (caller.issued < self.before or not caller.issued)
        )

    @property
    def name(self) -> str:
        """Its name: that of the same revocation made again is the same."""
        what = msgspec.json.encode((self.subject, self.token, self.tenant, self.topic))
        return f"rv_{blake2b(what, digest_size=12).hexdigest()}"


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """
    An API key, as the store has it.

    Attributes:
        digest: SHA-256 of its secret, in hexadecimal. That has 256 random bits: nothing slower is needed.
        claims: what it grants.
        subject: whose it is.
        created: when it was made, in seconds since the Unix epoch.
        description: for people.
    """

    digest: str
    claims: dict[str, Any]
    subject: str
    created: float
    description: str = ""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key that can be used: what the store has, and the caller that its bearer is."""

    id: str
    stored: StoredKey
    expires: int
    caller: Caller


def new_key() -> tuple[str, str, str]:
    """Return a new API key: its text, its name, and the digest of its secret."""
    id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return f"{PREFIX}{id}_{secret}", id, sha256(secret.encode()).hexdigest()


class Registry:
    """
    API keys and revocations.

    Args:
        store: where they are.
    """

    def __init__(self, store: AccessStore) -> None:
        self.store = store
        self.followed = False  # whether it ever was up to date
        self.version = 0  # counts changes by which somebody may have lost a right
        self.failures = 0  # times that the store could not be asked
        self.on_change: Callable[[], None] = lambda: None
        self.on_note: Callable[[str, bytes], None] = lambda _name, _value: None
        self.keys: dict[str, ApiKey] = {}
        self.revocations: dict[str, tuple[Revocation, int]] = {}  # with when each is over, in ms; 0 is never
        self._named: dict[tuple[str, str], dict[str, None]] = {}  # ("subject" or "token", which) -> names
        self._topics: dict[str, None] = {}  # names of those that are about topics
        self._rest: dict[str, None] = {}  # … and of those that name a tenant only
        self._revision = 0
        self._following = asyncio.Lock()

    async def run(self) -> None:
        """Follow the store until cancelled."""
        swept = time.monotonic()
        while True:
            await self.follow()
            await asyncio.sleep(FOLLOW_SECONDS)
            if time.monotonic() - swept > SWEEP_SECONDS:
                swept = time.monotonic()
                self._sweep(time.time() * 1000)
                try:
                    await self.store.sweep()
                except StoreUnavailable:
                    self.failures += 1

    async def follow(self) -> None:
        """Take in what has changed."""
        try:
            async with self._following:
                changed = False
                while entries := await self.store.changes(self._revision):
                    for entry in entries:
                        changed |= self._take(entry)
                    self._revision = entries[-1].revision
                    if len(entries) < PAGE:
                        break
                self.followed = True
        except StoreUnavailable:
            self.failures += 1
            return
        if changed:
            self.version += 1
            self.on_change()

    async def tell(self, name: str, value: bytes) -> None:
        """
        Tell the other replicas something about a connection; it is forgotten soon.

        Raises:
            StoreUnavailable, EntriesFull: see `AccessStore.put`.
        """
        await self.store.put(NOTE, name, value, round((time.time() + NOTE_SECONDS) * 1000))

    def _take(self, entry: Entry) -> bool:
        """Take in one entry; return whether somebody may have lost a right by it."""
        if entry.kind == NOTE and entry.value is not None:
            self.on_note(entry.name, entry.value)
        elif entry.kind == KEY:
            self.keys.pop(entry.name, None)
            if entry.value is not None:
                self._take_key(entry, entry.value)
            return True
        elif entry.kind == REVOCATION:
            self._forget(entry.name)
            if entry.value is not None:
                self._take_revocation(entry, entry.value)
            return True
        return False

    def _take_key(self, entry: Entry, value: bytes) -> None:
        try:
            stored = msgspec.json.decode(value, type=StoredKey)
            grants = Grants.of(stored.claims)
        except (msgspec.DecodeError, ClaimError) as error:
            log.error("auth.key_unreadable: %s: %s", entry.name, error)  # noqa: TRY400
            return
        expires = entry.expires / 1000 if entry.expires else float("inf")
        caller = Caller(grants, Kind.KEY, stored.subject, entry.name, stored.created, expires)
        self.keys[entry.name] = ApiKey(entry.name, stored, entry.expires, caller)

    def _take_revocation(self, entry: Entry, value: bytes) -> None:
        try:
            revocation = msgspec.json.decode(value, type=Revocation)
        except msgspec.DecodeError as error:
            log.error("auth.revocation_unreadable: %s: %s", entry.name, error)  # noqa: TRY400
            return
        self.revocations[entry.name] = revocation, entry.expires
        for name in self._places(revocation):
            name[entry.name] = None

    def _forget(self, name: str) -> None:
        known = self.revocations.pop(name, None)
        if known is not None:
            for place in self._places(known[0]):
                place.pop(name, None)

    def _sweep(self, now: float) -> None:
        """Forget what is over, in milliseconds since the Unix epoch; nobody loses a right by that."""
        for name in [name for name, (_, expires) in self.revocations.items() if 0 < expires <= now]:
            self._forget(name)
        for name in [name for name, key in self.keys.items() if 0 < key.expires <= now]:
            del self.keys[name]
        self._named = {what: names for what, names in self._named.items() if names}

    def _places(self, revocation: Revocation) -> Iterator[dict[str, None]]:
        """Yield where a revocation is found: by what only few callers have."""
        if revocation.topic is not None:
            yield self._topics
        elif revocation.token is not None:
            yield self._named.setdefault(("token", revocation.token), {})
        elif revocation.subject is not None:
            yield self._named.setdefault(("subject", revocation.subject), {})
        else:
            yield self._rest

    # --- asked ----------------------------------------------------------------------------------------------

    def key(self, text: str) -> Caller | None:
        """Return the caller that an API key is of; None if it is none of ours."""
        id, _, secret = text.removeprefix(PREFIX).partition("_")
        known = self.keys.get(id)
        digest = sha256(secret.encode()).hexdigest()
        if known is None or not hmac.compare_digest(digest, known.stored.digest):
            return None
        return known.caller

    def is_good(self, caller: Caller, now: float) -> bool:
        """
        Tell whether a caller is still who they said they are.

        Args:
            caller: who was known by a token, or an API key, some time ago.
            now: seconds since the Unix epoch.
        """
        if caller.kind is Kind.KEY:
            known = self.keys.get(caller.id or "")
            if known is None or known.stored.created != caller.issued or caller.expires <= now:
                return False
        if not self.revocations:
            return True
        return not any(each.concerns(caller) for each in self._about(caller, now))

    def _about(self, caller: Caller, now: float) -> Iterator[Revocation]:
        found: list[Iterable[str]] = [self._rest]
        if caller.id is not None:
            found.append(self._named.get(("token", caller.id), ()))
        if caller.subject is not None:
            found.append(self._named.get(("subject", caller.subject), ()))
        for names in found:
            yield from self._current(names, now)

    def taken(self, caller: Caller, now: float) -> tuple[str, ...]:
        """Return the patterns of topics, as they are stored, that were taken from a caller."""
        if not self._topics:
            return ()
        return tuple(
            each.topic
            for each in self._current(self._topics, now)
            if each.topic is not None and each.concerns(caller)
        )

    def _current(self, names: Iterable[str], now: float) -> Iterator[Revocation]:
        for name in names:
            revocation, expires = self.revocations[name]
            if not expires or expires > now * 1000:
                yield revocation
