"""`sluice token`: make a token without asking anybody, for operators and for trying out."""

from __future__ import annotations

import os
import time
from typing import Any, Final

import click
import jwt

from fanout.errors import ClaimError
from fanout.grants import Grants
from gateway.auth.keyset import BadKey, KeySet
from gateway.auth.tokens import TokenRefused, Tokens
from gateway.cli.claims import claim_flags, claims_of
from gateway.cli.options import read_time
from gateway.setting import SettingsError

JWT_KEY: Final = "SLUICE_JWT_KEY"


@click.command()
@claim_flags
@click.option(
    "--for",
    "seconds",
    callback=read_time,
    default="1h",
    show_default=True,
    metavar="TIME",
    help="How long it is good.",
)
@click.option("--audience", "aud", metavar="TEXT", help="The gateway's setting `jwt_audience`.")
@click.option("--issuer", "iss", metavar="TEXT", help="The gateway's setting `jwt_issuer`.")
@click.option("--id", "jti", metavar="NAME", help="Its own name, by which it can be revoked.")
def token(*, seconds: float, **claims: Any) -> int:
    """
    Make a token (a JSON Web Token, signed with HS256) and print it.

    The secret is that of the gateway, and is read from the variable SLUICE_JWT_KEY alone, as everybody on the
    machine can see what is on a command line. No gateway is asked, and what one would refuse is not made.
    Nothing is granted but what is named:

    \b
        export SLUICE_JWT_KEY=...
        SLUICE_TOKEN=$(sluice token --subject ada --subscribe 'user.ada.#') sluice tail 'user.ada.#'
    """  # noqa: D301  # click keeps the lines behind a backspace character
    click.echo(make_token(claims_of(claims), seconds, os.environ.get(JWT_KEY, ""), time.time()))
    return 0


def make_token(claims: dict[str, Any], seconds: float, secret: str, now: float) -> str:
    """
    Return a token that a gateway with that secret takes.

    Args:
        claims: without times.
        seconds: how long it is good.
        secret: shared with the gateway.
        now: the time it is, in seconds since the Unix epoch.

    Raises:
        SettingsError: the secret is missing, or too short.
        UsageError: the gateway would refuse the token.
    """
    if not secret:
        raise SettingsError(JWT_KEY, "the secret by which the gateway verifies tokens is missing")
    try:
        keys = KeySet.shared(secret)
    except BadKey as error:
        raise SettingsError(JWT_KEY, str(error)) from None
    begins = int(now)
    claims = {**claims, "iat": begins, "exp": begins + max(1, round(seconds))}
    try:
        Grants.of(claims)
        made = jwt.encode(claims, secret.encode("utf-8", "surrogateescape"), "HS256")
        Tokens(lambda: keys, audience=claims.get("aud"), issuer=claims.get("iss")).verify(made, now)
    except (ClaimError, TokenRefused) as error:
        raise click.UsageError(f"a gateway would refuse this token: {error}") from None
    return made
