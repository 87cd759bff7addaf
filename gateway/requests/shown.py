"""Requests as their clients, workers and operators see them: values for JSON. Pure."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from gateway.mint import time_text
from gateway.requests.book import Request
from gateway.requests.changes import Change, State
from gateway.requests.leasing import Lease


def shown_request(request: Request, change: Change | None) -> dict[str, Any]:
    """
    Return what a client sees of a request.

    Args:
        request: where it stands.
        change: its newest change; None to leave out what only that says.
    """
    shown: dict[str, Any] = {
        "token": request.token,
        "service": request.service,
        "state": request.state.value,
        "attempt": request.attempt,
        "created": _time(request.created),
        "updated": _time(request.updated),
        "expires": _time(request.expires),
    }
    if request.state is State.QUEUED and request.due:
        shown["next"] = _time(request.due)
    if change is not None:
        members = {"progress": change.progress, "result": change.result, "error": change.error}
        shown.update({name: value for name, value in members.items() if value is not UNSET})
    return shown


def shown_listed(request: Request) -> dict[str, Any]:
    """Return what an operator sees of a request in a list."""
    shown = shown_request(request, None)
    if request.reason:
        shown["reason"] = request.reason
    return shown


def shown_lease(lease: Lease, begun: Change, seconds: float) -> dict[str, Any]:
    """
    Return what a worker is given.

    Args:
        lease: it.
        begun: the change with what the client handed in.
        seconds: for how long it may be silent.
    """
    shown = {
        "lease": lease.id,
        "token": lease.request.token,
        "service": lease.request.service,
        "attempt": lease.attempt,
        "expires": _time(lease.request.expires),
        "seconds": seconds,
    }
    if begun.data_base64 is not UNSET:
        shown["data_base64"] = begun.data_base64
    else:
        shown["data"] = None if begun.data is UNSET else begun.data
    return shown


def _time(time_ms: int) -> str:
    return time_text(time_ms).decode()
