"""
Signatures by Standard Webhooks 1.0: the secrets of both schemes, and what they make of an attempt.

What is signed is `id.timestamp.body`. *v1* is HMAC-SHA256 with a secret that both sides know (`whsec_` and
base64). *v1a* is Ed25519 with a private key (`whsk_`) of which the receiver knows the public half (`whpk_`).
A header has one token for every live secret, so that secrets can be replaced without a pause, and a receiver
takes the token that it can verify.

Strategy: one v1 token is made for nearly every delivery, so what HMAC does with the secret alone is done once
for each secret, and not for each token.
"""

from __future__ import annotations

import re
import secrets
from base64 import b64decode, b64encode
from binascii import b2a_base64
from collections.abc import Iterable
from enum import Enum, unique
from hashlib import sha256
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from webhooks.errors import Invalid

MIN_BYTES: Final = 24
MAX_BYTES: Final = 64
"""Bytes of a v1 secret: what Standard Webhooks 1.0 wants ("Symmetric signatures")."""
NEW_BYTES: Final = 32
"""Bytes of a new v1 secret: as many as the hash gives, beyond which more add nothing."""

HMAC_PREFIX: Final = "whsec_"
PRIVATE_PREFIX: Final = "whsk_"
PUBLIC_PREFIX: Final = "whpk_"

_BLOCK: Final = 64  # bytes that SHA-256 takes at a time
_SEED: Final = 32  # bytes of an Ed25519 private key, and of a public one
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


@unique
class Scheme(Enum):
    """The ways to sign; their values are what endpoints name and tokens begin with."""

    V1 = "v1"
    """HMAC-SHA256 with a shared secret."""
    V1A = "v1a"
    """Ed25519: who can verify cannot sign."""


class Secret(Protocol):
    """What one signature is made with."""

    @property
    def scheme(self) -> Scheme:
        """The way it signs."""

    @property
    def text(self) -> str:
        """How it is written; whoever reads this can sign."""

    def token(self, prefix: bytes, body: bytes) -> bytes:
        """Return the token of a signature over `prefix` and `body` together."""


class HmacSecret:
    """A secret of scheme v1, of `key`; at most `MAX_BYTES` long."""

    __slots__ = ("_inner", "_outer", "text")
    scheme = Scheme.V1

    def __init__(self, key: bytes) -> None:
        self.text = HMAC_PREFIX + b64encode(key).decode()
        # RFC 2104 section 4: the states after the padded key, from which each signature goes on.
        # `hmac.digest` prepares the key and looks SHA-256 up each time: three times as much (measured).
        block = key.ljust(_BLOCK, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in block))

    def __repr__(self) -> str:
        return "<HmacSecret>"

    def token(self, prefix: bytes, body: bytes) -> bytes:
        inner = self._inner.copy()
        inner.update(prefix)
        inner.update(body)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return b"v1," + b2a_base64(outer.digest(), newline=False)


class Ed25519Secret:
    """
    A private key of scheme v1a.

    Args:
        seed: the private key of RFC 8032: 32 bytes.

    Attributes:
        public: the public key, 32 bytes.
    """

    __slots__ = ("_key", "public", "text")
    scheme = Scheme.V1A

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()
        self.text = PRIVATE_PREFIX + b64encode(seed + self.public).decode()

    def __repr__(self) -> str:
        return f"<Ed25519Secret of {self.public_text}>"

    @property
    def public_text(self) -> str:
        """How the public key is written, for the receiver to verify with."""
        return PUBLIC_PREFIX + b64encode(self.public).decode()

    def token(self, prefix: bytes, body: bytes) -> bytes:
        return b"v1a," + b2a_base64(self._key.sign(prefix + body), newline=False)


def new_secret(scheme: Scheme) -> Secret:
    """Return a secret that nobody knows yet."""
    if scheme is Scheme.V1:
        return HmacSecret(secrets.token_bytes(NEW_BYTES))
    return Ed25519Secret(secrets.token_bytes(_SEED))


def parse_secret(text: str) -> Secret:
    """
    Read a secret of either scheme.

    Raises:
        Invalid: it is none, with a sentence that does not repeat it.
    """
    if text.startswith(HMAC_PREFIX):
        return HmacSecret(_hmac_key(text.removeprefix(HMAC_PREFIX)))
    if text.startswith(PRIVATE_PREFIX):
        return Ed25519Secret(_seed(text.removeprefix(PRIVATE_PREFIX)))
    if text.startswith(PUBLIC_PREFIX):
        raise Invalid(f"the secret is a public key: what signs begins with {PRIVATE_PREFIX}")
    raise Invalid(f"the secret begins with neither {HMAC_PREFIX} nor {PRIVATE_PREFIX}")


def signature(live: Iterable[Secret], id: str, timestamp: int, body: bytes) -> bytes:
    """
    Return the value of `webhook-signature`: a token for every secret, with a space between.

    Args:
        live: the secrets to sign with, at least one: an empty header makes verifiers raise strange errors.
        id: the value of `webhook-id`, as `check_id` wants it.
        timestamp: the value of `webhook-timestamp`: seconds since the Unix epoch.
        body: what is sent, byte for byte.
    """
    prefix = b"%b.%d." % (id.encode(), timestamp)
    tokens = [secret.token(prefix, body) for secret in live]
    assert tokens, "an endpoint has a live secret at any time"
    return b" ".join(tokens)


def check_id(id: str) -> str:
    """
    Return `id` if it can be the value of `webhook-id`.

    With a dot in it, two messages could have the same text to sign (Standard Webhooks 1.0, "Signature
    scheme"); with a line break it would be two headers.

    Raises:
        ValueError: it has other characters than letters, digits, `_` and `-`, none, or more than 128.
    """
    if not _ID.fullmatch(id):
        raise ValueError(f"{id[:140]!a} cannot be the id of a webhook")
    return id


def _hmac_key(text: str) -> bytes:
    key = _decoded(text)
    if not MIN_BYTES <= len(key) <= MAX_BYTES:
        raise Invalid(f"the secret has {len(key)} bytes: it must have {MIN_BYTES} to {MAX_BYTES}")
    return key


def _seed(text: str) -> bytes:
    """Return the private key in `whsk_`, which has the public one behind it."""
    both = _decoded(text)
    if len(both) != 2 * _SEED:
        raise Invalid(f"the private key has {len(both)} bytes: it must have {2 * _SEED}, the public key last")
    seed, public = both[:_SEED], both[_SEED:]
    if Ed25519Secret(seed).public != public:
        raise Invalid("the private key is not that of the public key behind it")
    return seed


def _decoded(text: str) -> bytes:
    """Return what base64 stands for; it must be in the one form that every library reads alike."""
    try:
        key = b64decode(text, validate=True)
    except ValueError:
        key = b""
    if not key or b64encode(key).decode() != text:
        raise Invalid("behind its prefix, the secret is no base64 (RFC 4648 section 4, with padding)")
    return key
