"""`sluice tail` and `sluice publish` against a real gateway that is killed, restarted, and forgets."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.client import Publisher
from tests.support.command import run_sluice, sluice_command
from tests.support.server import GatewayProcess, clean_environment

pytestmark = pytest.mark.integration

DEADLINE = 60.0
BATCH = 20


class Tail:
    """A running `sluice tail`, read line by line."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child
        self.events: list[dict[str, Any]] = []

    async def read(self, count: int) -> None:
        """Read until `count` events have come in all; fail if it ends before."""
        assert self._child.stdout is not None
        while len(self.events) < count:
            line = await self._child.stdout.readline()
            assert line, f"it ended after {len(self.events)} events, saying: {await self._errors()}"
            self.events.append(json.loads(line))

    async def end(self) -> tuple[int, list[str]]:
        """Wait for its end, with nothing more printed; return exit code and what it told people."""
        assert self._child.stdout is not None
        assert await self._child.stdout.read() == b""
        errors = await self._errors()
        return await self._child.wait(), errors

    async def interrupt(self) -> tuple[int, list[str]]:
        """Send it SIGINT, then as `end`."""
        self._child.send_signal(signal.SIGINT)
        return await self.end()

    async def _errors(self) -> list[str]:
        assert self._child.stderr is not None
        return (await self._child.stderr.read()).decode().splitlines()


@asynccontextmanager
async def tailing(gateway: GatewayProcess, *arguments: str) -> AsyncIterator[Tail]:
    """Run `sluice tail` against a gateway; end it at the end if it still runs."""
    child = await asyncio.create_subprocess_exec(
        *sluice_command("tail", "--url", gateway.url, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=16 * 1024 * 1024,
        env=clean_environment(),
    )
    try:
        async with asyncio.timeout(DEADLINE):
            yield Tail(child)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


class Numbers:
    """A producer of numbers from 0 up, in small batches, each until the gateway has accepted it."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._publisher = Publisher(gateway.url, lambda _: None)
        self._stopped = False
        self.accepted = 0

    def publish(self, count: int) -> None:
        """Publish `count` more numbers, fewer if stopped."""
        end = self.accepted + count
        while self.accepted < end and not self._stopped:
            numbers = range(self.accepted, min(end, self.accepted + BATCH))
            self._publisher.publish(
                b'{"topic":"numbers.%d","id":"n%d","data":%d}' % (n % 3, n, n) for n in numbers
            )
            self.accepted = numbers.stop

    @asynccontextmanager
    async def published(self) -> AsyncIterator[None]:
        """Publish without end in the meantime."""
        publishing = asyncio.create_task(asyncio.to_thread(self.publish, 10**9))
        try:
            yield
        finally:
            self._stopped = True
            await publishing


def numbers_of(events: list[dict[str, Any]]) -> list[object]:
    """Return what events carry, in their order."""
    return [event["data"] for event in events]


async def test_tail_survives_kills_without_loss_or_duplicate() -> None:
    """Through three kills in the middle of publishing, every event is printed exactly once and in order."""
    async with GatewayProcess() as gateway, tailing(gateway, "numbers.*", "--cursor=earliest") as tail:
        numbers = Numbers(gateway)
        async with numbers.published():
            await tail.read(500)
            for _ in range(3):
                gateway.kill()
                await gateway.arestart()
                await tail.read(
                    numbers.accepted + 500
                )  # some were accepted after the restart: it is connected
        await tail.read(numbers.accepted)
        code, told = await tail.interrupt()
    assert numbers_of(tail.events) == list(range(numbers.accepted))
    positions = [int(event["cursor"].split("-")[1]) for event in tail.events]
    assert positions == sorted(set(positions))
    assert code == 130
    outage = [f"lost the connection to {gateway.url}; trying again", "connected again"]
    assert told == [f"sluice tail: {line}" for line in outage * 3]


async def test_tail_survives_an_orderly_restart() -> None:
    """A gateway that is stopped and started again loses nothing for it, either."""
    async with GatewayProcess() as gateway, tailing(gateway, "#", "--cursor=earliest") as tail:
        numbers = Numbers(gateway)
        async with numbers.published():
            await tail.read(500)
            await gateway.arestart()
            await tail.read(numbers.accepted + 500)
        await tail.read(numbers.accepted)
        code, told = await tail.interrupt()
    assert numbers_of(tail.events) == list(range(numbers.accepted))
    assert code == 130
    assert told[1:] == ["sluice tail: connected again"]


async def test_tail_misses_nothing_when_the_gateway_goes_before_the_first_event() -> None:
    """What is published after the outage reaches a tail that had begun at the latest event before it."""
    async with GatewayProcess() as gateway:
        await gateway.apublish({"topic": "old", "data": "not for the tail"})
        async with tailing(gateway, "#", "--count=1") as tail:
            await until_connected(gateway)
            gateway.kill()
            await gateway.arestart()
            await gateway.apublish({"topic": "new", "data": "for the tail"})
            await tail.read(1)
            code, _ = await tail.end()
    assert numbers_of(tail.events) == ["for the tail"]
    assert code == 0


async def test_tail_tells_what_is_missing() -> None:
    """What retention took away is told as a gap, and printing goes on right behind it."""
    async with GatewayProcess() as gateway:
        began = (await gateway.apublish({"topic": "numbers.0", "data": -1}))["cursor"]
        await asyncio.to_thread(Numbers(gateway).publish, 300)
        await gateway.arestart(retention_events=100)
        async with tailing(gateway, "#", f"--cursor={began}", "--count=100") as tail:
            await tail.read(100)
            code, told = await tail.end()
    assert numbers_of(tail.events) == list(range(200, 300))
    assert code == 0
    assert len(told) == 1
    epoch = began.split("-")[0]
    assert re.fullmatch(
        rf"sluice tail: gap \(expired\): events after {epoch}-1-\w+ up to {epoch}-201-\w+ are missing",
        told[0],
    )


async def test_what_the_gateway_refuses_is_told_in_one_sentence() -> None:
    """A bad pattern, cursor or topic ends the command with the gateway's own words."""
    async with GatewayProcess(data="memory:") as gateway:
        for arguments in (["tail", "a..b"], ["tail", "#", "--cursor", "yesterday"], ["publish", "a.*", "1"]):
            done = await asyncio.to_thread(run_sluice, *arguments, "--url", gateway.url)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith(f"sluice: {gateway.url} answered 4")
            assert done.stderr.count("\n") == 1


async def test_lines_published_come_out_of_tail() -> None:
    """What one command reads line by line, the other prints line by line."""
    lines = [json.dumps({"n": n, "text": "ü" * n}) for n in range(50)]
    given = "\n".join(lines).encode()
    async with GatewayProcess() as gateway:
        done = await asyncio.to_thread(
            run_sluice, "publish", "t", "--lines", "--url", gateway.url, input=given
        )
        arguments = ("tail", "t", "--data", "--cursor=earliest", "--count=50", "--url", gateway.url)
        printed = await asyncio.to_thread(run_sluice, *arguments)
    assert (done.returncode, done.stderr, printed.returncode, printed.stderr) == (0, "", 0, "")
    assert [json.loads(line) for line in printed.stdout.splitlines()] == [json.loads(line) for line in lines]


async def until_connected(gateway: GatewayProcess) -> None:
    """Return when the gateway has a streaming connection."""
    while True:
        status, body = await asyncio.to_thread(gateway.get, "/v1/connections")
        assert status == 200
        if json.loads(body)["connections"]:
            return
        await asyncio.sleep(0.02)
