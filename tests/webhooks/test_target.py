"""From a URL to a target: one plain spelling of each is taken, and every other is refused with its reason."""

# ruff: noqa: RUF001  (characters that look like others are what this is about)

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.attempt import Target
from webhooks.target import UrlRefused, parse_target

TAKEN = {
    "https://example.com": Target("https", "example.com", 443, "/"),
    "http://example.com/": Target("http", "example.com", 80, "/"),
    "HTTPS://Hooks.Example.COM/In": Target("https", "hooks.example.com", 443, "/In"),
    "https://example.com:8443/a/b?c=d&e[]=f%20g": Target("https", "example.com", 8443, "/a/b?c=d&e[]=f%20g"),
    "https://example.com?token=x": Target("https", "example.com", 443, "/?token=x"),
    "https://example.com/@user:1?u=http://other.example/": Target(
        "https", "example.com", 443, "/@user:1?u=http://other.example/"
    ),
    "http://receiver:3000/hook": Target("http", "receiver", 3000, "/hook"),
    "http://my_service.local/hook": Target("http", "my_service.local", 80, "/hook"),
    "https://xn--bcher-kva.example/": Target("https", "xn--bcher-kva.example", 443, "/"),
    "http://1.2.3.4.example/": Target("http", "1.2.3.4.example", 80, "/"),
    "http://0x7f.example/": Target("http", "0x7f.example", 80, "/"),
    "http://93.184.215.14:8080/x": Target("http", "93.184.215.14", 8080, "/x", IPv4Address("93.184.215.14")),
    "http://[2606:4700::1111]/": Target("http", "2606:4700::1111", 80, "/", IPv6Address("2606:4700::1111")),
    "http://[2606:4700:0:0::1111]:81/": Target(
        "http", "2606:4700::1111", 81, "/", IPv6Address("2606:4700::1111")
    ),
}

PLAIN_IPV4 = "is no IPv4 address"
PLAIN_IPV6 = "is no IPv6 address"
MANY_COLONS = "an IPv6 address stands in brackets"
PLAIN_NAME = "is no host name"

REFUSED = {
    # Other schemes, and what is no URL at all.
    "": "begins with https:// or http://",
    "example.com/hook": "begins with https:// or http://",
    "//example.com/": "begins with https:// or http://",
    "ftp://example.com/": "begins with https:// or http://",
    "file:///etc/passwd": "begins with https:// or http://",
    "gopher://127.0.0.1:6379/_FLUSHALL": "begins with https:// or http://",
    "http:/example.com/": "begins with https:// or http://",
    "http:example.com": "begins with https:// or http://",
    "https://" + "a" * 2041: "has 2049 characters; 2048 are allowed",
    # What some readers drop and others keep.
    " http://example.com/": "has no spaces or control characters, this one has ' '",
    "http://example.com/a b": "has no spaces or control characters, this one has ' '",
    "http://exam\tple.com/": "this one has '\\t'",
    "http://example.com/\r\nX-Injected: 1": "this one has '\\r'",
    "http://example.com/\n": "this one has '\\n'",
    "http://example.com/\x00": "this one has '\\x00'",
    "http://example.com/\x7f": "this one has '\\x7f'",
    "http://example.com\\@127.0.0.1/": "has no room for a user or password",
    "http:\\\\example.com/": "begins with https:// or http://",
    "http://example.com/\\..": "must be percent-encoded",
    # Credentials, and hosts that hide behind them.
    "http://user:secret@example.com/": "has no room for a user or password",
    "http://example.com@127.0.0.1/": "has no room for a user or password",
    "http://127.0.0.1:80@example.com/": "has no room for a user or password",
    "http://@example.com/": "has no room for a user or password",
    "http://example.com#@127.0.0.1/": "has no fragment",
    "http://example.com/#part": "has no fragment",
    # Ports.
    "http://example.com:/": "'' is no port",
    "http://example.com:0/": "'0' is no port",
    "http://example.com:080/": "'080' is no port",
    "http://example.com:65536/": "'65536' is no port",
    "http://example.com:999999/": "'999999' is no port",
    "http://example.com:-80/": "'-80' is no port",
    "http://example.com:80:90/": MANY_COLONS,
    "http://example.com:http/": "'http' is no port",
    "http://example.com:+80/": "'+80' is no port",
    # No host, or none that a name server knows.
    "http://": "names no host",
    "http:///hook": "names no host",
    "http://:80/": "names no host",
    "http://?x": "names no host",
    "http://./": "ends with a dot",
    "http://example..com/": PLAIN_NAME,
    "http://.example.com/": PLAIN_NAME,
    "http://-example.com/": PLAIN_NAME,
    "http://example-.com/": PLAIN_NAME,
    "http://exa$mple.com/": PLAIN_NAME,
    "http://exam,ple.com/": PLAIN_NAME,
    "http://localhost,example.com/": PLAIN_NAME,
    f"http://{'a' * 64}.com/": PLAIN_NAME,
    f"http://{'a.' * 126}com/": PLAIN_NAME,
    "http://example.com./": "ends with a dot",
    "http://127.0.0.1./": "ends with a dot",
    # Numbers that inet_aton, or a browser, makes an IPv4 address of.
    "http://2130706433/": PLAIN_IPV4,
    "http://0x7f000001/": PLAIN_IPV4,
    "http://0X7F.0.0.1/": PLAIN_IPV4,
    "http://0x7f.0x0.0x0.0x1/": PLAIN_IPV4,
    "http://017700000001/": PLAIN_IPV4,
    "http://0177.0.0.1/": PLAIN_IPV4,
    "http://0177.0.0.01/": PLAIN_IPV4,
    "http://127.0.0.01/": PLAIN_IPV4,
    "http://127.1/": PLAIN_IPV4,
    "http://127.0.1/": PLAIN_IPV4,
    "http://0/": PLAIN_IPV4,
    "http://127.0.0.0x1/": PLAIN_IPV4,
    "http://127.0.0.0x/": PLAIN_IPV4,
    "http://256.0.0.1/": PLAIN_IPV4,
    "http://127.0.0.1.1/": PLAIN_IPV4,
    "http://1.2.3.4.5.6/": PLAIN_IPV4,
    "http://foo.1/": PLAIN_IPV4,
    "http://4294967297/": PLAIN_IPV4,
    # Encoded once more, or in characters that become ASCII somewhere.
    "http://%31%32%37.0.0.1/": PLAIN_IPV4,
    "http://127%2e0%2e0%2e1/": PLAIN_NAME,
    "http://localhos%74/": PLAIN_NAME,
    "http://example.com%00.internal/": PLAIN_NAME,
    "http://example.com%2f@127.0.0.1/": "has no room for a user or password",
    "http://１２７.０.０.１/": "is written in ASCII",
    "http://①②⑦.⓪.⓪.①/": "is written in ASCII",
    "http://127。0。0。1/": "is written in ASCII",
    "http://127．0．0．1/": "is written in ASCII",
    "http://127｡0｡0｡1/": "is written in ASCII",
    "http://١٢٧.0.0.1/": "is written in ASCII",
    "http://ｌocalhost/": "is written in ASCII",
    "http://local\u00adhost/": "is written in ASCII",
    "http://bücher.example/": "an international host name in its form with xn--",
    "http://example.com/ä": "other characters percent-encoded",
    "http://example.com\uff0f@127.0.0.1/": "is written in ASCII",
    # IPv6.
    "http://[::1/": PLAIN_IPV6,
    "http://::1]/": MANY_COLONS,
    "http://::1/": MANY_COLONS,
    "http://[]/": PLAIN_IPV6,
    "http://[127.0.0.1]/": PLAIN_IPV6,
    "http://[fe80::1%eth0]/": PLAIN_IPV6,
    "http://[fe80::1%25eth0]/": PLAIN_IPV6,
    "http://[::1]x/": PLAIN_IPV6,
    "http://[::1].example.com/": PLAIN_IPV6,
    "http://[[::1]]/": PLAIN_IPV6,
    "http://[v1.x]/": PLAIN_IPV6,
    "http://[::ffff:127.0.0.01]/": PLAIN_IPV6,
    "http://[1::2::3]/": PLAIN_IPV6,
    "http://[12345::]/": PLAIN_IPV6,
    # Paths.
    "http://example.com/%zz": "must be percent-encoded",
    "http://example.com/a%2": "must be percent-encoded",
    'http://example.com/"': "must be percent-encoded",
    "http://example.com/<x>": "must be percent-encoded",
    "http://example.com/{id}": "must be percent-encoded",
}


@pytest.mark.parametrize(("url", "target"), TAKEN.items())
def test_a_plain_url_is_taken(url: str, target: Target) -> None:
    """A URL that is spelled plainly becomes its parts."""
    assert parse_target(url) == target


@pytest.mark.parametrize(("url", "reason"), REFUSED.items())
def test_any_other_url_is_refused(url: str, reason: str) -> None:
    """A URL that somebody could read differently is refused, with a sentence that says why."""
    with pytest.raises(UrlRefused) as refusal:
        parse_target(url)
    assert reason in str(refusal.value)


def test_a_refusal_repeats_no_password() -> None:
    """Who writes his password into a URL does not find it in a log."""
    with pytest.raises(UrlRefused) as refusal:
        parse_target("https://user:swordfish@example.com/")
    assert "swordfish" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "authority", "origin"),
    [
        ("https://example.com/", "example.com", "https://example.com:443"),
        ("https://example.com:443/", "example.com", "https://example.com:443"),
        ("https://example.com:80/", "example.com:80", "https://example.com:80"),
        ("http://[2606:4700::1]:8080/", "[2606:4700::1]:8080", "http://[2606:4700::1]:8080"),
    ],
)
def test_a_default_port_is_not_named_to_the_receiver(url: str, authority: str, origin: str) -> None:
    """The Host header names a port only if it is another than the scheme's; the origin always does."""
    target = parse_target(url)
    assert (target.authority, target.origin) == (authority, origin)
    assert f"\r\nHost: {authority}\r\n".encode() in target.post


def test_a_request_begins_with_what_the_url_says() -> None:
    """The head of a request has the path, the host, and asks for a body as it is."""
    assert parse_target("http://example.com/a?b").post == (
        b"POST /a?b HTTP/1.1\r\nHost: example.com\r\nAccept-Encoding: identity\r\nContent-Length: "
    )
    assert parse_target("http://example.com/a?b").head("OPTIONS").startswith(b"OPTIONS /a?b HTTP/1.1\r\n")


@given(st.text(st.characters(codec="utf-8"), max_size=60) | st.from_regex(r"\Ahttps?://[ -~]{0,40}\Z"))
def test_what_is_taken_is_the_same_to_others(text: str) -> None:
    """Whatever is taken is read alike by another parser, and is its own normal form."""
    try:
        target = parse_target(text)
    except UrlRefused:
        return
    parts = urlsplit(text)
    assert (parts.scheme, parts.port or {"http": 80, "https": 443}[target.scheme]) == (
        target.scheme,
        target.port,
    )
    assert parts.username is None
    host = parts.hostname or ""
    assert target.host == (str(IPv6Address(host)) if ":" in host else host)
    assert parse_target(target.url) == target
    assert b"\r\n\r\n" not in target.post
    assert target.post.count(b"\r\n") == 3
