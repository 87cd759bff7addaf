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

_ENDPOINT = re.compile(r"wh_([1-9][0-9]{0,17})", re.ASCII)
_DELIVERY = re.compile(r"dl_([1-9][0-9]{0,17})_([1-9][0-9]{0,18})", re.ASCII)


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


_SETTINGS: Final = msgspec.json.Decoder(_Settings)
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


def endpoint_name(id: int) -> str:
    """Return the name of an endpoint: `wh_12`."""
    return f"wh_{id}"


def endpoint_id(name: str) -> int | None:
    """Return the id of the endpoint with a name; None if it is the name of none."""
    found = _ENDPOINT.fullmatch(name)
    return int(found[1]) if found else None


def delivery_name(endpoint: int, message: int) -> str:
    """Return the name of a delivery: `dl_12_1099511627777`."""
    return f"dl_{endpoint}_{message}"


def delivery_key(name: str) -> tuple[int, int] | None:
    """Return endpoint and message of the delivery with a name; None if it is the name of none."""
    found = _DELIVERY.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None
