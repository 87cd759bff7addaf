"""What requests are bounded by, from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.requests.changes import SERVICE

if TYPE_CHECKING:
    from gateway.settings import Settings


@dataclass(frozen=True, slots=True)
class Options:
    """
    Bounds of requests.

    Attributes:
        services: names of those that can be asked.
        max_bytes: of what a client hands in, as JSON.
        max_result_bytes: of a result or a progress, as JSON.
        max_unfinished: requests of one service.
        ttl: seconds in which one has to be done, unless its client says otherwise.
        keep: seconds for which one is known after it was finished.
        tries: how often one may fail before nobody tries it any more.
        backoff: seconds before the second try; doubled for each that follows, up to `MAX_BACKOFF`.
        lease: seconds for which a worker may be silent.
    """

    services: tuple[str, ...]
    max_bytes: int
    max_result_bytes: int
    max_unfinished: int
    ttl: float
    keep: float
    tries: int
    backoff: float
    lease: float

    @classmethod
    def of(cls, settings: Settings) -> Options:
        """Return what the settings say."""
        return cls(
            services_of(settings.services),
            settings.request_bytes,
            settings.request_result_bytes,
            settings.request_queue,
            settings.request_ttl,
            settings.request_keep,
            settings.request_tries,
            settings.request_backoff,
            settings.request_lease,
        )


def services_of(text: str) -> tuple[str, ...]:
    """
    Read a list of services, `reports,mail`.

    Raises:
        ValueError: one has a name that cannot be.
    """
    names = tuple(dict.fromkeys(each.strip() for each in text.split(",") if each.strip()))
    for name in names:
        if not SERVICE.fullmatch(name):
            raise ValueError(f"{name[:70]!a} is no name of a service: 1 to 64 letters, digits, `_` and `-`")
    return names
