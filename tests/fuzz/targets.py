"""
What is fuzzed: each target takes any bytes, and asserts what must hold whatever they are.

Hypothesis runs them in `test_fuzz.py`, coverage leads in `guided.py`; both begin with these examples.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final, cast
from urllib.parse import urlencode

import msgspec

from fanout.connection import Connection
from fanout.cursor import Cursor, parse_start
from fanout.errors import CursorError, TopicError
from fanout.event import Event
from fanout.frames import Wire
from fanout.topics import PatternIndex, check_pattern, check_topic, matches
from gateway.auth.keyset import KeySet
from gateway.auth.tokens import TokenRefused, Tokens
from gateway.cloudevents import HEADER as CLOUD_EVENT_HEADER
from gateway.formats import CLOUD_BATCH, CLOUD_EVENT, JSON, LINES, Formats
from gateway.intake import Receipt
from gateway.mint import Mint
from gateway.payloads import FORM
from gateway.problems import Problem
from gateway.session import Services, Session
from gateway.setting import SettingsError
from gateway.settings import FIELDS, load
from gateway.subscription import parse
from tests.fuzz.mutation import cuts
from tests.fuzz.wires import http, masked, websocket
from tests.support.clients import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame
from tests.support.fakes import FakeSink
from tests.support.readers import messages_in
from tests.support.tokens import NOW, key_set, shared, spelled, token
from tests.support.world import Bounds, World

EVENT_TIME: Final = 1_795_452_360_123


@dataclass(frozen=True)
class Target:
    """
    One of them.

    Attributes:
        check: takes bytes and asserts what must hold.
        corpus: good examples.
        words: pieces that mean something there.
        modules: what is to be covered.
    """

    check: Callable[[bytes], None]
    corpus: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    modules: tuple[str, ...] = ()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _json(*values: object) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() for value in values)


def _lines(text: str) -> tuple[bytes, ...]:
    return tuple(text.strip().encode().splitlines())


# --- texts --------------------------------------------------------------------------------------------------


def check_start(data: bytes) -> None:
    """Any text is a start or a CursorError; a cursor is read back as it was."""
    text = _text(data)
    with suppress(CursorError):
        start = parse_start(text)
        if isinstance(start, Cursor):
            assert str(start) == text
            assert Cursor.parse(text) == start
    with suppress(CursorError):
        assert str(Cursor.parse(text)) == text


def check_topics(data: bytes) -> None:
    """Lines are patterns and topics, or TopicErrors; the index agrees with the plain form, half empty too."""
    index: PatternIndex[int] = PatternIndex()
    patterns, topics = [], []
    for line in _text(data).split("\n")[:12]:
        with suppress(TopicError):
            patterns.append(check_pattern(line))
        with suppress(TopicError):
            topics.append(check_topic(line))
    for number, pattern in enumerate(patterns):
        index.add(pattern, number)
    assert set(topics) <= set(patterns), "every topic is a pattern"
    for kept in (patterns, patterns[::2]):
        for number, pattern in enumerate(patterns):
            if pattern not in kept:
                index.discard(pattern, number)
        for topic in topics:
            wanted = {
                at for at, pattern in enumerate(patterns) if pattern in kept and matches(pattern, topic)
            }
            assert set(index.match(topic)) == wanted


def check_query(data: bytes) -> None:
    """A query and four headers are a request for events, or a problem of the client's."""
    query, *values = data.split(b"\n")
    names = (b"upgrade", b"accept", b"last-event-id", b"if-none-match")
    try:
        request = parse(query, dict(zip(names, values, strict=False)), 100)
    except Problem as problem:
        _check_problem(problem)
    else:
        assert len(request.patterns) <= 100
        assert 0 <= request.wait <= 60
        assert 1 <= request.limit <= 1000


def _check_problem(problem: Problem) -> None:
    assert 400 <= problem.status < 500, problem
    shown = msgspec.json.decode(problem.body())
    assert shown["detail"]
    problem.raw_headers(problem.body())


@cache
def _scratch() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="sluice-fuzz-")
    _folders.append(folder)
    return Path(folder.name) / "sluice.toml"


_folders: Final[list[tempfile.TemporaryDirectory[str]]] = []


def check_settings_file(data: bytes) -> None:
    """A file is settings or a SettingsError."""
    path = _scratch()
    path.write_bytes(data)
    with suppress(SettingsError):
        load({}, {}, str(path))


def check_settings_given(data: bytes) -> None:
    """Variables and flags, one a line, are settings or a SettingsError, which can be shown."""
    flags: dict[str, object] = {}
    environ: dict[str, str] = {}
    for line in _text(data.replace(b"\0", b"")).split("\n"):  # neither can have a NUL
        name, _, value = line.partition("=")
        if name in FIELDS:
            flags[name] = value
        else:
            environ[name] = value
    try:
        load(flags, environ)
    except SettingsError as error:
        str(error).encode("utf-8", "surrogateescape")


@cache
def _verifier() -> Tokens:
    keys = KeySet.parse(
        key_set(shared(kid="one"), shared("another secret, of 32 bytes as well")), public=False
    )
    return Tokens(lambda: keys)


def check_token(data: bytes) -> None:
    """Any text is refused, or one of the tokens that were signed."""
    with suppress(TokenRefused):
        good = _verifier().verify(_text(data), NOW)
        assert good.subject in SUBJECTS, "somebody forged a token"


# --- publishing ---------------------------------------------------------------------------------------------


def check_publish(data: bytes) -> None:
    """
    A content type (first line) and a body are events, or a problem of the client's.

    Every event is JSON in one line of UTF-8.
    """
    kind, _, body = data.partition(b"\n")
    formats = Formats(Mint(10_000, "prefix"), 10)
    _publish(lambda: formats.events(kind, body, EVENT_TIME))
    _publish(lambda: formats.message("a.b", kind, body, b"", EVENT_TIME))
    _publish(lambda: formats.message(_text(kind), None, body, body[:200], EVENT_TIME))


def check_cloud_headers(data: bytes) -> None:
    """Headers, as HTTP lets them in, and a body are a CloudEvent in binary mode, or a problem."""
    head, _, body = data.partition(b"\n\n")
    pairs = [line.partition(b":")[::2] for line in head.split(b"\n")]
    headers = [(CLOUD_EVENT_HEADER, b"1.0"), *((name.lower(), value.strip()) for name, value in pairs)]
    formats = Formats(Mint(10_000, "prefix"), 10)
    _publish(lambda: formats.binary(headers, body, EVENT_TIME))
    _publish(lambda: formats.binary(headers, body, EVENT_TIME, "a.b"))


def _publish(read: Callable[[], Any]) -> None:
    try:
        events = read()
    except Problem as problem:
        _check_problem(problem)
        return
    for event in events:
        assert not {10, 13} & set(event.body)
        assert len(event.body) <= 10_000
        members = msgspec.json.decode(b'{"cursor":"x",' + event.body + b"}", type=dict[str, msgspec.Raw])
        assert msgspec.json.decode(members["topic"]) == event.topic
        event.body.decode()


# --- operations ---------------------------------------------------------------------------------------------


class _Intake:
    """Takes every event that can be one."""

    def __init__(self) -> None:
        self.mint = Mint(10_000, "prefix")

    async def publish_one(
        self, topic: str, data: Any, *fields: Any, admit: Callable[[Event], None]
    ) -> Receipt:
        admit(self.mint.event(EVENT_TIME, topic, data, *fields))
        return Receipt(1, 0, "aaaaaa-1-0000")


class _Consumers:
    async def remember(self, name: str, cursor: str) -> None:
        pass


class _Reader:
    def resumed(self) -> None:
        pass


_ANSWERS: Final = {"subscribed", "unsubscribed", "published", "acked", "pong", "error"}


def check_operations(data: bytes) -> None:
    """Messages, one a line, are each answered once, in order, with JSON; the connection lives on."""
    asyncio.run(_operations(data.split(b"\n")))


async def _operations(messages: list[bytes]) -> None:
    world = World(Bounds(buffer_bytes=1 << 20))
    sink = FakeSink(world.streams, Wire.WEBSOCKET)
    connection = Connection("c", sink, Wire.WEBSOCKET)
    world.streams.open(sink, connection, (), 0, b"")
    sink.take()
    expected = []
    async with asyncio.TaskGroup() as tasks:
        services = Services(
            world.streams,
            world.locator,
            cast("Any", _Intake()),
            cast("Any", _Consumers()),
            tasks,
            max_topics=10,
        )
        session = Session(services, sink, connection, "me", _Reader())
        for number, message in enumerate(messages):
            try:
                session.received(message.decode())
            except UnicodeDecodeError:  # WebSocket lets through no text that is none
                session.received(message)
            session.received(json.dumps({"op": "ping", "ref": [number]}))
            expected.append([number])
    assert sink.reason is None, sink.reason
    shown = list(messages_in(Wire.WEBSOCKET, sink.bytes_taken()))
    answers = [each for each in shown if each.kind in _ANSWERS]
    assert [each.members.get("ref") for each in answers[1::2]] == expected
    assert len(answers) == 2 * len(messages)


# --- wires --------------------------------------------------------------------------------------------------


def check_websocket(data: bytes) -> None:
    """In whatever pieces they come, the same bytes are the same messages, answers and end."""
    _check_websocket(data, deflate=False)


def check_websocket_deflate(data: bytes) -> None:
    """So they are if compressed messages are allowed."""
    _check_websocket(data, deflate=True)


def _check_websocket(data: bytes, *, deflate: bool) -> None:
    whole = websocket([data], deflate=deflate)
    for seed in range(2):
        assert websocket(cuts(Random(seed), data), deflate=deflate) == whole


def check_http(data: bytes) -> None:
    """In whatever pieces they come, the same bytes are the same requests, as far as both are served."""
    asyncio.run(_check_http(data))


async def _check_http(data: bytes) -> None:
    whole = await http([data])
    for seed in range(2):
        cut = await http(cuts(Random(seed), data))
        both = min(len(whole.requests), len(cut.requests))
        assert whole.requests[:both] == cut.requests[:both]


# --- examples -----------------------------------------------------------------------------------------------

SUBJECTS: Final = ("ann", "bob", None)

_STARTS: Final = _lines("""
earliest
latest
-1
-1000000
abcdef-0-0000
abcdef-9223372036854775807-ffff
2026-11-23T16:46:00Z
2026-11-23T16:46:00.123456789+01:00
2026-11-23t16:46:00z
0001-01-01T00:00:00+23:59
9999-12-31T23:59:59-23:59
2026-11-23T16:46:00 01:00
2026-06-30T23:59:60Z
""")

_TOPICS: Final = (
    b"a.b.c\na.*\n#\na.#.c\n*.b.*\na\nb",
    b"#.#\n*.#\n#.*\na.#.#.b\na.b",
    "ä.ö\n*.ö\n".encode(),
    b"x" * 255 + b"\n" + b"#." * 100 + b"#\n" + b"a." * 120 + b"a",
    b"#" + b".#" * 127 + b"\n" + b"a" + b".a" * 127,  # found by fuzzing: it took a tenth of a second
    b"a..b\n.a\na.\n\na*\n#a",
)

_QUERIES: Final = (
    b"topic=a.%23&cursor=-10&wait=5&limit=10&overflow=latest&consumer=me&key=k",
    b"topic=a&topic=b\n\ntext/event-stream\nabcdef-7-0000",
    b"topic=a\n\napplication/x-ndjson;q=0.5, text/event-stream; q=0.1",
    b'topic=a\n\n\n\nW/"abcdef-7-0000"',
    b"\nwebsocket",
    b"topic=a&hop=5&lastEventId=earliest&_=1",
    b"topic=%C3%A4+b&cursor=2026-11-23T16:46:00+01:00",
)

_FILES: Final = (
    b'port = 9000\ndata = "memory:"\nretention_seconds = "7d"\nwindow_bytes = "64MiB"\n',
    b"heartbeat_seconds = 0.5\nwebsocket_deflate = true\nmax_topics = 1_000\n",
    b'host = "::1"\nstore = "postgresql://u:p@host/db?sslmode=require"\n',
    b'backbone = "amqp://u:p@a:1,b:2/v"\nexchanges = "events:#,orders:order.*"\nworkers = 2\n',
    b"port = 0xffff\n[a.b]\nc = [1, {d = 2026-11-23T16:46:00Z}]\n",
    # Found by fuzzing: what int(), str() and the stack cannot take.
    b"port = " + b"9" * 5000,
    b"port = 0x" + b"f" * 6000,
    b"port = " + b"[" * 2000,
    b'backbone = "amqp://h:' + b"9" * 5000 + b'"',
    b'log_level = "debug"\nwebhooks_allow = "127.0.0.0/8"\nwebhooks_ports = "443,8000-8999"\n',
)

_GIVEN: Final = tuple(
    "\n".join(pairs).encode()
    for pairs in (
        ("SLUICE_PORT=9000", "SLUICE_DATA=memory:", "window_bytes=64KiB"),
        ("SLUICE_RETENTION_SECONDS=7d", "SLUICE_HEARTBEAT_SECONDS=500ms", "port=0"),
        ("SLUICE_CONFIG=/nowhere", "SLUICE_WEBSOCKET_DEFLATE=yes"),
        ("SLUICE_PORT=tcp://10.0.0.1:80",),
        ("backbone=amqp://u:p@[::1]:1/v", "workers=2", "advertise=https://x.test", "sticky=redirect"),
        ("store=postgresql://u:p@h:1,g:2/d?sslmode=verify-full",),
        ("webhooks_allow=10.0.0.0/8,::1", "webhooks_ports=80,443,8000-9000"),
        ("host=0.0.0.0", "insecure=true", "name=n", "services=a,b"),
        ("services=a b", "backbone=amqp://h"),  # found by fuzzing, as the next
        ("SLUICE_CONFIG=~nobody-here/x",),
    )
)

_TOKENS: Final = tuple(
    each.encode()
    for each in (
        token({"sub": "ann", "publish": ["a.#"], "subscribe": ["#"], "history": 5}),
        token({"sub": "bob", "iat": 1, "nbf": 2, "jti": "x", "tenant": "t"}, kid="one"),
        token({"limits": {}, "admin": True}, typ="at+jwt"),
        spelled({"alg": "none"}, {"sub": "eve", "exp": NOW + 60}),
        spelled({"alg": "HS256", "kid": ["one"], "typ": 1}, {"sub": "eve", "exp": NOW + 60}, bytes(32)),
        spelled("[" * 3000, "{}"),
    )
)

_CLOUD: Final[dict[str, Any]] = {"specversion": "1.0", "id": "7", "source": "/o", "type": "o.c"}
_PLAIN: Final[dict[str, Any]] = {
    "topic": "a.b",
    "data": {"x": [1, 2.5, "ä", None]},
    "id": "i",
    "type": "t",
    "key": "k",
    "ttl": 5.5,
}


def _typed(kind: str, *bodies: bytes) -> tuple[bytes, ...]:
    return tuple(kind.encode() + b"\n" + body for body in bodies)


_BODIES: Final = (
    *_typed(JSON, *_json(_PLAIN, [_PLAIN, {"topic": "c"}], {"topic": "a", "data": "x" * 300})),
    *_typed(JSON, json.dumps(_PLAIN, indent=2).encode(), b'{"topic":"a","topic":"b","data":1,"data":2}'),
    *_typed(LINES, b"\n".join(_json(_PLAIN, {"topic": "c"}))),
    *_typed("", b'{"topic":"a"}', b"text", b"\xff\xfe", b""),
    *_typed(FORM, b'{"topic":"a"}', b"a=1&b=2"),
    *_typed(CLOUD_EVENT, *_json({**_CLOUD, "data": {"a": 1}, "time": "2026-11-23T16:46:00.5+01:00"})),
    *_typed(
        CLOUD_EVENT,
        *_json(
            {**_CLOUD, "data_base64": "AAEC", "datacontenttype": "text/plain; charset=utf-16"},
            {**_CLOUD, "data_base64": "eyJhIjoxfQ==", "datacontenttype": "application/json", "topic": "t.u"},
            {**_CLOUD, "time": "0001-01-01T00:00:00+23:59", "partitionkey": "p", "subject": "s"},
        ),
    ),
    *_typed(CLOUD_BATCH, *_json([_CLOUD, {**_CLOUD, "data": 1}], [])),
    *_typed("text/plain; charset=iso-8859-1", b"\xe4\xf6"),
    *_typed("text/plain; charset=utf-16le", "ä\n".encode("utf-16-le")),
    *_typed("application/octet-stream", b"\0\1\2"),
    *_typed("application/vnd.x+json", b'{"a":\n[1]}'),
    b"x/y\n" + urlencode({"id": "i", "type": "t", "key": "k", "ttl": "5"}).encode(),
)

_CLOUD_HEADERS: Final = (
    b"ce-id:7\nce-source:/o\nce-type:o.c\ncontent-type:application/json\n\n" + b'{"a":1}',
    b"ce-id:%C3%A4\nce-source:/o\nce-type:o.c\nce-subject:a.b\nce-time:2026-11-23T16:46:00Z\n\nx",
    b"ce-id:7\nce-source:o o\nce-type:o.c\nce-partitionkey:p\nce-topic:t\ncontent-type:text/plain\n\nx",
    b"ce-specversion:0.3\nce-id:\xff\nce-source:%FF\nce-type:\n\n",
    b"ce-id:7\nce-source:/o\nce-type:o.c\nce-data:1\nce-data_base64:2\nce-datacontenttype:x\n\n\xff",
)

_OPERATIONS: Final = (
    b"\n".join(
        _json(
            {"op": "subscribe", "topics": ["a.#", "b"], "ref": 1},
            {"op": "subscribe", "topic": "c", "cursor": "earliest", "ref": {"x": [1]}},
            {"op": "unsubscribe", "topic": "c"},
        )
    ),
    b"\n".join(_json({"op": "publish", "ref": None, **_PLAIN}, {"op": "publish", "topic": "a", "data": 1})),
    b"\n".join(
        _json(
            {"op": "ack", "cursor": "abcdef-0-0000"}, {"op": "ping"}, {"op": "ack", "cursor": "epochb-0-0000"}
        )
    ),
    b"\n".join(_json({"op": "subscribe", "topics": [f"t{n}" for n in range(11)]}, {"op": 1}, [], 5, None)),
    b"\n".join(_json({"op": "subscribe", "topic": "a", "cursor": "-5"}, {"op": "unsubscribe", "topics": []})),
    b'{"op":"ping","ref":' + b"[" * 500 + b"]" * 500 + b"}",
    b'{"op":"ping","ref":1,"ref":2,"op":"ping"}',
)


def _squeezed(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


_FRAMES: Final = (
    masked(Frame(TEXT, b'{"op":"ping"}')),
    masked(Frame(TEXT, "ä€😀".encode(), fin=False)) + masked(Frame(CONTINUATION, b"")),
    masked(Frame(BINARY, bytes(126))) + masked(Frame(PING, b"x" * 125)) + masked(Frame(PONG, b"")),
    masked(Frame(TEXT, b"\xe2", fin=False))
    + masked(Frame(PING, b""))
    + masked(Frame(CONTINUATION, b"\x82\xac")),
    masked(Frame(CLOSE, b"\x03\xe8bye")),
    masked(Frame(CLOSE, b"\x03")),
    masked(Frame(PONG, b"x"), bytes(4)) * 3,
    masked(Frame(TEXT, b"x" * 1001)),
    masked(Frame(TEXT, b"x" * 600, fin=False)) + masked(Frame(CONTINUATION, b"x" * 600)),
    masked(Frame(TEXT, b"", fin=False)) + masked(Frame(CONTINUATION, b"", fin=False)) * 50,
    Frame(TEXT, b"unmasked").encode(mask=False),
    b"\x82\xff\x7f" + b"\xff" * 7 + bytes(4),
    masked(Frame(CONTINUATION, b"alone")),
)
_DEFLATED: Final = (
    *_FRAMES,
    masked(Frame(TEXT, _squeezed(b'{"op":"ping"}'), reserved=4)) * 2,
    masked(Frame(TEXT, _squeezed(b"x" * 100_000), reserved=4)),
    masked(Frame(BINARY, _squeezed(b"ab")[:1], fin=False, reserved=4))
    + masked(Frame(CONTINUATION, _squeezed(b"ab")[1:])),
    masked(Frame(TEXT, b"\xff" * 9, reserved=4)),
)

_HTTP: Final = (
    b"GET /a?b=c HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nPOST /3 HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi",
    b"GET / HTTP/1.1\r\n\r\n" * 40,
    b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: u\r\n\r\n",
    b"POST /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"PUT / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
    b"GET /a HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x80\0\0\0\0",
    b"GET /a HTTP/1.1\r\nConnection: close, upgrade\r\nUpgrade: h2c\r\n\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n\r\n\x16\x03",
    b"HEAD http://x/y HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /z HTTP/1.0\r\n\r\n",
    b"GET /a HTTP/0.9\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nA: b\r\n c\r\nD: \xe4\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)
_HTTP_WORDS: Final = tuple(
    b"|HTTP/1.1|HTTP/1.0| |Transfer-Encoding: chunked\r\n|Content-Length: 5\r\n|Connection: close\r\n"
    b"|Upgrade: h2c\r\n|Connection: upgrade\r\n|CONNECT |HEAD |POST |http://|*|0\r\n\r\n|5;\r\n|fffffffff\r\n"
    b"|Upgrade: websocket\r\n|Expect: 100-continue\r\n|\r\n\r\n|%|?|//".split(b"|")
)

TARGETS: Final[dict[str, Target]] = {
    "start": Target(check_start, _STARTS, (b"T", b"Z", b"+01:00"), ("fanout.cursor",)),
    "topics": Target(check_topics, _TOPICS, (b"#", b"*", b".", b"\n"), ("fanout.topics",)),
    "query": Target(
        check_query, _QUERIES, (b"topic=", b"cursor=", b"q=", b"wait="), ("gateway.subscription",)
    ),
    "settings file": Target(
        check_settings_file,
        _FILES,
        (b'"""', b"inf", b"nan", b"0x" + b"f" * 6000),
        ("gateway.settings", "gateway.setting", "gateway.settings_checks"),
    ),
    "settings given": Target(
        check_settings_given,
        _GIVEN,
        (b"SLUICE_", b"SLUICE_CONFIG=~nobody-here/x", *(f"{name}=".encode() for name in FIELDS)),
        ("gateway.settings", "gateway.setting", "gateway.settings_checks", "gateway.units"),
    ),
    "token": Target(check_token, _TOKENS, (b".", b"e30", b"eyJhbGciOiJIUzI1NiJ9"), ("gateway.auth.tokens",)),
    "publish": Target(
        check_publish,
        _BODIES,
        (b'"topic":', b'"data":', b'"ttl":', b"charset=", b'"time":', b'"data_base64":'),
        ("gateway.formats", "gateway.payloads", "gateway.cloudevents", "gateway.mint"),
    ),
    "cloud headers": Target(
        check_cloud_headers, _CLOUD_HEADERS, (b"ce-", b"ce-time:", b"\n"), ("gateway.cloudevents",)
    ),
    "operations": Target(
        check_operations, _OPERATIONS, (b'"op":', b'"ref":', b'"topics":', b'"cursor":'), ("gateway.session",)
    ),
    "websocket": Target(check_websocket, _FRAMES, (), ("gateway.websocket", "websockets.frames")),
    "websocket deflate": Target(
        check_websocket_deflate,
        _DEFLATED,
        (),
        ("gateway.websocket", "websockets.extensions.permessage_deflate"),
    ),
    "http": Target(
        check_http, _HTTP, _HTTP_WORDS, ("gateway.protocol", "uvicorn.protocols.http.httptools_impl")
    ),
}
