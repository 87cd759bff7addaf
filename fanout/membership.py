"""
Membership: who is in the ring, and what this member owns of it. Decided by each from the heartbeats it hears.

Heartbeats go through one broker, which gives each member all of them, its own too, in the order in which they
came in. That is what this is built on:

- **Whoever hears its own heartbeat** has heard all that came to the broker before it. So silence of others is
  measured up to when the last heartbeat that came back was sent (the *horizon*), not up to now: whoever is
  cut off or slow itself suspects nobody.
- **The lease.** A member may own something for `LEASE` after it *sent* the last heartbeat that it heard back.
  Others take over only after `BURY_AFTER` of silence, which is longer and began later. So whoever is cut off
  or frozen has stopped by its own clock before; it comes back as a new incarnation that owns nothing.
- **Giving is at once, taking is by consent.** With each change of its view a member gives up what is not its
  own in the new one. It takes what is its own only when everybody who may own something names exactly the
  same view, version and members: so all others have given it up.
- **Joining takes `JOIN_AFTER`.** By then everybody whose lease runs has heard of who joins, and it of them.
- **Deaths are told on.** What one has buried all others bury, so views differ for no longer than a message
  takes. A member that hears of its own death owns nothing from then on.

Whoever hears that it is suspected answers at once, and counts its lease from no more than what the one who
suspects it has heard; so it stops in time as well where only some do not hear it.

No clock is read: `now` is this process's monotonic clock, in seconds; times of members are never compared.
Nothing here does what a fence at the store would: an action that was begun under a lease may end after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from fanout.heartbeat import (
    BURY_AFTER,
    DEAD_AFTER,
    FORGET_AFTER,
    HEARTBEAT,
    JOIN_AFTER,
    LEASE,
    PROMPT,
    SUSPECT_AFTER,
    TRANSITIONS,
    Heartbeat,
    Signal,
    State,
    digest_of,
)
from fanout.peer import Peer, View
from fanout.ring import BOUND, BUCKETS, Ring, ring_of

_NOTHING: Final = frozenset[int]()
_HAS_LEASE: Final = (State.JOINING, State.ALIVE, State.DRAINING)
_HAS_SAY: Final = (State.JOINING, State.ALIVE)
"""They own something or may come to do so; who leaves said so after it had given up everything."""


class Membership:
    """
    One member.

    Whoever runs it sends `beat` when it is `due`, and calls `hear` with every heartbeat that comes, its own
    too, in the order in which they come.

    Args:
        name: of this member, the same after a restart; no two processes should run under one.
        born: greater than that of any earlier process of this name, for instance the milliseconds since 1970.
        now: the time.
        alone: there is no broker and nobody else: it owns everything at once and for good.
        buckets: of the ring, the same for all members.
        bound: of the ring, the same for all members.
    """

    def __init__(
        self,
        name: str,
        born: int,
        now: float,
        *,
        alone: bool = False,
        buckets: int = BUCKETS,
        bound: int = BOUND,
    ) -> None:
        self.name = name
        self.born = born
        self.incarnation = 0
        self.state = State.ALIVE if alone else State.APART
        self.replaced = False  # another process has our name: this one is to end
        self.view = View(0, (), digest_of(()))
        self.peers: dict[tuple[str, int], Peer] = {}
        self._buckets, self._bound = buckets, bound
        self._share = _NOTHING  # what the ring has for us
        self._owned = _NOTHING  # that part of it that nobody else can have any more
        self._lease = math.inf if alone else -math.inf  # until when we may own anything
        self._number = 0
        self._sent: dict[int, float] = {}  # when our last heartbeats were sent
        self._floor = 1  # the first that counts when it is heard back
        self._life = 1  # the first of this incarnation
        self._horizon = -math.inf  # all that came to the broker before then was heard
        self._since: float | None = (
            None  # silence counts from here on: before, something may have been missed
        )
        self._known_from: float | None = None  # when the first heartbeat that said JOINING was heard back
        self._highest = 0  # version of any view heard of
        self._last = -math.inf  # when the last heartbeat was sent
        self._news = True  # there is something to be said at once
        self._reform()

    # --- what it tells ---

    @property
    def ring(self) -> Ring:
        """The ring of the members of the view: where to send others, whoever owns what already."""
        return ring_of(self.view.members, self._buckets, self._bound)

    @property
    def lease(self) -> float:
        """Until when we may own anything, if nothing more is heard."""
        return min(self._lease, *(peer.doubt for peer in self.peers.values()), math.inf)

    def owned(self, now: float) -> frozenset[int]:
        """Return the buckets that are ours; none once the lease is over, even if nothing was called."""
        return self._owned if now < self.lease else _NOTHING

    def owns(self, bucket: int, now: float) -> bool:
        """Say whether something may be begun for a bucket; to be asked each time, with the time as it is."""
        return bucket in self._owned and now < self.lease

    @property
    def settled(self) -> bool:
        """Whether all have the same view, so that nothing waits for being taken."""
        return all(
            (peer.version, peer.digest) == (self.view.version, self.view.digest)
            for peer in self._living()
            if peer.said in _HAS_SAY
        )

    @property
    def due(self) -> float:
        """When the next heartbeat is to be sent."""
        return self._last + (PROMPT if self._news else HEARTBEAT)

    # --- what happens to it ---

    def connected(self, now: float) -> None:
        """There is a new connection to the broker: what others sent before it may be lost."""
        self.tick(now)
        self._since = self._known_from = None
        self._floor = self._number + 1
        self._news = True

    def beat(self, now: float) -> Heartbeat:
        """Return the next heartbeat; it has to be sent at once or not at all."""
        self.tick(now)
        self._number += 1
        self._sent[self._number] = now
        for number in [each for each, sent in self._sent.items() if sent < now - 2 * DEAD_AFTER]:
            del self._sent[number]
        self._last, self._news = now, False
        return Heartbeat(
            self.name,
            self.born,
            self.incarnation,
            self._number,
            self.state,
            self.view.version,
            self.view.digest,
            tuple((each.name, each.born, each.number) for each in self._living() if each.suspected),
            tuple(
                (each.name, each.born, each.incarnation)
                for each in self.peers.values()
                if each.died is not None
            ),
        )

    def hear(self, heartbeat: Heartbeat, now: float) -> None:
        """Take in a heartbeat. One that is older than what was heard before changes nothing."""
        self.tick(now)
        if (heartbeat.name, heartbeat.born) == (self.name, self.born):
            self._hear_back(heartbeat, now)
        else:
            self._hear_other(heartbeat, now)
        self._reform()

    def gone(self, name: str, born: int, now: float) -> None:
        """The broker says that a member's connection is gone; it may run on for as long as its lease does."""
        self.tick(now)
        peer = self.peers.get((name, born))
        if peer is not None:
            peer.gone = True
            self._judge(now)
            self._reform()

    def tick(self, now: float) -> None:
        """Time has passed. Every other method does this too; nothing owned depends on its being called."""
        if self.state in _HAS_LEASE and now >= self.lease:
            self._cut_off()
        forgotten = [
            key
            for key, each in self.peers.items()
            if each.died is not None and each.died < now - FORGET_AFTER
        ]
        for key in forgotten:
            del self.peers[key]

    def drain(self, now: float) -> None:
        """Own nothing any more, and never again."""
        self.tick(now)
        self._fire(Signal.DRAINED)

    def leave(self, now: float) -> None:
        """Be gone; the next heartbeat, the last, says so."""
        self.tick(now)
        self._fire(Signal.LEFT)

    # --- how it decides ---

    def _living(self) -> Iterator[Peer]:
        return (peer for peer in self.peers.values() if peer.died is None)

    def _fire(self, signal: Signal) -> None:
        following = TRANSITIONS[self.state][signal]
        if following is not self.state:
            self.state = following
            self._news = True
            self._reform()

    def _cut_off(self) -> None:
        """Own nothing any more, and begin again, under an incarnation that never owned anything."""
        self.incarnation += 1
        self._lease = self._horizon = -math.inf
        self._since = self._known_from = None
        self._floor = self._life = self._number + 1
        for peer in self.peers.values():
            peer.doubt = math.inf
        self._fire(Signal.CUT_OFF)

    def _hear_back(self, heartbeat: Heartbeat, now: float) -> None:
        """Our own heartbeat came back."""
        number = heartbeat.number
        if number < self._floor or number not in self._sent:
            return
        self._horizon = max(self._horizon, self._sent[number])
        self._lease = max(self._lease, self._horizon + LEASE)
        if self._since is None:
            self._since = now
        if now >= self.lease:
            return  # it was on its way for too long
        self._fire(Signal.HEARD_BACK)
        if heartbeat.state is State.JOINING and self.state is State.JOINING:
            if self._known_from is None:
                self._known_from = now
            if self._horizon >= self._known_from + JOIN_AFTER:
                self._fire(Signal.KNOWN)
        self._judge(now)

    def _hear_other(self, heartbeat: Heartbeat, now: float) -> None:
        key = heartbeat.name, heartbeat.born
        peer = self.peers.get(key)
        if peer is None:
            peer = self.peers[key] = Peer(*key)
        if heartbeat.number <= peer.number:
            return
        peer.number = heartbeat.number
        self._highest = max(self._highest, heartbeat.version)
        if heartbeat.name == self.name and heartbeat.born > self.born:
            self.replaced = True
            self._fire(Signal.LEFT)
        self._hear_of_deaths(heartbeat, now)
        if peer.died is not None and heartbeat.incarnation <= peer.incarnation:
            return  # the dead do not come back but as somebody else
        peer.incarnation, peer.said, peer.heard = heartbeat.incarnation, heartbeat.state, now
        peer.version, peer.digest = heartbeat.version, heartbeat.digest
        peer.suspected = peer.gone = False
        peer.died = None
        peer.doubt = math.inf
        for name, born, number in heartbeat.doubts:
            # Who has no lease, or had none in that life, has nothing to lose by it; and who is apart could
            # not find out that the other has died meanwhile.
            if (name, born) == (self.name, self.born) and number >= self._life and self.state in _HAS_LEASE:
                peer.doubt = self._sent.get(number, -math.inf) + LEASE
                self._news = True
        if peer.said is State.DEAD:
            self._bury(peer, now)
        self.tick(now)

    def _hear_of_deaths(self, heartbeat: Heartbeat, now: float) -> None:
        for name, born, incarnation in heartbeat.dead:
            if (name, born) == (self.name, self.born):
                if incarnation >= self.incarnation:
                    self.incarnation = incarnation
                    self._cut_off()
                continue
            peer = self.peers.get((name, born))
            if peer is not None and peer.died is None and peer.incarnation <= incarnation:
                self._bury(peer, now)

    def _judge(self, now: float) -> None:
        """Suspect and bury who has been silent. Who was heard back just now may say so, nobody else."""
        if self._since is None or self.state not in _HAS_LEASE:
            return
        for peer in list(self._living()):
            silence = self._horizon - max(peer.heard, self._since)
            if silence >= (BURY_AFTER if peer.gone else DEAD_AFTER):
                self._bury(peer, now)
            elif peer.suspected != (silence >= SUSPECT_AFTER):
                peer.suspected = not peer.suspected
                self._news = True

    def _bury(self, peer: Peer, now: float) -> None:
        peer.died = now
        peer.doubt = math.inf
        self._news = True

    def _reform(self) -> None:
        """Bring the view, and what is owned, up to what is known."""
        members = {peer.name for peer in self._living() if peer.said is State.ALIVE}
        if self.state is State.ALIVE:
            members.add(self.name)
        view = self.view
        if members != set(view.members):
            version = max(view.version, self._highest) + 1
            view = View(version, tuple(sorted(members)), digest_of(members))
        for peer in self._living():
            if peer.digest == view.digest and peer.version > view.version:
                view = View(peer.version, view.members, view.digest)
        if view != self.view:
            self.view = view
            self._news = True
            self._share = self.ring.owned(self.name)
        if self.state is not State.ALIVE:
            self._owned = _NOTHING
        elif self.settled:
            self._owned = self._share
        else:
            self._owned &= self._share
