"""`sluice webhooks` against a real gateway and a real receiver: what it prints, and how it ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import run_sluice
from tests.support.receiver import OK, Peer, Receiver, receiver, with_status
from tests.support.server import GatewayProcess, free_port
from webhooks.signature import Scheme, new_secret

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with GatewayProcess(webhooks_allow="127.0.0.0/8") as one:
        yield one


@pytest.fixture
async def target() -> AsyncIterator[Receiver]:
    """A receiver that answers 500 to whatever has `fail` in it, and 200 to the rest."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await peer.send(with_status(500) if b"fail" in request.body else OK)

    async with receiver(script) as found:
        yield found


class Shell:
    """Runs `sluice webhooks` on a gateway."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway

    async def __call__(self, *arguments: str, code: int = 0) -> str:
        """Return what a command prints; on the standard error if it fails."""
        done = await asyncio.to_thread(self.run, *arguments)
        assert done.returncode == code, (done.stdout, done.stderr)
        if code == 0:
            assert done.stderr == ""
        return done.stdout or done.stderr

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_sluice("webhooks", *arguments, environ={"SLUICE_URL": self.gateway.url})

    async def json(self, *arguments: str, code: int = 0) -> list[Any]:
        """Return what a command prints as JSON."""
        done = await asyncio.to_thread(self.run, *arguments, "--json")
        assert done.returncode == code, (done.stdout, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    async def add(self, url: str, *arguments: str) -> str:
        """Add a webhook and return its name."""
        (created,) = await self.json("add", url, *arguments)
        name: str = created["id"]
        return name


@pytest.fixture
def shell(gateway: GatewayProcess) -> Shell:
    return Shell(gateway)


async def test_the_life_of_a_webhook(shell: Shell, target: Receiver) -> None:
    """It is added, listed, shown, paused, resumed, given another secret, and removed."""
    name, secret = (await shell("add", target.url, "life.#", "--description", "for the shop")).splitlines()
    assert name.startswith("wh_")
    assert secret.startswith("whsec_")
    listed = await shell("list")
    assert listed.splitlines()[0].split() == ["WEBHOOK", "STATE", "TOPICS", "URL", "DESCRIPTION"]
    assert f"{name}  active  life.#  {target.url}  for the shop" in listed
    shown = await shell("show", name)
    assert ["url", target.url] in [line.split() for line in shown.splitlines()]
    assert ["health.failures", "0"] in [line.split() for line in shown.splitlines()]
    assert secret not in listed + shown
    assert await shell("pause", name) == f"{name} is paused\n"
    assert await shell("resume", name) == f"{name} is active\n"
    assert await shell("enable", name, "--skip") == f"{name} is active\n"
    rotated = await shell("rotate", name, "--overlap", "0")
    assert rotated.startswith("whsec_")
    assert rotated != f"{secret}\n"
    assert [each["scheme"] for each in (await shell.json("show", name))[0]["keys"]] == ["v1"]
    assert await shell("remove", name) == ""
    assert name not in await shell("list")


async def test_everything_that_can_be_said_of_a_webhook(
    shell: Shell, target: Receiver, tmp_path: Path
) -> None:
    """Each flag is a member; a secret is read from a file, so that nobody sees it among the processes."""
    secret = new_secret(Scheme.V1).text
    (tmp_path / "secret").write_text(secret + "\n")
    (created,) = await shell.json(
        *("add", target.url, "a.*", "b.#", "--type", "x", "--type", "y", "--filter", '{"n": {"$gt": 1}}'),
        *("--signature", "v1", "--signature", "v1a", "--body", "raw", "--order", "fifo", "--in-flight", "3"),
        *("--rate", "2.5", "--schedule", "5s,2m", "--header", "X-A: 1:2", "--description", "d"),
        *("--secret-file", str(tmp_path / "secret")),
    )
    assert created.pop("secret") == secret
    assert {name: created[name] for name in created if name not in ("id", "created", "changed", "keys")} == {
        "url": target.url,
        "topics": ["a.*", "b.#"],
        "types": ["x", "y"],
        "filter": {"n": {"$gt": 1}},
        "signatures": ["v1", "v1a"],
        "body": "raw",
        "order": "fifo",
        "in_flight": 3,
        "rate": 2.5,
        "schedule": [5, 120],
        "headers": {"X-A": "1:2"},
        "origin": None,
        "description": "d",
        "state": "active",
        "health": {"failures": 0},
    }
    assert (await shell("rotate", created["id"], "--scheme", "v1a")).startswith("whpk_")
    await shell("remove", created["id"])


async def test_a_receiver_is_tested(shell: Shell, target: Receiver) -> None:
    """The command waits for the answer, and its exit code says whether the receiver took the event."""
    name = await shell.add(target.url, "test.#")
    good = await shell("test", name)
    assert " was delivered: 200 after " in good
    assert good.startswith("dl_")
    assert json.loads(target.requests[-1].body)["data"] == {"webhook": name}
    bad = await shell("test", name, "--data", '"fail"', code=1)
    assert " was not delivered: 500 after " in bad
    assert "it is tried again at 20" in bad
    (found,) = await shell.json("test", name, "--data", '{"fail": 1}', code=1)
    assert (found["state"], found["last_attempt"]["status"]) == ("pending", 500)
    await shell("remove", name)


async def test_what_failed_is_found_and_tried_again(shell: Shell, target: Receiver) -> None:
    """From the list of those that failed to the attempts of one, and back to the beginning."""
    name = await shell.add(target.url, "lost.#", "--schedule", "")
    for data in ("ok", "fail", "fail"):
        shell.gateway.publish({"topic": "lost.1", "data": data})

    async def failed(count: int) -> list[Any]:
        async with asyncio.timeout(20):
            while True:
                found = await shell.json("deliveries", name, "--state", "failed")
                if len(found) == count:
                    return found

    newest, oldest = await failed(2)
    listed = (await shell("deliveries", name)).splitlines()
    assert listed[0].split() == ["DELIVERY", "STATE", "TOPIC", "EVENT", "OF", "ATTEMPTS", "NEXT"]
    assert [line.split()[:3] for line in listed[1:3]] == [
        [newest["id"], "failed", "lost.1"],
        [oldest["id"], "failed", "lost.1"],
    ]
    assert len(await shell.json("deliveries", name, "--limit", "1")) == 1
    attempts = (await shell("attempts", newest["id"])).splitlines()
    assert attempts[0].split() == ["ATTEMPT", "TIME", "RESULT", "TOOK", "RESPONSE"]
    assert attempts[1].split()[0] == "1"
    assert " 500 " in attempts[1]
    assert await shell("retry", newest["id"], oldest["id"]) == (
        f"{newest['id']} is pending\n{oldest['id']} is pending\n"
    )
    await failed(2)
    done = await shell("recover", name, "--since", "1h", "--wait", "20s")
    assert done.startswith("job_")
    assert done.endswith(" is done: 2 deliveries\n")
    assert f"{done.split()[0]}  recover  done" in await shell("jobs", name)
    await failed(2)
    await shell("remove", name)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "wh_x"], 1, "sluice: {url} answered 404: there is no webhook 'wh_x'\n"),
        (["retry", "dl_x/../y"], 1, "sluice: {url} answered 404: "),
        (["remove", "wh_x"], 1, "sluice: {url} answered 404: there is no webhook 'wh_x'\n"),
        (["add", "http://10.0.0.1/", "a"], 1, "sluice: {url} answered 422: 10.0.0.1 is a private address, "),
        (["add", "https://example.com/", "a*"], 1, "sluice: {url} answered 422: "),
        (
            ["add", "https://example.com/", "a", "--secret-file", "/nowhere"],
            1,
            "sluice: the secret cannot be read",
        ),
        (["deliveries", "wh_x", "--state", "lost"], 1, "sluice: {url} answered 422: state is one of "),
        (["add", "https://example.com/"], 2, "Usage: "),
        (["add", "https://example.com/", "a", "--filter", "{"], 2, "Usage: "),
        (["add", "https://example.com/", "a", "--schedule", "soon"], 2, "Usage: "),
        (["add", "https://example.com/", "a", "--header", "x"], 2, "Usage: "),
        (["recover", "wh_x"], 2, "Usage: "),
        (["rotate", "wh_x", "--overlap", "soon"], 2, "Usage: "),
        (["frob"], 2, "Usage: "),
    ],
)
async def test_what_cannot_be_is_told_in_a_sentence(
    shell: Shell, arguments: list[str], code: int, said: str
) -> None:
    """On the standard error; exit code 1 if it cannot be done, 2 if it was asked for in a wrong way."""
    done = await asyncio.to_thread(shell.run, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(said.format(url=shell.gateway.url)), done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1


async def test_no_gateway_is_told_in_a_sentence() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = await asyncio.to_thread(run_sluice, "webhooks", "list", "--url", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"sluice: no connection to {url} (Connection refused)\n"
