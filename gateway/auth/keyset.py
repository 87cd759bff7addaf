"""
The keys by which tokens are verified: one shared secret, or a JSON Web Key Set (RFC 7517).

Each key is for one algorithm, fixed when the set is read. So what a token says of itself can choose among our
keys and never how one of them is used: `none`, and an RSA key taken for an HMAC secret, are not there to be
chosen (RFC 8725, 3.1 and 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import InvalidKeyError, PyJWKError
from jwt.utils import base64url_encode

SHARED_BYTES: Final = 32
"""Least length of an HS256 secret: that of its hash (RFC 7518, 3.2)."""

RSA_BITS: Final = 2048
"""Least size of an RSA key (RFC 7518, 3.3)."""

MAX_KEYS: Final = 100
MAX_SET_BYTES: Final = 256 * 1024

ALGORITHMS: Final = {
    ("oct", None): "HS256",
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
"""Kind of key and its curve -> the algorithm it is for."""

_SAME: Final = {"Ed25519": "EdDSA"}  # RFC 9864: the name that says the curve as well


class BadKey(ValueError):
    """A key or a set of keys that cannot be used; the text is one sentence without the key."""


class Key:
    """
    One key.

    Args:
        jwk: its members (RFC 7517, 4); a public or a shared key.

    Attributes:
        id: its `kid`; None if it has none.
        name: what tells it from any other.
        algorithm: the only one it is used with.
        verifying: the key as the library takes it.

    Raises:
        BadKey: it is no such key, too weak, private, or for something else.
    """

    __slots__ = ("algorithm", "id", "name", "verifying")

    def __init__(self, jwk: Mapping[str, Any]) -> None:
        kind, curve = jwk.get("kty"), jwk.get("crv")
        algorithm = ALGORITHMS.get((kind, curve)) if isinstance(kind, str) and _is_text(curve) else None
        if algorithm is None:
            raise BadKey("it is none of the known kinds: oct, RSA, EC with P-256, OKP with Ed25519")
        said = jwk.get("alg", algorithm)
        if said != algorithm and not (_is_text(said) and _SAME.get(said) == algorithm):
            raise BadKey(f"it is for another algorithm than {algorithm}")
        if jwk.get("use", "sig") != "sig" or not _may_verify(jwk.get("key_ops", ["verify"])):
            raise BadKey("it is not for verifying signatures")
        if "d" in jwk:
            raise BadKey("it is a private key: whoever verifies needs the public half only")
        name = jwk.get("kid")
        if not _is_text(name):
            raise BadKey("its kid is no text")
        try:
            self.verifying = PyJWK(dict(jwk), algorithm)
        except (PyJWKError, InvalidKeyError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise BadKey("its members are not those of such a key") from error
        key = self.verifying.key
        if isinstance(key, bytes) and len(key) < SHARED_BYTES:
            raise BadKey(f"a shared key has at least {SHARED_BYTES} bytes, this one {len(key)}")
        if isinstance(key, RSAPublicKey) and key.key_size < RSA_BITS:
            raise BadKey(f"an RSA key has at least {RSA_BITS} bits, this one {key.key_size}")
        self.id: str | None = name
        self.name = blake2b(repr(sorted(jwk.items(), key=repr)).encode(), digest_size=16).digest()
        self.algorithm = algorithm


class KeySet:
    """
    Keys of which a token names one, or none: then each of its algorithm is tried.

    Args:
        keys: the keys.
        passed: why others of the set are not used, a sentence each.
    """

    __slots__ = ("_keys", "passed")

    def __init__(self, keys: Iterable[Key], passed: Iterable[str] = ()) -> None:
        self._keys = tuple(keys)
        self.passed = tuple(passed)

    def __len__(self) -> int:
        return len(self._keys)

    def is_same(self, other: KeySet) -> bool:
        """Tell whether another set has the same keys."""
        return [key.name for key in self._keys] == [key.name for key in other._keys]

    def __add__(self, other: KeySet) -> KeySet:
        """Return the set of the keys of both."""
        return KeySet((*self._keys, *other._keys), (*self.passed, *other.passed))

    def candidates(self, algorithm: object, name: object) -> list[Key]:
        """Return the keys that a token with this `alg` and `kid` can have been signed with."""
        return [
            key
            for key in self._keys
            if key.algorithm == algorithm and (name is None or key.id in (None, name))
        ]

    @classmethod
    def shared(cls, secret: str) -> KeySet:
        """
        Return the set of one shared secret, for HS256.

        Raises:
            BadKey: it is too short.
        """
        encoded = secret.encode("utf-8", "surrogateescape")  # as variables of the environment come
        return cls([Key({"kty": "oct", "k": base64url_encode(encoded).decode()})])

    @classmethod
    def parse(cls, text: bytes, *, public: bool) -> KeySet:
        """
        Read a JSON Web Key Set. Keys of kinds that are not known are passed over (RFC 7517, 5).

        Args:
            text: the set as JSON.
            public: whether it comes from where anybody may read it, so that shared keys cannot be in it.

        Raises:
            BadKey: it is no set, has a private key, or none that can be used.
        """
        if len(text) > MAX_SET_BYTES:
            raise BadKey(f"the set has more than {MAX_SET_BYTES} bytes")
        try:
            members = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise BadKey("the set is no JSON") from error
        listed = members.get("keys") if isinstance(members, dict) else None
        if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
            raise BadKey('a set of keys is an object {"keys": [...]} (RFC 7517, 5)')
        if len(listed) > MAX_KEYS:
            raise BadKey(f"the set has more than {MAX_KEYS} keys")
        keys, passed = [], []
        for number, jwk in enumerate(listed):
            if "d" in jwk:
                raise BadKey(f"key {number} is private: publish the public half only")
            if public and jwk.get("kty") == "oct":
                raise BadKey(f"key {number} is a shared secret, and was read from where anybody can read it")
            try:
                keys.append(Key(jwk))
            except BadKey as error:
                passed.append(f"key {number} is not used: {error}")
        if not keys:
            raise BadKey("; ".join(["the set has no key that can be used", *passed]))
        return cls(keys, passed)


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _may_verify(operations: object) -> bool:
    return isinstance(operations, list) and "verify" in operations
