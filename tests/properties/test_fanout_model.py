"""
The fan-out against a plain model: promises 1 to 3, whatever happens in whatever order.

Events of all sizes; clients on every wire that stop reading in the middle of a frame, drop out, come back
elsewhere, add and leave topics; a window that forgets; a log that forgets, restarts, is lost, or comes back
shorter and uses its positions again: `tests.support.world` has the actions, `tests.support.model` the
promises.

Two ways of choosing what happens: hypothesis, which cuts a failure down to the few steps that matter, and
dice loaded towards what is interesting, which get further in the same time.
"""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fanout.connection import Overflow
from fanout.frames import STREAM_WIRES, Wire
from tests.support.dice import (
    BLOCKS,
    KEYS,
    MAX_CLIENTS,
    OVERFLOWS,
    PAUSES,
    PORTIONS,
    REWINDS,
    ROOMS,
    SIZES,
    STARTS,
    TAILS,
    TTLS,
    Dice,
)
from tests.support.world import PATTERNS, TOPICS, Bounds, Client, Draft, World


class Fanout(RuleBasedStateMachine):
    """See the module."""

    world: World

    @initialize(
        bounds=st.builds(
            Bounds,
            st.sampled_from((300, 1000, 3000)),
            st.sampled_from((1000, 4000, 20_000, 1_000_000)),
            st.sampled_from((1, 3, 10, 1000)),
            st.sampled_from((0, 0, 2000)),
        )
    )
    def begin(self, bounds: Bounds) -> None:
        self.world = World(bounds)

    def client(self, which: int) -> Client | None:
        clients = self.world.clients
        return clients[which % len(clients)] if clients else None

    # What is likelier to matter has more rules, for they are chosen evenly.

    drafts = st.builds(
        Draft,
        st.sampled_from(TOPICS),
        st.sampled_from(SIZES),
        st.sampled_from(KEYS),
        st.sampled_from(TTLS),
    )
    batches = st.lists(drafts, min_size=1, max_size=5)
    patterns = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3, unique=True)
    which = st.integers(0, MAX_CLIENTS - 1)
    portion = st.sampled_from(PORTIONS)

    @rule(batch=batches)
    def publish(self, batch: list[Draft]) -> None:
        self.world.publish(batch)

    @precondition(lambda self: len(self.world.clients) < MAX_CLIENTS)
    @rule(
        patterns=patterns,
        wire=st.sampled_from(STREAM_WIRES),
        start=st.sampled_from(STARTS),
        room=st.sampled_from(ROOMS),
        overflow=st.sampled_from(OVERFLOWS),
    )
    def arrive(self, patterns: list[str], wire: Wire, start: str, room: int, overflow: Overflow) -> None:
        self.world.arrive(patterns, wire, start, room, overflow)

    @precondition(lambda self: self.world.clients)
    @rule(which=which, portion=portion, fed=st.booleans())
    def read(self, which: int, portion: int, fed: bool) -> None:
        client = self.client(which)
        assert client is not None
        self.world.take(client, portion)
        if fed:
            self.world.feed(client)

    @precondition(lambda self: self.world.clients)
    @rule(which=which, times=st.integers(1, 3))
    def feed(self, which: int, times: int) -> None:
        client = self.client(which)
        assert client is not None
        for _ in range(times):
            self.world.turn(client)

    @precondition(lambda self: self.world.clients)
    @rule(which=which, max_bytes=st.sampled_from(BLOCKS))
    def read_block(self, which: int, max_bytes: int) -> None:
        client = self.client(which)
        assert client is not None
        self.world.read_block(client, max_bytes)

    @precondition(lambda self: self.world.blocks)
    @rule(which=which, at=st.integers(0, 2))
    def feed_block(self, which: int, at: int) -> None:
        client = self.client(which)
        assert client is not None
        self.world.feed_block(client, at)

    @precondition(lambda self: self.world.clients)
    @rule(
        which=which,
        portion=portion,
        wire=st.sampled_from(STREAM_WIRES),
        room=st.sampled_from(ROOMS),
        polls=st.lists(st.integers(1, 5), max_size=2),
        back=st.booleans(),
    )
    def switch(self, which: int, portion: int, wire: Wire, room: int, polls: list[int], back: bool) -> None:
        """A client leaves, if it is there; then it polls, or comes back on some wire, or both."""
        client = self.client(which)
        assert client is not None
        self.world.leave(client, portion)
        for limit in polls:
            self.world.poll(client, "latest", limit)
        if back:
            self.world.come(client, wire, "latest", room)

    @precondition(lambda self: self.world.clients)
    @rule(which=which, patterns=patterns, start=st.sampled_from(REWINDS), back=st.integers(0, 30))
    def subscribe(self, which: int, patterns: list[str], start: str, back: int) -> None:
        client = self.client(which)
        assert client is not None
        self.world.subscribe(client, patterns, start, back)

    @precondition(lambda self: self.world.clients)
    @rule(which=which, at=st.integers(0, 5))
    def unsubscribe(self, which: int, at: int) -> None:
        client = self.client(which)
        assert client is not None
        self.world.unsubscribe(client, at)

    @rule(ms=st.sampled_from(PAUSES))
    def beat(self, ms: int) -> None:
        """The keepalive's tick."""
        self.world.pass_time(ms)
        self.world.heartbeat()

    @rule(left=st.integers(0, 12), told=st.booleans())
    def trim(self, left: int, told: bool) -> None:
        self.world.trim(left)
        if told:
            self.world.tell()

    @rule(
        kind=st.sampled_from(("restart", "restart", "recreate", "truncate")),
        portion=portion,
        lost=st.integers(1, 8),
        refilled=st.integers(0, 8),
        tail_bytes=st.sampled_from(TAILS),
    )
    def disturb(self, kind: str, portion: int, lost: int, refilled: int, tail_bytes: int) -> None:
        match kind:
            case "restart":
                self.world.restart(portion, tail_bytes)
            case "recreate":
                self.world.recreate(portion, refilled)
            case "truncate":
                self.world.truncate(portion, lost, refilled, tail_bytes)

    @rule()
    def settle(self) -> None:
        self.world.settle()

    @invariant()
    def check(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


TestFanout = Fanout.TestCase
TestFanout.settings = settings(
    max_examples=300,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


STEPS: Final = 400


@pytest.mark.parametrize("seed", range(150))
def test_promises_hold_for_long_lives(seed: int) -> None:
    """
    Whatever the dice do to a gateway and its clients, for long, every message that a client reads keeps the
    promises.
    """
    dice = Dice(seed, World)
    try:
        for _ in range(STEPS):
            dice.throw()
        dice.world.settle()
    except AssertionError as error:
        error.add_note("\n".join(dice.done[-60:]))
        raise


def test_a_reset_is_told_also_when_the_greeting_is_cut() -> None:
    """A client with a cursor of another log is never moved on in silence, wherever its line breaks."""
    for portion in range(1, 300):
        world = World(Bounds())
        world.publish([Draft("a")])
        client = world.arrive(["a"], Wire.SSE, "earliest", 1 << 20)
        world.settle()
        world.recreate(1, refilled=3)
        world.come(client, Wire.SSE, "latest", 1 << 20)
        world.leave(client, portion)


def test_a_poll_is_told_what_retention_deleted_just_now() -> None:
    """A poll that reads the log between retention's deleting and its saying so tells of the gap."""
    world = World(Bounds(window_events=1))
    client = world.arrive(["a"], Wire.SSE, "earliest", 1 << 20)
    world.leave(client, 1 << 20)
    world.publish([Draft("a") for _ in range(8)])
    world.trim(left=4)
    world.poll(client, "earliest", 100)
