"""Metrics for Prometheus, read from the counters that the gateway keeps anyway, when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from fanout import heartbeat
from fanout.connection import State
from gateway.limits.guard import GUARDED
from gateway.quotas import COUNTED
from webhooks.counters import BOUNDS

if TYPE_CHECKING:
    from gateway.app import Gateway


class Collector:
    """
    Reads a gateway's counters.

    Args:
        gateway: whose.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterable[Metric]:
        """Return every metric with its value of now."""
        yield from self._log()
        yield from self._store()
        yield from self._connections()
        yield from self._limits()
        yield from self._intake()
        yield from self._webhooks()
        yield from self._requests()
        yield from self._replicas()
        yield from self._access()
        yield from self._tls()
        yield from self._worker()

    def _log(self) -> Iterator[Metric]:
        log, window = self._gateway.log, self._gateway.hub.window
        yield GaugeMetricFamily("sluice_log_head", "Position of the newest event.", log.head)
        yield GaugeMetricFamily("sluice_log_first", "Position of the oldest event retained.", log.first)
        yield GaugeMetricFamily(
            "sluice_log_trouble", "Whether the log cannot store.", log.trouble() is not None
        )
        for each in log.measures():
            family = CounterMetricFamily if each.total else GaugeMetricFamily
            yield family(f"sluice_{each.name}", each.what, each.value)
        yield GaugeMetricFamily("sluice_window_bytes", "Memory of the window.", window.bytes)
        yield GaugeMetricFamily("sluice_window_events", "Events in the window.", len(window))
        yield CounterMetricFamily("sluice_window_evicted", "Events that left the window.", window.evicted)

    def _store(self) -> Iterator[Metric]:
        store, counted = self._gateway.store, self._gateway.consumers.statistics()
        trouble = store is not None and store.trouble() is not None
        yield GaugeMetricFamily("sluice_store_trouble", "Whether the store cannot be used.", trouble)
        yield CounterMetricFamily("sluice_store_commits", "Commits of consumers' cursors.", counted.commits)
        yield CounterMetricFamily("sluice_store_failures", "Such commits that failed.", counted.failures)
        yield GaugeMetricFamily(
            "sluice_store_commit_seconds", "How long the last of them took.", counted.commit_seconds
        )

    def _connections(self) -> Iterator[Metric]:
        hub, streams = self._gateway.hub, self._gateway.streams
        connections = GaugeMetricFamily(
            "sluice_connections", "Connections by wire and state.", labels=["wire", "state"]
        )
        counts: dict[tuple[str, str], int] = {}
        for connection in hub.connections:
            key = (connection.wire.name.lower(), connection.state.value)
            counts[key] = counts.get(key, 0) + 1
        for (wire, state), number in counts.items():
            connections.add_metric([wire, state], number)
        yield connections
        yield CounterMetricFamily(
            "sluice_connections_opened", "Streaming connections opened.", streams.opened
        )
        ended = CounterMetricFamily(
            "sluice_connections_ended", "Streaming connections ended, by reason.", labels=["reason"]
        )
        for reason, number in streams.ended.items():
            ended.add_metric([reason], number)
        yield ended
        gaps = CounterMetricFamily(
            "sluice_gaps", "Gaps announced to streaming connections, by reason.", labels=["reason"]
        )
        for reason, number in self._gateway.catchup.gaps.items():
            gaps.add_metric([reason], number)
        yield gaps
        yield CounterMetricFamily(
            "sluice_deliveries", "Events written to streaming connections.", hub.deliveries
        )
        behind = sum(connection.state is not State.LIVE for connection in hub.connections)
        yield GaugeMetricFamily("sluice_connections_behind", "Connections that are not at the head.", behind)

    def _limits(self) -> Iterator[Metric]:
        doorkeeper = self._gateway.doorkeeper
        quotas = self._gateway.quotas
        counted = {"max_connections": self._gateway.streams.turned_away}
        if self._gateway.access is not None:
            counted |= {name: quotas.refused[name] for name in COUNTED}
        if doorkeeper is not None:
            guard = doorkeeper.guard
            counted |= {name: guard.refused[name] for name in GUARDED}
            yield GaugeMetricFamily(
                "sluice_connections_waiting",
                "Connections that have sent no complete request yet.",
                len(doorkeeper.room),
            )
            yield GaugeMetricFamily("sluice_memory_bytes", "Memory of this process.", guard.memory.resident)
            yield GaugeMetricFamily(
                "sluice_memory_limit_bytes",
                "Memory above which nothing new begins; 0 is no limit.",
                guard.memory.limit,
            )
        refused = CounterMetricFamily(
            "sluice_refused",
            "Connections and requests refused, by the limit that was reached.",
            labels=["limit"],
        )
        for name, number in counted.items():
            refused.add_metric([name], number)
        yield refused

    def _intake(self) -> Iterator[Metric]:
        intake = self._gateway.intake
        yield CounterMetricFamily("sluice_events_accepted", "Events made durable.", intake.accepted)
        yield CounterMetricFamily(
            "sluice_events_duplicate", "Events recognised as duplicates.", intake.duplicates
        )
        yield CounterMetricFamily(
            "sluice_publish_busy", "Publish calls refused because the queue was full.", intake.busy
        )
        yield CounterMetricFamily(
            "sluice_publish_unavailable",
            "Publish calls that failed because the log could not store.",
            intake.unavailable,
        )

    def _replicas(self) -> Iterator[Metric]:
        replicas, sticky = self._gateway.replicas, self._gateway.sticky
        if replicas.member is None:
            return
        yield GaugeMetricFamily(
            "sluice_replicas", "Replicas in the ring.", len(replicas.membership.view.members)
        )
        yield GaugeMetricFamily(
            "sluice_replicas_share", "The part of the keys that is this one's.", replicas.share()
        )
        yield GaugeMetricFamily(
            "sluice_replicas_apart",
            "Whether this one hears nothing of the others.",
            replicas.membership.state is heartbeat.State.APART,
        )
        yield CounterMetricFamily(
            "sluice_replicas_odd_messages",
            "Messages among heartbeats that were none.",
            replicas.member.passed,
        )
        if sticky is not None:
            yield CounterMetricFamily(
                "sluice_sticky_sent_on", "Requests that were sent to their owner.", sticky.sent_on
            )
            yield CounterMetricFamily(
                "sluice_sticky_moved", "Connections that moved with the ring.", sticky.moved
            )

    def _requests(self) -> Iterator[Metric]:
        requests = self._gateway.requests
        if requests is None:
            return
        leasing, book = requests.leasing, requests.book
        unfinished = GaugeMetricFamily(
            "sluice_requests_unfinished", "Requests that wait or run.", labels=["service"]
        )
        waiting = GaugeMetricFamily(
            "sluice_requests_waiting_workers", "Workers that wait for requests.", labels=["service"]
        )
        for service in requests.options.services:
            unfinished.add_metric([service], book.unfinished[service])
            waiting.add_metric([service], leasing.waiting(service))
        yield unfinished
        yield waiting
        yield GaugeMetricFamily("sluice_requests_leases", "Requests that a worker has.", len(leasing.leases))
        yield GaugeMetricFamily(
            "sluice_requests_known", "Requests that are unfinished, or were finished lately.", len(book)
        )
        ended = CounterMetricFamily(
            "sluice_requests_ended",
            "Requests that ended, by service and outcome.",
            labels=["service", "outcome"],
        )
        for (service, outcome), number in book.ended.items():
            ended.add_metric([service, outcome], number)
        yield ended
        yield CounterMetricFamily(
            "sluice_requests_lapsed", "Leases whose worker was not heard of.", leasing.lapsed
        )
        yield CounterMetricFamily(
            "sluice_requests_refused",
            "Requests refused because their service has too many.",
            requests.refused,
        )

    def _webhooks(self) -> Iterator[Metric]:
        webhooks = self._gateway.webhooks
        if webhooks is None:
            return
        found, counted = webhooks.statistics(), webhooks.counters
        yield GaugeMetricFamily(
            "sluice_webhook_trouble", "Whether webhooks wait.", webhooks.ready is not None
        )
        yield GaugeMetricFamily(
            "sluice_webhook_endpoints", "Endpoints that this process looks after.", found.endpoints
        )
        yield GaugeMetricFamily(
            "sluice_webhook_pending", "Pending deliveries of these, as last counted.", found.pending
        )
        yield GaugeMetricFamily(
            "sluice_webhook_lag", "Events behind the head of which no deliveries were made yet.", found.lag
        )
        yield GaugeMetricFamily("sluice_webhook_in_flight", "Attempts on their way.", found.in_flight)
        yield GaugeMetricFamily(
            "sluice_webhook_unsettled", "Outcomes that are not written down yet.", found.unsettled
        )
        yield GaugeMetricFamily("sluice_webhook_links", "Connections to receivers.", found.links)
        yield CounterMetricFamily("sluice_webhook_dispatched", "Deliveries made.", counted.dispatched)
        attempts = CounterMetricFamily(
            "sluice_webhook_attempts", "Attempts that ended, by outcome.", labels=["outcome"]
        )
        for outcome, number in counted.attempts.items():
            attempts.add_metric([outcome], number)
        yield attempts
        yield HistogramMetricFamily(
            "sluice_webhook_attempt_seconds",
            "How long they took.",
            buckets=_buckets(counted.parts),
            sum_value=counted.spent / 1000,
        )
        ended = CounterMetricFamily(
            "sluice_webhook_ended", "Deliveries that ended, by how they stand.", labels=["state"]
        )
        for state, number in counted.ended.items():
            ended.add_metric([state], number)
        yield ended
        yield CounterMetricFamily(
            "sluice_webhook_gaps", "Stretches of the log that could not be read.", counted.gaps
        )
        yield CounterMetricFamily("sluice_webhook_announced", "Operational events.", counted.announced)
        yield CounterMetricFamily(
            "sluice_webhook_unannounced", "Such events that could not be published.", counted.unannounced
        )
        yield CounterMetricFamily(
            "sluice_webhook_overtaken",
            "Outcomes not written down because another replica had taken over.",
            counted.overtaken,
        )

    def _access(self) -> Iterator[Metric]:
        turned = CounterMetricFamily(
            "sluice_turned_away", "Requests that the gate refused, by status.", labels=["status"]
        )
        for status, number in self._gateway.turned_away.items():
            turned.add_metric([str(status)], number)
        yield turned
        access = self._gateway.access
        if access is None:
            return
        authority = access.authority
        refused = CounterMetricFamily(
            "sluice_auth_refused", "Tokens, API keys and tickets refused, by reason.", labels=["reason"]
        )
        for reason, number in authority.refused.items():
            refused.add_metric([reason], number)
        yield refused
        yield CounterMetricFamily(
            "sluice_auth_renewed", "Connections that went on with a newer token.", access.watch.renewed
        )
        yield GaugeMetricFamily("sluice_auth_keys", "API keys.", len(authority.registry.keys))
        yield GaugeMetricFamily(
            "sluice_auth_revocations", "Revocations.", len(authority.registry.revocations)
        )
        yield CounterMetricFamily(
            "sluice_auth_failures",
            "Times that keys, or what was revoked, could not be looked up.",
            authority.registry.failures + sum(each.failures for each in authority.sources),
        )

    def _tls(self) -> Iterator[Metric]:
        tls = self._gateway.tls
        if tls is None:
            return
        yield GaugeMetricFamily(
            "sluice_tls_certificate_expires_seconds",
            "When the certificate in use expires, in Unix time.",
            tls.expires,
        )
        yield CounterMetricFamily(
            "sluice_tls_reload_failures", "How often changed files could not be used.", tls.failures
        )

    def _worker(self) -> Iterator[Metric]:
        worker = self._gateway.worker
        if worker is not None:
            yield CounterMetricFamily(
                "sluice_worker_restarts", "Restarts of the worker because it fell.", worker.restarts
            )


def _buckets(parts: Sequence[int]) -> list[tuple[str, float]]:
    """Return the parts of a histogram as Prometheus has them: each with all below it."""
    bounds = [*(str(bound / 1000) for bound in BOUNDS), "+Inf"]
    return list(zip(bounds, map(float, accumulate(parts)), strict=True))


def registry(gateway: Gateway) -> CollectorRegistry:
    """Return a registry with the gateway's metrics."""
    own = CollectorRegistry(auto_describe=False)
    own.register(Collector(gateway))
    return own


def text(own: CollectorRegistry) -> bytes:
    """Return the metrics in Prometheus' text format."""
    return generate_latest(own)
