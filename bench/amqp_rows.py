"""
The rows with a broker: what the gateway costs and does where RabbitMQ is its backbone.

Method, as in `bench.rows` but for this: the gateway has one core; broker, load client and this harness share
the other. What the broker costs is part of no figure but rates and latencies, and those are what one core of
broker allows. The load client sleeps when it has nothing to do: spinning, it would take the broker's time.
"""

from __future__ import annotations

from bench.amqp_costs import ingesting, publishing
from bench.amqp_service import flat, latency, replay
from bench.rows import Row

ROWS = (
    Row("amqp-ingest", 50, ingesting, beside_floor=False),
    Row("amqp-publish", 45, publishing, beside_floor=False),
    Row("amqp-latency", 40, latency, beside_floor=False),
    Row("amqp-flat", 35, flat, beside_floor=False),
    Row("amqp-replay", 90, replay, beside_floor=False),
)
