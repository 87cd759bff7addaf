"""
The reaper: ends what a process left behind that was killed.

    python -m deploy.reaper MARK FOLDER

It waits for the end of its standard input, which comes when the process that started it is gone, however that
went. Then it kills every process whose environment has `TRIAL=MARK` and removes the folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

VARIABLE: Final = "TRIAL"
"""The variable by which processes are recognised: whoever is started inherits it."""


def marked(mark: str) -> list[int]:
    """Return the processes that carry a mark, but for this one."""
    wanted = f"{VARIABLE}={mark}".encode()
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            with suppress(OSError):  # it is somebody else's, or gone
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def reap(mark: str) -> None:
    """Kill all that carry a mark, and what they start meanwhile, for ten seconds at most."""
    deadline = time.monotonic() + 10
    while (left := marked(mark)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def main(mark: str, folder: str) -> None:
    """Wait, then clean up."""
    sys.stdin.buffer.read()
    reap(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
