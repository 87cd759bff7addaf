"""
The demo page at `/`, and the receiver of webhooks that it brings along.

The receiver is what the author of one would write, and has no way into the gateway: it is told a secret,
takes what comes by HTTP, verifies it, and answers as it was told to. Its webhooks pass the guard like all
others, so on loopback addresses it is reached only where an operator allows that. What it remembers is in
this process's memory, and bounded.
"""

from __future__ import annotations

import hmac
import re
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from gateway.intake import Intake
from gateway.mint import now_ms
from gateway.operate import json_response
from gateway.problems import Problem
from gateway.resources import BodyLimits, Call, Resource
from gateway.settings import Settings
from gateway.webhooks_shown import shown_time
from webhooks.description import decoded
from webhooks.signature import Secret, parse_secret

FOLDER: Final = next(  # beside the package in a checkout, inside it in a wheel
    (
        each
        for parent in (Path(__file__).parent, Path(__file__).resolve().parent.parent)
        if (each := parent / "web-demo").is_dir()
    ),
    None,
)

MAX_RECEIVERS: Final = 20
MAX_RECEIVED: Final = 50
"""Requests that each remembers; the oldest are forgotten."""
MAX_KEPT_BYTES: Final = 16 * 1024
"""Bytes of a body that are remembered."""
TOLERANCE_SECONDS: Final = 300
"""By so much a timestamp may be off: as the libraries of Standard Webhooks have it."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{8,64}")


def routes(settings: Settings, intake: Intake, *, webhooks: bool) -> list[BaseRoute]:
    """Return the routes of the page; none where its files are not there."""
    if FOLDER is None:
        return []
    receivers: list[BaseRoute] = [Receivers(settings, intake).route()] if webhooks else []
    return [Route("/", _page), *receivers, Mount("/demo", _Files(directory=FOLDER))]


async def _page(_request: Request) -> Response:
    assert FOLDER is not None
    return FileResponse(FOLDER / "index.html", headers={"cache-control": "no-cache"})


class _Files(StaticFiles):
    """The parts of the page; asked about each time, so that after an upgrade they are of one version."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a file."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


@dataclass
class _Receiver:
    """
    One receiver.

    Attributes:
        owner: whose it is: nobody else sees it, or changes it. Webhooks come from wherever.
        secret: what it verifies by.
        answer: the status by which it answers what is genuine.
        received: what came lately, the newest first.
    """

    owner: str
    secret: Secret
    answer: int
    received: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_RECEIVED))


class Receivers:
    """
    All receivers, by their names.

    Args:
        settings: bound what is taken.
        intake: whose budget bodies are accounted to.
    """

    def __init__(self, settings: Settings, intake: Intake) -> None:
        self._intake = intake
        self._limits = BodyLimits(settings, settings.max_event_bytes + 4096)
        self._receivers: OrderedDict[str, _Receiver] = OrderedDict()

    def route(self) -> Route:
        """Return the route."""
        resource = Resource(
            self._intake,
            self._limits,
            "receivers",
            GET=self._show,
            PUT=self._put,
            POST=self._take,
            DELETE=self._remove,
        )
        return Route("/demo/receiver/{receiver}", resource)

    async def _put(self, call: Call) -> Response:
        """Make a receiver, or tell it another secret or answer."""
        name = call.part("receiver")
        if not _NAME.fullmatch(name):
            raise Problem(422, "a receiver's name has 8 to 64 letters, digits, _ and -")
        wanted = decoded(call.members(), _Wanted)
        if not 200 <= wanted.answer <= 599:
            raise Problem(422, "answer is a status from 200 to 599", members={"pointer": "/answer"})
        receiver, owner = self._receivers.get(name), call.caller.owner
        if receiver is None:
            receiver = self._receivers[name] = _Receiver(owner, parse_secret(wanted.secret), wanted.answer)
            if len(self._receivers) > MAX_RECEIVERS:
                self._receivers.popitem(last=False)
        if receiver.owner != owner:
            raise Problem(409, "a receiver's name is its own: take another")
        receiver.secret, receiver.answer = parse_secret(wanted.secret), wanted.answer
        return _shown(receiver)

    async def _show(self, call: Call) -> Response:
        receiver = self._own(call)
        if receiver is None:
            raise _missing(call)
        return _shown(receiver)

    async def _remove(self, call: Call) -> Response:
        if self._own(call) is not None:
            del self._receivers[call.part("receiver")]
        return Response(status_code=204)

    def _own(self, call: Call) -> _Receiver | None:
        receiver = self._receivers.get(call.part("receiver"))
        return receiver if receiver is not None and receiver.owner == call.caller.owner else None

    async def _take(self, call: Call) -> Response:
        """Take a webhook."""
        receiver = self._receivers.get(call.part("receiver"))
        if receiver is None:
            raise _missing(call)
        wrong = _objection(receiver.secret, call)
        status = receiver.answer if wrong is None else 400
        headers = {name: _text(call, f"webhook-{name}") for name in ("id", "timestamp", "signature")}
        receiver.received.appendleft(
            {
                "time": shown_time(now_ms()),
                **headers,
                "body": call.body[:MAX_KEPT_BYTES].decode("utf-8", "replace"),
                "whole": len(call.body) <= MAX_KEPT_BYTES,
                "verified": wrong is None,
                "why": wrong or "",
                "answered": status,
            }
        )
        return Response((wrong or "") and f"{wrong}\n", status, media_type="text/plain")


class _Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """What a receiver is told."""

    secret: str
    answer: int = 204


def _missing(call: Call) -> Problem:
    return Problem(404, f"there is no receiver {call.part('receiver')[:60]!a} in this process")


def _shown(receiver: _Receiver) -> Response:
    return json_response({"answer": receiver.answer, "received": list(receiver.received)})


def _objection(secret: Secret, call: Call) -> str | None:
    """Return what is wrong with the signature of a webhook (Standard Webhooks 1.0); None if it is genuine."""
    id, timestamp = _text(call, "webhook-id"), _text(call, "webhook-timestamp")
    if not re.fullmatch("[0-9]{1,12}", timestamp):
        return "there is no timestamp"
    if abs(now_ms() / 1000 - int(timestamp)) > TOLERANCE_SECONDS:
        return "the timestamp is too far off"
    genuine = secret.token(f"{id}.{timestamp}.".encode(), call.body)
    tokens = _text(call, "webhook-signature").encode().split(b" ")
    if not any(hmac.compare_digest(genuine, token) for token in tokens):
        return "no signature matches"
    return None


def _text(call: Call, name: str) -> str:
    """Return a header, fit to be shown."""
    return call.headers.get(name.encode(), b"").decode("ascii", "replace")[:2000]
