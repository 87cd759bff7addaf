"""
The gateway mounted in somebody else's application, on plain uvicorn, as a child process.

    with HostProcess(lifespan=True) as host:
        host.address

Run as a program it is that application: `python -m tests.support.host PORT lifespan|bare '{"data": …}'`.
Everything about the server is uvicorn's own: its protocol classes, its signals, its WebSocket implementation.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from gateway.app import create_app
from gateway.settings import Settings
from tests.support.clients import Address
from tests.support.server import GatewayProcess

PREFIX = "/push"


class HostProcess(GatewayProcess):
    """
    An application that mounts the gateway at `PREFIX`.

    Args:
        lifespan: whether it runs the gateway's lifespan in its own; else the first request starts the
        gateway. data: as for `GatewayProcess`. settings: as for `GatewayProcess`.
    """

    def __init__(self, data: Path | str | None = None, *, lifespan: bool, **settings: Any) -> None:
        super().__init__(data, **settings)
        self._lifespan = lifespan

    @property
    def url(self) -> str:
        return super().url + PREFIX

    @property
    def websocket_url(self) -> str:
        return f"ws://{self.host}:{self.port}{PREFIX}/v1/events"

    @property
    def command(self) -> list[str]:
        settings = json.dumps({"data": self.data, **self._settings})
        how = "lifespan" if self._lifespan else "bare"
        return [sys.executable, "-m", "tests.support.host", str(self.port), how, settings]


def address_of(process: GatewayProcess) -> Address:
    """Return where a child's gateway is."""
    return Address(
        process.host, process.port, PREFIX if isinstance(process, HostProcess) else "", process.tls
    )


def host_application(settings: Settings, *, lifespan: bool) -> Starlette:
    """Return an application with a page of its own and the gateway at `PREFIX`."""
    gateway = create_app(settings)

    @contextlib.asynccontextmanager
    async def with_gateway(_app: Starlette) -> AsyncIterator[None]:
        async with gateway.router.lifespan_context(gateway):
            yield

    async def home(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("the host's own page")

    return Starlette(
        routes=[Route("/", home), Mount(PREFIX, gateway)], lifespan=with_gateway if lifespan else None
    )


def main(port: str, how: str, settings: str) -> None:
    application = host_application(Settings(**json.loads(settings)), lifespan=how == "lifespan")
    uvicorn.run(application, host="127.0.0.1", port=int(port), ws="websockets-sansio", log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
