"""The guard: every form of an address that is not routable on the internet is refused, with its kind."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.guard import Guard, Ports, parse_networks
from webhooks.target import UrlRefused

PRIVATE = "a private address"
LOOPBACK = "a loopback address"
DOCUMENTATION = "an address for documentation"

REFUSED = {
    # IPv4, the first and the last of each range.
    "0.0.0.0": "the unspecified address",
    "0.0.0.1": 'an address of "this network"',
    "0.255.255.255": 'an address of "this network"',
    "10.0.0.0": PRIVATE,
    "10.255.255.255": PRIVATE,
    "100.64.0.0": "an address of a carrier's own network",
    "100.100.100.200": "an address of a carrier's own network",  # the metadata of a cloud
    "100.127.255.255": "an address of a carrier's own network",
    "127.0.0.1": LOOPBACK,
    "127.255.255.255": LOOPBACK,
    "168.63.129.16": "the address of Azure's platform",
    "169.254.0.0": "a link-local address",
    "169.254.169.254": "a link-local address",
    "169.254.255.255": "a link-local address",
    "172.16.0.0": PRIVATE,
    "172.31.255.255": PRIVATE,
    "192.0.0.0": "an address reserved for protocols",
    "192.0.0.170": "an address reserved for protocols",
    "192.0.2.1": DOCUMENTATION,
    "192.88.99.1": "an address of 6to4 relays",
    "192.168.0.0": PRIVATE,
    "192.168.255.255": PRIVATE,
    "198.18.0.0": "an address for benchmarks",
    "198.19.255.255": "an address for benchmarks",
    "198.51.100.7": DOCUMENTATION,
    "203.0.113.255": DOCUMENTATION,
    "224.0.0.1": "a multicast address",
    "239.255.255.255": "a multicast address",
    "240.0.0.0": "a reserved address",
    "255.255.255.254": "a reserved address",
    "255.255.255.255": "the broadcast address",
    # IPv6.
    "::": "the unspecified address",
    "::1": LOOPBACK,
    "100::1": "an address that discards everything",
    "2001:2::1": "an address for benchmarks",
    "2001:10::1": "an address reserved for protocols",  # ORCHID
    "2001:20::1": "an address reserved for protocols",
    "2001:1ff:ffff::1": "an address reserved for protocols",
    "2001:db8::1": DOCUMENTATION,
    "3fff::1": DOCUMENTATION,
    "3fff:fff:ffff::1": DOCUMENTATION,
    "5f00::1": "an address that is not routable on the internet",  # segment routing
    "fc00::1": PRIVATE,
    "fd00:ec2::254": PRIVATE,  # the metadata of a cloud
    "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": PRIVATE,
    "fe80::1": "a link-local address",
    "febf::1": "a link-local address",
    "fe80::1%eth0": "an address with a zone",
    "2606:4700::1%1": "an address with a zone",
    "fec0::1": "a site-local address",
    "feff::1": "a site-local address",
    "ff02::1": "a multicast address",
    "ff0e::1": "a multicast address",
    "4000::1": "an address that is not routable on the internet",
    "1fff::1": "an address that is not routable on the internet",
    "200::1": "an address that is not routable on the internet",
    # An IPv4 address inside an IPv6 one.
    "::ffff:127.0.0.1": LOOPBACK,
    "::ffff:7f00:1": LOOPBACK,
    "::ffff:169.254.169.254": "a link-local address",
    "::ffff:10.0.0.1": PRIVATE,
    "::ffff:0.0.0.0": "the unspecified address",
    "::127.0.0.1": "an IPv4-compatible address",
    "::8.8.8.8": "an IPv4-compatible address",
    "::ffff:0:127.0.0.1": "an IPv4-translated address",
    "::ffff:0:8.8.8.8": "an IPv4-translated address",
    "64:ff9b::127.0.0.1": "a loopback address behind NAT64",
    "64:ff9b::a9fe:a9fe": "a link-local address behind NAT64",
    "64:ff9b::10.0.0.1": "a private address behind NAT64",
    "64:ff9b:1::8.8.8.8": "an address of a network's own NAT64",
    "64:ff9b:1:ffff::10.0.0.1": "an address of a network's own NAT64",
    "64:ff9b:0:1::8.8.8.8": "an address that is not routable on the internet",
    "2002:7f00:1::": "a 6to4 address",
    "2002:a00:1::1": "a 6to4 address",
    "2002:808:808::1": "a 6to4 address",
    "2001::1": "a Teredo address",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2": "a Teredo address",
    "2606:4700::5efe:10.0.0.1": "an ISATAP address",
    "2606:4700::200:5efe:8.8.8.8": "an ISATAP address",
    "fe80::5efe:192.168.0.1": "a link-local address",
    # No address at all: what a socket may say that is not connected to a host.
    "": "no address",
    "localhost": "no address",
    "0x7f000001": "no address",
    "127.1": "no address",
    "0177.0.0.1": "no address",
}

ALLOWED = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.0.3.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2000::1",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2003::1",
    "2606:4700::1111",
    "2606:4700::5eff:10.0.0.1",
    "3fff:1000::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]

ADDRESSES = st.ip_addresses() | st.integers(0, 2**32 - 1).map(lambda four: IPv6Address(0xFFFF << 32 | four))


@pytest.mark.parametrize(("address", "kind"), REFUSED.items())
def test_an_address_that_is_not_global_is_refused(address: str, kind: str) -> None:
    """An address that only some can reach is refused, and its kind is named."""
    assert Guard().kind_refused(address) == kind


@pytest.mark.parametrize("address", ALLOWED)
def test_a_global_address_is_allowed(address: str) -> None:
    """An address that everybody can reach may be connected to, right up to the ranges beside it."""
    assert Guard().kind_refused(address) is None


@given(ADDRESSES)
def test_what_is_allowed_is_global(address: IPv4Address | IPv6Address) -> None:
    """Whatever is allowed is global to the standard library as well, however it is written."""
    if Guard().kind_refused(address) is not None:
        return
    assert address.is_global or address in parse_networks("64:ff9b::/96")[0]
    assert not address.is_multicast
    assert Guard().kind_refused(str(address)) is None
    assert Guard().kind_refused(address.exploded) is None


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_the_address(address: IPv4Address) -> None:
    """An IPv4 address in its mapped form is judged as the IPv4 address."""
    assert Guard().kind_refused(f"::ffff:{address}") == Guard().kind_refused(address)


@pytest.mark.parametrize(
    ("allow", "address", "kind"),
    [
        ("10.0.0.0/8", "10.1.2.3", None),
        ("10.0.0.0/8", "::ffff:10.1.2.3", None),
        ("10.0.0.0/8", "64:ff9b::10.1.2.3", None),
        ("10.0.0.0/8", "172.16.0.1", PRIVATE),
        ("10.0.0.0/8", "2002:a01:203::1", "a 6to4 address"),
        ("10.0.0.0/8", "::10.1.2.3", "an IPv4-compatible address"),
        ("10.1.2.3", "10.1.2.3", None),
        ("10.1.2.3", "10.1.2.4", PRIVATE),
        ("127.0.0.0/8,::1", "127.0.0.1", None),
        ("127.0.0.0/8,::1", "::1", None),
        ("127.0.0.0/8,::1", "::2", "an IPv4-compatible address"),
        ("fd00::/8", "fd12::1", None),
        ("fd00::/8", "fc12::1", PRIVATE),
        ("::/0", "::ffff:127.0.0.1", LOOPBACK),
        ("::/0", "fe80::1%eth0", "an address with a zone"),
        ("64:ff9b:1::/48", "64:ff9b:1::10.0.0.1", None),
    ],
)
def test_a_network_that_is_allowed_lets_its_addresses_through(
    allow: str, address: str, kind: str | None
) -> None:
    """Only what lies in a network that is named is let through; one of IPv4 counts inside IPv6 too."""
    assert Guard(parse_networks(allow)).kind_refused(address) == kind


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "10.0.0.0/33", "ten", "10.0.0.0/8;fd00::/8"])
def test_what_is_no_network_is_refused(text: str) -> None:
    """A list of networks that is none is refused with a sentence that shows how one looks."""
    with pytest.raises(ValueError, match=r"is no network: one looks like 10\.0\.0\.0/8"):
        parse_networks(text)


@pytest.mark.parametrize(
    ("port", "allowed"),
    [
        (80, True),
        (443, True),
        (1024, True),
        (3000, True),
        (8080, True),
        (8443, True),
        (65535, True),
        (1, False),
        (22, False),
        (25, False),
        (79, False),
        (81, False),
        (465, False),
        (587, False),
        (1023, False),
        (5060, False),
        (6667, False),
        (10080, False),
    ],
)
def test_ports_of_other_protocols_are_refused(port: int, allowed: bool) -> None:
    """Ports where receivers listen are allowed, those of a system's services and other protocols not."""
    url = f"http://example.com:{port}/"
    if allowed:
        assert Guard().admit(url).port == port
    else:
        with pytest.raises(UrlRefused, match=f"no webhooks are sent to port {port}"):
            Guard().admit(url)


def test_ports_that_are_named_are_all_there_are() -> None:
    """A list of ports replaces the default."""
    ports = Ports.parse("443, 8000-8002,6667")
    assert [port for port in range(65536) if port in ports] == [443, 6667, 8000, 8001, 8002]


@pytest.mark.parametrize("text", ["", "0", "65536", "80-70", "http", "80;443", "80,,443", "-5", "٤٤٣"])
def test_what_is_no_port_is_refused(text: str) -> None:
    """A list of ports that is none is refused."""
    with pytest.raises(ValueError, match="is no port and no range"):
        Ports.parse(text)


def test_https_only_refuses_http() -> None:
    """With the switch on, nothing is sent in the clear, not even into a network that is allowed."""
    guard = Guard(parse_networks("10.0.0.0/8"), https_only=True)
    with pytest.raises(UrlRefused, match="https:// only"):
        guard.admit("http://10.0.0.1/")
    assert guard.admit("https://10.0.0.1/").port == 443


@pytest.mark.parametrize("address", [address for address in REFUSED if REFUSED[address] != "no address"])
def test_a_url_with_an_address_is_checked_at_once(address: str) -> None:
    """A URL whose host is an address is refused when it is given, not only when it is connected to."""
    zone = "%" in address
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(UrlRefused) as refusal:
        Guard().admit(f"https://{host}/hook")
    expected = "is no IPv6 address" if zone else f"is {REFUSED[address]}, which webhooks may reach only if"
    assert expected in str(refusal.value)


def test_a_name_is_admitted_until_it_is_resolved() -> None:
    """A name alone says nothing about where it leads."""
    assert Guard().admit("http://localhost/").address is None
    assert ip_address("127.0.0.1") == Guard(parse_networks("127.0.0.0/8")).admit("http://127.0.0.1/").address
