"""Requests for tests: asking a real gateway, and changes as events without one."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from fanout.event import Event
from gateway.mint import Mint
from gateway.requests.changes import TOPICS, TYPE, Change
from tests.support.clients import Address, Response, fetch

JSON = [("Content-Type", "application/json")]


class Api:
    """
    What clients and workers ask of a gateway.

    Args:
        address: where it is.
    """

    def __init__(self, address: Address) -> None:
        self.address = address

    async def submit(self, service: str, data: Any, **headers: str) -> str:
        """Hand in a request; return its token."""
        answer = await self.post(f"/v1/requests/{service}", data, **headers)
        assert answer.status == 202, answer
        token: str = answer.json["token"]
        return token

    async def post(self, path: str, data: Any = None, **headers: str) -> Response:
        """Post JSON, bytes as they are, or an empty body for None."""
        given = [(name.replace("_", "-"), value) for name, value in headers.items()]
        if data is None:
            data = b""
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        return await fetch(self.address, path, (), [*JSON, *given], method="POST", body=body)

    async def show(self, token: str, wait: float = 0) -> Any:
        """Return where a request stands; with `wait` when it is finished, or that is over."""
        query = [("wait", f"{wait:g}")] if wait else []
        answer = await fetch(self.address, f"/v1/requests/{token}", query)
        assert answer.status == 200, answer
        return answer.json

    async def lease(self, service: str, most: int = 1, wait: float = 10, worker: str = "test") -> list[Any]:
        """Lease requests."""
        wanted = {"worker": worker, "wait": wait, "max": most}
        answer = await self.post(f"/v1/services/{service}:lease", wanted)
        assert answer.status == 200, answer
        leases: list[Any] = answer.json["leases"]
        return leases

    async def end(self, lease: Any, verb: str, members: Any = None) -> Response:
        """Say something of a lease."""
        return await self.post(f"/v1/leases/{lease['lease']}:{verb}", members)


class Changes:
    """A log of changes: gives each the next position, and a time that increases by a second."""

    def __init__(self) -> None:
        self._mint = Mint(1 << 20, "test", own=True)
        self.now = 1_800_000_000_000
        self.position = 0

    def event(self, token: str, change: Change, key: str | None = None) -> Event:
        """Return the next event."""
        self.now += 1000
        self.position += 1
        topic = f"{TOPICS}{token}"
        event = self._mint.event(self.now, topic, msgspec.json.encode(change), key, TYPE, token)
        event.position = self.position
        return event
