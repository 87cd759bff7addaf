"""One view of several workers."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from gateway import metrics
from gateway.app import Gateway
from gateway.settings import Settings
from gateway.workers.merging import merge_connections, merge_metrics, merge_topics
from gateway.workers.together import _Collected


def exposed(texts: dict[int, str], missing: list[int]) -> str:
    """Return what is exposed of several workers."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(merge_metrics(texts, missing)))
    return metrics.text(registry).decode()


def test_metrics_keep_everything_and_gain_a_label() -> None:
    """Each family is there once, with its help and type, and each sample once for each worker."""
    own = metrics.text(metrics.registry(Gateway(Settings(data="memory:")))).decode()
    merged = exposed({0: own, 2: own}, [1])
    families = {each.name: each for each in text_string_to_metric_families(merged)}
    up = families.pop("sluice_worker_up")
    assert {each.labels["worker"]: each.value for each in up.samples} == {"0": 1, "1": 0, "2": 1}
    alone = {each.name: each for each in text_string_to_metric_families(own)}
    assert list(families) == list(alone)
    for name, family in families.items():
        assert (family.documentation, family.type) == (alone[name].documentation, alone[name].type)
        for worker in "02":
            mine = [each for each in family.samples if each.labels["worker"] == worker]
            assert [
                (each.name, {**each.labels, "worker": worker}, each.value) for each in alone[name].samples
            ] == [(each.name, each.labels, each.value) for each in mine]


def test_labels_with_any_text_survive() -> None:
    """What a label may hold comes through as it was."""
    text = '# TYPE a gauge\n# HELP a b\na{x="q\\"uo\\\\te\\nline"} 1.5\n'
    (family,) = (each for each in text_string_to_metric_families(exposed({3: text}, [])) if each.name == "a")
    assert family.samples[0].labels == {"worker": "3", "x": 'q"uo\\te\nline'}
    assert family.samples[0].value == 1.5


def connection(position: int) -> dict[str, Any]:
    """Return a connection as a worker lists it."""
    return {"connection": f"c-{position}", "cursor": f"abcdef-{position}-0000"}


def test_those_furthest_behind_come_first_of_all() -> None:
    """Connections of all workers are in one order, cut to the limit; the total counts all there are."""
    merged = merge_connections(
        [
            (0, {"total": 7, "connections": [connection(5), connection(9)]}),
            (1, {"total": 2, "connections": [connection(2), connection(30)]}),
        ],
        3,
    )
    assert merged["total"] == 9
    assert [(each["connection"], each["worker"]) for each in merged["connections"]] == [
        ("c-2", 1),
        ("c-5", 0),
        ("c-9", 0),
    ]


def test_an_event_is_one_and_a_connection_is_one() -> None:
    """Topics are those of one log, which every worker has read; subscribers of all workers are summed."""
    one = {
        "topics": [{"topic": "a", "events": 5}, {"topic": "b", "events": 1}],
        "subscriptions": [{"pattern": "#", "connections": 3}],
    }
    two = {
        "topics": [{"topic": "a", "events": 4}, {"topic": "c", "events": 2}],
        "subscriptions": [{"pattern": "x", "connections": 4}, {"pattern": "#", "connections": 2}],
    }
    assert merge_topics([one, two], 2) == {
        "topics": [{"topic": "a", "events": 5}, {"topic": "c", "events": 2}],
        "subscriptions": [{"pattern": "#", "connections": 5}, {"pattern": "x", "connections": 4}],
    }
