"""Formats: what producers may send, what becomes of it, and what is refused with which status."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.event import Event, tag_of
from gateway.cloudevents import is_binary
from gateway.formats import CLOUD_BATCH, CLOUD_EVENT, JSON, LINES, Formats
from gateway.mint import MAX_TOPICS, MAX_TTL, Mint, random_prefix, time_text
from gateway.payloads import FORM
from gateway.problems import Problem

NOW = 1_795_452_360_123  # 2026-11-23T16:46:00.123Z
CLOUD = {"specversion": "1.0", "id": "7", "source": "/orders", "type": "order.created"}


def make(*, max_event_bytes: int = 1_000_000, max_events: int = 10) -> Formats:
    return Formats(Mint(max_event_bytes, "prefix"), max_events)


def seen(event: Event) -> dict[str, Any]:
    """Return the event as a client sees it."""
    assert not {10, 13} & set(event.body)
    members = json.loads(b'{"cursor":"x",' + event.body + b"}")
    assert isinstance(members, dict)
    return members


def read(body: bytes | str | object, content_type: str | None = JSON, **limits: int) -> list[dict[str, Any]]:
    """Return what clients see of a body published to /v1/events."""
    if not isinstance(body, bytes | str):
        body = json.dumps(body)
    raw = body.encode() if isinstance(body, str) else body
    header = None if content_type is None else content_type.encode()
    return [seen(event) for event in make(**limits).events(header, raw, NOW)]


def refused(body: object, content_type: str | None = JSON, **limits: int) -> Problem:
    """Return the problem that a body published to /v1/events is."""
    with pytest.raises(Problem) as caught:
        read(body, content_type, **limits)
    json.loads(caught.value.body())
    return caught.value


def message(
    body: bytes, content_type: str | None = None, query: str = "", topic: str = "orders.42"
) -> dict[str, Any]:
    """Return what clients see of a body published to /v1/topics/{topic}."""
    header = None if content_type is None else content_type.encode()
    [event] = make().message(topic, header, body, query.encode(), NOW)
    return seen(event)


def test_a_minimal_event_gets_every_other_member() -> None:
    """Topic alone is enough: the id is generated, the type is message, the data null."""
    [event] = make().events(b"application/json", b'{"topic":"orders.42"}', NOW)
    assert seen(event) == {
        "cursor": "x",
        "topic": "orders.42",
        "id": "prefix1",
        "type": "message",
        "time": "2026-11-23T16:46:00.123Z",
        "data": None,
    }
    assert (event.topic, event.time, event.position, event.key) == ("orders.42", NOW, 0, None)
    assert (event.expires, event.given_id, event.tag) == (0, None, tag_of("prefix1"))


def test_a_full_event_keeps_every_member() -> None:
    """Every field that a producer gives is in the event, and the log finds what it needs beside the JSON."""
    body = {"topic": "a.b", "data": [1], "id": "é\"'\\", "type": "t", "key": "k 1", "ttl": 1.5}
    [event] = make().events(b"application/json", json.dumps(body).encode(), NOW)
    expected = {key: value for key, value in body.items() if key != "ttl"}
    assert seen(event) == {"cursor": "x", "time": "2026-11-23T16:46:00.123Z", **expected}
    assert (event.key, event.expires, event.given_id) == ("k 1", NOW + 1500, "é\"'\\")
    assert event.tag == tag_of("é\"'\\")


def test_members_come_in_the_documented_order() -> None:
    """An event reads the same everywhere, so its members have one order."""
    [event] = read({"data": 1, "key": "k", "type": "t", "id": "1", "topic": "a"})
    assert list(event) == ["cursor", "topic", "id", "type", "time", "key", "data"]


def test_null_is_as_good_as_absent() -> None:
    """Serializers that write null for what is not set need not be taught otherwise."""
    [event] = read({"topic": "a", "id": None, "type": None, "key": None, "ttl": None})
    assert event["type"] == "message"
    assert "key" not in event


def test_generated_ids_differ_between_events_and_processes() -> None:
    """No two events get one id, nor do those of two processes."""
    events = read([{"topic": "a"}] * 10)
    assert len({event["id"] for event in events}) == 10
    assert random_prefix() != random_prefix()


@pytest.mark.parametrize("content_type", [JSON, None, FORM, "Application/JSON ; charset=UTF-8"])
def test_an_array_is_several_events(content_type: str | None) -> None:
    """An array is that many events in that order, also with what curl says for a content type."""
    assert [event["topic"] for event in read([{"topic": "a"}, {"topic": "b"}], content_type)] == ["a", "b"]


def test_an_empty_array_is_no_event() -> None:
    """A batcher with nothing to say is no mistake."""
    assert read([]) == []
    assert read("", LINES) == []


@pytest.mark.parametrize(
    "body",
    [
        '{"topic":"a"}\n{"topic":"b"}\n',
        '\n{"topic":"a"}\r\n\r\n{"topic":"b"}',
        '{"topic":\n"a"}\n{"topic":"b"}',
    ],
)
def test_lines_are_events(body: str) -> None:
    """NDJSON is one event a line; empty lines, CRLF and values over several lines (jq) do no harm."""
    assert [event["topic"] for event in read(body, LINES)] == ["a", "b"]


SPACE = st.text("\t\n\r ", max_size=3)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@st.composite
def documents(draw: st.DrawFn) -> tuple[Any, str]:
    """Draw a JSON value and a text of it, with any white space anywhere, with and without escapes."""
    value = draw(VALUES)
    ascii_only = draw(st.booleans())

    def text(value: Any) -> str:
        before, after = draw(SPACE), draw(SPACE)
        if isinstance(value, list):
            inner = "[" + ",".join(text(one) for one in value) + draw(SPACE) + "]"
        elif isinstance(value, dict):
            members = (text(name) + ":" + text(one) for name, one in value.items())
            inner = "{" + ",".join(members) + draw(SPACE) + "}"
        else:
            inner = json.dumps(value, ensure_ascii=ascii_only)
        return before + inner + after

    return value, text(value)


@given(documents())
def test_any_json_value_arrives_as_it_was(document: tuple[Any, str]) -> None:
    """Whatever JSON a producer sends, in whatever spacing, clients read the same value, on one line."""
    value, text = document
    single = read(f'{{"topic":"a","data":{text}}}')
    batch = read(f'[{{"data":{text},"topic":"a"}},{{"topic":"b","data":{text}}}]')
    lines = read(f'{{"topic":"a","data":{text}}}\n{{"topic":"b","data":{text}}}', LINES)
    for event in [*single, *batch, *lines, message(text.encode(), JSON), message(text.encode())]:
        assert event["data"] == value
        assert type(event["data"]) is type(value)


@pytest.mark.parametrize(
    "text", ["1e999", "-0", "1.50", "1E5", "123456789012345678901234567890", '"\\u0041\\/"']
)
@pytest.mark.parametrize("space", ["", "\n"])
def test_data_is_the_producers_own_text(text: str, space: str) -> None:
    """Numbers and escapes are not rewritten, so no precision is lost on the way."""
    [event] = make().events(b"application/json", f'{{"topic":"a","data":{space}{text}{space}}}'.encode(), NOW)
    assert event.body.endswith(f'"data":{text}'.encode())


BROKEN = {
    "empty": b"",
    "white space": b" \n",
    "no JSON": b"hello",
    "truncated": b'{"topic":"a"',
    "trailing garbage": b'{"topic":"a"} x',
    "trailing comma": b'[{"topic":"a"},]',
    "two values": b'{"topic":"a"}{"topic":"b"}',
    "single quotes": b"{'topic':'a'}",
    "comment": b'{"topic":"a"/**/}',
    "NaN": b'{"topic":"a","data":NaN}',
    "Infinity": b'{"topic":"a","data":-Infinity}',
    "leading zero": b'{"topic":"a","data":01}',
    "no digits": b'{"topic":"a","data":1.}',
    "line break in a string": b'{"topic":"a","data":"x\ny"}',
    "line break in a name": b'{"topic":"a","data":{"x\ny":1}}',
    "NUL in a string": b'{"topic":"a","data":"x\x00y"}',
    "unknown escape": b'{"topic":"a","data":"\\x"}',
    "short escape": b'{"topic":"a","data":"\\u12"}',
    "half a surrogate pair": b'{"topic":"a","data":"\\ud800"}',
    "surrogates the wrong way round": b'{"topic":"a","data":"\\udc00\\ud800"}',
    "invalid UTF-8 in data": b'{"topic":"a","data":"\xff"}',
    "invalid UTF-8 in a name in data": b'{"topic":"a","data":{"\xc3":1}}',
    "overlong UTF-8": b'{"topic":"a","data":"\xc0\x80"}',
    "UTF-8 of a surrogate": b'{"topic":"a","data":"\xed\xa0\x80"}',
    "UTF-8 beyond Unicode": b'{"topic":"a","data":"\xf5\x80\x80\x80"}',
    "invalid UTF-8 in the topic": b'{"topic":"\xff"}',
    "UTF-16": '{"topic":"a"}'.encode("utf-16"),
    "no-break space": '{"topic":\u00a0"a"}'.encode(),
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_json_is_a_bad_request(body: bytes) -> None:
    """Malformed JSON and broken UTF-8 are 400, wherever they are, also deep inside the data."""
    assert refused(body).status == 400


@pytest.mark.parametrize(
    "body", [b'{"topic":"a"}\nhello', b'{"topic":"a"}\n{"topic":"b', b'{"topic":"a"}\n"\xff']
)
def test_a_broken_line_refuses_all_lines(body: bytes) -> None:
    """Malformed JSON in any line is 400."""
    assert refused(body, LINES).status == 400


def test_a_byte_order_mark_is_ignored() -> None:
    """Some tools write one; RFC 8259 allows to ignore it, and it never reaches a client."""
    assert read(b'\xef\xbb\xbf{"topic":"a","data":"\xc3\xa9"}')[0]["data"] == "é"
    assert message(b"\xef\xbb\xbf1", JSON)["data"] == 1


WRONG: dict[str, tuple[object, str | None]] = {
    "a number": (1, None),
    "null": (None, None),
    "a string": ("x", None),
    "no topic": ({"data": 1}, None),
    "unknown field": ({"topic": "a", "colour": "red"}, None),
    "topic a number": ({"topic": 1}, "/topic"),
    "topic null": ({"topic": None}, "/topic"),
    "topic empty": ({"topic": ""}, "/topic"),
    "topic with an empty word": ({"topic": "a..b"}, "/topic"),
    "topic with a dot at the end": ({"topic": "a."}, "/topic"),
    "topic with a control character": ({"topic": "a\n"}, "/topic"),
    "topic over 255 bytes": ({"topic": "é" * 128}, "/topic"),
    "a pattern with *": ({"topic": "a.*"}, "/topic"),
    "a pattern with #": ({"topic": "#"}, "/topic"),
    "id a number": ({"topic": "a", "id": 1}, "/id"),
    "id empty": ({"topic": "a", "id": ""}, "/id"),
    "id too long": ({"topic": "a", "id": "x" * 256}, "/id"),
    "id with a line break": ({"topic": "a", "id": "x\ny"}, "/id"),
    "id with NUL": ({"topic": "a", "id": "\0"}, "/id"),
    "type empty": ({"topic": "a", "type": ""}, "/type"),
    "type with a carriage return": ({"topic": "a", "type": "x\r"}, "/type"),
    "type an array": ({"topic": "a", "type": []}, "/type"),
    "key empty": ({"topic": "a", "key": ""}, "/key"),
    "key too long": ({"topic": "a", "key": "x" * 256}, "/key"),
    "key with a line separator": ({"topic": "a", "key": "\u2028"}, "/key"),
    "ttl zero": ({"topic": "a", "ttl": 0}, "/ttl"),
    "ttl negative": ({"topic": "a", "ttl": -1}, "/ttl"),
    "ttl too long": ({"topic": "a", "ttl": MAX_TTL + 1}, "/ttl"),
    "ttl a string": ({"topic": "a", "ttl": "1"}, "/ttl"),
    "ttl true": ({"topic": "a", "ttl": True}, "/ttl"),
    "ttl out of range": ({"topic": "a", "ttl": 10**400}, "/ttl"),
}


@pytest.mark.parametrize(("body", "pointer"), WRONG.values(), ids=WRONG.keys())
def test_what_breaks_a_rule_is_unprocessable_and_is_pointed_at(body: object, pointer: str | None) -> None:
    """Valid JSON that is no event is 422, names the member, and in an array and in lines its index."""
    text = json.dumps(body)
    alone = refused(text)
    assert (alone.status, alone.members.get("pointer")) == (422, pointer)
    good = '{"topic":"a"}'
    for problem in (refused(f"[{good},{text},{good}]"), refused(f"{good}\n{text}\n{good}", LINES)):
        assert (problem.status, problem.members["index"]) == (422, 1)
        assert problem.members.get("pointer") == (pointer and f"/1{pointer}")


def test_the_first_bad_event_is_named() -> None:
    """With several bad events it is the first one's index that is told."""
    assert refused([{"topic": "a"}, {"topic": "b."}, {"topic": "*"}]).members["index"] == 1


def test_a_name_chosen_by_the_client_cannot_bloat_or_break_the_answer() -> None:
    """An unknown field's name is quoted shortened and escaped, and not taken for a place."""
    assert len(refused({"topic": "a", "x" * 10_000: 1}).body()) < 500
    assert b"\n" not in refused({"topic": "a", "x\n\u2028": 1}).body()


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"topic":"a","data":' + b"[" * 5_000 + b"]" * 5_000 + b"}"]
)
def test_endless_nesting_is_refused(body: bytes) -> None:
    """Nesting beyond all reason is 422 and costs no stack."""
    assert refused(body).status == 422
    assert refused(body, LINES).status == 422


@pytest.mark.parametrize("depth", range(900, 1_000, 9))
def test_nesting_at_the_edge_is_accepted_or_refused_but_never_a_crash(depth: int) -> None:
    """Near the limit, where joining pretty-printed lines needs one level more, it is still a problem."""
    body = b'{"topic":"a","data":' + b"[\n" * depth + b"]" * depth + b"}"
    try:
        [event] = make().events(b"application/json", body, NOW)
        outcome: object = event.body[-2 * depth :]
    except Problem as problem:
        outcome = problem.status
    assert outcome in (422, b"[" * depth + b"]" * depth)


def test_an_event_over_the_limit_is_too_large() -> None:
    """The limit is on the event's JSON; one byte more is 413 with the index."""
    [event] = make().events(b"application/json", b'{"topic":"a","data":"x"}', NOW)
    size = len(event.body)
    assert read({"topic": "a", "data": "x"}, max_event_bytes=size)
    problem = refused([{"topic": "a", "data": "x"}, {"topic": "a", "data": "xy"}], max_event_bytes=size)
    assert (problem.status, problem.members["index"]) == (413, 1)


@pytest.mark.parametrize("content_type", [JSON, LINES, CLOUD_BATCH])
def test_more_events_than_allowed_are_too_large(content_type: str) -> None:
    """One request has a bounded number of events."""
    one = json.dumps({**CLOUD, "id": "1"} if content_type == CLOUD_BATCH else {"topic": "a"})
    body = "\n".join([one] * 4) if content_type == LINES else "[" + ",".join([one] * 4) + "]"
    assert len(read(body, content_type, max_events=4)) == 4
    assert refused(body, content_type, max_events=3).status == 413


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/xml", "image/png", "nonsense", "x" * 256]
)
def test_an_unknown_content_type_is_unsupported(content_type: str) -> None:
    """What /v1/events cannot read is 415, and the answer says what it can."""
    problem = refused({"topic": "a"}, content_type)
    assert problem.status == 415
    assert len(content_type) > 255 or CLOUD_EVENT in problem.headers["accept-post"]


def test_remembered_topics_and_types_are_bounded() -> None:
    """Producers who never repeat themselves cost time, not memory, and still get the right event."""
    mint = Mint(1_000, "p")
    for number in range(MAX_TOPICS + 10):
        event = seen(mint.event(NOW, f"t.{number}", b"1", type=f"k{number}"))
        assert (event["topic"], event["type"]) == (f"t.{number}", f"k{number}")
    assert len(mint._topics) <= MAX_TOPICS
    assert len(mint._types) < MAX_TOPICS


def test_the_time_follows_the_clock() -> None:
    """The remembered text of the time is used only within its millisecond."""
    mint = Mint(1_000, "p")
    times = [seen(mint.event(now, "a", b"1"))["time"][-5:] for now in (NOW, NOW, NOW + 1, NOW + 877)]
    assert times == [".123Z", ".123Z", ".124Z", ".000Z"]
    assert time_text(0) == b"1970-01-01T00:00:00.000Z"


# The data of one event, to /v1/topics.


@pytest.mark.parametrize("content_type", [None, FORM])
@pytest.mark.parametrize(
    ("body", "member", "value"),
    [
        (b"hello", "data", "hello"),
        (b'{"a": 1}', "data", {"a": 1}),
        (b"42", "data", 42),
        (b'"quoted"', "data", "quoted"),
        (b"", "data", None),
        (b"a=1&b=2", "data", "a=1&b=2"),
        (b"line\r\nbreak\n", "data", "line\r\nbreak\n"),
        ("grüße".encode(), "data", "grüße"),
        (b"NaN", "data", "NaN"),
        (b'"\\ud800"', "data", '"\\ud800"'),
        (b"\xff\x00", "data_base64", "/wA="),
    ],
)
def test_without_a_content_type_of_its_own_a_body_is_what_it_can_be(
    content_type: str | None, body: bytes, member: str, value: object
) -> None:
    """What curl sends by default is JSON if it reads as JSON, else text, else base64."""
    event = message(body, content_type)
    assert event[member] == value
    assert ("data" in event) != ("data_base64" in event)


@pytest.mark.parametrize(
    "content_type", [JSON, "application/problem+json", "text/json", "APPLICATION/JSON;x=y"]
)
def test_json_content_types_are_json(content_type: str) -> None:
    """A JSON content type is spliced in as it is, and refused with 400 if it is no JSON."""
    assert message(b' {"a":\n[1]} ', content_type)["data"] == {"a": [1]}
    for body in (b"hello", b"", b"\xff", b'"\xff"'):
        with pytest.raises(Problem) as caught:
            message(body, content_type)
        assert caught.value.status == 400


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/plain", "grüße".encode()),
        ("text/plain; charset=utf-8", "grüße".encode()),
        ('text/html;charset="ISO-8859-1"', "grüße".encode("latin-1")),
        ("text/plain; charset=windows-1252", "grüße".encode("cp1252")),
        ("application/xml; charset=utf-16", "grüße".encode("utf-16")),
    ],
)
def test_text_is_a_string_in_its_charset(content_type: str, body: bytes) -> None:
    """Text, and anything that names a charset, becomes a JSON string; UTF-8 unless said otherwise."""
    assert message(body, content_type)["data"] == "grüße"


@pytest.mark.parametrize(
    ("content_type", "status"),
    [("text/plain", 400), ("text/plain; charset=us-ascii", 400), ("text/plain; charset=punycode", 415)],
)
def test_text_that_is_not_in_its_charset_is_refused(content_type: str, status: int) -> None:
    """A body that contradicts its charset is 400, a charset nobody knows 415."""
    with pytest.raises(Problem) as caught:
        message(b"\xff", content_type)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "content_type", ["application/octet-stream", "image/png", "application/xml", "nonsense"]
)
@given(body=st.binary())
def test_anything_else_is_base64(content_type: str, body: bytes) -> None:
    """What is neither JSON nor text arrives in data_base64, byte for byte."""
    event = message(body, content_type)
    assert base64.b64decode(event["data_base64"], validate=True) == body
    assert "data" not in event


@given(body=st.binary(), content_type=st.sampled_from([None, FORM, "text/plain; charset=iso-8859-1"]))
def test_any_bytes_at_all_become_a_valid_event(body: bytes, content_type: str | None) -> None:
    """Whatever a shell pipes into curl, the event is JSON on one line."""
    message(body, content_type)


def test_the_query_gives_the_other_fields() -> None:
    """Id, type, key and ttl of a body that has no room for them come in the query."""
    query = b"id=a%20b&type=order.created&key=%C3%A9&ttl=2.5"
    [event] = make().message("a", b"text/plain", b"x", query, NOW)
    assert (event.given_id, event.key, event.expires) == ("a b", "é", NOW + 2500)
    assert seen(event)["type"] == "order.created"


@pytest.mark.parametrize(
    "query",
    [
        "colour=red",
        "id=1&id=2",
        "id=",
        "id=%FF",
        "id=%0A",
        "ttl=soon",
        "ttl=nan",
        "ttl=inf",
        "ttl=-1",
        "topic=b",
        "&".join(f"x{number}=1" for number in range(100)),
        "id=\xff",
    ],
)
def test_a_bad_query_is_unprocessable(query: str) -> None:
    """Unknown, repeated and impossible parameters are 422."""
    with pytest.raises(Problem) as caught:
        make().message("a", None, b"x", query.encode("latin-1"), NOW)
    assert caught.value.status == 422


@pytest.mark.parametrize("topic", ["a.*", "#", "a..b", "x" * 256, "a\nb"])
def test_a_path_that_is_no_topic_is_unprocessable(topic: str) -> None:
    """Patterns and broken topics in the path are 422."""
    with pytest.raises(Problem) as caught:
        message(b"x", topic=topic)
    assert (caught.value.status, caught.value.members["pointer"]) == (422, "/topic")


# CloudEvents


def test_a_cloud_event_becomes_an_event() -> None:
    """Source and id together are the id; type, time, partition key and data are kept, extensions ignored."""
    [event] = read(
        {
            **CLOUD,
            "topic": "orders.7",
            "subject": "s",
            "time": "2026-01-02T03:04:05.6789+02:00",
            "partitionkey": "k",
            "datacontenttype": "application/json",
            "dataschema": "https://example.com/schema",
            "myextension": {"any": "thing"},
            "data": {"a": 1},
        },
        CLOUD_EVENT,
    )
    assert event == {
        "cursor": "x",
        "topic": "orders.7",
        "id": "/orders 7",
        "type": "order.created",
        "time": "2026-01-02T01:04:05.678Z",
        "key": "k",
        "data": {"a": 1},
    }


@pytest.mark.parametrize(
    ("attributes", "topic"),
    [({"topic": "t", "subject": "s"}, "t"), ({"subject": "s"}, "s"), ({}, "order.created")],
)
def test_the_topic_of_a_cloud_event(attributes: dict[str, str], topic: str) -> None:
    """The topic is the extension topic, else the subject, else the type."""
    assert read({**CLOUD, **attributes}, CLOUD_EVENT)[0]["topic"] == topic


def test_the_same_id_from_another_source_is_another_event() -> None:
    """A CloudEvent is identified by source and id, so two sources may count alike."""
    batch = [{**CLOUD, "source": "/a", "id": "b 1"}, {**CLOUD, "source": "/a/b", "id": "1"}]
    assert [event["id"] for event in read(batch, CLOUD_BATCH)] == ["/a b 1", "/a/b 1"]


@pytest.mark.parametrize(
    ("attributes", "member", "value"),
    [
        ({"data": None}, "data", None),
        ({"data": "<a/>", "datacontenttype": "application/xml"}, "data", "<a/>"),
        ({"data_base64": "AP8="}, "data_base64", "AP8="),
        ({"data_base64": "eyJhIjoxfQ==", "datacontenttype": "application/json"}, "data", {"a": 1}),
        ({"data_base64": "aGVsbG8=", "datacontenttype": "text/plain"}, "data", "hello"),
        ({}, "data", None),
    ],
)
def test_the_data_of_a_cloud_event(attributes: dict[str, object], member: str, value: object) -> None:
    """Data is data; base64 becomes what its content type says, and stays base64 if that says nothing."""
    [event] = read({**CLOUD, **attributes}, CLOUD_EVENT)
    assert event[member] == value


@pytest.mark.parametrize(
    ("attributes", "status"),
    [
        ({"specversion": "0.3"}, 422),
        ({"id": ""}, 422),
        ({"id": None}, 422),
        ({"source": ""}, 422),
        ({"source": "/a b"}, 422),
        ({"type": ""}, 422),
        ({"time": "yesterday"}, 422),
        ({"time": "2026-02-30T00:00:00Z"}, 422),
        ({"time": "0001-01-01T00:00:00+01:00"}, 422),
        ({"subject": "a..b"}, 422),
        ({"source": "/" + "x" * 255}, 422),
        ({"data": 1, "data_base64": "AA=="}, 422),
        ({"data_base64": "no base64!"}, 422),
        ({"data_base64": "/w==", "datacontenttype": "application/json"}, 400),
        ({"data_base64": "/w==", "datacontenttype": "text/plain; charset=rot13"}, 415),
        ({"datacontenttype": "é", "data_base64": "/w=="}, None),
    ],
)
def test_a_bad_cloud_event_is_refused(attributes: dict[str, object], status: int | None) -> None:
    """What breaks CloudEvents' rules or ours is refused, in a batch with its index."""
    body = {**CLOUD, **attributes}
    if status is None:
        assert read(body, CLOUD_EVENT)
        return
    assert refused(body, CLOUD_EVENT).status == status
    problem = refused([CLOUD, body], CLOUD_BATCH)
    assert (problem.status, problem.members["index"]) == (status, 1)


@pytest.mark.parametrize("missing", CLOUD)
def test_a_cloud_event_without_a_required_attribute_is_unprocessable(missing: str) -> None:
    """specversion, id, source and type are required."""
    body = {name: value for name, value in CLOUD.items() if name != missing}
    assert refused(body, CLOUD_EVENT).status == 422


def test_a_cloud_event_can_be_published_to_a_topic() -> None:
    """On /v1/topics/{topic} the path is the topic, whatever the event says."""
    body = json.dumps({**CLOUD, "subject": "elsewhere..", "data": 1}).encode()
    assert message(body, CLOUD_EVENT)["topic"] == "orders.42"
    [event] = make().message("a", CLOUD_BATCH.encode(), b"[%b]" % body, b"", NOW)
    assert (event.topic, event.given_id) == ("a", "/orders 7")


def test_a_binary_cloud_event_has_its_attributes_in_headers() -> None:
    """In binary mode the body is the data, its content type says what it is, values are percent-encoded."""
    headers = [
        (b"host", b"x"),
        (b"ce-specversion", b"1.0"),
        (b"ce-id", b"7"),
        (b"ce-source", b"/orders"),
        (b"ce-type", b"Gr%C3%BC%C3%9Fe"),
        (b"ce-topic", b"orders.7"),
        (b"ce-data", b"not an attribute"),
        (b"content-type", b"application/json"),
    ]
    [event] = make().binary(headers, b'{"a":1}', NOW)
    assert (event.topic, event.given_id) == ("orders.7", "/orders 7")
    assert (seen(event)["type"], seen(event)["data"]) == ("Grüße", {"a": 1})
    [event] = make().binary(headers, b'{"a":1}', NOW, "other")
    assert event.topic == "other"


@pytest.mark.parametrize(
    ("headers", "binary"),
    [
        ({}, False),
        ({b"content-type": b"application/json"}, False),
        ({b"ce-specversion": b"1.0"}, True),
        ({b"ce-specversion": b"0.3", b"content-type": b"application/json"}, True),
        ({b"ce-specversion": b"1.0", b"content-type": b"application/cloudevents+json"}, False),
        ({b"ce-specversion": b"1.0", b"content-type": b"Application/CloudEvents-Batch+JSON"}, False),
    ],
)
def test_the_content_type_says_the_mode(headers: dict[bytes, bytes], binary: bool) -> None:
    """Of an event in the body the headers may say what they want (HTTP protocol binding, section 3)."""
    assert is_binary(headers) == binary


@pytest.mark.parametrize("headers", [[], [(b"ce-id", b"%FF")], [(b"ce-source", b"a b")]])
def test_a_bad_binary_cloud_event_is_unprocessable(headers: list[tuple[bytes, bytes]]) -> None:
    """Missing and broken attributes are 422."""
    known = dict([(b"ce-specversion", b"1.0"), (b"ce-type", b"t"), (b"ce-source", b"/a"), *headers])
    with pytest.raises(Problem) as caught:
        make().binary(list(known.items()), b"", NOW)
    assert caught.value.status == 422
