"""What is kept in the PostgreSQL store, by the settings: the parts of its schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.auth import tables
from gateway.postgres.consumers import PART
from webhooks import postgres_store

if TYPE_CHECKING:
    from gateway.postgres.schema import Part
    from gateway.settings import Settings


def parts_of(settings: Settings) -> list[Part]:
    """Return the parts that a gateway with these settings has in its store."""
    parts = [PART]
    if settings.asks:
        parts.append(tables.PART)
    if settings.webhooks:
        parts.append(postgres_store.PART)
    return parts
