"""Plain data about one attempt, for all that deal with webhooks: where it goes, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal, get_args

import msgspec

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

Fault = Literal["dns", "refused", "connect", "tls", "timeout", "reset", "protocol", "too_large", "blocked"]
"""
Why an attempt got no status, in one word:

- dns: the name has no address, or could not be resolved
- refused: nobody listens there
- connect: no connection could be made, for another reason
- tls: the connection could not be encrypted, or the certificate is not to be trusted
- timeout: the deadline passed, whatever was being waited for
- reset: the connection was closed before the head of the answer was there
- protocol: what came is no answer of HTTP/1.0 or 1.1
- too_large: the head of the answer is longer than is read
- blocked: the guard lets nobody connect there
"""

FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)


@dataclass(frozen=True, slots=True)
class Target:
    """
    Where an attempt goes: the parts of a URL, made by `webhooks.target.parse_target`.

    Attributes:
        scheme: `http` or `https`.
        host: a name in lower case, or an address as its family's rules write it, without brackets.
        port: also if the URL names none.
        path: path and query, as the request line has them.
        address: the host, if it is an address.
        authority: host and port as the `Host` header has them.
        origin: scheme, host and port: what a connection is good for.
        post: the head of a POST request up to its length.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    path: str
    address: IPv4Address | IPv6Address | None = None
    authority: str = field(init=False, compare=False, repr=False)
    origin: str = field(init=False, compare=False, repr=False)
    post: bytes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        named = self.port == DEFAULT_PORTS[self.scheme]
        object.__setattr__(self, "authority", host if named else f"{host}:{self.port}")
        object.__setattr__(self, "origin", f"{self.scheme}://{host}:{self.port}")
        object.__setattr__(self, "post", self.head("POST"))

    @property
    def url(self) -> str:
        """The URL in its normal form."""
        return f"{self.scheme}://{self.authority}{self.path}"

    def head(self, method: str) -> bytes:
        """Return the head of a request up to the number of its `Content-Length`."""
        return (
            f"{method} {self.path} HTTP/1.1\r\nHost: {self.authority}\r\nAccept-Encoding: identity\r\n"
            "Content-Length: "
        ).encode("ascii")


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """
    What came of an attempt: a status, or the fault because of which there is none; never both.

    The head of an answer decides. Once it has been received its status is the outcome, whatever becomes of
    the body.

    Attributes:
        status: of the answer, 200 to 999.
        error: why there is no answer.
        duration_ms: from the start of the attempt to its end.
        retry_after: the text of that header.
        excerpt: the first bytes of the body, as they came.
        detail: the fault in one sentence for the owner of the endpoint; names no address that the host
            resolved to, which would let him look around in our network.
        headers: those of the answer that were asked for, by their names in lower case.
    """

    status: int | None = None
    error: Fault | None = None
    duration_ms: int = 0
    retry_after: str | None = None
    excerpt: bytes = b""
    detail: str = ""
    headers: tuple[tuple[str, str], ...] = ()
