"""Who a client is behind a proxy: what is believed, of whom, and what nobody's word changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from gateway.doorkeeper import Doorkeeper
from gateway.protocol import HttpProtocol
from gateway.proxies import MAX_PROXIES, Client, TrustedProxies
from gateway.setting import SettingsError
from gateway.settings import load

OURS = TrustedProxies.parse("10.0.0.0/8,fd00::/8,127.0.0.1")


def client(peer: str, *forwarded: str, proto: str | None = None) -> Client:
    """Return who asks when a peer sends these headers."""
    headers = [(b"x-forwarded-for", each.encode("latin-1")) for each in forwarded]
    if proto is not None:
        headers.append((b"x-forwarded-proto", proto.encode("latin-1")))
    return OURS.client(peer, headers)


def address(peer: str, *forwarded: str) -> str:
    """Return the address of who asks."""
    return client(peer, *forwarded).address


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("10.1.1.1", ["203.0.113.7"], "203.0.113.7"),
        ("10.1.1.1", ["203.0.113.7, 10.2.2.2"], "203.0.113.7"),
        ("10.1.1.1", ["203.0.113.7", "10.2.2.2"], "203.0.113.7"),
        ("10.1.1.1", ["1.1.1.1, 203.0.113.7"], "203.0.113.7"),
        ("10.1.1.1", ["nonsense, 203.0.113.7"], "203.0.113.7"),
        ("10.1.1.1", ["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        ("10.1.1.1", [], "10.1.1.1"),
        ("10.1.1.1", [""], "10.1.1.1"),
        ("10.1.1.1", [" , ,203.0.113.7,, "], "203.0.113.7"),
        ("10.1.1.1", ["203.0.113.7, nonsense"], "10.1.1.1"),
        ("10.1.1.1", ["203.0.113.7, unknown, 10.2.2.2"], "10.1.1.1"),
        ("10.1.1.1", ["203.0.113.7:5555"], "203.0.113.7"),
        ("10.1.1.1", ["[2001:DB8:0::7]:5555"], "2001:db8::7"),
        ("10.1.1.1", ["[2001:db8::7]"], "2001:db8::7"),
        ("10.1.1.1", ["2001:db8::7"], "2001:db8::7"),
        ("10.1.1.1", ["[203.0.113.7"], "10.1.1.1"),
        ("10.1.1.1", ["fe80::1%eth0"], "10.1.1.1"),
        ("10.1.1.1", ["::ffff:203.0.113.7"], "203.0.113.7"),
        ("10.1.1.1", ["203.0.113.7, ::ffff:10.2.2.2"], "203.0.113.7"),
        ("::ffff:10.1.1.1", ["203.0.113.7"], "203.0.113.7"),
        ("fd00::1", ["203.0.113.7"], "203.0.113.7"),
        ("203.0.113.1", ["10.2.2.2"], "203.0.113.1"),
        ("::ffff:203.0.113.1", ["10.2.2.2"], "203.0.113.1"),
        ("2001:DB8::1", ["10.2.2.2"], "2001:db8::1"),
        ("no address", ["10.2.2.2"], "no address"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else str(value),
)
def test_the_first_from_the_right_that_is_not_ours_is_the_client(
    peer: str, forwarded: list[str], expected: str
) -> None:
    """Headers count from a peer of ours only, and from the right, up to the first that is not ours."""
    assert address(peer, *forwarded) == expected


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        ("https", "https"),
        ("HTTP", "http"),
        (" https ", "https"),
        ("http, https", "https"),
        ("https, http", "http"),
        ("wss", None),
        ("", None),
        ("https,", None),
        (None, None),
    ],
)
def test_the_nearest_proxy_says_the_scheme(proto: str | None, expected: str | None) -> None:
    """The scheme is what the nearest proxy says, if it is one; a stranger says nothing."""
    assert client("10.1.1.1", proto=proto).scheme == expected
    assert client("203.0.113.1", proto=proto).scheme is None


def test_forwarded_is_not_read() -> None:
    """The header of RFC 7239 is nobody's word: proxies pass it on as it came."""
    headers = [(b"forwarded", b"for=203.0.113.7;proto=https")]
    assert OURS.client("10.1.1.1", headers) == Client("10.1.1.1", None)


def test_mapped_networks_are_those_of_ipv4() -> None:
    """A network of IPv4 addresses written as IPv6 is the same network."""
    ours = TrustedProxies.parse("::ffff:10.0.0.0/104")
    assert ours.client("10.1.1.1", [(b"x-forwarded-for", b"203.0.113.7")]).address == "203.0.113.7"
    assert ours.client("11.1.1.1", [(b"x-forwarded-for", b"203.0.113.7")]).address == "11.1.1.1"


def test_a_long_row_of_proxies_is_not_followed() -> None:
    """More proxies of ours than anybody has are garbage."""
    row = ["203.0.113.7", *["10.2.2.2"] * MAX_PROXIES]
    assert address("10.1.1.1", ",".join(row)) == "10.1.1.1"
    assert address("10.1.1.1", ",".join(row[:-1])) == "203.0.113.7"


ADDRESSES = st.ip_addresses() | st.integers(0, 2**32 - 1).map(lambda four: IPv6Address(0xFFFF << 32 | four))
STRANGERS = ADDRESSES.filter(lambda each: _plain(each) not in OURS)
PROXIES = st.integers(0, 2**24 - 1).map(lambda rest: IPv4Address(10 << 24 | rest)) | st.integers(
    0, 2**120 - 1
).map(lambda rest: IPv6Address(0xFD << 120 | rest))


def _plain(each: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return each.ipv4_mapped or each if isinstance(each, IPv6Address) else each


@given(STRANGERS, st.text(), st.text())
def test_a_stranger_is_himself(peer: IPv4Address | IPv6Address, forwarded: str, proto: str) -> None:
    """Whatever a stranger sends, he is who he is, in canonical form."""
    headers = [(b"x-forwarded-for", forwarded.encode()), (b"x-forwarded-proto", proto.encode())]
    assert OURS.client(str(peer), headers) == Client(str(_plain(peer)), None)


@given(PROXIES, st.text(), STRANGERS, st.lists(PROXIES, max_size=5))
def test_what_is_left_of_the_client_changes_nothing(
    peer: IPv4Address | IPv6Address,
    made_up: str,
    asking: IPv4Address | IPv6Address,
    behind: list[IPv4Address | IPv6Address],
) -> None:
    """The client is found behind any proxies of ours, whatever it had written itself."""
    forwarded = ",".join([made_up, str(asking), *map(str, behind)])
    found = OURS.client(str(peer), [(b"x-forwarded-for", forwarded.encode())])
    assert found.address == str(_plain(asking))


@given(PROXIES, st.binary(), st.binary())
def test_what_is_found_is_always_an_address(
    peer: IPv4Address | IPv6Address, forwarded: bytes, proto: bytes
) -> None:
    """No bytes raise, and what comes out is a canonical address and a scheme."""
    headers = [(b"x-forwarded-for", forwarded), (b"x-forwarded-proto", proto)]
    found = OURS.client(str(peer), headers)
    assert str(_plain(ip_address(found.address))) == found.address
    assert found.scheme in (None, "http", "https")


def test_what_is_no_network_is_refused() -> None:
    """The sentence names the setting and shows what is wrong."""
    with pytest.raises(SettingsError, match=r"^SLUICE_TRUSTED_PROXIES: '10.0.0.1/8' is no network"):
        load({}, {"SLUICE_TRUSTED_PROXIES": "127.0.0.1,10.0.0.1/8"})


# --- in the server -----------------------------------------------------------------------------------------


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with who the request says it is from."""
    seen = json.dumps([scope["client"], scope["scheme"]]).encode()
    headers = [(b"content-length", str(len(seen)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": seen})


@asynccontextmanager
async def serving(trusted: str) -> AsyncIterator[int]:
    """Serve `echo` by our protocol class; give the port."""
    members = {
        "doorkeeper": Doorkeeper(("127.0.0.1", 0), 1 << 16, 10),
        "proxies": TrustedProxies.parse(trusted) if trusted else None,
    }
    protocol = type("BoundHttpProtocol", (HttpProtocol,), members)
    config = uvicorn.Config(echo, ws="none", lifespan="off", log_config=None, proxy_headers=False)
    new = partial(protocol, config=config, server_state=ServerState(), app_state={})
    server = await asyncio.get_running_loop().create_server(new, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("trusted", "believed"),
    [("127.0.0.0/8", True), ("10.0.0.0/8", False), ("", False)],
    ids=["ours", "not ours", "nobody"],
)
async def test_a_request_is_that_of_the_client(trusted: str, believed: bool) -> None:
    """The application sees the client that a proxy of ours names, for each request of a connection anew."""
    async with serving(trusted) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        peer = [list(writer.get_extra_info("sockname")), "http"]
        named = "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n"
        seen = []
        for headers in (named, ""):
            writer.write(f"GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n".encode())
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                seen.append(json.loads(await reader.readexactly(size)))
        writer.close()
        await writer.wait_closed()
    assert seen == [[["203.0.113.7", 0], "https"] if believed else peer, peer]
