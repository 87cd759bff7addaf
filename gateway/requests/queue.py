"""The queue of the embedded gateway: which request of a service a worker gets next. Pure."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from gateway.requests.book import Book, Request


class Queue:
    """
    Requests that wait for a worker, by service, in the order in which they became ready.

    What is taken out is looked up in the book, so one that was cancelled meanwhile is just passed over.

    Args:
        book: where they stand.
    """

    def __init__(self, book: Book) -> None:
        self.taken: set[str] = set()  # tokens that a worker has
        self._book = book
        self._ready: dict[str, deque[str]] = {}
        self._later: list[tuple[int, str]] = []  # a heap of those that are not due
        self._waiting: set[str] = set()  # tokens in either

    def add(self, request: Request) -> None:
        """Let a request wait, if it does not already."""
        if request.token in self._waiting or request.token in self.taken or request.state.final:
            return
        self._waiting.add(request.token)
        if request.due:
            heappush(self._later, (request.due, request.token))
        else:
            self._ready.setdefault(request.service, deque()).append(request.token)

    def ripen(self, now: int) -> set[str]:
        """Make those ready that are due; return their services."""
        services = set()
        while self._later and self._later[0][0] <= now:
            _, token = heappop(self._later)
            request = self._book.get(token)
            if request is None or request.state.final:
                self._waiting.discard(token)
                continue
            self._ready.setdefault(request.service, deque()).append(token)
            services.add(request.service)
        return services

    def take(self, service: str, most: int, now: int) -> list[Request]:
        """Take out up to so many requests of a service that nobody has."""
        ready = self._ready.get(service)
        found: list[Request] = []
        while ready and len(found) < most:
            token = ready.popleft()
            self._waiting.discard(token)
            request = self._book.get(token)
            if request is not None and not request.state.final and request.expires > now:
                self.taken.add(token)
                found.append(request)
        return found

    def forget(self, token: str) -> None:
        """Let a request not wait any more."""
        request = self._book.get(token)
        self.taken.discard(token)
        if token in self._waiting:
            self._waiting.discard(token)
            ready = self._ready.get("" if request is None else request.service)
            if ready is not None and token in ready:
                ready.remove(token)

    def give_back(self, requests: list[Request]) -> None:
        """Undo `take`: they are the next again, in their order."""
        for request in reversed(requests):
            self.taken.discard(request.token)
            if request.token not in self._waiting and not request.state.final:
                self._waiting.add(request.token)
                self._ready.setdefault(request.service, deque()).appendleft(request.token)

    def clear(self) -> None:
        """Forget everything: the log is another one."""
        self.taken.clear()
        self._waiting.clear()
        self._ready.clear()
        self._later.clear()
