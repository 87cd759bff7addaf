"""
The profile: an endpoint as its row in the store has it, and the names by which users know endpoints and
deliveries.

A name has the number that the store gave, so that a row is found by its key; that of an endpoint has a mark
as well, drawn when it was made. So a name says nothing about how many there are, and one of another
installation names nothing here.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Final

import msgspec

from webhooks import records
from webhooks.description import Description, restored
from webhooks.endpoint import Endpoint, State
from webhooks.health import Record
from webhooks.keys import Key, Keys
from webhooks.records import Status
from webhooks.schedule import Dice
from webhooks.signature import parse_secret

STATES: Final = {
    Status.OPEN: State.ACTIVE,
    Status.PAUSED: State.PAUSED,
    Status.DISABLED: State.DISABLED,
    Status.GONE: State.GONE,
}
"""How users call what the store calls otherwise."""
STATUSES: Final = {state: status for status, state in STATES.items()}

_DIGITS: Final = "abcdefghijklmnopqrstuvwxyz234567"  # those of a log's epoch: nothing to escape or confuse
_MARK: Final = 8  # digits, 40 bits
_NUMBER: Final = "[b-z2-7][a-z2-7]{0,11}"  # one way to write each, below 2**60
_ENDPOINT = re.compile(rf"wh_([a-z2-7]{{{_MARK}}})({_NUMBER})")
_DELIVERY = re.compile(rf"dlv_([a-z2-7]{{{_MARK}}})({_NUMBER})_({_NUMBER})")


def new_mark() -> str:
    """Return a mark for a new endpoint."""
    return "".join(secrets.choice(_DIGITS) for _ in range(_MARK))


@dataclass(frozen=True, slots=True)
class Profile:
    """
    What the store keeps of an endpoint beside its status and its health, and does not look into.

    Attributes:
        description: the endpoint as its owner wants it.
        keys: what it signs with; one for every scheme of the description.
        mark: a part of its name.
    """

    description: Description
    keys: Keys
    mark: str = field(default_factory=new_mark)

    def stored(self) -> bytes:
        """Return it as `settings` of the row."""
        keys = [_Key(key.secret.text, key.created, key.expires) for key in self.keys.all]
        return msgspec.json.encode(_Stored(self.mark, msgspec.Raw(self.description.stored()), keys))

    @classmethod
    def restored(cls, settings: bytes) -> Profile:
        """Return it from `settings` of the row."""
        stored = _STORED.decode(settings)
        keys = Keys(tuple(Key(parse_secret(key.secret), key.created, key.expires) for key in stored.keys))
        return cls(restored(bytes(stored.description)), keys, stored.mark)


class _Key(msgspec.Struct, omit_defaults=True):
    secret: str
    created: int
    expires: int = 0


class _Stored(msgspec.Struct):
    mark: str
    description: msgspec.Raw
    keys: list[_Key]


_STORED: Final = msgspec.json.Decoder(_Stored)
_RECORD: Final = msgspec.json.Decoder(Record)


def stored_health(record: Record) -> bytes:
    """Return how attempts ended as `health` of the row; nothing if none has failed lately."""
    return b"" if record == Record() else msgspec.json.encode(record)


def restored_health(health: bytes) -> Record:
    """Return it from `health` of the row."""
    return _RECORD.decode(health) if health else Record()


def opened(row: records.Endpoint, dice: Dice, now: int) -> Endpoint:
    """
    Return an endpoint ready for use.

    Args:
        row: it as the store has it; not a removed one.
        dice: spreads its waits.
        now: milliseconds since the Unix epoch.
    """
    profile = Profile.restored(row.settings)
    return Endpoint(
        endpoint_name(row.id, profile.mark),
        profile.description,
        profile.keys,
        dice,
        now,
        STATES[row.status],
        restored_health(row.health),
    )


# --- names


def endpoint_name(id: int, mark: str) -> str:
    """Return the name of an endpoint: `wh_…`."""
    return f"wh_{mark}{_written(id)}"


def read_endpoint_name(name: str) -> tuple[int, str] | None:
    """Return id and mark of the endpoint that has this name, if it can be one."""
    match = _ENDPOINT.fullmatch(name)
    return match and (_read(match[2]), match[1])


def delivery_name(endpoint: int, mark: str, message: int) -> str:
    """Return the name of the delivery of a message to an endpoint: `dlv_…`."""
    return f"dlv_{mark}{_written(endpoint)}_{_written(message)}"


def read_delivery_name(name: str) -> tuple[int, str, int] | None:
    """Return endpoint, mark and message of the delivery that has this name, if it can be one."""
    match = _DELIVERY.fullmatch(name)
    return match and (_read(match[2]), match[1], _read(match[3]))


def _written(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits


def _read(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * len(_DIGITS) + _DIGITS.index(digit)
    return number
