"""Polling, in every shell: cursors, entity tags, batches, hints."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.support.clients import (
    Address,
    Message,
    Response,
    Tcp,
    Topics,
    exchange,
    fetch,
    open_subscriber,
    publish,
    request_bytes,
)
from tests.support.host import address_of
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration


def numbered(topic: str, *numbers: int) -> list[Message]:
    return [{"topic": topic, "data": number} for number in numbers]


async def poll(address: Address, topic: str, *query: tuple[str, str], **headers: str) -> Response:
    """Poll once."""
    given = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return await fetch(address, "/v1/events", [("topic", topic), *query], given)


async def test_a_first_poll_is_empty_and_has_the_cursor(gateway: Address, topics: Topics) -> None:
    """Without a cursor the answer is empty and says where the head is."""
    head = (await publish(gateway, *numbered(topics(), 1)))["cursor"]
    response = await poll(gateway, topics())
    assert response.status == 200
    assert response.json == {"events": [], "cursor": head, "more": False}
    assert response.head["etag"] == f'"{head}"'
    assert response.head["content-type"] == "application/json"
    assert response.head["cache-control"] == "no-store"
    assert "accept" in response.head["vary"]
    assert int(response.head["retry-after"]) >= 1
    await publish(gateway, *numbered(topics(), 2))
    answer = (await poll(gateway, topics(), ("cursor", head))).json
    assert [event["data"] for event in answer["events"]] == [2]
    assert answer["cursor"] == answer["events"][-1]["cursor"]


async def test_an_empty_answer_moves_the_cursor(gateway: Address, topics: Topics) -> None:
    """A client of a quiet topic gets a newer cursor with each answer, so that it never ages out."""
    first = (await poll(gateway, topics())).json["cursor"]
    moved = (await publish(gateway, *numbered(topics("other"), 1, 2)))["cursor"]
    response = await poll(gateway, topics(), ("cursor", first))
    assert response.json["events"] == []
    assert position(response.json["cursor"]) >= position(moved)
    assert response.head["etag"] == f'"{response.json["cursor"]}"'


def position(cursor: str) -> int:
    return int(cursor.split("-")[1])


async def test_nothing_new_is_304_for_a_conditional_poll(gateway: Address, topics: Topics) -> None:
    """With `If-None-Match` an answer without news is 304: a head with the next tag, and no body."""
    tag = (await poll(gateway, topics())).head["etag"]
    assert re.fullmatch('"[!#-~]+"', tag), "a strong entity tag (RFC 9110 8.8.3)"
    response = await poll(gateway, topics(), if_none_match=tag)
    assert response.status == 304
    assert response.body == b""
    assert response.head["cache-control"] == "no-store"
    assert "content-type" not in response.head
    later = response.head["etag"]
    await publish(gateway, *numbered(topics(), 1))
    response = await poll(gateway, topics(), if_none_match=later)
    assert response.status == 200
    assert [event["data"] for event in response.json["events"]] == [1]
    assert (await poll(gateway, topics(), if_none_match=response.head["etag"])).status == 304


@pytest.mark.parametrize("form", ['"{}"', 'W/"{}"', "{}", ' "{}" '])
async def test_an_entity_tag_is_taken_in_every_form(gateway: Address, topics: Topics, form: str) -> None:
    """Proxies weaken tags (W/), and some clients forget the quotes."""
    cursor = (await publish(gateway, *numbered(topics(), 1)))["cursor"]
    response = await poll(gateway, topics(), if_none_match=form.format(cursor))
    assert response.status == 304
    await publish(gateway, *numbered(topics(), 2))
    response = await poll(gateway, topics(), if_none_match=form.format(cursor))
    assert [event["data"] for event in response.json["events"]] == [2]


async def test_any_tag_at_all_is_no_cursor(gateway: Address, topics: Topics) -> None:
    """`If-None-Match: *` names no cursor: it is a first poll."""
    await publish(gateway, *numbered(topics(), 1))
    response = await poll(gateway, topics(), if_none_match="*")
    assert response.status == 200
    assert response.json["events"] == []


async def test_a_gap_is_no_304(gateway: Address, topics: Topics) -> None:
    """A conditional poll with a cursor of another log is told so, not "nothing new"."""
    response = await poll(gateway, topics(), if_none_match='"zzzzzz-1-0000"')
    assert response.status == 200
    assert response.json["gap"]["reason"] == "reset"


async def test_a_cursor_parameter_never_gets_304(gateway: Address, topics: Topics) -> None:
    """304 answers a condition, and a parameter is none."""
    cursor = (await publish(gateway, *numbered(topics(), 1)))["cursor"]
    response = await poll(gateway, topics(), ("cursor", cursor))
    assert response.status == 200
    assert response.json["events"] == []


async def test_answers_come_in_batches(gateway: Address, topics: Topics) -> None:
    """`limit` cuts an answer; `more` and `Retry-After: 0` say so, until there is no more."""
    await publish(gateway, *numbered(topics(), *range(25)))
    seen: list[int] = []
    cursor = "earliest"
    for expected in (10, 10, 5):
        response = await poll(gateway, topics(), ("cursor", cursor), ("limit", "10"))
        answer = response.json
        assert len(answer["events"]) == expected
        seen += [event["data"] for event in answer["events"]]
        cursor = answer["cursor"]
        assert answer["more"] == (expected == 10)
        assert (response.head["retry-after"] == "0") == answer["more"]
    assert seen == list(range(25))


async def test_a_batch_that_takes_exactly_everything_may_say_more_once(
    gateway: Address, topics: Topics
) -> None:
    """Whatever `more` says at the limit, the next answer is empty and says no more; nothing comes twice."""
    await publish(gateway, *numbered(topics(), *range(10)))
    answer = (await poll(gateway, topics(), ("cursor", "earliest"), ("limit", "10"))).json
    assert len(answer["events"]) == 10
    rest = (await poll(gateway, topics(), ("cursor", answer["cursor"]), ("limit", "10"))).json
    assert rest["events"] == []
    assert rest["more"] is False


async def test_the_default_limit_is_a_hundred_and_the_largest_a_thousand(
    gateway: Address, topics: Topics
) -> None:
    """Without a limit 100 events come at a time; 1,000 are the most."""
    await publish(gateway, *numbered(topics(), *range(1200)))
    assert len((await poll(gateway, topics(), ("cursor", "earliest"))).json["events"]) == 100
    most = (await poll(gateway, topics(), ("cursor", "earliest"), ("limit", "1000"))).json
    assert len(most["events"]) == 1000
    assert most["more"] is True


async def test_an_answer_is_bounded_in_bytes(gateway: Address, topics: Topics) -> None:
    """Large events come a megabyte at a time, an even larger one alone, and nothing is lost."""
    sizes = [400_000, 400_000, 400_000, 1_000_000, 10, 10]
    await publish(gateway, *({"topic": topics(), "data": "x" * size} for size in sizes))
    seen: list[int] = []
    cursor, answers = "earliest", 0
    while len(seen) < len(sizes):
        response = await poll(gateway, topics(), ("cursor", cursor), ("limit", "1000"))
        assert len(response.body) < 2_200_000
        seen += [len(event["data"]) for event in response.json["events"]]
        cursor = response.json["cursor"]
        answers += 1
    assert seen == sizes
    assert 1 < answers <= 5


async def test_polls_share_a_connection(gateway: Address, topics: Topics) -> None:
    """Answers with events, empty ones and 304 all leave the connection usable, one after the other."""
    async with Tcp.open(gateway) as tcp:
        cursor = "earliest"
        for number in range(20):
            target = gateway.target("/v1/events", [("topic", topics()), ("cursor", cursor)])
            if number % 2:
                await publish(gateway, *numbered(topics(), number))
            answer = (await exchange(tcp, request_bytes("GET", target))).json
            assert [event["data"] for event in answer["events"]] == ([number] if number % 2 else [])
            cursor = answer["cursor"]
            plain = gateway.target("/v1/events", [("topic", topics())])
            tag = [("If-None-Match", f'"{cursor}"')]
            assert (await exchange(tcp, request_bytes("GET", plain, tag))).status == 304


async def test_polls_can_be_pipelined(gateway: Address, topics: Topics) -> None:
    """Requests sent without waiting are answered in their order."""
    await publish(gateway, *numbered(topics(), 1, 2, 3))
    requests = [
        request_bytes("GET", gateway.target("/v1/events", [("topic", topics()), ("cursor", f"-{n}")]))
        for n in (1, 2, 3)
    ]
    async with Tcp.open(gateway) as tcp:
        first = await exchange(tcp, b"".join(requests))
        assert [event["data"] for event in first.json["events"]] == [3]
        second = await exchange(tcp, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert [event["data"] for event in second.json["events"]] == [2, 3]


async def test_http_1_0_polls(gateway: Address, topics: Topics) -> None:
    """A client of HTTP/1.0 gets its answer and the end of the connection."""
    target = gateway.target("/v1/events", [("topic", topics())])
    async with Tcp.open(gateway) as tcp:
        response = await exchange(tcp, request_bytes("GET", target, version="1.0"))
        assert response.json["events"] == []
        assert await tcp.rest() == b""


async def test_the_hint_to_wait_can_be_set() -> None:
    """`poll_retry_after` is what `Retry-After` says when there is nothing."""
    with GatewayProcess("memory:", poll_retry_after=7) as process:
        response = await poll(address_of(process), "t")
        assert response.head["retry-after"] == "7"


async def test_an_independent_client_polls(gateway: Address, topics: Topics) -> None:
    """An ordinary client, httpx, with its usual headers (gzip, keep-alive, `*/*`) is answered in JSON."""
    await publish(gateway, *numbered(topics(), 1))
    async with httpx.AsyncClient(trust_env=False) as client:
        parameters = {"topic": topics(), "cursor": "earliest"}
        response = await client.get(f"{gateway.url}/v1/events", params=parameters)
        assert [event["data"] for event in response.json()["events"]] == [1]
        tag = {"If-None-Match": response.headers["etag"]}
        assert (
            await client.get(f"{gateway.url}/v1/events", params=parameters, headers=tag)
        ).status_code == 304


async def test_cache_busters_are_ignored(gateway: Address, topics: Topics) -> None:
    """A parameter whose name begins with an underscore means nothing."""
    assert (await poll(gateway, topics(), ("_", "123"), ("_t", "456"))).status == 200


async def test_a_poll_of_a_quiet_topic_in_a_busy_log_goes_forward(gateway: Address, topics: Topics) -> None:
    """From far back each answer gets further, whatever lies between, and finds the one event there is."""
    await publish(gateway, *numbered(topics("quiet"), 1))
    for start in range(0, 6000, 2000):
        await publish(gateway, *numbered(topics("busy"), *range(start, start + 2000)))
    await publish(gateway, *numbered(topics("quiet"), 2))
    async with open_subscriber(gateway, "poll", topics("quiet"), cursor="earliest") as subscriber:
        assert await subscriber.data(2) == [1, 2]
        assert len(subscriber.answers) < 10
