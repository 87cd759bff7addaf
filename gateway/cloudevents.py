"""
CloudEvents 1.0: how its attributes become an event's.

The topic is the extension `topic`, else `subject`, else `type`. An event is identified by source and id
together (CloudEvents 1.0 section 3.1.1), so the event's id is both, with a space between that no source can
have. `type` and `time` are kept, the extension `partitionkey` is the key. Other attributes have no place in
an event and are not kept.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from fanout.event import Event
from gateway.mint import DATA, Mint
from gateway.payloads import content_type, payload, refuse_json
from gateway.problems import Problem

HEADER: Final = b"ce-specversion"
"""The request header that announces the binary mode (HTTP protocol binding section 3.1) …"""
STRUCTURED: Final = "application/cloudevents"
"""… unless the content type begins so: then the event is in the body, whatever the headers (section 3)."""

_ABSENT = msgspec.Raw(b"")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_SPACE = re.compile(r"\s")


class CloudEvent(msgspec.Struct, gc=False):
    """A CloudEvent in structured mode; extensions are allowed and most are ignored."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str | None = None
    time: str | None = None
    datacontenttype: str | None = None
    data: msgspec.Raw = _ABSENT
    data_base64: str | None = None
    topic: str | None = None
    partitionkey: str | None = None


_ATTRIBUTES: Final = frozenset(CloudEvent.__struct_fields__) - {"data", "data_base64", "datacontenttype"}


def is_binary(headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether a request with such headers is a CloudEvent in binary mode."""
    return HEADER in headers and not content_type(headers.get(b"content-type")).name.startswith(STRUCTURED)


def mint_cloud_event(mint: Mint, now: int, cloud: CloudEvent, topic: str | None = None) -> Event:
    """
    Return the event of a CloudEvent in structured mode, published to `topic` if given.

    Raises:
        Problem: it breaks a rule of CloudEvents or of ours.
    """
    if cloud.data_base64 is None:
        data = b"null" if cloud.data is _ABSENT else cloud.data
        return _mint(mint, now, cloud, topic, DATA, data)
    if cloud.data is not _ABSENT:
        raise _wrong("data_base64", "there is data as well")
    try:
        body = b64decode(cloud.data_base64, validate=True)
    except ValueError as error:
        raise _wrong("data_base64", str(error)) from None
    kind = (cloud.datacontenttype or "application/octet-stream").encode()
    return _mint(mint, now, cloud, topic, *payload(content_type(kind), body))


def mint_binary(
    mint: Mint, now: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, topic: str | None = None
) -> Event:
    """
    Return the event of a CloudEvent in binary mode: attributes in the headers, data in the body.

    Raises:
        Problem: it breaks a rule of CloudEvents or of ours.
    """
    attributes: dict[str, str] = {}
    kind: bytes | None = None
    for name, value in headers:
        if name == b"content-type":
            kind = value
        elif name.startswith(b"ce-"):
            attribute = name[3:].decode("latin-1")
            if attribute in _ATTRIBUTES:
                attributes[attribute] = _header_text(attribute, value)
    try:
        cloud = msgspec.convert(attributes, CloudEvent)
    except msgspec.ValidationError as error:
        refuse_json(error)
    return _mint(mint, now, cloud, topic, *payload(content_type(kind), body))


def _mint(
    mint: Mint, now: int, cloud: CloudEvent, topic: str | None, member: bytes, data: bytes | msgspec.Raw
) -> Event:
    if cloud.specversion != "1.0":
        raise _wrong("specversion", "only version 1.0 is understood")
    if not cloud.id or not cloud.source or _SPACE.search(cloud.source):
        raise _wrong("id" if not cloud.id else "source", "it is empty or has white space")
    return mint.event(
        now,
        topic or cloud.topic or cloud.subject or cloud.type,
        data,
        f"{cloud.source} {cloud.id}",
        cloud.type,
        cloud.partitionkey,
        time=None if cloud.time is None else _time(cloud.time),
        member=member,
    )


def _time(text: str) -> bytes:
    """Return an RFC 3339 time in the form of an event's: UTC, milliseconds."""
    if not _TIME.fullmatch(text):
        raise _wrong("time", "it is no RFC 3339 time")
    whole, fraction = re.sub(r"\.\d+", "", text.upper()), re.search(r"\.(\d{1,3})", text)
    try:
        instant = datetime.fromisoformat(whole).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _wrong("time", "it is no point in time") from None
    milliseconds = fraction[1].ljust(3, "0") if fraction else "000"
    return f"{instant.replace(tzinfo=None).isoformat()}.{milliseconds}Z".encode()


def _header_text(attribute: str, value: bytes) -> str:
    """Return an attribute's value from its header (HTTP protocol binding section 3.1.3.2)."""
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise _wrong(attribute, "it is not UTF-8") from None


def _wrong(attribute: str, why: str) -> Problem:
    return Problem(422, f"the {attribute} is wrong: {why}", members={"pointer": f"/{attribute}"})
