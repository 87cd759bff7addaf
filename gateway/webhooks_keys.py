"""
`/.well-known/jwks.json`: the public keys that webhooks are signed with, for receivers to verify by.

What is known of an endpoint is remembered, and only those that were changed since are read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from starlette.responses import Response

from gateway.mint import now_ms
from gateway.resources import Call
from gateway.webhooks_found import read
from webhooks.keys import Key, jwks
from webhooks.records import Endpoint, Status
from webhooks.signature import Ed25519Secret, Secret
from webhooks.store import Store

AGE_SECONDS: Final = 60
"""How long others may keep the answer: so long after a rotation some do not know the new key."""
_BATCH: Final = 500


class KeySet:
    """
    The set of keys.

    Args:
        store: where the endpoints are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: dict[int, list[Key]] = {}
        self._revision = 0
        self._reading = asyncio.Lock()

    async def show(self, call: Call) -> Response:
        """Return the JSON Web Key Set of all endpoints that sign by v1a."""
        call.query()
        async with self._reading:
            await self._read()
        headers = {"cache-control": f"public, max-age={AGE_SECONDS}"}
        return Response(
            jwks(self._live(now_ms())) + b"\n", media_type="application/jwk-set+json", headers=headers
        )

    async def _read(self) -> None:
        """Take in what was changed."""
        while rows := await self._store.list_changed_endpoints(self._revision, _BATCH):
            for row in rows:
                self._keys[row.id] = _private(row)
                if not self._keys[row.id]:
                    del self._keys[row.id]
            self._revision = rows[-1].revision
            await asyncio.sleep(0)  # a thousand endpoints take a while to read

    def _live(self, now: int) -> Iterator[Secret]:
        return (key.secret for keys in self._keys.values() for key in keys if key.is_live(now))


def _private(row: Endpoint) -> list[Key]:
    """Return the keys of an endpoint that have a public half."""
    if row.status is Status.REMOVED:
        return []
    return [key for key in read(row).keys.all if isinstance(key.secret, Ed25519Secret)]
