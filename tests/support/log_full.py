"""
A child process that fills a disk for real: `python -m tests.support.log_full FOLDER`.

In a mount namespace of its own it mounts a small tmpfs over FOLDER, appends until the disk is full, makes
room, goes on, and prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gateway.log import LogUnavailable
from gateway.sqlite_log import SqliteLog
from tests.support.log_events import event, everything, opened

DISK_BYTES = 3 * 1024 * 1024
BALLAST_BYTES = 2 * 1024 * 1024


def mount(folder: Path) -> None:
    """Put a disk of DISK_BYTES over the folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True)


async def main(folder: Path) -> dict[str, Any]:
    """Return what happened when the disk was full, and after."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(BALLAST_BYTES))
    facts: dict[str, Any] = {}
    async with opened(folder) as log:
        facts["before"] = await _append_until_full(log)
        failures = await _failures(log)
        facts["failures"] = [[str(failure), failure.retry_after] for failure in failures]
        facts["queued while full"] = log.statistics().queued_events
        facts["read while full"] = len(await everything(log))
        ballast.unlink()
        facts["position after"] = await _append(log)
        facts["more"] = await _append_until_full(log)
        facts["head"] = log.head
    async with opened(folder) as log:
        facts["after restart"] = [one.position for one in await everything(log)]
        facts["head after restart"] = log.head
    return facts


async def _append(log: SqliteLog) -> int:
    one = event("a", size=10_000)
    await log.append([one])
    return one.position


async def _append_until_full(log: SqliteLog) -> int:
    """Append until that fails; return the position of the last one that did not."""
    while True:
        try:
            await _append(log)
        except LogUnavailable:
            return log.head


async def _failures(log: SqliteLog) -> list[LogUnavailable]:
    """Return what several callers get who come at once, one with a large call and one with nothing."""
    calls = [[event("a", size=200_000)], [event("b", size=500_000)], [event("c")] * 100, []]
    outcomes = await asyncio.gather(*[log.append(call) for call in calls], return_exceptions=True)
    return [outcome for outcome in outcomes if isinstance(outcome, LogUnavailable)]


if __name__ == "__main__":
    mount(Path(sys.argv[1]))
    sys.stdout.write(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
