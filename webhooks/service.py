"""Webhooks, all of it, as a gateway has it: what reads the log, what sends, what others need of the store."""

from __future__ import annotations

from webhooks.description import Description
from webhooks.guard import Guard
from webhooks.keys import Keys
from webhooks.records import Endpoint
from webhooks.store import Store


class Webhooks:
    """
    Everything that a gateway needs of webhooks, one per process.

    Attributes:
        store: endpoints, deliveries and jobs are read and written through it.
        guard: says where may be sent to; `guard.admit` is what `webhooks.description` asks.
    """

    def __init__(self, store: Store, guard: Guard) -> None:
        self.store = store
        self.guard = guard

    async def start(self) -> None:
        """
        Open the store and begin to dispatch and to send.

        Raises:
            LogError: the store cannot be used.
        """

    async def close(self) -> None:
        """
        Stop sending, write down what came of it, and close the store. Idempotent.

        What is under way gets a moment to end; what has not ended then is given up without an outcome, and is
        sent again by whoever comes next.
        """

    @property
    def ready(self) -> str | None:
        """Why webhooks do not work at the moment, in a sentence; None if they do. Publishing goes on."""
        return None

    def look(self) -> None:
        """
        Something in the store was changed by somebody else: look at it at once, not in the next turn.

        To be called after `change_endpoint`, `repeat`, `add_job` and `enqueue`.
        """

    async def add(self, description: Description, keys: Keys) -> Endpoint:
        """
        Add an endpoint, which gets every matching event accepted after this returns, and none that was
        accepted before it was called.

        Args:
            description: as its owner wants it.
            keys: with one for every scheme of the description.

        Raises:
            StoreUnavailable: it could not be stored, or it is not known whether it was.
        """
        raise NotImplementedError
