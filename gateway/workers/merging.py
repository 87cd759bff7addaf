"""One view of several workers, from the view that each has of itself; pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from fanout.cursor import Cursor


def merge_metrics(texts: Mapping[int, str], missing: Sequence[int]) -> list[Metric]:
    """
    Return the metrics of all workers: each family once, each sample with its worker as a label.

    Args:
        texts: what each worker that answered exposes, in Prometheus' text format.
        missing: the workers that did not answer.
    """
    up = GaugeMetricFamily("sluice_worker_up", "Whether the worker answers.", labels=["worker"])
    for worker in sorted([*texts, *missing]):
        up.add_metric([str(worker)], worker in texts)
    families: dict[str, Metric] = {}
    for worker, text in texts.items():
        for own in text_string_to_metric_families(text):
            whole = families.setdefault(own.name, Metric(own.name, own.documentation, own.type))
            for sample in own.samples:
                whole.add_sample(sample.name, {"worker": str(worker), **sample.labels}, sample.value)
    return [up, *families.values()]


def merge_connections(answers: Iterable[tuple[int, dict[str, Any]]], limit: int) -> dict[str, Any]:
    """
    Return how many connections there are, and those furthest behind first.

    Args:
        answers: each worker with the connections that are furthest behind there, at least `limit`.
        limit: how many are returned.
    """
    total = 0
    connections: list[dict[str, Any]] = []
    for worker, answer in answers:
        total += answer["total"]
        connections += [{**each, "worker": worker} for each in answer["connections"]]
    return {"total": total, "connections": heapq.nsmallest(limit, connections, key=_position)}


def merge_topics(answers: Iterable[dict[str, Any]], limit: int) -> dict[str, Any]:
    """
    Return the topics in the window and the patterns in use, the busiest first, `limit` each.

    All workers read one log: an event in the windows of several is still one. A connection is at one worker.
    """
    topics: dict[str, int] = {}
    patterns: dict[str, int] = {}
    for answer in answers:
        for each in answer["topics"]:
            topics[each["topic"]] = max(topics.get(each["topic"], 0), each["events"])
        for each in answer["subscriptions"]:
            patterns[each["pattern"]] = patterns.get(each["pattern"], 0) + each["connections"]
    return {
        "topics": [{"topic": name, "events": number} for name, number in _busiest(topics, limit)],
        "subscriptions": [
            {"pattern": name, "connections": number} for name, number in _busiest(patterns, limit)
        ],
    }


def _position(connection: Mapping[str, Any]) -> int:
    return Cursor.parse(connection["cursor"]).position


def _busiest(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    return heapq.nlargest(limit, counts.items(), key=lambda item: item[1])
