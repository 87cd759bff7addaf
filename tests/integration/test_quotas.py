"""Limits by subject: who reached one is told when to come, nobody else notices, and nothing is changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from math import ceil
from typing import Any, Final

import pytest

from tests.support.bearer import ENVIRON, bearer, call, fresh
from tests.support.clients import (
    Address,
    Closed,
    Refused,
    Response,
    Tcp,
    Topics,
    WebSocket,
    fetch,
    open_subscriber,
    request_bytes,
    until,
)
from tests.support.host import HostProcess, address_of
from tests.support.server import GatewayProcess
from tests.support.tokens import SECRET

pytestmark = pytest.mark.integration

LIMITS: Final[dict[str, Any]] = {
    "max_connections_per_subject": 2,
    "publish_rate": 4,
    "publish_bytes": 4000,
    "poll_rate": 2,
    "max_requests_per_subject": 2,
    "max_topics": 5,
}
SSE: Final = ("Accept", "text/event-stream")
_numbers = count()


@pytest.fixture(scope="module")
def gateway() -> Iterator[Address]:
    with GatewayProcess(environ=ENVIRON, services="reports", **LIMITS) as process:
        yield address_of(process)


@pytest.fixture(scope="module", params=["server", "mounted"])
def anywhere(request: pytest.FixtureRequest) -> Iterator[Address]:
    """A gateway as a server, and one in somebody else's application."""
    if request.param == "server":
        yield request.getfixturevalue("gateway")
        return
    with HostProcess(lifespan=True, jwt_key=SECRET, **LIMITS) as process:
        yield address_of(process)


@pytest.fixture
async def topic(topics: Topics) -> str:
    return topics()


@pytest.fixture
def subject() -> str:
    """A subject that no other test uses."""
    return f"subject-{next(_numbers)}"


def token(subject: str, tenant: str | None = None, **limits: Any) -> str:
    """Return a token of a subject, with limits of its own if any are named."""
    more: dict[str, Any] = {} if tenant is None else {"tenant": tenant}
    return fresh(sub=subject, publish=["#"], subscribe=["#"], requests=["*"], limits=limits, **more)


async def refused(address: Address, limit: str) -> float:
    """Return how often a limit was reached."""
    lines = (await call(address, "GET", "/metrics")).body.decode().splitlines()
    name = f'sluice_refused_total{{limit="{limit}"}} '
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@asynccontextmanager
async def counted(address: Address, limit: str, times: int) -> AsyncIterator[None]:
    """Check that meanwhile a limit refused so often."""
    before = await refused(address, limit)
    yield
    assert await refused(address, limit) - before == times


def check_refusal(response: Response, limit: str, wait: float = 0) -> int:
    """
    Check that a client was told of which limit, and to come back; return the seconds it was told.

    Args:
        response: what it was told.
        limit: by the setting's name.
        wait: seconds that were left when it was reached, of which two may be over.
    """
    assert response.status == 429, response
    assert f"({limit})" in response.problem["detail"]
    assert response.problem["status"] == 429
    assert response.head["cache-control"] == "no-store"
    seconds = int(response.head["retry-after"])
    assert max(1, wait - 2) <= seconds <= ceil(wait + 3)
    return seconds


async def post(address: Address, text: str, *events: Any) -> Response:
    return await call(address, "POST", "/v1/events", text, events)


async def poll(address: Address, text: str, topic: str, *extra: tuple[str, str]) -> Response:
    return await fetch(address, "/v1/events", [("topic", topic), *extra], [bearer(text)])


def numbered(topic: str, numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [{"topic": topic, "data": number} for number in numbers]


# --- publishing ---------------------------------------------------------------------------------------------


async def test_so_many_events_a_second(gateway: Address, topic: str, subject: str) -> None:
    """A batch may overdraw; what comes behind it is refused, until the time that was said is over."""
    text = token(subject)
    async with (
        open_subscriber(gateway, "websocket", topic, headers=[bearer(fresh(subscribe=["#"]))]) as reader,
        counted(gateway, "publish_rate", 2),
    ):
        assert (await post(gateway, text, *numbered(topic, range(24)))).status == 202
        check_refusal(await post(gateway, text, *numbered(topic, [-1])), "publish_rate", wait=4)
        path = f"/v1/topics/{topic}"
        told = check_refusal(await call(gateway, "POST", path, text, -2), "publish_rate", wait=4)
        quick = token(f"{subject}-2", publish_rate=1000)
        for _ in range(2):
            answer = await post(gateway, quick, *numbered(topic, [16] * 16))
            assert answer.status == 202, "its own limit, and another subject"
        await asyncio.sleep(told)  # as a client does
        assert (await post(gateway, text, *numbered(topic, [17]))).status == 202
        assert await reader.data(57) == [*range(24), *[16] * 32, 17]


async def test_the_same_subject_of_two_tenants_is_two(gateway: Address, topic: str, subject: str) -> None:
    """What one of them did is nothing to the other."""
    events = numbered(topic, range(28))
    for tenant in (None, "one", "two"):
        text = token(subject, tenant)
        assert (await post(gateway, text, *events)).status == 202
        check_refusal(await post(gateway, text, *events), "publish_rate", wait=5)


async def test_so_many_bytes_a_second(gateway: Address, topic: str, subject: str) -> None:
    """A body counts by its length."""
    text = token(subject)
    path = f"/v1/topics/{topic}"
    async with counted(gateway, "publish_bytes", 1):
        assert (await call(gateway, "POST", path, text, "x" * 20_000)).status == 202
        told = check_refusal(await call(gateway, "POST", path, text, "x"), "publish_bytes", wait=3)
        assert (await call(gateway, "POST", path, token(f"{subject}-2"), "x")).status == 202
        await asyncio.sleep(told)
        assert (await call(gateway, "POST", path, text, "x")).status == 202


async def test_a_websocket_publishes_no_more(anywhere: Address, topic: str, subject: str) -> None:
    """Its operation is answered by an error; it goes on, and counts together with HTTP."""
    text = token(subject)
    async with open_subscriber(anywhere, "websocket", topic, headers=[bearer(text)]) as reader:
        before = await refused(anywhere, "publish_rate")
        for number in range(30):
            await reader.send({"op": "publish", "topic": topic, "data": number, "ref": number})
        messages = [await reader.next()]
        while messages[-1].get("ref") != 29:
            messages.append(await reader.next())
        answers = [each for each in messages if "control" in each]
        assert [answer["ref"] for answer in answers] == list(range(30))
        accepted = [answer["ref"] for answer in answers if answer["control"] == "published"]
        assert accepted[:8] == list(range(8))
        errors = [answer for answer in answers if answer["control"] == "error"]
        for error in errors:
            assert (error["status"], "(publish_rate)" in error["detail"]) == (429, True)
            assert 0.5 <= error["retry_after"] <= 3.3
        assert len(errors) >= 15
        assert await refused(anywhere, "publish_rate") - before == len(errors)
        assert [each["data"] for each in messages if "control" not in each] == accepted
        assert (await reader.ask({"op": "ping"}))["control"] == "pong"
        await asyncio.sleep(errors[-1]["retry_after"])
        await reader.send({"op": "publish", "topic": topic, "data": "late"})
        while (message := await reader.next()).get("data") != "late":
            assert message.get("control") != "error"


# --- polls --------------------------------------------------------------------------------------------------


async def test_so_many_polls_a_second(anywhere: Address, topic: str, subject: str) -> None:
    """Beyond that a poll is refused, and does not move what is remembered of its consumer."""
    text = token(subject, polls=1)
    end = (await post(anywhere, text, {"topic": topic, "data": 1})).json["cursor"]
    async with counted(anywhere, "poll_rate", 1):
        answers = list[Response]()
        while not answers or answers[-1].status == 200:
            consumer = ("consumer", f"c{len(answers)}")
            answers.append(await poll(anywhere, text, topic, consumer, ("cursor", end)))
            assert len(answers) < 50
        assert len(answers) > 2, "a quiet subject has twice as many at once"
        told = check_refusal(answers[-1], "poll_rate", wait=1)
        assert (await poll(anywhere, token(f"{subject}-2"), topic)).status == 200
    await publish_to(anywhere, topic, 2)
    await asyncio.sleep(told)
    late = await poll(anywhere, text, topic, ("consumer", f"c{len(answers) - 1}"))
    assert late.json["events"] == [], "it is new, and begins at the head"
    await asyncio.sleep(1.1)
    known = await poll(anywhere, text, topic, ("consumer", "c0"))
    assert [event["data"] for event in known.json["events"]] == [2]


# --- connections --------------------------------------------------------------------------------------------


async def opens(address: Address, text: str, transport: str = "ndjson") -> Response | None:
    """Open a stream and close it; return the refusal if it was refused."""
    try:
        async with open_subscriber(address, transport, "t", headers=[bearer(text)]):
            return None
    except Refused as error:
        return error.response


async def test_so_many_streams_at_a_time(anywhere: Address, subject: str) -> None:
    """On whatever transports; the place of one that is closed is free."""
    text = token(subject)
    mine = [bearer(text)]
    async with AsyncExitStack() as stack:
        async with open_subscriber(anywhere, "sse", "t", headers=mine) as first:
            await stack.enter_async_context(open_subscriber(anywhere, "websocket", "t", headers=mine))
            async with counted(anywhere, "max_connections_per_subject", 4):
                for transport in ("websocket", "ndjson"):
                    response = await opens(anywhere, text, transport)
                    assert response is not None
                    check_refusal(response, "max_connections_per_subject")
                told = await fetch(anywhere, "/v1/events", [("topic", "t")], [*mine, SSE])
                assert (told.status, told.body[:7]) == (200, b"retry: "), "an EventSource comes back"
                assert int(told.body.split()[1]) >= 3500
                response = await poll(anywhere, text, "t", ("wait", "5"))
                check_refusal(response, "max_connections_per_subject")
            assert (await poll(anywhere, text, "t")).status == 200, "it does not wait, so it is no connection"
            assert await opens(anywhere, token(f"{subject}-2")) is None
            assert await opens(anywhere, token(subject, "one")) is None
            await publish_to(anywhere, "t", 1)
            assert await first.data(1) == [1]

        async def free() -> bool:
            return await opens(anywhere, text) is None

        await until(free, "the place of the closed stream is free")


async def publish_to(address: Address, topic: str, data: Any) -> None:
    """Publish as somebody without limits."""
    answer = await post(address, fresh(publish=["#"]), {"topic": topic, "data": data})
    assert answer.status == 202


async def test_polls_that_wait_are_connections(anywhere: Address, topic: str, subject: str) -> None:
    """As long as they wait: until something comes, or the client goes."""
    text = token(subject, polls=1000)
    target = anywhere.target("/v1/events", [("topic", topic), ("wait", "30")])
    waiting = request_bytes("GET", target, [bearer(text)])

    async def free() -> bool:
        return await opens(anywhere, text) is None

    @asynccontextmanager
    async def two() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await connected(anywhere, 0)
            for _ in range(2):
                tcp = await stack.enter_async_context(Tcp.open(anywhere))
                await tcp.send(waiting)
            await connected(anywhere, 2)
            response = await opens(anywhere, text)
            assert response is not None, "two polls are as many connections as there may be"
            check_refusal(response, "max_connections_per_subject")
            yield

    async with two():
        pass
    await until(free, "the places of those who went are free")
    async with two():
        await publish_to(anywhere, topic, 1)
        await until(free, "the places of those that were answered are free")


async def connected(address: Address, number: int) -> None:
    """Wait until a gateway has so many streams and waiting polls."""

    async def so_many() -> bool:
        total: int = (await call(address, "GET", "/v1/connections")).json["total"]
        return total == number

    await until(so_many, f"there are {number} connections")


async def test_a_crowd_gets_no_more_than_its_places(anywhere: Address, subject: str) -> None:
    """Who comes at the same moment counts."""
    text = token(subject, connections=3)
    async with AsyncExitStack() as stack:

        async def one() -> bool:
            mine = [bearer(text)]
            opening = open_subscriber(anywhere, "ndjson", "t", cursor="earliest", headers=mine)
            try:
                await stack.enter_async_context(opening)
            except Refused:
                return False
            return True

        assert sum(await asyncio.gather(*(one() for _ in range(20)))) == 3


@pytest.mark.parametrize("most", [1, 4], ids=["lower", "higher"])
async def test_a_token_brings_its_own_limit(gateway: Address, subject: str, most: int) -> None:
    """In place of the setting, in both directions."""
    text = token(subject, connections=most)
    async with AsyncExitStack() as stack:
        for _ in range(most):
            await stack.enter_async_context(open_subscriber(gateway, "ndjson", "t", headers=[bearer(text)]))
        response = await opens(gateway, text)
        assert response is not None
        check_refusal(response, "max_connections_per_subject")


# --- of one connection and one message ----------------------------------------------------------------------


async def test_a_token_has_fewer_topics(gateway: Address, topic: str, subject: str) -> None:
    """Never more than the gateway holds."""
    for claimed, most in ((2, 2), (100, 5)):
        text = token(f"{subject}-{claimed}", subscriptions=claimed)
        patterns = [f"{topic}.{number}" for number in range(most + 1)]
        many = [("topic", each) for each in patterns]
        response = await fetch(gateway, "/v1/events", many, [bearer(text)])
        assert (response.status, f"may have {most} topics" in response.problem["detail"]) == (422, True)
        assert (await fetch(gateway, "/v1/events", many[1:], [bearer(text)])).status == 200
        async with open_subscriber(gateway, "websocket", *patterns[1:], headers=[bearer(text)]) as reader:
            for more in (patterns[:1], patterns):
                error = await reader.ask({"op": "subscribe", "topics": more})
                assert (error["status"], f"may have {most} topics" in error["detail"]) == (422, True)
            assert (await reader.ask({"op": "unsubscribe", "topic": patterns[1]}))[
                "control"
            ] == "unsubscribed"
            assert (await reader.ask({"op": "subscribe", "topic": patterns[0]}))["control"] == "subscribed"


async def test_a_token_has_shorter_messages(anywhere: Address, topic: str, subject: str) -> None:
    """A WebSocket ends by a longer one, a body is refused."""
    text = token(subject, message_bytes=1000, publish_rate=1000, publish_bytes=1_000_000)
    path = f"/v1/topics/{topic}"
    assert (await call(anywhere, "POST", path, text, "x" * 998)).status == 202
    response = await call(anywhere, "POST", path, text, "x" * 999)
    assert (response.status, "1000 bytes" in response.problem["detail"]) == (413, True)
    assert (await call(anywhere, "POST", path, token(f"{subject}-2"), "x" * 999)).status == 202
    operation = '{"op":"publish","topic":"%s","data":"%s"}'
    room = 1000 - len(operation % (topic, ""))
    reader: WebSocket
    async with open_subscriber(anywhere, "websocket", headers=[bearer(text)]) as reader:
        await reader.send(operation % (topic, "ä" * (room // 2)))
        assert (await reader.next())["control"] == "published"
        await reader.send(operation % (topic, "ä" * (room // 2 + 1)))
        with pytest.raises(Closed) as closed:
            await reader.next()
        assert closed.value.code == 1009


async def test_small_messages_do_not_end_pings(gateway: Address, subject: str) -> None:
    """Control frames may carry 125 bytes, however little a message may have."""
    text = token(subject, message_bytes=1)
    async with open_subscriber(gateway, "websocket", headers=[bearer(text)]) as reader:
        assert (await reader.ask({"op": "ping"}))["control"] == "pong"
        await reader.send("x" * 126)
        with pytest.raises(Closed) as closed:
            await reader.next()
        assert closed.value.code == 1009


# --- requests -----------------------------------------------------------------------------------------------


async def hand_in(address: Address, text: str, key: str | None = None) -> Response:
    headers = [] if key is None else [("Idempotency-Key", key)]
    return await call(address, "POST", "/v1/requests/reports", text, {"a": 1}, headers)


async def test_so_many_unfinished_requests() -> None:
    """Those on their way count, repeats do not, and the log remembers whose they are."""
    async with GatewayProcess(environ=ENVIRON, services="reports", **LIMITS) as process:
        address, text = address_of(process), token("ada")
        async with counted(address, "max_requests_per_subject", 5):
            answers = await asyncio.gather(*(hand_in(address, text, f"k{number}") for number in range(7)))
            taken = [number for number, answer in enumerate(answers) if answer.status == 202]
            assert len(taken) == 2
            for answer in answers:
                if answer.status != 202:
                    check_refusal(answer, "max_requests_per_subject", wait=5)
        assert (await hand_in(address, text, f"k{taken[0]}")).status == 202, "the same request is none more"
        for other in (token("bob"), token("ada", "one"), token("ada", requests=3), token("ada", requests=4)):
            assert (await hand_in(address, other)).status == 202
        check_refusal(await hand_in(address, token("ada", requests=4)), "max_requests_per_subject", wait=5)
        await process.arestart()

        async def read() -> bool:
            return (await call(address, "GET", "/v1/requests")).status == 200

        await until(read, "the requests are read from the log")
        check_refusal(await hand_in(address, token("ada", requests=4)), "max_requests_per_subject", wait=5)
        gone = answers[taken[0]].json["status_url"]
        assert (await call(address, "DELETE", gone, text)).status == 200
        assert (await hand_in(address, token("ada", requests=4))).status == 202
        check_refusal(await hand_in(address, text), "max_requests_per_subject", wait=5)
