"""Which pages may come in: lists of origins and hosts, and every way to look like somebody who may."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.auth.origins import Headers, Origins, is_own, parse_hosts, parse_origins, preflight
from gateway.problems import Problem

APP = b"https://app.example.com"
HOST = b"push.example.com"
LISTED = ("https://app.example.com", "http://localhost:3000", "https://[2001:db8::1]:8443")


def of(origin: bytes | None, host: bytes | None = HOST, **more: bytes) -> dict[bytes, bytes]:
    """Return the headers of a request of a page."""
    headers = {name.replace("_", "-").encode(): value for name, value in more.items()}
    if origin is not None:
        headers[b"origin"] = origin
    if host is not None:
        headers[b"host"] = host
    return headers


# --- lists


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        (" , ", ()),
        ("*", ("*",)),
        (
            " https://App.Example.com ,http://localhost:3000",
            ("https://app.example.com", "http://localhost:3000"),
        ),
        ("HTTPS://a.example,https://A.EXAMPLE", ("https://a.example",)),
        ("https://[::1]:8443", ("https://[::1]:8443",)),
        ("https://a.example:443,http://b.example:80", ("https://a.example", "http://b.example")),
        ("http://a.example:443,https://b.example:80", ("http://a.example:443", "https://b.example:80")),
    ],
    ids=["none", "blanks", "any", "two", "twice", "IPv6", "default ports", "other ports"],
)
def test_lists_of_origins(text: str, origins: tuple[str, ...]) -> None:
    """Each once, spelled as a browser spells it: in lower case, without the port that the scheme implies."""
    assert parse_origins(text) == origins


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "app.example.com",
        "https://",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://app.example.com?a",
        "https://app.example.com#a",
        "https://me@app.example.com",
        "https://*.example.com",
        "ftp://app.example.com",
        "file://",
        "https://app example",
        "https://app.exam\nple.com",
        "https://münchen.example",
        "https://app.example.com:x",
        "https://app.example.com:",
        "https://:8443",
        "https://::1",
        "*,https://app.example.com",
    ],
)
def test_what_is_no_list_of_origins(text: str) -> None:
    """What no browser would ever send is refused, so that nobody waits in vain for it to fit."""
    with pytest.raises(ValueError, match="origin"):
        parse_origins(text)


def test_lists_of_hosts() -> None:
    """Names in lower case; a port, an address in brackets and a pattern are none."""
    assert parse_hosts("") == frozenset()
    assert parse_hosts(" Push.Example.com, push ") == {"push.example.com", "push"}
    for text in ("push.example.com:8000", "[::1]", "*.example.com", "https://push", "a b", "pu\u017fh"):
        with pytest.raises(ValueError, match="is no name of a host"):
            parse_hosts(text)


# --- hosts


@pytest.mark.parametrize(
    "host",
    [
        b"push.example.com",
        b"PUSH.Example.Com",
        b"push.example.com:8000",
        b"localhost",
        b"LocalHost:8000",
        b"app.localhost:3000",
        b"127.0.0.1",
        b"127.0.0.1:8000",
        b"192.0.2.7:80",
        b"[::1]",
        b"[::1]:8000",
        b"[2001:DB8::1]:443",
        None,
    ],
)
def test_hosts_that_are_meant(host: bytes | None) -> None:
    """By its names, as an address, or as this machine; in any case, at any port. HTTP/1.0 has no host."""
    Origins((), frozenset({"push.example.com"})).check_host(host)


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b":8000",
        b"evil.example",
        b"evil.example:8000",
        b"push.example.com.evil.example",
        b"evil-push.example.com",
        b"sub.push.example.com",
        b"push.example.com@evil.example",
        b"localhost.evil.example",
        b"evil-localhost",
        b"xlocalhost",
        b"127.0.0.1.evil.example",
        b"127.0.0.1.nip.io:8000",
        b"[::1].evil.example",
        b"[::1]evil.example:80",
        b"[evil.example]",
        b"::1",
        b"\xb2.0.0.1",
        b"push.example.com\xa0",
    ],
)
def test_hosts_that_are_not(host: bytes) -> None:
    """Any other name may be one that a stranger has made lead here (DNS rebinding)."""
    origins = Origins((), frozenset({"push.example.com"}))
    with pytest.raises(Problem) as caught:
        origins.check_host(host)
    assert caught.value.status == 421
    Origins((), None).check_host(host)  # who has to say who they are may call us what they like


# --- origins


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (b"https://push.example.com", b"push.example.com"),
        (b"http://push.example.com", b"push.example.com"),
        (b"http://push.example.com:8000", b"Push.Example.com:8000"),
        (b"http://[::1]:8000", b"[::1]:8000"),
    ],
)
async def test_a_page_of_its_own_needs_no_leave(origin: bytes, host: bytes) -> None:
    """It comes from where it asks; a proxy may have ended TLS, so the scheme does not count."""
    origins = Origins((), None)
    assert await origins.check(of(origin, host), safe=False) == ()
    assert origins.may_use_cookie(of(origin, host))


@pytest.mark.parametrize(
    "origin",
    [
        b"https://app.example.com",
        b"HTTPS://APP.example.com",
        b"http://localhost:3000",
        b"https://[2001:db8::1]:8443",
    ],
)
async def test_a_listed_page_may_come_in_with_its_cookies(origin: bytes) -> None:
    """It may read the answer, and the headers that it needs for reading on."""
    headers = dict(await Origins(LISTED, None).check(of(origin), safe=True))
    assert headers == {
        b"access-control-allow-origin": origin,
        b"access-control-allow-credentials": b"true",
        b"access-control-expose-headers": b"etag, location, retry-after",
        b"vary": b"origin",
    }


STRANGERS = [
    b"null",
    b"",
    b"*",
    b"file://",
    b"https://evil.example",
    b"http://app.example.com",  # another scheme
    b"https://app.example.com:8443",  # another port
    b"https://app.example.com:443",  # no browser spells it so
    b"https://app.example.com.evil.example",
    b"https://evil-app.example.com",
    b"https://sub.app.example.com",
    b"https://example.com",
    b"https://app.example.co",
    b"https://app.example.com/",
    b"https://app.example.com/path",
    b"https://app.example.com@evil.example",
    b"https://evil.example#https://app.example.com",
    b"https://app.example.com https://evil.example",
    b"https://evil.example, https://app.example.com",
    b" https://app.example.com",
    b"https://app.example.com\x00",
    b"https://app.example.com\xa0",
    b"http://localhost",
    b"http://localhost:30000",
    b"https://push.example.com:8000",  # another port of our own name
    b"https://push.example.com.evil.example",
    b"ftp://push.example.com",
    b"chrome-extension://push.example.com",
    b"push.example.com",
    b"://push.example.com",
]


@pytest.mark.parametrize("origin", STRANGERS, ids=repr)
async def test_pages_of_strangers_are_refused(origin: bytes) -> None:
    """Whatever they look like; and no cookie speaks for them, whatever else the browser says."""
    origins = Origins(LISTED, None)
    with pytest.raises(Problem) as caught:
        await origins.check(of(origin), safe=True)
    assert caught.value.status == 403
    assert not origins.may_use_cookie(of(origin))
    assert not origins.may_use_cookie(of(origin, sec_fetch_site=b"same-origin"))


@pytest.mark.parametrize("host", [b"", None])
@pytest.mark.parametrize("origin", [b"null", b"file://", b""])
async def test_nobody_is_no_origin_of_ours(origin: bytes, host: bytes | None) -> None:
    """A request that does not say whom it is for is not for whoever does not say where it comes from."""
    assert not is_own(origin, host)
    with pytest.raises(Problem):
        await Origins(LISTED, None).check(of(origin, host), safe=True)


@pytest.mark.parametrize("origin", [each for each in STRANGERS if each], ids=repr)
async def test_any_origin_is_never_one_with_credentials(origin: bytes) -> None:
    """With `*` every page may ask as a stranger: it gives a token of its own, and cookies do not count."""
    origins = Origins(("*",), None)
    headers = await origins.check(of(origin), safe=True)
    assert dict(headers) == {
        b"access-control-allow-origin": b"*",
        b"access-control-expose-headers": b"etag, location, retry-after",
    }
    assert not origins.may_use_cookie(of(origin))


async def test_a_page_of_another_replica_may_come_in_without_cookies() -> None:
    """The replicas know each other's addresses; a page of one reads from another with its token."""
    asked = []

    async def member(origin: str) -> bool:
        asked.append(origin)
        return origin == "http://replica2:8000"

    origins = Origins((), None, member)
    headers = await origins.check(of(b"http://replica2:8000"), safe=False)
    assert dict(headers) == {b"access-control-allow-origin": b"http://replica2:8000", b"vary": b"origin"}
    assert not origins.may_use_cookie(of(b"http://replica2:8000"))
    with pytest.raises(Problem):
        await origins.check(of(b"http://replica3:8000"), safe=False)
    assert asked == ["http://replica2:8000", "http://replica3:8000"]


_words = st.sampled_from(
    [*LISTED, "https://", "http://", "app", ".", "example", "com", ":", "3000", "localhost", "null"]
)
_origins = st.one_of(
    st.binary(max_size=60),
    st.lists(_words, max_size=6).map(lambda words: "".join(words).encode()),
    st.builds(
        lambda one, at, more: one[:at] + more + one[at:],
        st.sampled_from([*STRANGERS, APP]),
        st.integers(0, 30),
        st.binary(max_size=3),
    ),
)


@given(origin=_origins, any_origin=st.booleans())
async def test_an_origin_that_is_not_listed_never_appears_in_an_answer(
    origin: bytes, any_origin: bool
) -> None:
    """Nor does anything else of a stranger's request, in the answer and in that to a preflight."""
    assume(origin.decode("latin-1").lower() not in LISTED and not is_own(origin, HOST))
    origins = Origins(("*",) if any_origin else LISTED, None)
    headers: Headers = ()
    try:
        headers = await origins.check(of(origin), safe=True)
    except Problem as problem:
        headers = tuple(problem.raw_headers(problem.body()))
        assert not any_origin
    said = dict(preflight(of(origin), headers))
    assert said.get(b"access-control-allow-origin") in (None, b"*")
    assert b"access-control-allow-credentials" not in said


@given(origin=_origins, host=st.binary(max_size=30))
def test_only_a_web_page_of_the_very_same_host_is_our_own(origin: bytes, host: bytes) -> None:
    """Our own pages are those whose origin is `http://` or `https://` and what was asked for."""
    own = bool(host) and origin.lower() in (b"http://" + host.lower(), b"https://" + host.lower())
    assert is_own(origin, host) == own


# --- cookies without an origin


@pytest.mark.parametrize(
    ("site", "may"),
    [
        (b"same-origin", True),
        (b"none", True),
        (None, True),
        (b"same-site", False),
        (b"cross-site", False),
        (b"", False),
    ],
    ids=repr,
)
def test_whose_cookie_counts_without_an_origin(site: bytes | None, may: bool) -> None:
    """Only one that a page of ours, or the person at the address bar, made the browser send."""
    more = {} if site is None else {"sec_fetch_site": site}
    assert Origins(LISTED, None).may_use_cookie(of(None, **more)) is may


@pytest.mark.parametrize(
    ("site", "safe", "may"),
    [
        (b"cross-site", True, True),
        (b"cross-site", False, False),
        (b"same-site", False, False),
        (b"same-origin", False, True),
        (b"none", False, True),
        (None, False, True),
    ],
    ids=repr,
)
async def test_what_changes_something_comes_from_our_own_pages(
    site: bytes | None, safe: bool, may: bool
) -> None:
    """What a stranger's page makes a browser send may say no origin; the browser says whose page it is."""
    more = {} if site is None else {"sec_fetch_site": site}
    origins = Origins(LISTED, None)
    if may:
        assert await origins.check(of(None, **more), safe=safe) == ()
    else:
        with pytest.raises(Problem) as caught:
            await origins.check(of(None, **more), safe=safe)
        assert caught.value.status == 403


# --- preflights


def answered(headers: Mapping[bytes, bytes], allowed: Headers = ()) -> dict[bytes, bytes]:
    return dict(preflight(headers, allowed))


def test_what_a_preflight_is_told() -> None:
    """Which methods and headers a page may use, for how long; the headers are those it asked for."""
    asked = answered(
        of(APP, access_control_request_headers=b"authorization, content-type"), ((b"vary", b"origin"),)
    )
    assert asked == {
        b"vary": b"origin",
        b"access-control-allow-methods": b"GET, HEAD, POST, PUT, PATCH, DELETE",
        b"access-control-allow-headers": b"authorization, content-type",
        b"access-control-max-age": b"600",
    }


@pytest.mark.parametrize(
    "asked", [b"a\r\nset-cookie: b", b"a\x00", b"*", b"a" * 1001, "é".encode()], ids=repr
)
def test_what_is_no_list_of_headers_is_not_repeated(asked: bytes) -> None:
    """A preflight gives back names of headers, and nothing else."""
    assert answered(of(APP, access_control_request_headers=asked))[b"access-control-allow-headers"] == b""


@given(asked=st.binary(max_size=40))
def test_a_preflight_repeats_names_only(asked: bytes) -> None:
    """Whatever was asked for."""
    said = answered(of(APP, access_control_request_headers=asked))[b"access-control-allow-headers"]
    assert re.fullmatch(rb"[A-Za-z0-9, _-]*", said)
