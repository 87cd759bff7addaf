"""`SLUICE_TOKEN`: every command that asks a gateway says who asks, and tells nobody else."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import pytest
from websockets.sync.server import Server, ServerConnection, serve

from gateway.__main__ import main
from tests.support.command import run_sluice
from tests.support.recorded import Asked, Recorder, Said, recording
from tests.support.tokens import token

TOKEN = token({"sub": "ada"})
BEARER = [f"Bearer {TOKEN}"]
ENVIRON = {"SLUICE_TOKEN": TOKEN}
PUBLISHED = Said(b'{"accepted":1,"duplicates":0,"cursor":"abcdef-1-0000"}', 202)

ASKING: dict[str, tuple[list[str], Said]] = {
    "publish": (["publish", "a", "1"], PUBLISHED),
    "webhooks": (["webhooks", "list"], Said(b'{"webhooks":[]}')),
    "webhooks add": (
        ["webhooks", "add", "https://example.com/", "a"],
        Said(b'{"id":"wh","secret":"whsec_x","keys":[]}', 201),
    ),
    "webhooks remove": (["webhooks", "remove", "wh"], Said(b"", 204)),
    "requests": (["requests", "list"], Said(b'{"requests":[]}')),
}
"""Commands that make one request, and its answer."""

asking = pytest.mark.parametrize("command", ASKING)


def problem(status: int, detail: str) -> Said:
    """Return a refusal as a gateway says it."""
    body = json.dumps({"type": "about:blank", "title": "No", "status": status, "detail": detail})
    return Said(body.encode(), status, {"Content-Type": "application/problem+json"})


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Sluice(Protocol):
    """Runs a command in this process."""

    def __call__(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Done: ...


@pytest.fixture
def sluice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sluice:
    """How commands are run."""

    def run(*arguments: str, environ: Mapping[str, str] | None = None) -> Done:
        for name in [name for name in os.environ if name.startswith("SLUICE_")]:
            monkeypatch.delenv(name)
        for name, value in (environ or {}).items():
            monkeypatch.setenv(name, value)
        return Done(main([*arguments]), *capsys.readouterr())

    return run


@pytest.fixture
def server() -> Iterator[Recorder]:
    """A server that says 500 to what it does not expect."""
    with recording(lambda _asked: Said(status=500)) as made:
        yield made


@asking
@pytest.mark.parametrize("given", [TOKEN, f" {TOKEN}\n", "sk_0123456789ab_secret", None])
def test_each_request_says_who_asks(
    sluice: Sluice, server: Recorder, command: str, given: str | None
) -> None:
    """By a token or an API key, once; without one, nothing is said."""
    arguments, answer = ASKING[command]
    server.answer = lambda _asked: answer
    environ = {} if given is None else {"SLUICE_TOKEN": given}
    done = sluice(*arguments, "--url", server.url, environ=environ)
    assert done.returncode == 0, done.stderr
    assert server.credentials() == [[] if given is None else [f"Bearer {given.strip()}"]]
    assert given is None or given.strip() not in done.stdout + done.stderr


@asking
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_without_it(
    sluice: Sluice, server: Recorder, command: str, status: int
) -> None:
    """Wherever it leads: somebody else's host must not learn the token."""
    arguments, answer = ASKING[command]
    with recording(lambda _asked: answer) as other:
        server.answer = lambda asked: Said(b"", status, {"Location": f"{other.url}{asked.path}"})
        done = sluice(*arguments, "--url", server.url, environ=ENVIRON)
        assert server.credentials()[0] == BEARER
        assert [each for each in other.credentials() if each] == []
        assert TOKEN not in done.stdout + done.stderr


@asking
@pytest.mark.parametrize(
    ("environ", "status", "sentence"),
    [
        ({}, 401, "answered 401: say who you are (set SLUICE_TOKEN to a token, or to an API key)"),
        (ENVIRON, 401, "answered 401: say who you are (it is that of SLUICE_TOKEN)"),
        (ENVIRON, 403, "answered 403: say who you are"),
    ],
    ids=["unknown", "not good", "not granted"],
)
def test_a_refusal_is_one_sentence(
    sluice: Sluice, server: Recorder, command: str, environ: dict[str, str], status: int, sentence: str
) -> None:
    """It says what can be done, nothing is asked again, and the exit code is 1."""
    server.answer = lambda _asked: problem(status, "say who you are")
    done = sluice(*ASKING[command][0], "--url", server.url, environ=environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"sluice: {server.url} {sentence}\n"
    assert len(server.asked) == 1


@pytest.mark.parametrize("given", ["two words", "a\nb", "é", "\x7f"], ids=repr)
@pytest.mark.parametrize(
    "arguments",
    [
        ["publish", "a", "1"],
        ["tail", "a"],
        ["webhooks", "list"],
        ["requests", "list"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_cannot_be_a_token_is_refused(sluice: Sluice, given: str, arguments: list[str]) -> None:
    """Before anything is sent, and without repeating it."""
    environ = {"SLUICE_TOKEN": given, "SLUICE_URL": "http://127.0.0.1:9"}
    done = sluice(*arguments, environ=environ)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("sluice: SLUICE_TOKEN: this is no token")
    assert given not in line


def test_no_flag_takes_it(sluice: Sluice) -> None:
    """What is on a command line can be seen by everybody on the machine."""
    for command in ("publish", "tail", "worker"):
        assert "No such option" in sluice(command, "a", "--token", TOKEN).stderr


# --- tail


@pytest.fixture
def websockets() -> Iterator[Callable[[Callable[[ServerConnection], None]], str]]:
    """Start WebSocket servers; each gets what talks to a connection, and the answer is its address."""
    started: list[tuple[Server, threading.Thread]] = []

    def start(talk: Callable[[ServerConnection], None]) -> str:
        made = serve(talk, "127.0.0.1", 0)
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        started.append((made, thread))
        return f"http://127.0.0.1:{made.socket.getsockname()[1]}"

    yield start
    for made, thread in started:
        made.shutdown()
        thread.join()


WELCOME = '{"control":"welcome","connection":"c","cursor":"abcdef-1-0000"}'
EVENT = '{"cursor":"abcdef-2-0000","topic":"a","id":"1","data":1}'


def test_tail_says_who_asks(
    websockets: Callable[[Callable[[ServerConnection], None]], str],
) -> None:
    """With the handshake of each connection, also when it comes again."""
    seen: list[list[str]] = []

    def talk(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.append(connection.request.headers.get_all("authorization"))
        connection.send(WELCOME)
        if len(seen) > 1:
            connection.send(EVENT)
            connection.recv()

    url = websockets(talk)
    done = run_sluice("tail", "a", "--data", "--count", "1", "--url", url, environ=ENVIRON)
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert seen == [BEARER, BEARER]
    assert TOKEN not in done.stderr
    seen.clear()
    assert run_sluice("tail", "a", "--count", "1", "--url", url).returncode == 0
    assert seen == [[], []]


def test_tail_follows_a_redirect_without_it(
    server: Recorder, websockets: Callable[[Callable[[ServerConnection], None]], str]
) -> None:
    """Another origin does not learn the token."""
    seen: list[list[str]] = []

    def talk(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.append(connection.request.headers.get_all("authorization"))
        connection.send(WELCOME)
        connection.send(EVENT)
        connection.recv()

    other = websockets(talk)
    location = f"{other.replace('http', 'ws')}/v1/events?topic=a"
    server.answer = lambda _asked: Said(b"", 307, {"Location": location})
    done = run_sluice("tail", "a", "--count", "1", "--url", server.url, environ=ENVIRON)
    assert done.returncode == 0, done.stderr
    assert server.credentials() == [BEARER]
    assert seen == [[]]


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(401, "answered 401: no (it is that of SLUICE_TOKEN)"), (403, "answered 403: no")],
)
def test_tail_ends_when_it_is_refused(server: Recorder, status: int, sentence: str) -> None:
    """In one sentence, with the exit code 1."""
    server.answer = lambda _asked: problem(status, "no")
    done = run_sluice("tail", "a", "--url", server.url, environ=ENVIRON)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"sluice: {server.url} {sentence}\n"
    assert len(server.asked) == 1


def test_tail_ends_when_its_token_is_over(
    websockets: Callable[[Callable[[ServerConnection], None]], str],
) -> None:
    """It does not come back with a token that is not good any more."""
    seen: list[int] = []

    def talk(connection: ServerConnection) -> None:
        seen.append(1)
        connection.send(WELCOME)
        connection.close(3000, "the token is over")

    url = websockets(talk)
    done = run_sluice("tail", "a", "--url", url, environ=ENVIRON)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"sluice: {url} ended the connection: the token is over\n"
    assert seen == [1]


# --- worker


def worker(url: str, *flags: str, environ: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a worker to its end; return its exit code and all it said."""
    done = run_sluice(
        *("worker", "json:loads", "--service", "reports", "--gateway", url, *flags), environ=environ
    )
    return done.returncode, done.stdout + done.stderr


def test_a_worker_says_who_asks(server: Recorder) -> None:
    """With each call: for jobs, and with their outcomes; and no level of logging tells the token."""
    leases: list[Asked] = []

    def answer(asked: Asked) -> Said:
        if not asked.path.endswith(":lease"):
            return Said(b"", 204)
        leases.append(asked)
        if len(leases) > 1:
            return problem(403, "no more work for you")
        job = {"lease": "l", "token": "t", "service": "reports", "attempt": 1, "seconds": 30, "data": "1"}
        return Said(json.dumps({"leases": [job]}).encode())

    server.answer = answer
    code, said = worker(server.url, "--log-level", "debug", environ=ENVIRON)
    assert code == 1
    assert "refuses: no more work for you" in said
    assert {asked.path for asked in server.asked} >= {"/v1/services/reports:lease", "/v1/leases/l:fail"}
    assert all(each == BEARER for each in server.credentials())
    assert TOKEN not in said


@pytest.mark.parametrize(
    ("environ", "hint"),
    [({}, "set SLUICE_TOKEN to a token, or to an API key"), (ENVIRON, "it is that of SLUICE_TOKEN")],
    ids=["unknown", "not good"],
)
def test_a_worker_ends_when_it_is_refused(server: Recorder, environ: dict[str, str], hint: str) -> None:
    """In one sentence, with the exit code 1."""
    server.answer = lambda _asked: problem(401, "say who you are")
    code, said = worker(server.url, "--log-level", "error", environ=environ)
    assert (code, said) == (
        1,
        f"sluice: the gateway at {server.url} refuses: say who you are ({hint})\n",
    )


def test_a_worker_refuses_what_cannot_be_a_token(server: Recorder) -> None:
    """As the others do."""
    code, said = worker(server.url, environ={"SLUICE_TOKEN": "two words"})
    assert code == 2
    assert said.startswith("sluice: SLUICE_TOKEN: this is no token")
    assert server.asked == []


def test_a_worker_follows_no_redirect(server: Recorder) -> None:
    """Nobody else gives it work, or learns its token."""
    with recording(lambda _asked: Said(b'{"leases":[]}')) as other:
        server.answer = lambda asked: Said(b"", 307, {"Location": f"{other.url}{asked.path}"})
        code, said = worker(server.url, environ=ENVIRON)
        assert code == 1
        assert "status 307" in said
        assert other.asked == []
