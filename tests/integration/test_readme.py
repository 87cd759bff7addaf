"""
The README, tried: every command of its tour runs in a terminal, and what it shows is what the README shows.

What differs from run to run (cursors, ids, times, names) is matched by shape, and consistently: the same text
in the README stands for the same text in the output, all along the tour. Positions in cursors are compared as
they are.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support.command import run_sluice
from tests.support.server import GatewayProcess, clean_environment, free_port
from tests.support.trial import Trial

pytestmark = pytest.mark.integration

CHECKOUT: Final = Path(__file__).parents[2]
README: Final = (CHECKOUT / "README.md").read_text()
DEADLINE: Final = 20.0
DONE: Final = "--command done--"

_SECTION = re.compile(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What the WebSocket client sends besides: it opens a line above the one where its user types.
_SCREEN_CONTROL = re.compile(r"\x1b7\n\x1b\[A\x1b\[L|\x1b7\n?\Z|\x1b8\x1b\[B|\x1b\[K|\r")
_PROMPTS = re.compile(r"^(?:> )+", re.MULTILINE)
# They may come at any time, and the README says so.
_HEARTBEATS = re.compile(r'^(?:< )?\{"control":"heartbeat"[^\n]*\n|(?<=\n\n)id: \S+\n\n', re.MULTILINE)
_VARYING = re.compile(
    r"""
    (?P<cursor>(?<![\w-])[a-z2-7]{6}-\d+-[0-9a-f]{4}(?![\w-]))
    | (?P<id>(?<="id":")(?:[a-z2-7]{10}[0-9a-f]+|[a-z2-7]{6}-\d+)(?="))
    | (?P<connection>(?<="connection":")[0-9a-f]{6}-\d+(?="))
    | (?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)
    | (?P<retry>(?<=^retry:\ )\d+$)
    | (?P<name>(?:wh|dl)_[a-z2-7_]+)
    | (?P<secret>whsec_[A-Za-z0-9+/]{43}=)
    | (?P<token>rq_[A-Za-z0-9_-]{28})
    | (?P<duration>(?<=\ after\ )\d+(?=\ ms))
    """,
    re.VERBOSE,
)
_REPEATED = (
    "cursor",
    "id",
    "connection",
    "name",
    "token",
)  # what has to stand for the same thing wherever it is shown


def section(title: str) -> str:
    """Return the text of one section of the README."""
    found = dict(_SECTION.findall(README))
    assert title in found, f"the README has no section {title!r}"
    return str(found[title])


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return [body for kind, body in _BLOCK.findall(text) if kind == language]


@dataclass(frozen=True, slots=True)
class Step:
    """What happens in one terminal: a command or a typed line, if any, and what is shown then."""

    terminal: str
    command: str | None
    typed: str | None
    shown: tuple[str, ...]
    interrupted: bool


def steps(block: str) -> Iterator[Step]:
    """Take a console block apart; a line that begins with a space belongs to the one above it."""
    terminal, command, typed, shown = "", None, None, list[str]()
    for line in re.sub(r"\n +", "", block).splitlines():
        prompt = re.fullmatch(r"(\d)(?:\$ (.+)|:)", line)
        if prompt is None and not line.startswith("> ") and line != "^C":
            shown.append(line)
            continue
        if terminal:
            yield Step(terminal, command, typed, tuple(shown), interrupted=line == "^C")
        command = typed = None
        shown = []
        if prompt is not None:
            terminal, command = prompt[1], prompt[2]
        elif line != "^C":
            typed = line.removeprefix("> ")
        else:
            terminal = ""
    if terminal:
        yield Step(terminal, command, typed, tuple(shown), interrupted=False)


class Names:
    """Which text of the README stands for which text of this run."""

    def __init__(self) -> None:
        self._meant: dict[tuple[str, str], str] = {}
        self._shown: dict[tuple[str, str], str] = {}

    def agree(self, shown: str, actual: str) -> bool:
        """Tell whether two lines say the same."""
        varying = list(_VARYING.finditer(shown)), list(_VARYING.finditer(actual))
        if _VARYING.sub("…", shown) != _VARYING.sub("…", actual):
            return False
        return all(
            each.lastgroup == other.lastgroup and self._same(each.lastgroup or "", each[0], other[0])
            for each, other in zip(*varying, strict=True)
        )

    def _same(self, kind: str, shown: str, actual: str) -> bool:
        if kind == "cursor" and shown.split("-")[1] != actual.split("-")[1]:
            return False
        if kind not in _REPEATED:
            return True
        meant = self._meant.setdefault((kind, shown), actual)
        return meant == actual and self._shown.setdefault((kind, actual), shown) == shown


class Terminal:
    """
    A shell in a folder, as a reader has one, with pipes in place of a screen.

    Args:
        folder: where it is.
        environ: its environment.
    """

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._shell = subprocess.Popen(
            ["bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environ,
        )
        self._said = b""
        self._taken = 0  # lines
        self._more = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def give(self, line: str) -> None:
        """Type a line, for the shell or for the command that is running."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(line.encode() + b"\n")
        self._shell.stdin.flush()

    def take(self, count: int) -> list[str]:
        """Wait until so many more lines have been shown, and return them."""
        with self._more:
            arrived = self._more.wait_for(lambda: len(self._lines()) >= count, DEADLINE)
            lines = self._lines()
            assert arrived, f"only this was shown within {DEADLINE} s: {lines}"
            self._taken += count
        return lines[:count]

    def finish(self) -> list[str]:
        """Wait until the command at hand has ended; return what it showed beyond what was taken."""
        self.give(f"printf '\\n%s\\n' '{DONE}'")
        with self._more:
            ended = self._more.wait_for(lambda: DONE in self._lines(), DEADLINE)
            lines = self._lines()
            assert ended, f"it does not end within {DEADLINE} s, and showed {lines}"
            self._taken += lines.index(DONE) + 1
        return trimmed(lines[: lines.index(DONE)])

    def interrupt(self) -> None:
        """Press Ctrl-C, and wait until the command at hand is gone."""
        for child in self._children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGINT)
        deadline = time.monotonic() + DEADLINE
        while self._children():
            assert time.monotonic() < deadline, f"it does not end by Ctrl-C, and showed {self._lines()}"
            time.sleep(0.02)
        self.finish()

    def close(self) -> None:
        """End the shell and what runs in it."""
        for process in (*self._children(), self._shell.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._shell.wait()
        self._listener.join(DEADLINE)
        for pipe in (self._shell.stdin, self._shell.stdout):
            assert pipe is not None
            pipe.close()

    def _children(self) -> list[int]:
        path = Path(f"/proc/{self._shell.pid}/task/{self._shell.pid}/children")
        return [int(child) for child in path.read_text().split()]

    def _listen(self) -> None:
        assert self._shell.stdout is not None
        while data := os.read(self._shell.stdout.fileno(), 65_536):
            with self._more:
                self._said += data
                self._more.notify_all()

    def _lines(self) -> list[str]:
        """Return the complete lines that were shown and not taken yet."""
        text = _PROMPTS.sub("", _SCREEN_CONTROL.sub("", self._said.decode(errors="replace")))
        text = _HEARTBEATS.sub("", text)
        return text.split("\n")[self._taken : -1]


def trimmed(lines: list[str]) -> list[str]:
    """Return lines without the empty ones at their end: an answer may or may not end with a line break."""
    return "\n".join(lines).rstrip("\n").split("\n") if any(lines) else []


class Tour:
    """
    A tour, walked step by step.

    Args:
        places: what the README has at which address, with the address it has in this run.
        folder: where the commands are run.
    """

    def __init__(self, places: dict[str, str], folder: Path) -> None:
        self._places = places
        self._url = f"http://{places['127.0.0.1:8000']}"
        self._names = Names()
        environ = {**clean_environment(), "SLUICE_URL": self._url, "no_proxy": "127.0.0.1"}
        self._terminals = {name: Terminal(folder, environ) for name in "12"}
        self._running: dict[str, str] = {}  # terminal -> the command that goes on in it

    def walk(self, steps: list[Step]) -> None:
        """Take all steps, comparing what is shown."""
        for at, step in enumerate(steps):
            following = next((each for each in steps[at + 1 :] if each.terminal == step.terminal), None)
            goes_on = step.interrupted or (following is not None and following.command is None)
            self._take(step, goes_on=goes_on)

    def close(self) -> None:
        """Close the terminals."""
        for terminal in self._terminals.values():
            terminal.close()

    def _take(self, step: Step, *, goes_on: bool) -> None:
        terminal = self._terminals[step.terminal]
        if step.command is not None:
            terminal.give(self.here(step.command))
            self._running[step.terminal] = step.command
        if step.typed is not None:
            terminal.give(step.typed)
        if goes_on:
            self._compare(step, terminal.take(len(step.shown)))
            if step.command is not None and not step.shown and "wait=" in step.command:
                self._await_poll()
        else:
            self._compare(step, terminal.finish())
        if step.interrupted:
            terminal.interrupt()

    def _compare(self, step: Step, actual: list[str]) -> None:
        shown = [self.here(line) for line in step.shown]
        if len(actual) != len(shown):
            shown, actual = trimmed(shown), trimmed(actual)
        agree = len(shown) == len(actual) and all(map(self._names.agree, shown, actual))
        assert agree, "\n".join(
            [f"{self._running[step.terminal]} shows", *actual, "and not, as the README says,", *shown]
        )

    def _await_poll(self) -> None:
        """Wait until the gateway on port 8000 has a long poll waiting."""
        deadline = time.monotonic() + DEADLINE
        while b'"poll-' not in get(f"{self._url}/v1/connections"):
            assert time.monotonic() < deadline, "the long poll did not begin"
            time.sleep(0.02)

    def here(self, text: str) -> str:
        """Return a command or an output of the README as it is in this run."""
        here = re.sub("|".join(map(re.escape, self._places)), lambda found: self._places[found[0]], text)
        return here.replace(".venv/bin/", f"{Path(sys.executable).parent}/")


# --- the tests ----------------------------------------------------------------------------------------------


def test_the_tour_shows_what_the_readme_says(tmp_path: Path) -> None:
    """Every command of the tour, run in its terminal, shows what stands below it."""
    walked = [step for block in blocks(section("Tour in 60 seconds"), "console") for step in steps(block)]
    assert sum(step.command is not None for step in walked) >= 15, "the tour was not found"
    with GatewayProcess(data="memory:") as gateway:
        tour = Tour({"127.0.0.1:8000": f"{gateway.host}:{gateway.port}"}, tmp_path)
        try:
            tour.walk(walked)
        finally:
            tour.close()


def test_the_tour_on_rabbitmq_shows_what_the_readme_says(tmp_path: Path) -> None:
    """A plain AMQP client publishes, and all transports of both replicas have its events at equal cursors."""
    text = section("On RabbitMQ")
    walked = [step for block in blocks(text, "console") for step in steps(block)]
    assert sum(step.command is not None for step in walked) >= 12, "the tour was not found"
    (program,) = blocks(text, "python")
    with Trial() as trial:
        places = {
            "127.0.0.1:8000": f"127.0.0.1:{trial.port}",
            "127.0.0.1:8001": f"127.0.0.1:{trial.port + 1}",
            "127.0.0.1:5673": f"127.0.0.1:{trial.amqp_port}",
        }
        tour = Tour(places, tmp_path)
        (tmp_path / "publish.py").write_text(tour.here(program))
        try:
            tour.walk(walked)
        finally:
            tour.close()


def test_the_tour_of_webhooks_shows_what_the_readme_says(tmp_path: Path) -> None:
    """A webhook is made, and an event and a test of it arrive."""
    text = section("Webhooks")
    walked = [step for block in blocks(text, "console") for step in steps(block)]
    assert sum(step.command is not None for step in walked) >= 6, "the tour was not found"
    assert text.count("\n") <= 27, "a glance should do"
    with GatewayProcess(data="memory:", webhooks_allow="127.0.0.0/8") as gateway:
        tour = Tour({"127.0.0.1:8000": f"{gateway.host}:{gateway.port}"}, tmp_path)
        try:
            tour.walk(walked)
        finally:
            tour.close()


def test_the_tour_of_requests_shows_what_the_readme_says(tmp_path: Path) -> None:
    """A worker runs the handler; the client that waits has the result, and what fails is tried again."""
    text = section("Requests")
    walked = [step for block in blocks(text, "console") for step in steps(block)]
    assert sum(step.command is not None for step in walked) >= 6, "the tour was not found"
    (program,) = blocks(text, "python")
    (tmp_path / "reports.py").write_text(program)
    with GatewayProcess(data="memory:", services="reports") as gateway:
        tour = Tour({"127.0.0.1:8000": f"{gateway.host}:{gateway.port}"}, tmp_path)
        try:
            tour.walk(walked)
        finally:
            tour.close()


def test_the_flags_that_make_serve_is_shown_with_are_taken() -> None:
    """The flags in `make serve ARGS="…"` are good ones."""
    shown = re.findall(r'make serve ARGS="([^"]+)"', README)
    assert shown
    for flags in shown:
        done = run_sluice("check", *flags.split())
        assert (done.returncode, done.stderr) == (0, ""), flags


def test_the_gateway_runs_inside_an_application_as_shown(tmp_path: Path) -> None:
    """The application in the README, started as shown, publishes and delivers under its path."""
    text = section("In your own application")
    (program,) = blocks(text, "python")
    (commands,) = blocks(text, "sh")
    serve, publish = commands.splitlines()
    (tmp_path / "yourapp.py").write_text(program)
    port = free_port()
    environ = {**clean_environment(), "PYTHONPATH": f"{tmp_path}:{CHECKOUT}", "no_proxy": "127.0.0.1"}
    with (tmp_path / "said").open("wb") as said:
        words = shlex.split(here(serve, port).replace("--port 9000", f"--port {port}"))
        child = subprocess.Popen(words, cwd=tmp_path, env=environ, stdout=said, stderr=said)
    try:
        await_ready(f"http://127.0.0.1:{port}/push/readyz", child, tmp_path / "said")
        answer = subprocess.run(
            shlex.split(here(publish, port)), env=environ, capture_output=True, check=True, timeout=DEADLINE
        )
        assert re.fullmatch(
            rb'{"accepted":1,"duplicates":0,"cursor":"[a-z2-7]{6}-1-[0-9a-f]{4}"}\n', answer.stdout
        )
        polled = get(f"http://127.0.0.1:{port}/push/v1/events?topic=orders.*&cursor=earliest")
        assert b'"topic":"orders.42"' in polled
    finally:
        child.terminate()
        child.wait(DEADLINE)
    assert "Application shutdown complete." in (tmp_path / "said").read_text()


def test_a_difference_is_noticed() -> None:
    """The comparison tells apart what is not the same: text, positions, and names used for two things."""
    names = Names()
    assert names.agree('{"cursor":"gjj573-1-6750"}', '{"cursor":"orlzc5-1-be0d"}')
    assert names.agree('{"cursor":"gjj573-1-6750"}', '{"cursor":"orlzc5-1-be0d"}')
    assert not names.agree('{"cursor":"gjj573-1-6750"}', '{"cursor":"orlzc5-1-724e"}')
    assert not names.agree('{"cursor":"gjj573-9-6750"}', '{"cursor":"orlzc5-8-be0d"}')
    assert not names.agree('{"cursor":"gjj573-2-6750"}', '{"position":"orlzc5-2-be0d"}')
    assert not names.agree("304", "200")


def here(command: str, port: int) -> str:
    """Return a command of the section on mounting as it is in this run."""
    return command.replace("127.0.0.1:9000", f"127.0.0.1:{port}").replace(
        ".venv/bin/", f"{Path(sys.executable).parent}/"
    )


def get(url: str) -> bytes:
    """Return what a GET on this machine is answered with."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=DEADLINE) as answer:
        return bytes(answer.read())


def await_ready(url: str, child: subprocess.Popen[bytes], said: Path) -> None:
    """Wait until a child answers."""
    deadline = time.monotonic() + DEADLINE
    while True:
        with contextlib.suppress(OSError):
            get(url)
            return
        assert child.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.05)
