"""
What the store keeps of an endpoint beside its status, as bytes, and the names under which users know things.

To the store settings and health are opaque; here is the one place that writes and reads them. Whoever changes
an endpoint reads its row with `loaded`, changes what that returns (`Endpoint.ask`, `Endpoint.change`, its
`keys`), and gives `status_of`, `settings_of` and `health_of` to `Store.change_endpoint`.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from webhooks import records
from webhooks.description import Description
from webhooks.endpoint import Endpoint, State
from webhooks.health import Record
from webhooks.keys import Key, Keys
from webhooks.records import Status
from webhooks.schedule import Dice
from webhooks.signature import parse_secret

_STATUSES: Final = {
    State.ACTIVE: Status.OPEN,
    State.PAUSED: Status.PAUSED,
    State.DISABLED: Status.DISABLED,
    State.GONE: Status.GONE,
}
_STATES: Final = {status: state for state, status in _STATUSES.items()}

_ENDPOINT = re.compile(r"wh_([a-z2-7]{8})")
_DELIVERY = re.compile(r"dl_([a-z2-7]{8})_([a-z2-7]{12})")


class _Key(msgspec.Struct, frozen=True):
    """A key as it is written down."""

    secret: str
    created: int
    expires: int = 0


class _Settings(msgspec.Struct, frozen=True):
    """Settings as they are written down."""

    description: Description
    keys: list[_Key]
    since: int


class _Health(msgspec.Struct, array_like=True):
    """A record as it is written down."""

    failures: int
    first_failure: int
    last_failure: int
    openings: int
    open_until: int
    wait_until: int


class _Topics(msgspec.Struct, frozen=True):
    """The patterns of a description."""

    topics: tuple[str, ...] = ()


class _Left(msgspec.Struct, frozen=True):
    """What is left of settings when the endpoint was removed; in settings, what tells whose they are."""

    description: _Topics


_SETTINGS: Final = msgspec.json.Decoder(_Settings)
_LEFT: Final = msgspec.json.Decoder(_Left)
_HEALTH: Final = msgspec.json.Decoder(_Health)
_NOTHING: Final = Record()


def settings(description: Description, keys: Keys, since: int) -> bytes:
    """
    Return the settings of an endpoint as the store keeps them.

    Args:
        description: as its owner wants it.
        keys: what it signs with.
        since: the number of a message; events up to it are none of its business, because it was not there.
    """
    kept = [_Key(key.secret.text, key.created, key.expires) for key in keys.all]
    return msgspec.json.encode(_Settings(description, kept, since))


def loaded(row: records.Endpoint, dice: Dice, now: int) -> Endpoint:
    """
    Return the endpoint in a row of the store; not one that was removed.

    Args:
        row: the row.
        dice: spreads its waits.
        now: milliseconds since the Unix epoch.
    """
    found = _SETTINGS.decode(row.settings)
    keys = Keys(tuple(Key(parse_secret(key.secret), key.created, key.expires) for key in found.keys))
    name = endpoint_name(row.id)
    return Endpoint(name, found.description, keys, dice, now, _STATES[row.status], record_of(row.health))


def since_of(row: records.Endpoint) -> int:
    """Return the `since` in a row's settings; see `settings`."""
    return _SETTINGS.decode(row.settings).since


def topics_of(row: records.Endpoint) -> tuple[str, ...]:
    """Return the patterns of an endpoint, also of one that was removed."""
    return _LEFT.decode(row.settings).description.topics if row.settings else ()


def left_of(row: records.Endpoint) -> bytes:
    """Return the settings to be left of an endpoint that is removed: nothing but the patterns."""
    return msgspec.json.encode(_Left(_Topics(topics_of(row))))


def settings_of(endpoint: Endpoint, since: int) -> bytes:
    """Return the settings that an endpoint has now; `since` is what `since_of` says of its row."""
    return settings(endpoint.description, endpoint.keys, since)


def status_of(endpoint: Endpoint) -> Status:
    """Return the status that an endpoint has now."""
    return _STATUSES[endpoint.state]


def health_of(endpoint: Endpoint) -> bytes:
    """Return the health of an endpoint as the store keeps it; empty while there is nothing to tell."""
    record = endpoint.health.record
    if record == _NOTHING:
        return b""
    return msgspec.json.encode(
        _Health(
            record.failures,
            record.first_failure,
            record.last_failure,
            record.openings,
            record.open_until,
            record.wait_until,
        )
    )


def record_of(health: bytes) -> Record:
    """Return the record that `health_of` wrote."""
    if not health:
        return Record()
    found = _HEALTH.decode(health)
    return Record(
        found.failures,
        found.first_failure,
        found.last_failure,
        found.openings,
        found.open_until,
        found.wait_until,
    )


# --- names
#
# Numbers are mixed before they are written, so that a name does not tell how many there are, and nobody
# thinks of taking it apart or of counting on.

_DIGITS: Final = "abcdefghijklmnopqrstuvwxyz234567"  # those of a log's epoch: nothing to escape or confuse
_FACTOR: Final = 0x9E3779B97F4A7C15
"""Odd, so that multiplying by it modulo a power of two can be undone."""
_ENDPOINT_DIGITS: Final = 8
_MESSAGE_DIGITS: Final = 12


def endpoint_name(id: int) -> str:
    """Return the name of an endpoint, `wh_…`: always the same, and no other endpoint's."""
    return f"wh_{_mixed(id, _ENDPOINT_DIGITS)}"


def endpoint_id(name: str) -> int | None:
    """Return the id of the endpoint with a name; None if it is the name of none."""
    found = _ENDPOINT.fullmatch(name)
    return _unmixed(found[1]) if found else None


def delivery_name(endpoint: int, message: int) -> str:
    """Return the name of a delivery, `dl_…`: always the same, and no other delivery's."""
    return f"dl_{_mixed(endpoint, _ENDPOINT_DIGITS)}_{_mixed(message, _MESSAGE_DIGITS)}"


def delivery_key(name: str) -> tuple[int, int] | None:
    """Return endpoint and message of the delivery with a name; None if it is the name of none."""
    found = _DELIVERY.fullmatch(name)
    return (_unmixed(found[1]), _unmixed(found[2])) if found else None


def job_name(job: int) -> str:
    """Return the name of a job, `job_…`."""
    return f"job_{_mixed(job, _ENDPOINT_DIGITS)}"


def _mixed(number: int, digits: int) -> str:
    """Write a number that is not negative and fits into so many digits."""
    mixed = number * _FACTOR % (1 << 5 * digits)
    return "".join(_DIGITS[mixed >> 5 * place & 31] for place in reversed(range(digits)))


def _unmixed(text: str) -> int:
    mixed = 0
    for digit in text:
        mixed = mixed << 5 | _DIGITS.index(digit)
    size = 1 << 5 * len(text)
    return mixed * pow(_FACTOR, -1, size) % size
