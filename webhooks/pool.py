"""
Links that wait for the next request: few, not for long, and the newest used first.

The newest first, so that those beyond what the traffic needs grow old and go. A link also goes when it has
been open for long: a target that moves to other addresses is followed within that time, however busy it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from webhooks.link import Link


@dataclass(frozen=True, slots=True)
class Keep:
    """
    What is kept of links that are not in use.

    Attributes:
        links: in all; the one that waited longest goes for a new one.
        per_origin: of them to one host and port, which many endpoints may share.
        idle_seconds: how long one waits. Servers close idle connections after 5 to 75 s; the less we use of
            that, the fewer requests meet a connection that is just being closed.
        age_seconds: how long one may have been open to be used again.
    """

    links: int = 1024
    per_origin: int = 256
    idle_seconds: float = 30.0
    age_seconds: float = 300.0


class Pool:
    """The idle links; it aborts those that it does not keep."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._by_origin: dict[str, list[Link]] = {}
        self._waiting: dict[Link, None] = {}  # whoever waited longest is first

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, origin: str, now: float) -> Link | None:
        """Return a link that may be used again, None if there is none."""
        links = self._by_origin.get(origin)
        while links:
            link = links.pop()
            del self._waiting[link]
            if not links:
                del self._by_origin[origin]
            if link.is_open() and not self._is_stale(link, now):
                return link
            link.abort()
        return None

    def give(self, link: Link, now: float) -> None:
        """Keep a link for the next request, if there is room for it."""
        links = self._by_origin.setdefault(link.origin, [])
        links.append(link)
        self._waiting[link] = None
        link.idle_since = now
        if len(links) > self._keep.per_origin:
            self._abort(link)
        elif len(self._waiting) > self._keep.links:
            self._abort(next(iter(self._waiting)))

    def forget(self, link: Link) -> None:
        """A link is closed."""
        if link in self._waiting:
            del self._waiting[link]
            links = self._by_origin[link.origin]
            links.remove(link)
            if not links:
                del self._by_origin[link.origin]

    def sweep(self, now: float) -> None:
        """Close the links that have waited for too long."""
        while self._waiting:
            link = next(iter(self._waiting))
            if now - link.idle_since < self._keep.idle_seconds:
                return
            self._abort(link)

    def _is_stale(self, link: Link, now: float) -> bool:
        return now - link.idle_since >= self._keep.idle_seconds or now - link.opened >= self._keep.age_seconds

    def _abort(self, link: Link) -> None:
        self.forget(link)
        link.abort()
