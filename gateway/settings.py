"""
The settings: one typed struct, read from flags, `SLUICE_*` variables, a TOML file and the defaults.

Strategy: each field carries what it is for, its unit, its bounds and the reason for its default. The flags of
the command line, the documentation and every refusal are made from that, so there is no second list. A value
that comes as text may use human units (`64KiB`, `7d`). Whatever is wrong ends in one `SettingsError`, whose
text is one sentence that says where it was given and why it cannot be.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

import msgspec

from gateway.units import DAY, GIB, KIB, MIB, WEEK, format_bytes, format_seconds, parse_bytes, parse_seconds

PREFIX: Final = "SLUICE_"
OWN_VARIABLES: Final = frozenset({"SLUICE_CONFIG", "SLUICE_URL"})
"""Variables that are no settings: where the file lies, and which gateway the client commands talk to."""

MEMORY: Final = "memory:"

Sticky = Literal["off", "redirect"]
LogLevel = Literal["debug", "info", "warning", "error"]


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


def _meta(about: About) -> msgspec.Meta:
    return msgspec.Meta(description=about.what, extra={"about": about})


def _text(what: str, why: str) -> msgspec.Meta:
    return _meta(About(what, Unit.TEXT, why))


def _flag(what: str, why: str) -> msgspec.Meta:
    return _meta(About(what, Unit.FLAG, why))


def _count(what: str, why: str, least: int = 0, most: int = 10**12) -> msgspec.Meta:
    return _meta(About(what, Unit.COUNT, why, least, most))


def _bytes(what: str, why: str, least: int = 1, most: int = 2**50) -> msgspec.Meta:
    return _meta(About(what, Unit.BYTES, why, least, most))


def _seconds(what: str, why: str, least: float = 0, most: float = 100 * 365 * DAY) -> msgspec.Meta:
    return _meta(About(what, Unit.SECONDS, why, least, most))


def default_data() -> str:
    """Return the folder of the user's in which the log lies by default (XDG base directories)."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not base.is_absolute():  # the specification: a relative path in the variable is to be ignored
        base = Path.home() / ".local" / "share"
    return str(base / "sluicegate")


# A timer shorter than this would be load, not care.
SHORTEST: Final = 0.05


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    All settings of one gateway; every value is checked on construction.

    Raises:
        SettingsError: a value has the wrong type, is out of bounds, or contradicts another.
    """

    host: Annotated[
        str,
        _text(
            "Address to listen on; `0.0.0.0` or `::` is every address, which needs `insecure`.",
            "Only this machine, because it serves without authentication.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        _count(
            "TCP port to listen on; 0 takes a free one.", "Free on most machines, needs no root.", 0, 65535
        ),
    ] = 8000
    data: Annotated[
        str,
        _text(
            "Folder in which the log lies; `memory:` keeps nothing beyond the process.",
            "Under `$XDG_DATA_HOME`, the user's own, so that a first start needs no permission.",
        ),
    ] = msgspec.field(default_factory=default_data)
    backbone: Annotated[
        str,
        _text(
            "AMQP address of the broker, `amqp://user:password@host:port,host2:port/vhost`; empty is none.",
            "Everything embedded.",
        ),
    ] = ""
    backbone_ca: Annotated[
        str,
        _text(
            "PEM file with the authorities that may have signed the broker's certificate, for `amqps://`; "
            "empty is the system's.",
            "What the rest of the system trusts.",
        ),
    ] = ""
    backbone_certificate: Annotated[
        str,
        _text(
            "PEM file with this client's certificate and its key, for a broker that asks for one.",
            "Name and password say who we are.",
        ),
    ] = ""
    stream: Annotated[
        str,
        _text(
            "Name of the stream on the broker that is the log.",
            "Replicas with the same name share a log.",
        ),
    ] = "sluicegate"
    exchanges: Annotated[
        str,
        _text(
            "Exchanges of the broker whose messages are events, each with a pattern: "
            "`events:#,orders:order.*`. The first is made if need be, and gets what is published here.",
            "A producer needs to know nothing else.",
        ),
    ] = "events:#"
    store: Annotated[
        str,
        _text(
            "Address of the PostgreSQL store, `postgresql://user:password@host:port/database?sslmode=…`; "
            "empty is SQLite.",
            "Everything embedded.",
        ),
    ] = ""
    workers: Annotated[
        int,
        _count(
            "Processes that serve one port, each a replica of its own; more than 1 needs a `backbone`.",
            "One process is enough for most, and the embedded log has one writer.",
            1,
            64,
        ),
    ] = 1
    name: Annotated[
        str,
        _text(
            "Name of this replica among those on its stream, the same after a restart; empty is host and "
            "port.",
            "What it owned before a restart is its own again.",
        ),
    ] = ""
    advertise: Annotated[
        str,
        _text(
            "URL under which clients reach this very replica, and not another behind the same load balancer; "
            "empty is none.",
            "Only you know what is in between.",
        ),
    ] = ""
    sticky: Annotated[
        Sticky,
        _text(
            "What is done with a client that belongs to another replica: off serves it, redirect sends it.",
            "A load balancer that hashes does it better; without one, redirect needs `advertise` on each.",
        ),
    ] = "off"
    insecure: Annotated[
        bool,
        _flag(
            "Serve other machines although everybody who reaches the port may read and publish.",
            "Openness to the network has to be asked for.",
        ),
    ] = False
    tls_cert: Annotated[
        str,
        _text(
            "PEM file with the certificate for clients and the chain behind it, for `https://`; empty is "
            "`http://`. It may hold the key as well, and is read again when it changes.",
            "On one machine there is nobody to hide from.",
        ),
    ] = ""
    tls_key: Annotated[
        str,
        _text(
            "PEM file with the key of that certificate; empty if it is in the same file.",
            "Some tools write one file, others two.",
        ),
    ] = ""
    trusted_proxies: Annotated[
        str,
        _text(
            "Networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed: "
            "`127.0.0.1,10.1.0.0/16`; empty is nobody.",
            "Anybody can write these headers.",
        ),
    ] = ""

    retention_seconds: Annotated[
        float,
        _seconds(
            "Age at which events leave the log; 0 is no limit.", "A client that was away for a week resumes."
        ),
    ] = WEEK
    retention_bytes: Annotated[
        int,
        _bytes("Size above which the oldest events leave the log; 0 is no limit.", "Fits on any disk.", 0),
    ] = GIB
    retention_events: Annotated[
        int,
        _count(
            "Number of events above which the oldest leave the log; 0 is no limit.", "Bytes and age limit it."
        ),
    ] = 0

    window_bytes: Annotated[
        int,
        _bytes(
            "Memory for the window, the recent part of the log, frames and indexes included.",
            "Minutes of a busy log, small beside the interpreter and its connections.",
            KIB,
        ),
    ] = 64 * MIB
    window_events: Annotated[
        int,
        _count("Most events in the window; 0 is no limit.", "Bounds what many tiny events cost in objects."),
    ] = 200_000
    window_seconds: Annotated[
        float,
        _seconds("Age at which events leave the window; 0 is no limit.", "Memory already limits it."),
    ] = 0

    buffer_bytes: Annotated[
        int,
        _bytes(
            "Most bytes waiting in this process for one connection; who is slower is served from the log.",
            "Covers a round trip of 100 ms at 5 Mbit/s; 10,000 stalled clients cost 655 MB at most.",
            KIB,
        ),
    ] = 64 * KIB
    notsent_lowat: Annotated[
        int,
        _bytes(
            "Most unsent bytes the kernel takes for one connection (TCP_NOTSENT_LOWAT).",
            "Two buffers: the link stays full, and a slow client is noticed early.",
            KIB,
            2**31 - 1,
        ),
    ] = 128 * KIB
    stall_timeout: Annotated[
        float,
        _seconds(
            "A connection whose peer takes nothing for so long, with bytes waiting, is aborted.",
            "Longer than a phone's change from Wi-Fi to mobile, shorter than a user's patience.",
            SHORTEST,
        ),
    ] = 30
    heartbeat_seconds: Annotated[
        float,
        _seconds(
            "A quiet stream gets a heartbeat this often; a WebSocket peer that answers no ping is dropped.",
            "A quarter of the 60 seconds after which many proxies drop a silent connection.",
            SHORTEST,
        ),
    ] = 15
    websocket_deflate: Annotated[
        bool,
        _flag(
            "Offer permessage-deflate; each event is compressed once, for all.",
            "Most events are too small to gain, and each costs the compression.",
        ),
    ] = False
    max_connections: Annotated[
        int,
        _count(
            "Most connections at a time; 0 is as many as the limit of open files leaves room for.",
            "The operator's limit of open files is the natural one.",
        ),
    ] = 0
    max_topics: Annotated[
        int,
        _count(
            "Most patterns of one subscription.",
            "More is a case for a wildcard; each costs index memory and time at connect.",
            1,
            10_000,
        ),
    ] = 100

    max_event_bytes: Annotated[
        int,
        _bytes(
            "Largest single event, as its JSON is stored.",
            "Larger things belong in a store; send their URL.",
            1,
            GIB,
        ),
    ] = MIB
    max_body_bytes: Annotated[
        int,
        _bytes(
            "Largest body of a publish request; a larger one is refused before it is read whole.",
            "Holds 10,000 events of 1.6 KB, and bounds the memory of one request.",
            1,
            GIB,
        ),
    ] = 16 * MIB
    max_batch_events: Annotated[
        int,
        _count("Most events in one publish request.", "One commit stays in the milliseconds.", 1, 1_000_000),
    ] = 10_000
    max_message_bytes: Annotated[
        int,
        _bytes(
            "Largest WebSocket message from a client, all fragments together.",
            "The largest event and 64 KiB for what surrounds it.",
            125,
            GIB,
        ),
    ] = MIB + 64 * KIB
    max_header_bytes: Annotated[
        int,
        _bytes(
            "Largest head of a request: its line and headers.",
            "Room for 100 patterns of full length.",
            KIB,
            16 * MIB,
        ),
    ] = 64 * KIB
    header_timeout: Annotated[
        float,
        _seconds(
            "The head of a request must be there within this time.",
            "Ends clients that hold a connection with half a request.",
            SHORTEST,
        ),
    ] = 10
    body_timeout: Annotated[
        float,
        _seconds(
            "The body of a request must go on within this time.",
            "A pause longer than that is a dead peer.",
            SHORTEST,
        ),
    ] = 30

    dedup_seconds: Annotated[
        float,
        _seconds(
            "An id published again within this time is a duplicate and not stored again; 0 is never.",
            "Longer than a producer's retries.",
        ),
    ] = 300
    dedup_events: Annotated[
        int,
        _count(
            "Most ids remembered for that; the oldest are forgotten first.",
            "Bounds the memory of a busy producer's five minutes.",
        ),
    ] = 1_000_000
    queue_bytes: Annotated[
        int,
        _bytes(
            "Most bytes of events waiting for their commit; beyond it publishers get 503 and Retry-After.",
            "One largest request; a disk writes it in well under a second.",
            KIB,
        ),
    ] = 16 * MIB
    queue_events: Annotated[
        int,
        _count("Most events waiting for their commit.", "As `queue_bytes`, for small events.", 1),
    ] = 50_000
    poll_retry_after: Annotated[
        int,
        _count(
            "Seconds that the `Retry-After` of a poll answer advises.",
            "A client that polls each second sees events soon and costs little.",
            0,
            3600,
        ),
    ] = 1

    webhooks: Annotated[
        bool,
        _flag(
            "Send events to webhooks, and keep them in the store.",
            "They cost nothing as long as there are no endpoints.",
        ),
    ] = True
    webhooks_allow: Annotated[
        str,
        _text(
            "Networks that webhooks may be sent to although they are not part of the internet: "
            "`127.0.0.0/8,10.1.0.0/16`.",
            "Nobody reaches through us what he cannot reach himself.",
        ),
    ] = ""
    webhooks_ports: Annotated[
        str,
        _text(
            "Ports that webhooks may be sent to: `443,8000-8999`; empty is 80, 443, and from 1024 on those "
            "that belong to no other protocol.",
            "What receivers use; behind other ports a request may be taken for something else.",
        ),
    ] = ""
    webhooks_https_only: Annotated[
        bool,
        _flag(
            "Send webhooks to `https://` only.", "Receivers inside of a network often have no certificate."
        ),
    ] = False
    webhooks_timeout: Annotated[
        float,
        _seconds(
            "Time for one attempt to send a webhook: name, connection, TLS, request and answer.",
            "What receivers are commonly given; they should answer first and work afterwards.",
            0.1,
            300,
        ),
    ] = 15
    webhooks_in_flight: Annotated[
        int,
        _count(
            "Most attempts on their way at a time, of all endpoints together.",
            "A few for each of hundreds of endpoints; each may take a connection.",
            1,
            10_000,
        ),
    ] = 1024
    webhooks_retention_seconds: Annotated[
        float,
        _seconds(
            "Age at which deliveries are forgotten, whether they arrived or not; 0 is never.",
            "As long as the log; the default schedule of attempts ends after three days.",
        ),
    ] = WEEK

    services: Annotated[
        str,
        _text(
            "Services that clients can hand requests in for, `reports,mail`; empty is none.",
            "Requests cost nothing where nobody uses them.",
        ),
    ] = ""
    request_bytes: Annotated[
        int,
        _bytes(
            "Largest body of a request.",
            "Larger things belong in a store; send their URL.",
            1,
            GIB,
        ),
    ] = 256 * KIB
    request_result_bytes: Annotated[
        int,
        _bytes("Largest result of a request, and largest progress.", "As for what is handed in.", 1, GIB),
    ] = 256 * KIB
    request_queue: Annotated[
        int,
        _count(
            "Most unfinished requests of one service; beyond it a client is answered 429.",
            "An hour of work for three workers that take a second each.",
            1,
            10_000_000,
        ),
    ] = 10_000
    request_ttl: Annotated[
        float,
        _seconds(
            "Time in which a request has to be done, unless its client says otherwise.",
            "Whoever waits longer than a day has asked again.",
            1,
        ),
    ] = DAY
    request_keep: Annotated[
        float,
        _seconds(
            "Time for which a finished request and its result can be asked for.",
            "A phone that was out of reach for a while finds its result.",
            1,
        ),
    ] = 3600
    request_tries: Annotated[
        int,
        _count(
            "How often a request may fail before nobody tries it any more.",
            "What fails five times in a row fails for a reason of its own.",
            1,
            1000,
        ),
    ] = 5
    request_backoff: Annotated[
        float,
        _seconds(
            "Time before the second try of a request, at most; doubled for each that follows.",
            "A restart of what the worker needs is over by the third.",
            0,
            DAY,
        ),
    ] = 1
    request_lease: Annotated[
        float,
        _seconds(
            "Time after which a worker that is not heard of has its requests given to others.",
            "Workers report three times as often.",
            1,
            DAY,
        ),
    ] = 30

    drain_seconds: Annotated[
        float,
        _seconds(
            "Time over which clients are told to reconnect, on SIGTERM, before their connections close.",
            "Spreads 10,000 reconnects to 1,000 a second; within the 30 seconds that Kubernetes gives.",
            0,
            DAY,
        ),
    ] = 10
    log_level: Annotated[
        LogLevel,
        _text("How much is logged: debug, info, warning or error.", "One line per thing that ended."),
    ] = "info"

    def __post_init__(self) -> None:
        for field in FIELDS.values():
            field.check(getattr(self, field.name))
        _check_services(self.services)  # what else contradicts them asks for their names
        for name, refused, why in _REFUSALS:
            if refused(self):
                raise SettingsError(name, why.format(value=getattr(self, name)))
        if self.backbone:
            _check_backbone(self.backbone)
        if self.store:
            _check_store(self.store)
        _check_guard(self)

    @property
    def data_folder(self) -> Path | None:
        """The folder of the log, or None if nothing is kept."""
        return None if self.data == MEMORY else Path(self.data).expanduser()

    @property
    def scheme(self) -> str:
        """How the addresses of this gateway begin."""
        return "https" if self.tls_cert else "http"

    @property
    def where_data_is(self) -> str:
        """What is kept where, in a few words; with a broker and a store the data folder is not used."""
        return "the broker and the store" if self.backbone and self.store else self.data


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
            shown = _shown(value if given is None else given)
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


def _fields() -> Iterator[Field]:
    hints = get_type_hints(Settings, include_extras=True)
    for info in msgspec.structs.fields(Settings):
        kind, meta = get_args(hints[info.name])
        default = info.default if info.default is not msgspec.NODEFAULT else None
        yield Field(info.name, meta.extra["about"], default, get_args(kind))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_encrypted(settings: Settings) -> bool:
    return settings.backbone.startswith("amqps://")


def _check_backbone(text: str) -> None:
    """Refuse an address of a broker that is none, without repeating it: it may hold a password."""
    from gateway.amqp.address import Address, AddressError  # noqa: PLC0415  (nobody else pays for it)

    try:
        Address.parse(text)
    except AddressError as error:
        raise SettingsError("backbone", str(error)) from None


def _check_store(text: str) -> None:
    """Refuse an address of a store that is none, without repeating it: it may hold a password."""
    from gateway.postgres.address import Address, AddressError  # noqa: PLC0415  (nobody else pays for it)

    try:
        Address.parse(text)
    except AddressError as error:
        raise SettingsError("store", str(error)) from None


def _check_guard(settings: Settings) -> None:
    """Refuse networks and ports that are none."""
    from webhooks.guard import Ports, parse_networks  # noqa: PLC0415  (nobody else pays for it)

    for name, parse in (
        ("trusted_proxies", parse_networks),
        ("webhooks_allow", parse_networks),
        ("webhooks_ports", Ports.parse),
    ):
        text = getattr(settings, name)
        try:
            if text:
                parse(text)
        except ValueError as error:
            raise SettingsError(name, str(error)) from None


def _check_services(text: str) -> None:
    """Refuse services with names that cannot be."""
    from gateway.requests.options import services_of  # noqa: PLC0415  (it needs what is here for its types)

    try:
        services_of(text)
    except ValueError as error:
        raise SettingsError("services", str(error)) from None


def _takes_requests(settings: Settings) -> bool:
    """Say whether events of requests would come to the log on a broker."""
    from gateway.backbone import takes, topology  # noqa: PLC0415  (nobody else pays for it)

    return takes(topology(settings))("requests.any")


MAX_NAME_BYTES: Final = 250
"""A short string of AMQP has 255; the queue of the dead letters has five more than the exchange."""

_NO_PATH = "no file or folder can have this name, or there is no such user behind its ~"
_ONLY_ENCRYPTED = "it says what to do with amqps://, but the backbone is none or not encrypted"

# What contradicts the rest: the setting to name, the test, and the sentence.
_REFUSALS: Final[tuple[tuple[str, Callable[[Settings], bool], str], ...]] = (
    (
        "host",
        lambda s: not s.insecure and not _is_loopback(s.host),
        "{value} can be reached from other machines and nobody is asked who they are: only with --insecure",
    ),
    (
        "tls_key",
        lambda s: s.tls_key != "" and not s.tls_cert,
        "a key is of use only with a certificate: give a tls_cert as well",
    ),
    (
        "retention_events",
        lambda s: s.retention_events != 0 and s.backbone != "",
        "a stream on a broker is kept by age and by bytes only; leave it at 0",
    ),
    ("backbone_ca", lambda s: s.backbone_ca != "" and not _is_encrypted(s), _ONLY_ENCRYPTED),
    (
        "backbone_certificate",
        lambda s: s.backbone_certificate != "" and not _is_encrypted(s),
        _ONLY_ENCRYPTED,
    ),
    ("stream", lambda s: not 0 < len(s.stream.encode()) <= 200, "a stream has a name of 1 to 200 bytes"),
    (
        "exchanges",
        lambda s: not re.fullmatch(r"([^,:]+(:[^,]*)?)(,[^,:]+(:[^,]*)?)*", s.exchanges),
        "{value!r} is no list of exchanges like events:#,orders:order.*",
    ),
    (
        "exchanges",
        lambda s: max(len(each.encode()) for each in re.split("[,:]", s.exchanges)) > MAX_NAME_BYTES,
        f"the name of an exchange, or a pattern, has more than {MAX_NAME_BYTES} bytes",
    ),
    (
        "workers",
        lambda s: s.workers > 1 and not s.backbone,
        "{value} processes cannot share the embedded log, which has one writer: give a --backbone",
    ),
    (
        "services",
        lambda s: s.services != "" and s.backbone != "" and not _takes_requests(s),
        "requests are events on requests.#, and `exchanges` does not bind these from its first exchange",
    ),
    (
        "request_bytes",
        lambda s: s.services != "" and s.request_bytes + 1024 > s.max_event_bytes,
        "a request has to fit into an event, with 1 KiB to spare: max_event_bytes is less",
    ),
    (
        "request_result_bytes",
        lambda s: s.services != "" and s.request_result_bytes + 1024 > s.max_event_bytes,
        "a result has to fit into an event, with 1 KiB to spare: max_event_bytes is less",
    ),
    (
        "request_ttl",
        lambda s: s.services != "" and 0 < s.retention_seconds < s.request_ttl + s.request_keep,
        "with request_keep it is longer than retention_seconds, for which requests are in the log",
    ),
    (
        "name",
        lambda s: len(s.name.encode()) > 100 or s.name != s.name.strip(),
        "a name has at most 100 bytes, and no space at its ends",
    ),
    (
        "advertise",
        lambda s: s.advertise != "" and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", s.advertise),
        "{value!r} is no address like https://push-1.example.com, without query or password",
    ),
    (
        "sticky",
        lambda s: s.sticky == "redirect" and not (s.backbone and s.advertise),
        "clients are sent to other replicas only on a backbone, and where each has an address to advertise",
    ),
    ("data", lambda s: not _is_path(s.data), _NO_PATH),
    ("backbone_ca", lambda s: not _is_path(s.backbone_ca), _NO_PATH),
    ("backbone_certificate", lambda s: not _is_path(s.backbone_certificate), _NO_PATH),
    ("data", lambda s: s.data == "", "empty is no folder; give a path, or memory: to keep nothing"),
)


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

FIELDS: Final[dict[str, Field]] = {field.name: field for field in _fields()}
"""Every setting by its name, in the order in which they are explained."""


def load(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    config: str | None = None,
) -> Settings:
    """
    Read the settings: a flag wins over a `SLUICE_*` variable, that over the file, that over the default.

    Args:
        flags: what was given on the command line, by setting; None is not given.
        environ: the environment; that of the process if None.
        config: path of a TOML file; `SLUICE_CONFIG` if None, no file if that is not set either.

    Raises:
        SettingsError: the first thing that is wrong.
    """
    environ = os.environ if environ is None else environ
    config = config or environ.get("SLUICE_CONFIG") or None
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, given, source in (*_from_file(config), *_from_environment(environ), *_from_flags(flags or {})):
        try:
            values[name] = FIELDS[name].read(given)
        except SettingsError as error:
            raise SettingsError(name, error.why, source) from None
        sources[name] = source
    try:
        return Settings(**values)
    except SettingsError as error:
        raise SettingsError(error.name, error.why, sources.get(error.name, "")) from None


_Given = tuple[str, object, str]  # the setting, its value, where it was given


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for name, given in flags.items():
        if given is not None:
            yield name, given, FIELDS[name].flag


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Given]:
    by_variable = {field.variable: name for name, field in FIELDS.items()}
    for variable, given in sorted(environ.items()):
        if not variable.startswith(PREFIX) or variable in OWN_VARIABLES:
            continue
        if _is_service_link(variable, given):
            raise SettingsError(
                variable,
                "this looks like what Kubernetes sets for a service named sluice; name the service otherwise "
                "or set enableServiceLinks: false",
            )
        if variable not in by_variable:
            names = [known.removeprefix(PREFIX) for known in (*by_variable, *OWN_VARIABLES)]
            raise SettingsError(variable, _unknown(variable.removeprefix(PREFIX), names, PREFIX))
        yield by_variable[variable], given, variable


def _is_service_link(variable: str, given: str) -> bool:
    """Say whether Kubernetes made it: `SLUICE_PORT=tcp://10.0.0.1:80` beside `SLUICE_SERVICE_HOST`."""
    return variable.startswith(("SLUICE_SERVICE_", "SLUICE_PORT_")) or (
        variable == "SLUICE_PORT" and given.startswith(("tcp://", "udp://"))
    )


def _from_file(config: str | None) -> Iterator[_Given]:
    if config is None:
        return
    for name, given in _read_toml(config).items():
        source = f"{name} in {config}"
        if name not in FIELDS:
            raise SettingsError(name, _unknown(name, list(FIELDS)), source)
        yield name, given, source


def _read_toml(config: str) -> dict[str, object]:
    if not _is_path(config):
        raise SettingsError(config, _NO_PATH)
    try:
        with Path(config).expanduser().open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SettingsError(config, f"the file cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of numbers with thousands of digits, and of deep nesting
        raise SettingsError(config, f"the file is not TOML: {error}") from None


def _is_path(text: str) -> bool:
    """Say whether a path can be looked for: it has no NUL, and a `~` at its begin is of a user there is."""
    try:
        Path(text).expanduser()
    except RuntimeError:
        return False
    return "\0" not in text


def _unknown(name: str, known: list[str], prefix: str = "") -> str:
    """Return the half sentence about a name that no setting has, with the likely one if any is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return "no setting has this name" + (f"; did you mean {prefix}{close[0]}?" if close else "")


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
