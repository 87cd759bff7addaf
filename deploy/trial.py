"""
A trial: a private broker, and two replicas on it, until Ctrl-C. `make serve-rabbitmq` runs it.

Nothing of it stays: the broker's data and the replicas' lie in one temporary folder. If this process is
killed, `deploy.reaper` ends the rest.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Final
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import click

from deploy.reaper import VARIABLE
from gateway.amqp.address import Address, AddressError
from tests.support.rabbitmq import Broker, BrokerFailed, accepts

START_DEADLINE: Final = 60.0
STOP_DEADLINE: Final = 30.0
PR_SET_PDEATHSIG: Final = 1
REPLICAS: Final = 2


class Over(Exception):
    """The trial cannot begin, or go on; the text is one sentence."""


class Interrupted(Exception):
    """Somebody asked for the end."""


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]})
@click.option(
    "--port", default=8000, show_default=True, help="Port of the first replica; the next has the next."
)
@click.option("--amqp-port", default=5673, show_default=True, help="Port of the private broker.")
@click.option(
    "--backbone", default="", metavar="URL", help="A broker that is there, in place of a private one."
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def trial(port: int, amqp_port: int, backbone: str, flags: tuple[str, ...]) -> None:
    """Run two replicas on a broker; FLAGS are those of `sluice serve`, for both."""
    _end_with_the_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        with _folder() as folder:
            _run(folder, port, amqp_port, backbone, flags)
    except Interrupted:
        _say("Ended.")
    except (Over, BrokerFailed, AddressError) as error:
        _say(str(error))
        sys.exit(1)


def _interrupt(_number: int, _frame: object) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # the end is under way
    raise Interrupted


def _end_with_the_parent() -> None:
    """Have the kernel send SIGTERM when the parent (make) is killed: it cannot pass anything on then."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(1)


@contextmanager
def _folder() -> Iterator[Path]:
    """Lend a folder in which everything lies; it goes, and what runs with it, however this process ends."""
    folder = tempfile.mkdtemp(prefix="sluice-trial-")
    mark = token_hex(16)
    reaper = subprocess.Popen(
        [sys.executable, "-m", "deploy.reaper", mark, folder], stdin=subprocess.PIPE, start_new_session=True
    )
    assert reaper.stdin is not None
    os.environ[VARIABLE] = mark
    tempfile.tempdir = folder
    try:
        yield Path(folder)
    finally:
        reaper.stdin.close()
        reaper.wait()


def _run(folder: Path, port: int, amqp_port: int, backbone: str, flags: tuple[str, ...]) -> None:
    ports = [port + number for number in range(REPLICAS)]
    for each in [*ports] if backbone else [amqp_port, *ports]:
        if accepts(each):
            raise Over(f"port {each} is taken: end what listens there, or give other ports")
    broker = None if backbone else Broker(port=amqp_port)
    replicas: list[subprocess.Popen[bytes]] = []
    try:
        if broker is not None:
            _say(f"Starting a private RabbitMQ on port {amqp_port}; it takes some seconds.")
            broker.start()
        url = backbone if broker is None else broker.url.rstrip("/")  # to some, `/` is a host with no name
        for each in ports:
            replica = _launch(folder, each, url, flags)
            replicas.append(replica)
            _await_ready(replica, each)
        _tell(url, ports, replicas, private=broker is not None)
        _watch(ports, replicas)
    finally:
        _stop(replicas)
        if broker is not None:
            broker.stop()
            broker.close()


def _launch(folder: Path, port: int, url: str, flags: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start a replica, out of reach of the terminal's Ctrl-C."""
    own = ["--port", str(port), "--data", str(folder / f"replica-{port}"), "--backbone", url]
    words = [sys.executable, "-m", "gateway", "serve", *flags, *own]
    return subprocess.Popen(words, start_new_session=True)


def _await_ready(replica: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_DEADLINE
    while not _is_ready(port):
        if replica.poll() is not None:
            raise Over(f"the replica on port {port} did not start")
        if time.monotonic() > deadline:
            raise Over(f"the replica on port {port} is not ready after {START_DEADLINE:.0f} seconds")
        time.sleep(0.05)


def _is_ready(port: int) -> bool:
    opener = build_opener(ProxyHandler({}))
    with suppress(URLError, OSError), opener.open(f"http://127.0.0.1:{port}/readyz", timeout=5):
        return True
    return False


def _tell(url: str, ports: list[int], replicas: list[subprocess.Popen[bytes]], *, private: bool) -> None:
    """Say what is where, and what to type."""
    address = Address.parse(url)
    shown = url.replace(f":{address.password}@", ":…@") if not private else url
    _say(f"\nBroker     {shown}" + ("   (gone when this ends)" if private else ""))
    for number, (port, replica) in enumerate(zip(ports, replicas, strict=True), 1):
        _say(f"Replica {number}  http://127.0.0.1:{port}   (process {replica.pid})")
    sluice, python = (os.path.relpath(Path(sys.executable).with_name(name)) for name in ("sluice", "python"))
    _say("\nFollow, each on another replica:\n")
    for port in ports:
        _say(f"    {sluice} tail 'orders.*' --url http://127.0.0.1:{port}")
    _say("\nPublish, by any AMQP client, to the exchange events:\n")
    if shutil.which("amqp-publish"):
        _say(f"    amqp-publish -u {shown} -e events -r orders.42 -b '{{\"total\": 12.5}}'")
    else:
        code = f"import pika; pika.BlockingConnection(pika.URLParameters('{shown}')).channel()"
        publish = f"{code}.basic_publish('events', 'orders.42', b'[12.5]')"
        _say(f'    {python} -c "{publish}"')
    _say("\nCtrl-C ends it all.\n")


def _watch(ports: list[int], replicas: list[subprocess.Popen[bytes]]) -> None:
    """Wait until nobody serves any more; that one is killed to see what happens is part of a trial."""
    running = dict(zip(ports, replicas, strict=True))
    while running:
        for port, replica in list(running.items()):
            if replica.poll() is not None:
                _say(f"The replica on port {port} ended with the exit code {replica.returncode}.")
                del running[port]
        time.sleep(0.2)
    raise Over("no replica is left")


def _stop(replicas: list[subprocess.Popen[bytes]]) -> None:
    """End the replicas as their own Ctrl-C would, all at once."""
    for each in replicas:
        if each.poll() is None:
            each.send_signal(signal.SIGINT)
    for each in replicas:
        with suppress(subprocess.TimeoutExpired):
            each.wait(STOP_DEADLINE)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    trial()
