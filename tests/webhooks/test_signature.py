"""Signatures: the published vectors come out, and what is no secret is refused without repeating it."""

from __future__ import annotations

import base64
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.errors import Invalid
from webhooks.signature import (
    Ed25519Secret,
    HmacSecret,
    Scheme,
    check_id,
    new_secret,
    parse_secret,
    signature,
)

# From the tests that every library of Standard Webhooks has.
V1 = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1_614_265_330
BODY = b'{"test": 2432232314}'
V1_TOKEN = b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

# From the tests of Svix's server.
V1A = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
V1A_PUBLIC = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
V1A_TOKEN = b"v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="


def refused(text: str) -> str:
    """Return what is said of a text that is no secret."""
    with pytest.raises(Invalid) as caught:
        parse_secret(text)
    return str(caught.value)


def test_the_vector_of_standard_webhooks() -> None:
    """The shared secret, message and time of the libraries' own tests give their signature."""
    assert signature([parse_secret(V1)], ID, TIMESTAMP, BODY) == V1_TOKEN


def test_the_vector_of_svix() -> None:
    """Ed25519 is deterministic: the same key and message give the signature that Svix's tests have."""
    secret = parse_secret(V1A)
    assert isinstance(secret, Ed25519Secret)
    assert secret.public_text == V1A_PUBLIC
    assert signature([secret], ID, TIMESTAMP, BODY) == V1A_TOKEN


def test_the_vector_with_a_short_secret() -> None:
    """Svix's documentation signs with 18 bytes: its signature comes out, but no endpoint may have it."""
    text = "whsec_plJ3nmyCDGBKInavdOK15jsl"
    secret = HmacSecret(base64.b64decode(text.removeprefix("whsec_")))
    body = b'{"event_type":"ping","data":{"success":true}}'
    token = signature([secret], "msg_loFOjxBNrRLzqYUf", 1_731_705_121, body)
    assert token == b"v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="
    assert "18 bytes" in refused(text)


def test_every_live_secret_gives_a_token() -> None:
    """Tokens stand beside each other with one space between, in the order of the secrets."""
    both = signature([parse_secret(V1A), parse_secret(V1)], ID, TIMESTAMP, BODY)
    assert both == V1A_TOKEN + b" " + V1_TOKEN


@given(st.binary(min_size=24, max_size=64), st.binary(max_size=300), st.integers(0, 2**40))
def test_v1_is_hmac(key: bytes, body: bytes, timestamp: int) -> None:
    """For any secret and body, the token is what the standard library's HMAC gives."""
    content = b"a-b_9.%d.%b" % (timestamp, body)
    expected = base64.b64encode(hmac.digest(key, content, "sha256"))
    assert signature([HmacSecret(key)], "a-b_9", timestamp, body) == b"v1," + expected


@given(st.binary(min_size=24, max_size=64))
def test_secrets_are_read_as_they_are_written(key: bytes) -> None:
    """The text of a secret is read as the same secret."""
    text = "whsec_" + base64.b64encode(key).decode()
    secret = parse_secret(text)
    assert (secret.text, secret.scheme) == (text, Scheme.V1)


def test_private_keys_are_read_as_they_are_written() -> None:
    secret = parse_secret(V1A)
    assert (secret.text, secret.scheme) == (V1A, Scheme.V1A)


@pytest.mark.parametrize("scheme", Scheme)
def test_new_secrets_are_secrets(scheme: Scheme) -> None:
    """A new secret is of its scheme, can be read again, and is no other's."""
    one, other = new_secret(scheme), new_secret(scheme)
    assert one.scheme is parse_secret(one.text).scheme is scheme
    assert one.text != other.text


def encoded(size: int, prefix: str = "whsec_") -> str:
    return prefix + base64.b64encode(bytes(at % 256 for at in range(size))).decode()


@pytest.mark.parametrize("size", [24, 64])
def test_the_bounds_are_inside(size: int) -> None:
    parse_secret(encoded(size))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (encoded(23), "the secret has 23 bytes: it must have 24 to 64"),
        (encoded(65), "the secret has 65 bytes: it must have 24 to 64"),
        (encoded(100_000), "the secret has 100000 bytes"),
        ("whsec_", "no base64"),
        (encoded(32)[:-1], "no base64"),  # without its padding
        (encoded(32) + "\n", "no base64"),
        (encoded(32) + " ", "no base64"),
        (encoded(32).replace("A", "-"), "no base64"),  # the alphabet of URLs
        (encoded(32).replace("8=", "9="), "no base64"),  # bits that no byte has
        (encoded(32).replace("A", "Ä"), "no base64"),
        ("whsec_\ud800", "no base64"),
        (encoded(32, ""), "begins with neither whsec_ nor whsk_"),
        (encoded(32, "WHSEC_"), "begins with neither"),
        ("", "begins with neither"),
        (V1A_PUBLIC, "is a public key: what signs begins with whsk_"),
        (encoded(32, "whsk_"), "the private key has 32 bytes: it must have 64"),
        (encoded(96, "whsk_"), "the private key has 96 bytes: it must have 64"),
        (encoded(64, "whsk_"), "not that of the public key behind it"),
    ],
)
def test_what_is_no_secret_is_refused(text: str, said: str) -> None:
    """Too short, too long, not base64, of no scheme: said in a sentence that does not repeat the secret."""
    sentence = refused(text)
    assert said in sentence
    assert len(text) < 12 or text[6:] not in sentence


@pytest.mark.parametrize("text", [V1, V1A])
def test_secrets_are_not_shown(text: str) -> None:
    """What is logged of a secret cannot sign."""
    assert text[6:20] not in repr(parse_secret(text))


@pytest.mark.parametrize("id", ["msg_1", "A-z_09", "x" * 128])
def test_ids_of_webhooks(id: str) -> None:
    assert check_id(id) == id


@pytest.mark.parametrize("id", ["", "a.b", "a b", "a\r\nx: y", "a\n", "ä", "x" * 129, "a:b"])
def test_what_cannot_be_an_id(id: str) -> None:
    """A dot would make two messages sign alike, a line break would make another header."""
    with pytest.raises(ValueError, match="cannot be the id of a webhook"):
        check_id(id)
