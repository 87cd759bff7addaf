"""Webhooks as their users see them: endpoints, deliveries, attempts and jobs as values for JSON. Pure."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from gateway.mint import time_text
from webhooks import delivery, records
from webhooks.endpoint import Endpoint
from webhooks.health import Record
from webhooks.keys import Key
from webhooks.records import Standing
from webhooks.signature import Ed25519Secret, Scheme
from webhooks.stored import delivery_name, endpoint_name, job_name

_STANDINGS: Final = {
    Standing.DELIVERED: delivery.State.DELIVERED,
    Standing.FAILED: delivery.State.FAILED,
    Standing.EXPIRED: delivery.State.EXPIRED,
}

HIDDEN: Final = "…"
"""Stands for a header's value that may be a secret. None can have it: nobody gives it back by mistake."""

# Names of headers whose values let in whoever has them.
_SECRET = re.compile("auth|cookie|credential|key|pass|secret|signature|token", re.IGNORECASE)


def shown_time(time_ms: int) -> str:
    """Return milliseconds since the Unix epoch as RFC 3339 text."""
    return time_text(time_ms).decode()


def shown_endpoint(row: records.Endpoint, found: Endpoint, now: int) -> dict[str, Any]:
    """
    Return an endpoint without what only its owner and we know.

    Args:
        row: it as the store has it.
        found: it, ready for use.
        now: milliseconds since the Unix epoch.
    """
    description = msgspec.to_builtins(found.description)
    headers = {
        name: HIDDEN if _SECRET.search(name) else value for name, value in found.description.headers.items()
    }
    return {
        "id": found.id,
        **description,
        "headers": headers,
        "state": found.state.value,
        "created": shown_time(row.created),
        "changed": shown_time(row.changed),
        "keys": [_shown_key(key) for key in found.keys.all if key.is_live(now)],
        "health": _shown_health(found.health.record, now),
    }


def _shown_key(key: Key) -> dict[str, Any]:
    """Return what may be known of a key: of a private one the public half."""
    shown: dict[str, Any] = {"scheme": key.secret.scheme.value, "created": shown_time(key.created)}
    if key.expires:
        shown["expires"] = shown_time(key.expires)
    if isinstance(key.secret, Ed25519Secret):
        shown["public_key"] = key.secret.public_text
    return shown


def shown_secret(key: Key | None) -> dict[str, Any]:
    """Return the text of a shared secret, which is shown only when it is new; nothing for any other."""
    return {"secret": key.secret.text} if key is not None and key.secret.scheme is Scheme.V1 else {}


def _shown_health(record: Record, now: int) -> dict[str, Any]:
    shown: dict[str, Any] = {"failures": record.failures}
    if record.failures:
        shown["first_failure"] = shown_time(record.first_failure)
        shown["last_failure"] = shown_time(record.last_failure)
    if (until := _waits_until(record)) > now:
        shown["waits_until"] = shown_time(until)
    return shown


def _waits_until(record: Record) -> int:
    """Return until when an endpoint is left alone, because it fails or asked for it; 0 if nothing is so."""
    return max(record.open_until, record.wait_until)


def delivery_state(standing: Standing, *, is_open: bool) -> delivery.State:
    """Return the state of a delivery: what is pending is held unless its endpoint is open."""
    pending = delivery.State.PENDING if is_open else delivery.State.HELD
    return _STANDINGS.get(standing, pending)


def shown_delivery(
    row: records.Delivery, state: delivery.State, record: Record, webhook_id: str
) -> dict[str, Any]:
    """
    Return a delivery.

    Args:
        row: it as the store has it.
        state: see `delivery_state`.
        record: of its endpoint.
        webhook_id: the value of the header `webhook-id` of its attempts.
    """
    shown: dict[str, Any] = {
        "id": delivery_name(row.endpoint, row.message),
        "webhook": endpoint_name(row.endpoint),
        "webhook_id": webhook_id,
        "event": row.event,
        "topic": row.topic,
        "time": shown_time(row.time),
        "state": state.value,
        "attempts": row.attempts,
    }
    if state is delivery.State.PENDING:
        shown["next_attempt"] = shown_time(max(row.due, _waits_until(record)))
    elif state is not delivery.State.HELD:
        shown["ended"] = shown_time(row.due)
    return shown


def shown_attempt(row: records.Attempt) -> dict[str, Any]:
    """Return an attempt."""
    shown: dict[str, Any] = {"number": row.number, "time": shown_time(row.time)}
    if row.status is not None:
        shown["status"] = row.status
    if row.error is not None:
        shown["error"] = row.error
    shown["duration_ms"] = row.duration
    if row.excerpt:
        shown["response"] = row.excerpt.decode("utf-8", "replace")
    return shown


def shown_job(row: records.Job) -> dict[str, Any]:
    """Return a job."""
    return {
        "id": job_name(row.id),
        "webhook": endpoint_name(row.endpoint),
        "task": row.task.value,
        "state": "done" if row.finished else "running",
        "deliveries": row.changed,
    }
