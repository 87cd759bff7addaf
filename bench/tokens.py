"""Tokens for the clients of the bench, and the flags of a gateway that takes them."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

if TYPE_CHECKING:
    from bench.lab import Lab

SECRET = "a secret for the bench alone, of more than 32 bytes"
SECONDS = 3600


def claims(number: int) -> dict[str, Any]:
    """Return the claims of a client."""
    now = int(time.time())
    return {"sub": f"client-{number}", "iat": now, "exp": now + SECONDS, "subscribe": ["bench"]}


def shared_tokens(n: int) -> tuple[list[str], list[str]]:
    """Return the flags of a gateway with a shared secret, and so many tokens for it."""
    return ["--jwt-key", SECRET], [jwt.encode(claims(each), SECRET, "HS256") for each in range(n)]


def paired_tokens(lab: Lab, n: int) -> tuple[list[str], list[str]]:
    """Return the flags of a gateway with a public key, and so many tokens for it."""
    private = Ed25519PrivateKey.generate()
    public = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
    public.pop("key_ops", None)
    file = lab.file("keys", json.dumps({"keys": [{**public, "kid": "bench"}]}))
    made = [jwt.encode(claims(each), private, "EdDSA", {"kid": "bench"}) for each in range(n)]
    return ["--jwks", str(file)], made
