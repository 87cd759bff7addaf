"""What a handler sees: the request, and the one exception that means something to the worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class Refused(Exception):
    """A handler raises it for a request that will never succeed: it fails at once, with this text."""


class Request:
    """
    A request, as its handler sees it.

    Args:
        token: names it everywhere.
        service: who was asked.
        attempt: which time this is, from 1; a handler may be run again for what it did already.
        data: what the client handed in, decoded from JSON; bytes, if it was neither JSON nor text.
        report: takes a progress as JSON; may be called from any thread.
    """

    __slots__ = ("_report", "attempt", "data", "service", "token")

    def __init__(
        self, token: str, service: str, attempt: int, data: Any, report: Callable[[bytes], None]
    ) -> None:
        self.token = token
        self.service = service
        self.attempt = attempt
        self.data = data
        self._report = report

    def progress(self, value: Any) -> None:
        """
        Tell the client how far it is: anything that JSON can say. Returns at once; of several values in quick
        succession the client gets the last.

        Raises:
            TypeError: JSON cannot say it.
        """
        self._report(msgspec.json.encode(value))
