"""Publishing over HTTP, through a real server and real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from fanout.cursor import Cursor
from gateway.dedup import Dedup
from gateway.intake import Intake
from gateway.log import LogUnavailable
from gateway.problems import EXCEPTION_HANDLERS
from gateway.publish import routes
from tests.support.limits import SmallLimits
from tests.support.memory_log import MemoryLog

DEADLINE = 20.0


@dataclass(frozen=True)
class Answer:
    """A response as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection that says exactly what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def request(
        self,
        path: str,
        body: bytes = b"",
        content_type: str | None = "application/json",
        method: str = "POST",
        **headers: str,
    ) -> None:
        """Send a whole request."""
        lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
        lines += [f"content-type: {content_type}"] if content_type else []
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([*lines, "", ""]).encode() + body)

    async def answer(self) -> Answer:
        """Read one response."""
        async with asyncio.timeout(DEADLINE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:-2])
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
            return Answer(int(head[0].split(" ")[1]), headers, body)

    async def closed(self) -> bool:
        """Tell whether the server closes the connection with nothing more to say."""
        async with asyncio.timeout(DEADLINE):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


class Gateway:
    """The publish side alone, behind uvicorn, with a log in memory."""

    def __init__(self, limits: SmallLimits) -> None:
        self.log = MemoryLog()
        self.intake = Intake(self.log, Dedup(300, 1_000), limits)
        self.app = Starlette(routes=routes(self.intake, limits), exception_handlers=EXCEPTION_HANDLERS)
        self.port = 0
        self._clients: list[Client] = []

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        # uvicorn's protocol without its `Server`, whose ten ticks a second would be most of a test's time.
        config = uvicorn.Config(self.app, log_config=None)
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: HttpToolsProtocol(config, state, {}), "127.0.0.1", 0
        )
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            for client in self._clients:
                await client.close()
            server.close()
            await until(lambda: not state.connections and not state.tasks)

    async def client(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self._clients.append(client)
        return client

    async def post(
        self, path: str, body: bytes | object, content_type: str | None = "application/json", **headers: str
    ) -> Answer:
        """Publish over a connection of its own."""
        client = await self.client()
        client.request(
            path, body if isinstance(body, bytes) else json.dumps(body).encode(), content_type, **headers
        )
        return await client.answer()

    @property
    def seen(self) -> list[dict[str, Any]]:
        """The events in the log as clients see them."""
        return [json.loads(b'{"cursor":"x",%b}' % event.body) for event in self.log.events]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110  # what is waited for knows nothing of the test
            await asyncio.sleep(0.005)


def is_problem(answer: Answer, status: int) -> bool:
    """Tell whether an answer is the problem of a status, in the form that problems have."""
    assert answer.headers["content-type"] == "application/problem+json", answer
    assert answer.json["status"] == answer.status
    assert answer.json["title"]
    assert answer.json["detail"]
    return answer.status == status


@pytest.fixture
def limits() -> SmallLimits:
    return SmallLimits()


@pytest.fixture
async def gateway(limits: SmallLimits, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Gateway]:
    gateway = Gateway(limits)
    async with gateway.serve():
        yield gateway
    # Whatever happened, no byte stays taken, and nothing went wrong behind the client's back.
    assert gateway.intake.budget.used == 0
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


async def test_a_single_event_is_accepted(gateway: Gateway) -> None:
    """One JSON object is answered 202, with the cursor of the event."""
    answer = await gateway.post("/v1/events", {"topic": "orders.42", "data": {"a": [1, None]}})
    cursor = Cursor(gateway.log.epoch, 1, gateway.log.head_tag)
    assert answer.status == 202
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {"accepted": 1, "duplicates": 0, "cursor": str(cursor)}
    assert gateway.seen[0]["data"] == {"a": [1, None]}


async def test_arrays_and_lines_are_accepted(gateway: Gateway) -> None:
    """Several events in one call are stored in their order and counted, duplicates apart."""
    answer = await gateway.post("/v1/events", [{"topic": "a", "id": "x"}, {"topic": "b", "id": "x"}])
    assert (answer.json["accepted"], answer.json["duplicates"]) == (1, 1)
    answer = await gateway.post("/v1/events", b'{"topic":"c"}\n{"topic":"d"}\n', "application/x-ndjson")
    assert answer.json["accepted"] == 2
    assert [event["topic"] for event in gateway.seen] == ["a", "c", "d"]
    assert (await gateway.post("/v1/events", [])).json["accepted"] == 0


async def test_curl_needs_no_options(gateway: Gateway) -> None:
    """`curl -d` to a topic publishes JSON as JSON and anything else as text."""
    form = "application/x-www-form-urlencoded"
    for body in (b"hello", b'{"a":1}'):
        assert (
            await gateway.post("/v1/topics/orders.42?type=t&id=%20" + body[:1].hex(), body, form)
        ).status == 202
    assert [event["data"] for event in gateway.seen] == ["hello", {"a": 1}]
    assert [event["type"] for event in gateway.seen] == ["t", "t"]


async def test_a_topic_in_the_path_is_percent_decoded(gateway: Gateway) -> None:
    """Any topic fits into the path, also one with a slash or beyond ASCII."""
    for path in ("/v1/topics/a%20b.c%2Fd", "/v1/topics/gr%C3%BC%C3%9Fe"):
        assert (await gateway.post(path, b"1")).status == 202
    assert [event["topic"] for event in gateway.seen] == ["a b.c/d", "grüße"]


async def test_cloud_events_are_accepted(gateway: Gateway) -> None:
    """CloudEvents come in structured mode, as a batch, and in binary mode, on both paths."""
    cloud = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t.a"}
    binary = {"ce_specversion": "1.0", "ce_source": "/s", "ce_type": "t.b"}
    answers = [
        await gateway.post("/v1/events", cloud, "application/cloudevents+json; charset=utf-8"),
        await gateway.post("/v1/events", [{**cloud, "id": "2"}], "application/cloudevents-batch+json"),
        await gateway.post("/v1/events", b"x", "text/plain", ce_id="3", **binary),
        await gateway.post("/v1/topics/x", b"x", "text/plain", ce_id="4", **binary),
        await gateway.post("/v1/topics/y", {**cloud, "id": "5"}, "application/cloudevents+json"),
    ]
    assert [answer.status for answer in answers] == [202] * 5
    assert [event["topic"] for event in gateway.seen] == ["t.a", "t.a", "t.b", "x", "y"]
    assert [event["id"] for event in gateway.seen] == [f"/s {number}" for number in range(1, 6)]


@pytest.mark.parametrize(
    ("path", "body", "content_type", "status"),
    [
        ("/v1/events", b"hello", "application/json", 400),
        ("/v1/events", b"", None, 400),
        ("/v1/events", b'{"topic":"a","data":"\xff"}', "application/json", 400),
        ("/v1/events", b'{"topic":1}', "application/json", 422),
        ("/v1/events", b'{"topic":"a","extra":1}', "application/json", 422),
        ("/v1/events", b'{"topic":"a"}', "text/plain", 415),
        ("/v1/events", b"[" + b",".join([b'{"topic":"a"}'] * 101) + b"]", "application/json", 413),
        ("/v1/events", b'{"topic":"a","data":"%b"}' % (b"x" * 1_000), "application/json", 413),
        ("/v1/topics/a.%23", b"1", None, 422),
        ("/v1/topics/a..b", b"1", None, 422),
        ("/v1/topics/" + "a" * 256, b"1", None, 422),
        ("/v1/topics/%FF", b"1", None, 422),
        ("/v1/topics/a%0Ab", b"1", None, 422),
        ("/v1/topics/a%0A", b"1", None, 422),
        ("/v1/topics/a%00", b"1", None, 422),
        ("/v1/topics/", b"1", None, 422),
        ("/v1/topics/a?colour=red", b"1", None, 422),
        ("/v1/topics/a", b"\xff", "text/plain", 400),
    ],
)
async def test_bad_input_changes_nothing(
    gateway: Gateway, path: str, body: bytes, content_type: str | None, status: int
) -> None:
    """Each mistake gets its status as a problem, nothing is stored, and the connection stays usable."""
    client = await gateway.client()
    client.request(path, body, content_type)
    answer = await client.answer()
    assert is_problem(answer, status)
    assert gateway.log.events == []
    client.request("/v1/events", b'{"topic":"a"}')
    assert (await client.answer()).status == 202


@pytest.mark.parametrize(
    ("event", "status", "pointer"),
    [
        ({"topic": "a.*"}, 422, "/1/topic"),
        ({"topic": "a", "extra": 1}, 422, None),
        ({"topic": "a", "data": "x" * 1_000}, 413, None),
    ],
)
async def test_one_bad_event_refuses_the_whole_call(
    gateway: Gateway, event: object, status: int, pointer: str | None
) -> None:
    """The problem names the bad event's index, and its good neighbours are not stored either."""
    answer = await gateway.post("/v1/events", [{"topic": "a"}, event, {"topic": "b"}])
    assert is_problem(answer, status)
    assert (answer.json["index"], answer.json.get("pointer")) == (1, pointer)
    assert gateway.log.events == []


async def test_a_compressed_body_is_unsupported(gateway: Gateway) -> None:
    """Content-Encoding is refused with what would do."""
    answer = await gateway.post("/v1/events", b"\x1f\x8b", content_encoding="gzip")
    assert is_problem(answer, 415)
    assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/events", "/v1/topics/a"])
async def test_a_wrong_method_is_told_the_right_one(gateway: Gateway, method: str, path: str) -> None:
    """Only POST publishes."""
    client = await gateway.client()
    client.request(path, b"", None, method)
    answer = await client.answer()
    assert is_problem(answer, 405)
    assert answer.headers["allow"] == "post"  # the test's client lowers headers


async def test_a_body_over_the_limit_is_refused_before_it_is_read(gateway: Gateway) -> None:
    """The length alone is enough for a 413; the client need not have sent a byte."""
    client = await gateway.client()
    client.send(b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10001\r\n\r\n")
    answer = await client.answer()
    assert is_problem(answer, 413)
    assert answer.headers["connection"] == "close"
    assert await client.closed()


async def test_a_client_that_sends_on_can_read_why_it_was_refused(gateway: Gateway) -> None:
    """A client that writes first and reads later finds the answer, not a connection reset."""
    client = await gateway.client()
    client.request("/v1/events", b"x" * 3_000_000)
    async with asyncio.timeout(DEADLINE):
        await client.writer.drain()
    assert is_problem(await client.answer(), 413)
    assert await client.closed()


async def test_a_chunked_body_is_counted_while_it_is_read(gateway: Gateway) -> None:
    """Without a length the limit holds as well, and the endless body is cut off."""
    client = await gateway.client()
    client.send(b"POST /v1/topics/a HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(11):
        client.send(b"3e8\r\n" + b"x" * 1_000 + b"\r\n")
    answer = await client.answer()
    assert is_problem(answer, 413)
    assert await client.closed()
    assert gateway.log.events == []


async def test_a_body_in_pieces_is_one_body(gateway: Gateway) -> None:
    """How a body is cut into chunks and packets makes no difference."""
    client = await gateway.client()
    client.send(b"POST /v1/topics/a HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
    for piece in (b"1\r\n[\r\n", b"3\r\n1,2\r\n", b"1\r", b"\n]\r\n"):
        client.send(piece)
        await client.writer.drain()
        await asyncio.sleep(0.01)  # no waiting for anything: only so that the pieces arrive apart
    client.send(b"0\r\n\r\n")
    assert (await client.answer()).status == 202
    assert gateway.seen[0]["data"] == [1, 2]


async def test_expect_100_continue(gateway: Gateway) -> None:
    """A client that asks first is told to go on, or that its body would be too long, before it sends it."""
    client = await gateway.client()
    head = (
        b"POST /v1/topics/a HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"
    )
    client.send(head % 2)
    assert (await client.answer()).status == 100
    client.send(b"42")
    assert (await client.answer()).status == 202
    client.send(head % 1_000_000)
    assert is_problem(await client.answer(), 413)
    assert await client.closed()


async def test_pipelined_publishes_are_answered_in_order(gateway: Gateway) -> None:
    """Requests sent without waiting are answered one by one."""
    client = await gateway.client()
    for number in range(5):
        client.request(f"/v1/topics/t{number}", b"1")
    answers = [await client.answer() for _ in range(5)]
    assert [Cursor.parse(answer.json["cursor"]).position for answer in answers] == [1, 2, 3, 4, 5]


async def test_a_client_that_goes_away_in_the_middle_leaves_nothing_behind(gateway: Gateway) -> None:
    """Half a request changes nothing, and its bytes are given back to the budget."""
    client = await gateway.client()
    client.send(b"POST /v1/topics/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nhalf")
    await until(lambda: gateway.intake.budget.used == 4)
    await client.close()
    await until(lambda: gateway.intake.budget.used == 0)
    assert (await gateway.post("/v1/topics/b", b"1")).status == 202
    assert [event["topic"] for event in gateway.seen] == ["b"]


@pytest.mark.parametrize("limits", [SmallLimits(body_timeout=0.2)])
async def test_a_body_that_stalls_times_out(gateway: Gateway) -> None:
    """A request that never ends is answered 408 and closed."""
    client = await gateway.client()
    client.send(b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nhalf")
    answer = await client.answer()
    assert is_problem(answer, 408)
    assert await client.closed()


@pytest.mark.parametrize("limits", [SmallLimits(body_timeout=0.2)])
async def test_a_body_that_trickles_times_out(gateway: Gateway) -> None:
    """A byte now and then does not keep a request alive."""
    client = await gateway.client()
    client.send(b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000\r\n\r\n")
    answering = asyncio.create_task(client.answer())
    for _ in range(9_000):
        if answering.done():
            break
        client.send(b" ")
        await asyncio.sleep(0.01)
    assert is_problem(await answering, 408)


async def test_bodies_in_flight_are_bounded(gateway: Gateway) -> None:
    """Beyond the budget of bytes for all bodies together it is 503 with Retry-After, and only then."""
    gateway.intake.budget.max_bytes = 1_000
    client = await gateway.client()
    client.send(b"POST /v1/topics/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n" + b"1" * 999)
    await until(lambda: gateway.intake.budget.used == 999)
    answer = await gateway.post("/v1/topics/b", b"22")
    assert is_problem(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1
    client.send(b"1")
    assert (await client.answer()).status == 413  # as an event it is over the limit of one
    assert (await gateway.post("/v1/topics/b", b"22")).status == 202


async def test_a_log_that_cannot_store_is_503(gateway: Gateway) -> None:
    """The producer is told why and when to come back, and may come back on the same connection."""
    client = await gateway.client()
    gateway.log.fail(LogUnavailable("the disk is full", 7))
    client.request("/v1/events", b'{"topic":"a","id":"x"}')
    answer = await client.answer()
    assert is_problem(answer, 503)
    assert (answer.json["detail"], answer.headers["retry-after"]) == ("the disk is full", "7")
    gateway.log.fail(None)
    client.request("/v1/events", b'{"topic":"a","id":"x"}')
    assert (await client.answer()).json["accepted"] == 1


async def test_no_answer_before_the_commit(gateway: Gateway) -> None:
    """202 means durable: as long as the log has not committed, the client waits."""
    gateway.log.hold()
    client = await gateway.client()
    client.request("/v1/topics/a", b"1")
    await until(lambda: gateway.intake.budget.used == 1)
    answering = asyncio.create_task(client.answer())
    other = await gateway.post("/v1/events", [])
    assert other.status == 202
    assert not answering.done()
    gateway.log.release()
    assert (await answering).status == 202
