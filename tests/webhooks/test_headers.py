"""Headers of an endpoint: what may be sent along, and that nothing in one can become another."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.errors import Invalid
from webhooks.headers import MAX_BYTES, MAX_HEADERS, check_headers, own_lines, write


def refused(headers: dict[str, str]) -> Invalid:
    with pytest.raises(Invalid) as caught:
        check_headers(headers)
    return caught.value


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Tenant": "42"},
        {"Authorization": "Bearer a.b-c_d=="},
        {"x!#$%&'*+-.^_`|~9": 'printable, "quoted"\tand (more)'},
        {"X-Empty": ""},
        {"Cookie": "a=b; c=d"},
        {f"X-{at}": "x" for at in range(MAX_HEADERS)},
        {"X-Long": "x" * (MAX_BYTES - len("X-Long: \r\n"))},
        {"X-" + "n" * 126: "x"},
    ],
)
def test_what_may_be_sent_along(headers: dict[str, str]) -> None:
    check_headers(headers)


@pytest.mark.parametrize(
    "name",
    [
        "Host", "Content-Length", "content-type", "Content-Encoding", "TRANSFER-ENCODING", "Connection",
        "Keep-Alive", "TE", "Trailer", "Upgrade", "Expect", "User-Agent", "Accept", "Accept-Encoding",
        "Proxy-Authorization", "Proxy-Connection", "webhook-id", "Webhook-Signature",
        "WebHook-Request-Origin", "svix-id", "ce-id", "CE-Source", "HTTP2-Settings",
    ],
)  # fmt: skip
def test_the_gateways_own_are_refused(name: str) -> None:
    """Whatever the letters' case."""
    invalid = refused({name: "x"})
    assert invalid.detail == f"the header {name!r} is the gateway's own"
    assert invalid.pointer == f"/{name}"


@pytest.mark.parametrize(
    "name",
    ["", " ", "X A", "X:", "X-A:b", "X\r\nY", "X\n", "Ä", "X\0", ":path", "(x)", "n" * 129, "X/A", "x\u2028"],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    assert "is no name of a header" in refused({"X-Good": "1", name: "x"}).detail


@pytest.mark.parametrize(
    "value",
    [
        "a\r\nX-Injected: b", "a\nb", "a\rb", "\n", "\r\n\r\nGET / HTTP/1.1", "a\0b", "a\x7f", "a\x1b[31m",
        " a", "a ", "\ta", " ", "ä", "a\u2028b", "a\u010ab", "\ud800", "a\x85b",
    ],
)  # fmt: skip
def test_header_injection_is_refused(value: str) -> None:
    """Nothing that ends a line, or that some server takes for an end, gets into a request."""
    invalid = refused({"X-A": value})
    assert (
        invalid.detail == "the value of 'X-A' must be printable ASCII on one line, with no space at its ends"
    )
    assert invalid.pointer == "/X-A"


def test_values_are_not_repeated() -> None:
    """A value can be a password."""
    assert "hunter2" not in refused({"Authorization": "hunter2\n"}).detail


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"X-A": "1", "x-a": "2"}, "the header x-a is there twice"),
        ({"x-a": "1", "X-A": "2"}, "the header X-A is there twice"),
        ({f"X-{at}": "x" for at in range(MAX_HEADERS + 1)}, "there are 33 headers: there may be 32"),
        (
            {"X-Long": "x" * (MAX_BYTES - len("X-Long: \r\n") + 1)},
            "the headers have 8193 bytes, more than 8192",
        ),
        ({"X-Long": "x" * 10_000_000}, "more than 8192"),
    ],
)
def test_too_many_are_refused(headers: dict[str, str], said: str) -> None:
    assert said in refused(headers).detail


def test_the_lines_of_an_endpoint() -> None:
    """What every request has, then the endpoint's headers as they were given."""
    assert own_lines({"X-A": "1", "x-B": "b c"}) == (
        b"User-Agent: Sluicegate\r\nAccept: */*\r\nX-A: 1\r\nx-B: b c\r\n"
    )
    assert own_lines({"X-A": "1"}, "events.example.com") == (
        b"User-Agent: Sluicegate\r\nAccept: */*\r\nWebHook-Request-Origin: events.example.com\r\nX-A: 1\r\n"
    )


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=12), max_size=4))
def test_what_is_accepted_is_read_as_it_was_given(headers: dict[str, str]) -> None:
    """Whatever is not refused comes out of the lines as the same names and values."""
    try:
        check_headers(headers)
    except Invalid:
        return
    lines = write(headers).decode().split("\r\n")
    assert lines.pop() == ""
    assert [tuple(line.split(": ", 1)) for line in lines] == list(headers.items())


@given(st.text(string.printable, max_size=20))
def test_no_printable_value_makes_a_line(value: str) -> None:
    try:
        check_headers({"X-A": value})
    except Invalid:
        return
    assert write({"X-A": value}).splitlines(keepends=True) == [b"X-A: " + value.encode() + b"\r\n"]
