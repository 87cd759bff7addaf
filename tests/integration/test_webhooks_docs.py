"""What docs/webhooks.md says, tried: its receivers take what is sent, its tables are what there is."""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import httpx
import pytest

from gateway import webhooks_api, webhooks_deliveries
from gateway.cli.webhooks import webhooks as command
from gateway.dedup import Dedup
from gateway.intake import Intake
from gateway.resources import Resource
from gateway.settings import FIELDS, Settings
from tests.support.memory_log import MemoryLog
from tests.support.node_receiver import FOLDER, install
from tests.support.server import GatewayProcess, clean_environment, free_port
from tests.test_docs import fenced, page, rows, section
from webhooks import description, filters, headers, keys, operators, schedule, sender, target
from webhooks.description import Description
from webhooks.endpoint import State

pytestmark = pytest.mark.integration

TEXT: Final = page("docs/webhooks.md")
DEADLINE: Final = 30.0
PYTHON, PYTHON_V1A = fenced(section(TEXT, "Verifying"), "python")
(JAVASCRIPT,) = fenced(section(TEXT, "Verifying"), "javascript")


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with GatewayProcess(webhooks_allow="127.0.0.0/8") as one:
        yield one


@pytest.fixture
def http(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=DEADLINE, trust_env=False) as client:
        yield client


def program(text: str, folder: Path, kind: str) -> list[str]:
    """Save a program of the page in a folder, and return the command that runs it."""
    if kind == "python":
        path = folder / "receiver.py"
        path.write_text(text)
        return [sys.executable, str(path)]
    install()
    (folder / "node_modules").symlink_to(FOLDER / "node_modules")
    path = folder / "receiver.mjs"
    path.write_text(text)
    return ["node", str(path)]


@contextlib.contextmanager
def running(command: list[str], port: int, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run a receiver until it listens."""
    child = subprocess.Popen(
        command,
        env={**clean_environment(), "PORT": str(port), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        deadline = time.monotonic() + DEADLINE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert child.poll() is None, "the program of the page ended"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield child
    finally:
        child.kill()
        child.communicate()


def first_attempt(http: httpx.Client, webhook: str, topic: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Publish an event, and return its delivery and the first attempt of it."""
    assert http.post(f"/v1/topics/{topic}", json={"n": [1, "ü"]}).status_code == 202
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        listed = http.get(f"/v1/webhooks/{webhook}/deliveries", params={"limit": 1}).json()["deliveries"]
        newest: dict[str, Any] = listed[0] if listed else {"topic": ""}
        if newest["topic"] == topic and newest["attempts"]:
            return newest, http.get(f"/v1/deliveries/{newest['id']}/attempts").json()["attempts"][0]
        time.sleep(0.02)
    raise AssertionError("there was no attempt")


@pytest.mark.parametrize(
    ("kind", "text", "scheme"),
    [("python", PYTHON, "v1"), ("javascript", JAVASCRIPT, "v1"), ("python", PYTHON_V1A, "v1a")],
    ids=["python", "javascript", "public-key"],
)
def test_the_receivers_verify(
    gateway: GatewayProcess, http: httpx.Client, tmp_path: Path, kind: str, text: str, scheme: str
) -> None:
    """A receiver takes what is signed by its secret, and refuses it when the secret is another one."""
    port = free_port()
    created = http.post(
        "/v1/webhooks",
        json={"url": f"http://127.0.0.1:{port}/", "topics": [f"{port}.#"], "signatures": [scheme]},
    ).json()
    given = {"SECRET": created.get("secret", ""), "GATEWAY": gateway.url}
    with running(program(text, tmp_path, kind), port, **given) as receiver:
        delivery, attempt = first_attempt(http, created["id"], f"{port}.one")
        assert (delivery["state"], attempt["status"]) == ("delivered", 204)
        assert receiver.stdout is not None
        assert receiver.stdout.readline().split()[0] == delivery["webhook_id"]
        rotated = http.post(
            f"/v1/webhooks/{created['id']}/secret:rotate", json={"scheme": scheme, "overlap": 0}
        )
        assert rotated.status_code == 200
        delivery, attempt = first_attempt(http, created["id"], f"{port}.two")
        assert (delivery["state"], attempt["status"]) == ("pending", 400)
    http.delete(f"/v1/webhooks/{created['id']}")


def test_the_first_command_works(gateway: GatewayProcess) -> None:
    """The page begins with a command that makes a webhook."""
    (block,) = fenced(section(TEXT, "In a minute"), "sh")
    words = shlex.split(block.replace("http://127.0.0.1:8000", gateway.url))
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=DEADLINE)
    assert '"secret":"whsec_' in done.stdout


def test_every_command_is_there() -> None:
    """The commands that are shown are all there are, with arguments that they take."""
    (block,) = fenced(section(TEXT, "The command"), "sh")
    shown = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert {words[2] for words in shown} == set(command.commands)
    for _, _, name, *arguments in shown:
        command.commands[name].make_context(name, arguments)  # raises for what it does not take


def test_every_route_is_there() -> None:
    """The table of the API has every route, with all its methods."""
    settings = Settings(data="memory:")
    api = webhooks_api.WebhooksApi(_NoWebhooks(), Intake(MemoryLog(), Dedup(1, 1), settings), settings)  # type: ignore[arg-type]  # nothing is asked
    there = {
        f"{method} {re.sub('{(webhook|delivery)}', '{id}', route.path)}"
        for route in api.routes()
        for method in cast("Resource", route.endpoint).methods
        if method != "HEAD"
    }
    listed: set[str] = set()
    for cell, _ in rows("\n" + section(TEXT, "The API").lstrip()):
        method, _, paths = cell.partition(" ")
        first, *others = [each.strip("` ") for each in paths.split(",")]
        listed.add(f"{method} {first}")
        for other in others:
            stem = first.rsplit(":", 1)[0] if other.startswith(":") else first.rsplit("/", 1)[0]
            listed.add(f"{method} {stem}{other.removeprefix('…')}")
    assert listed == there


class _NoWebhooks:
    """Nothing that would be asked for routes."""

    store = None


def test_every_member_is_there() -> None:
    """The table of members has all of a description, and the secret."""
    _, second, *_ = section(TEXT, "The API").split("Members of a webhook")
    listed = [cells[0] for cells in rows(second)] if second else []
    assert sorted(listed) == sorted([*Description.__struct_fields__, "secret"])


def test_operators_states_and_settings_are_there() -> None:
    """Whatever else is listed by name is what there is."""
    for name in (*operators.OPERATORS, "$and", "$or", "$not"):
        assert f"`{name}`" in TEXT
    assert [cells[0] for cells in rows(section(TEXT, "States of a webhook"))] == [
        each.value for each in State
    ]
    for name in re.findall(r"`(webhooks_\w+)`", TEXT):
        assert name in FIELDS


def test_the_limits_are_those_of_the_code() -> None:
    assert {what: int(limit) for what, limit in rows(section(TEXT, "Limits"))} == {
        "webhooks": webhooks_api.MAX_ENDPOINTS,
        "bytes of a body that is sent to the API": webhooks_api.MAX_BODY_BYTES,
        "characters of a URL": target.MAX_URL,
        "patterns, and types, of a webhook": description.MAX_TOPICS,
        "bytes of a filter": filters.MAX_BYTES,
        "conditions in a filter": filters.MAX_PARTS,
        "headers of a webhook": headers.MAX_HEADERS,
        "bytes of these headers": headers.MAX_BYTES,
        "waits of a schedule": schedule.MAX_WAITS,
        "attempts on their way together, of a webhook": description.MAX_IN_FLIGHT,
        "live secrets of a scheme": keys.MAX_LIVE,
        "bytes kept of an answer": sender.MAX_EXCERPT,
        "jobs of a webhook at a time": webhooks_deliveries.MAX_JOBS,
    }
    assert description.MAX_TOPICS == description.MAX_TYPES
