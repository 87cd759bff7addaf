"""The address of a store: `postgresql://user:password@host:port,host2:port2/database?sslmode=…`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
FILES: Final = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile"})
PARAMETERS: Final = FILES | {"sslmode", "sslpassword", "ssl_min_protocol_version", "application_name"}
"""What may follow the database's name, with the meaning that libpq gives it; the driver knows them all."""


class AddressError(ValueError):
    """The text is no address of a store; the sentence says why, and repeats no password."""


@dataclass(frozen=True, slots=True)
class Address:
    """
    Where the store is, and who we are there. What is not said is taken from where libpq takes it: the
    variables `PGUSER`, `PGPASSWORD` and so on, and the file `~/.pgpass`.

    Attributes:
        text: the address as it was given.
        name: the same without user, password and parameters, fit to be shown.
    """

    text: str = field(repr=False)
    name: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """
        Read an address (PostgreSQL's manual, 34.1.1.2 "Connection URIs").

        Raises:
            AddressError: it is none.
        """
        parts = _split(text)
        if parts.scheme not in ("postgresql", "postgres"):
            raise AddressError("the address of a store begins with postgresql:// or postgres://")
        hosts = parts.netloc.rpartition("@")[2]
        for host in hosts.split(","):
            _check_host(host)
        database = parts.path.removeprefix("/")
        if "/" in database:
            raise AddressError("a slash in the name of the database is written %2F")
        _check_parameters(parts.query)
        return cls(text, (unquote(hosts) or "localhost") + (f"/{unquote(database)}" if database else ""))


def _split(text: str) -> SplitResult:
    """Split a URL, and refuse one whose password has a character that ends or moves a part of it."""
    try:
        parts = urlsplit(text)
    except ValueError:  # its words may hold the password
        raise AddressError("this is no URL; what is special in a name or password is written %XX") from None
    if parts.netloc.count("@") > 1 or "@" in parts.path + parts.query or parts.fragment or "#" in text:
        raise AddressError("one of @ / ? # in a name or password is written %40, %2F, %3F or %23")
    return parts


def _check_host(text: str) -> None:
    """Check `host`, `host:port`, `[address]:port`, the folder of a socket, or nothing."""
    bracket = text.rfind("]")
    colon = text.rfind(":")
    if colon > bracket:
        port = text[colon + 1 :]
        if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536):
            raise AddressError("the port of the store is a number from 1 to 65535")
        if not text[:colon]:
            raise AddressError("the address of the store has a port and no host")


def _check_parameters(query: str) -> None:
    """Check what follows the name of the database."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise AddressError("behind the database come parameters: ?sslmode=require&sslrootcert=…") from None
    for name, value in pairs:
        if name not in PARAMETERS:
            shown = repr(name) if re.fullmatch(r"\w{1,40}", name, re.ASCII) else "this"
            raise AddressError(
                f"{shown} is no parameter of the store; known are {', '.join(sorted(PARAMETERS))}"
            )
        if name == "sslmode" and value not in SSL_MODES:
            raise AddressError(f"sslmode is one of {', '.join(SSL_MODES)}")
        if name in FILES and not Path(value).is_file():
            raise AddressError(f"{name} names no file that is there: {value[:200]!r}")
