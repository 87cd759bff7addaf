"""
How much memory this process may have, and whether it has it.

At the watermark nothing new begins, so that what there is can go on: a kernel that runs out of memory ends
the process with everybody in it. Below 95 % of it all is as before.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.units import format_bytes, parse_bytes

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""How often the memory is looked at."""

GIVE_BACK_SECONDS: Final = 5.0
"""How often, at the limit, the kernel is given what the allocator keeps: it takes some 10 ms of a thread."""

RESUME: Final = 0.95
"""The part of the limit below which new work is taken again."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PROC: Final = Path("/proc/self")
_GROUPS: Final = Path("/sys/fs/cgroup")
_SHARE: Final = re.compile(r"(\d{1,3}(?:\.\d{1,3})?) ?%", re.ASCII)


class Memory:
    """
    The memory of this process, as last looked at.

    Args:
        limit: bytes above which nothing new begins; 0 for no limit.
        read: returns how many bytes are resident.

    Attributes:
        limit: as given.
        resident: bytes in memory.
        reached: whether new work is refused.
    """

    def __init__(self, limit: int, read: Callable[[], int] | None = None) -> None:
        self.limit = limit
        self.resident = 0
        self.reached = False
        self._read = read or resident

    def look(self) -> None:
        """Look how much it is now."""
        self.resident = self._read()
        if not self.limit:
            return
        before, self.reached = self.reached, self.resident > self.limit * (RESUME if self.reached else 1)
        if self.reached and not before:
            logger.warning("memory.full: %s, the limit is %s", _mib(self.resident), _mib(self.limit))
        elif before and not self.reached:
            logger.warning("memory.full: no longer; it is %s", _mib(self.resident))

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        again = 0.0
        now = asyncio.get_running_loop().time
        while True:
            self.look()
            if self.reached and now() >= again:
                await asyncio.to_thread(give_back)
                again = now() + GIVE_BACK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)

    def trouble(self) -> str | None:
        """Return why nothing new begins, if it does not."""
        return f"memory is at its limit of {_mib(self.limit)}" if self.reached else None


def resident() -> int:
    """Return how many bytes of this process are in memory (proc(5), statm)."""
    return int((_PROC / "statm").read_bytes().split()[1]) * _PAGE


def give_back() -> None:
    """
    Have the allocator give the kernel what is free (malloc_trim(3), glibc only).

    It keeps freed memory between what is in use, so that without this a limit once reached might stay so.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def limit_of(text: str, workers: int) -> int:
    """
    Return the limit in bytes that a setting means; 0 is none.

    Args:
        text: a size, or a part of what there is as `80%`.
        workers: processes that share what there is.

    Raises:
        ValueError: it is neither; the text says what it must be.
    """
    size = parse_bytes(text)
    if size is not None:
        return size
    share = _SHARE.fullmatch(text.strip())
    if share is None or not 0 < float(share[1]) <= 100:
        raise ValueError(f"{text!r} is no size like 512MiB, no part like 80% and not 0")
    return int(available() * float(share[1]) / 100 / workers)


def available(process: Path = _PROC, groups: Path = _GROUPS) -> int:
    """
    Return how much memory there is for this process and those beside it: what its control groups allow, or
    the machine has.
    """
    least = os.sysconf("SC_PHYS_PAGES") * _PAGE
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except OSError:
        return least
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "":  # cgroups(7), version 2
            files = _upwards(groups, path, "memory.max")
        elif "memory" in kinds.split(","):
            files = _upwards(groups / "memory", path, "memory.limit_in_bytes")
        else:
            continue
        least = min([least, *(found for each in files if (found := _number(each)) is not None)])
    return least


def _upwards(root: Path, path: str, name: str) -> list[Path]:
    """Return the files of a name in a group and those around it. A container may see only the outermost."""
    group = root / path.lstrip("/")
    inside = [each for each in (group, *group.parents) if each.is_relative_to(root)]
    return [each / name for each in (inside or [root])]


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # it is not there, or `max`
        return None


def _mib(size: int) -> str:
    return format_bytes(round(size / (1 << 20)) << 20)
