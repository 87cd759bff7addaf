"""What docs/requests.md says, tried: its worker works, its tables are what there is."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Final

from gateway.cli.requests import requests as command
from gateway.handling import Request
from gateway.requests import door
from gateway.requests.changes import State, Trouble
from tests.support.host import address_of
from tests.support.requests import Api
from tests.support.server import GatewayProcess, clean_environment
from tests.support.worker import WorkerProcess
from tests.test_docs import fenced, page, rows, section

TEXT: Final = page("docs/requests.md")


def test_states_and_reasons_are_as_documented() -> None:
    """All of them, and no other."""
    states, reasons = section(TEXT, "States").split("| reason |")
    assert [row[0] for row in rows(states)] == [each.value for each in State]
    documented = [row[0] for row in rows("\n| reason |" + reasons)]
    explained = re.findall(r"`(\w+)`", (Trouble.__doc__ or "").partition("reason:")[2])
    assert sorted(documented) == sorted(explained)
    assert set(documented) >= door.REASONS


def test_the_commands_are_as_documented() -> None:
    """All of them, and no other."""
    documented = [row[0].split()[2] for row in rows(section(TEXT, "The command"))]
    assert sorted(documented) == sorted(command.commands)


def test_a_handler_sees_what_is_documented() -> None:
    """All of it, and nothing else."""
    documented = [row[0] for row in rows(section(TEXT, "A worker in Python"))]
    names = {re.sub(r"\W.*", "", each.removeprefix("request.")) for each in documented}
    assert names == {each for each in dir(Request) if not each.startswith("_")}


async def test_the_handler_works() -> None:
    """The one in the first section, run by `sluice worker`."""
    (handler,) = fenced(section(TEXT, "In a minute"), "python")
    with GatewayProcess(services="reports") as gateway:
        api = Api(address_of(gateway))
        with WorkerProcess(gateway.url, "reports", handler, concurrency=4):
            token = await api.submit("reports", {"month": 11})
            assert (await api.show(token, wait=30))["result"] == {"month": 11, "total": 12.5}


async def test_the_worker_without_us_works(tmp_path: Path) -> None:
    """The one that needs nothing of ours, in a process of its own; what it cannot do is tried again."""
    (program,) = fenced(section(TEXT, "A worker in any language"), "python")
    with GatewayProcess(services="reports", request_tries=2, request_backoff=0.1) as gateway:
        api = Api(address_of(gateway))
        path = tmp_path / "worker.py"
        path.write_text(program.replace("http://127.0.0.1:8000", gateway.url))
        environ = clean_environment() | {"no_proxy": "*"}
        child = await asyncio.create_subprocess_exec(sys.executable, str(path), env=environ)
        try:
            good, bad = await api.submit("reports", {"month": 11}), await api.submit("reports", {})
            assert (await api.show(good, wait=30))["result"] == {"month": 11, "total": 12.5}
            assert (await api.show(bad, wait=30))["error"] == {"reason": "error", "detail": "'month'"}
        finally:
            child.kill()
            await child.wait()
