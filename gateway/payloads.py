"""
Payloads: from a content type and the bytes of a body to the one JSON value that is an event's data.

JSON is only checked, never rebuilt: the value is the producer's own bytes. What is no JSON becomes a JSON
string, of the text if it is one, of base64 if not.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NoReturn, TypeVar

import msgspec

from gateway.mint import DATA, DATA_BASE64
from gateway.problems import Problem

MAX_CONTENT_TYPE: Final = 255
"""Characters of a content type; no registered one comes near."""
MAX_MESSAGE: Final = 200
"""Characters of the decoder's message that are passed on: it quotes names that the client chose."""

NESTED: Final = 200
"""Levels around a value that was taken in, of JSON or of calls; far more than there ever are."""

FORM: Final = "application/x-www-form-urlencoded"
"""What curl says for `--data` unless told otherwise, so it means as little as no content type."""

# Python knows more charsets, some of which take quadratic time or give no text.
_CHARSETS: Final = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "ascii",
    "ascii": "ascii",
    "iso-8859-1": "latin-1",
    "latin1": "latin-1",
    "iso-8859-15": "iso-8859-15",
    "windows-1252": "cp1252",
    "utf-16": "utf-16",
    "utf-16le": "utf-16-le",
    "utf-16be": "utf-16-be",
}
_PLACE = re.compile(r" - at `\$(?:\[(\d+)\])?(?:\.(\w+))?`$", re.ASCII)
_BOM = b"\xef\xbb\xbf"
_VALUE = msgspec.json.Decoder(msgspec.Raw)

Decoded = TypeVar("Decoded")


@dataclass(frozen=True, slots=True)
class ContentType:
    """A media type in lower case, empty if none was given, and its charset (RFC 9110 section 8.3.1)."""

    name: str
    charset: str | None = None

    @property
    def is_json(self) -> bool:
        return self.name in ("application/json", "text/json") or self.name.endswith("+json")

    @property
    def is_text(self) -> bool:
        return self.name.startswith("text/") or self.charset is not None


def content_type(header: bytes | None) -> ContentType:
    """
    Read a Content-Type header.

    Raises:
        Problem: 415, it is longer than any content type is.
    """
    if header is None:
        return ContentType("")
    if len(header) > MAX_CONTENT_TYPE:
        raise Problem(415, f"the content type has more than {MAX_CONTENT_TYPE} characters")
    return _content_type(header)


@lru_cache(maxsize=256)
def _content_type(header: bytes) -> ContentType:
    name, *parameters = header.decode("latin-1").lower().split(";")
    charset = None
    for parameter in parameters:
        attribute, _, value = parameter.partition("=")
        if attribute.strip() == "charset":
            charset = value.strip().strip('"')
    return ContentType(name.strip(), charset)


def payload(kind: ContentType, body: bytes) -> tuple[bytes, bytes | msgspec.Raw]:
    """
    Return the member name (`DATA` or `DATA_BASE64`) and the JSON value that `body` is.

    JSON is itself, text a string, anything else base64. Without a content type, or with curl's, it is JSON if
    it can be read as JSON, else text if it is UTF-8; an empty one is null.

    Raises:
        Problem: 400, it is not what its content type says; 415, its charset is unknown.
    """
    if kind.name in ("", FORM):
        return _guessed(body)
    if kind.is_json:
        return DATA, decode_json(_VALUE, check_utf8(body))
    if kind.is_text:
        return DATA, msgspec.json.encode(_decoded(body, kind.charset or "utf-8"))
    return DATA_BASE64, b'"%b"' % b64encode(body)


def _guessed(body: bytes) -> tuple[bytes, bytes | msgspec.Raw]:
    if not body:
        return DATA, b"null"
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return DATA_BASE64, b'"%b"' % b64encode(body)
    try:
        return DATA, _VALUE.decode(body)
    except RecursionError:
        raise _too_deep() from None
    except msgspec.DecodeError:
        return DATA, msgspec.json.encode(text)


def _decoded(body: bytes, charset: str) -> str:
    """Return the text that `body` is in a charset."""
    codec = _CHARSETS.get(charset)
    if codec is None:
        raise Problem(415, f"the charset is none of {', '.join(_CHARSETS)}")
    try:
        return body.decode(codec)
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not {charset}: {error.reason} (byte {error.start})") from None


def check_utf8(body: bytes) -> bytes:
    """
    Return a JSON body without a byte order mark (RFC 8259 section 8.1 allows to ignore it), if it is UTF-8.

    The JSON decoder looks only at the strings it makes, not at those inside the data it passes through.

    Raises:
        Problem: 400, it is not UTF-8.
    """
    if not body.isascii():
        _decoded(body, "utf-8")
        return body.removeprefix(_BOM)
    return body


def decode_json(decoder: msgspec.json.Decoder[Decoded], body: bytes) -> Decoded:
    """
    Decode a JSON body that is known to be UTF-8.

    Raises:
        Problem: 400, it is no JSON; 422, it is not of the decoder's type.
    """
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        refuse_json(error)


def check_nesting(value: bytes | msgspec.Raw) -> None:
    """
    Check that a JSON value can also be read as a part of something else, by a decoder that is itself called
    from deep down: how deep one reads depends on what called it.

    Raises:
        Problem: 422, it cannot.
    """
    data = bytes(value)
    if data.count(b"[") + data.count(b"{") <= NESTED:
        return
    try:
        _VALUE.decode(b"%b%b%b" % (b"[" * NESTED, data, b"]" * NESTED))
    except RecursionError:
        raise _too_deep() from None


def refuse_json(error: Exception) -> NoReturn:
    """Raise the problem that an error of msgspec's decoders is."""
    if isinstance(error, msgspec.ValidationError):
        raise _invalid(str(error)) from None
    if isinstance(error, RecursionError):
        raise _too_deep() from None
    detail = str(error)
    if "truncated" in detail:  # said of both
        detail = "it ends too early, or has half of a surrogate pair"
    raise Problem(400, f"the body is no valid JSON: {detail}") from None


def _too_deep() -> Problem:
    return Problem(422, "the JSON is nested too deeply")


def _invalid(message: str) -> Problem:
    """Return the problem of a validation error, whose message ends with the place: "- at `$[3].ttl`"."""
    place = _PLACE.search(message)
    what = message[: place.start()] if place else message
    index, member = place.groups() if place else (None, None)
    if member:
        problem = Problem(422, f"the {member} is wrong: {what}", members={"pointer": f"/{member}"})
    else:
        problem = Problem(422, what[:MAX_MESSAGE])
    return problem.at(int(index)) if index else problem
