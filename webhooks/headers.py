"""
Headers that an endpoint's owner wants to have sent along: which there may be, and how they are written.

They go into the request as they are given, so nothing that could end a line may be in them, and none that the
gateway, the connection or the signature already speak by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from webhooks.errors import Invalid, shown, step

MAX_HEADERS: Final = 32
MAX_BYTES: Final = 8 * 1024
"""Bytes of all together: many servers refuse a request with more than that."""

RESERVED: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
RESERVED_PREFIXES: Final = ("ce-", "content-", "proxy-", "svix-", "webhook-")
"""Whoever receives has to know that these are the gateway's own."""

USER_AGENT: Final = b"Sluicegate"

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}", re.ASCII)  # RFC 9110 section 5.1
_VALUE = re.compile(r"[!-~]([\t -~]*[!-~])?", re.ASCII)  # RFC 9110 section 5.5, without what is obsolete


def check_headers(headers: Mapping[str, str]) -> None:
    """
    Check the headers of an endpoint.

    Raises:
        Invalid: there are too many, or one may not be; the sentence does not repeat its value.
    """
    if len(headers) > MAX_HEADERS:
        raise Invalid(f"there are {len(headers)} headers: there may be {MAX_HEADERS}")
    names: set[str] = set()
    for name, value in headers.items():
        if (detail := _refusal(name, value)) is not None:
            raise Invalid(detail, step(name))
        if name.lower() in names:
            raise Invalid(f"the header {name} is there twice: upper and lower case are the same", step(name))
        names.add(name.lower())
    if (size := len(write(headers))) > MAX_BYTES:
        raise Invalid(f"the headers have {size} bytes, more than {MAX_BYTES}")


def write(headers: Mapping[str, str]) -> bytes:
    """Return (checked) headers as lines of a request's head."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("ascii")


def own_lines(headers: Mapping[str, str], origin: str | None = None) -> bytes:
    """Return the lines that every request to an endpoint with these (checked) headers and origin has."""
    told = b"" if origin is None else b"WebHook-Request-Origin: %b\r\n" % origin.encode()
    return b"User-Agent: %b\r\nAccept: */*\r\n%b%b" % (USER_AGENT, told, write(headers))


def _refusal(name: str, value: str) -> str | None:
    if not _NAME.fullmatch(name):
        return f"{shown(name)} is no name of a header"
    lower = name.lower()
    if lower in RESERVED or lower.startswith(RESERVED_PREFIXES):
        return f"the header {shown(name)} is the gateway's own"
    if value and not _VALUE.fullmatch(value):
        return f"the value of {shown(name)} must be printable ASCII on one line, with no space at its ends"
    return None
