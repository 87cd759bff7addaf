"""What an operator sees of the broker in `/metrics`, while all is well and while it is not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pika
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess

pytestmark = pytest.mark.integration

DEADLINE = 30.0


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as node:
        yield node


def measured(gateway: GatewayProcess) -> dict[str, float]:
    """Return the metrics without labels, by name."""
    status, text = gateway.get("/metrics")
    assert status == 200
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.labels
    }


def until(gateway: GatewayProcess, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """Wait until the metrics fulfil a condition, and return them."""
    deadline = time.monotonic() + DEADLINE
    while True:
        found = measured(gateway)
        if condition(found):
            return found
        assert time.monotonic() < deadline, f"{found}\n{gateway.log_text()}"
        time.sleep(0.05)


def send(broker: Broker, topic: str, body: bytes, **properties: str) -> None:
    """Publish a message as somebody who knows nothing of us."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().basic_publish("events", topic, body, pika.BasicProperties(**properties))


def test_what_goes_through_the_broker_is_counted(broker: Broker) -> None:
    """Events read and published, second copies and dead letters are counted, on the replica concerned."""
    with GatewayProcess(backbone=broker.url, queue_events=1234, queue_bytes=56789) as gateway:
        with GatewayProcess(backbone=broker.url) as other:
            gateway.publish({"topic": "a", "data": 1}, {"topic": "a", "data": 2, "id": "once"})
            send(broker, "a", b"3", message_id="once")
            send(broker, "a", b"{", content_type="application/json")
            found = until(gateway, lambda each: each["sluice_backbone_dead_letters_total"] == 1)
            there = until(other, lambda each: each["sluice_backbone_dead_letters_total"] == 1)
        assert found["sluice_backbone_connected"] == 1
        assert found["sluice_backbone_blocked"] == 0
        assert found["sluice_backbone_silent_seconds"] < 6
        assert found["sluice_backbone_oldest_seconds"] == 0
        assert found["sluice_log_queued_events"] == found["sluice_log_queued_bytes"] == 0
        assert found["sluice_log_queue_limit_events"] == 1234
        assert found["sluice_log_queue_limit_bytes"] == 56789
        assert found["sluice_backbone_resets_total"] == found["sluice_backbone_reconnects_total"] == 0
        for name, here, elsewhere in (
            ("read_events", 2, 2),
            ("published_events", 2, 0),
            ("duplicates", 1, 1),
            ("failed_calls", 0, 0),
        ):
            counted = found[f"sluice_backbone_{name}_total"], there[f"sluice_backbone_{name}_total"]
            assert counted == (here, elsewhere), name


def test_a_silent_broker_is_seen_before_it_is_given_up(broker: Broker) -> None:
    """While the broker stands still its silence grows; then it counts as gone, and comes back."""
    with GatewayProcess(backbone=broker.url) as gateway:
        gateway.publish({"topic": "a", "data": 1})
        broker.freeze()
        try:
            until(gateway, lambda each: each["sluice_backbone_silent_seconds"] > 6)
            found = until(gateway, lambda each: each["sluice_backbone_connected"] == 0)
            assert found["sluice_log_trouble"] == 1
            found = until(gateway, lambda each: each["sluice_backbone_silent_seconds"] > 12)
        finally:
            broker.thaw()
        found = until(gateway, lambda each: each["sluice_backbone_connected"] == 1)
        assert found["sluice_backbone_reconnects_total"] >= 1
        assert found["sluice_backbone_silent_seconds"] < 6
        assert found["sluice_backbone_resets_total"] == 0


def test_a_blocked_broker_is_seen(broker: Broker) -> None:
    """While the broker is short of memory it counts as blocked, and what is on the way as waiting."""
    with GatewayProcess(backbone=broker.url) as gateway:
        broker.control("set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            with pytest.raises(AssertionError, match="answered 503"):
                gateway.publish({"topic": "a", "data": 1})
            found = until(gateway, lambda each: each["sluice_backbone_blocked"] == 1)
            assert found["sluice_log_queued_events"] == 1
            assert found["sluice_backbone_oldest_seconds"] > 4
            with pytest.raises(AssertionError, match="the broker takes no events now"):
                gateway.publish({"topic": "a", "data": 2})
            assert measured(gateway)["sluice_backbone_failed_calls_total"] == 1
        finally:
            broker.control("set_vm_memory_high_watermark", "absolute", "512MB")
        until(gateway, lambda each: each["sluice_backbone_blocked"] == 0)
        until(gateway, lambda each: each["sluice_log_queued_events"] == 0)
        assert gateway.publish({"topic": "a", "data": 1})["accepted"] == 1


def test_a_stream_made_anew_is_counted(broker: Broker) -> None:
    """A stream that was deleted counts as a reset."""
    with GatewayProcess(backbone=broker.url, stream="short", exchanges="short") as gateway:
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            connection.channel().queue_delete("short")
        until(gateway, lambda each: each["sluice_backbone_resets_total"] == 1)
