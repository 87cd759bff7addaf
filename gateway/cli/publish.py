"""`sluice publish`: from a shell into the log, in a way that may be repeated."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from typing import Any, Final

import click
import msgspec

from gateway.cli.ending import Unusable
from gateway.cli.options import own_token, read_time, url_flag
from gateway.client import ClientError, Publisher

READ_BYTES: Final = 256 * 1024
"""What one read of the input may bring; its lines are one batch, so none waits for more to come."""

BATCH_EVENTS: Final = 1000
MAX_LINE_BYTES: Final = 64 * 1024 * 1024

INPUT: Final = "-"


@click.command()
@click.argument("topic")
@click.argument("data", required=False, default=INPUT)
@click.option("--lines", is_flag=True, help="Publish each line of the input as an event of its own.")
@click.option(
    "--id", "given_id", metavar="ID", help="Id of the event; publishing it again stores nothing again."
)
@click.option("--type", "kind", metavar="TYPE", help="Type of the event.")
@click.option("--key", metavar="KEY", help="What the event is about.")
@click.option(
    "--ttl", callback=read_time, metavar="TIME", help="Time after which it is no longer delivered, like 5m."
)
@url_flag
def publish(topic: str, data: str, *, lines: bool, given_id: str | None, url: str, **members: Any) -> int:
    """
    Publish DATA to TOPIC and print the cursor behind it.

    DATA is JSON, or if it is not, a string. Without DATA, or with -, it is read from the input. An event
    without an --id is given one, so that trying again while the gateway is away stores nothing twice.
    """
    if lines and (given_id is not None or data != INPUT):
        raise click.UsageError("--lines takes its events from the input, and gives each an id of its own")
    envelope = {"topic": topic, "type": members.pop("kind"), **members}
    try:
        publisher = Publisher(url, _notice, token=own_token())
        if lines:
            cursor = _publish_lines(publisher, envelope)
        else:
            cursor = _publish_one(publisher, envelope, _content(data), given_id)
    except ClientError as error:
        raise Unusable(str(error)) from None
    if cursor:
        click.echo(cursor)
    return 0


def _notice(text: str) -> None:
    click.echo(f"sluice publish: {text}", err=True)


def _publish_one(publisher: Publisher, envelope: dict[str, Any], content: bytes, given_id: str | None) -> str:
    answer = publisher.publish([_event(envelope, content, given_id or uuid.uuid4().hex)])
    if answer.duplicates and given_id is not None:
        _notice(f"{given_id} had been published before")
    return answer.cursor


def _publish_lines(publisher: Publisher, envelope: dict[str, Any]) -> str:
    """Publish the input line by line, in batches of what there is; return the last cursor, if any."""
    run = uuid.uuid4().hex
    count = 0
    cursor = ""
    for batch in _batches():
        events = [_event(envelope, _json(line), f"{run}-{count + n}") for n, line in enumerate(batch, 1)]
        count += len(events)
        cursor = publisher.publish(events).cursor
    return cursor


def _batches() -> Iterator[list[bytes]]:
    """Yield the lines of the input as they come, without their ends and without empty ones."""
    rest = b""
    while chunk := os.read(sys.stdin.fileno(), READ_BYTES):
        *complete, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise Unusable(f"a line of the input is longer than {MAX_LINE_BYTES} bytes")
        yield from _parts(complete)
    yield from _parts([rest])


def _parts(lines: list[bytes]) -> Iterator[list[bytes]]:
    filled = [line for line in (line.rstrip(b"\r") for line in lines) if line.strip()]
    for start in range(0, len(filled), BATCH_EVENTS):
        yield filled[start : start + BATCH_EVENTS]


def _content(data: str) -> bytes:
    """Return DATA, or the input in its place, as JSON."""
    if data != INPUT:
        return _json(data.encode(errors="surrogateescape"))
    return _json(sys.stdin.buffer.read().removesuffix(b"\n").removesuffix(b"\r"))


def _json(text: bytes) -> bytes:
    """
    Return `text` as JSON on one line: as it is if it is JSON, else as a string.

    Raises:
        Unusable: it is neither: not UTF-8; or it is nested too deeply.
    """
    try:
        msgspec.json.decode(text)  # `format` alone does not look closely
        return msgspec.json.format(text, indent=-1)
    except RecursionError:
        raise Unusable("the data is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return msgspec.json.encode(text.decode())
    except UnicodeDecodeError:
        raise Unusable("the data is not UTF-8 text; POST binary data to /v1/topics/ with curl") from None


def _event(envelope: dict[str, Any], content: bytes, event_id: str) -> bytes:
    """Return one event as the JSON that the gateway takes; members that were not given are left out."""
    given = {name: value for name, value in envelope.items() if value is not None}
    return msgspec.json.encode({**given, "id": event_id, "data": msgspec.Raw(content)})
