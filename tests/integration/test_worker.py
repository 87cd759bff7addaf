"""`sluice worker` as a process of its own, on a real gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.accounts import until
from tests.support.clients import until as until_asked
from tests.support.command import run_sluice
from tests.support.host import address_of
from tests.support.requests import Api
from tests.support.server import GatewayProcess, free_port
from tests.support.worker import WorkerProcess

HANDLER = """
import time
from gateway.handling import Refused

def handle(request):
    data = request.data
    if data == "refuse":
        raise Refused("not this one")
    if data == "fail":
        raise ValueError("no luck")
    if isinstance(data, list):
        return [str(each) for each in data]
    if data == "large":
        return "x" * 5000
    if data == "larger":
        return "x" * 1_000_000
    if data == "slow":
        for number in range(100):
            request.progress(number)
            time.sleep(0.1)
    return {"data": data, "attempt": request.attempt}
"""


NUMBERS = b'[1e999, -1e999, %b, -%b, 123456789012345678901234567890, "\\u00e9"]' % ((b"9" * 5000,) * 2)
"""Those that are too large for Python's, and one that is not."""
NUMBERS_SEEN = ["inf", "-inf", "inf", "-inf", "123456789012345678901234567890", "é"]
"""What the handler makes of them."""


@pytest.fixture(scope="module")
def process() -> Iterator[GatewayProcess]:
    with GatewayProcess(
        services="reports,mail,quiet",
        request_result_bytes=2000,
        request_tries=2,
        request_backoff=0.1,
        request_lease=2,
    ) as one:
        yield one


@pytest.fixture
def api(process: GatewayProcess) -> Api:
    return Api(address_of(process))


async def test_a_worker_works(process: GatewayProcess, api: Api) -> None:
    """What its handler returns is the result, and what it raises is the reason."""
    with WorkerProcess(process.url, "reports", HANDLER, concurrency=4):
        wanted: dict[Any, dict[str, Any]] = {
            1: {"result": {"data": 1, "attempt": 1}},
            "refuse": {"error": {"reason": "refused", "detail": "not this one"}},
            "fail": {"error": {"reason": "error", "detail": "ValueError: no luck"}, "attempt": 2},
            "large": {"error": {"reason": "result"}},
            "larger": {"error": {"reason": "result"}},
        }
        tokens = {data: await api.submit("reports", data) for data in wanted}
        for data, expected in wanted.items():
            shown = await api.show(tokens[data], wait=30)
            for name, value in expected.items():
                got = shown[name]
                assert (got | value if isinstance(got, dict) else value) == got, (data, shown)


async def test_a_worker_takes_numbers_of_any_size(process: GatewayProcess, api: Api) -> None:
    """JSON has no bounds for them, and what the gateway took must not be the worker's end."""
    with WorkerProcess(process.url, "reports", HANDLER) as worker:
        token = await api.submit("reports", NUMBERS)
        shown = await api.show(token, wait=30)
        assert (shown["state"], shown.get("result")) == ("done", NUMBERS_SEEN), shown
        assert worker.stop() == 0


async def test_a_slow_handler_keeps_its_request_and_tells_of_it(process: GatewayProcess, api: Api) -> None:
    """Ten seconds with a lease of two; then SIGTERM, and it is given back to the next."""
    with WorkerProcess(process.url, "mail", HANDLER, drain_seconds=0.1) as one:
        token = await api.submit("mail", "slow")
        seen = set()
        shown: dict[str, Any] = {}
        while shown.get("state") != "done":
            shown = await api.show(token, wait=0.3)
            assert shown["attempt"] <= 1
            seen.add(shown.get("progress"))
        assert len(seen) > 5
        again = await api.submit("mail", "slow")
        await until_asked(lambda: _runs(api, again), "the next one runs")
        assert one.stop() == 0
        assert "worker.released" in one.log_text()
        (lease,) = await api.lease("mail")
        assert (lease["token"], lease["attempt"]) == (again, 2)
        await api.end(lease, "complete")


async def _runs(api: Api, token: str) -> bool:
    return bool((await api.show(token))["state"] == "running")


async def test_a_worker_waits_for_its_gateway(api: Api) -> None:
    """It may be started first, and goes on when the gateway was away."""
    port = free_port()
    with WorkerProcess(f"http://127.0.0.1:{port}", "reports", HANDLER) as worker:
        await until(lambda: "worker.waiting" in worker.log_text(), "it says that it waits")
        with GatewayProcess(port=port, services="reports") as gateway:
            mine = Api(address_of(gateway))
            token = await mine.submit("reports", 1)
            assert (await mine.show(token, wait=30))["state"] == "done"
            await gateway.arestart()
            token = await mine.submit("reports", 2)
            assert (await mine.show(token, wait=30))["state"] == "done"
        assert worker.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["nowhere:handle", "--service=reports"], 1, "there is no module 'nowhere'"),
        (["json", "--service=reports"], 1, "names no handler"),
        (["json:loads"], 2, "Missing option '--service'"),
        (["json:loads", "--service=a.b"], 2, "1 to 64 letters"),
        (["json:loads", "--service=reports", "--concurrency=0"], 2, "--concurrency"),
        (["json:loads", "--service=reports", "--timeout=0"], 2, "not a time over 0"),
        (["json:loads", "--service=nothing"], 1, "there is no service 'nothing'"),
        (["json:loads", "--service=reports", "--gateway=ftp://x"], 1, "is no address of a gateway"),
        (["json:loads", "--service=reports", "--gateway=nonsense"], 1, "is no address of a gateway"),
    ],
)
def test_what_is_refused(process: GatewayProcess, arguments: list[str], code: int, why: str) -> None:
    """One sentence, and the exit code of other commands."""
    environ = {} if any("--gateway" in each for each in arguments) else {"SLUICE_URL": process.url}
    done = run_sluice("worker", *arguments, environ=environ)
    assert (done.returncode, why in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_gateway(process: GatewayProcess) -> None:
    """The page of something else is told from a gateway's answer."""
    done = run_sluice("worker", "json:loads", "--service=reports", f"--gateway={process.url}/demo")
    assert (done.returncode, "refuses" in done.stderr) == (1, True), done.stderr
