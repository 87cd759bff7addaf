"""The lab: starts what a row needs on the right core and ends all of it afterwards, whatever happens."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from bench.broker import Node, Peer
from bench.children import Catch, Child, Load, Served, start_floor, start_gateway
from bench.machine import Cores, core_busy_seconds, on_real_disk
from tests.support.postgres import Postgres

REPEAT_SECONDS = 10  # per row; the whole run stays within its eight minutes

C = TypeVar("C", bound=Child | Node)


@dataclass(frozen=True, slots=True)
class Plan:
    """
    How thorough a run is.

    Args:
        command: what starts the gateway; `serve` and its flags are appended.
        flags: further flags for it.
        cores: where server and load run.
        profile: where cProfile's file about the gateway goes; None to run it as it is.
        quick: fewer and shorter rounds, fewer connections: to see that all is well, not to compare.
        stand_in: put a second floor in the gateway's place; every ratio is then 1 but for noise.
    """

    command: tuple[str, ...]
    flags: tuple[str, ...]
    cores: Cores
    profile: Path | None
    quick: bool
    stand_in: bool


class Lab:
    """The processes of one row; a context manager."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rounds = 1 if plan.quick else 3
        self.length = 0.5 if plan.quick else 1.0  # of a round, as a share of the usual
        self.warm_up = 0.2 if plan.quick else 0.4  # seconds before a round counts
        self._stack = ExitStack()
        self._children: list[Child | Node] = []
        self._folder = Path(tempfile.mkdtemp(prefix="sluicegate-bench-"))
        self._stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self._began = time.monotonic()
        self._repeats = 0.0 if plan.quick else REPEAT_SECONDS
        self._others = self.others_seconds()
        self.on_disk = on_real_disk(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def scaled(self, n: int) -> int:
        """A number of connections or topics, smaller in a quick run."""
        return n // 5 if self.plan.quick else n

    def gateway(self, *flags: str, prepare: Callable[[Path], None] = lambda _: None) -> Served:
        """Start the gateway with an empty log of its own, after its data folder was prepared."""
        if self.plan.stand_in:
            return self.floor(300)
        name = self._name("gateway")
        more = (*self.plan.flags, *flags)
        data, log = self._folder / name, self._folder / f"{name}.log"
        prepare(data)
        profiler = () if self.plan.profile is None else profiled(self.plan.profile)
        command = (*profiler, *self.plan.command)
        # Killed, for it has nothing to say any more; but a profile is written at an orderly end only.
        sign = signal.SIGKILL if self.plan.profile is None else signal.SIGINT
        return self._keep(start_gateway(command, more, data, self.plan.cores.server, log), sign)

    def floor(self, delivery_bytes: int, *, durable: bool = False) -> Served:
        """Start the floor for deliveries of so many bytes."""
        name = self._name("floor")
        file = self._folder / name if durable else None
        log = self._folder / f"{name}.log"
        return self._keep(start_floor(delivery_bytes, file, self.plan.cores.server, log))

    def load(self, server: Served, tokens: Path | None = None) -> Load:
        """Start a load client for a server; with a file of tokens its subscribers say who they are."""
        log = self._folder / f"{self._name('load')}.log"
        return self._keep(Load(server, self.plan.cores.client, log, tokens))

    def file(self, name: str, content: str) -> Path:
        """Write a file that is there as long as the lab is."""
        path = self._folder / self._name(name)
        path.write_text(content)
        return path

    def catch(self) -> Catch:
        """Start a receiver of webhooks."""
        return self._keep(Catch(self.plan.cores.client, self._folder / f"{self._name('catch')}.log"))

    def database(self) -> str:
        """Start a PostgreSQL server of our own, beside the load; return the address of a database in it."""
        return self._stack.enter_context(Postgres()).make()

    def broker(self) -> Node:
        """Start a broker of our own, beside the load."""
        return self._keep(Node())

    def peer(self, name: str, node: Node) -> Peer:
        """Start one of the programs in bench/peers.py, where the gateway runs."""
        log = self._folder / f"{self._name(name)}.log"
        return self._keep(Peer(name, node.url, self.plan.cores.server, log))

    def others_seconds(self) -> float:
        """Seconds of both cores used so far by anything but our children; only differences mean something."""
        cores = core_busy_seconds(self.plan.cores.server) + core_busy_seconds(self.plan.cores.client)
        return cores - sum(child.cpu_seconds() for child in self._children)

    def disturbance(self) -> float:
        """How much of a core others have used since the lab opened."""
        return max(0.0, self.others_seconds() - self._others) / (time.monotonic() - self._began)

    def may_repeat(self, seconds: float) -> bool:
        """Whether a disturbed round of so many seconds may be repeated; a row has a budget for that."""
        self._repeats -= seconds
        return self._repeats > 0

    def said(self) -> str:
        """What the gateways printed, for a failure's sake."""
        return "\n".join(
            filter(None, (child.said() for child in self._children if isinstance(child, Served)))
        )

    def _name(self, kind: str) -> str:
        return f"{kind}-{len(self._children)}"

    def _keep(self, child: C, sign: signal.Signals = signal.SIGKILL) -> C:
        self._children.append(child)
        self._stack.callback(child.stop, sign)
        return child


def profiled(file: Path) -> tuple[str, ...]:
    """What to put before a Python program's command to have it profiled."""
    return (sys.executable, "-m", "cProfile", "-o", str(file))
