"""
A child process that appends to a log until it is killed: `python -m tests.support.log_writer FOLDER KEPT`.

Its lines: `open EPOCH FIRST HEAD` once, then `POSITION NAME` for every event that was acknowledged. KEPT is
the number of events that retention leaves, 0 for all.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from fanout.event import Event
from tests.support.log_events import event, opened

PUBLISHERS = 8


async def main(folder: Path, retention: int) -> None:
    """Append with several publishers, some singles and some arrays."""
    async with opened(folder, retention_events=retention, trim_seconds=0.001) as log:
        _say([f"open {log.epoch} {log.first} {log.head}"])

        async def publish(publisher: int) -> None:
            count = 0
            while True:
                names = [f"{os.getpid()}-{publisher}-{count + index}" for index in range(publisher + 1)]
                count += len(names)
                batch = [event(name, size=150 * (publisher + 1)) for name in names]
                await log.append(batch)
                _say([_line(one, name) for one, name in zip(batch, names, strict=True)])

        await asyncio.gather(*[publish(index) for index in range(PUBLISHERS)])


def _line(event: Event, name: str) -> str:
    return f"{event.position} {name}"


def _say(lines: list[str]) -> None:
    """Hand lines to the parent in one piece that a kill cannot tear; what the pipe has, the parent gets."""
    os.write(1, "".join(f"{line}\n" for line in lines).encode())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
