"""
From a URL to a target.

Strategy: programs differ in how they read odd URLs, and each difference is a way past a check: what looks
like one host here is another to whoever resolves or connects. So only one spelling of each host is accepted,
the plain one, in which all agree, and everything else is refused with a sentence that names the plain one.
Nothing is decoded, stripped or repaired.

Source: RFC 3986 (generic syntax), RFC 9110 4.2 (http and https); the WHATWG URL Standard for what browsers
read into numbers as hosts.
"""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, Literal, cast

from webhooks.attempt import DEFAULT_PORTS, Target
from webhooks.errors import shown

MAX_URL: Final = 2048
"""Characters; what servers and proxies accept at least is not much longer."""
MAX_NAME: Final = 253

_AUTHORITY: Final = re.compile(r"[^/?#]*")
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
# RFC 3986's characters of a path and a query, and the brackets that many frameworks use in queries.
_PATH: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?\[\]-]|%[0-9A-Fa-f]{2})*", re.ASCII)
# A last label of which some programs make a number: `1`, `0x7f`, `0X`.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_BRACKETS: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\]", re.ASCII)  # no zone, no address of the future

_NO_IPV6: Final = "{} is no IPv6 address: one looks like [2001:db8::1]"


class UrlRefused(ValueError):
    """A URL that nothing is sent to; the text is one sentence for its user, and repeats no password."""


def parse_target(url: str) -> Target:
    """
    Read the URL of an endpoint.

    Raises:
        UrlRefused: it is none that is spelled plainly.
    """
    _check_characters(url)
    scheme, colon, rest = url.partition("://")
    scheme = scheme.lower()
    if not colon or scheme not in DEFAULT_PORTS:
        raise UrlRefused("the URL begins with https:// or http://")
    authority = cast("re.Match[str]", _AUTHORITY.match(rest))[0]
    if "@" in authority:
        raise UrlRefused("the URL has no room for a user or password: give them as a header of the endpoint")
    host, port = _split(authority, DEFAULT_PORTS[scheme])
    name, address = _host(host)
    path = _path(rest[len(authority) :])
    return Target(cast("Literal['http', 'https']", scheme), name, port, path, address)


def _check_characters(url: str) -> None:
    if len(url) > MAX_URL:
        raise UrlRefused(f"the URL has {len(url)} characters; {MAX_URL} are allowed")
    if not url.isascii():
        raise UrlRefused(
            "the URL is written in ASCII: an international host name in its form with xn--, "
            "other characters percent-encoded"
        )
    odd = next((character for character in url if not "!" <= character <= "~"), None)
    if odd is not None:
        raise UrlRefused(f"the URL has no spaces or control characters, this one has {odd!a}")


def _split(authority: str, default: int) -> tuple[str, int]:
    """Return host and port."""
    if authority.startswith("[") and "]" not in authority:
        raise UrlRefused(_NO_IPV6.format(shown(authority)))
    if authority.count(":") > 1 and "[" not in authority:
        raise UrlRefused(f"{shown(authority)} has many colons: an IPv6 address stands in brackets")
    colon = authority.find(":", authority.rfind("]") + 1)
    if colon < 0:
        return authority, default
    number = authority[colon + 1 :]
    if not (number.isdecimal() and len(number) <= 5 and number[0] != "0" and int(number) < 65536):
        raise UrlRefused(f"{shown(number)} is no port: it is a number from 1 to 65535")
    return authority[:colon], int(number)


def _host(text: str) -> tuple[str, IPv4Address | IPv6Address | None]:
    """Return the host in its normal form, and the address if it is one."""
    if not text:
        raise UrlRefused("the URL names no host")
    if text.startswith("["):
        six = _ipv6(text)
        return str(six), six
    name = text.lower()
    if name.endswith("."):
        raise UrlRefused("the host ends with a dot: leave it out")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return name, _ipv4(name)
    if len(name) > MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise UrlRefused(
            f"{shown(text)} is no host name: one has words of letters, digits and hyphens between dots"
        )
    return name, None


def _ipv6(text: str) -> IPv6Address:
    match = _BRACKETS.fullmatch(text)
    with suppress(AddressValueError):
        if match is not None:
            return IPv6Address(match[1])
    raise UrlRefused(_NO_IPV6.format(shown(text)))


def _ipv4(text: str) -> IPv4Address:
    with suppress(AddressValueError):
        return IPv4Address(text)
    raise UrlRefused(
        f"{shown(text)} is no IPv4 address: one has four numbers from 0 to 255, without leading zeros"
    )


def _path(text: str) -> str:
    """Return path and query as the request line has them."""
    if "#" in text:
        raise UrlRefused("the URL has no fragment, which is never sent: leave out what follows #")
    if not _PATH.fullmatch(text):
        raise UrlRefused("the URL has characters in its path or query that must be percent-encoded")
    return text if text.startswith("/") else "/" + text
