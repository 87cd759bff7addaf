"""The embedded log when things go wrong outside of it: kill -9 at any moment, and a disk that is full."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fanout.event import tag_of
from tests.support.log_events import everything, opened

pytestmark = pytest.mark.scenario

ROUNDS = 50


@dataclass(frozen=True, slots=True)
class Life:
    """What a child said before it was killed."""

    epoch: str
    first: int
    head: int
    acknowledged: dict[int, str]  # name by position


def _killed(folder: Path, retention: int, acknowledgements: int) -> Life:
    """Let a child append, kill it -9 after so many acknowledgements, and return everything it said."""
    command = [sys.executable, "-m", "tests.support.log_writer", str(folder), str(retention)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        lines = []
        for line in child.stdout:
            lines.append(line.decode())
            if len(lines) > acknowledgements:
                child.kill()
                break
        lines += [line.decode() for line in child.stdout]
        complaint = child.stderr.read().decode()
    assert child.returncode == -9, complaint
    word, epoch, first, head = lines[0].split()
    assert word == "open"
    pairs = [line.split() for line in lines[1:]]
    return Life(epoch, int(first), int(head), {int(position): name for position, name in pairs})


@pytest.mark.parametrize("retention", [0, 200], ids=["all kept", "with retention"])
async def test_kill_while_appending(tmp_path: Path, retention: int) -> None:
    """
    Whatever was acknowledged before a kill -9 is there afterwards, under a position nothing else ever had.

    With retention the same holds for what it leaves, and a kill between a deletion and the next append
    does not make a position come twice.
    """
    chance = random.Random(retention)
    acknowledged: dict[int, str] = {}
    epochs = set()
    for _ in range(ROUNDS if retention == 0 else ROUNDS // 2):
        life = _killed(tmp_path, retention, chance.randrange(1, 400))
        assert life.acknowledged
        assert life.head >= max(acknowledged, default=0)
        assert min(life.acknowledged) > life.head, "a position was given twice"
        acknowledged |= life.acknowledged
        epochs.add(life.epoch)
        async with opened(tmp_path, retention_events=retention) as log:
            found = {one.position: one for one in await everything(log, max_bytes=1 << 20)}
            assert list(found) == list(range(log.first, log.head + 1))
            kept = {position: name for position, name in acknowledged.items() if position >= log.first}
            assert not retention or log.first > log.head - retention
            assert retention or log.first == 1
            for position, name in kept.items():
                assert found[position].tag == tag_of(name)
                assert f'"id":"{name}"'.encode() in found[position].body
            epochs.add(log.epoch)
    assert len(epochs) == 1


def test_full_disk(tmp_path: Path) -> None:
    """
    A full disk refuses producers with a reason and a time to retry, loses nothing, and heals by itself.

    The disk is a tmpfs of 3 MiB, mounted where only the child sees it.
    """
    command = ["unshare", "--mount", sys.executable, "-m", "tests.support.log_full", str(tmp_path)]
    if os.geteuid():
        command.insert(1, "--map-root-user")
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert child.returncode == 0, (
        "this test mounts a tmpfs in a mount namespace of its own (unshare --mount, from util-linux), which "
        f"needs root or user namespaces; the child said: {child.stderr}"
    )
    facts = json.loads(child.stdout)
    full = facts["before"]
    assert full > 10
    assert facts["failures"], "nobody was told"
    assert {reason for reason, _ in facts["failures"]} == {"the disk is full"}
    assert all(1 <= retry_after <= 5 for _, retry_after in facts["failures"])
    assert facts["queued while full"] == 0
    assert facts["read while full"] == full
    assert facts["position after"] == full + 1, "a commit that failed used up a position"
    assert facts["more"] > full + 20, "the space that came back was not used"
    assert facts["after restart"] == list(range(1, facts["head"] + 1))
    assert facts["head after restart"] == facts["head"]
