"""Long polling, in every shell: held until there is something, or until the time is over."""

from __future__ import annotations

import asyncio
import contextlib
import time

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
    until,
)

pytestmark = pytest.mark.integration


def numbered(topic: str, *numbers: int) -> list[Message]:
    return [{"topic": topic, "data": number} for number in numbers]


async def held(
    address: Address, topic: str, *query: tuple[str, str], **headers: str
) -> asyncio.Task[Response]:
    """Begin a long poll of 30 seconds from the head, and return when the gateway holds it."""
    given = [(name.replace("_", "-"), value) for name, value in headers.items()]
    parameters = [("topic", topic), ("wait", "30"), *query]
    task = asyncio.ensure_future(fetch(address, "/v1/events", parameters, given))
    await until(lambda: subscribed(address, topic), f"a poll of {topic} is held")
    return task


async def subscribed(address: Address, topic: str) -> bool:
    """Tell whether somebody waits for a topic."""
    listed = (await fetch(address, "/v1/topics", [("limit", "1000")])).json["subscriptions"]
    return any(each["pattern"] == topic for each in listed)


async def answered(task: asyncio.Task[Response]) -> Response:
    """Return the answer to a held poll; it must come long before its time is over."""
    async with asyncio.timeout(20):
        return await task


async def test_an_event_ends_the_wait_at_once(gateway: Address, topics: Topics) -> None:
    """A held poll is answered by the first event that matches, and by no other."""
    task = await held(gateway, topics())
    await publish(gateway, *numbered(topics("other"), 1))
    assert not task.done()
    cursor = (await publish(gateway, *numbered(topics(), 2)))["cursor"]
    response = await answered(task)
    assert [event["data"] for event in response.json["events"]] == [2]
    assert response.json["cursor"] == cursor
    assert response.head["etag"] == f'"{cursor}"'


async def test_all_of_a_batch_comes_together(gateway: Address, topics: Topics) -> None:
    """Events accepted together end the wait together."""
    task = await held(gateway, topics())
    await publish(gateway, *numbered(topics(), *range(50)))
    response = await answered(task)
    assert [event["data"] for event in response.json["events"]] == list(range(50))


async def test_what_is_there_already_is_not_waited_for(gateway: Address, topics: Topics) -> None:
    """A poll from before an event is answered at once."""
    await publish(gateway, *numbered(topics(), 1))
    task = asyncio.ensure_future(
        fetch(gateway, "/v1/events", [("topic", topics()), ("cursor", "earliest"), ("wait", "60")])
    )
    assert [event["data"] for event in (await answered(task)).json["events"]] == [1]


async def test_the_end_of_the_wait_is_an_answer_with_the_cursor(gateway: Address, topics: Topics) -> None:
    """When nothing comes the answer is empty, not before its time, and has the newest cursor."""
    task = asyncio.ensure_future(fetch(gateway, "/v1/events", [("topic", topics()), ("wait", "1.5")]))
    begun = time.monotonic()
    await until(lambda: subscribed(gateway, topics()), "the poll is held")
    moved = (await publish(gateway, *numbered(topics("other"), 1)))["cursor"]
    response = await answered(task)
    assert time.monotonic() - begun > 1
    assert response.status == 200
    assert response.json["events"] == []
    assert response.head["etag"] == f'"{response.json["cursor"]}"'
    assert int(response.json["cursor"].split("-")[1]) >= int(moved.split("-")[1]), "the cursor moved along"


async def test_a_conditional_wait_ends_with_304(gateway: Address, topics: Topics) -> None:
    """A long poll by `If-None-Match` is held too, and answered 304 with a tag when nothing came."""
    tag = (await fetch(gateway, "/v1/events", [("topic", topics())])).head["etag"]
    response = await fetch(
        gateway, "/v1/events", [("topic", topics()), ("wait", "0.3")], [("If-None-Match", tag)]
    )
    assert response.status == 304
    assert response.head["etag"]
    task = await held(gateway, topics(), if_none_match=response.head["etag"])
    await publish(gateway, *numbered(topics(), 1))
    assert [event["data"] for event in (await answered(task)).json["events"]] == [1]


async def test_a_pattern_is_waited_for(gateway: Address, topics: Topics) -> None:
    """A held poll of several patterns is answered by an event that any of them matches."""
    root = topics("root")
    task = await held(gateway, f"{root}.*.x", ("topic", f"{root}.#"))
    await publish(gateway, *numbered(f"{root}.a.b.c", 1))
    assert [event["data"] for event in (await answered(task)).json["events"]] == [1]


async def test_many_polls_are_answered_by_one_event(gateway: Address, topics: Topics) -> None:
    """A hundred held polls of one topic are all answered."""
    parameters = [("topic", topics()), ("wait", "30")]
    tasks = [asyncio.ensure_future(fetch(gateway, "/v1/events", parameters)) for _ in range(100)]

    async def all_held() -> bool:
        listed = (await fetch(gateway, "/v1/topics", [("limit", "1000")])).json["subscriptions"]
        return any((each["pattern"], each["connections"]) == (topics(), 100) for each in listed)

    await until(all_held, "a hundred polls are held")
    await publish(gateway, *numbered(topics(), 1))
    for response in await asyncio.gather(*map(answered, tasks)):
        assert [event["data"] for event in response.json["events"]] == [1]
    assert not await subscribed(gateway, topics())


@pytest.mark.parametrize("ending", ["reset", "aclose"])
async def test_a_client_that_hangs_up_is_not_waited_for(
    gateway: Address, topics: Topics, ending: str
) -> None:
    """A held poll whose client went away is dropped at once, and no event is spent on it."""
    async with Tcp.open(gateway) as tcp:
        target = gateway.target("/v1/events", [("topic", topics()), ("wait", "60")])
        await tcp.send(request_bytes("GET", target))
        await until(lambda: subscribed(gateway, topics()), "the poll is held")
        if ending == "reset":
            tcp.reset()
        else:
            await tcp.aclose()

        async def dropped() -> bool:
            return not await subscribed(gateway, topics())

        await until(dropped, "the poll is dropped")


async def test_nothing_is_lost_between_polls(gateway: Address, topics: Topics) -> None:
    """While events are published one by one, a client that polls again and again gets each exactly once."""

    async def go_on_publishing() -> None:
        for number in range(150):
            await publish(gateway, *numbered(topics(), number))

    async with open_subscriber(gateway, "longpoll", topics()) as subscriber:
        publishing = asyncio.ensure_future(go_on_publishing())
        assert await subscriber.data(150) == list(range(150))
        await publishing


async def test_another_request_behind_a_held_poll_waits_for_its_turn(
    gateway: Address, topics: Topics
) -> None:
    """A pipelined request behind a long poll is answered after it."""
    first = request_bytes("GET", gateway.target("/v1/events", [("topic", topics()), ("wait", "30")]))
    second = request_bytes("GET", gateway.target("/healthz"))
    async with Tcp.open(gateway) as tcp:
        await tcp.send(first + second)
        await until(lambda: subscribed(gateway, topics()), "the poll is held")
        await publish(gateway, *numbered(topics(), 1))
        response = await exchange(tcp, b"")
        assert [event["data"] for event in response.json["events"]] == [1]
        assert (await exchange(tcp, b"")).json == {"status": "alive"}


async def test_a_wait_may_be_cancelled_and_begun_again(gateway: Address, topics: Topics) -> None:
    """A browser that aborts its request and makes a new one from the same cursor loses nothing."""
    cursor = (await fetch(gateway, "/v1/events", [("topic", topics())])).json["cursor"]
    for _ in range(5):
        task = await held(gateway, topics(), ("cursor", cursor))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await publish(gateway, *numbered(topics(), *range(5)))
    response = await fetch(gateway, "/v1/events", [("topic", topics()), ("cursor", cursor), ("wait", "30")])
    assert [event["data"] for event in response.json["events"]] == list(range(5))
