"""The processes of the bench: the gateway, the floor and the load client. Each is ended by its own object."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.build import BenchError, program
from bench.machine import cpu_seconds, free_port, wait_until

START_SECONDS = 60  # a gateway may have a long stream to read
STOP_SECONDS = 5


class Child:
    """A process pinned to one core; what it prints goes to `log`."""

    def __init__(self, command: Sequence[str], core: int, log: Path, *, talks: bool = False) -> None:
        self.log = log
        self._used = 0.0
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})  # inherited; a thread of the child can never run elsewhere
        try:
            with log.open("ab") as output:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if talks else output,
                    stderr=output,
                )
        finally:
            os.sched_setaffinity(0, own)

    @property
    def pid(self) -> int:
        return self.process.pid

    def cpu_seconds(self) -> float:
        """CPU time so far; once it has ended, what it was at the end."""
        if self.process.poll() is None:
            self._used = cpu_seconds(self.pid)
        return self._used

    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-1000:]

    def stop(self, sign: signal.Signals = signal.SIGKILL) -> None:
        """End it. Idempotent."""
        if self.process.poll() is None:
            self.cpu_seconds()
            self.process.send_signal(sign)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Served(Child):
    """A child that answers HTTP on a port of its own."""

    def __init__(self, command: Sequence[str], port: int, core: int, log: Path) -> None:
        super().__init__(command, core, log)
        self.port = port
        try:
            wait_until(self._ready, f"{command[0]} to answer /readyz", START_SECONDS)
        except BenchError as error:
            self.stop()
            raise BenchError(f"{error}\n{self.said()}") from None

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise BenchError(f"it ended with {self.process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def start_gateway(command: Sequence[str], flags: Sequence[str], data: Path, core: int, log: Path) -> Served:
    port = free_port()
    whole = [*command, "serve", "--host", "127.0.0.1", "--port", str(port), "--data", str(data), *flags]
    return Served(whole, port, core, log)


def start_floor(delivery_bytes: int, durable: Path | None, core: int, log: Path) -> Served:
    """Start the floor: `delivery_bytes` on the wire per delivery; with `durable`, it syncs before a 202."""
    port = free_port()
    extra = [] if durable is None else [str(durable)]
    return Served([str(program("floor")), str(port), str(delivery_bytes), *extra], port, core, log)


@dataclass(frozen=True, slots=True)
class Latency:
    """Quantiles in nanoseconds."""

    count: int
    p50: int
    p99: int
    p999: int
    max: int


@dataclass(frozen=True, slots=True)
class Report:
    """What the load client saw since the window began; see bench/load.c."""

    command: str
    late: bool
    seconds: float
    server_cpu: float
    own_cpu: float
    sent: int
    accepted: int
    requests: int
    refused: int
    deliveries: int
    bytes: int
    reads: int
    missing: int
    disorder: int
    unparsed: int
    gaps: int
    lost: int
    owed: int
    head: int
    cursor: str
    latency: Latency
    publish_latency: Latency
    error: str
    group: int = -1
    opened: int = 0
    failed: int = 0
    caught: int = 0
    caught_after: float = 0.0

    def sound(self, what: str) -> Report:
        """
        Return the report itself if nothing went wrong.

        Raises:
            BenchError: something was lost, doubled, refused or came too late: its figures mean nothing.
        """
        wrong = {
            name: getattr(self, name)
            for name in ("missing", "disorder", "unparsed", "gaps", "lost", "failed", "refused")
        }
        faults = [f"{count} {name}" for name, count in wrong.items() if count]
        if self.late:
            faults.append(f"not done after {self.seconds:.0f} s ({self.owed} deliveries owed)")
        if faults:
            raise BenchError(f"{what}: {', '.join(faults)}. {self.error}")
        return self


class Talking(Child):
    """A child that answers one line of JSON for each line it is told."""

    def __init__(self, command: Sequence[str], core: int, log: Path) -> None:
        super().__init__(command, core, log, talks=True)
        self.name = Path(command[0]).name
        self._text = b""

    def tell(self, words: str) -> None:
        """Say one line."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{words}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise BenchError(f"{self.name} ended: {self.said()}") from None

    def line(self, seconds: float) -> bytes:
        """Return the next line it says, within so many seconds."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        stream = self.process.stdout.fileno()
        while b"\n" not in self._text:
            ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
            got = os.read(stream, 65536) if ready else b""
            if not got:
                raise BenchError(f"{self.name} does not answer: {self.said()}")
            self._text += got
        line, _, self._text = self._text.partition(b"\n")
        return line


class Load(Talking):
    """The load client for one server. With a file of tokens its subscribers say who they are."""

    def __init__(self, server: Served, core: int, log: Path, tokens: Path | None = None) -> None:
        more = [] if tokens is None else [str(tokens)]
        super().__init__([str(program("load")), str(server.port), str(server.pid), *more], core, log)
        self.server = server

    def yield_to_others(self) -> None:
        """Give way to the other load clients on the core."""
        os.setpriority(os.PRIO_PROCESS, self.pid, os.getpriority(os.PRIO_PROCESS, 0) + 15)

    def command(self, name: str, *, timeout: float = 30, **arguments: Any) -> Report:
        """Have one command of bench/load.c done and return its report."""
        words = [name, f"timeout={timeout:g}"]
        words += [
            f"{key}={int(value) if isinstance(value, bool) else value}" for key, value in arguments.items()
        ]
        self.tell(" ".join(words))
        return msgspec.json.decode(self.line(timeout + 10), type=Report)

    def open(self, n: int, **arguments: Any) -> Report:
        """Open a group of `n` connections."""
        return self.command("open", n=n, **arguments).sound(f"opening {n} connections")

    def publish(self, **arguments: Any) -> None:
        """Begin to publish."""
        self.command("publish", **arguments)

    def measure(self, seconds: float) -> Report:
        """Go on for `seconds` and report them."""
        return self.command("measure", seconds=seconds, timeout=seconds).sound("measuring")

    def halt(self, *, finish: bool = False, timeout: float = 30) -> Report:
        """Stop publishing (with `finish`: once its count is reached), and see every delivery owed arrive."""
        return self.command("halt", finish=finish, timeout=timeout).sound("the last deliveries")

    def close(self, group: int) -> None:
        """Reset a group's connections."""
        self.command("close", group=group)


@dataclass(frozen=True, slots=True)
class Caught:
    """What the receiver of webhooks got since it was reset; see bench/catch.c."""

    requests: int
    different: int
    bytes: int
    unsigned: int
    connections: int
    ns: int
    p50: int
    p99: int


class Catch(Talking):
    """The receiver of webhooks."""

    def __init__(self, core: int, log: Path) -> None:
        self.port = free_port()
        super().__init__([str(program("catch")), str(self.port)], core, log)
        self.reset()

    def url(self, number: int) -> str:
        """Return the URL of an endpoint."""
        return f"http://127.0.0.1:{self.port}/{number}"

    def report(self) -> Caught:
        """Return what came since the last reset."""
        self.tell("report")
        return msgspec.json.decode(self.line(10), type=Caught)

    def reset(self) -> None:
        """Begin to count anew."""
        self.tell("reset")
        self.line(10)

    def all(self, different: int, seconds: float) -> Caught:
        """
        Return what came when it is so many different deliveries.

        Raises:
            BenchError: they did not come in time, or not as they should.
        """
        wait_until(lambda: self.report().different >= different, f"{different} deliveries", seconds)
        caught = self.report()
        if caught.unsigned or caught.different != different:
            raise BenchError(f"of {different} deliveries there came {caught}")
        return caught
