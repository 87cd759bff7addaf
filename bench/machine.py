"""What the bench asks the machine: cores, CPU time, memory, files. Linux only."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.build import BenchError

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of what is measured, and the core of everything else."""

    server: int
    client: int


def choose_cores() -> Cores:
    """
    Take the first two cores this process may use, and move to the second one.

    Raises:
        BenchError: there is only one; the load would be part of what is measured.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise BenchError("the bench needs two cores: one for the server, one for the load")
    os.sched_setaffinity(0, {allowed[1]})
    return Cores(allowed[0], allowed[1])


def raise_file_limit(needed: int) -> None:
    """
    Allow as many open files as the hard limit does; children inherit it.

    Raises:
        BenchError: that is fewer than needed.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < needed:
        raise BenchError(
            f"the bench needs {needed:,} open files a process: raise the hard limit (ulimit -Hn)"
        )


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far, to the nanosecond (`clock_getcpuclockid(3)`)."""
    return time.clock_gettime((~pid << 3) | 2)


def core_busy_seconds(core: int) -> float:
    """Seconds for which a core was not idle since boot, in steps of a tick (10 ms)."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
            return (user + nice + system + irq + softirq + steal) / TICKS
    raise BenchError(f"/proc/stat has no core {core}")


def pss_bytes(pid: int) -> int:
    """Proportional set size: the process's memory, shared pages divided among their users."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise BenchError("this kernel's smaps_rollup has no Pss")


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def wait_until(happened: Callable[[], bool], what: str, seconds: float) -> None:
    """
    Wait for a condition.

    Args:
        happened: whether it has.
        what: ends the sentence "gave up waiting for".
        seconds: how long to wait at most.

    Raises:
        BenchError: it did not happen in time.
    """
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise BenchError(f"gave up waiting for {what} after {seconds:g} s")
        time.sleep(0.02)


def free_port() -> int:
    """A free port below the range from which outgoing connections take theirs."""
    for port in range(21000 + os.getpid() % 5000, 32000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise BenchError("no free port between 21000 and 32000")


def on_real_disk(folder: Path) -> bool:
    """Whether fsync means something there: not so on tmpfs."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [(point, kind) for _, point, kind, *_ in mounts if folder.resolve().is_relative_to(point)]
    return max(holding, key=lambda mount: len(mount[0]))[1] not in {"tmpfs", "ramfs"}


def peak_rss_bytes(pid: int) -> int:
    """The most memory a process ever had, or had since it was forgotten."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchError("this kernel's status has no VmHWM")


def forget_peak_rss(pid: int) -> None:
    """Let the peak begin anew at what a process has now (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
