"""What the settings must not be together, and what text in them must be more than text."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.setting import SettingsError

if TYPE_CHECKING:
    from gateway.settings import Settings


def check_together(settings: Settings) -> None:
    """Raise SettingsError for the first thing that contradicts the rest."""
    _check_services(settings.services)  # what else contradicts them asks for their names
    for name, refused, why in _REFUSALS:
        if refused(settings):
            raise SettingsError(name, why.format(value=getattr(settings, name)))
    if settings.backbone:
        _check_backbone(settings.backbone)
    if settings.store:
        _check_store(settings.store)
    _check_guard(settings)
    _check_access(settings)
    _check_memory(settings.memory_limit)


def is_path(text: str) -> bool:
    """Say whether a path can be looked for: it has no NUL, and a `~` at its begin is of a user there is."""
    try:
        Path(text).expanduser()
    except RuntimeError:
        return False
    return "\0" not in text


def is_loopback(host: str) -> bool:
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


def _check_access(settings: Settings) -> None:
    """Refuse keys, origins and names of hosts that are none, without repeating a key."""
    from gateway.auth.origins import parse_hosts, parse_origins  # noqa: PLC0415  (it needs what needs us)

    if settings.asks:
        from gateway.auth.sources import check_key, check_source  # noqa: PLC0415  (nobody else pays for it)

        _check_text("jwt_key", check_key, settings.jwt_key)
        _check_text("jwks", check_source, settings.jwks)
    _check_text("origins", parse_origins, settings.origins)
    _check_text("hosts", parse_hosts, settings.hosts)


def _check_text(name: str, check: Callable[[str], object], text: str) -> None:
    try:
        if text:
            check(text)
    except ValueError as error:
        raise SettingsError(name, str(error)) from None


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


def _check_memory(text: str) -> None:
    """Refuse a limit of memory that is none."""
    from gateway.limits.memory import limit_of  # noqa: PLC0415  (nobody else pays for it)

    try:
        limit_of(text, 1)
    except ValueError as error:
        raise SettingsError("memory_limit", str(error)) from None


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


def _is_for_nobody(name: str, settings: Settings) -> bool:
    """Say whether a limit of subjects is set where there are none."""
    return bool(getattr(settings, name)) and not settings.asks


MAX_NAME_BYTES: Final = 250
"""A short string of AMQP has 255; the queue of the dead letters has five more than the exchange."""

NO_PATH = "no file or folder can have this name, or there is no such user behind its ~"
_ONLY_ENCRYPTED = "it says what to do with amqps://, but the backbone is none or not encrypted"

# What contradicts the rest: the setting to name, the test, and the sentence.
_REFUSALS: Final[tuple[tuple[str, Callable[[Settings], bool], str], ...]] = (
    (
        "host",
        lambda s: not s.insecure and not s.asks and not is_loopback(s.host),
        "{value} is reached from other machines and nobody is asked who they are: set jwt_key, or --insecure",
    ),
    (
        "jwt_audience",
        lambda s: s.jwt_audience != "" and not s.asks,
        "nobody is asked for a token: give a jwt_key or jwks as well",
    ),
    (
        "jwt_issuer",
        lambda s: s.jwt_issuer != "" and not s.asks,
        "nobody is asked for a token: give a jwt_key or jwks as well",
    ),
    *(
        (name, partial(_is_for_nobody, name), "nobody is asked who they are: give a jwt_key or jwks as well")
        for name in (
            "max_connections_per_subject",
            "publish_rate",
            "publish_bytes",
            "poll_rate",
            "max_requests_per_subject",
        )
    ),
    ("jwks", lambda s: not is_path(s.jwks), NO_PATH),
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
    ("data", lambda s: not is_path(s.data), NO_PATH),
    ("backbone_ca", lambda s: not is_path(s.backbone_ca), NO_PATH),
    ("backbone_certificate", lambda s: not is_path(s.backbone_certificate), NO_PATH),
    ("data", lambda s: s.data == "", "empty is no folder; give a path, or memory: to keep nothing"),
)
