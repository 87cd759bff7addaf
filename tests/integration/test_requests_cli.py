"""`sluice requests` against a real gateway: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.command import run_sluice
from tests.support.host import address_of
from tests.support.requests import Api
from tests.support.server import GatewayProcess


@pytest.fixture(scope="module")
def process() -> Iterator[GatewayProcess]:
    with GatewayProcess(services="reports,mail", request_tries=1) as one:
        yield one


async def _run(process: GatewayProcess, *arguments: str, code: int = 0) -> str:
    environ = {"SLUICE_URL": process.url}
    done = await asyncio.to_thread(run_sluice, "requests", *arguments, environ=environ)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stderr


async def _json(process: GatewayProcess, *arguments: str) -> list[Any]:
    return [json.loads(line) for line in (await _run(process, *arguments, "--json")).splitlines()]


async def test_from_failed_to_done(process: GatewayProcess) -> None:
    """What has failed is seen with its reason, tried again, and shown with its result."""
    api = Api(address_of(process))
    token = await api.submit("reports", {"n": 1})
    other = await api.submit("mail", 2)
    (lease,) = await api.lease("reports")
    await api.end(lease, "fail", {"detail": "no luck"})
    lines = (await _run(process, "dead")).splitlines()
    assert lines[0].split() == ["TOKEN", "SERVICE", "STATE", "ATTEMPT", "CREATED", "UPDATED", "REASON"]
    assert [line.split()[0] for line in lines[1:]] == [token]
    assert lines[1].split()[-1] == "error"
    assert "no luck" in await _run(process, "show", token)
    assert await _run(process, "retry", token) == f"{token} is queued\n"
    (lease,) = await api.lease("reports")
    await api.end(lease, "complete", {"result": [1, 2]})
    (shown,) = await _json(process, "show", token, "--wait", "10")
    assert (shown["state"], shown["result"]) == ("done", [1, 2])
    assert [each["token"] for each in await _json(process, "list", "--state", "queued")] == [other]
    assert await _run(process, "cancel", other) == f"{other} is cancelled\n"
    assert [each["token"] for each in await _json(process, "list", "--service", "mail")] == [other]
    assert "WORKERS WAIT" in await _run(process, "services")


async def test_a_result_of_any_size_is_shown(process: GatewayProcess) -> None:
    """Numbers that Python cannot hold are infinite in a table, and as they came in JSON."""
    api = Api(address_of(process))
    token = await api.submit("reports", 1)
    (lease,) = await api.lease("reports")
    digits = "9" * 5000
    answer = await api.end(lease, "complete", b'{"result": [1e999, -%b,\n 0]}' % digits.encode())
    assert answer.status == 204, answer
    assert "  inf, -inf, 0\n" in await _run(process, "show", token)
    assert f'"result":[1e999,-{digits},0]' in (await _run(process, "show", token, "--json")).splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["show", "rq_nobody"], 1, "no such request"),
        (["retry"], 2, "Missing argument"),
        (["list", "--state", "dead"], 1, "state is one of"),
        (["list", "--service", "nothing"], 1, "no service"),
        (["cancel", "../events"], 1, "there is nothing at"),
    ],
)
async def test_what_is_refused(process: GatewayProcess, arguments: list[str], code: int, why: str) -> None:
    """With a sentence and no traceback."""
    said = await _run(process, *arguments, code=code)
    assert why.lower() in said.lower()
    assert "Traceback" not in said
