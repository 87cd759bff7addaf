"""
Tokens: JSON Web Tokens (RFC 7519) to what their bearer may do, or a refusal.

The signature is checked by PyJWT, with a key and an algorithm of our choosing; the claims are read here, each
strictly, and only behind a good signature. Why a token was refused is for our log: its bearer learns that it
was (RFC 6750, 3.1), and whoever forges learns nothing.

A token that was good once is remembered, because connecting is frequent and signatures are not free. What
changes with time is asked each time: whether it has begun and whether it has ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import msgspec
from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError

from fanout.errors import ClaimError
from fanout.grants import Grants
from gateway.auth.keyset import KeySet

MAX_TOKEN_BYTES: Final = 8 * 1024
"""Largest token; with its header's name it has to fit into the head of a request."""

MAX_NAME: Final = 255
"""Characters of a subject, an issuer and a token's id."""

LEEWAY: Final = 10.0
"""Seconds that clocks may differ."""

MAX_CANDIDATES: Final = 4
"""Keys that are tried for a token that names none."""

REMEMBERED: Final = 10_000
"""Tokens that were good and are remembered, about 1 KiB each."""

TYPES: Final = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""What a token may say it is (RFC 7519, 5.1; RFC 9068, 2.1), in any case of its letters."""

_jws: Final = PyJWS(algorithms=("HS256", "RS256", "ES256", "EdDSA"))


class TokenRefused(Exception):
    """
    A token is not to be trusted.

    Args:
        reason: why, for our own log: without the token, without anything that its bearer chose.
    """


class KeyMissing(TokenRefused):
    """No key of ours is for it; there may be one soon, when keys rotate."""


@dataclass(frozen=True, slots=True)
class Token:
    """
    A token that was verified.

    Attributes:
        subject: whose it is (`sub`); None if it does not say.
        id: its own name (`jti`), if it has one.
        issued: when it was made (`iat`), in seconds since the Unix epoch; 0 if it does not say.
        begins: from when on it is good (`nbf`), in the same unit; 0 is from ever.
        expires: until when (`exp`), in the same unit.
        grants: what its bearer may do.
    """

    subject: str | None
    id: str | None
    issued: float
    begins: float
    expires: float
    grants: Grants


class Tokens:
    """
    Verifies tokens.

    Args:
        keys: asked for each token that is not remembered, so that a set can be replaced.
        audience: what its `aud` must name; None if tokens need not name any, and then one that does is
            refused (RFC 7519, 4.1.3).
        issuer: what its `iss` must be; None if that does not matter.
        remembered: how many good tokens are remembered.
    """

    def __init__(
        self,
        keys: Callable[[], KeySet],
        *,
        audience: str | None = None,
        issuer: str | None = None,
        remembered: int = REMEMBERED,
    ) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        self._remembered = remembered
        self._good: OrderedDict[bytes, tuple[KeySet, Token]] = OrderedDict()

    def verify(self, text: str, now: float) -> Token:
        """
        Return the token that a text is.

        Args:
            text: as it came.
            now: seconds since the Unix epoch.

        Raises:
            TokenRefused: it is none, is not ours, is not for us, or it is not its time.
        """
        if len(text) > MAX_TOKEN_BYTES:
            raise TokenRefused("too long")
        if not text.isascii():
            raise TokenRefused("not ASCII")
        keys = self._keys()
        name = blake2b(text.encode(), digest_size=16).digest()
        known = self._good.get(name)
        if known is not None and known[0] is keys:
            self._good.move_to_end(name)
            token = known[1]
        else:
            token = self._read(self._payload(text, keys))
        _check_time(token, now)
        self._good[name] = keys, token
        if len(self._good) > self._remembered:
            self._good.popitem(last=False)
        return token

    def _payload(self, text: str, keys: KeySet) -> bytes:
        """Return the payload of a token whose signature is good."""
        try:
            header = _jws.get_unverified_header(text)
        except (PyJWTError, RecursionError, ValueError) as error:
            raise TokenRefused(f"no token: {type(error).__name__}") from None
        if "crit" in header or "b64" in header:
            raise TokenRefused("it has extensions that must be understood")  # RFC 7515, 4.1.11
        kind = header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower() not in TYPES:
            raise TokenRefused("it is a token of another type")
        candidates = keys.candidates(header.get("alg"), header.get("kid"))[:MAX_CANDIDATES]
        if not candidates:
            raise KeyMissing("no key of ours is for its alg and kid")
        for key in candidates:
            try:
                decoded = _jws.decode_complete(text, key.verifying, algorithms=[key.algorithm])
            except (PyJWTError, ValueError):
                continue
            payload: bytes = decoded["payload"]
            return payload
        raise TokenRefused("the signature is wrong")

    def _read(self, payload: bytes) -> Token:
        try:
            claims = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise TokenRefused("the claims are no JSON") from None
        if not isinstance(claims, dict):
            raise TokenRefused("the claims are no object")
        self._check_for_us(claims)
        expires = _time(claims, "exp")
        if expires is None:
            raise TokenRefused("it never ends: it has no exp")
        try:
            grants = Grants.of(claims)
        except ClaimError as error:
            raise TokenRefused(str(error)) from None
        return Token(
            _name(claims, "sub"),
            _name(claims, "jti"),
            _time(claims, "iat") or 0.0,
            _time(claims, "nbf") or 0.0,
            expires,
            grants,
        )

    def _check_for_us(self, claims: dict[str, Any]) -> None:
        """Check issuer and audience."""
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise TokenRefused("it is from another issuer")
        named = claims.get("aud")
        audiences = [named] if isinstance(named, str) else named
        if named is None:
            if self._audience is not None:
                raise TokenRefused("it names no audience")
        elif not isinstance(audiences, list) or self._audience not in audiences:
            raise TokenRefused("it is for another audience")


def _check_time(token: Token, now: float) -> None:
    if now >= token.expires + LEEWAY:
        raise TokenRefused("it has expired")
    if now < token.begins - LEEWAY:
        raise TokenRefused("it is not good yet")


def _time(claims: dict[str, Any], name: str) -> float | None:
    """Return a claim that is a time (RFC 7519, 2: NumericDate)."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2**53:
        raise TokenRefused(f"its {name} is no time")
    return float(value)


def _name(claims: dict[str, Any], name: str) -> str | None:
    """Return a claim that is a name."""
    if name not in claims:
        return None
    value = claims[name]
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise TokenRefused(f"its {name} is no name")
    return value
