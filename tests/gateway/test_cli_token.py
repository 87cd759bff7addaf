"""`sluice token`: what it makes is what a gateway takes, and what a gateway refuses it does not make."""

from __future__ import annotations

import os
import time
from typing import Any

import jwt
import pytest

from gateway.__main__ import main
from gateway.auth.keyset import KeySet
from gateway.auth.tokens import Token, Tokens
from tests.support.command import run_sluice
from tests.support.tokens import SECRET


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the commands of these tests a secret, and nothing else of a developer's."""
    for name in [name for name in os.environ if name.startswith("SLUICE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLUICE_JWT_KEY", SECRET)


def claims_of(text: str) -> dict[str, Any]:
    """Return the claims of a token that is signed well."""
    claims: dict[str, Any] = jwt.decode(text, SECRET, ["HS256"], options={"verify_aud": False})
    return claims


def taken(text: str, secret: str = SECRET, **expected: Any) -> Token:
    """Return what a gateway makes of a token."""
    keys = KeySet.shared(secret)
    return Tokens(lambda: keys, **expected).verify(text, time.time())


def test_everything_that_can_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Each flag is a claim, and what is printed is the token alone."""
    before = int(time.time())
    flags = (
        *("--subject", "ada", "--subscribe", "user.ada.#", "--subscribe", "news", "--publish", "chat.*"),
        *("--requests", "reports", "--requests", "mail", "--work", "*", "--webhooks", "--history", "1h"),
        *("--admin", "--for", "90s", "--audience", "push", "--issuer", "us", "--id", "one"),
    )
    assert main(["token", *flags]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    text = said.out.removesuffix("\n")
    claims = claims_of(text)
    issued = claims.pop("iat")
    assert before <= issued <= time.time()
    assert claims == {
        "sub": "ada",
        "subscribe": ["user.ada.#", "news"],
        "publish": ["chat.*"],
        "requests": ["reports", "mail"],
        "work": ["*"],
        "webhooks": True,
        "history": 3600,
        "admin": True,
        "aud": "push",
        "iss": "us",
        "jti": "one",
        "exp": issued + 90,
    }
    known = taken(text, audience="push", issuer="us")
    assert (known.subject, known.id) == ("ada", "one")
    assert known.grants.subscribing("user.ada.x") == "user.ada.x"
    assert known.grants.may_work("any")


def test_nothing_is_granted_that_is_not_named(capsys: pytest.CaptureFixture[str]) -> None:
    """It is good for an hour."""
    assert main(["token"]) == 0
    claims = claims_of(capsys.readouterr().out.strip())
    assert set(claims) == {"iat", "exp"}
    assert claims["exp"] - claims["iat"] == 3600


def test_a_token_of_a_tenant_that_sees_no_history(capsys: pytest.CaptureFixture[str]) -> None:
    """No history at all is not the same as all of it."""
    assert main(["token", "--tenant", "acme", "--subscribe", "#", "--history", "0"]) == 0
    text = capsys.readouterr().out.strip()
    assert claims_of(text)["history"] == 0
    grants = taken(text).grants
    assert (grants.tenant, grants.history) == ("acme", 0)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--tenant", "acme", "--admin"], "the claim admin is wrong"),
        (["--tenant", "acme", "--work", "*"], "the claim work is wrong"),
        (["--tenant", "a.b"], "the claim tenant is wrong"),
        (["--publish", "a", "--publish", "a..b"], "the claim publish[1] is wrong"),
        (["--subscribe", ""], "the claim subscribe[0] is wrong"),
        (["--requests", "a b"], "the claim requests[0] is wrong"),
        (["--history", "100000d"], "the claim history is wrong"),
        (["--subject", ""], "its sub is no name"),
        (["--subject", "a\nb"], "its sub is no name"),
        (["--id", "x" * 256], "its jti is no name"),
        ([flag for number in range(100) for flag in ("--publish", f"{number}" * 100)], "too long"),
        (["--for", "0"], "not a time over 0"),
        (["--history", "soon"], "not a time over 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:30],
)
def test_what_a_gateway_would_refuse_is_not_made(
    flags: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a usage error that says which claim."""
    assert main(["token", *flags]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert why in said.err


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        (None, "the secret by which the gateway verifies tokens is missing"),
        ("", "the secret by which the gateway verifies tokens is missing"),
        ("hush" * 7 + "hus", "a shared key has at least 32 bytes, this one 31"),
    ],
    ids=["none", "empty", "short"],
)
def test_the_secret_has_to_be_there(
    secret: str | None, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one sentence, in which it is not repeated."""
    monkeypatch.delenv("SLUICE_JWT_KEY")
    if secret is not None:
        monkeypatch.setenv("SLUICE_JWT_KEY", secret)
    assert main(["token", "--subject", "ada"]) == 2
    assert capsys.readouterr() == ("", f"sluice: SLUICE_JWT_KEY: {why}\n")


def test_the_secret_is_on_no_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """No flag takes it."""
    assert main(["token", "--help"]) == 0
    assert "--key" not in capsys.readouterr().out
    assert main(["token", "--jwt-key", SECRET]) == 2
    assert "No such option" in capsys.readouterr().err


@pytest.mark.parametrize("secret", ["é" * 16, b"\xff\xfe".decode("utf-8", "surrogateescape") * 16])
def test_a_secret_of_any_bytes(secret: str) -> None:
    """The real command takes the same bytes from its environment as the gateway does."""
    done = run_sluice("token", "--subject", "ada", environ={"SLUICE_JWT_KEY": secret})
    assert (done.returncode, done.stderr) == (0, "")
    assert taken(done.stdout.strip(), secret).subject == "ada"
