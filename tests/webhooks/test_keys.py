"""Keys: secrets follow each other without a pause, few are live at a time, JWKS has the public ones."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from webhooks.errors import Invalid
from webhooks.keys import MAX_LIVE, MAX_OVERLAP, OVERLAP, Keys, jwks, key_id
from webhooks.signature import Ed25519Secret, HmacSecret, Scheme, new_secret

NOW = 1_795_452_360_123
HOUR = 3_600_000
BOTH = (Scheme.V1, Scheme.V1A)


def started(*schemes: Scheme) -> Keys:
    return Keys().completed(schemes or (Scheme.V1,), NOW)


def texts(keys: Keys, now: int, schemes: tuple[Scheme, ...] = BOTH) -> list[str]:
    return [secret.text for secret in keys.secrets(schemes, now)]


def test_an_endpoint_begins_with_a_key_of_every_scheme() -> None:
    """Both schemes, one, or the second added later, which leaves the first alone."""
    assert [secret.scheme for secret in started(*BOTH).secrets(BOTH, NOW)] == [*BOTH]
    one = started(Scheme.V1)
    both = one.completed(BOTH, NOW + HOUR)
    assert both.current(Scheme.V1) is one.current(Scheme.V1)
    assert both.current(Scheme.V1A) is not None
    assert both.completed(BOTH, NOW) is both


def test_only_what_was_asked_for_signs() -> None:
    """A key of a scheme that the endpoint no longer has is kept and does not sign."""
    keys = started(*BOTH)
    assert [secret.scheme for secret in keys.secrets([Scheme.V1], NOW)] == [Scheme.V1]


def test_the_old_secret_signs_for_a_while() -> None:
    """During the overlap both sign, the new one first; behind it only the new one."""
    old = started()
    new = new_secret(Scheme.V1)
    keys = old.rotated(new, NOW)
    end = NOW + OVERLAP * 1000
    assert texts(keys, NOW) == texts(keys, end - 1) == [new.text, *texts(old, NOW)]
    assert texts(keys, end) == [new.text]


def test_a_leaked_secret_ends_at_once() -> None:
    """Without an overlap no secret of the scheme but the new one signs, whatever was promised to others."""
    keys = started(*BOTH).rotated(new_secret(Scheme.V1), NOW).rotated(new_secret(Scheme.V1), NOW)
    new = new_secret(Scheme.V1)
    keys = keys.rotated(new, NOW, overlap=0)
    assert texts(keys, NOW, (Scheme.V1,)) == [new.text]
    assert len(texts(keys, NOW, (Scheme.V1A,))) == 1


def test_a_shorter_overlap_holds_for_all_before() -> None:
    """A secret never lives longer because another one was replaced."""
    keys = started().rotated(new_secret(Scheme.V1), NOW, overlap=7200)
    keys = keys.rotated(new_secret(Scheme.V1), NOW, overlap=3600)
    assert len(texts(keys, NOW + HOUR)) == 1
    keys = keys.rotated(new_secret(Scheme.V1), NOW, overlap=7200)
    assert len(texts(keys, NOW + HOUR)) == 2


def test_the_number_of_live_secrets_is_bounded() -> None:
    """The tenth is the last; one more is refused until one has expired, or all do."""
    keys = started()
    for _ in range(MAX_LIVE - 1):
        keys = keys.rotated(new_secret(Scheme.V1), NOW)
    assert len(texts(keys, NOW)) == MAX_LIVE
    with pytest.raises(Invalid, match="10 secrets are live: wait until the oldest expires"):
        keys.rotated(new_secret(Scheme.V1), NOW)
    keys.rotated(new_secret(Scheme.V1A), NOW)
    assert len(keys.rotated(new_secret(Scheme.V1), NOW + OVERLAP * 1000).all) == 2
    assert len(keys.rotated(new_secret(Scheme.V1), NOW, overlap=0).all) == 1


@pytest.mark.parametrize("overlap", [-1, -0.001, MAX_OVERLAP + 1, float("nan"), float("inf")])
def test_absurd_overlaps_are_refused(overlap: float) -> None:
    with pytest.raises(Invalid, match="the overlap must be 0 to 604800 seconds") as caught:
        started().rotated(new_secret(Scheme.V1), NOW, overlap)
    assert caught.value.pointer == "/overlap"


def test_a_secret_is_not_replaced_by_itself() -> None:
    """A secret that is there already is refused: nothing would have been rotated."""
    keys = started()
    current = keys.current(Scheme.V1)
    assert current is not None
    with pytest.raises(Invalid, match="one that the endpoint has already"):
        keys.rotated(HmacSecret(base64.b64decode(current.secret.text[6:])), NOW)


class Rotation(RuleBasedStateMachine):
    """Keys beside a list of secrets and the moments at which they end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.keys = started(*BOTH)
        self.model: list[tuple[Scheme, str, int | None]] = [
            (key.secret.scheme, key.secret.text, None) for key in self.keys.all
        ]

    def live(self, scheme: Scheme) -> list[str]:
        return [text for kind, text, end in self.model if kind is scheme and (end is None or self.now < end)]

    @rule(hours=st.integers(0, 50))
    def time_passes(self, hours: int) -> None:
        self.now += hours * HOUR

    @precondition(lambda self: all(len(self.live(scheme)) < MAX_LIVE for scheme in BOTH))
    @rule(scheme=st.sampled_from(BOTH), hours=st.integers(0, MAX_OVERLAP // 3600))
    def rotate(self, scheme: Scheme, hours: int) -> None:
        secret, last = new_secret(scheme), self.now + hours * HOUR
        self.keys = self.keys.rotated(secret, self.now, hours * 3600)
        self.model = [
            (kind, text, (last if end is None else min(end, last)) if kind is scheme else end)
            for kind, text, end in self.model
        ]
        self.model.insert(0, (scheme, secret.text, None))

    @invariant()
    def what_signs_is_what_lives(self) -> None:
        for scheme in BOTH:
            assert texts(self.keys, self.now, (scheme,)) == self.live(scheme) != []


TestRotation = Rotation.TestCase


def test_the_set_of_public_keys() -> None:
    """The set has each public key once, and verifies what the private one signed."""
    secret = new_secret(Scheme.V1A)
    assert isinstance(secret, Ed25519Secret)
    [jwk] = json.loads(jwks([secret, new_secret(Scheme.V1), secret]))["keys"]
    assert (jwk["kty"], jwk["crv"], jwk["alg"], jwk["use"]) == ("OKP", "Ed25519", "EdDSA", "sig")
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(jwk["x"] + "="))
    public.verify(base64.b64decode(secret.token(b"a.1.", b"body")[4:]), b"a.1.body")
    assert json.loads(jwks([])) == {"keys": []}


def test_the_thumbprint_of_the_rfc() -> None:
    """RFC 8037, appendices A.1 to A.3: the example's key has the example's thumbprint."""
    seed = base64.urlsafe_b64decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    secret = Ed25519Secret(seed)
    assert base64.urlsafe_b64encode(secret.public) == b"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    assert key_id(secret.public) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@given(st.binary(min_size=32, max_size=32))
def test_every_key_has_an_id_of_its_own(seed: bytes) -> None:
    public = Ed25519Secret(seed).public
    assert key_id(public) == json.loads(jwks([Ed25519Secret(seed)]))["keys"][0]["kid"]
