"""
Private PostgreSQL servers in child processes, for every test that needs a database, and its crashes.

    with Postgres() as database:              # one server, a free port, a temporary folder
        url = database.make()                 # a new, empty database of its own
        database.kill()                       # SIGKILL to all its processes, as a power cut would
        database.start()                      # same port, same data
        database.freeze()                     # SIGSTOP: the sockets stay open and nothing answers

A server uses the files of Debian's package `postgresql`, but neither its service nor its cluster. PostgreSQL
refuses to run as root, so root runs it as the user `nobody`. Every wait has a deadline, and what a failed
server said is part of the failure.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.rabbitmq import accepts
from tests.support.server import free_port

START_DEADLINE: Final = 60.0
"""Seconds for a server to answer queries; it takes less than one on an idle machine."""

STOP_DEADLINE: Final = 30.0
"""Seconds for a server to end when it is asked to."""

SUPERUSER: Final = "postgres"
USER: Final = "sluice"
PASSWORD: Final = "hush-hush"

_numbers = count(1)


class DatabaseFailed(AssertionError):
    """A server did not do what was expected; the text has what it logged."""


def _programs() -> Path:
    """Return the folder of the newest PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    if (postgres := shutil.which("postgres")) is not None:
        return Path(postgres).resolve().parent
    raise DatabaseFailed(
        "PostgreSQL is not installed: run `.ci/packages postgres`, or install Debian's package postgresql"
    )


def _somebody() -> dict[str, Any]:
    """Return what makes a child process run as a user whom PostgreSQL accepts."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class Postgres:
    """
    One PostgreSQL server. The user `sluice` has a password and owns the databases that `make` makes.

    Args:
        settings: lines of its `postgresql.conf`.
        tls: whether it has a certificate, `certificate`, for `localhost` and 127.0.0.1, signed by itself.
    """

    def __init__(self, settings: Mapping[str, str] | None = None, *, tls: bool = False) -> None:
        self.port = free_port()
        self._settings = dict(settings or {})
        self._programs = _programs()
        self._user = _somebody()
        self._folder = tempfile.TemporaryDirectory(prefix="sluice-postgres-", ignore_cleanup_errors=True)
        self.path = Path(self._folder.name)
        self.certificate = self.path / "server.crt"
        self._tls = tls
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def version(self) -> str:
        """Its version, as it calls itself."""
        return self.query("SHOW server_version")[0][0]

    def url(self, name: str, user: str = USER, password: str = PASSWORD, more: str = "") -> str:
        """Return the address of one of its databases."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{name}{more}"

    def make(self, *, owner: str = USER, encoding: str = "UTF8") -> str:
        """Make a new, empty database and return its address for the user `sluice`."""
        name = f"test{next(_numbers)}"
        self.query(
            f"CREATE DATABASE {name} OWNER {owner} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' "
            "LC_CTYPE 'C'"
        )
        return self.url(name)

    def query(self, sql: str, database: str = "postgres") -> list[list[str]]:
        """
        Run statements as the superuser and return the rows of the last.

        Args:
            sql: what to run.
            database: the name of the database, or an address of `make`.

        Raises:
            DatabaseFailed: the server refused them.
        """
        name = database.rpartition("/")[2].partition("?")[0]
        done = subprocess.run(
            [
                *(self._programs / "psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align"),
                *("--field-separator=\t", "-v", "ON_ERROR_STOP=1", "-h", self.path, "-p", str(self.port)),
                *("-U", SUPERUSER, "-d", name, "-c", sql),
            ],
            capture_output=True,
            text=True,
            timeout=START_DEADLINE,
            check=False,
            env=self._environment(),
        )
        if done.returncode:
            raise DatabaseFailed(f"{sql}: {done.stderr}")
        return [line.split("\t") for line in done.stdout.splitlines()]

    def log_text(self) -> str:
        """Return the end of everything it said so far, over all restarts."""
        log = self.path / "log"
        return log.read_text(errors="replace")[-8000:] if log.exists() else ""

    # Starting and ending

    def start(self) -> None:
        """
        Start the server and return when it answers queries.

        Raises:
            DatabaseFailed: it ended, or was not ready before the deadline.
        """
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start the server and do not wait for it."""
        assert not self.alive, "it is running already"
        if not (self.path / "data").exists():
            self._make_cluster()
        with (self.path / "log").open("ab") as log:
            self._child = subprocess.Popen(
                [self._programs / "postgres", "-D", self.path / "data"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.path,
                env=self._environment(),
                start_new_session=True,
                **self._user,
            )

    def wait_ready(self) -> None:
        """Wait until the server answers queries."""
        assert self._child is not None, "it was never started"
        deadline = time.monotonic() + START_DEADLINE
        while not self._answers():
            if self._child.poll() is not None:
                raise DatabaseFailed(f"PostgreSQL ended; it said:\n{self.log_text()}")
            if time.monotonic() > deadline:
                self.kill()
                raise DatabaseFailed(f"PostgreSQL is not ready; it said:\n{self.log_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Have the server end, its clients cut off, and wait until it has."""
        if self._child is None or not self.alive:
            return
        self._child.send_signal(signal.SIGINT)  # a "fast" shutdown
        try:
            self._child.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise DatabaseFailed(f"PostgreSQL does not stop; it said:\n{self.log_text()}") from None

    def kill(self) -> None:
        """End all its processes at once (SIGKILL), whatever they are doing. Idempotent."""
        if self._child is None or not self.alive:
            return
        family = self._family()
        for pid in family:
            _signal(pid, signal.SIGKILL)
        self._child.wait()
        while any(map(_lives, family)) or accepts(self.port):  # the kernel takes a moment
            time.sleep(0.01)

    def freeze(self) -> None:
        """Let all its processes stand still (SIGSTOP): its sockets stay open and nothing answers."""
        for pid in self._family():
            _signal(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        for pid in self._family():
            _signal(pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop the server if it runs, and start it on the same port and data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End everything and remove the folder. Idempotent."""
        self.kill()
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

    def _family(self) -> list[int]:
        """
        Return the server's first process and all the others, with the first one stopped: it makes no more.

        Each of them is a process group of its own, so only their parent tells that they belong together.
        """
        assert self._child is not None, "it was never started"
        _signal(self._child.pid, signal.SIGSTOP)
        return [self._child.pid, *_children(self._child.pid)]

    def _answers(self) -> bool:
        with contextlib.suppress(DatabaseFailed):
            return self.query("SELECT 1") == [["1"]]
        return False

    def _make_cluster(self) -> None:
        """Make the folder of the data, and the user."""
        if self._user:
            os.chown(self.path, self._user["user"], self._user["group"])
        self._run(
            *(self._programs / "initdb", "-D", self.path / "data", "-U", SUPERUSER, "--no-sync"),
            *("--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C"),
        )
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.path),
            "max_connections": "40",
            "shared_buffers": "32MB",
            "log_min_messages": "warning",
            **self._settings,
        }
        if self._tls:
            self._make_certificate()
            settings |= {"ssl": "on", "ssl_cert_file": "../server.crt", "ssl_key_file": "../server.key"}
        lines = [f"{name} = '{value}'\n" for name, value in settings.items()]
        with (self.path / "data" / "postgresql.conf").open("a") as file:
            file.writelines(lines)
        # Needs no server that runs, and so no wait for one.
        self._run(
            *(self._programs / "postgres", "--single", "-D", self.path / "data", "postgres"),
            text=f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'\n",
        )

    def _make_certificate(self) -> None:
        self._run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", self.path / "server.key", "-out", self.certificate),
        )
        self.certificate.chmod(0o644)
        self.path.chmod(0o755)  # so that clients who are somebody else can read the certificate

    def _run(self, *command: str | Path, text: str = "") -> None:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=START_DEADLINE,
            check=False,
            cwd=self.path,
            env=self._environment(),
            **self._user,
        )
        if done.returncode:
            raise DatabaseFailed(f"{command[0]}: {done.stdout}{done.stderr}")

    def _environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return clean | {"HOME": str(self.path), "LC_ALL": "C"}


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _lives(pid: int) -> bool:
    """Return whether a process is there and has not ended; one that nobody has asked about yet has."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _children(parent: int) -> list[int]:
    """Return the processes that a process started and that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name before the last ")" may hold spaces; the parent is the second field behind it.
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found
