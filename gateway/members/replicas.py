"""
Replicas: which of them there are, and which one the clients of a key belong to.

Any replica serves any client correctly; who belongs where is a matter of locality. So what is told here may
be a moment old, and nothing breaks if it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from fanout.heartbeat import SUSPECT_AFTER, State
from fanout.membership import Membership
from fanout.ring import Ring, ring_of
from gateway.members.wire import Facts, Seen
from gateway.requests.buckets import BUCKETS as SERVICE_BUCKETS

if TYPE_CHECKING:
    from gateway.members.member import Member

GROUP: Final = "replica"
SERVICES: Final = "service."
"""How the groups of request workers begin; the name of the service follows."""

MAX_KEY: Final = 255
"""Characters of a key."""


@dataclass(frozen=True, slots=True)
class Route:
    """
    Where the clients of a key belong.

    Attributes:
        bucket: of the key.
        owner: the replica; None while there is none.
        url: under which it is reached; empty if it cannot be, or should not.
        ranks: the replicas in the order in which they take over, the owner first.
    """

    bucket: int
    owner: str | None
    url: str
    ranks: tuple[str, ...]


class Replicas:
    """
    What a replica knows of all of them.

    Args:
        name: of this one.
        facts: what it tells of itself.
        member: its part in the group; None if it is the only one.
    """

    def __init__(self, name: str, facts: Callable[[], Facts], member: Member | None) -> None:
        self.name = name
        self.member = member
        self._facts = facts
        self._alone = None if member is not None else Membership(name, 1, time.monotonic(), alone=True)

    @property
    def membership(self) -> Membership:
        if self.member is not None:
            return self.member.membership
        assert self._alone is not None
        return self._alone

    @property
    def url(self) -> str:
        """The address of this replica; empty if it has none to tell."""
        return self._facts().url

    def bucket(self, key: str) -> int:
        """Return the bucket of a key."""
        return self.membership.ring.bucket(key)

    def owned(self) -> frozenset[int]:
        """Return the buckets that are this replica's and nobody else's; to be asked each time."""
        return self.membership.owned(time.monotonic())

    def share(self) -> float:
        """Return which part of the keys belongs to this replica."""
        ring = self.membership.ring
        return ring.loads().get(self.name, 0) / ring.buckets

    def drain(self) -> None:
        """Own nothing any more: clients belong to others."""
        if self.member is not None:
            self.member.drain()

    def route(self, key: str) -> Route:
        """Return where the clients of a key belong."""
        ring = self.membership.ring
        bucket = ring.bucket(key)
        owner = ring.owner_of(bucket)
        return Route(bucket, owner, "" if owner is None else self._url(owner), ring.ranks(bucket))

    def admits(self, origin: str) -> bool:
        """Say whether an origin (RFC 6454) is that of a replica: whoever is sent on by one comes with it."""
        urls = [self.url]
        if self.member is not None:
            urls += [seen.facts.url for seen in self.member.seen.values() if seen.group == GROUP]
        return any(_origin(url) == origin for url in urls if url)

    def shown(self) -> dict[str, Any]:
        """Return all replicas, and the members of other groups, as operators see them."""
        membership, now = self.membership, time.monotonic()
        loads = membership.ring.loads()
        buckets = membership.ring.buckets
        mine = {
            "name": self.name,
            "state": membership.state.value,
            **_shown_facts(self._facts()),
            "share": round(loads.get(self.name, 0) / buckets, 4),
            "heard_seconds_ago": 0.0,
        }
        others = []
        for peer in membership.peers.values():
            seen = self._seen(peer.name)
            if seen is not None and seen.heartbeat.born == peer.born and peer.name != self.name:
                share = round(loads.get(peer.name, 0) / buckets, 4)
                others.append({**_shown_seen(seen, peer.state, now), "share": share})
        return {
            "self": self.name,
            "owned": len(membership.owned(now)),
            "view": {
                "version": membership.view.version,
                "digest": membership.view.digest,
                "settled": membership.settled,
                "members": membership.view.members,
            },
            "replicas": sorted([mine, *others], key=lambda each: str(each["name"])),
            "groups": self._groups(now),
        }

    def map(self) -> dict[str, Any]:
        """
        Return the owner of each bucket, as an index into the members; of other groups as it has to be by who
        is heard of, for only their members know what they agreed on.
        """
        now = time.monotonic()
        names: dict[str, list[str]] = {}
        for seen in [] if self.member is None else self.member.seen.values():
            if seen.group.startswith(SERVICES):
                living = seen.heartbeat.state is State.ALIVE and now - seen.heard < SUSPECT_AFTER
                names.setdefault(seen.group, []).extend([seen.heartbeat.name] * living)
        groups = {
            group: _map(ring_of(tuple(sorted(found)), SERVICE_BUCKETS)) for group, found in names.items()
        }
        return {"replicas": _map(self.membership.ring), "groups": groups}

    def _groups(self, now: float) -> dict[str, list[dict[str, Any]]]:
        """Return the members of the other groups, as they say themselves."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for seen in [] if self.member is None else self.member.seen.values():
            if seen.group != GROUP:
                shown = _shown_seen(seen, seen.heartbeat.state, now)
                groups.setdefault(seen.group, []).append(shown)
        return {name: sorted(found, key=lambda each: str(each["name"])) for name, found in groups.items()}

    def _url(self, name: str) -> str:
        """Return the URL of a replica that clients can be sent to; whoever is apart cannot know of any."""
        if name == self.name:
            return self.url
        if self.membership.state is State.APART:
            return ""
        states = [peer.state for peer in self.membership.peers.values() if peer.name == name]
        seen = self._seen(name)
        return seen.facts.url if seen is not None and State.ALIVE in states else ""

    def _seen(self, name: str) -> Seen | None:
        return None if self.member is None else self.member.seen.get((GROUP, name))


def _map(ring: Ring) -> dict[str, Any]:
    indices = {name: index for index, name in enumerate(ring.members)}
    owners = [ring.owner_of(bucket) for bucket in range(ring.buckets)]
    return {
        "members": ring.members,
        "owners": [None if owner is None else indices[owner] for owner in owners],
    }


def _origin(url: str) -> str:
    """Return the origin of a URL: its scheme, host and port, as browsers write it."""
    parts = urlsplit(url)
    port = "" if parts.port in (None, {"http": 80, "https": 443}.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{(parts.hostname or '').lower()}{port}"


def _shown_facts(facts: Facts) -> dict[str, Any]:
    return {"url": facts.url or None, "version": facts.version, "connections": facts.connections}


def _shown_seen(seen: Seen, state: State, now: float) -> dict[str, Any]:
    return {
        "name": seen.heartbeat.name,
        "state": state.value,
        **_shown_facts(seen.facts),
        "heard_seconds_ago": round(now - seen.heard, 1),
    }
