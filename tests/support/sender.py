"""A sender as tests open it, and proof that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import CoroutineType
from typing import Any

import webhooks
from tests.support.receiver import FixedNames, Script, receiver, sockets_to
from webhooks.attempt import Fault, Outcome
from webhooks.flight import Flight
from webhooks.guard import Guard, parse_networks
from webhooks.link import Link
from webhooks.sender import MAX_EXCERPT, Sender
from webhooks.target import parse_target
from webhooks.trust import client_context

LOOPBACK = Guard(parse_networks("127.0.0.0/8,::1"))
HEADERS = b"webhook-id: msg_1\r\ncontent-type: application/json\r\n"
BODY = b'{"a":1}'
TRUST = client_context()
SHORT = 0.5
"""A deadline that is to pass, in seconds."""

_FOLDER = str(Path(webhooks.__file__).parent)


@asynccontextmanager
async def open_sender(
    guard: Guard = LOOPBACK, names: Any = None, trust: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[Sender]:
    """Yield a sender; when it is left it leaves no task behind."""
    async with Sender(guard, names or FixedNames(), trust or TRUST, **options) as sender:
        yield sender
    assert not tasks_inside()


def tasks_inside() -> list[asyncio.Task[Any]]:
    """Return the tasks that run code of the package."""
    found = []
    for task in asyncio.all_tasks():
        coroutine = task.get_coro()
        if isinstance(coroutine, CoroutineType) and coroutine.cr_code.co_filename.startswith(_FOLDER):
            found.append(task)
    return found


async def outcome_of(script: Script, seconds: float = 15.0) -> Outcome:
    """Return what comes of an attempt at a receiver with this script; its socket is closed behind it."""
    async with receiver(script) as found:
        async with open_sender(timeout=seconds) as sender:
            outcome = await sender.send(parse_target(found.url), HEADERS, BODY)
        assert sockets_to(found.port) == 0
    return outcome


class FakeTransport(asyncio.Transport):
    """A connection of a link that has no socket: what is written is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


class Heard:
    """
    The owner of one link, which hears what becomes of its flight.

    Attributes:
        said: what was said about it, in short; at most one thing may be.
    """

    def __init__(self) -> None:
        self.said: list[tuple[int | Fault, bool, str]] = []
        self.transport = FakeTransport()
        self.link = Link("http://receiver.test:80", self, MAX_EXCERPT, lambda: 0.0)
        self.link.connection_made(self.transport)

    def ask(self) -> None:
        """Have the link send a request."""
        self.link.ask(Flight(parse_target("http://receiver.test/"), b"", BODY, frozenset(), print, 0.0))

    def hear(self, data: bytes) -> None:
        """Have the link receive bytes, as long as it would."""
        if not self.transport.aborted:
            self.link.data_received(data)

    def answered(self, link: Link, *, reusable: bool) -> None:
        self.said.append((link.status, reusable, repr((link.excerpt, link.retry_after))))
        link.flight = None
        if not reusable:
            link.abort()

    def failed(self, link: Link, fault: Fault, detail: str) -> None:
        self.said.append((fault, False, detail))
        link.abort()

    def closed(self, link: Link) -> None:
        pass
