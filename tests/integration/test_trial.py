"""`make serve-rabbitmq`: a trial begins with all it needs, says what to type, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time

import pytest

from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess, clean_environment
from tests.support.trial import CHECKOUT, Trial

pytestmark = pytest.mark.integration

DEADLINE = 30.0


def await_nothing_left(trial: Trial, seconds: float = DEADLINE) -> None:
    """Wait until no process and no folder of a trial is left."""
    deadline = time.monotonic() + seconds
    while left := trial.left():
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_what_it_says_to_type_works() -> None:
    """The commands that are shown, typed as they are, publish an event and follow it on both replicas."""
    with Trial("--retention-seconds=1d") as trial:
        commands = [line.strip() for line in trial.said().splitlines() if line.startswith("    ")]
        *follow, publish = commands
        assert [f"--url http://127.0.0.1:{trial.port + number}" in follow[number] for number in (0, 1)]
        tails = [
            subprocess.Popen(
                shlex.split(f"{each} --cursor earliest --count 1"),
                cwd=CHECKOUT,
                env=clean_environment(),
                stdout=subprocess.PIPE,
            )
            for each in follow
        ]
        subprocess.run(shlex.split(publish), cwd=CHECKOUT, check=True, timeout=DEADLINE)
        cursors = set()
        for each in tails:
            answer, _ = each.communicate(timeout=DEADLINE)
            assert b'"topic":"orders.42"' in answer
            assert b'"data":{"total": 12.5}' in answer
            cursors.update(re.findall(rb'"cursor":"([^"]+)"', answer))
        assert len(cursors) == 1
        assert trial.interrupt() == 0
        assert trial.said().endswith("Ended.\n")
        assert trial.left() == []


def test_nothing_is_left_when_it_is_killed() -> None:
    """After kill -9 neither broker nor replica nor folder is left, within seconds."""
    with Trial() as trial:
        assert len(trial.left()) > 4
        trial.kill()
        await_nothing_left(trial)


def test_it_ends_when_make_is_killed() -> None:
    """When make is killed it ends in its orderly way, although nobody could tell it."""
    with Trial(by_make=True) as trial:
        trial.kill()
        await_nothing_left(trial)
        assert trial.said().endswith("Ended.\n")


def test_one_replica_may_be_killed() -> None:
    """The other goes on; when none is left the trial is over."""
    with Trial() as trial:
        first, second = map(int, re.findall(r"\(process (\d+)\)", trial.said()))
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + DEADLINE
        while "ended with the exit code -9" not in trial.said():
            assert time.monotonic() < deadline, trial.said()
            time.sleep(0.05)
        os.kill(second, signal.SIGTERM)
        while not trial.said().endswith("no replica is left\n"):
            assert time.monotonic() < deadline, trial.said()
            time.sleep(0.05)


def test_a_broker_that_is_there_is_used() -> None:
    """With `--backbone` no other is started, and what is published lies on that one."""
    with Broker() as broker:
        url = broker.url.rstrip("/")
        with Trial(f"--backbone={url}", "--stream=own") as trial:
            assert "Starting" not in trial.said()
            assert ":guest@" not in trial.said()
            listed = broker.control("list_queues", "name")
            assert "own" in listed.split()


def test_a_port_that_is_taken_is_named() -> None:
    """One sentence says which port is taken, before anything is started."""
    trial = Trial()
    with GatewayProcess(port=trial.port + 1):
        trial.launch()
        assert trial.wait() == 1
        assert (
            trial.said() == f"port {trial.port + 1} is taken: end what listens there, or give other ports\n"
        )
    trial.close()
