"""Tokens that are good, and every way in which one is not."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from gateway.auth.keyset import KeySet
from gateway.auth.tokens import LEEWAY, MAX_TOKEN_BYTES, TokenRefused, Tokens
from tests.support.tokens import NOW, SECRET, b64, key_set, pair, shared, spelled, token

HEADER = {"alg": "HS256", "typ": "JWT"}
ALGORITHMS = ["RS256", "ES256", "EdDSA"]


def tokens(**settings: Any) -> Tokens:
    keys = KeySet.shared(SECRET)
    return Tokens(lambda: keys, **settings)


def asymmetric(*algorithms: str, **settings: Any) -> Tokens:
    keys = KeySet.parse(key_set(*(pair(each).public for each in algorithms)), public=True)
    return Tokens(lambda: keys, **settings)


def hs256(header: object, claims: object, key: bytes = SECRET.encode()) -> str:
    """Return a token of any parts that is signed well."""
    unsigned = spelled(header, claims).rpartition(".")[0]
    return f"{unsigned}.{b64(hmac.new(key, unsigned.encode(), sha256).digest())}"


def test_what_a_good_token_says() -> None:
    """Subject, id, times and grants."""
    claims = {"sub": "anna", "jti": "7", "iat": NOW - 5, "nbf": NOW - 5, "exp": NOW + 60, "publish": ["a.#"]}
    good = tokens().verify(token(claims), NOW)
    assert (good.subject, good.id, good.issued, good.expires) == ("anna", "7", NOW - 5, NOW + 60)
    assert good.grants.publishing("a.b") == "a.b"
    assert good.grants.publishing("b") is None
    assert good.grants.subscribing("a.#") is None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ["one", None])
def test_every_algorithm(algorithm: str, name: str | None) -> None:
    """With and without the name of the key."""
    header = {} if name is None else {"kid": name}
    text = token({"sub": "a"}, pair(algorithm).private, algorithm, **header)
    assert asymmetric(*ALGORITHMS).verify(text, NOW).subject == "a"


def _none(alg: str) -> Callable[[], str]:
    return lambda: spelled({"alg": alg, "typ": "JWT"}, {"exp": NOW + 60, "admin": True})


FORGERIES: dict[str, Callable[[], str]] = {
    "nothing": lambda: "",
    "dots": lambda: "..",
    "one part": lambda: "a",
    "no JSON": lambda: spelled("{", "{"),
    "a header that is a list": lambda: spelled([], {}),
    "a header that nests deeply": lambda: spelled("[" * 5000, {}),
    "alg none": _none("none"),
    "alg None": _none("None"),
    "alg nOnE": _none("nOnE"),
    "alg empty": _none(""),
    "no alg": lambda: hs256({"typ": "JWT"}, {"exp": NOW + 60}),
    "alg that is a list": lambda: hs256({"alg": ["HS256"]}, {"exp": NOW + 60}),
    "alg HS384": lambda: token({}, SECRET * 2, "HS384"),
    "alg HS512 by the same secret": lambda: token({}, SECRET * 2, "HS512"),
    "no signature": lambda: token().rpartition(".")[0] + ".",
    "signature cut off": lambda: token()[:-4],
    "another secret": lambda: token({}, "x" * 32),
    "an empty secret": lambda: hs256(HEADER, {"exp": NOW + 60}, b""),
    "another payload": lambda: ".".join(
        [token().split(".")[0], b64(json.dumps({"exp": NOW + 60, "admin": True})), token().split(".")[2]]
    ),
    "another header": lambda: ".".join([b64(json.dumps({**HEADER, "x": 1})), *token().split(".")[1:]]),
    "a fourth part": lambda: token() + ".e30",
    "a key brought along (jwk)": lambda: token({}, "x" * 32, jwk=shared("x" * 32)),
    "a key elsewhere (jku)": lambda: token({}, "x" * 32, jku="http://127.0.0.1/keys"),
    "a certificate elsewhere (x5u)": lambda: token({}, "x" * 32, x5u="http://127.0.0.1/keys"),
    "kid with a path": lambda: hs256({**HEADER, "kid": "../../../dev/null"}, {"exp": NOW + 60}, b""),
    "kid with SQL": lambda: token({}, "x" * 32, kid="x' UNION SELECT 'x"),
    "kid that is a number": lambda: hs256({**HEADER, "kid": 1}, {"exp": NOW + 60}),
    "crit": lambda: hs256({**HEADER, "crit": ["exp"], "exp": 1}, {"exp": NOW + 60}),
    "crit that is empty": lambda: hs256({**HEADER, "crit": []}, {"exp": NOW + 60}),
    "a payload that is not encoded": lambda: hs256({**HEADER, "b64": False, "crit": ["b64"]}, ""),
    "another type": lambda: token(typ="logout+jwt"),
    "a type that is a number": lambda: hs256({**HEADER, "typ": 1}, {"exp": NOW + 60}),
    "a nested token": lambda: hs256({**HEADER, "cty": "JWT"}, token()),
    "claims that are a list": lambda: hs256(HEADER, [1]),
    "claims that are no JSON": lambda: hs256(HEADER, "{exp: 1}"),
    "claims with trailing text": lambda: hs256(HEADER, '{"exp": 9999999999} x'),
    "claims that nest deeply": lambda: hs256(HEADER, '{"exp": 9999999999, "a":' + "[" * 5000),
    "bytes that are no UTF-8": lambda: hs256(HEADER, b'{"exp": 9999999999, "sub": "\xff"}'),
    "no exp": lambda: hs256(HEADER, {"sub": "a"}),
    "exp null": lambda: hs256(HEADER, {"exp": None}),
    "exp as text": lambda: hs256(HEADER, {"exp": str(NOW + 60)}),
    "exp true": lambda: hs256(HEADER, {"exp": True}),
    "exp negative": lambda: hs256(HEADER, {"exp": -1}),
    "exp NaN": lambda: hs256(HEADER, '{"exp": NaN}'),
    "exp without end": lambda: hs256(HEADER, '{"exp": 1e999}'),
    "exp beyond all years": lambda: hs256(HEADER, {"exp": 2**63}),
    "expired": lambda: token({"exp": NOW - LEEWAY}),
    "not yet good": lambda: token({"nbf": NOW + LEEWAY + 1}),
    "nbf as text": lambda: hs256(HEADER, {"exp": NOW + 60, "nbf": "1"}),
    "iat as text": lambda: hs256(HEADER, {"exp": NOW + 60, "iat": "now"}),
    "sub that is a number": lambda: hs256(HEADER, {"exp": NOW + 60, "sub": 1}),
    "sub that is empty": lambda: hs256(HEADER, {"exp": NOW + 60, "sub": ""}),
    "sub with a line break": lambda: hs256(HEADER, {"exp": NOW + 60, "sub": "a\nb"}),
    "sub that is long": lambda: hs256(HEADER, {"exp": NOW + 60, "sub": "a" * 256}),
    "jti that is null": lambda: hs256(HEADER, {"exp": NOW + 60, "jti": None}),
    "an audience": lambda: token({"aud": "somebody"}),
    "audiences": lambda: token({"aud": ["somebody", "else"]}),
    "an audience that is a number": lambda: hs256(HEADER, {"exp": NOW + 60, "aud": 1}),
    "publish that is a text": lambda: token({"publish": "#"}),
    "a pattern that is none": lambda: token({"subscribe": ["a..b"]}),
    "admin as text": lambda: token({"admin": "true"}),
    "admin of a tenant": lambda: token({"admin": True, "tenant": "a"}),
    "a tenant that is null": lambda: token({"tenant": None}),
    "a tenant with a dot": lambda: token({"tenant": "a.b"}),
    "a tenant that is a pattern": lambda: token({"tenant": "*"}),
    "too long": lambda: token({"x": "x" * MAX_TOKEN_BYTES}),
    "not ASCII": lambda: token() + "é",
    "a line break": lambda: token().replace(".", ".\n", 1),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries(name: str) -> None:
    """None is taken, now or when it is tried again; the reason does not have the token in it."""
    verifier = tokens()
    text = FORGERIES[name]()
    for _ in range(2):
        with pytest.raises(TokenRefused) as caught:
            verifier.verify(text, NOW)
        assert len(text) < 9 or text[-9:] not in str(caught.value)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_public_key_is_no_shared_secret(algorithm: str) -> None:
    """The classic confusion: HS256 with the public key, in the forms in which it is known."""
    verifier = asymmetric(algorithm)
    public = pair(algorithm)
    for secret in (public.pem, public.pem.strip(), json.dumps(public.public).encode()):
        for header in (HEADER, {**HEADER, "kid": "one"}):
            with pytest.raises(TokenRefused, match="no key of ours"):
                verifier.verify(hs256(header, {"exp": NOW + 60}, secret), NOW)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_of_another_pair(algorithm: str) -> None:
    """The same kid does not help, nor does another algorithm of ours in the header."""
    verifier = asymmetric(*ALGORITHMS)
    stranger = pair(algorithm, "stranger")
    with pytest.raises(TokenRefused, match="signature"):
        verifier.verify(token({}, stranger.private, algorithm, kid="one"), NOW)
    for other in ALGORITHMS:
        if other != algorithm:
            header, payload, signature = token({}, pair(algorithm).private, algorithm, kid="one").split(".")
            changed = b64(json.dumps({"alg": other, "typ": "JWT", "kid": "one"}))
            with pytest.raises(TokenRefused, match="signature"):
                verifier.verify(f"{changed}.{payload}.{signature}", NOW)
            assert header != changed


def test_a_blank_ecdsa_signature() -> None:
    """Zeros verified with everything in a well-known library once."""
    with pytest.raises(TokenRefused, match="signature"):
        asymmetric("ES256").verify(spelled({"alg": "ES256", "kid": "one"}, {"exp": NOW + 60}, bytes(64)), NOW)


def test_issuer_and_audience() -> None:
    """Both must be what the settings say, where they say something."""
    verifier = tokens(audience="push", issuer="https://id")
    for aud in ("push", ["other", "push"]):
        assert verifier.verify(token({"aud": aud, "iss": "https://id"}), NOW).expires == NOW + 3600
    for claims in (
        {"iss": "https://id"},
        {"aud": "push"},
        {"aud": "push", "iss": "https://id/"},
        {"aud": ["push"], "iss": ["https://id"]},
        {"aud": "pus", "iss": "https://id"},
        {"aud": [], "iss": "https://id"},
    ):
        with pytest.raises(TokenRefused):
            verifier.verify(hs256(HEADER, {"exp": NOW + 60, **claims}), NOW)


def test_what_is_remembered_still_ends() -> None:
    """A good token is good until its end and not from before its begin, however often it was seen."""
    verifier = tokens()
    text = token({"nbf": NOW, "exp": NOW + 60})
    assert verifier.verify(text, NOW) is verifier.verify(text, NOW + 60)
    for when in (NOW + 60 + LEEWAY, NOW - LEEWAY - 1):
        with pytest.raises(TokenRefused):
            verifier.verify(text, when)


def test_keys_that_are_replaced_forget_what_the_old_ones_signed() -> None:
    """With a key gone, its tokens are refused at once."""
    sets = [KeySet.shared(SECRET)]
    verifier = Tokens(lambda: sets[-1])
    text = token()
    verifier.verify(text, NOW)
    sets.append(KeySet.shared("another secret that is long enough too"))
    with pytest.raises(TokenRefused, match="signature"):
        verifier.verify(text, NOW)
    sets.pop()
    assert verifier.verify(text, NOW).expires == NOW + 3600


def test_few_are_remembered() -> None:
    """Whoever has many tokens made cannot fill the memory."""
    verifier = tokens(remembered=3)
    for number in range(10):
        verifier.verify(token({"sub": str(number)}), NOW)
    assert len(verifier._good) == 3
