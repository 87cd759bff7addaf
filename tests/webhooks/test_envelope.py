"""The envelope: every form of an event, read back by whoever else knows the form."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime

import pytest
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from hypothesis import given
from hypothesis import strategies as st

from fanout.event import Event
from gateway.formats import CLOUD_EVENT, Formats
from gateway.mint import DATA, DATA_BASE64, Mint
from webhooks.envelope import SOURCE, Content, Form, Message, head, message_id
from webhooks.operators import MISSING

NOW = 1_795_452_360_123
CURSOR = "abcdef-42-04fa"
ID = "msg_abcdef-42-04fa"

mint = Mint(1_000_000, "prefix")


def message(
    data: bytes = b'{"total":129.5}',
    topic: str = "orders.42",
    id: str | None = "7",
    type: str | None = "order.created",
    key: str | None = None,
    member: bytes = DATA,
) -> Message:
    event = mint.event(NOW, topic, data, id, type, key, member=member)
    return Message(message_id(CURSOR), CURSOR, event.body)


def binary(data: bytes) -> Message:
    return message(b'"%b"' % b64encode(data), member=DATA_BASE64)


def headers(content: Content) -> dict[str, str]:
    """Return the headers in some lines, read strictly."""
    lines = content.lines.decode("ascii").split("\r\n")
    assert lines.pop() == ""
    pairs = [line.split(": ", 1) for line in lines]
    assert all(len(pair) == 2 and pair[1] == pair[1].strip() for pair in pairs)
    assert len({name.lower() for name, _ in pairs}) == len(pairs)
    return {name.lower(): value for name, value in pairs}


def cloud_event(content: Content) -> BaseCloudEvent:
    """Return what the SDK of CloudEvents reads, which checks every attribute."""
    return from_http_event(HTTPMessage(headers(content), content.body))


def published(content: Content) -> Event:
    """Return the event that our own intake makes of a CloudEvent."""
    formats, found = Formats(mint, 10), headers(content)
    if found["content-type"] == CLOUD_EVENT:
        [event] = formats.events(CLOUD_EVENT.encode(), content.body, NOW)
    else:
        raw = [(name.encode(), value.encode()) for name, value in found.items()]
        [event] = formats.binary(raw, content.body, NOW)
    return event


def test_the_event_itself() -> None:
    """The same JSON as on every other transport."""
    content = message(key="k").content(Form.EVENT)
    assert headers(content) == {"content-type": "application/json", "webhook-id": ID}
    assert json.loads(content.body) == {
        "cursor": CURSOR,
        "topic": "orders.42",
        "id": "7",
        "type": "order.created",
        "time": "2026-11-23T16:46:00.123Z",
        "key": "k",
        "data": {"total": 129.5},
    }


def test_the_data_alone() -> None:
    """Byte for byte as it was published."""
    content = message(b'{"a" :1.50,"b":"\\u00e9"}').content(Form.RAW)
    assert headers(content)["content-type"] == "application/json"
    assert content.body == b'{"a" :1.50,"b":"\\u00e9"}'


def test_data_that_is_no_json() -> None:
    """Whatever was published as bytes is sent as those bytes, where it can be."""
    data = bytes(range(256))
    for form in (Form.RAW, Form.CLOUDEVENTS_BINARY):
        content = binary(data).content(form)
        assert headers(content)["content-type"] == "application/octet-stream"
        assert content.body == data
    assert json.loads(binary(data).content(Form.EVENT).body)["data_base64"] == b64encode(data).decode()
    structured = cloud_event(binary(data).content(Form.CLOUDEVENTS))
    assert structured.get_data() == data
    assert structured.get_datacontenttype() == "application/octet-stream"


ATTRIBUTES = {
    "specversion": "1.0",
    "id": "7",
    "source": SOURCE,
    "type": "order.created",
    "subject": "orders.42",
    "time": datetime(2026, 11, 23, 16, 46, 0, 123_000, UTC),
    "topic": "orders.42",
    "cursor": CURSOR,
    "partitionkey": "k",
    "datacontenttype": "application/json",
}


@pytest.mark.parametrize("form", [Form.CLOUDEVENTS, Form.CLOUDEVENTS_BINARY])
def test_cloud_events(form: Form) -> None:
    """The SDK of CloudEvents reads the event, with all of its attributes, in either mode."""
    event = cloud_event(message(key="k").content(form))
    assert event.get_attributes() == ATTRIBUTES
    assert event.get_data() == {"total": 129.5}


def test_the_modes_of_cloud_events() -> None:
    """Structured mode has all in the body, binary mode all but the data in the headers."""
    structured = headers(message().content(Form.CLOUDEVENTS))
    assert structured == {"content-type": "application/cloudevents+json", "webhook-id": ID}
    binary = message().content(Form.CLOUDEVENTS_BINARY)
    assert headers(binary)["content-type"] == "application/json"
    assert headers(binary)["ce-specversion"] == "1.0"
    assert binary.body == b'{"total":129.5}'


def test_a_cloud_event_goes_out_as_it_came_in() -> None:
    """Its source and id are those that it was published with, by which receivers know it again."""
    given = {"specversion": "1.0", "id": "a b", "source": "/shop/de", "type": "t", "data": 1}
    [event] = Formats(mint, 10).events(CLOUD_EVENT.encode(), json.dumps(given).encode(), NOW)
    for form in (Form.CLOUDEVENTS, Form.CLOUDEVENTS_BINARY):
        found = cloud_event(Message(ID, CURSOR, event.body).content(form))
        assert (found.get_source(), found.get_id(), found.get_type()) == ("/shop/de", "a b", "t")


@pytest.mark.parametrize("id", ["a", " a", "a ", "Grüße aus Köln", '"x" y', "a  b", "<a> b"])
def test_other_ids_stay_whole(id: str) -> None:
    """What is in front of a space is a source only if it could be one, and something is behind."""
    found = cloud_event(message(id=id).content(Form.CLOUDEVENTS))
    assert found.get_source() + found.get_id() in (SOURCE + id, id.replace(" ", "", 1))


TRICKY = 'ü"%20 €\\:😀x'


@pytest.mark.parametrize("form", [Form.CLOUDEVENTS, Form.CLOUDEVENTS_BINARY])
def test_text_of_any_kind(form: Form) -> None:
    """Quotes, spaces, percent signs and what is not ASCII come out as they went in."""
    content = message(topic=TRICKY, id=TRICKY, type=TRICKY, key=TRICKY).content(form)
    event = cloud_event(content)
    assert event.get_subject() == event.get_type() == event.get_extension("partitionkey") == TRICKY
    assert event.get_id() == TRICKY
    assert TRICKY not in content.lines.decode()


texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=8)
words = texts.filter(lambda text: not set(".*#") & set(text))


@given(words, texts, texts, st.none() | texts, st.sampled_from([b"1", b'{"a":[]}', b'"\xc3\xbc"']))
@pytest.mark.parametrize("form", [Form.CLOUDEVENTS, Form.CLOUDEVENTS_BINARY])
def test_what_is_sent_can_be_published_again(
    form: Form, topic: str, id: str, type: str, key: str | None, data: bytes
) -> None:
    """Another gateway that gets our CloudEvents has the same event: topic, type, key, time and data."""
    sent = message(data, topic, id, type, key)
    event = published(sent.content(form))
    again = Message(ID, CURSOR, event.body)
    before, after = json.loads(b"{%b}" % sent.event), json.loads(b"{%b}" % again.event)
    names = before.keys() - {"id"}
    assert {name: before[name] for name in names} == {name: after[name] for name in names}
    assert after["id"] in (f"{SOURCE} {id}", id)


@pytest.mark.parametrize("form", Form)
def test_a_content_is_made_once(form: Form) -> None:
    """Endpoints that want the same form share its bytes."""
    one = message()
    assert one.content(form) is one.content(form)
    assert one.content(form) == message().content(form), "another attempt signs other bytes"


def test_what_filters_see() -> None:
    """Topic, type and data; of what is no JSON there is no data."""
    one = message()
    assert (one.topic, one.type, one.data) == ("orders.42", "order.created", {"total": 129.5})
    assert one.data is one.data
    assert message(b"null").data is None
    assert binary(b"x").data is MISSING


@pytest.mark.parametrize("id", ["a.b", "a\r\nx: y", ""])
def test_ids_that_cannot_be(id: str) -> None:
    with pytest.raises(ValueError, match="cannot be the id of a webhook"):
        Message(id, CURSOR, b"")


def test_the_head_of_an_attempt() -> None:
    """The endpoint's lines, the event's, and the attempt's: each line with its break, and no empty one."""
    content = Content(b"Content-Type: application/json\r\nwebhook-id: msg_1\r\n", b"{}")
    assert head(b"X-A: 1\r\n", content, 1_614_265_330, b"v1,abc= v1a,def=") == (
        b"X-A: 1\r\n"
        b"Content-Type: application/json\r\n"
        b"webhook-id: msg_1\r\n"
        b"webhook-timestamp: 1614265330\r\n"
        b"webhook-signature: v1,abc= v1a,def=\r\n"
    )
