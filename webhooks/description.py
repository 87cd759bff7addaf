"""
The description: an endpoint as its owner gives it, in `POST` and `PATCH`.

Strategy: what is given is checked as a whole, so that a change is refused or made, never half. A change is
what was there with some members replaced, read like a new description; `null` puts a member's default back.
Whether the URL may be sent to is somebody else's knowledge, and asked when one is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, unique
from typing import Any, Final, TypeVar

import msgspec

from fanout.errors import TopicError
from fanout.topics import check_pattern
from webhooks.envelope import Form
from webhooks.errors import Invalid, shown, step
from webhooks.filters import Filter
from webhooks.headers import check_headers
from webhooks.keys import OVERLAP
from webhooks.rate import MAX_RATE, MIN_RATE
from webhooks.schedule import DEFAULT, Schedule
from webhooks.signature import Scheme, Secret, parse_secret

MAX_TOPICS: Final = 100
MAX_TYPES: Final = 100
MAX_TEXT: Final = 1000
"""Characters of the description; those of a type are bounded where events are made."""
MAX_IN_FLIGHT: Final = 100
IN_FLIGHT: Final = 16
"""Attempts on their way together, unless its owner says otherwise: many receivers have few workers."""

Admit = Callable[[str], object]
"""Checks a URL; raises `ValueError` with a sentence for one that nothing is sent to."""

MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
"""Decodes the body of a request to what the functions here take."""

# What would break a log line or a terminal, or that UTF-8 cannot carry. Topics refuse the same.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MAX_TYPE: Final = 255
_ORIGIN = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*", re.ASCII)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_PLACE = re.compile(r" - at `\$((?:\.\w+|\[\d+\]|\[\.\.\.\])*)`$")
_STEPS = re.compile(r"\.(\w+)|\[(\d+)\]")
_NULL: Final = msgspec.Raw(b"null")

Given = Mapping[str, msgspec.Raw]
Decoded = TypeVar("Decoded")


@unique
class Order(Enum):
    """In which order the deliveries of an endpoint are made."""

    NONE = "none"
    """Whatever is due: one that waits holds up no other."""
    FIFO = "fifo"
    """That of the log: one at a time, and each only when the one before it has ended."""


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    An endpoint as its owner wants it.

    Attributes:
        url: where events are sent.
        topics: patterns of the topics it gets.
        types: types of the events it gets; all if there are none.
        filter: condition on their data; see `webhooks.filters`.
        signatures: schemes that every attempt is signed by.
        body: the form in which events are sent.
        order: that of its deliveries.
        in_flight: attempts that may be on their way together; with `fifo` it is always one.
        rate: attempts a second, None for any number.
        schedule: seconds between the attempts of a delivery.
        headers: sent along with every attempt.
        origin: name under which the receiver is asked whether it agrees, and told with every attempt who
            sends: CloudEvents' "HTTP 1.1 Web Hooks for Event Delivery" 4.1.2. None to ask nothing.
        description: whatever its owner wants to remember.
    """

    url: str
    topics: tuple[str, ...]
    types: tuple[str, ...] = ()
    filter: dict[str, Any] | None = None
    signatures: tuple[Scheme, ...] = (Scheme.V1,)
    body: Form = Form.EVENT
    order: Order = Order.NONE
    in_flight: int = IN_FLIGHT
    rate: float | None = None
    schedule: tuple[float, ...] = DEFAULT
    headers: dict[str, str] = {}
    origin: str | None = None
    description: str = ""

    @property
    def ceiling(self) -> int:
        """How many attempts may be on their way together when all is well."""
        return 1 if self.order is Order.FIFO else self.in_flight

    def stored(self) -> bytes:
        """Return it as the store keeps it."""
        return msgspec.json.encode(self)


_CHOICES: Final[dict[str, type[Enum]]] = {
    "signatures": Scheme,
    "body": Form,
    "order": Order,
    "scheme": Scheme,
}
_STORED: Final = msgspec.json.Decoder(Description)


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    What a user may say when a secret is to be replaced.

    Attributes:
        scheme: of the secret.
        secret: the new one, None for one that nobody knows yet.
        overlap: seconds for which the old one goes on signing.
    """

    scheme: Scheme | None = None
    secret: str | None = None
    overlap: float = OVERLAP


def created(given: Given, admit: Admit) -> tuple[Description, Secret | None]:
    """
    Return the description that a user gives for a new endpoint, and the secret if he brings one along.

    Raises:
        Invalid: it cannot be.
    """
    given = dict(given)
    brought = given.pop("secret", _NULL)
    description = _checked(given, admit)
    if bytes(brought) == bytes(_NULL):
        return description, None
    secret = _secret(_text(brought, "secret"))
    if secret.scheme not in description.signatures:
        raise Invalid(f"the secret is for {secret.scheme.value}, which is not in signatures", "/secret")
    return description, secret


def changed(description: Description, given: Given, admit: Admit) -> Description:
    """
    Return a description with what a user gives instead of what was there, member by member.

    Raises:
        Invalid: it cannot be; nothing has changed then.
    """
    if "secret" in given:
        raise Invalid("the secret is not changed here: it is rotated", "/secret")
    before = {
        name: msgspec.Raw(msgspec.json.encode(getattr(description, name)))
        for name in Description.__struct_fields__
    }
    return _checked({**before, **given}, admit if "url" in given else None)


def restored(stored: bytes) -> Description:
    """Return a description from the store; it was checked when it was given."""
    return _STORED.decode(stored)


def rotation(given: Given) -> tuple[Scheme, Secret | None, float]:
    """
    Read how a secret is to be replaced: of which scheme, by which (None for a new one), with which overlap.

    Raises:
        Invalid: it cannot be.
    """
    wanted = decoded(given, Rotation)
    if wanted.secret is None:
        return wanted.scheme or Scheme.V1, None, wanted.overlap
    secret = _secret(wanted.secret)
    if wanted.scheme not in (None, secret.scheme):
        raise Invalid(f"the secret is for {secret.scheme.value}, another scheme", "/secret")
    return secret.scheme, secret, wanted.overlap


def _checked(given: Given, admit: Admit | None) -> Description:
    """Decode a description and check all that its types do not say."""
    description = decoded(given, Description)
    if admit is not None:
        try:
            admit(description.url)
        except ValueError as error:
            raise Invalid(str(error), "/url") from None
    _check_topics(description.topics)
    _check_types(description.types)
    _check_signatures(description.signatures)
    _under("filter", Filter, description.filter or {})
    _under("schedule", Schedule, description.schedule)
    _under("headers", check_headers, description.headers)
    _check_bounds(description)
    return description


def _check_topics(topics: Sequence[str]) -> None:
    _check_count("topics", topics, 1, MAX_TOPICS)
    for index, pattern in enumerate(topics):
        try:
            check_pattern(pattern)
        except TopicError as error:
            raise Invalid(str(error), f"/topics/{index}") from None


def _check_types(types: Sequence[str]) -> None:
    _check_count("types", types, 0, MAX_TYPES)
    for index, type in enumerate(types):
        if not 0 < len(type) <= _MAX_TYPE or _CONTROL.search(type):
            raise Invalid(f"{shown(type)} is no type of an event", f"/types/{index}")


def _check_signatures(schemes: Sequence[Scheme]) -> None:
    _check_count("signatures", schemes, 1, len(Scheme))
    if len(set(schemes)) != len(schemes):
        raise Invalid("a scheme is in signatures twice", "/signatures")


def _check_count(name: str, items: Sequence[object], least: int, most: int) -> None:
    if not least <= len(items) <= most:
        raise Invalid(f"there are {len(items)} {name}: there must be {least} to {most}", step(name))


def _check_bounds(description: Description) -> None:
    if not 1 <= description.in_flight <= MAX_IN_FLIGHT:
        raise Invalid(f"in_flight must be 1 to {MAX_IN_FLIGHT}", "/in_flight")
    if description.rate is not None and not MIN_RATE <= description.rate <= MAX_RATE:
        raise Invalid(f"the rate must be {MIN_RATE} to {MAX_RATE:.0f} attempts a second", "/rate")
    if description.origin is not None and not _ORIGIN.fullmatch(description.origin):
        raise Invalid("the origin must be a DNS name, like events.example.com", "/origin")
    if len(description.description) > MAX_TEXT or _CONTROL.search(description.description):
        raise Invalid(f"the description must be one line of at most {MAX_TEXT} characters", "/description")


def _under(name: str, check: Callable[[Any], object], value: object) -> None:
    """Check the value of a member; a mistake in it is one under the member's name."""
    try:
        check(value)
    except Invalid as invalid:
        raise invalid.under(step(name)) from None


def _secret(text: str) -> Secret:
    try:
        return parse_secret(text)
    except Invalid as invalid:
        raise invalid.under("/secret") from None


def _text(raw: msgspec.Raw, name: str) -> str:
    try:
        return msgspec.json.decode(raw, type=str)
    except ValueError:
        raise Invalid(f"the {name} is no string", step(name)) from None


def decoded(given: Given, type: type[Decoded]) -> Decoded:
    """
    Decode members to a struct; `null` is as good as leaving one out, but for one that there is not.

    Raises:
        Invalid: they cannot be.
    """
    known: tuple[str, ...] = type.__struct_fields__  # type: ignore[attr-defined]  # it is a struct
    members = {name: raw for name, raw in given.items() if bytes(raw) != bytes(_NULL) or name not in known}
    try:
        return msgspec.json.decode(msgspec.json.encode(members), type=type)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), known) from None
    except ValueError:  # the rest was checked when the members were taken apart
        raise Invalid("there is text that is not UTF-8 in it") from None
    except RecursionError:
        raise Invalid("it is nested too deeply") from None


def _invalid(message: str, known: Iterable[str]) -> Invalid:
    """Return the mistake that an error of the decoder is: of its words, those that help."""
    place = _PLACE.search(message)
    what = message[: place.start()] if place else message
    pointer = "".join(step(name or index) for name, index in _STEPS.findall(place[1])) if place else ""
    if (unknown := _UNKNOWN.fullmatch(what)) is not None:
        detail = f"there is no member {shown(unknown[1])}: there are {', '.join(known)}"
        return Invalid(detail, pointer + step(unknown[1]))
    if (missing := _MISSING.fullmatch(what)) is not None:
        return Invalid(f"{missing[1]} is missing", pointer + step(missing[1]))
    member = pointer.split("/")[1] if pointer else ""
    if what.startswith("Invalid enum value") and member in _CHOICES:
        what = f"there is only {' and '.join(each.value for each in _CHOICES[member])}"
    return Invalid(f"{member or 'it'} is wrong: {what}", pointer)
