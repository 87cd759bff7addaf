"""One setting: what it is for, its unit and bounds, why it has its default, and how text is read as it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import msgspec

from gateway.units import DAY, format_bytes, format_seconds, parse_bytes, parse_seconds

PREFIX: Final = "SLUICE_"

# A timer shorter than this would be load, not care.
SHORTEST: Final = 0.05


class SettingsError(ValueError):
    """
    A setting that cannot be; the text is one sentence.

    Args:
        name: the setting's name, or the unknown name.
        why: what is wrong with it, the second half of the sentence.
        source: where it was given, in the reader's terms: `SLUICE_PORT`, `--port`, `port in sluice.toml`.
    """

    def __init__(self, name: str, why: str, source: str = "") -> None:
        super().__init__(name, why, source)
        self.name = name
        self.why = why
        self.source = source or name

    def __str__(self) -> str:
        return f"{self.source}: {self.why}"


class Unit(Enum):
    """What the number or text of a setting is, and so which texts may stand for it."""

    TEXT = "text"
    FLAG = "yes or no"
    COUNT = "number"
    BYTES = "bytes"
    SECONDS = "seconds"


@dataclass(frozen=True, slots=True)
class About:
    """What a field's annotation says about it beside its type."""

    what: str
    unit: Unit
    why: str  # the reason for the default
    least: float = 0
    most: float = math.inf
    secret: bool = False  # not to be repeated in any message


def _meta(about: About) -> msgspec.Meta:
    return msgspec.Meta(description=about.what, extra={"about": about})


def text(what: str, why: str, *, secret: bool = False) -> msgspec.Meta:
    return _meta(About(what, Unit.TEXT, why, secret=secret))


def flag(what: str, why: str) -> msgspec.Meta:
    return _meta(About(what, Unit.FLAG, why))


def count(what: str, why: str, least: int = 0, most: int = 10**12) -> msgspec.Meta:
    return _meta(About(what, Unit.COUNT, why, least, most))


def bytes_(what: str, why: str, least: int = 1, most: int = 2**50) -> msgspec.Meta:
    return _meta(About(what, Unit.BYTES, why, least, most))


def seconds(what: str, why: str, least: float = 0, most: float = 100 * 365 * DAY) -> msgspec.Meta:
    return _meta(About(what, Unit.SECONDS, why, least, most))


@dataclass(frozen=True, slots=True)
class Field:
    """One setting as the command line, the documentation and the checks see it."""

    name: str
    about: About
    default: Any
    choices: tuple[str, ...] = ()  # the only texts allowed; empty is any

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def read(self, given: object) -> Any:
        """
        Return the value that was given, as text or as what TOML has for it.

        Raises:
            SettingsError: it is no value of this setting.
        """
        value = given
        if isinstance(given, str) and self.about.unit is not Unit.TEXT:
            value = _READERS[self.about.unit](given)
        self.check(value, given)
        return value

    def check(self, value: object, given: object = None) -> None:
        """Raise SettingsError if `value` (shown as `given`) has the wrong type or is out of bounds."""
        if not self._allows(value):
            shown = "what was given" if self.about.secret else _shown(value if given is None else given)
            raise SettingsError(self.name, f"{shown} is not {self.demand}")

    @property
    def demand(self) -> str:
        """What a value must be, as the end of a sentence."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        about = self.about
        match about.unit:
            case Unit.TEXT:
                return "a text without control characters"
            case Unit.FLAG:
                return "true or false"
            case Unit.COUNT:
                return f"a whole number from {about.least:.0f} to {about.most:.0f}"
            case Unit.BYTES:
                most, least = format_bytes(int(about.most)), format_bytes(int(about.least))
                return f"a size from {least} to {most}, in bytes or like 64KiB or 10MB"
            case Unit.SECONDS:
                most, least = format_seconds(about.most), format_seconds(about.least)
                return f"a time from {least} to {most}, in seconds or like 500ms, 5m or 7d"

    def _allows(self, value: object) -> bool:
        match self.about.unit:
            case Unit.FLAG:
                return isinstance(value, bool)
            case Unit.TEXT:
                return (
                    isinstance(value, str)
                    and value.isprintable()
                    and (not self.choices or value in self.choices)
                )
            case Unit.SECONDS:
                kind: tuple[type, ...] = (int, float)
            case _:
                kind = (int,)
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        return self.about.least <= value <= self.about.most  # type: ignore[operator]  # an int or float, see `kind`


def _read_count(text: str) -> int | None:
    return int(text) if re.fullmatch(r" *\d{1,3}(_?\d){0,15} *", text, re.ASCII) else None


_FLAGS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_READERS: Final[dict[Unit, Callable[[str], object]]] = {
    Unit.FLAG: lambda text: _FLAGS.get(text.strip().lower()),
    Unit.COUNT: _read_count,
    Unit.BYTES: parse_bytes,
    Unit.SECONDS: parse_seconds,
}


def _shown(value: object) -> str:
    """Return a value fit for a message: quoted as given if text, and short."""
    text = (
        repr(value)
        if isinstance(value, str)
        else str(value).lower()
        if isinstance(value, bool)
        else f"{value:#x}"  # the digits of a huge one cannot be had
        if isinstance(value, int) and abs(value) >= 10**60
        else str(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."
