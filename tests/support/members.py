"""Members of a ring around a simulated broker: clocks drift, links stall or break, processes freeze."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from fanout.heartbeat import Heartbeat, State
from fanout.membership import Membership

BUCKETS: Final = 32
"""Few for many members, so that the bound acts and forces moves between members that stay."""

BROKER_HEARTBEAT: Final = 8.0
"""Seconds after which the broker closes the connection of a frozen process."""

SKEW: Final = 0.1
"""Seconds by which the broker may put a message into one queue later than into another."""

RATES: Final = (0.99, 1.0, 1.01)
"""How fast clocks may run."""


class Node:
    """A process: its membership, its clock and its link to the broker."""

    def __init__(self, world: World, name: str, born: int) -> None:
        self._world = world
        self._rate = world.random.choice(RATES)
        self._offset = world.random.uniform(0, 1_000_000) - self._rate * world.now
        self.name, self.born = name, born
        self.member = Membership(name, born, self.now, buckets=BUCKETS)
        self.running = True
        self.frozen = False
        self.connection = 0  # which one; 0 is none
        self.stalled = {"in": 0.0, "out": 0.0}  # nothing arrives on that way of the link before then
        self.inbox: list[Heartbeat] = []
        self.heard = 0.0  # when the last of ours came to the broker
        self._ends: dict[str, float] = {}  # when the last message on each way arrives
        self._wakes = itertools.count()
        self._wake = 0

    @property
    def now(self) -> float:
        """The time of its own clock."""
        return self._offset + self._rate * self._world.now

    def connect(self) -> None:
        """Make a new connection; what was on its way is lost with the old one."""
        if not self.running:
            return
        if self.frozen:
            self._world.after(0.1, self.connect)
            return
        self.connection = next(self._world.numbers)
        self._ends.clear()
        self.member.connected(self.now)
        self.work()

    def work(self) -> None:
        """Send what is due, and wake up for what is due next."""
        if not self.running or self.frozen:
            return
        if self.now >= self.member.due - 1e-9:
            self._send(self.member.beat(self.now))
        self._wake = wake = next(self._wakes)
        pause = max((self.member.due - self.now) / self._rate, 0.001)
        self._world.after(pause, lambda: self.work() if wake == self._wake else None)

    def receive(self, heartbeat: Heartbeat) -> None:
        """Take in a heartbeat, at once or when thawed."""
        if not self.running:
            return
        if self.frozen:
            self.inbox.append(heartbeat)
            return
        self.member.hear(heartbeat, self.now)
        self.work()

    def thaw(self) -> None:
        """Go on where it was frozen: with what had come in meanwhile, in any order with what it has to do."""
        if not self.running or not self.frozen:
            return
        self.frozen = False
        if self._world.random.random() < 0.5:
            self.work()
        waiting, self.inbox = self.inbox, []
        for heartbeat in waiting:
            self.receive(heartbeat)
        self.work()

    def queued(self, sender: Node) -> float:
        """Return when the broker has put something into our queue: in order of each sender, if not of all."""
        key = f"{sender.name} {sender.born}"
        self._ends[key] = max(self._world.now + self._world.random.uniform(0, SKEW), self._ends.get(key, 0.0))
        return self._ends[key]

    def arrival(self, way: str) -> float:
        """Return when something arrives that is put on its way now: in order."""
        at = self._world.now + self._world.random.uniform(0, self._world.delay)
        self._ends[way] = max(at, self.stalled[way], self._ends.get(way, 0.0))
        return self._ends[way]

    def _send(self, heartbeat: Heartbeat) -> None:
        if not self.connection or self._world.random.random() < self._world.loss:
            return
        connection = self.connection
        self._world.at(
            self.arrival("out"),
            lambda: self._world.route(self, heartbeat) if connection == self.connection else None,
        )


class World:
    """
    Some members and a broker.

    Args:
        random: decides delays and losses.
        delay: seconds that a message takes at most, to the broker and again from it.
        loss: the share of the heartbeats that do not come to the broker.
        deaf: the share that comes to all but one.
    """

    def __init__(self, random: Random, *, delay: float = 0.02, loss: float = 0.0, deaf: float = 0.0) -> None:
        self.random = random
        self.delay, self.loss, self.deaf = delay, loss, deaf
        self.now = 0.0
        self.numbers = itertools.count(1)
        self.nodes: list[Node] = []
        self.overlap = 0.0  # seconds for which a bucket had two owners
        self.strict = True  # two owners are a mistake
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    # --- time ---

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at some time."""
        heapq.heappush(self._events, (time, next(self._order), action))

    def after(self, pause: float, action: Callable[[], None]) -> None:
        """Do something in so many seconds."""
        self.at(self.now + pause, action)

    def run(self, seconds: float) -> None:
        """Let time pass; at each instant at which anything happens, no bucket may have two owners."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            time, _, action = heapq.heappop(self._events)
            if not self.strict and self.twice():
                self.overlap += time - self.now
            self.now = time
            action()
            if self.strict:
                assert not self.twice(), f"two owners at {self.now:.3f}"
        self.now = end

    def until(self, condition: Callable[[], bool], most: float) -> float:
        """Let time pass until something is so; return how long that took."""
        began = self.now
        while not condition():
            assert self.now - began < most, "it never came to that"
            self.run(0.05)
        return self.now - began

    # --- the broker ---

    def route(self, sender: Node, heartbeat: Heartbeat) -> None:
        """Put a heartbeat into the queues of all who are connected."""
        sender.heard = self.now
        unlucky = self.random.choice(self.nodes) if self.random.random() < self.deaf else None
        for node in self.nodes:
            if node.connection and node.running and node is not unlucky:
                self.at(node.queued(sender), self._queue(node, node.connection, heartbeat))

    def _queue(self, node: Node, connection: int, heartbeat: Heartbeat) -> Callable[[], None]:
        def act() -> None:
            if connection == node.connection:
                self.at(node.arrival("in"), deliver)

        def deliver() -> None:
            if connection == node.connection:
                node.receive(heartbeat)

        return act

    def declare_gone(self, gone: Node) -> None:
        """Have some of the members find out that one is not connected."""
        for node in self.nodes:
            if node is not gone and self.random.random() < 0.7:
                self.after(self.random.uniform(0, 3), self._verdict(node, gone))

    def _verdict(self, node: Node, gone: Node) -> Callable[[], None]:
        def act() -> None:
            if node.running and not node.frozen and not gone.connection:
                node.member.gone(gone.name, gone.born, node.now)
                node.work()

        return act

    # --- what happens ---

    def start(self, name: str) -> Node:
        """Start a process, in the place of an earlier one of the same name if there was one."""
        node = Node(self, name, 1 + max((each.born for each in self.nodes if each.name == name), default=0))
        self.nodes.append(node)
        node.connect()
        return node

    def kill(self, node: Node) -> None:
        """End a process without a word."""
        node.running = False
        node.connection = 0
        self.declare_gone(node)

    def cut(self, node: Node, seconds: float) -> None:
        """Break a link, with all that is on its way; the process connects again later."""
        node.connection = 0
        self.declare_gone(node)
        self.after(seconds, node.connect)

    def stall(self, node: Node, seconds: float, ways: Sequence[str] = ("in", "out")) -> None:
        """Hold up all that is sent on a link from now on, to the process, from it, or both."""
        for way in ways:
            node.stalled[way] = max(node.stalled[way], self.now + seconds)

    def freeze(self, node: Node, seconds: float) -> None:
        """Stop a process, and let it go on later."""
        if node.frozen or not node.running:
            return
        node.frozen = True
        self.after(seconds, node.thaw)
        if seconds > BROKER_HEARTBEAT:
            self.after(BROKER_HEARTBEAT, lambda: self.cut(node, seconds - BROKER_HEARTBEAT + 0.5))

    # --- what is to be seen ---

    @property
    def running(self) -> list[Node]:
        """The processes that have not ended."""
        return [node for node in self.nodes if node.running]

    def twice(self) -> list[int]:
        """Return the buckets that have two owners now; one that is frozen could go on at any time."""
        counts = Counter[int]()
        for node in self.running:
            counts.update(node.member.owned(node.now))
        return [bucket for bucket, owners in counts.items() if owners > 1]

    def served(self) -> int:
        """Return how many buckets have an owner that is at work."""
        owned = [node.member.owned(node.now) for node in self.running if not node.frozen]
        return len(frozenset().union(*owned))

    def agreed(self) -> bool:
        """Say whether all who run are in the ring, in the same view, and all buckets are served."""
        members = [node.member for node in self.running]
        names = tuple(sorted(member.name for member in members))
        return (
            all(member.state is State.ALIVE for member in members)
            and len({(member.view.version, member.view.digest) for member in members}) == 1
            and members[0].view.members == names
            and self.served() == BUCKETS
        )

    def next_event(self) -> float:
        """Return when something happens next."""
        return self._events[0][0] if self._events else math.inf
