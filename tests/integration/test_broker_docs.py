"""What docs/operations.md says of RabbitMQ, tried: commands, program, and what check is shown to say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pika
import pytest

from tests.support.command import run_sluice
from tests.support.rabbitmq import Broker, Cluster
from tests.support.server import GatewayProcess
from tests.test_docs import fenced, page, section

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

DEADLINE: Final = 60.0
TEXT: Final = section(page("docs/operations.md"), "On RabbitMQ")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as nodes:
        yield nodes


def commands() -> list[list[str]]:
    """Return every command of RabbitMQ that is shown, in blocks and inside the text, in its order."""
    shown = re.findall(r"^(rabbitmq[a-z-]+ (?:\\\n|[^\n])+)$|`(rabbitmq[a-z-]+ [^`]+)`", TEXT, re.MULTILINE)
    return [shlex.split((block or inline).replace("\\\n", " ")) for block, inline in shown]


def test_every_command_works_as_it_is_shown(cluster: Cluster) -> None:
    """The user who is made has what a gateway needs, and each other command does what is said of it."""
    first, second = cluster.nodes
    listed = commands()
    assert [words[1] for words in listed] == [
        "add_user",
        "set_permissions",
        "set_policy",
        "clear_policy",
        "add_replica",
        "list_queues",
        "alarms",
        "delete_queue",
    ]

    def run(number: int) -> str:
        tool, *words = (each.replace("rabbit@node4", second.node) for each in listed[number])
        return first.control(*words, tool=tool)

    run(0)
    run(1)
    url = first.url.replace("guest:guest", "sluice:a-password")
    with GatewayProcess(backbone=url) as gateway:
        gateway.publish(*({"topic": "a", "data": number} for number in range(1200)))
        shown = next(each for each in fenced(TEXT, "text") if each.startswith("Broker: "))
        said = run_sluice("check", "--data=memory:", f"--backbone={url}").stdout
        assert shape(said.partition("Broker: ")[1] + said.partition("Broker: ")[2]) == shape(shown)
        run(2)
        assert "sluicegate\tsluicegate" in first.control("list_queues", "name", "policy")
        run(3)
        assert "sluicegate\tsluicegate" not in first.control("list_queues", "name", "policy")
        first.control("delete_replica", "sluicegate", second.node, tool="rabbitmq-streams")
        run(4)
        members = next(line for line in run(5).splitlines() if line.startswith("sluicegate\t"))
        assert members.count(second.node) == 2  # among the members, and online
        run(6)
        run(7)
        until_said(gateway, "backbone.reset")


def shape(text: str) -> list[str]:
    """Return lines without what differs from broker to broker."""
    varying = r"\d+\.\d+\.\d+\.\d+:\d+|RabbitMQ [\d.]+|cluster \S+\.|\b1 to \d+|, the oldest from [^.]*"
    return re.sub(varying, "…", text).splitlines()


def until_said(gateway: GatewayProcess, text: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while text not in gateway.log_text():
        assert time.monotonic() < deadline, gateway.log_text()
        time.sleep(0.05)


def test_dead_letters_are_shown_and_published_again(cluster: Cluster, tmp_path: Path) -> None:
    """The program shows what is there and leaves it, publishes it again, and throws it away, as asked."""
    (program,) = fenced(TEXT, "python")
    (tmp_path / "dead.py").write_text(program)
    broker = cluster.nodes[0]

    def dead(*then: str) -> list[list[str]]:
        words = [sys.executable, str(tmp_path / "dead.py"), broker.url.rstrip("/"), "events.dead", *then]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=DEADLINE)
        return [line.split("\t") for line in done.stdout.splitlines()]

    with GatewayProcess(backbone=broker.url, max_event_bytes="100") as gateway:
        send(broker, b'"%b"' % (b"x" * 90))
        send(broker, b"{")
        until_said(gateway, "its body is no JSON")
        assert "more than the 100 an event may have" in gateway.log_text()
        wait_for(broker, 2)
        shown = dead()
        assert [(topic, body) for _, topic, _, body in shown] == [
            ("orders.42", f"b'\"{'x' * 90}\"'"),
            ("orders.42", "b'{'"),
        ]
        assert dead() == shown
        gateway.restart(max_event_bytes="1000")  # what was too large is not any more
        assert dead("again") == shown
        deadline = time.monotonic() + DEADLINE
        while b"xxx" not in gateway.get("/v1/events?topic=orders.42&cursor=-1")[1]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        wait_for(broker, 1)
        ((_, _, reason, body),) = dead("away")
        assert ("JSON" in reason, body) == (True, "b'{'")
        assert dead() == []


def send(broker: Broker, body: bytes) -> None:
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        properties = pika.BasicProperties(content_type="application/json")
        connection.channel().basic_publish("events", "orders.42", body, properties)


def wait_for(broker: Broker, count: int) -> None:
    """Wait until so many dead letters are there."""
    deadline = time.monotonic() + DEADLINE
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        while channel.queue_declare("events.dead", passive=True).method.message_count != count:
            assert time.monotonic() < deadline, "the dead letters did not come"
            connection.sleep(0.05)
