"""The source: where a worker takes its requests from, and where it says what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class SourceError(Exception):
    """The worker cannot go on, and trying again will not help; the text is one sentence for its user."""


@dataclass(frozen=True, slots=True)
class Job:
    """
    A request that this worker has.

    Attributes:
        lease: what the source knows it by.
        token: what everybody else does.
        service: who was asked.
        attempt: which time this is.
        data: what the client handed in, as its handler gets it; `Unreadable` if that cannot be.
        seconds: for how long the worker may be silent about it.
    """

    lease: str
    token: str
    service: str
    attempt: int
    data: Any
    seconds: float


class Source(Protocol):
    """Gives jobs, each to be ended by `complete`, `fail` or `release`. Trouble that passes is waited out."""

    async def take(self, most: int) -> list[Job]:
        """
        Wait for jobs, and return one or more, at most so many.

        Raises:
            SourceError: there never will be any.
        """

    async def progress(self, job: Job, value: bytes | None) -> bool:
        """Say that a job is being worked on, and how far it is (JSON); return whether it is still ours."""

    async def complete(self, job: Job, result: bytes) -> bool:
        """Hand in the result (JSON); return whether it was taken: it may be somebody else's job by now."""

    async def fail(self, job: Job, reason: str, detail: str, *, again: bool) -> bool:
        """Say why it could not be done, and whether to try again; return as `complete`."""

    async def release(self, job: Job) -> None:
        """Give a job back unworked."""


class ClosableSource(Source, Protocol):
    """A source that holds connections."""

    async def close(self) -> None:
        """Close them."""
