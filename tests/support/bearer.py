"""Tokens that are good now, and asking a gateway with them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Final

from tests.support.clients import Address, Response, fetch
from tests.support.tokens import SECRET, token

ENVIRON: Final = {"SLUICE_JWT_KEY": SECRET}
"""With that a gateway asks for these tokens."""
JSON: Final = ("Content-Type", "application/json")


def fresh(seconds: float = 300, **claims: Any) -> str:
    """Return a token that is good for so long."""
    now = time.time()
    return token({"iat": int(now), "exp": now + seconds, **claims})


def bearer(text: str) -> tuple[str, str]:
    """Return the header that carries a token."""
    return ("Authorization", f"Bearer {text}")


ADMIN: Final = fresh(3600, sub="operator", admin=True)


async def call(
    address: Address,
    method: str,
    path: str,
    text: str | None = ADMIN,
    body: object = None,
    headers: Sequence[tuple[str, str]] = (),
) -> Response:
    """Make one request with a token."""
    return await fetch(
        address,
        path,
        headers=[*([] if text is None else [bearer(text)]), *([] if body is None else [JSON]), *headers],
        method=method,
        body=None if body is None else json.dumps(body).encode(),
    )


async def revoke(address: Address, **what: Any) -> str:
    """Revoke something; return the name of the revocation."""
    answer = await call(address, "POST", "/v1/revocations", body=what)
    assert answer.status == 201, answer
    name: str = answer.json["id"]
    return name
