"""The command line: exit codes, single sentences, no tracebacks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from pathlib import Path

import pytest

from fanout.event import Event
from gateway.__main__ import main
from gateway.cli import COMMANDS
from gateway.settings import FIELDS
from gateway.sqlite_log import SqliteLog
from tests.support.command import run_sluice, start_sluice
from tests.support.scripted import HANG_UP, Answer, scripted_http, scripted_websocket


@pytest.fixture(autouse=True)
def _clean_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep a developer's settings and data out of the tests."""
    for name in [name for name in os.environ if name.startswith("SLUICE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))


# --- all commands


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`sluice --help` lists the commands with what they are for."""
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert name in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command explains itself."""
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: sluice " + name in shown
    assert "\\b" not in shown, "a mark for the help's layout is shown as it is"


def test_the_flags_of_serve_are_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """There is one flag for every setting, with its variable named beside it."""
    assert main(["serve", "--help"]) == 0
    out = capsys.readouterr().out
    for field in FIELDS.values():
        assert field.flag in out
        assert field.variable in "".join(out.split())


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that does not exist is a usage error."""
    assert main(["serf"]) == 2
    assert "No such command 'serf'" in capsys.readouterr().err


def test_the_version_is_the_distributions() -> None:
    """`sluice --version` works as a real command."""
    assert run_sluice("--version").stdout == "sluice, version 0.1.0\n"


# --- settings on the command line


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "70000"], "--port: '70000' is not a whole number from 0 to 65535"),
        (["--host", "0.0.0.0"], "--host: 0.0.0.0 is reached from other machines"),
        (
            ["--store", "mysql://me:hush@db"],
            "--store: the address of a store begins with postgresql:// or postgres://",
        ),
        (["--config", "/missing.toml"], "/missing.toml: the file cannot be read: No such file or directory"),
    ],
)
def test_a_bad_setting_is_refused_in_one_sentence(
    command: str, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal is one line on the standard error, and the exit code is 2."""
    assert main([command, *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"sluice: {sentence}")
    assert said.err.count("\n") == 1


def test_a_bad_variable_is_refused_before_anything_starts() -> None:
    """The real command refuses an unknown variable without a traceback."""
    done = run_sluice("serve", environ={"SLUICE_PROT": "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sluice: SLUICE_PROT: no setting has this name; did you mean SLUICE_PORT?\n"


# --- check


def test_check_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a folder there is nothing wrong, and nothing is made."""
    folder = tmp_path / "not" / "there"
    assert main(["check", "--data", str(folder)]) == 0
    assert capsys.readouterr().out == (
        "Settings: every one of them is good.\n"
        f"Data folder: {folder} is not there yet; serving will make it.\n"
        "Log: there is none yet; serving will make it.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_check_leaves_an_empty_folder_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is there is tried, and left as it was."""
    assert main(["check", "--data", str(tmp_path)]) == 0
    assert f"{tmp_path} is there and can be written to." in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_check_in_memory_needs_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """`memory:` is told as what it is."""
    assert main(["check", "--data", "memory:"]) == 0
    assert "kept in memory only" in capsys.readouterr().out


async def _fill_log(folder: Path) -> SqliteLog:
    """Make a log with three old events in it, and leave it open."""
    log = SqliteLog(folder, retention_seconds=0, retention_bytes=0, retention_events=0, tail_bytes=0)
    await log.start(lambda _: None)
    await log.append([Event("orders", b'"topic":"orders"', n, 0) for n in (1, 2, 3)])
    return log


async def test_check_counts_the_events_and_deletes_none(tmp_path: Path) -> None:
    """An existing log is opened and counted; events that serving would expire are still there afterwards."""
    await (await _fill_log(tmp_path)).close()
    for _ in range(2):
        done = await asyncio.to_thread(
            run_sluice, "check", "--data", str(tmp_path), "--retention-events", "1"
        )
        assert "Log: it opens, and holds 3 of 3 events.\n" in done.stdout
        assert done.returncode == 0


async def test_check_recognises_a_log_that_is_served(tmp_path: Path) -> None:
    """A log that another process has open is no fault."""
    log = await _fill_log(tmp_path)
    done = await asyncio.to_thread(run_sluice, "check", "--data", str(tmp_path))
    await log.close()
    assert (done.returncode, done.stderr) == (0, "")
    assert "Log: a gateway is serving it now.\n" in done.stdout


def test_check_refuses_a_log_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A foreign file in the log's place is exit code 1, and left alone."""
    (tmp_path / "log.db").write_bytes(b"my diary" * 100)
    assert main(["check", "--data", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/log.db" in said
    assert "no SQLite database" in said
    assert (tmp_path / "log.db").read_bytes() == b"my diary" * 100


def test_check_refuses_a_file_as_data_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file where the folder, or a folder above it, should be is exit code 1."""
    file = tmp_path / "file"
    file.write_text("")
    assert main(["check", "--data", str(file)]) == 1
    assert main(["check", "--data", str(file / "below")]) == 1
    assert capsys.readouterr().err.count("is a file, not a folder\n") == 2


def test_check_refuses_a_folder_that_cannot_be_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody can make files, not even root, the folder is refused."""
    assert main(["check", "--data", "/proc/self"]) == 1
    assert "sluice: the data folder /proc/self cannot be written to: " in capsys.readouterr().err


# --- publish


@pytest.mark.parametrize(
    ("arguments", "given", "data"),
    [
        (['{"a": [1, 2.50, "ü"]}'], b"", {"a": [1, 2.5, "ü"]}),
        (["12345678901234567890123"], b"", 12345678901234567890123),
        (["hello world"], b"", "hello world"),
        (["null"], b"", None),
        ([""], b"", ""),
        ([], b'{\n  "a": 1\n}\n', {"a": 1}),
        (["-"], b"two\nlines\r\n", "two\nlines"),
        ([], b"", ""),
    ],
)
def test_data_is_json_or_else_a_string(arguments: list[str], given: bytes, data: object) -> None:
    """What parses as JSON is sent as it is, anything else as a string; without DATA it is the input."""
    with scripted_http(Answer()) as server:
        done = run_sluice("publish", "orders.1", *arguments, "--url", server.url, input=given)
    assert (done.returncode, done.stdout, done.stderr) == (0, "abcdef-1-0000\n", "")
    [[event]] = server.bodies
    assert event.pop("id")
    assert event == {"topic": "orders.1", "data": data}


def test_what_is_given_about_an_event_goes_along() -> None:
    """Id, type, key and time to live are members of the event; the address may be a variable."""
    with scripted_http(Answer()) as server:
        flags = ["--id", "one", "--type", "made", "--key", "k", "--ttl", "5m"]
        done = run_sluice("publish", "orders", "1", *flags, environ={"SLUICE_URL": server.url})
    assert done.returncode == 0
    assert server.bodies == [
        [{"topic": "orders", "data": 1, "id": "one", "type": "made", "key": "k", "ttl": 300}]
    ]


def test_a_retry_sends_the_same_id() -> None:
    """An event without an id is given one that stays the same when it is sent again."""
    with scripted_http(Answer(503, {"detail": "busy"}), HANG_UP, Answer()) as server:
        done = run_sluice("publish", "orders", "1", "--url", server.url)
    assert done.returncode == 0
    assert done.stderr == f"sluice publish: {server.url} answered 503: busy; trying again\n"
    assert len({body[0]["id"] for body in server.bodies}) == 1
    assert len(server.bodies) == 3


def test_publishing_an_id_again_is_told() -> None:
    """Who gives an id learns that it had been published before."""
    with scripted_http(Answer(body={"accepted": 0, "duplicates": 1, "cursor": "c"})) as server:
        done = run_sluice("publish", "orders", "1", "--id", "one", "--url", server.url)
    assert (done.returncode, done.stdout) == (0, "c\n")
    assert done.stderr == "sluice publish: one had been published before\n"


def test_lines_are_published_in_batches() -> None:
    """With --lines each line is an event of its own, with an id of its own, in order."""
    lines = b'{"n": 1}\n\nplain text\r\n' + b"".join(b"%d\n" % n for n in range(3000)) + b"the last"
    with scripted_http(Answer()) as server:
        done = run_sluice("publish", "orders", "--lines", "--url", server.url, input=lines)
    assert (done.returncode, done.stdout) == (0, "abcdef-1-0000\n")
    events = [event for body in server.bodies for event in body]
    assert [event["data"] for event in events] == [{"n": 1}, "plain text", *range(3000), "the last"]
    assert len({event["id"] for event in events}) == len(events)
    assert max(len(body) for body in server.bodies) <= 1000


def test_no_lines_publish_nothing() -> None:
    """An empty input makes no request and prints no cursor."""
    with scripted_http(Answer()) as server:
        done = run_sluice("publish", "orders", "--lines", "--url", server.url)
    assert (done.returncode, done.stdout, server.bodies) == (0, "", [])


@pytest.mark.parametrize(
    ("arguments", "given", "sentence"),
    [
        (
            ["orders"],
            b"\xff\xfe",
            "sluice: the data is not UTF-8 text; POST binary data to /v1/topics/ with curl",
        ),
        (["orders"], b"[" * 100_000, "sluice: the data is nested too deeply"),
        (["orders", "1", "--url", "nowhere"], b"", "sluice: 'nowhere' is no address of a gateway"),
    ],
)
def test_what_cannot_be_published_is_told_in_one_sentence(
    arguments: list[str], given: bytes, sentence: str
) -> None:
    """Data and addresses that are none end in exit code 1."""
    done = run_sluice("publish", *arguments, input=given)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lines", "--id", "one"],
        ["--lines", "data"],
        ["1", "--ttl", "soon"],
        ["1", "--ttl", "0"],
        ["1", "2"],
    ],
)
def test_contradictory_flags_are_a_usage_error(arguments: list[str]) -> None:
    """What cannot be meant is refused before anything is sent."""
    done = run_sluice("publish", "orders", *arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr


# --- tail


EVENT = {"cursor": "abcdef-5-0000", "topic": "orders", "id": "one", "data": {"n": 5}}
WELCOME = {"control": "welcome", "connection": "c", "cursor": "abcdef-4-0000"}


async def test_tail_prints_events_or_only_their_data() -> None:
    """The default is the whole event on one line, with --data it is the data; --count ends it."""
    async with scripted_websocket([WELCOME, EVENT, EVENT], [WELCOME, EVENT]) as server:
        whole = await asyncio.to_thread(run_sluice, "tail", "#", "--count", "2", "--url", server.url)
        data = await asyncio.to_thread(
            run_sluice, "tail", "a", "b.*", "--data", "--count", "1", "--cursor=-3", "--url", server.url
        )
    assert [json.loads(line) for line in whole.stdout.splitlines()] == [EVENT, EVENT]
    assert data.stdout == '{"n": 5}\n'
    assert (whole.returncode, whole.stderr, data.returncode, data.stderr) == (0, "", 0, "")
    assert (server.topics, server.cursors) == ([["#"], ["a", "b.*"]], ["latest", "-3"])


async def test_tail_ends_cleanly_on_interrupt() -> None:
    """SIGINT ends it with the shell's code for that, and without a traceback."""
    async with scripted_websocket() as server:
        child = start_sluice("tail", "#", "--url", server.url)
        async with asyncio.timeout(30):
            await server.connected.wait()
        child.send_signal(signal.SIGINT)
        out, err = await asyncio.to_thread(child.communicate, timeout=30)
    assert (child.returncode, out, err) == (130, b"", b"")


async def test_tail_ends_when_nobody_reads() -> None:
    """Its reader gone, it ends at once, also if no further event comes."""
    async with scripted_websocket() as server:
        child = start_sluice("tail", "#", "--url", server.url)
        assert child.stdout is not None
        assert stat.S_ISFIFO(os.fstat(child.stdout.fileno()).st_mode)
        async with asyncio.timeout(30):
            await server.connected.wait()
        child.stdout.close()
        child.stdout = None
        _, err = await asyncio.to_thread(child.communicate, timeout=30)
    assert (child.returncode, err) == (0, b"")


def test_tail_of_nothing_is_a_usage_error() -> None:
    """At least one pattern is needed."""
    done = run_sluice("tail")
    assert done.returncode == 2
    assert "Missing argument 'PATTERN...'" in done.stderr


def test_tail_of_no_address_is_told_in_one_sentence() -> None:
    """What is no address ends in exit code 1, without a traceback."""
    done = run_sluice("tail", "#", "--url", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("sluice: 'nowhere' is no address of a gateway")
