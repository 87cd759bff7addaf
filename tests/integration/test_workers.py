"""Several workers on one port and one broker: one gateway to whoever uses it, and to whoever runs it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.clients import (
    TRANSPORTS,
    Address,
    Tcp,
    Topics,
    exchange,
    fetch,
    open_subscriber,
    publish,
    request_bytes,
    until,
)
from tests.support.host import address_of
from tests.support.postgres import PASSWORD, Postgres
from tests.support.rabbitmq import Broker
from tests.support.server import clean_environment, free_port
from tests.support.workers import Impatient, WorkersProcess, ask, ask_any, pid_of, pids_of, runs

pytestmark = pytest.mark.integration

WORKERS = 3
DEADLINE = 60.0
ASKED = 12
"""How often something is asked that any worker is to answer alike."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as node:
        yield node


@pytest.fixture(scope="module")
def process(broker: Broker) -> Iterator[WorkersProcess]:
    """A gateway that tests leave as it was."""
    with WorkersProcess(backbone=broker.url, workers=WORKERS, stream="shared") as gateway:
        yield gateway


@pytest.fixture
def address(process: WorkersProcess) -> Address:
    return address_of(process)


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def fresh(broker: Broker) -> Iterator[Callable[..., WorkersProcess]]:
    """Make gateways of two workers that a test may ruin."""
    with contextlib.ExitStack() as stack:

        def make(kind: type[WorkersProcess] = WorkersProcess, **settings: Any) -> WorkersProcess:
            given = {"backbone": broker.url, "workers": 2, **settings}
            gateway = kind(**given)
            stack.push(gateway)
            return gateway

        yield make


async def within(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds that asks nobody: processes come and go meanwhile, which takes a while."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {DEADLINE} s: {what}"
        await asyncio.sleep(0.02)


async def metrics_of(address: Address) -> dict[tuple[str, str], float]:
    """Return the metrics of all workers, as one of them shows them."""
    return read_metrics(await ask(address, "/metrics"))


def read_metrics(text: str) -> dict[tuple[str, str], float]:
    """Return the sum of each sample over its other labels, by name and worker."""
    found: dict[tuple[str, str], float] = {}
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "a family is there twice"
    for sample in (sample for family in families for sample in family.samples):
        key = sample.name, sample.labels["worker"]
        found[key] = found.get(key, 0) + sample.value
    return found


# --- one gateway -------------------------------------------------------------------------------------------


async def test_connections_are_spread_and_seen_as_one(address: Address, topics: Topics) -> None:
    """All workers get connections; whichever is asked knows them all, and each by its name."""
    async with contextlib.AsyncExitStack() as stack:
        names = []
        for _ in range(30):
            client = await stack.enter_async_context(
                open_subscriber(address, "ndjson", topics(), welcomed=False)
            )
            names.append((await client.control("welcome"))["connection"])
        for _ in range(ASKED):
            listed = await ask(address, "/v1/connections?limit=1000")
            assert listed["total"] == 30
            assert listed["missing"] == []
            assert sorted(each["connection"] for each in listed["connections"]) == sorted(names)
            assert {each["worker"] for each in listed["connections"]} == set(range(WORKERS))
        assert len((await ask(address, "/v1/connections?limit=7"))["connections"]) == 7
        for name in names[:ASKED]:
            seen = await ask(address, f"/v1/connections/{name}")
            assert (seen["connection"], seen["topics"]) == (name, [topics()])
        patterns = (await ask(address, "/v1/topics?limit=1000"))["subscriptions"]
        assert {"pattern": topics(), "connections": 30} in patterns


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_one_worker_takes_all_deliver(address: Address, topics: Topics, transport: str) -> None:
    """Events published through any worker reach the clients of all, in one order and at the same cursors."""
    async with contextlib.AsyncExitStack() as stack:
        crowd = [
            await stack.enter_async_context(open_subscriber(address, transport, topics())) for _ in range(8)
        ]
        for number in range(20):
            await publish(address, {"topic": topics(), "data": number})
        received = [await client.events(20) for client in crowd]
    assert [each["data"] for each in received[0]] == list(range(20))
    assert all(each == received[0] for each in received)


async def test_metrics_are_those_of_all(address: Address, topics: Topics) -> None:
    """Whichever worker is asked shows every sample of every worker, under its number."""
    before = await metrics_of(address)
    async with contextlib.AsyncExitStack() as stack:
        crowd = [
            await stack.enter_async_context(open_subscriber(address, "sse", topics())) for _ in range(12)
        ]
        await publish(address, *({"topic": topics(), "data": number} for number in range(5)))
        for client in crowd:
            await client.events(5)
        for _ in range(ASKED):
            now = await metrics_of(address)
            gained = {key: value - before.get(key, 0) for key, value in now.items()}
            for name, total in (("sluice_deliveries_total", 60), ("sluice_connections_opened_total", 12)):
                assert sum(gained[name, str(worker)] for worker in range(WORKERS)) == total
            assert sum(now.get(("sluice_connections", str(worker)), 0) for worker in range(WORKERS)) == 12
            assert [now["sluice_worker_up", str(worker)] for worker in range(WORKERS)] == [1] * WORKERS
            assert [now["sluice_worker_restarts_total", str(worker)] for worker in range(WORKERS)] == [0] * 3


async def test_an_event_is_counted_once(address: Address, topics: Topics) -> None:
    """All workers hold the same log: the number of a topic's events is not that of their copies."""
    cursor = (await publish(address, *({"topic": topics(), "data": number} for number in range(7))))["cursor"]
    position = int(cursor.split("-")[1])

    async def read() -> bool:
        samples = await metrics_of(address)
        return min(samples["sluice_log_head", str(worker)] for worker in range(WORKERS)) >= position

    await until(read, "every worker has read the events")
    for _ in range(ASKED):
        assert {"topic": topics(), "events": 7} in (await ask(address, "/v1/topics?limit=1000"))["topics"]


async def test_who_is_furthest_behind_comes_first(address: Address, topics: Topics) -> None:
    """A client that does not read leads the list, whichever worker it is at and whichever is asked."""
    async with (
        open_subscriber(address, "ndjson", topics()),
        open_subscriber(address, "ndjson", topics()),
        open_subscriber(address, "ndjson", topics()),
        open_subscriber(address, "ndjson", topics(), receive_buffer=4096, welcomed=False) as slow,
    ):
        name = (await slow.control("welcome"))["connection"]
        slow.tcp.stall()
        for _ in range(4):
            await publish(address, *({"topic": topics(), "data": "x" * 100_000} for _ in range(10)))

        async def behind() -> bool:
            seen = await ask(address, f"/v1/connections/{name}")
            return bool(seen["state"] == "paused" and seen["behind"] > 0)

        await until(behind, "the slow client is behind")
        for _ in range(ASKED):
            listed = await ask(address, "/v1/connections?limit=1")
            assert [each["connection"] for each in listed["connections"]] == [name]
        slow.tcp.go_on()
        await slow.events(40)


async def test_a_cursor_is_remembered_by_all(address: Address, topics: Topics) -> None:
    """What a consumer acknowledged at one worker, it goes on behind at any."""
    name = topics("consumer")
    async with open_subscriber(address, "websocket", topics(), consumer=name) as client:
        await publish(address, *({"topic": topics(), "data": number} for number in range(10)))
        cursors = [each["cursor"] for each in await client.events(10)]
        for turn in range(9):
            assert (await client.ask({"op": "ack", "cursor": cursors[turn]}))["control"] == "acked"
            for _ in range(WORKERS):
                async with open_subscriber(address, "sse", topics(), consumer=name) as again:
                    assert (await again.next())["data"] == turn + 1


@pytest.mark.parametrize("limit", ["0", "1001", "x"])
@pytest.mark.parametrize("path", ["/v1/connections", "/v1/topics"])
async def test_bad_limits_are_refused_here_too(address: Address, path: str, limit: str) -> None:
    """A listing of all workers shows 1 to 1,000 at a time."""
    response = await fetch(address, path, [("limit", limit)])
    assert response.status == 422
    assert "1000" in response.problem["detail"]


@pytest.mark.parametrize("name", ["nobody", "%00", "x" * 5000, "%F0%9F%98%80", "a%2Fb", "a%20HTTP%2F1.0"])
async def test_a_connection_that_nobody_has(address: Address, name: str) -> None:
    """A name that no worker knows is 404, whatever it looks like."""
    response = await fetch(address, f"/v1/connections/{name}")
    assert response.status == 404
    assert response.problem["detail"]


async def test_waiting_polls_have_names_of_their_own(address: Address, topics: Topics) -> None:
    """Long polls that wait at several workers can be told apart."""
    query = [("topic", topics()), ("wait", "30")]
    polls = [asyncio.ensure_future(fetch(address, "/v1/events", query)) for _ in range(12)]

    async def all_wait() -> bool:
        patterns = (await ask(address, "/v1/topics?limit=1000"))["subscriptions"]
        return {"pattern": topics(), "connections": 12} in patterns

    await until(all_wait, "twelve polls wait")
    listed = (await ask(address, "/v1/connections?limit=1000"))["connections"]
    names = [each["connection"] for each in listed if each["topics"] == [topics()]]
    assert len(set(names)) == 12
    assert all(name.startswith("poll-") for name in names)
    await publish(address, {"topic": topics(), "data": 1})
    for response in await asyncio.gather(*polls):
        assert len(response.json["events"]) == 1


async def test_the_log_says_which_worker(process: WorkersProcess) -> None:
    """Every line that a worker logs has its number."""
    lines = [line for line in process.log_text().splitlines() if "backbone.began" in line]
    assert sorted(line.rpartition(" worker=")[2] for line in lines) == [str(each) for each in range(WORKERS)]


async def test_it_says_once_where_it_serves(process: WorkersProcess) -> None:
    """There is one line with the address, however many workers there are."""
    said = [line for line in process.log_text().splitlines() if line.startswith("sluice: ")]
    assert said == [f"sluice: serving on {process.url}, data in {process.data}, {WORKERS} workers"]


# --- a worker falls ----------------------------------------------------------------------------------------


async def test_a_killed_worker_is_not_missed_and_comes_back(fresh: Callable[..., WorkersProcess]) -> None:
    """While one is away the other gets every connection; it is shown as missing, and counted as restarted."""
    with fresh() as gateway:
        address = address_of(gateway)
        victim = pid_of(gateway, 1)
        os.kill(victim, signal.SIGKILL)
        await within(lambda: "worker.fell: signal SIGKILL" in gateway.log_text(), "the end is noticed")
        missed = await metrics_of(address)
        assert (missed["sluice_worker_up", "0"], missed["sluice_worker_up", "1"]) == (1, 0)
        while len(pids_of(gateway)) < 2 or (await metrics_of(address))["sluice_worker_up", "1"] == 0:
            assert (await publish(address, {"topic": "t", "data": 1}))["accepted"] == 1
        assert pid_of(gateway, 1) != victim

        async def counted() -> bool:
            return (await metrics_of(address)).get(("sluice_worker_restarts_total", "1")) == 1

        await until(counted, "the restart is counted")
        back = f"worker.up worker=1 pid={pid_of(gateway, 1)}"
        await within(lambda: back in gateway.log_text(), "the log says that it is back")
        (line,) = [line for line in gateway.log_text().splitlines() if "worker.fell" in line]
        assert f"worker=1 pid={victim}" in line
        assert "restart_in=" in line
        assert await asyncio.to_thread(gateway.stop) == 0


async def test_a_worker_that_ends_unasked_is_replaced(fresh: Callable[..., WorkersProcess]) -> None:
    """A worker that somebody sends away drains, and another takes its place."""
    with fresh() as gateway:
        address = address_of(gateway)
        victim = pid_of(gateway, 0)
        async with contextlib.AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(open_subscriber(address, "sse", "t")) for _ in range(10)]
            os.kill(victim, signal.SIGTERM)
            await within(lambda: victim not in pids_of(gateway), "it ends")
            advised = [client for client in crowd if client.retry]
        await within(lambda: len(pids_of(gateway)) == 2, "another is there")
        assert "worker.fell: exit code 0" in gateway.log_text()
        assert len(advised) <= 10


async def test_a_worker_that_hangs_is_shown_and_killed(fresh: Callable[..., WorkersProcess]) -> None:
    """Who does not answer within a second is missing from what is shown; who hangs for long is replaced."""
    with fresh(Impatient, workers=3) as gateway:
        address = address_of(gateway)
        victim = pid_of(gateway, 2)
        os.kill(victim, signal.SIGSTOP)
        listed = (await ask_any(address, "/v1/connections")).json
        assert listed == {"total": 0, "connections": [], "missing": [2]}
        await within(lambda: victim not in pids_of(gateway), "it is killed")
        assert "worker.hangs worker=2" in gateway.log_text()

        async def back() -> bool:
            # Whoever was with the one that is killed is cut off.
            samples = read_metrics((await ask_any(address, "/metrics")).body.decode())
            return samples["sluice_worker_up", "2"] == 1

        await until(back, "another is there")
        assert await asyncio.to_thread(gateway.stop) == 0


async def test_a_hanging_worker_is_missing_from_everything(fresh: Callable[..., WorkersProcess]) -> None:
    """Metrics, lists and names say what they could not find out, and answer in about a second."""
    with fresh() as gateway:
        address = address_of(gateway)
        victim = pid_of(gateway, 1)
        os.kill(victim, signal.SIGSTOP)
        try:
            samples = read_metrics((await ask_any(address, "/metrics")).body.decode())
            assert (samples["sluice_worker_up", "0"], samples["sluice_worker_up", "1"]) == (1, 0)
            assert {worker for name, worker in samples if name != "sluice_worker_up"} == {"0"}
            assert (await ask_any(address, "/v1/topics")).json["missing"] == [1]
            response = await ask_any(address, "/v1/connections/nobody")
            assert response.status == 503
            assert response.problem["detail"].endswith("does not answer: 1")
        finally:
            os.kill(victim, signal.SIGCONT)

        async def back() -> bool:
            return (await metrics_of(address))["sluice_worker_up", "1"] == 1

        await until(back, "it answers again")
        assert pid_of(gateway, 1) == victim


async def test_no_worker_outlives_its_supervisor(fresh: Callable[..., WorkersProcess]) -> None:
    """A supervisor that is killed takes its workers along, hanging ones too, and the port is free."""
    gateway = fresh(workers=3)
    gateway.start()
    pids = list(pids_of(gateway))
    os.kill(pids[1], signal.SIGSTOP)
    gateway.kill()
    await within(lambda: not any(runs(pid) for pid in pids), "all workers are gone")
    await gateway.astart()
    assert len(pids_of(gateway)) == 3


# --- the start ---------------------------------------------------------------------------------------------


async def refused(gateway: WorkersProcess) -> str:
    """Return what a gateway says that cannot start, without the name in front."""
    gateway.launch()
    assert await asyncio.to_thread(gateway.wait) == 1
    # On a machine that is busy they may have opened meanwhile, to say that they are not ready.
    said = [line for line in gateway.log_text().splitlines() if "serving on" not in line]
    assert len(said) == 1, said
    assert said[0].startswith("sluice: ")
    return said[0].removeprefix("sluice: ")


async def test_a_wrong_password_is_told_once(broker: Broker, fresh: Callable[..., WorkersProcess]) -> None:
    """However many workers are refused, there is one sentence and the exit code of one."""
    said = await refused(fresh(workers=4, backbone=broker.url.replace(":guest@", ":hush@")))
    assert "wrong name or password" in said
    assert "hush" not in said


async def test_a_port_of_somebody_else_is_refused(fresh: Callable[..., WorkersProcess]) -> None:
    """A port that another program listens on is not shared with it, though it would."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", free_port()))
        other.listen()
        port = other.getsockname()[1]
        said = await refused(fresh(port=port))
    assert said == f"cannot listen on 127.0.0.1 port {port}: Address already in use"


async def test_a_port_or_a_folder_in_use_is_refused(
    process: WorkersProcess, fresh: Callable[..., WorkersProcess]
) -> None:
    """A second gateway gets neither the port of the first nor its store, with one worker or several."""
    for workers in (1, 2):
        said = await refused(fresh(port=process.port, workers=workers))
        assert said == f"cannot listen on 127.0.0.1 port {process.port}: Address already in use"
        said = await refused(fresh(data=process.data, workers=workers))
        assert said.startswith(f"{process.data}/store.db is in use by another process;")


async def test_a_damaged_store_is_refused_once(fresh: Callable[..., WorkersProcess], tmp_path: Path) -> None:
    """The store is looked at before any worker starts."""
    (tmp_path / "store.db").write_bytes(b"no database, but long enough to look like one" * 100)
    said = await refused(fresh(data=tmp_path))
    assert "store.db cannot be used as the store: it is no SQLite database" in said


async def test_a_free_port_is_shared(fresh: Callable[..., WorkersProcess]) -> None:
    """With port 0 all workers get the same free port, and it is told."""
    gateway = fresh(workers=2)
    gateway.port = 0
    gateway.launch()
    await within(lambda: "serving on" in gateway.log_text(), "it serves")
    gateway.port = int(gateway.log_text().partition("http://127.0.0.1:")[2].partition(",")[0])
    await within(gateway._is_ready, "all are ready")
    assert (await publish(address_of(gateway), {"topic": "t", "data": 1}))["accepted"] == 1
    assert await asyncio.to_thread(gateway.stop) == 0


async def test_in_memory_the_workers_still_share_their_consumers(
    fresh: Callable[..., WorkersProcess],
) -> None:
    """`memory:` keeps nothing beyond the gateway, and within it all workers know the same cursors."""
    with fresh(data="memory:", stream="memory") as gateway:
        address = address_of(gateway)
        async with open_subscriber(address, "websocket", "t", consumer="c") as client:
            await publish(address, {"topic": "t", "data": 1}, {"topic": "t", "data": 2})
            first, _ = await client.events(2)
            await client.ask({"op": "ack", "cursor": first["cursor"]})
        for _ in range(8):
            async with open_subscriber(address, "sse", "t", consumer="c") as client:
                assert await client.data(1) == [2]
        await gateway.arestart()
        await publish(address, {"topic": "t", "data": 3})
        async with open_subscriber(address, "sse", "t", consumer="c") as client:
            await publish(address, {"topic": "t", "data": 4})
            assert await client.data(1) == [4]


async def test_a_database_serves_all_workers(
    database: Postgres, fresh: Callable[..., WorkersProcess]
) -> None:
    """With a PostgreSQL store no worker uses the data folder, and all know the same cursors."""
    url = database.make()
    with fresh(store=url, stream="stored") as gateway:
        address = address_of(gateway)
        async with open_subscriber(address, "websocket", "t", consumer="c") as client:
            await publish(address, {"topic": "t", "data": 1}, {"topic": "t", "data": 2})
            first, _ = await client.events(2)
            await client.ask({"op": "ack", "cursor": first["cursor"]})
        for _ in range(6):
            async with open_subscriber(address, "sse", "t", consumer="c") as client:
                assert await client.data(1) == [2]
        assert not await asyncio.to_thread(os.path.exists, gateway.data)
    said = await refused(fresh(store=url.replace(PASSWORD, "not-it"), stream="stored"))
    assert "password" in said
    assert "not-it" not in said


async def test_without_a_broker_it_says_why(fresh: Callable[..., WorkersProcess]) -> None:
    """Workers that wait for the broker answer that they do, and end at once when they are told to."""
    gateway = fresh(backbone=f"amqp://guest:guest@127.0.0.1:{free_port()}/")
    gateway.launch()
    address = address_of(gateway)

    async def answers() -> bool:
        with contextlib.suppress(OSError):
            return (await fetch(address, "/readyz")).status == 503
        return False

    await until(answers, "it answers")
    assert "cannot be reached" in str((await fetch(address, "/readyz")).json)
    await within(lambda: "serving on" in gateway.log_text(), "all workers answer")
    assert (await metrics_of(address))["sluice_log_trouble", "1"] == 1
    assert await asyncio.to_thread(gateway.stop) == 0


async def test_workers_are_the_program_that_was_started(tmp_path: Path) -> None:
    """As an installed command it takes nothing from the folder in which it was started."""
    package = tmp_path / "gateway"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit(77)")
    script = Path(sys.executable).with_name("sluice")
    backbone = f"amqp://guest:guest@127.0.0.1:{free_port()}/"
    child = subprocess.Popen(  # noqa: ASYNC220  # nothing else runs here
        [
            script,
            "serve",
            "--port=0",
            "--data=memory:",
            "--workers=2",
            "--drain-seconds=0",
            "--backbone",
            backbone,
        ],
        cwd=tmp_path,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stderr is not None
        lines = iter(child.stderr)
        said = await asyncio.to_thread(lambda: [next(lines) for _ in range(3)])
        child.terminate()
        assert child.wait(DEADLINE) == 0
    assert sum("backbone.lost" in line for line in said) == 2
    assert sum("serving on" in line for line in said) == 1


# --- the end -----------------------------------------------------------------------------------------------


async def test_sigterm_drains_all(fresh: Callable[..., WorkersProcess]) -> None:
    """On SIGTERM the port stays open and not ready, and every client of every worker is told to reconnect."""
    with fresh(drain_seconds=1) as gateway:
        address = address_of(gateway)
        async with contextlib.AsyncExitStack() as stack:
            crowd = [
                await stack.enter_async_context(open_subscriber(address, "ndjson", "t")) for _ in range(12)
            ]
            os.kill(gateway.pid, signal.SIGTERM)

            async def not_ready() -> bool:
                return (await fetch(address, "/readyz")).status == 503

            await until(not_ready, "it is not ready")
            for client in crowd:
                assert (await client.control("reconnect"))["reason"] == "draining"
        assert await asyncio.to_thread(gateway.wait) == 0
        assert "Traceback" not in gateway.log_text()
        with pytest.raises(ConnectionRefusedError):
            await fetch(address, "/healthz")


async def test_a_second_sigint_ends_all_at_once(fresh: Callable[..., WorkersProcess]) -> None:
    """Whoever presses Ctrl+C twice does not wait for the slowest worker."""
    with fresh(drain_seconds=60) as gateway:
        address = address_of(gateway)
        async with open_subscriber(address, "websocket", "t", receive_buffer=4096) as client:
            client.tcp.stall()
            for _ in range(4):
                await publish(address, *({"topic": "t", "data": "x" * 100_000} for _ in range(10)))
            os.kill(gateway.pid, signal.SIGINT)
            await within(lambda: len(pids_of(gateway)) == 1, "the worker without clients ends")
            os.kill(gateway.pid, signal.SIGINT)
            await asyncio.to_thread(gateway.wait, -50)  # ten seconds: it adds `drain_seconds`


# --- one after the other -----------------------------------------------------------------------------------


async def reloaded(gateway: WorkersProcess, word: str = "reload.ended") -> str:
    """Send SIGHUP, wait until it was dealt with, and return what was logged meanwhile."""
    before = len(gateway.log_text())
    os.kill(gateway.pid, signal.SIGHUP)
    await within(lambda: word in gateway.log_text()[before:], word)
    return gateway.log_text()[before:]


async def test_sighup_replaces_all_and_reads_the_settings(
    fresh: Callable[..., WorkersProcess], tmp_path: Path
) -> None:
    """After SIGHUP all workers are others, with the settings of now; the port was open all the time."""
    config = tmp_path / "sluice.toml"
    config.write_text("max_topics = 1\n")
    with fresh(data=tmp_path, environ={"SLUICE_CONFIG": str(config)}) as gateway:
        address = address_of(gateway)
        before = pids_of(gateway)
        query = [("topic", "a"), ("topic", "b")]
        assert (await fetch(address, "/v1/events", query)).status == 422
        config.write_text("max_topics = 2\n")
        stop = asyncio.Event()
        asking = asyncio.ensure_future(ask_on(address, stop))
        await reloaded(gateway)
        stop.set()
        assert await asking > 0
        after = pids_of(gateway)
        assert sorted(after.values()) == [0, 1]
        assert not after.keys() & before.keys()
        for _ in range(ASKED):
            assert (await fetch(address, "/v1/events", query)).status == 200
        samples = await metrics_of(address)
        assert samples["sluice_worker_restarts_total", "0"] == 0, "that was no fall"
        assert await asyncio.to_thread(gateway.stop) == 0


async def ask_on(address: Address, stop: asyncio.Event) -> int:
    """Ask on, always on a new connection, each time to be answered that it is ready; return how often."""
    count = 0
    while not stop.is_set():
        assert (await fetch(address, "/readyz")).status == 200
        count += 1
    return count


async def test_a_kept_connection_is_told_to_go_elsewhere(fresh: Callable[..., WorkersProcess]) -> None:
    """A worker that leaves answers on the connections it has, and closes each behind its answer."""
    with fresh(drain_seconds=0.5) as gateway:
        address = address_of(gateway)

        async def publish_until_sent_away(number: int) -> int:
            async with Tcp.open(address) as tcp:
                for count in range(100_000):
                    request = request_bytes("POST", "/v1/topics/kept", body=b"%d" % number)
                    response = await exchange(tcp, request)
                    assert response.status == 202
                    if "connection" in response.head:
                        assert response.head["connection"] == "close"
                        assert await tcp.rest() == b""
                        return count
                    await asyncio.sleep(0.01)
                raise AssertionError("it was never sent away")

        async with open_subscriber(address, "ndjson", "t"):
            publishers = [asyncio.ensure_future(publish_until_sent_away(number)) for number in range(8)]
            await reloaded(gateway)
            assert all(count > 0 for count in await asyncio.gather(*publishers))


async def test_an_idle_connection_may_still_be_used(fresh: Callable[..., WorkersProcess]) -> None:
    """What comes on a kept connection after its worker has drained is answered, as a last thing."""
    with fresh(drain_seconds=8) as gateway:
        address = address_of(gateway)
        async with contextlib.AsyncExitStack() as stack:
            kept = [await stack.enter_async_context(Tcp.open(address)) for _ in range(8)]
            for each in kept:
                assert (await exchange(each, request_bytes("GET", "/healthz"))).status == 200
            query = [("topic", "t"), ("wait", "60")]
            polls = [asyncio.ensure_future(fetch(address, "/v1/events", query)) for _ in range(12)]

            async def all_wait() -> bool:
                return bool((await ask(address, "/v1/connections"))["total"] == 12)

            await until(all_wait, "twelve polls wait")
            os.kill(gateway.pid, signal.SIGHUP)
            await asyncio.wait(
                polls, return_when=asyncio.FIRST_COMPLETED
            )  # by the first worker, as it drains
            kept = [each for each in kept if await goes_on(each)]
            await asyncio.wait(polls)
            kept = [each for each in kept if await goes_on(each)]
        assert not kept, "every connection was at one of the workers that left"


async def goes_on(tcp: Tcp) -> bool:
    """Publish on a connection, which must be answered; return whether it is kept."""
    response = await exchange(tcp, request_bytes("POST", "/v1/topics/kept", body=b"1"))
    assert response.status == 202
    if "connection" not in response.head:
        return True
    assert response.head["connection"] == "close"
    assert await tcp.rest() == b""
    return False


async def test_settings_that_cannot_be_change_nothing(broker: Broker, tmp_path: Path) -> None:
    """SIGHUP with settings that are wrong, or that all must have in common, is refused in a sentence."""
    config = tmp_path / "sluice.toml"
    config.write_text("workers = 2\n")
    with WorkersProcess(backbone=broker.url, environ={"SLUICE_CONFIG": str(config)}) as gateway:
        before = pids_of(gateway)
        for text, sentence in (
            ("max_topics = 0\n", f"max_topics in {config}: 0 is not a whole number from 1 to 10000"),
            ("max_topic = 1\n", f"max_topic in {config}: no setting has this name; did you mean max_topics?"),
            ("= nonsense", f"{config}: the file is not TOML"),
            ("stream = 'other'\n", "stream: changing this needs a restart; nothing was changed"),
            ("workers = 3\n", "workers: changing this needs a restart; nothing was changed"),
        ):
            config.write_text(text if "workers" in text else f"workers = 2\n{text}")
            assert f"reload.refused: {sentence}" in await reloaded(gateway, "reload.refused")
            assert pids_of(gateway) == before
        os.kill(pid_of(gateway, 0), signal.SIGKILL)
        await within(lambda: len(pids_of(gateway).keys() - before.keys()) == 1, "another is there")
        await served_by_all(address_of(gateway))


async def served_by_all(address: Address) -> None:
    """Wait until both workers answer."""

    async def both() -> bool:
        samples = await metrics_of(address)
        return samples["sluice_worker_up", "0"] == samples["sluice_worker_up", "1"] == 1

    await until(both, "both workers answer")


async def test_a_worker_that_does_not_come_up_replaces_nobody(broker: Broker, tmp_path: Path) -> None:
    """When the broker refuses the first new worker, the old ones stay, and the reason is told once."""
    config = tmp_path / "sluice.toml"
    config.write_text("")
    settings: dict[str, Any] = {
        "backbone": broker.url,
        "workers": 2,
        "environ": {"SLUICE_CONFIG": str(config)},
    }
    with WorkersProcess(**settings) as gateway:
        before = pids_of(gateway)
        config.write_text("retention_bytes = 123456789\n")
        said = await reloaded(gateway, "reload.failed")
        assert said.count("worker.not_up: the stream 'sluicegate' exists with other arguments") == 1
        assert pids_of(gateway) == before
        assert (await publish(address_of(gateway), {"topic": "t", "data": 1}))["accepted"] == 1
        config.write_text("")
        await reloaded(gateway)
        assert not pids_of(gateway).keys() & before.keys()


async def test_a_worker_that_falls_during_a_reload_is_replaced_by_it(
    fresh: Callable[..., WorkersProcess],
) -> None:
    """SIGHUP and kill -9 at the same time leave as many workers as there were, and all serve."""
    with fresh() as gateway:
        before = pids_of(gateway)
        os.kill(gateway.pid, signal.SIGHUP)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await within(lambda: "reload.ended" in gateway.log_text(), "all are replaced")
        await within(lambda: sorted(pids_of(gateway).values()) == [0, 1], "two run")
        assert not pids_of(gateway).keys() & before.keys()
        await served_by_all(address_of(gateway))
        assert await asyncio.to_thread(gateway.stop) == 0


async def test_sigterm_during_a_reload_ends_all(fresh: Callable[..., WorkersProcess]) -> None:
    """Whoever stops a gateway that is replacing its workers stops the new ones as well."""
    with fresh() as gateway:
        pids = list(pids_of(gateway))
        os.kill(gateway.pid, signal.SIGHUP)
        await within(lambda: len(pids_of(gateway)) == 3, "a third has started")
        pids = [*pids, *pids_of(gateway)]
        assert await asyncio.to_thread(gateway.stop) == 0
        assert not any(runs(pid) for pid in pids)
