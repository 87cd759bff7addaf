"""`sluice token`, `keys` and `revocations` against a real gateway: from nobody to somebody and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.support.bearer import ADMIN, ENVIRON
from tests.support.command import run_sluice
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def process() -> Iterator[GatewayProcess]:
    with GatewayProcess(environ=ENVIRON) as one:
        yield one


async def run(process: GatewayProcess, token: str, *arguments: str, code: int = 0) -> str:
    """Run a command as somebody; return what it printed, or said if it failed."""
    environ = {"SLUICE_URL": process.url, "SLUICE_TOKEN": token, **ENVIRON}
    done = await asyncio.to_thread(run_sluice, *arguments, environ=environ)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stderr


async def test_a_key_from_its_making_to_its_end(process: GatewayProcess) -> None:
    """It publishes and is listed without its text; removed, it opens nothing."""
    grants = ("--subject", "billing", "--publish", "bills.#")
    made = json.loads(
        await run(process, ADMIN, "keys", "create", *grants, "--description", "for bills", "--json")
    )
    assert made["claims"] == {"publish": ["bills.#"]}
    await run(process, made["key"], "publish", "bills.1", "1")
    assert "does not grant" in await run(process, made["key"], "publish", "other", "1", code=1)
    listed = await run(process, ADMIN, "keys", "list")
    assert made["id"] in listed
    assert "for bills" in listed
    assert made["key"] not in listed
    await run(process, ADMIN, "keys", "remove", made["id"])
    assert made["id"] not in await run(process, ADMIN, "keys", "list", "--json")
    assert "SLUICE_TOKEN" in await run(process, made["key"], "publish", "bills.1", "1", code=1)


async def test_a_token_from_its_making_to_its_end(process: GatewayProcess) -> None:
    """What `sluice token` makes is good until it is revoked, and again once that is taken back."""
    grants = ("--subject", "ada", "--id", "adas-first", "--publish", "chat.*", "--for", "10m")
    token = (await run(process, "", "token", *grants)).strip()
    await run(process, token, "publish", "chat.a", "1")
    name = (
        await run(process, ADMIN, "revocations", "create", "--token", "adas-first", "--reason", "lost")
    ).strip()
    await run(process, token, "publish", "chat.a", "1", code=1)
    listed = await run(process, ADMIN, "revocations", "list")
    assert name in listed
    assert "lost" in listed
    await run(process, ADMIN, "revocations", "remove", name)
    await run(process, token, "publish", "chat.a", "1")
    assert json.loads(await run(process, ADMIN, "revocations", "list", "--json") or "[]") == []


async def test_these_are_for_operators(process: GatewayProcess) -> None:
    """Others are told so, and whoever names nothing what is missing."""
    token = (await run(process, "", "token", "--subject", "ada")).strip()
    for group in ("keys", "revocations"):
        assert "admin" in await run(process, token, group, "list", code=1)
    assert "--subject" in await run(process, ADMIN, "keys", "create", code=2)
    assert "--subject" in await run(process, ADMIN, "revocations", "create", code=2)
