"""Events for tests of the log, and what such tests do with one again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fanout.event import Event, tag_of
from gateway.log import Deliver
from gateway.sqlite_log import SqliteLog

UNBOUNDED: dict[str, Any] = {
    "retention_seconds": 0,
    "retention_bytes": 0,
    "retention_events": 0,
    "tail_bytes": 1 << 20,
    "trim_seconds": 3600.0,  # retention runs when a test says so
}

DEADLINE = 10.0
"""Seconds after which waiting for a condition has failed; far above what any takes."""


def event(name: str = "e", *, size: int = 0, time: int = 1_000, **fields: Any) -> Event:
    """Return an event whose body names it, padded to at least `size` bytes."""
    body = b'"topic":"orders.1","id":"%s"' % name.encode()
    if size > len(body):
        body += b',"data":"%s"' % (b"x" * (size - len(body) - 10))
    return Event("orders.1", body, time, tag_of(name), **fields)


def events(*names: str, **fields: Any) -> list[Event]:
    """Return an event for each name."""
    return [event(name, **fields) for name in names]


def facts(event: Event) -> tuple[object, ...]:
    """Return everything that the log has to keep of an event."""
    return (
        event.position,
        event.topic,
        event.body,
        event.time,
        event.tag,
        event.key,
        event.expires,
        event.given_id,
    )


@asynccontextmanager
async def opened(
    folder: Path | None, deliver: Deliver = lambda _events: None, **settings: Any
) -> AsyncIterator[SqliteLog]:
    """Start a log, without retention unless `settings` say otherwise, and close it at the end."""
    log = SqliteLog(folder, **(UNBOUNDED | settings))
    await log.start(deliver)
    try:
        yield log
    finally:
        await log.close()


async def everything(log: SqliteLog, after: int = 0, max_bytes: int = 1 << 16) -> list[Event]:
    """Read the log to its end, as a client that catches up does."""
    found: list[Event] = []
    while batch := await log.read(after, max_bytes):
        found += batch
        after = batch[-1].position
    return found


async def trimmed(log: SqliteLog) -> None:
    """Let retention run until it finds nothing more to delete."""
    log._tick()
    await eventually(lambda: not log._trim_due and not log._turns._working, "retention comes to an end")


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE
    while not condition():
        assert loop.time() < deadline, f"{what}: not within {DEADLINE:.0f} s"
        await asyncio.sleep(0.002)
