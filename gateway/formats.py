"""
Formats: from the body of a publish request to events. Pure: neither sockets nor clock.

`POST /v1/events` takes events, in JSON (one, or an array), in lines, or as CloudEvents.
`POST /v1/topics/{topic}` takes the data of one event in any content type, its other fields in the query.

The JSON decoder makes a struct whose `data` is a slice of the body, checked but not decoded. One bad event
refuses the whole call and is named by its index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypedDict, TypeVar, cast

import msgspec

from fanout.event import Event
from gateway.cloudevents import CloudEvent, mint_binary, mint_cloud_event
from gateway.mint import Mint
from gateway.payloads import FORM, check_utf8, content_type, decode_json, payload, refuse_json
from gateway.problems import Problem
from gateway.query import read_query

JSON: Final = "application/json"
LINES: Final = "application/x-ndjson"
CLOUD_EVENT: Final = "application/cloudevents+json"
CLOUD_BATCH: Final = "application/cloudevents-batch+json"
KNOWN: Final = f"{JSON}, {LINES}, {CLOUD_EVENT}, {CLOUD_BATCH}"


class Fields(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An event as a producer writes it; `null` for an optional field is as good as leaving it out."""

    topic: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    id: str | None = None
    type: str | None = None
    key: str | None = None
    ttl: float | None = None


_EVENTS: Final = msgspec.json.Decoder(Fields | list[Fields])
_LINE: Final = msgspec.json.Decoder(Fields)
_CLOUD_EVENT: Final = msgspec.json.Decoder(CloudEvent)
_CLOUD_BATCH: Final = msgspec.json.Decoder(list[CloudEvent])

Item = TypeVar("Item")


class Formats:
    """
    Reads the bodies of publish requests.

    Args:
        mint: makes the events.
        max_events: how many events one request may have.
    """

    def __init__(self, mint: Mint, max_events: int) -> None:
        self.mint = mint
        self.max_events = max_events
        # A body without a content type, or with what curl and most HTTP libraries say by themselves, is JSON.
        self._readers: dict[str, Callable[[bytes, int], list[Event]]] = {
            **dict.fromkeys(("", FORM, JSON, "text/json"), self._json),
            **dict.fromkeys((LINES, "application/ndjson", "application/jsonl"), self._lines),
            CLOUD_EVENT: self._cloud_event,
            CLOUD_BATCH: self._cloud_batch,
        }

    def events(self, header: bytes | None, body: bytes, now: int) -> list[Event]:
        """
        Return the events of a body for `POST /v1/events`.

        Args:
            header: the request's Content-Type.
            body: the whole body.
            now: milliseconds since the Unix epoch.

        Raises:
            Problem: 400 no JSON, 413 too many or too long, 415 unknown content type, 422 breaks a rule.
        """
        reader = self._readers.get(content_type(header).name)
        if reader is None:
            raise Problem(
                415,
                f"events are published as one of {KNOWN}; any other data to /v1/topics/{{topic}}",
                headers={"accept-post": KNOWN},  # W3C Linked Data Platform 1.0 section 7.1
            )
        return reader(check_utf8(body), now)

    def message(self, topic: str, header: bytes | None, body: bytes, query: bytes, now: int) -> list[Event]:
        """
        Return the events, one but for a batch of CloudEvents, of a body for `POST /v1/topics/{topic}`.

        Args:
            topic: where to publish.
            header: the request's Content-Type.
            body: the whole body.
            query: the query string: `id`, `type`, `key`, `ttl`.
            now: milliseconds since the Unix epoch.

        Raises:
            Problem: as `events`.
        """
        kind = content_type(header)
        options = _options(query)
        if kind.name == CLOUD_EVENT:
            return self._cloud_event(check_utf8(body), now, topic)
        if kind.name == CLOUD_BATCH:
            return self._cloud_batch(check_utf8(body), now, topic)
        member, data = payload(kind, body)
        return [self.mint.event(now, topic, data, member=member, **options)]

    def binary(
        self, headers: Iterable[tuple[bytes, bytes]], body: bytes, now: int, topic: str | None = None
    ) -> list[Event]:
        """
        Return the event of a CloudEvent in binary mode, which the header `ce-specversion` announces.

        Args:
            headers: all of the request's headers.
            body: the whole body.
            now: milliseconds since the Unix epoch.
            topic: where to publish; without it the event says.

        Raises:
            Problem: as `events`.
        """
        return [mint_binary(self.mint, now, headers, body, topic)]

    def _json(self, body: bytes, now: int) -> list[Event]:
        fields = decode_json(_EVENTS, body)
        if isinstance(fields, Fields):
            return [self._event(fields, now)]
        return self._all(fields, lambda one: self._event(one, now))

    def _lines(self, body: bytes, now: int) -> list[Event]:
        try:
            lines = _LINE.decode_lines(body)
        except (msgspec.DecodeError, RecursionError) as error:
            refuse_json(error)
        return self._all(lines, lambda one: self._event(one, now))

    def _cloud_event(self, body: bytes, now: int, topic: str | None = None) -> list[Event]:
        return [mint_cloud_event(self.mint, now, decode_json(_CLOUD_EVENT, body), topic)]

    def _cloud_batch(self, body: bytes, now: int, topic: str | None = None) -> list[Event]:
        batch = decode_json(_CLOUD_BATCH, body)
        return self._all(batch, lambda one: mint_cloud_event(self.mint, now, one, topic))

    def _event(self, fields: Fields, now: int) -> Event:
        return self.mint.event(now, fields.topic, fields.data, fields.id, fields.type, fields.key, fields.ttl)

    def _all(self, items: Sequence[Item], make: Callable[[Item], Event]) -> list[Event]:
        """Make an event of each item; a problem names the item's index."""
        if len(items) > self.max_events:
            raise Problem(413, f"{len(items)} events are more than the {self.max_events} of one request")
        events: list[Event] = []
        try:
            events.extend(map(make, items))
        except Problem as problem:
            raise problem.at(len(events)) from None
        return events


class _Options(TypedDict, total=False):
    """The fields of one event that a query can have."""

    id: str
    type: str
    key: str
    ttl: float


def _options(query: bytes) -> _Options:
    """
    Return the fields in a query string.

    Raises:
        Problem: 422, there is another parameter, one twice, or it is not UTF-8.
    """
    given: dict[str, Any] = {**read_query(query, _Options.__annotations__)}
    if "ttl" in given:
        given["ttl"] = _seconds(given["ttl"])
    return cast("_Options", given)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Problem(422, "the ttl is no number of seconds", members={"pointer": "/ttl"}) from None
