"""The API of webhooks behind a real server and a real store, without anybody who sends."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from fanout.event import tag_of
from gateway.auth.gate import Gate
from gateway.auth.origins import Origins
from gateway.dedup import Dedup
from gateway.intake import Intake
from gateway.log import StoreUnavailable
from gateway.problems import EXCEPTION_HANDLERS
from gateway.settings import Settings
from gateway.webhooks_api import WebhooksApi
from tests.support.limits import SmallLimits
from tests.support.memory_log import MemoryLog
from tests.support.receiver import FixedNames
from webhooks import records
from webhooks.asking import Operation
from webhooks.consent import agreed
from webhooks.description import Description
from webhooks.guard import Guard, parse_networks
from webhooks.keys import Keys
from webhooks.records import Attempt, Endpoint, Message, Result, Standing, Status, message_number
from webhooks.sender import Sender
from webhooks.service import Webhooks
from webhooks.sqlite_store import SqliteStore
from webhooks.store import Store
from webhooks.stored import delivery_name, endpoint_id, settings
from webhooks.trust import client_context

DEADLINE: Final = 20.0
URL: Final = "https://example.com/hook"
EPOCH: Final = "abcdef"


class StandIn(Webhooks):
    """
    Webhooks of which only the store is real.

    Attributes:
        looks: how often it was told to look.
    """

    def __init__(self, store: Store, guard: Guard, sender: Sender) -> None:
        self.sender = sender
        self.store = store
        self.guard = guard
        self.looks = 0

    async def agreed(self, description: Description) -> Description:
        return await agreed(description, self.sender)

    def look(self) -> None:
        self.looks += 1

    async def add(self, description: Description, keys: Keys) -> Endpoint:
        return await self.store.add_endpoint(settings(description, keys, 0))


class FailingStore(SqliteStore):
    """
    A store that can be made to fail.

    Attributes:
        reads, writes: how many more of each succeed; None is all.
    """

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(path)
        self.reads: int | None = None
        self.writes: int | None = None

    async def _read(self, operation: Operation[Any]) -> Any:
        if self.reads is not None:
            self.reads -= 1
            if self.reads < 0:
                raise StoreUnavailable("the disk is full", 2)
        return await super()._read(operation)

    async def _write(self, operation: Operation[Any]) -> Any:
        if self.writes is not None:
            self.writes -= 1
            if self.writes < 0:
                raise StoreUnavailable("the disk is full", 2)
        return await super()._write(operation)


@dataclass
class Api:
    """
    A running API.

    Attributes:
        http: a client whose paths are those of the API.
        webhooks: what it looks into.
        port: where it listens.
    """

    http: httpx.AsyncClient
    webhooks: StandIn
    port: int

    @property
    def store(self) -> Store:
        return self.webhooks.store

    async def create(self, **members: Any) -> dict[str, Any]:
        """Make a webhook and return what the answer says of it."""
        answer = await self.http.post("/v1/webhooks", json={"url": URL, "topics": ["a.#"], **members})
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    async def show(self, name: str) -> dict[str, Any]:
        """Return what is said of a webhook now."""
        answer = await self.http.get(f"/v1/webhooks/{name}")
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    async def close(self, name: str, status: Status) -> None:
        """Close an endpoint, as whoever sends does by himself."""
        owner = await self.store.join(60_000)
        await self.store.hold(owner, range(records.BUCKETS), 60_000)
        await self.store.settle(owner, [], closed={id_of(name): status})
        await self.store.leave(owner)

    async def deliver(
        self, name: str, count: int, *, first: int = 1, time_ms: int | None = None, expires: int = 0
    ) -> list[str]:
        """Make deliveries of the next events of the log for a webhook; return their names."""
        endpoint, log = id_of(name), await self.store.log_number(EPOCH)
        at = int(time.time() * 1000) if time_ms is None else time_ms
        positions = range(first, first + count)
        messages = [
            Message(message_number(log, position), "a.b", f"e{position}", "t", at + position, expires, b"")
            for position in positions
        ]
        owner = await self.store.join(60_000)
        places = await self.store.hold(owner, range(records.BUCKETS), 60_000)
        bucket = records.bucket_of(endpoint)
        last = message_number(log, positions[-1])
        due = [(endpoint, message.number, message.time) for message in messages]
        await self.store.dispatch(owner, [bucket], places[bucket], last, messages, due)
        await self.store.leave(owner)
        return [delivery_name(endpoint, message.number) for message in messages]

    async def settle(self, name: str, position: int, standing: Standing, *attempts: Attempt) -> None:
        """Write down what became of a delivery of `deliver`."""
        endpoint, log = id_of(name), await self.store.log_number(EPOCH)
        message, now = message_number(log, position), int(time.time() * 1000)
        owner = await self.store.join(60_000)
        await self.store.hold(owner, range(records.BUCKETS), 60_000)
        for each in attempts or (None,):
            result = Result(endpoint, message, standing, now, len(attempts), each)
            await self.store.settle(owner, [result])
        await self.store.leave(owner)

    async def finish_jobs(self, limit: int = 1000) -> None:
        """Do what jobs there are, as whoever sends does."""
        owner = await self.store.join(60_000)
        await self.store.hold(owner, range(records.BUCKETS), 60_000)
        while jobs := await self.store.list_open_jobs(range(records.BUCKETS)):
            for job in jobs:
                await self.store.step_job(owner, job, limit)
        await self.store.leave(owner)


def id_of(name: str) -> int:
    """Return the id of the endpoint with a name."""
    id = endpoint_id(name)
    assert id is not None
    return id


def webhook_id(position: int) -> str:
    """Return the `webhook-id` of an event of `Api.deliver`."""
    return f"msg_{EPOCH}-{position}-{tag_of(f'e{position}'):04x}"


@asynccontextmanager
async def serving(store: Store, *, allow: str = "") -> AsyncIterator[Api]:
    """Serve the API of a store that is started."""
    guard = Guard(allow=parse_networks(allow) if allow else ())
    async with AsyncExitStack() as stack:
        sender = await stack.enter_async_context(Sender(guard, FixedNames(), client_context()))
        webhooks = StandIn(store, guard, sender)
        intake = Intake(MemoryLog(), Dedup(300, 1_000), SmallLimits(max_body_bytes=1_000_000))
        api = WebhooksApi(webhooks, intake, Settings(data="memory:"))
        inner = Starlette(routes=api.routes(), exception_handlers=EXCEPTION_HANDLERS)
        app = Gate(inner, None, Origins((), None), Counter())
        config = uvicorn.Config(app, log_config=None)
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: HttpToolsProtocol(config, state, {}), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, timeout=DEADLINE, trust_env=False) as http:
            yield Api(http, webhooks, port)
        server.close()
        deadline = asyncio.get_running_loop().time() + DEADLINE
        while state.connections or state.tasks:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.002)


def problem(answer: httpx.Response, status: int, said: str = "") -> dict[str, Any]:
    """Return the problem that an answer is, which must have a status and say something."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = json.loads(answer.content)
    assert found["status"] == status
    assert said in found["detail"]
    return found
