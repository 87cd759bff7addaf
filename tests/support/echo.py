"""
A WebSocket server that sends every message back, made of the gateway's own server and WebSocket protocol
class.

    with EchoProcess() as echo:
        echo.url

Run as a program it is that server: `python -m tests.support.echo PORT plain|deflate`.
"""

from __future__ import annotations

import sys

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fanout.connection import Connection
from fanout.frames import Wire, websocket_deflated, websocket_text
from gateway.app import Gateway
from gateway.doorkeeper import Doorkeeper
from gateway.listening import listen
from gateway.problems import EXCEPTION_HANDLERS
from gateway.protocol import HttpProtocol
from gateway.server import Server
from gateway.settings import Settings
from gateway.subscribe import DETACH, header_map
from gateway.websocket import DetachedWebSocket, accept
from tests.support.clients import BINARY, Frame
from tests.support.server import GatewayProcess

MAX_MESSAGE = 64 * 1024 * 1024


class Echo:
    """
    An inbox that sends back what it takes.

    Args:
        sink: where to.
    """

    def __init__(self, sink: DetachedWebSocket) -> None:
        self._sink = sink
        self._encode = websocket_deflated if sink.deflate else websocket_text

    def received(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self._sink.send(self._encode(message.encode()))
        else:
            self._sink.send(Frame(BINARY, message).encode(mask=False))

    def busy(self) -> bool:
        return False

    def closed(self) -> None:
        pass


class EchoWebSocket(DetachedWebSocket):
    """One whose client gets nothing but echoes."""

    def heartbeat(self, frame: bytes, head: int) -> bool:
        return True


class EchoEndpoint:
    """
    Takes every handshake.

    Args:
        gateway: whose streams the connections belong to.
        deflate: whether to take up an offer to compress.
    """

    def __init__(self, gateway: Gateway, *, deflate: bool) -> None:
        self._streams = gateway.streams
        self._deflate = deflate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head, deflate = accept(header_map(scope), allow_deflate=self._deflate)
        transport, early = scope["extensions"][DETACH].detach()
        sink = EchoWebSocket(self._streams, transport, MAX_MESSAGE, deflate=deflate)
        sink.inbox = Echo(sink)
        sink.take_over()
        self._streams.open(sink, Connection("echo", sink, Wire.WEBSOCKET), (), 0, head)
        if early:
            sink.data_received(early)


class EchoProcess(GatewayProcess):
    """
    The server as a child process.

    Args:
        deflate: whether it compresses if asked to.
    """

    def __init__(self, *, deflate: bool = False) -> None:
        super().__init__("memory:")
        self._deflate = deflate

    @property
    def command(self) -> list[str]:
        how = "deflate" if self._deflate else "plain"
        return [sys.executable, "-m", "tests.support.echo", str(self.port), how]

    @property
    def websocket_url(self) -> str:
        return f"ws://{self.host}:{self.port}/"


async def serve(port: int, *, deflate: bool) -> None:
    gateway = Gateway(Settings(data="memory:", heartbeat_seconds=3600))
    await gateway.start()

    async def ready(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("ready")

    application = Starlette(
        routes=[Route("/", EchoEndpoint(gateway, deflate=deflate)), Route("/readyz", ready)],
        exception_handlers=EXCEPTION_HANDLERS,
    )
    doorkeeper = Doorkeeper(("127.0.0.1", port), 65_536, 10)
    config = uvicorn.Config(
        application,
        port=port,
        http=type("BoundHttpProtocol", (HttpProtocol,), {"doorkeeper": doorkeeper}),
        ws="none",
        lifespan="off",
        log_config=None,
    )
    await Server(config, gateway.drain).serve(listen("127.0.0.1", port, 131_072, 30_000))
    await gateway.stop()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), deflate=sys.argv[2] == "deflate"))
