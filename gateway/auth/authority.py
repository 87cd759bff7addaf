"""
The authority: from what a request brings along to its caller, or a refusal.

A token comes in `Authorization`, in a cookie, or, where a browser can send neither, as a ticket in the URL
that is good once and for half a minute. An API key comes where a token does.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.auth.caller import Caller, Kind, unauthorized
from gateway.auth.keyset import KeySet
from gateway.auth.registry import PREFIX, Registry
from gateway.auth.sources import KeySource
from gateway.auth.store import TICKET, EntriesFull
from gateway.auth.tokens import LEEWAY, MAX_TOKEN_BYTES, KeyMissing, Token, TokenRefused, Tokens
from gateway.log import StoreUnavailable
from gateway.problems import Problem

log = logging.getLogger(__name__)

TICKET_SECONDS: Final = 30.0
MAX_TICKET: Final = 100
_NONCE: Final = bytes(12)  # each ticket is a key of its own, used once


class Authority:
    """
    Knows callers.

    Args:
        sources: of the keys for tokens.
        registry: API keys and revocations.
        audience: what tokens must name in `aud`; None if they name none.
        issuer: what their `iss` must be; None if that does not matter.
        clock: seconds since the Unix epoch.
    """

    def __init__(
        self,
        sources: Sequence[KeySource],
        registry: Registry,
        *,
        audience: str | None = None,
        issuer: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.registry = registry
        self.sources = tuple(sources)
        self.refused: Counter[str] = Counter()  # why -> how often
        self._clock = clock
        self._merged: tuple[list[KeySet | None], KeySet] = ([], KeySet(()))
        self._tokens = Tokens(self._keys, audience=audience, issuer=issuer)

    async def start(self) -> None:
        """Read the keys, and what was revoked."""
        await asyncio.gather(*(source.start() for source in self.sources))
        await self.registry.follow()

    async def run(self) -> None:
        """Keep all that up to date, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for source in self.sources:
                tasks.create_task(source.run())
            tasks.create_task(self.registry.run())

    def trouble(self) -> str | None:
        """Return why nobody can be known; None if some can."""
        return None if len(self._keys()) else "the keys for tokens cannot be had"

    def _keys(self) -> KeySet:
        """Return the keys of all sources; the same object as long as they are the same."""
        there = [source.keys for source in self.sources]
        before, merged = self._merged
        if there != before:  # sets are equal if they are the same object
            merged = KeySet(())
            for each in there:
                if each is not None:
                    merged += each
            self._merged = there, merged
        return merged

    # --- knowing --------------------------------------------------------------------------------------------

    async def known(self, text: str) -> Caller:
        """
        Return the caller that a token, or an API key, is of.

        Raises:
            Problem: 401, it is not good; 503, there are no keys to tell by.
        """
        if not self.registry.followed:
            raise Problem(503, "who may come in is not known yet", retry_after=1)
        now = self._clock()
        if not text.isascii() or len(text) > MAX_TOKEN_BYTES:
            raise self._refusal("no token")
        if text.startswith(PREFIX):
            caller = self.registry.key(text)
            if caller is None:
                raise self._refusal("unknown key")
            caller = caller.again()
        else:
            caller = caller_of_token(await self._verified(text, now))
        if not self.registry.is_good(caller, now):
            raise self._refusal("revoked")
        caller.taken = self.registry.taken(caller, now)
        caller.seen = self.registry.version
        return caller

    async def _verified(self, text: str, now: float) -> Token:
        if not len(self._keys()):
            raise Problem(503, "tokens cannot be verified at the moment", retry_after=5)
        try:
            try:
                return self._tokens.verify(text, now)
            except KeyMissing:
                looked = [await source.look() for source in self.sources]
                if not any(looked):
                    raise
                return self._tokens.verify(text, now)
        except TokenRefused as error:
            raise self._refusal(str(error)) from None

    def _refusal(self, why: str) -> Problem:
        if len(self.refused) < 100 or why in self.refused:
            self.refused[why] += 1
        log.info("auth.refused: %s", why)
        return unauthorized(given=True)

    # --- tickets --------------------------------------------------------------------------------------------

    async def ticket(self, text: str) -> str:
        """
        Return a ticket for whoever has a token or an API key that was just seen to be good.

        The store does not have the token: it is encrypted by the ticket, of which the store has a digest.

        Raises:
            Problem: 503, the store cannot be used, or has too many.
        """
        ticket = secrets.token_urlsafe(24)
        name, key = _digests(ticket)
        expires = round((self._clock() + TICKET_SECONDS) * 1000)
        try:
            value = AESGCM(key).encrypt(_NONCE, text.encode(), None)
            await self.registry.store.put(TICKET, name, value, expires)
        except EntriesFull:
            raise Problem(503, "there are too many tickets at the moment", retry_after=5) from None
        except StoreUnavailable as error:
            raise _unstored(error) from None
        return ticket

    async def redeem(self, ticket: str) -> tuple[str, Caller]:
        """
        Return the token that a ticket is for, which nobody can use again, and its caller.

        Raises:
            Problem: 401, it is none, or was used, or is too old; 503, the store cannot be asked.
        """
        if len(ticket) > MAX_TICKET:
            raise self._refusal("no ticket")
        name, key = _digests(ticket)
        try:
            value = await self.registry.store.take(TICKET, name)
        except StoreUnavailable as error:
            raise _unstored(error) from None
        if value is None:
            raise self._refusal("no ticket, or used")
        try:
            text = AESGCM(key).decrypt(_NONCE, value, None).decode()
        except InvalidTag:
            raise self._refusal("no ticket") from None
        return text, await self.known(text)


def caller_of_token(token: Token) -> Caller:
    """Return the caller that a verified token is of. Clocks may differ, so it is good a little longer."""
    expires = token.expires + LEEWAY
    return Caller(token.grants, Kind.TOKEN, token.subject, token.id, token.issued, expires, LEEWAY)


def _digests(ticket: str) -> tuple[str, bytes]:
    """Return the name by which a ticket is found, and the key by which its token is encrypted."""
    text = ticket.encode("utf-8", "replace")
    return (
        blake2b(text, digest_size=16, person=b"sluice name").hexdigest(),
        blake2b(text, digest_size=32, person=b"sluice key").digest(),
    )


def _unstored(error: StoreUnavailable) -> Problem:
    return Problem(503, "tickets cannot be made or seen at the moment", retry_after=error.retry_after)
