"""
Asking the workers: each has a private door, a Unix socket that serves what operators see of it alone.

A worker asks all of them, itself included, and at the same time. One that does not answer within a second is
missing: it has fallen, or hangs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.workers.charge import LEAVING, door_name

PATIENCE: Final = 1.0
"""Seconds in which a worker answers, or is missing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker answered."""

    worker: int
    status: int
    body: bytes


class Siblings:
    """
    The workers of this gateway.

    Args:
        folder: where their doors are.
        number: how many there are.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._number = number

    async def ask(self, target: str) -> list[Answer]:
        """Ask each worker for a resource; return the answers of those that are there, in their order."""
        return await self._ask([(index, door_name(index)) for index in range(self._number)], target)

    async def ask_leaving(self, target: str) -> list[Answer]:
        """Ask those for a resource whose place another has taken, and who still have connections."""
        return await self._ask([(index, door_name(index) + LEAVING) for index in range(self._number)], target)

    def missing(self, answers: Sequence[Answer]) -> list[int]:
        """Return which workers are not among those that answered."""
        there = {answer.worker for answer in answers}
        return [index for index in range(self._number) if index not in there]

    async def _ask(self, doors: Sequence[tuple[int, str]], target: str) -> list[Answer]:
        asked = (_get(index, self._folder / name, target) for index, name in doors)
        return [answer for answer in await asyncio.gather(*asked) if answer is not None]


async def _get(worker: int, door: Path, target: str) -> Answer | None:
    """Return a worker's answer, if it gives one. HTTP/1.0 ends it with the connection (RFC 1945)."""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_unix_connection(door)
            try:
                writer.write(b"GET %b HTTP/1.0\r\n\r\n" % target.encode())
                head, separator, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    return Answer(worker, int(head.split(b" ", 2)[1]), body) if separator else None
