"""Keys that may verify tokens, and all those that may not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm

from gateway.auth.keyset import MAX_KEYS, MAX_SET_BYTES, BadKey, Key, KeySet
from tests.support.tokens import b64, key_set, pair, shared


def small_rsa() -> dict[str, Any]:
    return RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key(), as_dict=True)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_key_has_one_algorithm(algorithm: str) -> None:
    """What a public key is used with follows from what it is."""
    key = Key(pair(algorithm).public)
    assert (key.algorithm, key.id) == (algorithm, "one")


@pytest.mark.parametrize("alg", ["EdDSA", "Ed25519"])
def test_both_names_of_ed25519_are_one(alg: str) -> None:
    """RFC 9864 gives the algorithm a name of its own."""
    assert Key({**pair("EdDSA").public, "alg": alg}).algorithm == "EdDSA"


@pytest.mark.parametrize(
    ("jwk", "why"),
    [
        ({}, "known kinds"),
        ({"kty": "unheard-of"}, "known kinds"),
        ({"kty": ["oct"]}, "known kinds"),
        ({**pair("ES256").public, "crv": "P-521"}, "known kinds"),
        ({**pair("ES256").public, "crv": ["P-256"]}, "known kinds"),
        ({**pair("ES256").public, "crv": "secp256k1"}, "known kinds"),
        ({**pair("EdDSA").public, "crv": "Ed448"}, "known kinds"),
        ({**pair("RS256").public, "alg": "HS256"}, "another algorithm than RS256"),
        ({**pair("RS256").public, "alg": "none"}, "another algorithm"),
        ({**pair("RS256").public, "alg": "RS512"}, "another algorithm"),
        ({**pair("RS256").public, "alg": ["RS256"]}, "another algorithm"),
        ({**pair("RS256").public, "use": "enc"}, "not for verifying"),
        ({**pair("RS256").public, "key_ops": ["encrypt"]}, "not for verifying"),
        ({**pair("RS256").public, "key_ops": "verify"}, "not for verifying"),
        ({**pair("RS256").public, "kid": 1}, "kid is no text"),
        ({**pair("RS256").public, "n": "!"}, "members are not"),
        ({"kty": "RSA"}, "members are not"),
        ({"kty": "RSA", "n": 1, "e": 2}, "members are not"),
        ({**pair("ES256").public, "x": b64(b"1" * 32)}, "members are not"),
        ({**pair("EdDSA").public, "x": b64(b"short")}, "members are not"),
        ({"kty": "oct"}, "members are not"),
        ({"kty": "oct", "k": ""}, "members are not"),
        (shared("x" * 31), "at least 32 bytes, this one 31"),
        (small_rsa(), "at least 2048 bits, this one 1024"),
        (OKPAlgorithm.to_jwk(pair("EdDSA").private, as_dict=True) | {"key_ops": ["verify"]}, "private"),
    ],
)
def test_keys_that_are_refused(jwk: dict[str, Any], why: str) -> None:
    """Each with a sentence that does not have the key in it."""
    with pytest.raises(BadKey, match=why) as caught:
        Key(jwk)
    for member in ("k", "n", "x"):
        value = jwk.get(member)
        assert not value or str(value) not in str(caught.value) or len(str(value)) < 4


def test_a_set_passes_over_what_it_does_not_know() -> None:
    """Keys of kinds that come later do no harm (RFC 7517, 5); why they are not used can be read."""
    keys = KeySet.parse(key_set({"kty": "new"}, pair("ES256").public, small_rsa()), public=True)
    assert len(keys) == 1
    assert [each.split(" ")[1] for each in keys.passed] == ["0", "2"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"keys": "\xff"}', "no JSON"),
        (b"[]", "an object"),
        (b'{"keys": 1}', "an object"),
        (b'{"keys": [1]}', "an object"),
        (b'{"keys": []}', "no key that can be used"),
        (key_set({"kty": "new"}), "no key that can be used; key 0 is not used"),
        (key_set(*[pair("ES256").public] * (MAX_KEYS + 1)), "more than 100 keys"),
        (b" " * (MAX_SET_BYTES + 1), "more than 262144 bytes"),
        (key_set(pair("ES256").public, shared()), "key 1 is a shared secret"),
        (key_set(json.loads(OKPAlgorithm.to_jwk(pair("EdDSA").private))), "key 0 is private"),
    ],
)
def test_sets_that_are_refused(text: bytes, why: str) -> None:
    """A set is used as a whole or not at all."""
    with pytest.raises(BadKey, match=why):
        KeySet.parse(text, public=True)


def test_a_file_may_hold_a_shared_secret() -> None:
    """A file is for our eyes only."""
    assert len(KeySet.parse(key_set(shared(kid="a")), public=False).candidates("HS256", "a")) == 1


def test_a_token_chooses_among_keys_by_name_and_algorithm() -> None:
    """Never one of another algorithm; one without a name is for every name."""
    one, two = pair("ES256", "one").public, pair("ES256", "two").public
    unnamed = {name: value for name, value in pair("ES256", "three").public.items() if name != "kid"}
    keys = KeySet.parse(key_set(one, two, unnamed, pair("RS256").public), public=True)
    assert [key.id for key in keys.candidates("ES256", "two")] == ["two", None]
    assert [key.id for key in keys.candidates("ES256", None)] == ["one", "two", None]
    assert [key.id for key in keys.candidates("RS256", "one")] == ["one"]
    for algorithm in ("none", "HS256", None, ["ES256"], 1):
        assert keys.candidates(algorithm, None) == []
