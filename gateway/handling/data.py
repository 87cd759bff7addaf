"""
Data: what a client handed in, as the handler gets it.

The gateway took it, but that does not mean that it can be read here, and the queues of a broker take
anything. So what cannot be read is a value as well: its request fails, and its worker goes on.
"""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gateway.values import read_json


@dataclass(frozen=True, slots=True)
class Unreadable:
    """
    Stands for data that cannot be read.

    Attributes:
        why: a sentence for whoever looks at the request.
    """

    why: str


def data_of(data: Raw | UnsetType, data_base64: Raw | UnsetType) -> Any:
    """
    Return what was handed in: decoded from JSON (see `read_json`), bytes, None if there is nothing, or
    `Unreadable`.

    Args:
        data: JSON.
        data_base64: a JSON string with bytes in base64, and then these are meant.
    """
    try:
        if data_base64 is not UNSET:
            return b64decode(msgspec.json.decode(data_base64, type=str), validate=True)
        return None if data is UNSET else read_json(bytes(data))
    except ValueError as error:
        return Unreadable(f"its worker cannot read what was handed in: {error}")
