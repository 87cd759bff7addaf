"""
Origins: which pages may use a gateway from a browser.

A browser sends requests for any page to any address that it reaches, with the cookies of that address, and
lets the page open WebSockets there. It says for which page (`Origin`, RFC 6454; `Sec-Fetch-Site`), and that
a page cannot forge. So what comes from a page of another origin is refused, unless that is allowed: by the
setting `origins`, or because it is another replica's. An origin is repeated in an answer only if it is on the
list (Fetch standard, CORS protocol).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from gateway.problems import Problem

Headers = tuple[tuple[bytes, bytes], ...]

ANY: Final = "*"
_ORIGIN: Final = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_HOST: Final = re.compile(r"(\[[^\[\]]*\]|[^:]*)(?::[0-9]*)?", re.DOTALL)
_PORTS: Final = {"http": "80", "https": "443"}
_EXPOSED: Final = b"etag, location, retry-after"
_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_ASKED: Final = re.compile(rb"[A-Za-z0-9, _-]{0,1000}")
PREFLIGHT_SECONDS: Final = 600


def parse_origins(text: str) -> tuple[str, ...]:
    """
    Return the origins of a list as browsers spell them: in lower case, without the port of the scheme.

    Raises:
        ValueError: one of them is none; the text says which.
    """
    origins = tuple(dict.fromkeys(_origin(each.strip().lower()) for each in text.split(",") if each.strip()))
    if ANY in origins and len(origins) > 1:
        raise ValueError("* is every origin: give it alone, or leave it out")
    return origins


def _origin(text: str) -> str:
    found = _ORIGIN.fullmatch(text)
    if text != ANY and not found:
        raise ValueError(f"{text!r} is no origin like https://app.example.com, without a path")
    if found and found[3] == _PORTS[found[1]]:
        return f"{found[1]}://{found[2]}"
    return text


def parse_hosts(text: str) -> frozenset[str]:
    """
    Return the names of a list of hosts, in lower case.

    Raises:
        ValueError: one of them is none; the text says which.
    """
    hosts = frozenset(each.strip().lower() for each in text.split(",") if each.strip())
    for each in hosts:
        if not re.fullmatch(r"[a-z0-9.-]{1,253}", each):
            raise ValueError(f"{each!r} is no name of a host like push.example.com, without a port")
    return hosts


class Origins:
    """
    Says who may come in from a browser.

    Args:
        allowed: origins that may, or `*`.
        hosts: names by which a gateway that asks nobody who they are is called; None if any will do.
        member: says whether an origin is another replica's; it may take a moment to know.
    """

    def __init__(
        self,
        allowed: tuple[str, ...],
        hosts: frozenset[str] | None,
        member: Callable[[str], Awaitable[bool]] | None = None,
    ) -> None:
        self._any = ANY in allowed
        self._allowed = frozenset(allowed) - {ANY}  # `*` stands for origins, and is none itself
        self._hosts = hosts
        self._member = member

    def check_host(self, host: bytes | None) -> None:
        """
        Check that a browser meant us: a name of somebody else's can be made to lead to this machine (DNS
        rebinding), and its pages are then of "our" origin.

        Raises:
            Problem: 421, it did not.
        """
        if self._hosts is None or host is None:
            return
        found = _HOST.fullmatch(host.decode("latin-1").lower())
        bare = found[1] if found else ""
        if bare in self._hosts or bare == "localhost" or bare.endswith(".localhost"):
            return
        try:
            ipaddress.ip_address(bare.strip("[]"))
        except ValueError:
            raise Problem(421, "this gateway does not go by that name (setting: hosts)") from None

    async def check(self, headers: Mapping[bytes, bytes], *, safe: bool) -> Headers:
        """
        Return the headers that let a page read the answer; none if they are not needed.

        Args:
            headers: of the request.
            safe: whether it changes nothing (RFC 9110, 9.2.1).

        Raises:
            Problem: 403, it comes from a page that may not ask.
        """
        origin = headers.get(b"origin")
        if origin is None:
            if not safe and headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
                raise Problem(403, "the request comes from a page of another origin")
            return ()
        if is_own(origin, headers.get(b"host")):
            return ()
        text = origin.decode("latin-1").lower()
        if text in self._allowed:
            return (
                (b"access-control-allow-origin", origin),
                (b"access-control-allow-credentials", b"true"),
                (b"access-control-expose-headers", _EXPOSED),
                (b"vary", b"origin"),
            )
        if self._any:
            return (
                (b"access-control-allow-origin", b"*"),
                (b"access-control-expose-headers", _EXPOSED),
            )
        if self._member is not None and await self._member(origin.decode("latin-1")):
            return ((b"access-control-allow-origin", origin), (b"vary", b"origin"))
        raise Problem(403, "the request comes from a page of another origin")

    def may_use_cookie(self, headers: Mapping[bytes, bytes]) -> bool:
        """
        Tell whether a cookie says who is asking. Not if a page of somebody else's makes the browser send it:
        then it only says who is sitting in front of it.
        """
        origin = headers.get(b"origin")
        if origin is not None:
            own = is_own(origin, headers.get(b"host"))
            return own or origin.decode("latin-1").lower() in self._allowed
        return headers.get(b"sec-fetch-site", b"none") in (b"same-origin", b"none")


def is_own(origin: bytes, host: bytes | None) -> bool:
    """Tell whether an origin is the one that was asked. (The scheme may have changed on the way.)"""
    scheme, _, rest = origin.lower().partition(b"://")
    return bool(host) and scheme in (b"http", b"https") and rest == (host or b"").lower()


def preflight(headers: Mapping[bytes, bytes], allowed: Headers) -> Headers:
    """
    Return the headers that answer whether a page may make a request (Fetch standard, CORS-preflight). The
    answer is 204, which must not say how long its content is (RFC 9110, 8.6).
    """
    asked = headers.get(b"access-control-request-headers", b"")
    return (
        *allowed,
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", asked if _ASKED.fullmatch(asked) else b""),
        (b"access-control-max-age", b"%d" % PREFLIGHT_SECONDS),
    )
