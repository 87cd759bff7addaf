"""A broker of our own and the programs that use it; see `tests.support.rabbitmq` and `bench.peers`."""

from __future__ import annotations

import json
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

from bench.build import BenchError
from bench.children import Served, Talking
from bench.machine import cpu_seconds
from fanout.cursor import Cursor
from tests.support.rabbitmq import Broker, BrokerFailed

PEER_SECONDS = 60
"""How long a program may take to get ready, and for what it is told."""


def head(gateway: Served) -> int:
    """Return the position at which a gateway's log ends."""
    return Cursor.parse(poll(gateway, "latest")["cursor"]).position


def first(gateway: Served, cursor: str) -> tuple[Cursor, int]:
    """Return cursor and number of the first event behind a place; its data are from a `serial` publisher."""
    (event,) = poll(gateway, cursor)["events"]
    return Cursor.parse(event["cursor"]), int(event["data"][1:20])


def poll(gateway: Served, cursor: str) -> Any:
    """
    Poll for one event of the topic `bench`.

    Raises:
        BenchError: the gateway does not answer, or not with events.
    """
    url = f"http://127.0.0.1:{gateway.port}/v1/events?topic=bench&limit=1&cursor={cursor}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)
    except OSError as error:
        raise BenchError(f"the gateway does not answer a poll: {error}") from None


class Node:
    """A RabbitMQ node on the core where it is started, with a niceness of 0 like everything else there."""

    def __init__(self) -> None:
        self._broker = Broker(niceness=0)
        try:
            self._broker.start()
        except BrokerFailed as error:
            self._broker.close()
            raise BenchError(str(error)) from None
        except BaseException:
            self._broker.close()
            raise
        self._machine = self._broker.machine()
        self._used = 0.0

    @property
    def url(self) -> str:
        return self._broker.url

    @property
    def port(self) -> int:
        return self._broker.port

    def cpu_seconds(self) -> float:
        """CPU time of the node's Erlang machine so far; once it has ended, what it was at the end."""
        if self._broker.alive:
            self._used = cpu_seconds(self._machine)
        return self._used

    def stop(self, _: signal.Signals = signal.SIGKILL) -> None:
        """End it and remove what it stored. Idempotent."""
        self.cpu_seconds()
        self._broker.close()


class Peer(Talking):
    """One of the programs in bench/peers.py."""

    def __init__(self, name: str, url: str, core: int, log: Path) -> None:
        super().__init__([sys.executable, "-m", "bench.peers", name, url], core, log)
        self.name = name
        try:
            self.line(PEER_SECONDS)
        except BenchError:
            self.stop()
            raise

    def ask(self, *numbers: int) -> dict[str, float]:
        """Tell it numbers and return its answer."""
        self.tell(" ".join(map(str, numbers)))
        return msgspec.json.decode(self.line(PEER_SECONDS), type=dict[str, float])

    def ingested(self) -> int:
        """Return how many messages a consumer has had."""
        return int(self.ask()["count"])
