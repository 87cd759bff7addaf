"""The documentation says what the code does: links lead somewhere, tables and examples agree with it."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

from fanout import closing, cursor, topics
from fanout.connection import TRANSITIONS
from gateway import detached, metrics, mint, session, subscription
from gateway.app import Gateway
from gateway.consumers import MAX_CONSUMERS
from gateway.doorkeeper import Doorkeeper
from gateway.settings import FIELDS, Settings
from gateway.tls import Tls
from gateway.workers.merging import merge_metrics
from tests.support.certificates import Certificates
from tests.support.server import GatewayProcess, free_port

CHECKOUT: Final = Path(__file__).parents[1]
DOCS: Final = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md")])
PAGES: Final = [*DOCS, *CHECKOUT.glob("bench/*.md")]
WIDTH: Final = 120
"""Characters of a line, where it can be broken: not in tables."""

DEADLINE: Final = 20.0

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


def page(name: str) -> str:
    """Return the text of a page."""
    return (CHECKOUT / name).read_text()


def section(text: str, title: str) -> str:
    """Return what stands under a heading, up to the next of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no heading {title!r}"
    return found[2]


def fenced(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return [body for kind, body in _FENCE.findall(text) if kind == language]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the first table in a text, without its head."""
    lines = text[text.index("\n|") + 1 :].split("\n\n", maxsplit=1)[0].splitlines()
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def anchors(text: str) -> set[str]:
    """Return the anchors that the headings of a page have."""
    prose = _FENCE.sub("", text)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Every link inside the repository leads to a file, and to a heading of it."""
    for link in _LINK.findall(_FENCE.sub("", path.read_text())):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{link}: there is no such heading"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_lines_are_short(path: Path) -> None:
    """No line but a table's is longer than a page is wide."""
    lines = enumerate(path.read_text().splitlines(), 1)
    long = [number for number, line in lines if len(line) > WIDTH and not line.startswith("|")]
    assert not long, f"lines {long} have more than {WIDTH} characters"


def test_every_page_is_reached_from_the_readme() -> None:
    """The README links every page of the documentation."""
    linked = set(_LINK.findall(page("README.md")))
    assert {f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md")} <= linked


def test_the_map_has_every_module() -> None:
    """The map of the files lists the modules of the packages, each once, and nothing else."""
    listed = [name for name, _ in rows(section(page("docs/architecture.md"), "Map of the files"))]
    assert sorted(listed) == sorted(modules())


def modules() -> list[str]:
    """Return the modules of the packages: those under version control, where it can be asked."""
    packages = ("fanout", "gateway", "webhooks")
    asked = subprocess.run(
        ["git", "ls-files", *packages], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    if asked.returncode == 0 and asked.stdout:
        return [name for name in asked.stdout.split() if name.endswith(".py")]
    found = (path for package in packages for path in (CHECKOUT / package).rglob("*.py"))
    return [str(path.relative_to(CHECKOUT)) for path in found]


def test_the_hot_path_names_what_there_is() -> None:
    """Every function that the life of an event names is in the file it is said to be in."""
    for _, where, _ in rows(section(page("docs/architecture.md"), "Life of an event")):
        file, name = re.fullmatch(r"(\S+)` `(\S+)", where).groups()  # type: ignore[union-attr]
        kind, _, method = name.rpartition(".")
        text = page(file)
        assert f"def {method}(" in text, where
        assert not kind or f"class {kind}" in text, where


def test_the_diagram_is_the_table_of_transitions() -> None:
    """The state diagram has the transitions of a connection, all of them and no other."""
    (diagram,) = fenced(page("docs/architecture.md"), "mermaid")
    drawn = re.findall(r"^ +(\w+) --> (\w+): (\w+)$", diagram, re.MULTILINE)
    real = [
        (state.value, following.value, signal.value)
        for state, ways in TRANSITIONS.items()
        for signal, following in ways.items()
    ]
    assert sorted(drawn) == sorted(real)


def test_close_reasons_are_as_documented() -> None:
    """The table of close reasons has every reason, with its code, its advice and its sentence."""
    documented = rows(section(page("docs/protocol.md"), "How connections end"))
    real = [each for each in vars(closing).values() if isinstance(each, closing.CloseReason)]
    assert documented == [
        [each.name, str(each.code), "yes" if each.reconnect else "no", each.detail] for each in real
    ]


def test_limits_are_as_documented() -> None:
    """The table of limits has the numbers of the code, and the setting's default where there is one."""
    real = {
        "bytes of a topic or pattern": topics.MAX_TOPIC_BYTES,
        "characters of an id, type or key": mint.MAX_TEXT,
        "longest `ttl`, seconds": int(mint.MAX_TTL),
        "seconds of `wait`": int(subscription.MAX_WAIT),
        "events of a poll, `limit`": subscription.MAX_LIMIT,
        "N of `-N`": cursor.MAX_COUNT,
        "operations of a WebSocket that wait": session.MAX_PENDING,
        "bytes that may follow the request of an HTTP stream": detached.MAX_UNSOLICITED,
        "query parameters": subscription.MAX_PARAMETERS,
        "durable subscriptions": MAX_CONSUMERS,
    }
    text = section(page("docs/protocol.md"), "Limits")
    for line in text[text.index("\n|") + 1 :].strip().splitlines()[2:]:
        what, limit, setting = (cell.strip() for cell in line.strip("|").split("|"))
        expected = FIELDS[setting.strip("`")].default if setting else real.pop(what)
        assert int(limit) == expected, what
    assert not real, "limits that are not documented"


def test_metrics_are_as_documented(tmp_path: Path) -> None:
    """The table of metrics has every metric that is exposed, and no other."""
    names = set[str]()
    embedded = Settings(
        data="memory:", services="reports", tls_cert=str(Certificates(tmp_path).both), jwt_key="k" * 32
    )
    backbone = Settings(data="memory:", backbone="amqp://broker", advertise="http://a", sticky="redirect")
    for settings in (embedded, backbone):
        gateway = Gateway(settings)
        gateway.tls = Tls.of(settings)
        gateway.doorkeeper = Doorkeeper(("127.0.0.1", 0), 1, 1)
        exposed = metrics.text(metrics.registry(gateway)).decode()
        names.update(re.findall(r"^# HELP (\S+) ", exposed, re.MULTILINE))
    documented = [row[0] for row in rows(section(page("docs/operations.md"), "Metrics"))]
    assert sorted(documented) == sorted(names)


def test_metrics_of_workers_are_as_documented() -> None:
    """The table of what only several workers expose has all of it, and nothing else."""
    gateway = Gateway(Settings(data="memory:"))
    alone = {each.name for each in metrics.registry(gateway).collect()}
    gateway.worker = cast("Any", SimpleNamespace(restarts=0))
    own = metrics.text(metrics.registry(gateway)).decode()
    exposed = {each.name: each for each in merge_metrics({0: own}, [1])}
    names = [
        name + "_total" * (each.type == "counter") for name, each in exposed.items() if name not in alone
    ]
    documented = [
        row[0] for row in rows(section(page("docs/operations.md"), "Several workers").partition("<!--")[2])
    ]
    assert sorted(documented) == sorted(names)


def test_what_is_asked_of_make_is_there() -> None:
    """Every target of make that a page names is one."""
    targets = set(re.findall(r"^(\w+):", page("Makefile"), re.MULTILINE))
    for path in PAGES:
        named = set(re.findall(r"(?:^|`)make (\w+)", path.read_text(), re.MULTILINE))
        assert named <= targets, path.name


def test_there_is_a_place_for_the_figures() -> None:
    """The page on performance has the marks between which the bench's table goes."""
    text = page("docs/performance.md")
    assert text.count("<!-- figures -->") == text.count("<!-- /figures -->") == 1


@pytest.mark.integration
def test_the_backup_holds_what_was_answered(tmp_path: Path) -> None:
    """The program for backups copies a log that is being served, and a gateway starts on the copy."""
    (program,) = fenced(section(page("docs/operations.md"), "Backup and restore"), "python")
    script, data, copy = tmp_path / "backup.py", tmp_path / "data", tmp_path / "copy"
    script.write_text(program)
    copy.mkdir()
    with GatewayProcess(data=data) as gateway:
        receipt = gateway.publish({"topic": "a", "data": 1}, {"topic": "a", "data": 2})
        assert Path(f"{data}/log.db-wal").stat().st_size, "nothing is in the write-ahead log"
        subprocess.run([sys.executable, str(script), str(data), str(copy)], check=True, timeout=DEADLINE)
        gateway.publish({"topic": "a", "data": 3})
    assert {path.name for path in copy.iterdir()} == {"log.db", "store.db", "webhooks.db"}
    with contextlib.closing(sqlite3.connect(copy / "log.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with GatewayProcess(data=copy) as restored:
        _, answer = restored.get("/v1/events?topic=a&cursor=earliest")
        assert receipt["cursor"].encode() in answer
        assert b'"data":3' not in answer


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[tuple[GatewayProcess, str]]:
    """Yield a gateway and its address behind nginx, configured as the page on operations says."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    assert nginx is not None, "nginx is missing: `make test` installs it"
    (block,) = fenced(section(page("docs/operations.md"), "Behind a proxy"), "nginx")
    port = free_port()
    with GatewayProcess(data="memory:") as gateway:
        here = block.replace("127.0.0.1:8000", f"{gateway.host}:{gateway.port}")
        here = here.replace("listen 8080", f"listen 127.0.0.1:{port}")
        temporary = "".join(
            f"{kind}_temp_path {tmp_path}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = tmp_path / "nginx.conf"
        config.write_text(
            f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/errors;\nevents {{}}\n"
            f"http {{ access_log off;\n{temporary}{here} }}\n"
        )
        child = subprocess.Popen([nginx, "-e", f"{tmp_path}/errors", "-c", str(config)])
        try:
            await_answer(f"http://127.0.0.1:{port}/readyz", child)
            yield gateway, f"http://127.0.0.1:{port}"
        finally:
            child.terminate()
            child.wait(DEADLINE)


@pytest.mark.integration
def test_streams_pass_the_proxy_at_once(proxied: tuple[GatewayProcess, str]) -> None:
    """Behind the documented nginx an SSE client gets its first block and each event as they are sent."""
    gateway, url = proxied
    request = urllib.request.Request(
        f"{url}/v1/events?topic=a", headers={"Accept": "text/event-stream", "Connection": "close"}
    )
    with opener().open(request, timeout=DEADLINE) as stream:
        assert stream.readline().startswith(b"retry: ")
        gateway.publish({"topic": "a", "data": "through"})
        deadline = time.monotonic() + DEADLINE
        while b'"data":"through"' not in stream.readline():
            assert time.monotonic() < deadline, "the event did not arrive"


@pytest.mark.integration
def test_websockets_pass_the_proxy(proxied: tuple[GatewayProcess, str]) -> None:
    """Behind the documented nginx a WebSocket is opened and welcomed."""
    from websockets.sync.client import connect  # noqa: PLC0415  # for this test alone

    _, url = proxied
    address = url.replace("http:", "ws:") + "/v1/events?topic=a"
    with connect(address, proxy=None, open_timeout=DEADLINE) as client:
        assert '"control":"welcome"' in str(client.recv(timeout=DEADLINE))


def opener() -> urllib.request.OpenerDirector:
    """Return what opens addresses of this machine without a proxy that the environment names."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def await_answer(url: str, child: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + DEADLINE
    while True:
        with contextlib.suppress(OSError), opener().open(url, timeout=DEADLINE):
            return
        assert child.poll() is None, "nginx ended"
        assert time.monotonic() < deadline, "nginx does not answer"
        time.sleep(0.05)
