"""The address of a backbone: `amqp://user:password@host:port,host2:port2/vhost`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

PORTS: Final = {"amqp": 5672, "amqps": 5671}


class AddressError(ValueError):
    """The text is no address of a broker; the sentence says why, and repeats no password."""


@dataclass(frozen=True, slots=True)
class Address:
    """
    Where the broker is, and who we are there.

    Attributes:
        hosts: its nodes, each with its port; tried in turn.
        tls: whether the connection is encrypted, and the broker's certificate checked.
        ca: file with the authorities that may have signed it; the system's if empty.
        certificate: file with our own certificate and its key; none if empty.
    """

    hosts: tuple[tuple[str, int], ...]
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    vhost: str = "/"
    tls: bool = False
    ca: str = ""
    certificate: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """
        Read an address (RabbitMQ's URI specification, with several hosts allowed).

        Raises:
            AddressError: it is none.
        """
        try:
            parts = urlsplit(text)
        except ValueError:  # its words may hold the password
            raise AddressError(
                "this is no URL; what is special in a name or password is written %XX"
            ) from None
        if parts.scheme not in PORTS:
            raise AddressError("the address of a broker begins with amqp:// or amqps://")
        if parts.netloc.count("@") > 1 or "@" in parts.path + parts.query + parts.fragment:
            raise AddressError("one of @ / ? # in a name or password is written %40, %2F, %3F or %23")
        if parts.query or parts.fragment:
            raise AddressError("the address of a broker has nothing behind the virtual host")
        login, _, hosts = parts.netloc.rpartition("@")
        user, colon, password = login.partition(":")
        path = parts.path.removeprefix("/")
        if "/" in path:
            raise AddressError("a slash in the name of the virtual host is written %2F")
        return cls(
            hosts=tuple(_host(host, PORTS[parts.scheme]) for host in (hosts or "localhost").split(",")),
            user=unquote(user) if user else "guest",
            password=unquote(password) if colon else "guest",
            vhost=unquote(path) or "/",
            tls=parts.scheme == "amqps",
        )

    def name(self, host: tuple[str, int]) -> str:
        """Return one of the hosts as text."""
        return f"{host[0]}:{host[1]}"


def _host(text: str, port: int) -> tuple[str, int]:
    """Read `host`, `host:port` or `[address]:port`."""
    bracket = text.rfind("]")
    name, colon, number = text.rpartition(":") if text.rfind(":") > bracket else (text, "", "")
    if colon and not (number.isdecimal() and len(number) < 6 and 0 < int(number) < 65536):
        raise AddressError(f"{number[:10]!r} is no port")
    name = name.strip("[]")
    if not name:
        raise AddressError("the address of the broker names no host")
    return name, int(number) if colon else port
