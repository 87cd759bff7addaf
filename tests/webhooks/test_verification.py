"""What we sign is verified by what others wrote: libraries of PyPI and npm, and Node's cryptography."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import standardwebhooks
import svix.webhooks
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gateway.mint import DATA_BASE64, Mint
from tests.support.node_receiver import LIBRARIES, NodeReceiver
from webhooks.envelope import Content, Form, Message, head
from webhooks.headers import own_lines
from webhooks.keys import Keys, jwks
from webhooks.signature import Ed25519Secret, HmacSecret, Scheme, Secret, new_secret, signature

pytestmark = pytest.mark.integration

CURSOR = "abcdef-42-04fa"
BOTH = (Scheme.V1, Scheme.V1A)

Verifier = Callable[[str, bytes, bytes], str]
"""Returns what a receiver with this secret has against these lines and this body; nothing if all is well."""

NO_MATCH = "No matching signature found"


@pytest.fixture(scope="module")
def node() -> Iterator[NodeReceiver]:
    with NodeReceiver() as receiver:
        yield receiver


def by_python(library: str) -> Verifier:
    """Return the library of PyPI of that name."""

    def verify(secret: str, lines: bytes, body: bytes) -> str:
        headers = dict(line.split(": ", 1) for line in lines.decode().removesuffix("\r\n").split("\r\n"))
        try:
            if library == "svix":
                svix.webhooks.Webhook(secret).verify(body, headers)
            else:
                standardwebhooks.Webhook(secret).verify(body, headers)
        except standardwebhooks.WebhookVerificationError as error:
            return str(error)
        return ""

    return verify


@pytest.fixture(
    params=[("pypi", "standardwebhooks"), ("pypi", "svix"), *[("npm", each) for each in LIBRARIES]]
)
def verify(request: pytest.FixtureRequest, node: NodeReceiver) -> Verifier:
    """Return each library in turn; those of npm are given a request over a socket."""
    registry, library = request.param
    if registry == "pypi":
        return by_python(library)

    def by_node(secret: str, lines: bytes, body: bytes) -> str:
        return node.verify(library, secret, lines, body).removeprefix("WebhookVerificationError: ")

    return by_node


def content(form: Form, data: bytes = '{"total":129.5,"für":"10 €"}'.encode()) -> Content:
    event = Mint(1_000_000, "x").event(1_795_452_360_123, "orders.42", data, "7", "order.created")
    return Message(f"msg_{CURSOR}", CURSOR, event.body).content(form)


def lines(secrets: Sequence[Secret], content: Content, timestamp: int | None = None) -> bytes:
    """Return the head of an attempt that is made now."""
    now = int(time.time()) if timestamp is None else timestamp
    signed = signature(secrets, f"msg_{CURSOR}", now, content.body)
    return head(own_lines({"X-Tenant": "42"}), content, now, signed)


@pytest.mark.parametrize("form", Form)
def test_every_form_is_verified(verify: Verifier, form: Form) -> None:
    """Each library takes each form of body, and refuses it if one byte is another."""
    secret, sent = new_secret(Scheme.V1), content(form)
    assert verify(secret.text, lines([secret], sent), sent.body) == ""
    assert verify(secret.text, lines([secret], sent), sent.body.replace(b"129.5", b"129.6")) == NO_MATCH


@pytest.mark.parametrize("size", [24, 32, 64])
def test_secrets_of_every_size_are_verified(verify: Verifier, size: int) -> None:
    secret, sent = HmacSecret(bytes(range(256 - size, 256))), content(Form.EVENT)
    assert verify(secret.text, lines([secret], sent), sent.body) == ""


def test_both_schemes_in_one_header_are_verified(verify: Verifier) -> None:
    """A library that knows v1 alone finds its token among others, wherever it stands."""
    one, other = new_secret(Scheme.V1), new_secret(Scheme.V1A)
    for secrets in ([one, other], [other, one]):
        sent = content(Form.EVENT)
        assert verify(one.text, lines(secrets, sent), sent.body) == ""


def test_secrets_are_verified_until_they_expire(verify: Verifier) -> None:
    """During the overlap the old secret and the new one verify, each alone; behind it only the new one."""
    now = time.time_ns() // 1_000_000
    old = Keys().completed(BOTH, now)
    new = new_secret(Scheme.V1)
    keys, sent = old.rotated(new, now, overlap=3600), content(Form.EVENT)
    before = old.secrets([Scheme.V1], now)[0]
    during = lines(keys.secrets(BOTH, now), sent)
    assert verify(before.text, during, sent.body) == ""
    assert verify(new.text, during, sent.body) == ""
    after = lines(keys.secrets(BOTH, now + 3_600_000), sent)
    assert verify(before.text, after, sent.body) == NO_MATCH
    assert verify(new.text, after, sent.body) == ""


def test_ten_secrets_are_verified(verify: Verifier) -> None:
    """The most that can be live: each of them verifies."""
    secrets, sent = [new_secret(Scheme.V1) for _ in range(10)], content(Form.EVENT)
    head = lines(secrets, sent)
    assert [verify(secret.text, head, sent.body) for secret in secrets] == [""] * 10


def test_another_secret_does_not_verify(verify: Verifier) -> None:
    sent = content(Form.EVENT)
    for signer in (new_secret(Scheme.V1), new_secret(Scheme.V1A)):
        assert verify(new_secret(Scheme.V1).text, lines([signer], sent), sent.body) == NO_MATCH


@pytest.mark.parametrize(("minutes", "said"), [(-6, "too old"), (-4, ""), (4, ""), (6, "too new")])
def test_an_attempt_is_verified_for_five_minutes(verify: Verifier, minutes: int, said: str) -> None:
    """What is signed is the time of the attempt: a replay, or a wrong clock, is refused by the receiver."""
    secret, sent = new_secret(Scheme.V1), content(Form.EVENT)
    off = lines([secret], sent, int(time.time()) + minutes * 60)
    assert verify(secret.text, off, sent.body) == (said and f"Message timestamp {said}")


def private() -> Ed25519Secret:
    secret = new_secret(Scheme.V1A)
    assert isinstance(secret, Ed25519Secret)
    return secret


def test_v1a_is_verified_by_the_public_key() -> None:
    """With what a receiver has: `whpk_`, the headers and the body, and the library `cryptography`."""
    secret, sent = private(), content(Form.EVENT)
    token = signature([new_secret(Scheme.V1), secret], "msg_1", 1_614_265_330, sent.body).split(b" v1a,")[1]
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(secret.public_text.removeprefix("whpk_")))
    key.verify(base64.b64decode(token), b"msg_1.1614265330." + sent.body)
    with pytest.raises(InvalidSignature):
        key.verify(base64.b64decode(token), b"msg_2.1614265330." + sent.body)


BYTES = bytes(range(256))


def raw_bytes() -> Content:
    """Return data that is no text: the libraries of v1 read bodies as text, and cannot be asked."""
    data = b'"%b"' % base64.b64encode(BYTES)
    event = Mint(1000, "x").event(1_795_452_360_123, "a", data, member=DATA_BASE64)
    return Message(f"msg_{CURSOR}", CURSOR, event.body).content(Form.RAW)


@pytest.mark.parametrize(
    "sent", [*map(content, Form), raw_bytes()], ids=[*(each.value for each in Form), "bytes"]
)
def test_v1a_is_verified_by_the_key_set(node: NodeReceiver, sent: Content) -> None:
    """Node's own cryptography reads the key of the JSON Web Key Set, and verifies what came over a socket."""
    secret, other = private(), private()
    jwk, wrong = json.loads(jwks([secret, other]))["keys"]
    head = lines([new_secret(Scheme.V1), secret], sent)
    assert node.verify_jwk(jwk, head, sent.body) == ""
    assert node.verify_jwk(wrong, head, sent.body) == "Error: No matching signature found"
    assert node.verify_jwk(jwk, head, sent.body + b" ") == "Error: No matching signature found"
