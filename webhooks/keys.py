"""
The keys of one endpoint: the secrets it signs with at the moment, and those that may still be in use.

When a secret is replaced the old one goes on signing beside the new one for a while, so that the receiver can
change over whenever he likes within it. Keys are values: every change makes new ones, to be stored together.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

import msgspec

from webhooks.errors import Invalid
from webhooks.signature import Ed25519Secret, Scheme, Secret, new_secret

MAX_LIVE: Final = 10
"""Live secrets of one scheme: each is a token more in every request."""
OVERLAP: Final = 86_400
MAX_OVERLAP: Final = 7 * 86_400
"""Seconds that an old secret goes on signing, unless the user says so, and at most."""


@dataclass(frozen=True, slots=True)
class Key:
    """
    A secret and its time.

    Attributes:
        secret: what signs.
        created: milliseconds since the Unix epoch at which it became the newest of its scheme.
        expires: milliseconds since the epoch from which it does not sign any more; 0 is never.
    """

    secret: Secret
    created: int
    expires: int = 0

    def is_live(self, now: int) -> bool:
        return not self.expires or now < self.expires


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys of an endpoint, the newest first; the first of each scheme never expires."""

    all: tuple[Key, ...] = ()

    def secrets(self, schemes: Collection[Scheme], now: int) -> list[Secret]:
        """Return what an attempt `now` is signed with: every live secret of `schemes`, the newest first."""
        return [key.secret for key in self.all if key.is_live(now) and key.secret.scheme in schemes]

    def current(self, scheme: Scheme) -> Key | None:
        """Return the newest key of a scheme, None if it has none."""
        return next((key for key in self.all if key.secret.scheme is scheme), None)

    def completed(self, schemes: Iterable[Scheme], now: int) -> Keys:
        """Return them with a new key for every one of `schemes` that has none. Others are kept."""
        added = [Key(new_secret(scheme), now) for scheme in schemes if self.current(scheme) is None]
        return Keys((*added, *self.all)) if added else self

    def rotated(self, secret: Secret, now: int, overlap: float = OVERLAP) -> Keys:
        """
        Return them with `secret` as the newest of its scheme; none before it lives longer than `overlap`.

        What has expired is left out. Without an overlap the new secret is the only one of its scheme at once,
        which is what a secret that leaked calls for.

        Args:
            secret: a new one, or one that the user brought along.
            now: milliseconds since the Unix epoch.
            overlap: seconds, 0 to `MAX_OVERLAP`.

        Raises:
            Invalid: there are too many live ones, `secret` is among them, or the overlap is out of bounds.
        """
        if not 0 <= overlap <= MAX_OVERLAP:
            raise Invalid(f"the overlap must be 0 to {MAX_OVERLAP} seconds", "/overlap")
        if any(key.secret.text == secret.text for key in self.all):
            raise Invalid("the secret is one that the endpoint has already", "/secret")
        last = now + round(overlap * 1000)
        before = [key for key in self.all if key.secret.scheme is secret.scheme]
        others = [key for key in self.all if key.secret.scheme is not secret.scheme]
        ending = [replace(key, expires=min(key.expires or last, last)) for key in before]
        live = [key for key in ending if key.is_live(now)]
        if len(live) >= MAX_LIVE:
            raise Invalid(
                f"{MAX_LIVE} secrets are live: wait until the oldest expires, or rotate with overlap 0"
            )
        return Keys((Key(secret, now), *live, *others))


def jwks(secrets: Iterable[Secret]) -> bytes:
    """Return the JSON Web Key Set (RFC 7517 section 5) of the public keys among `secrets`, each once."""
    publics = dict.fromkeys(secret.public for secret in secrets if isinstance(secret, Ed25519Secret))
    return msgspec.json.encode({"keys": [_jwk(public) for public in publics]})


def key_id(public: bytes) -> str:
    """Return the `kid` under which an Ed25519 public key stands in the set: its thumbprint (RFC 7638)."""
    members = b'{"crv":"Ed25519","kty":"OKP","x":"%b"}' % _base64url(public).encode()
    return _base64url(sha256(members).digest())


def _jwk(public: bytes) -> dict[str, str]:
    """Return an Ed25519 public key as RFC 8037 section 2 writes it."""
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": _base64url(public),
        "kid": key_id(public),
        "use": "sig",
        "alg": "EdDSA",
    }


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
