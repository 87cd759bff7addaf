"""Durable subscriptions: the cursor each consumer acknowledged last. (In memory until the durable one lands.)"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Consumers(Protocol):
    """Remembers cursors."""

    async def remember(self, name: str, cursor: str) -> None:
        """Remember."""

    async def recall(self, name: str) -> str | None:
        """Recall."""


class SqliteConsumers:
    """Stub."""

    def __init__(self, path: Path | None) -> None:
        self._known: dict[str, str] = {}

    async def start(self) -> None:
        """Open."""

    async def remember(self, name: str, cursor: str) -> None:
        """Remember."""
        self._known[name] = cursor

    async def recall(self, name: str) -> str | None:
        """Recall."""
        return self._known.get(name)

    async def close(self) -> None:
        """Close."""
