"""
The settings: one typed struct, read from flags, `SLUICE_*` variables, a TOML file and the defaults.

Strategy: each field carries what it is for, its unit, its bounds and the reason for its default. The flags of
the command line, the documentation and every refusal are made from that, so there is no second list. A value
that comes as text may use human units (`64KiB`, `7d`). Whatever is wrong ends in one `SettingsError`, whose
text is one sentence that says where it was given and why it cannot be.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

import msgspec

from gateway.setting import PREFIX, SHORTEST, Field, SettingsError, bytes_, count, flag, seconds, text
from gateway.settings_checks import NO_PATH, check_together, is_path
from gateway.units import DAY, GIB, KIB, MIB, WEEK

OWN_VARIABLES: Final = frozenset({"SLUICE_CONFIG", "SLUICE_TOKEN", "SLUICE_URL"})
"""
Variables that are no settings: where the file lies, and for the client commands which gateway they talk to
and by which token.
"""

MEMORY: Final = "memory:"

Sticky = Literal["off", "redirect"]
LogLevel = Literal["debug", "info", "warning", "error"]


def default_data() -> str:
    """Return the folder of the user's in which the log lies by default (XDG base directories)."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not base.is_absolute():  # the specification: a relative path in the variable is to be ignored
        base = Path.home() / ".local" / "share"
    return str(base / "sluicegate")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    All settings of one gateway; every value is checked on construction.

    Raises:
        SettingsError: a value has the wrong type, is out of bounds, or contradicts another.
    """

    host: Annotated[
        str,
        text(
            "Address to listen on; `0.0.0.0` or `::` is every address, which needs keys for tokens "
            "(`jwt_key`, `jwks`), or `insecure`.",
            "Only this machine, because without keys nobody is asked who they are.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        count(
            "TCP port to listen on; 0 takes a free one.", "Free on most machines, needs no root.", 0, 65535
        ),
    ] = 8000
    data: Annotated[
        str,
        text(
            "Folder in which the log lies; `memory:` keeps nothing beyond the process.",
            "Under `$XDG_DATA_HOME`, the user's own, so that a first start needs no permission.",
        ),
    ] = msgspec.field(default_factory=default_data)
    backbone: Annotated[
        str,
        text(
            "AMQP address of the broker, `amqp://user:password@host:port,host2:port/vhost`; empty is none.",
            "Everything embedded.",
        ),
    ] = ""
    backbone_ca: Annotated[
        str,
        text(
            "PEM file with the authorities that may have signed the broker's certificate, for `amqps://`; "
            "empty is the system's.",
            "What the rest of the system trusts.",
        ),
    ] = ""
    backbone_certificate: Annotated[
        str,
        text(
            "PEM file with this client's certificate and its key, for a broker that asks for one.",
            "Name and password say who we are.",
        ),
    ] = ""
    stream: Annotated[
        str,
        text(
            "Name of the stream on the broker that is the log.",
            "Replicas with the same name share a log.",
        ),
    ] = "sluicegate"
    exchanges: Annotated[
        str,
        text(
            "Exchanges of the broker whose messages are events, each with a pattern: "
            "`events:#,orders:order.*`. The first is made if need be, and gets what is published here.",
            "A producer needs to know nothing else.",
        ),
    ] = "events:#"
    store: Annotated[
        str,
        text(
            "Address of the PostgreSQL store, `postgresql://user:password@host:port/database?sslmode=…`; "
            "empty is SQLite.",
            "Everything embedded.",
        ),
    ] = ""
    workers: Annotated[
        int,
        count(
            "Processes that serve one port, each a replica of its own; more than 1 needs a `backbone`.",
            "One process is enough for most, and the embedded log has one writer.",
            1,
            64,
        ),
    ] = 1
    name: Annotated[
        str,
        text(
            "Name of this replica among those on its stream, the same after a restart; empty is host and "
            "port.",
            "What it owned before a restart is its own again.",
        ),
    ] = ""
    advertise: Annotated[
        str,
        text(
            "URL under which clients reach this very replica, and not another behind the same load balancer; "
            "empty is none.",
            "Only you know what is in between.",
        ),
    ] = ""
    sticky: Annotated[
        Sticky,
        text(
            "What is done with a client that belongs to another replica: off serves it, redirect sends it.",
            "A load balancer that hashes does it better; without one, redirect needs `advertise` on each.",
        ),
    ] = "off"
    insecure: Annotated[
        bool,
        flag(
            "Serve other machines although everybody who reaches the port may read and publish.",
            "Openness to the network has to be asked for.",
        ),
    ] = False
    tls_cert: Annotated[
        str,
        text(
            "PEM file with the certificate for clients and the chain behind it, for `https://`; empty is "
            "`http://`. It may hold the key as well, and is read again when it changes.",
            "On one machine there is nobody to hide from.",
        ),
    ] = ""
    tls_key: Annotated[
        str,
        text(
            "PEM file with the key of that certificate; empty if it is in the same file.",
            "Some tools write one file, others two.",
        ),
    ] = ""
    trusted_proxies: Annotated[
        str,
        text(
            "Networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed: "
            "`127.0.0.1,10.1.0.0/16`; empty is nobody.",
            "Anybody can write these headers.",
        ),
    ] = ""

    jwt_key: Annotated[
        str,
        text(
            "Secret by which tokens are signed with HS256, at least 32 bytes. Better given as "
            "`SLUICE_JWT_KEY` than as a flag, which everybody on the machine can see.",
            "Whoever knows it can make tokens, so there is none that everybody knows.",
            secret=True,
        ),
    ] = ""
    jwks: Annotated[
        str,
        text(
            "Key set (RFC 7517) by which tokens are verified: a file, read again when it changes, or an "
            "`https://` address, asked every five minutes and when a token names a new key.",
            "With neither this nor `jwt_key` nobody is asked who they are.",
        ),
    ] = ""
    jwt_audience: Annotated[
        str,
        text(
            "What a token has to name in `aud`; empty is nothing, and then a token that names something is "
            "refused.",
            "A token for somebody else must not open this gateway.",
        ),
    ] = ""
    jwt_issuer: Annotated[
        str,
        text(
            "What a token has to have as `iss`; empty is anything.",
            "The key already says who made a token.",
        ),
    ] = ""
    origins: Annotated[
        str,
        text(
            "Origins whose pages may use this gateway from a browser: `https://app.example.com`; `*` is any, "
            "without cookies. Empty is none but its own.",
            "A page of somebody else's acts with what its reader may do.",
        ),
    ] = ""
    hosts: Annotated[
        str,
        text(
            "Names by which a gateway that asks nobody who they are may be called, beside `localhost` and "
            "addresses: `push.internal`. With keys any name will do.",
            "A name that leads here makes somebody else's page one of this machine (DNS rebinding).",
        ),
    ] = ""

    retention_seconds: Annotated[
        float,
        seconds(
            "Age at which events leave the log; 0 is no limit.", "A client that was away for a week resumes."
        ),
    ] = WEEK
    retention_bytes: Annotated[
        int,
        bytes_("Size above which the oldest events leave the log; 0 is no limit.", "Fits on any disk.", 0),
    ] = GIB
    retention_events: Annotated[
        int,
        count(
            "Number of events above which the oldest leave the log; 0 is no limit.", "Bytes and age limit it."
        ),
    ] = 0

    window_bytes: Annotated[
        int,
        bytes_(
            "Memory for the window, the recent part of the log, frames and indexes included.",
            "Minutes of a busy log, small beside the interpreter and its connections.",
            KIB,
        ),
    ] = 64 * MIB
    window_events: Annotated[
        int,
        count("Most events in the window; 0 is no limit.", "Bounds what many tiny events cost in objects."),
    ] = 200_000
    window_seconds: Annotated[
        float,
        seconds("Age at which events leave the window; 0 is no limit.", "Memory already limits it."),
    ] = 0

    buffer_bytes: Annotated[
        int,
        bytes_(
            "Most bytes waiting in this process for one connection; who is slower is served from the log.",
            "Covers a round trip of 100 ms at 5 Mbit/s; 10,000 stalled clients cost 655 MB at most.",
            KIB,
        ),
    ] = 64 * KIB
    notsent_lowat: Annotated[
        int,
        bytes_(
            "Most unsent bytes the kernel takes for one connection (TCP_NOTSENT_LOWAT).",
            "Two buffers: the link stays full, and a slow client is noticed early.",
            KIB,
            2**31 - 1,
        ),
    ] = 128 * KIB
    stall_timeout: Annotated[
        float,
        seconds(
            "A connection whose peer takes nothing for so long, with bytes waiting, is aborted.",
            "Longer than a phone's change from Wi-Fi to mobile, shorter than a user's patience.",
            SHORTEST,
        ),
    ] = 30
    heartbeat_seconds: Annotated[
        float,
        seconds(
            "A quiet stream gets a heartbeat this often; a WebSocket peer that answers no ping is dropped.",
            "A quarter of the 60 seconds after which many proxies drop a silent connection.",
            SHORTEST,
        ),
    ] = 15
    websocket_deflate: Annotated[
        bool,
        flag(
            "Offer permessage-deflate; each event is compressed once, for all.",
            "Most events are too small to gain, and each costs the compression.",
        ),
    ] = False
    max_connections: Annotated[
        int,
        count(
            "Most connections at a time; 0 is as many as the limit of open files leaves room for.",
            "The operator's limit of open files is the natural one.",
        ),
    ] = 0
    max_topics: Annotated[
        int,
        count(
            "Most patterns of one subscription.",
            "More is a case for a wildcard; each costs index memory and time at connect.",
            1,
            10_000,
        ),
    ] = 100

    max_event_bytes: Annotated[
        int,
        bytes_(
            "Largest single event, as its JSON is stored.",
            "Larger things belong in a store; send their URL.",
            1,
            GIB,
        ),
    ] = MIB
    max_body_bytes: Annotated[
        int,
        bytes_(
            "Largest body of a publish request; a larger one is refused before it is read whole.",
            "Holds 10,000 events of 1.6 KB, and bounds the memory of one request.",
            1,
            GIB,
        ),
    ] = 16 * MIB
    max_batch_events: Annotated[
        int,
        count("Most events in one publish request.", "One commit stays in the milliseconds.", 1, 1_000_000),
    ] = 10_000
    max_message_bytes: Annotated[
        int,
        bytes_(
            "Largest WebSocket message from a client, all fragments together.",
            "The largest event and 64 KiB for what surrounds it.",
            125,
            GIB,
        ),
    ] = MIB + 64 * KIB
    max_header_bytes: Annotated[
        int,
        bytes_(
            "Largest head of a request: its line and headers.",
            "Room for 100 patterns of full length.",
            KIB,
            16 * MIB,
        ),
    ] = 64 * KIB
    header_timeout: Annotated[
        float,
        seconds(
            "The head of a request must be there within this time.",
            "Ends clients that hold a connection with half a request.",
            SHORTEST,
        ),
    ] = 10
    body_timeout: Annotated[
        float,
        seconds(
            "The body of a request must go on within this time.",
            "A pause longer than that is a dead peer.",
            SHORTEST,
        ),
    ] = 30
    max_connections_per_ip: Annotated[
        int,
        count(
            "Most connections of one address at a time, IPv6 by its first 64 bits; behind `trusted_proxies` "
            "the requests under way of one client, its streams among them; 0 is no limit.",
            "An office, or a proxy that is not named in `trusted_proxies`, is one address.",
        ),
    ] = 0
    connect_rate: Annotated[
        int,
        count(
            "New connections of one address a second, twice as many at once; behind `trusted_proxies` the "
            "streams that one client opens; 0 is no limit.",
            "As for `max_connections_per_ip`.",
            0,
            1_000_000,
        ),
    ] = 0
    max_waiting: Annotated[
        int,
        count(
            "Most connections that have sent no complete request yet, those that shake hands for TLS among "
            "them. Beyond it the oldest of the address with most of them is dropped; 0 is no limit.",
            "Thousands a second can connect across an ocean; one without a request costs 10 KB.",
        ),
    ] = 1000
    memory_limit: Annotated[
        str,
        text(
            "Memory of a process above which nothing new begins: a size, or a part of what the control group "
            "allows or the machine has, divided by `workers`; 0 is no limit.",
            "What is there goes on, where the kernel would end all of it; a fifth is for the rest.",
        ),
    ] = "80%"
    max_connections_per_subject: Annotated[
        int,
        count(
            "Most streams and waiting polls of one subject at a time; 0 is no limit. Here and in the four "
            "that follow the claim `limits` of a token counts in place of the setting.",
            "How many devices and tabs a user has, only you know.",
        ),
    ] = 0
    publish_rate: Annotated[
        int,
        count(
            "Events that one subject may publish a second, twice as many at once; 0 is no limit.",
            "One subject may be the service that publishes everything.",
            0,
            1_000_000,
        ),
    ] = 0
    publish_bytes: Annotated[
        int,
        bytes_(
            "Bytes of bodies that one subject may publish a second, twice as many at once; 0 is no limit.",
            "As for `publish_rate`.",
            0,
        ),
    ] = 0
    poll_rate: Annotated[
        int,
        count(
            "Polls of one subject a second, twice as many at once; 0 is no limit.",
            "A poll of what is not there costs little, and its answer says when to come again.",
            0,
            1_000_000,
        ),
    ] = 0
    max_requests_per_subject: Annotated[
        int,
        count(
            "Most unfinished requests of one subject, of all services together; 0 is no limit.",
            "`request_queue` bounds what all have together.",
            0,
            10_000_000,
        ),
    ] = 0

    dedup_seconds: Annotated[
        float,
        seconds(
            "An id published again within this time is a duplicate and not stored again; 0 is never.",
            "Longer than a producer's retries.",
        ),
    ] = 300
    dedup_events: Annotated[
        int,
        count(
            "Most ids remembered for that; the oldest are forgotten first.",
            "Bounds the memory of a busy producer's five minutes.",
        ),
    ] = 1_000_000
    queue_bytes: Annotated[
        int,
        bytes_(
            "Most bytes of events waiting for their commit; beyond it publishers get 503 and Retry-After.",
            "One largest request; a disk writes it in well under a second.",
            KIB,
        ),
    ] = 16 * MIB
    queue_events: Annotated[
        int,
        count("Most events waiting for their commit.", "As `queue_bytes`, for small events.", 1),
    ] = 50_000
    poll_retry_after: Annotated[
        int,
        count(
            "Seconds that the `Retry-After` of a poll answer advises.",
            "A client that polls each second sees events soon and costs little.",
            0,
            3600,
        ),
    ] = 1

    webhooks: Annotated[
        bool,
        flag(
            "Send events to webhooks, and keep them in the store.",
            "They cost nothing as long as there are no endpoints.",
        ),
    ] = True
    webhooks_allow: Annotated[
        str,
        text(
            "Networks that webhooks may be sent to although they are not part of the internet: "
            "`127.0.0.0/8,10.1.0.0/16`.",
            "Nobody reaches through us what he cannot reach himself.",
        ),
    ] = ""
    webhooks_ports: Annotated[
        str,
        text(
            "Ports that webhooks may be sent to: `443,8000-8999`; empty is 80, 443, and from 1024 on those "
            "that belong to no other protocol.",
            "What receivers use; behind other ports a request may be taken for something else.",
        ),
    ] = ""
    webhooks_https_only: Annotated[
        bool,
        flag("Send webhooks to `https://` only.", "Receivers inside of a network often have no certificate."),
    ] = False
    webhooks_timeout: Annotated[
        float,
        seconds(
            "Time for one attempt to send a webhook: name, connection, TLS, request and answer.",
            "What receivers are commonly given; they should answer first and work afterwards.",
            0.1,
            300,
        ),
    ] = 15
    webhooks_in_flight: Annotated[
        int,
        count(
            "Most attempts on their way at a time, of all endpoints together.",
            "A few for each of hundreds of endpoints; each may take a connection.",
            1,
            10_000,
        ),
    ] = 1024
    webhooks_retention_seconds: Annotated[
        float,
        seconds(
            "Age at which deliveries are forgotten, whether they arrived or not; 0 is never.",
            "As long as the log; the default schedule of attempts ends after three days.",
        ),
    ] = WEEK

    services: Annotated[
        str,
        text(
            "Services that clients can hand requests in for, `reports,mail`; empty is none.",
            "Requests cost nothing where nobody uses them.",
        ),
    ] = ""
    request_bytes: Annotated[
        int,
        bytes_(
            "Largest body of a request.",
            "Larger things belong in a store; send their URL.",
            1,
            GIB,
        ),
    ] = 256 * KIB
    request_result_bytes: Annotated[
        int,
        bytes_("Largest result of a request, and largest progress.", "As for what is handed in.", 1, GIB),
    ] = 256 * KIB
    request_queue: Annotated[
        int,
        count(
            "Most unfinished requests of one service; beyond it a client is answered 429.",
            "An hour of work for three workers that take a second each.",
            1,
            10_000_000,
        ),
    ] = 10_000
    request_ttl: Annotated[
        float,
        seconds(
            "Time in which a request has to be done, unless its client says otherwise.",
            "Whoever waits longer than a day has asked again.",
            1,
        ),
    ] = DAY
    request_keep: Annotated[
        float,
        seconds(
            "Time for which a finished request and its result can be asked for.",
            "A phone that was out of reach for a while finds its result.",
            1,
        ),
    ] = 3600
    request_tries: Annotated[
        int,
        count(
            "How often a request may fail before nobody tries it any more.",
            "What fails five times in a row fails for a reason of its own.",
            1,
            1000,
        ),
    ] = 5
    request_backoff: Annotated[
        float,
        seconds(
            "Time before the second try of a request, at most; doubled for each that follows.",
            "A restart of what the worker needs is over by the third.",
            0,
            DAY,
        ),
    ] = 1
    request_lease: Annotated[
        float,
        seconds(
            "Time after which a worker that is not heard of has its requests given to others.",
            "Workers report three times as often.",
            1,
            DAY,
        ),
    ] = 30

    drain_seconds: Annotated[
        float,
        seconds(
            "Time over which clients are told to reconnect, on SIGTERM, before their connections close.",
            "Spreads 10,000 reconnects to 1,000 a second; within the 30 seconds that Kubernetes gives.",
            0,
            DAY,
        ),
    ] = 10
    log_level: Annotated[
        LogLevel,
        text("How much is logged: debug, info, warning or error.", "One line per thing that ended."),
    ] = "info"

    def __post_init__(self) -> None:
        for field in FIELDS.values():
            field.check(getattr(self, field.name))
        check_together(self)

    @property
    def data_folder(self) -> Path | None:
        """The folder of the log, or None if nothing is kept."""
        return None if self.data == MEMORY else Path(self.data).expanduser()

    @property
    def asks(self) -> bool:
        """Whether callers are asked who they are: there are keys to tell by."""
        return bool(self.jwt_key or self.jwks)

    @property
    def scheme(self) -> str:
        """How the addresses of this gateway begin."""
        return "https" if self.tls_cert else "http"

    @property
    def where_data_is(self) -> str:
        """What is kept where, in a few words; with a broker and a store the data folder is not used."""
        return "the broker and the store" if self.backbone and self.store else self.data


def _fields() -> Iterator[Field]:
    hints = get_type_hints(Settings, include_extras=True)
    for info in msgspec.structs.fields(Settings):
        kind, meta = get_args(hints[info.name])
        default = info.default if info.default is not msgspec.NODEFAULT else None
        yield Field(info.name, meta.extra["about"], default, get_args(kind))


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
    if not is_path(config):
        raise SettingsError(config, NO_PATH)
    try:
        with Path(config).expanduser().open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SettingsError(config, f"the file cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of numbers with thousands of digits, and of deep nesting
        raise SettingsError(config, f"the file is not TOML: {error}") from None


def _unknown(name: str, known: list[str], prefix: str = "") -> str:
    """Return the half sentence about a name that no setting has, with the likely one if any is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return "no setting has this name" + (f"; did you mean {prefix}{close[0]}?" if close else "")
