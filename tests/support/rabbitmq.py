"""
Private RabbitMQ nodes in child processes, for every test that needs a broker, and its crashes; also for
`deploy.trial` and the bench.

    with Broker() as broker:                  # one node, free ports, a temporary folder
        ... broker.url ...
        broker.kill()                         # SIGKILL, as a power cut would
        broker.start()                        # same ports, same data

    with Cluster(3) as cluster:               # three that know each other
        cluster.nodes[0].freeze()                     # SIGSTOP: the sockets stay open and nothing answers

A node uses the files of Debian's package `rabbitmq-server`, or those of the folder that RABBITMQ_SBIN names,
to try another version; but neither the package's service, its configuration nor its user. Each group of nodes
has a port mapper (epmd) of its own, so that it meets no other. Every wait has a deadline, and what a failed
node said is part of the failure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.server import free_port

START_DEADLINE: Final = 120.0
"""Seconds for a node to accept connections; it takes about five on an idle machine."""

STOP_DEADLINE: Final = 60.0
"""Seconds for a node to end after SIGTERM."""

COOKIE: Final = "sluicegate-tests"
SBIN: Final = (Path("/usr/lib/rabbitmq/bin"), Path("/usr/local/lib/rabbitmq/bin"))
ERLANG_ARGS: Final = "+S 1:1 +SDio 1 +A 1 +sbwt none +sbwtdcpu none +sbwtdio none"
"""One scheduler, and none that waits busily: a broker in the background of a small machine."""


class BrokerFailed(AssertionError):
    """A node did not do what was expected; the text has what it logged."""


def _tool(name: str) -> str:
    """Return the path of one of RabbitMQ's own scripts, not the wrapper that changes the user."""
    own = os.environ.get("RABBITMQ_SBIN")
    for folder in (Path(own),) if own else SBIN:
        if (folder / name).exists():
            return str(folder / name)
    raise BrokerFailed(
        f"{name} is not installed: run `.ci/packages rabbitmq`, or install Debian's package rabbitmq-server"
    )


def accepts(port: int) -> bool:
    """Tell whether somebody listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class PortMapper:
    """An epmd of one's own: what lets the nodes of one group find each other, and nobody else."""

    def __init__(self) -> None:
        self.port = free_port()
        epmd = shutil.which("epmd")
        if epmd is None:
            raise BrokerFailed("epmd is not installed: it comes with Debian's package rabbitmq-server")
        self._child = subprocess.Popen(
            [epmd, "-port", str(self.port), "-address", "127.0.0.1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while not accepts(self.port):
            if time.monotonic() > deadline:
                self.stop()
                raise BrokerFailed(f"epmd does not listen on port {self.port}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it. Idempotent."""
        self._child.kill()
        self._child.wait()


class Broker:
    """
    One RabbitMQ node.

    Args:
        config: lines added to its `rabbitmq.conf`.
        port: where it listens; a free port if 0.
        name: the part of its node name before `@localhost`.
        mapper: the port mapper of its group; its own if None.
        niceness: how much it gives way to others.
    """

    def __init__(
        self,
        config: Sequence[str] = (),
        *,
        port: int = 0,
        name: str = "rabbit",
        mapper: PortMapper | None = None,
        niceness: int = 10,
    ) -> None:
        self.node = f"{name}@localhost"
        self.port = port or free_port()
        self._distribution = free_port()
        self._config = list(config)
        self._niceness = niceness
        self._own_mapper = mapper is None
        self._mapper = mapper
        self._folder = tempfile.TemporaryDirectory(prefix="sluice-rabbitmq-")
        self.path = Path(self._folder.name)
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address of its default virtual host for the default user."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def machine(self) -> int:
        """Return the process id of its Erlang machine, of which the script is the parent."""
        assert self._child is not None, "it was never started"
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                number, _, rest = stat.read_text().partition(" (")
                name, _, fields = rest.rpartition(") ")
                if name == "beam.smp" and int(fields.split()[1]) == self._child.pid:
                    return int(number)
        raise BrokerFailed(f"{self.node} has no Erlang machine; it said:\n{self.log_text()}")

    def log_text(self) -> str:
        """Return the end of everything it said so far, over all restarts."""
        said = [path.read_text(errors="replace") for path in sorted(self.path.glob("*.log"))]
        return "\n".join(said)[-8000:]

    # Starting and ending

    def start(self) -> None:
        """
        Start the node and return when it accepts AMQP connections.

        Raises:
            BrokerFailed: it ended, or was not ready before the deadline.
        """
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start the node and do not wait for it."""
        assert not self.alive, "it is running already"
        if self._mapper is None:
            self._mapper = PortMapper()
        self._write_config()
        with (self.path / "console.log").open("ab") as console:
            self._child = subprocess.Popen(
                ["nice", "-n", str(self._niceness), _tool("rabbitmq-server")],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=self._environment(),
                start_new_session=True,  # the script starts the virtual machine as a child of its own
            )

    def wait_ready(self) -> None:
        """Wait until the node accepts AMQP connections."""
        assert self._child is not None, "it was never started"
        deadline = time.monotonic() + START_DEADLINE
        while not accepts(self.port):
            if self._child.poll() is not None:
                raise BrokerFailed(f"{self.node} ended; it said:\n{self.log_text()}")
            if time.monotonic() > deadline:
                self.kill()
                raise BrokerFailed(f"{self.node} not ready; it said:\n{self.log_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ask the node to end (SIGTERM) and wait until it has."""
        if self._child is None or not self.alive:
            return
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        try:
            self._child.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BrokerFailed(f"{self.node} does not stop; it said:\n{self.log_text()}") from None
        self._reap()

    def kill(self) -> None:
        """End the node at once (SIGKILL), whatever it is doing. Idempotent."""
        if self._child is not None:
            self._reap()
            self._child.wait()
            while accepts(self.port):  # the kernel takes a moment to close what it had open
                time.sleep(0.01)

    def freeze(self) -> None:
        """Let the node stand still (SIGSTOP): its sockets stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen node go on."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop the node if it runs, and start it on the same ports and data."""
        self.stop()
        self.start()

    def settle(self) -> None:
        """
        Restart in an orderly way, once everything was declared and before a test kills the node.

        RabbitMQ 3.10 writes down which streams exist minutes after they were made, or when it stops; a node
        that is killed before knows the stream but cannot start it.
        """
        self.restart()

    def control(self, *words: str, tool: str = "rabbitmqctl") -> str:
        """
        Run `rabbitmqctl`, or another tool, with `words` and return what it says; takes a second or two.

        Raises:
            BrokerFailed: it reported an error.
        """
        done = subprocess.run(
            ["nice", "-n", "10", _tool(tool), "--node", self.node, "--quiet", *words],
            env=self._environment() | {"RABBITMQ_CTL_ERL_ARGS": ERLANG_ARGS},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise BrokerFailed(f"{tool} {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def evaluate(self, expression: str) -> str:
        """
        Have the node evaluate an Erlang expression and return the result as text; takes milliseconds.

        Raises:
            BrokerFailed: the node cannot be reached, or the expression fails.
        """
        done = subprocess.run(
            ["erl_call", "-n", self.node, "-c", COOKIE, "-e"],
            input=f"{expression}.\n",
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode or not done.stdout.startswith("{ok, "):
            raise BrokerFailed(f"{expression}: {done.stdout}{done.stderr}")
        return done.stdout.removeprefix("{ok, ").removesuffix("}")

    def raise_alarm(self) -> None:
        """Let the node find that it has no memory left: it takes no more messages."""
        self.evaluate('vm_memory_monitor:set_vm_memory_high_watermark({absolute, "1MB"})')

    def lower_alarm(self) -> None:
        """Let the node have memory again."""
        self.evaluate('vm_memory_monitor:set_vm_memory_high_watermark({absolute, "512MB"})')

    def close(self) -> None:
        """End everything and remove the folder. Idempotent."""
        self.kill()
        if self._own_mapper and self._mapper is not None:
            self._mapper.stop()
            self._mapper = None
        self._folder.cleanup()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _signal(self, number: int) -> None:
        """Send a signal to the node with all its helpers: they are a process group of their own."""
        assert self._child is not None, "it was never started"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, number)

    def _reap(self) -> None:
        """Make sure that no helper of the node is left."""
        self._signal(signal.SIGKILL)

    def _write_config(self) -> None:
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            "log.console.level = warning",
            "log.file = false",
            "log.console = true",
            "disk_free_limit.absolute = 50MB",
            "vm_memory_high_watermark.absolute = 512MB",
            "loopback_users = none",
            "queue_master_locator = client-local",
            *self._config,
        ]
        (self.path / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (self.path / "enabled_plugins").write_text("[].\n")
        (self.path / "env.conf").write_text("")
        cookie = self.path / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(COOKIE)
            cookie.chmod(0o400)

    def _environment(self) -> dict[str, str]:
        assert self._mapper is not None
        folder = str(self.path)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")}
        return clean | {
            "HOME": folder,
            "ERL_EPMD_PORT": str(self._mapper.port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/env.conf",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG_ARGS
            + " -kernel inet_dist_use_interface {127,0,0,1}",
        }


class Cluster:
    """
    Several nodes on this machine that form one broker.

    Args:
        size: how many.
        config: lines added to each one's `rabbitmq.conf`.
        niceness: how much they give way to others.
    """

    def __init__(self, size: int = 3, config: Sequence[str] = (), *, niceness: int = 10) -> None:
        self._mapper = PortMapper()
        # The others join the first, which knows of nobody: one that knows of peers waits for them since 4.0.
        join = [
            "cluster_formation.peer_discovery_backend = classic_config",
            "cluster_formation.classic_config.nodes.1 = rabbit1@localhost",
        ]
        self.nodes = [
            Broker(
                [*(join if number > 1 else ()), *config],
                name=f"rabbit{number}",
                mapper=self._mapper,
                niceness=niceness,
            )
            for number in range(1, size + 1)
        ]

    @property
    def url(self) -> str:
        """One address with every node, as the gateway takes it."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"amqp://guest:guest@{hosts}/"

    def start(self) -> None:
        """Start the nodes one after the other, so that each joins those before it."""
        for node in self.nodes:
            node.start()
        deadline = time.monotonic() + START_DEADLINE
        while self.nodes[0].evaluate("[node() | nodes()]").count("@localhost") < len(self.nodes):
            if time.monotonic() > deadline:
                raise BrokerFailed("the nodes did not form a cluster")
            time.sleep(0.2)

    def close(self) -> None:
        """End everything. Idempotent."""
        for node in self.nodes:
            node.close()
        self._mapper.stop()

    def leader(self, stream: str) -> Broker:
        """Return the node that leads a stream."""
        found = f'{{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{stream}">>))'
        for node in self.nodes:
            with contextlib.suppress(BrokerFailed):  # it is down, or taken out of service
                name = node.evaluate(f"{found}, node(amqqueue:get_pid(Queue))")
                return next(each for each in self.nodes if each.node == name)
        raise BrokerFailed(f"no node knows the stream {stream}")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
