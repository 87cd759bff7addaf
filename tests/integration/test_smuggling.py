"""
Requests that two servers may read differently: straight to a gateway, and through the balancers of `deploy/`.

Each shape hides a second request. Sent straight, it must never be carried out. Behind a balancer it may be
only if it is a request for the balancer as well. The balancers close some pages to the outside: a hidden
request for one of them that comes through all the same was smuggled.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from tests.support.balancer import Balancer
from tests.support.clients import Address, Tcp, fetch
from tests.support.host import address_of
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration

PATIENCE: Final = 1.0
"""Seconds after which a connection on which nothing comes any more is left: some end as half a request."""

END: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
"""What is sent behind each shape, so that a connection ends on which all is in order."""

HIDDEN: Final = (
    b"POST /v1/topics/smuggled.000000 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\n\r\nsmuggled"
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
)
"""An event that must never be there, and a page that is not for the outside."""

CHUNKED: Final = b"0\r\n\r\n" + HIDDEN
AS_CHUNK: Final = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)


def post(*fields: bytes, body: bytes = b"", version: bytes = b"1.1", line_end: bytes = b"\r\n") -> bytes:
    """Return a request to publish, with these lines in its head."""
    lines = (b"POST /v1/topics/open HTTP/" + version, b"Host: localhost", *fields, b"", b"")
    return line_end.join(lines) + body


def upgrade(*fields: bytes, to: bytes = b"websocket", method: bytes = b"GET", body: bytes = b"") -> bytes:
    """Return a request to change the protocol, with more behind it."""
    lines = (
        method + b" /v1/events?topic=open HTTP/1.1",
        b"Host: localhost",
        b"Connection: Upgrade",
        b"Upgrade: " + to,
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *fields,
        b"",
        b"",
    )
    return b"\r\n".join(lines) + body


TE: Final = b"Transfer-Encoding: chunked"
LENGTH: Final = b"Content-Length: %d" % len(CHUNKED)
WHOLE: Final = b"Content-Length: %d" % len(HIDDEN)
V13: Final = b"Sec-WebSocket-Version: 13"

# How a Transfer-Encoding is written so that one of two readers overlooks it.
OBSCURED: Final = {
    "xchunked": b"Transfer-Encoding: xchunked",
    "chunked twice": b"Transfer-Encoding: chunked, chunked",
    "identity": b"Transfer-Encoding: identity",
    "chunked, identity": b"Transfer-Encoding: chunked, identity",
    "identity, chunked": b"Transfer-Encoding: identity, chunked",
    "gzip, chunked": b"Transfer-Encoding: gzip, chunked",
    "quoted": b'Transfer-Encoding: "chunked"',
    "parameter": b"Transfer-Encoding: chunked;a=b",
    "comma first": b"Transfer-Encoding: ,chunked",
    "comma last": b"Transfer-Encoding: chunked,",
    "empty": b"Transfer-Encoding:",
    "capitals": b"TRANSFER-ENCODING: CHUNKED",
    "tab before": b"Transfer-Encoding:\tchunked",
    "tab behind": b"Transfer-Encoding: chunked\t",
    "vertical tab": b"Transfer-Encoding:\x0bchunked",
    "form feed": b"Transfer-Encoding: chunked\x0c",
    "no-break space": b"Transfer-Encoding: \xa0chunked",
    "nul": b"Transfer-Encoding: chunked\0",
    "space before the colon": b"Transfer-Encoding : chunked",
    "space before the name": b" Transfer-Encoding: chunked",
    "fold": b"Transfer-Encoding:\r\n chunked",
    "fold behind": b"X: y\r\n Transfer-Encoding: chunked",
    "underscore": b"Transfer_Encoding: chunked",
    "two": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "two, the other way": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "bare CR": b"X: y\rTransfer-Encoding: chunked",
    "bare LF": b"X: y\nTransfer-Encoding: chunked",
    "no colon": b"Transfer-Encoding chunked",
    "cut by a NUL": b"Transfer-Encoding\0: chunked",
    "letter beyond ASCII": "Transfer-Encoding: chun\u212aed".encode(),
}

LENGTHS: Final = {
    "plus": b"Content-Length: +%d",
    "minus": b"Content-Length: -%d",
    "leading zeros": b"Content-Length: 000%d",
    "leading space": b"Content-Length:    %d",
    "space inside": b"Content-Length: 1 %d",
    "comma": b"Content-Length: %d, 5",
    "the same twice": b"Content-Length: %d, %d",
    "hexadecimal": b"Content-Length: 0x%x",
    "underscore inside": b"Content-Length: 1_%d",
    "exponent": b"Content-Length: %de0",
    "arabic digits": "Content-Length: \u0661\u0662".encode(),
    "empty": b"Content-Length:",
    "beyond 64 bits": b"Content-Length: 18446744073709551616",
    "space before the colon": b"Content-Length : %d",
    "fold": b"Content-Length:\r\n %d",
    "nul": b"Content-Length: %d\0",
    "contradicting": b"Content-Length: 0\r\nContent-Length: %d",
    "contradicting, the other way": b"Content-Length: %d\r\nContent-Length: 0",
    "equal": b"Content-Length: %d\r\nContent-Length: %d",
}


def _length(form: bytes) -> bytes:
    percents = form.count(b"%")
    return form % ((len(HIDDEN),) * percents) if percents else form


SHAPES: Final[dict[str, bytes]] = {
    "CL.TE": post(LENGTH, TE, body=CHUNKED),
    "TE.CL": post(TE, LENGTH, body=CHUNKED),
    "TE.CL in a chunk": post(b"Content-Length: 4", TE, body=AS_CHUNK),
    **{f"TE.TE {name}": post(field, TE, LENGTH, body=CHUNKED) for name, field in OBSCURED.items()},
    **{f"TE alone {name}": post(field, body=AS_CHUNK) for name, field in OBSCURED.items()},
    **{f"TE and length {name}": post(field, LENGTH, body=CHUNKED) for name, field in OBSCURED.items()},
    **{f"length {name}": post(_length(form), body=HIDDEN) for name, form in LENGTHS.items()},
    "bare LF": post(WHOLE, body=HIDDEN, line_end=b"\n"),
    "bare CR": post(WHOLE, body=HIDDEN, line_end=b"\r"),
    "LF in a header": post(b"X: y\nContent-Length: 0", WHOLE, body=HIDDEN),
    "LF ends the head": post(WHOLE, b"X: y\n", body=HIDDEN),
    "fold": post(b"X: y\r\n z", WHOLE, body=HIDDEN),
    "nul in a header": post(b"X: a\0b", WHOLE, body=HIDDEN),
    "nul in a name": post(b"X\0Y: a", WHOLE, body=HIDDEN),
    "bare LF in chunks": post(TE, body=b"3\nabc\n0\n\n" + HIDDEN),
    "chunk size with a sign": post(TE, body=b"+3\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    "chunk size 0x3": post(TE, body=b"0x3\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    "chunk size with a space": post(TE, body=b"3 \r\nabc\r\n0 \r\n\r\n" + HIDDEN),
    "chunk size beyond 64 bits": post(TE, body=b"10000000000000003\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    "chunk longer than said": post(TE, body=b"3\r\nabcde\r\n0\r\n\r\n" + HIDDEN),
    "chunk without its end": post(TE, body=b"3\r\nabc0\r\n\r\n" + HIDDEN),
    "LF in a chunk extension": post(TE, body=b"3;a\nb\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    "CR in a chunk extension": post(TE, body=b"3;a\rb\r\nabc\r\n0\r\n\r\n" + HIDDEN),
    "length in a trailer": post(TE, body=b"0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN),
    "framing in a trailer": post(TE, body=b"0\r\nTransfer-Encoding: chunked\r\n\r\n" + HIDDEN),
    "HTTP/0.9": b"GET /healthz\r\n" + HIDDEN,
    "HTTP/0.9 with headers": b"POST /v1/topics/open\r\n" + WHOLE + b"\r\n\r\n" + HIDDEN,
    "HTTP/1.0 with chunks": post(TE, body=AS_CHUNK, version=b"1.0"),
    "HTTP/1.0 with both": post(TE, LENGTH, b"Connection: keep-alive", body=CHUNKED, version=b"1.0"),
    "HTTP/1.0 without keep-alive": post(b"Content-Length: 0", body=HIDDEN, version=b"1.0"),
    "HTTP/1.2": post(WHOLE, body=HIDDEN, version=b"1.2"),
    "HTTP/11": post(WHOLE, body=HIDDEN, version=b"11"),
    "HTTP/2.0": post(TE, LENGTH, body=CHUNKED, version=b"2.0"),
    "last request": post(b"Connection: close", b"Content-Length: 0", body=HIDDEN),
    "length is hop by hop": post(b"Connection: content-length", WHOLE, body=HIDDEN),
    "chunks are hop by hop": post(b"Connection: transfer-encoding", TE, body=AS_CHUNK),
    "absolute target": post(WHOLE, body=HIDDEN).replace(b" /v1", b" http://x/v1", 1),
    "absolute target elsewhere": post(WHOLE, body=HIDDEN).replace(b" /v1", b" http://evil.test/v1", 1),
    "space in the target": post(WHOLE, body=HIDDEN).replace(b"open", b"open HTTP/1.1 x", 1),
    "CR in the target": post(WHOLE, body=HIDDEN).replace(b"open", b"open\rx", 1),
    "two hosts": post(b"Host: y", WHOLE, body=HIDDEN),
    "GET with a body": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + WHOLE + b"\r\n\r\n" + HIDDEN,
    "HEAD with a body": b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n" + WHOLE + b"\r\n\r\n" + HIDDEN,
    "refused, with a body": post(WHOLE, body=HIDDEN).replace(b"/v1/topics/open", b"/nothing", 1),
    "CONNECT": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n" + HIDDEN,
    "CONNECT with a length": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n"
    + WHOLE
    + b"\r\n\r\n"
    + HIDDEN,
    "upgrade": upgrade(V13, body=HIDDEN),
    "upgrade with a length": upgrade(V13, WHOLE, body=HIDDEN),
    "upgrade with chunks": upgrade(V13, TE, body=AS_CHUNK),
    "upgrade to a wrong version": upgrade(b"Sec-WebSocket-Version: 777", WHOLE, body=HIDDEN),
    "upgrade to a wrong version, bare": upgrade(b"Sec-WebSocket-Version: 777"),
    "upgrade by POST": upgrade(V13, WHOLE, method=b"POST", body=HIDDEN),
    "upgrade by POST with chunks": upgrade(V13, TE, method=b"POST", body=AS_CHUNK),
    "h2c": upgrade(b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", WHOLE, to=b"h2c", body=HIDDEN),
    "h2c with chunks": upgrade(TE, to=b"h2c", method=b"POST", body=AS_CHUNK),
    "h2c or websocket": upgrade(V13, WHOLE, to=b"h2c, websocket", body=HIDDEN),
    "h2c with both": upgrade(TE, LENGTH, to=b"h2c", method=b"POST", body=CHUNKED),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    "100-continue": post(b"Expect: 100-continue", WHOLE, body=HIDDEN),
    "100-continue, GET": upgrade(b"Expect: 100-continue", WHOLE, to=b"none", body=HIDDEN),
    "100-continue with chunks": post(b"Expect: 100-continue", TE, body=AS_CHUNK),
    "100-continue, refused": post(b"Expect: 100-continue", WHOLE, b"Content-Encoding: gzip", body=HIDDEN),
    "another expectation": post(b"Expect: 100-continuex", WHOLE, body=HIDDEN),
}

KINDS: Final = ("direct", "haproxy", "nginx")


@pytest.fixture(scope="module")
def gateway() -> Iterator[Address]:
    with GatewayProcess() as process:
        yield address_of(process)
        assert process.alive
        assert "Traceback" not in process.log_text(), process.log_text()


@pytest.fixture(scope="module")
def ways(gateway: Address) -> Iterator[dict[str, Address]]:
    """The ways to the gateway: direct, and through each balancer, for which it is all three replicas."""
    with ExitStack() as stack:
        through = {
            kind: stack.enter_context(Balancer(kind, [gateway] * 3)).address for kind in ("haproxy", "nginx")
        }
        yield {"direct": gateway, **through}


async def all_that_comes(address: Address, data: bytes) -> bytes:
    """Send bytes and return everything that is said until the connection ends, or nothing comes any more."""
    said = b""
    async with Tcp.open(address) as tcp:
        try:
            await tcp.send(data)
            async with asyncio.timeout(PATIENCE):
                while part := await tcp.some():
                    said += part
        except (ConnectionError, TimeoutError):
            pass
    return said


async def test_what_is_hidden_would_be_seen(gateway: Address, ways: dict[str, Address]) -> None:
    """Sent openly and straight, both hidden requests are carried out, so their absence says something."""
    openly = HIDDEN.replace(b"smuggled.000000", b"smuggled.openly")
    said = await all_that_comes(gateway, openly + END)
    assert b"sluice_log_head" in said
    assert await hidden_events(gateway, "smuggled.openly") == 1
    for kind in ("haproxy", "nginx"):
        said = await all_that_comes(ways[kind], openly + END)
        assert b"sluice_log_head" not in said
        assert b" 403 " in said


async def hidden_events(gateway: Address, topic: str) -> int:
    answer = await fetch(gateway, "/v1/events", [("topic", topic), ("cursor", "earliest")])
    return len(answer.json["events"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
async def test_nothing_is_smuggled(gateway: Address, ways: dict[str, Address], name: str, kind: str) -> None:
    """The gateway never carries out a request of which the one before it knows nothing."""
    topic = f"smuggled.{KINDS.index(kind)}{list(SHAPES).index(name):05}"
    shape = SHAPES[name].replace(b"smuggled.000000", topic.encode())
    said = await all_that_comes(ways[kind], shape + END)
    assert b"sluice_log_head" not in said, (
        "a page came through that is closed, or was asked for inside of a body"
    )
    statuses = re.findall(rb"HTTP/1\.[01] (\d{3}) ", said)
    if kind == "direct":
        if not name.startswith("CONNECT"):
            assert statuses, "it was not answered at all"
        assert await hidden_events(gateway, topic) == 0
    elif await hidden_events(gateway, topic):
        # Then these are requests for the balancer as well, and it has refused the second of them.
        assert b"403" in statuses, statuses
    for _ in range(3):  # an answer too many on a connection that is used again would come to somebody else
        honest = await fetch(ways[kind], "/healthz")
        assert (honest.status, honest.body) == (200, (await fetch(gateway, "/healthz")).body)
