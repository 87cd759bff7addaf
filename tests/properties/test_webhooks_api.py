"""Whatever is asked of the API of webhooks, the answer is one that it may give, and never a mistake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from gateway.dedup import Dedup
from gateway.intake import Intake
from gateway.problems import EXCEPTION_HANDLERS
from gateway.settings import Settings
from gateway.webhooks_api import WebhooksApi
from tests.support.limits import SmallLimits
from tests.support.memory_log import MemoryLog
from tests.support.receiver import FixedNames
from tests.support.webhook_api import URL, StandIn
from webhooks.description import Description
from webhooks.guard import Guard
from webhooks.sender import Sender
from webhooks.sqlite_store import SqliteStore
from webhooks.stored import delivery_name, endpoint_name
from webhooks.trust import client_context

SETTINGS: Final = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["v1", "v1a", "fifo", "raw", "a.#", "*", URL, "http://[::1]/", "whsec_", "earliest"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["$gt", "$in", "$and", "$not", "a"]) | st.text(max_size=5), inner, max_size=4
        )
    ),
    max_leaves=12,
)
names = st.sampled_from(
    [*Description.__struct_fields__, "secret", "scheme", "overlap", "held", "since", "until", "data", "type"]
) | st.text(max_size=8)
members = st.dictionaries(names, values, max_size=5)
bodies = members.map(lambda each: json.dumps(each).encode()) | values.map(
    lambda each: json.dumps(each).encode()
)
bodies |= st.binary(max_size=40)


class World:
    """An API with one webhook, asked without sockets."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        runner.run(self._open())

    async def _open(self) -> None:
        self.store = SqliteStore(None)
        await self.store.start()
        self._sender = Sender(Guard(), FixedNames(), client_context())
        await self._sender.__aenter__()
        webhooks = StandIn(self.store, Guard(), self._sender)
        intake = Intake(MemoryLog(), Dedup(300, 1_000), SmallLimits(max_body_bytes=1_000_000))
        api = WebhooksApi(webhooks, intake, Settings(data="memory:"))
        app = Starlette(routes=api.routes(), exception_handlers=EXCEPTION_HANDLERS)
        transport = httpx.ASGITransport(app)  # what a handler raises is raised here
        self._http = httpx.AsyncClient(transport=transport, base_url="http://gateway")
        answer = await self._http.post("/v1/webhooks", json={"url": URL, "topics": ["a"]})
        self.name = answer.json()["id"]

    def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        return self._runner.run(self._http.request(method, path, **given))

    async def _close(self) -> None:
        await self._http.aclose()
        await self._sender.__aexit__(None, None, None)
        await self.store.close()

    def close(self) -> None:
        self._runner.run(self._close())


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        one = World(runner)
        yield one
        one.close()


def check(answer: httpx.Response, *good: int) -> None:
    """An answer is a good one, or a refusal of the caller."""
    assert answer.status_code in (*good, 400, 404, 409, 412, 413, 415, 422), answer.text
    if answer.status_code >= 400:
        problem = answer.json()
        assert problem["status"] == answer.status_code
        assert problem["detail"]


@SETTINGS
@given(bodies)
def test_any_body_for_a_new_webhook(world: World, body: bytes) -> None:
    answer = world.ask("POST", "/v1/webhooks", content=body)
    check(answer, 201)
    if answer.status_code == 201:
        shown = answer.json()
        again = world.ask("GET", f"/v1/webhooks/{shown['id']}").json()
        shown.pop("secret", None)
        assert {**shown, "pending": 0} == again


@SETTINGS
@given(members)
def test_any_members_of_a_new_webhook(world: World, members: dict[str, Any]) -> None:
    """Beside those that it must have."""
    check(world.ask("POST", "/v1/webhooks", json={**members, "url": URL, "topics": ["a"]}), 201)


@SETTINGS
@given(bodies, st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12) | st.none())
def test_any_change(world: World, body: bytes, tag: str | None) -> None:
    """A webhook is changed, or is as before."""
    path = f"/v1/webhooks/{world.name}"
    before = world.ask("GET", path).json()
    headers = {} if tag is None else {"if-match": tag}
    answer = world.ask("PATCH", path, content=body, headers=headers)
    check(answer, 200)
    if answer.status_code != 200:
        assert world.ask("GET", path).json() == before


@SETTINGS
@given(
    st.sampled_from(
        [
            "/secret:rotate",
            "/test",
            "/recover",
            ":pause",
            ":resume",
            ":enable",
            ":frob",
            "/jobs",
            "/deliveries",
        ]
    ),
    bodies,
)
def test_any_verb(world: World, verb: str, body: bytes) -> None:
    answer = world.ask("POST", f"/v1/webhooks/{world.name}{verb}", content=body)
    check(answer, 200, 202, 405)


@SETTINGS
@given(
    st.sampled_from(
        ["/v1/webhooks", "/v1/webhooks/{}/deliveries", "/v1/webhooks/{}/jobs", "/.well-known/jwks.json"]
    ),
    st.dictionaries(
        st.sampled_from(["limit", "page", "state"]) | st.text(max_size=5),
        st.text(max_size=20) | st.sampled_from(["1", "pending", "held", "failed"]),
        max_size=3,
    ),
)
def test_any_query(world: World, path: str, query: dict[str, str]) -> None:
    check(world.ask("GET", path.format(world.name), params=query), 200)


@SETTINGS
@given(st.integers(0, 2**40 - 1), st.integers(0, 2**60 - 1))
def test_any_name(world: World, endpoint: int, message: int) -> None:
    """Of all names that could be, hardly one is."""
    for path in (
        f"/v1/deliveries/{delivery_name(endpoint, message)}",
        f"/v1/deliveries/{delivery_name(endpoint, message)}/attempts",
        f"/v1/webhooks/{endpoint_name(endpoint)}",
    ):
        check(world.ask("GET", path), 200)
    check(world.ask("POST", f"/v1/deliveries/{delivery_name(endpoint, message)}:retry"), 202)
