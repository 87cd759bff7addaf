"""`sluice check` with a broker: it says what a start would find, in its words, and changes nothing."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import pika
import pytest

from tests.support.command import run_sluice
from tests.support.rabbitmq import Broker, Cluster
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration

_numbers = count(1)


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as node:
        yield node


@pytest.fixture
def names() -> dict[str, Any]:
    """Settings with names that no other test uses."""
    name = f"check{next(_numbers)}"
    return {"stream": name, "exchanges": f"{name}.events:#"}


def check(url: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run `sluice check` with a broker."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return run_sluice("check", "--data=memory:", f"--backbone={url}", *flags)


def start(url: str, **settings: Any) -> str:
    """Return the sentence with which a start is refused."""
    with ExitStack() as stack:
        gateway = GatewayProcess(data="memory:", backbone=url, **settings)
        stack.callback(gateway.close)
        gateway.launch()
        assert gateway.wait() == 1
        return gateway.log_text()


def user(broker: Broker, configure: str, write: str, read: str) -> str:
    """Make a user with these permissions, and return the broker's address for it."""
    name = f"user{next(_numbers)}"
    broker.control("add_user", name, "secret")
    broker.control("set_permissions", "-p", "/", name, configure, write, read)
    return broker.url.replace("guest:guest", f"{name}:secret")


def everything(broker: Broker) -> str:
    """Return what is declared on a broker."""
    return "".join(
        broker.control(f"list_{what}", *columns)
        for what, columns in (
            ("queues", ("name", "arguments", "policy")),
            ("exchanges", ("name", "type", "arguments")),
            ("bindings", ("source_name", "destination_name", "routing_key")),
        )
    )


RETENTION = (
    "Retention: 2 d or 200 MiB, in segments of 20 MiB; a policy of the broker would win, and cannot be seen "
    "from here."
)


def test_an_empty_broker_is_good_and_stays_empty(broker: Broker, names: dict[str, Any]) -> None:
    """What is not there yet is told, serving would make it, and looking made nothing."""
    before, version = everything(broker), broker.control("version").strip()
    done = check(broker.url, **names, retention_seconds="2d", retention_bytes="200MiB")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == [
        "Data: kept in memory only, and gone when the gateway ends.",
        f"Broker: RabbitMQ {version} at 127.0.0.1:{broker.port}, cluster {cluster_of(broker)}.",
        f"Exchange: '{names['stream']}.events' is not there yet; serving will make it.",
        f"Stream: '{names['stream']}' is not there yet; serving will make it.",
        RETENTION,
        f"Bindings: {names['exchanges']}; what is not bound yet, serving will bind.",
        f"Dead letters: the queue '{names['stream']}.events.dead' is not there yet; serving will make it.",
        "Permissions: the user 'guest' may do all that serving does.",
    ]
    assert everything(broker) == before


def cluster_of(broker: Broker) -> str:
    """Return the name of a broker's cluster."""
    said = broker.control("cluster_status")
    return said[said.index("Cluster name: ") :].splitlines()[0].removeprefix("Cluster name: ")


def test_a_broker_in_use_is_told_and_left_alone(broker: Broker, names: dict[str, Any]) -> None:
    """The positions that the stream holds are told, also while it is served, and nothing is changed."""
    with GatewayProcess(backbone=broker.url, **names) as gateway:
        empty = check(broker.url, **names)
        cursor = gateway.publish(*({"topic": "a", "data": number} for number in range(3000)))["cursor"]
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()
            channel.basic_publish(f"{names['stream']}.events", "bad..topic", b"")
        before = everything(broker)
        done = check(broker.url, **names)
        assert everything(broker) == before
        assert gateway.get("/readyz")[0] == 200
    assert (empty.returncode, done.returncode) == (0, 0)
    assert "as the settings have it, and holds the positions 1 to " in empty.stdout
    last = int(cursor.split("-")[1])
    told = re.search(r"holds the positions 1 to (\d+)", done.stdout)
    assert told is not None
    assert last < int(told[1]) <= last + 2  # the message that is no event, and the mark that says so
    assert f"Replicas: the stream can be read from 127.0.0.1:{broker.port}.\n" in done.stdout
    assert ".events.dead' is there, and holds " in done.stdout


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"retention_bytes": "2GiB"}, "inequivalent arg 'x-max-length-bytes'"),
        ({"retention_seconds": "1h"}, "inequivalent arg 'x-max-age'"),
        ({"exchanges": "amq.fanout"}, "the exchange 'amq.fanout' exists with other arguments"),
        ({"exchanges": "{stream}.events,nowhere:#"}, "there is no such thing (no exchange 'nowhere'"),
        ({"stream": "amq.rabbitmq.mine"}, "the stream 'amq.rabbitmq.mine': this user may not"),
    ],
)
def test_what_would_stop_a_start_is_told_in_its_words(
    broker: Broker, names: dict[str, Any], change: dict[str, str], sentence: str
) -> None:
    """Settings that contradict what is there end both, check and start, with the same sentence."""
    with GatewayProcess(backbone=broker.url, **names):
        pass
    settings = names | {name: value.format(**names) for name, value in change.items()}
    done = check(broker.url, **settings)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr == start(broker.url, **settings)


@pytest.mark.parametrize(
    ("login", "vhost", "sentence"),
    [("guest:hush@", "", "wrong name or password"), ("", "nowhere", "virtual host 'nowhere' does not exist")],
)
def test_a_broker_that_lets_nobody_in_is_told(broker: Broker, login: str, vhost: str, sentence: str) -> None:
    """A wrong login ends both with one sentence."""
    url = f"amqp://{login}127.0.0.1:{broker.port}/{vhost}"
    done = check(url)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "hush" not in done.stderr
    assert done.stderr == start(url)


ALLOWED = (
    r"^({0}(\.member.*)?|{0}\.events|{0}\.events\.dead)$",
    r"^({0}(\.member.*)?|{0}\.events|amq\.default)$",
    r"^({0}(\.member.*)?|{0}\.events)$",
)
WITHOUT_MEMBERS = (
    r"^({0}|{0}\.events|{0}\.events\.dead)$",
    r"^({0}|{0}\.events|amq\.default)$",
    r"^({0}|{0}\.events)$",
)


@pytest.mark.parametrize("there", [False, True], ids=["on nothing", "on all"])
@pytest.mark.parametrize(
    ("at", "less"),
    [
        (0, r"^({0}|{0}\.events)$"),
        (0, r"^({0}|{0}\.events\.dead)$"),
        (0, r"^({0}\.events|{0}\.events\.dead)$"),
        (1, r"^({0}\.events|amq\.default)$"),
        (1, r"^({0}|amq\.default)$"),
        (1, r"^({0}|{0}\.events)$"),
        (2, r"^({0}\.events)$"),
        (2, r"^({0})$"),
    ],
)
def test_every_permission_that_is_missing_is_noticed(
    broker: Broker, names: dict[str, Any], at: int, less: str, *, there: bool
) -> None:
    """A user who may all but one thing is refused by check, and cannot start a gateway either."""
    if there:
        with GatewayProcess(backbone=broker.url, **names):
            pass
    permissions = list(ALLOWED)
    permissions[at] = less
    url = user(broker, *(each.format(names["stream"].replace(".", r"\.")) for each in permissions))
    done = check(url, **names)
    assert done.returncode == 1
    assert "this user may not (" in done.stderr
    assert "it needs the permissions configure, write and read" in done.stderr
    if there:  # on an empty broker a start would make what it may
        assert "this user may not (" in start(url, **names)


@pytest.mark.parametrize("there", [False, True], ids=["on nothing", "on all"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_replica_that_may_not_take_part_is_told_and_serves(
    broker: Broker, names: dict[str, Any], at: int, *, there: bool
) -> None:
    """Check refuses; a gateway serves all the same, says what is wrong, and knows of no other."""
    if there:
        with GatewayProcess(backbone=broker.url, **names):
            pass
    permissions = [*ALLOWED[:at], WITHOUT_MEMBERS[at], *ALLOWED[at + 1 :]]
    url = user(broker, *(each.format(names["stream"].replace(".", r"\.")) for each in permissions))
    done = check(url, **names)
    assert done.returncode == 1
    assert "taking part among the replicas: this user may not (" in done.stderr
    with GatewayProcess(backbone=url, **names) as gateway:
        gateway.publish({"topic": "a", "data": 1})
        until_said(gateway, "members.lost")
        assert "access" in gateway.log_text()


def test_queues_of_requests_need_permissions_as_well(broker: Broker, names: dict[str, Any]) -> None:
    """With services, check and start are refused without them, and content with them."""
    services: dict[str, Any] = {"services": "reports"}
    url = user(broker, *(each.format(names["stream"]) for each in ALLOWED))
    done = check(url, **names, **services)
    assert done.returncode == 1
    assert "the queue of requests" in done.stderr
    assert "this user may not (" in start(url, **names, **services)
    wider = [each.replace("member", "(member|requests)") for each in ALLOWED]
    url = user(broker, *(each.format(names["stream"]) for each in wider))
    for _ in range(2):
        assert check(url, **names, **services).returncode == 0
        with GatewayProcess(backbone=url, **names, **services) as gateway:
            assert gateway.get("/v1/services")[0] == 200


def test_the_documented_permissions_are_enough(broker: Broker, names: dict[str, Any]) -> None:
    """With exactly the permissions it needs, check is content, and a gateway serves."""
    url = user(broker, *(each.format(names["stream"]) for each in ALLOWED))
    for _ in range(2):
        assert check(url, **names).returncode == 0
        with GatewayProcess(backbone=url, **names) as gateway:
            gateway.publish({"topic": "a", "data": 1})
            until_said(gateway, "members.connected")


def until_said(gateway: GatewayProcess, what: str) -> None:
    """Wait until a gateway's log has something."""
    deadline = time.monotonic() + 60
    while what not in gateway.log_text():
        assert time.monotonic() < deadline, gateway.log_text()
        time.sleep(0.05)


def test_a_broker_that_takes_no_events_is_told(broker: Broker, names: dict[str, Any]) -> None:
    """While the broker is short of memory, that is what is told."""
    broker.control("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        done = check(broker.url, **names)
    finally:
        broker.control("set_vm_memory_high_watermark", "absolute", "512MB")
    assert (done.returncode, done.stderr) == (
        1,
        "sluice: the broker takes no events now: low on memory\n",
    )


def test_the_nodes_of_a_cluster_are_told(names: dict[str, Any]) -> None:
    """Which nodes have the stream, which do not and which are away is told; one that has it is enough."""
    with Cluster(3) as cluster:
        first, second, third = cluster.nodes
        one, two, three = (f"127.0.0.1:{node.port}" for node in cluster.nodes)
        with GatewayProcess(backbone=cluster.url, **names):
            pass
        first.settle()
        third.kill()
        less = await_check(cluster.url, f"the stream can be read from {one}, {two}.\n", names)
        assert f"Broker: the broker at {three} cannot be reached: " in less
        third.start()
        first.control("delete_replica", names["stream"], second.node, tool="rabbitmq-streams")
        await_check(cluster.url, f"the stream can be read from {one}, {three}, but not from {two}.\n", names)
        with GatewayProcess(backbone=cluster.url, **names) as gateway:
            assert gateway.publish({"topic": "a", "data": 1})["accepted"] == 1
        alone = check(second.url, **names)
        assert alone.returncode == 1
        assert f"has no running replica on {two}" in alone.stderr
        third.kill()
        with ExitStack() as stack:  # two of its members are left, and one of them is away
            waiting = GatewayProcess(backbone=first.url, **names)
            stack.callback(waiting.close)
            waiting.launch()
            await_reason(waiting, "majority of its replicas", "a running replica")
        first.kill()
        second.kill()
        gone = check(cluster.url, **names)
        assert gone.returncode == 1
        assert gone.stderr.count("cannot be reached") == 3


def await_check(url: str, sentence: str, names: dict[str, Any]) -> str:
    """Check until all is good and a sentence is said, for members come to a stream one after the other."""
    deadline = time.monotonic() + 60
    while True:
        done = check(url, **names)
        if (done.returncode, done.stderr) == (0, "") and sentence in done.stdout:
            return done.stdout
        assert time.monotonic() < deadline, (done.returncode, done.stderr, done.stdout)


def await_reason(gateway: GatewayProcess, *reasons: str) -> None:
    """Wait until a gateway says why it is not ready, in one way or another: versions of RabbitMQ differ."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            said = gateway.get("/readyz")[1].decode()
            if any(reason in said for reason in reasons):
                return
        assert time.monotonic() < deadline, gateway.log_text()
        time.sleep(0.1)
