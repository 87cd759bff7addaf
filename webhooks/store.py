"""
The store of webhooks, as everybody else sees it: the operations, each durable when it returns.

`SqliteStore` keeps everything in a file of the data folder, `PostgresStore` in a database that replicas
share. They promise the same, because the operations are the same (`webhooks.operations`): only who asks the
database differs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from webhooks import operations, ownership, upkeep
from webhooks.asking import Operation
from webhooks.operations import HIGHEST
from webhooks.ownership import Survey
from webhooks.records import (
    Attempt,
    Delivery,
    Due,
    Endpoint,
    Job,
    Message,
    Result,
    Standing,
    Status,
    Task,
)

T = TypeVar("T")


class Store(ABC):
    """
    Endpoints, messages, deliveries, attempts and jobs.

    Every operation is one transaction: it happens as a whole or not at all. What each does is said where it
    is written. All of them raise `StoreUnavailable` when the database cannot be asked; a write may have
    happened all the same.
    """

    @abstractmethod
    async def start(self) -> None:
        """
        Open the store.

        Raises:
            LogDamaged: it cannot be used.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish what is under way and close. Idempotent."""

    @abstractmethod
    async def _write(self, operation: Operation[T]) -> T:
        """Run an operation that changes something."""

    @abstractmethod
    async def _read(self, operation: Operation[T]) -> T:
        """Run an operation that only looks."""

    # --- owners -------------------------------------------------------------------------------------------

    async def join(self, lease_ms: int) -> int:
        """See `ownership.join`."""
        return await self._write(ownership.join(lease_ms))

    async def hold(self, owner: int, wanted: Collection[int], lease_ms: int) -> dict[int, int]:
        """See `ownership.hold`."""
        return await self._write(ownership.hold(owner, wanted, lease_ms))

    async def give(self, owner: int, buckets: Collection[int]) -> None:
        """See `ownership.give`."""
        await self._write(ownership.give(owner, buckets))

    async def leave(self, owner: int) -> None:
        """See `ownership.leave`."""
        await self._write(ownership.leave(owner))

    async def survey(self) -> Survey:
        """See `ownership.survey`."""
        return await self._read(ownership.survey())

    async def oust(self) -> None:
        """See `ownership.oust`."""
        await self._write(ownership.oust())

    # --- dispatch -----------------------------------------------------------------------------------------

    async def log_number(self, epoch: str) -> int:
        """See `ownership.log_number`."""
        return await self._write(ownership.log_number(epoch))

    async def logs(self) -> dict[int, str]:
        """See `ownership.logs`."""
        return await self._read(ownership.logs())

    async def dispatch(
        self,
        owner: int,
        buckets: Collection[int],
        after: int,
        last: int,
        messages: Sequence[Message],
        deliveries: Sequence[tuple[int, int, int]],
    ) -> None:
        """See `operations.dispatch`."""
        await self._write(operations.dispatch(owner, buckets, after, last, messages, deliveries))

    async def enqueue(self, endpoint: int, message: Message) -> int | None:
        """See `operations.enqueue`."""
        return await self._write(operations.enqueue(endpoint, message))

    # --- sending ------------------------------------------------------------------------------------------

    async def earliest(self, buckets: Collection[int]) -> dict[int, int]:
        """See `operations.earliest`."""
        return await self._read(operations.earliest(buckets))

    async def due(self, now: int, rooms: Mapping[int, int]) -> list[Due]:
        """See `operations.due`."""
        return await self._read(operations.due(now, rooms))

    async def find_messages(self, numbers: Collection[int]) -> dict[int, Message]:
        """See `operations.find_messages`."""
        return await self._read(operations.find_messages(numbers))

    async def settle(
        self,
        owner: int,
        results: Sequence[Result],
        health: Mapping[int, bytes] | None = None,
        closed: Mapping[int, Status] | None = None,
    ) -> None:
        """See `operations.settle`."""
        await self._write(operations.settle(owner, results, health or {}, closed or {}))

    # --- endpoints ----------------------------------------------------------------------------------------

    async def add_endpoint(self, settings: bytes, health: bytes = b"") -> Endpoint:
        """See `operations.add_endpoint`."""
        return await self._write(operations.add_endpoint(settings, health))

    async def change_endpoint(
        self, endpoint: int, revision: int, status: Status, settings: bytes, health: bytes
    ) -> Endpoint | None:
        """See `operations.change_endpoint`."""
        return await self._write(operations.change_endpoint(endpoint, revision, status, settings, health))

    async def find_endpoint(self, id: int, *, removed: bool = False) -> Endpoint | None:
        """See `operations.find_endpoint`."""
        return await self._read(operations.find_endpoint(id, removed=removed))

    async def count_endpoints(self) -> int:
        """See `operations.count_endpoints`."""
        return await self._read(operations.count_endpoints())

    async def list_endpoints(self, after: int = 0, limit: int = 100) -> list[Endpoint]:
        """See `operations.list_endpoints`."""
        return await self._read(operations.list_endpoints(after, limit))

    async def list_changed_endpoints(self, revision: int, limit: int = 1000) -> list[Endpoint]:
        """See `operations.list_changed_endpoints`."""
        return await self._read(operations.list_changed_endpoints(revision, limit))

    # --- deliveries and attempts --------------------------------------------------------------------------

    async def find_delivery(self, endpoint: int, message: int) -> Delivery | None:
        """See `operations.find_delivery`."""
        return await self._read(operations.find_delivery(endpoint, message))

    async def list_deliveries(
        self, endpoint: int, standing: Standing | None = None, before: int = HIGHEST, limit: int = 100
    ) -> list[Delivery]:
        """See `operations.list_deliveries`."""
        return await self._read(operations.list_deliveries(endpoint, standing, before, limit))

    async def list_pending(
        self, endpoint: int, after: tuple[int, int] = (-1, -1), limit: int = 100
    ) -> list[Delivery]:
        """See `operations.list_pending`."""
        return await self._read(operations.list_pending(endpoint, after, limit))

    async def backlog(self, endpoint: int, most: int) -> int:
        """See `operations.backlog`."""
        return await self._read(operations.backlog(endpoint, most))

    async def count_pending(self, buckets: Collection[int], most: int) -> int:
        """See `operations.count_pending`."""
        return await self._read(operations.count_pending(buckets, most))

    async def list_attempts(
        self, endpoint: int, message: int, before: int = 2**15 - 1, limit: int = 100
    ) -> list[Attempt]:
        """See `operations.list_attempts`."""
        return await self._read(operations.list_attempts(endpoint, message, before, limit))

    async def repeat(self, endpoint: int, numbers: Collection[int]) -> list[int]:
        """See `operations.repeat`."""
        return await self._write(operations.repeat(endpoint, numbers))

    # --- jobs ---------------------------------------------------------------------------------------------

    async def add_job(self, endpoint: int, task: Task, after: int, last: int) -> Job | None:
        """See `operations.add_job`."""
        return await self._write(operations.add_job(endpoint, task, after, last))

    async def list_jobs(self, endpoint: int, limit: int = 100) -> list[Job]:
        """See `operations.list_jobs`."""
        return await self._read(operations.list_jobs(endpoint, limit))

    async def list_open_jobs(self, buckets: Collection[int], limit: int = 100) -> list[Job]:
        """See `operations.list_open_jobs`."""
        return await self._read(operations.list_open_jobs(buckets, limit))

    async def step_job(self, owner: int, job: Job, limit: int = 1000) -> Job:
        """See `operations.step_job`."""
        return await self._write(operations.step_job(owner, job, limit))

    # --- upkeep -------------------------------------------------------------------------------------------

    async def find_time(self, time: int) -> int:
        """See `upkeep.find_time`."""
        return await self._read(upkeep.find_time(time))

    async def forget(self, owner: int, before: int, limit: int = 500) -> int:
        """See `upkeep.forget`."""
        return await self._write(upkeep.forget(owner, before, limit))

    async def sweep(self, owner: int, buckets: Collection[int], limit: int = 1000) -> bool:
        """See `upkeep.sweep`."""
        return await self._write(upkeep.sweep(owner, buckets, limit))
