"""How a client is told to come back later: a status, or what an EventSource understands."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from fanout.frames import sse_block
from gateway.limits.work import transport_of
from gateway.problems import Problem
from gateway.streams import RETRY_MS, Streams
from gateway.subscription import Transport


class ComeBack(Problem):
    """
    A refusal that is over after a while; each client is given another time, so that they do not come at once.

    Args:
        status: 429 if the limit is one of the client's, 503 if it is one of the replica's.
        detail: which it is.
        seconds: before which it is of no use to come.
        last: whether the connection is closed behind it.
    """

    def __init__(self, status: int, detail: str, seconds: float = 0, *, last: bool = False) -> None:
        headers = {"connection": "close"} if last else {}
        super().__init__(status, detail, retry_after=seconds + Streams.retry_ms() / 1000, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if transport_of(scope) is Transport.SSE:
            await turn_away(send, self.retry_after or 0)
        else:
            await self.send(send)


async def turn_away(send: Send, seconds: float) -> None:
    """
    Have an EventSource wait and come back.

    It takes any status but 200 as the end, for ever (HTML 9.2.3): it is told to wait and cut off.
    """
    body = sse_block(None, None, None, RETRY_MS[1] + round(seconds * 1000))
    headers = [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
