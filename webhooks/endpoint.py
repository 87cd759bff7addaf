"""
The endpoint: a webhook target at run time. Its states are a table; what attempts bring about goes through
`settle`.

Everything that a decision about it needs is here: its description made ready for use, its keys, its health
and its rate. Only one replica has it at a time.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, unique
from typing import Final, Protocol

from webhooks import delivery
from webhooks.delivery import Decision, decide
from webhooks.description import Description
from webhooks.envelope import Message
from webhooks.errors import Invalid
from webhooks.filters import Filter
from webhooks.headers import own_lines
from webhooks.health import Health, Record
from webhooks.keys import Keys
from webhooks.rate import Bucket, Rate, Unlimited
from webhooks.retry_after import asked_ms
from webhooks.schedule import Dice, Schedule
from webhooks.signature import Secret
from webhooks.verdict import Verdict, judge


@unique
class State(Enum):
    """Where an endpoint stands; the values are what users see."""

    ACTIVE = "active"
    PAUSED = "paused"
    """Its owner wants nothing to be sent for now: deliveries wait."""
    DISABLED = "disabled"
    """Nothing has succeeded for days: deliveries are held."""
    GONE = "gone"
    """The receiver said that it wants no more: deliveries are held."""


@unique
class Signal(Enum):
    """What can happen to an endpoint; what its owner asks for comes first."""

    PAUSED = "paused"
    RESUMED = "resumed"
    ENABLED = "enabled"
    FAILING = "failing"
    """Nothing has succeeded for days."""
    GONE = "gone"
    """It answered 410."""


TRANSITIONS: Final[dict[State, dict[Signal, State]]] = {
    State.ACTIVE: {
        Signal.PAUSED: State.PAUSED,
        Signal.RESUMED: State.ACTIVE,
        Signal.ENABLED: State.ACTIVE,
        Signal.FAILING: State.DISABLED,
        Signal.GONE: State.GONE,
    },
    # An attempt may be on its way when it stops being active; the owner's wish, and 410, outweigh failures.
    State.PAUSED: {
        Signal.PAUSED: State.PAUSED,
        Signal.RESUMED: State.ACTIVE,
        Signal.FAILING: State.PAUSED,
        Signal.GONE: State.GONE,
    },
    State.DISABLED: {
        Signal.ENABLED: State.ACTIVE,
        Signal.FAILING: State.DISABLED,
        Signal.GONE: State.GONE,
    },
    State.GONE: {
        Signal.ENABLED: State.ACTIVE,
        Signal.FAILING: State.GONE,
        Signal.GONE: State.GONE,
    },
}

CLOSED: Final = frozenset({State.DISABLED, State.GONE})
"""States in which deliveries are held, until the owner opens the endpoint again."""

REMEDIES: Final = {State.PAUSED: "resume it", State.DISABLED: "enable it", State.GONE: "enable it"}
"""What the owner does to have events sent again, in words."""


class Outcome(Protocol):
    """What came of an attempt, as far as it matters here; `webhooks.attempt` has all of it."""

    @property
    def status(self) -> int | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def duration_ms(self) -> int: ...
    @property
    def retry_after(self) -> str | None: ...


class Endpoint:
    """
    One endpoint.

    Args:
        id: its name, `wh_…`.
        description: as its owner wants it.
        keys: what it signs with; one for every scheme of the description.
        dice: spreads its waits.
        now: milliseconds since the Unix epoch.
        state: where it stood when it was stored.
        record: how its attempts had ended by then.

    Attributes:
        lines: of the head of every request to it; see `webhooks.envelope.head`.
    """

    def __init__(
        self,
        id: str,
        description: Description,
        keys: Keys,
        dice: Dice,
        now: int,
        state: State = State.ACTIVE,
        record: Record | None = None,
    ) -> None:
        self.id = id
        self.keys = keys
        self.state = state
        self.health = Health(description.ceiling, dice, record)
        self.rate = _rate(description, now)
        self._dice = dice
        self._prepare(description)

    @property
    def is_closed(self) -> bool:
        """Whether its deliveries are held."""
        return self.state in CLOSED

    @property
    def is_picky(self) -> bool:
        """Whether it matters what an event has beside its topic."""
        return bool(self._types) or self._filter is not None

    def wants(self, message: Message) -> bool:
        """Say whether it gets an event whose topic one of its patterns matches."""
        if self._types and message.type not in self._types:
            return False
        return self._filter is None or self._filter.matches(message.data)

    def room(self, now: int, in_flight: int) -> int:
        """Return how many attempts may begin, with so many on their way; then say so to `rate.take`."""
        if self.state is not State.ACTIVE:
            return 0
        room = self.health.room(now, in_flight)
        return min(room, self.rate.room(now)) if room else 0

    def ready(self, now: int) -> int:
        """Return when there may be room again if attempts end meanwhile; at least `now`."""
        return max(self.health.opens(now), self.rate.ready(now))

    def secrets(self, now: int) -> Collection[Secret]:
        """Return what an attempt is signed with."""
        return self.keys.secrets(self.description.signatures, now)

    def settle(
        self, outcome: Outcome, attempts: int, now: int, *, deadline: int, expires: int = 0
    ) -> Decision:
        """
        Take in the outcome of an attempt, and return what it makes of the delivery.

        Afterwards `state` may be another. If the endpoint is closed then, what was postponed is held.

        Args:
            outcome: of the attempt.
            attempts: of this delivery since the beginning of its schedule, this one included.
            now: milliseconds since the Unix epoch.
            deadline: see `webhooks.delivery.decide`.
            expires: when the event's time to live ends; 0 is never.
        """
        verdict = judge(outcome.status, outcome.error)
        asked = 0 if verdict is Verdict.SUCCEEDED else asked_ms(outcome.retry_after, now)
        if self.health.note(verdict, outcome.duration_ms, asked, now):
            self._apply(Signal.FAILING)
        if verdict is Verdict.GONE:
            self._apply(Signal.GONE)
        decision = decide(
            verdict, attempts, now, self.schedule, self._dice, asked=asked, deadline=deadline, expires=expires
        )
        if self.is_closed and decision.signal is delivery.Signal.POSTPONED:
            return Decision(delivery.Signal.HELD)
        return decision

    def ask(self, signal: Signal) -> None:
        """
        Do what the owner asks for; doing it twice is doing it once.

        Raises:
            Invalid: it cannot be done in its state.
        """
        if signal not in TRANSITIONS[self.state]:
            raise Invalid(f"the endpoint is {self.state.value}: {REMEDIES[self.state]} first")
        before = self.state
        self._apply(signal)
        if self.state is State.ACTIVE and before is not State.ACTIVE:
            self.health.reset()

    def change(self, description: Description, now: int) -> None:
        """Take another description. At another URL, what attempts brought about so far says nothing."""
        if description.url != self.description.url:
            self.health.reset()
        if description.rate != self.description.rate:
            self.rate = _rate(description, now)
        self._prepare(description)
        self.keys = self.keys.completed(description.signatures, now)

    def _apply(self, signal: Signal) -> None:
        self.state = TRANSITIONS[self.state][signal]

    def _prepare(self, description: Description) -> None:
        """Make a description ready for use."""
        self.description = description
        self.schedule = Schedule(description.schedule)
        self.lines = own_lines(description.headers, description.origin)
        self.health.ceiling = description.ceiling
        self._types = frozenset(description.types)
        self._filter = None if description.filter is None else Filter(description.filter)


def _rate(description: Description, now: int) -> Rate:
    return Unlimited() if description.rate is None else Bucket(description.rate, now)
