"""Tokens and keys for tests, good and forged; made with the same primitives as anybody's."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

SECRET: Final = "a shared secret of at least 32 bytes, for tests"
NOW: Final = 1_800_000_000.0
"""The time at which these tokens are looked at, unless a test says otherwise."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A private key and the members of its public half."""

    private: Any
    public: dict[str, Any]

    @property
    def pem(self) -> bytes:
        """The public half as it is often handed around."""
        pem: bytes = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem


@cache
def pair(algorithm: str, name: str = "one") -> Pair:
    """Return a key pair; the same for the same arguments."""
    if algorithm == "RS256":
        private: Any = rsa.generate_private_key(65537, 2048)
        public = RSAAlgorithm.to_jwk(private.public_key(), as_dict=True)
    elif algorithm == "ES256":
        private = ec.generate_private_key(ec.SECP256R1())
        public = ECAlgorithm.to_jwk(private.public_key(), as_dict=True)
    else:
        private = ed25519.Ed25519PrivateKey.generate()
        public = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
    public = {each: value for each, value in public.items() if each != "key_ops"}
    return Pair(private, {**public, "kid": name})


def b64(data: bytes | str) -> str:
    """Return Base64url without padding (RFC 7515, 2)."""
    raw = data.encode() if isinstance(data, str) else data
    return urlsafe_b64encode(raw).decode().rstrip("=")


def shared(secret: str = SECRET, **members: Any) -> dict[str, Any]:
    """Return a shared secret as a key of a set."""
    return {"kty": "oct", "k": b64(secret), **members}


def key_set(*keys: Mapping[str, Any]) -> bytes:
    """Return a set of keys as JSON."""
    return json.dumps({"keys": keys}).encode()


def token(
    claims: Mapping[str, Any] | None = None,
    key: Any = SECRET,
    algorithm: str = "HS256",
    **header: Any,
) -> str:
    """Return a signed token; it ends an hour after `NOW` unless its claims say otherwise."""
    return jwt.encode({"exp": NOW + 3600, **(claims or {})}, key, algorithm, header or None)


def spelled(header: object, claims: object, signature: bytes = b"") -> str:
    """Return a token of any parts, as a forger would write it; text and bytes are taken as they are."""
    parts = [each if isinstance(each, str | bytes) else json.dumps(each) for each in (header, claims)]
    return ".".join([*map(b64, parts), b64(signature)])
