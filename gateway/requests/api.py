"""The API of requests for clients and operators: hand in, ask, wait, take back, try again."""

from __future__ import annotations

import re
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any, Final

from msgspec import Raw
from starlette.responses import Response
from starlette.routing import Route

from gateway.intake import Intake
from gateway.mint import DATA_BASE64
from gateway.operate import json_response
from gateway.pages import read_limit, read_page, write_page
from gateway.payloads import check_nesting, content_type, payload
from gateway.problems import Problem
from gateway.quotas import Quotas
from gateway.requests.book import Request
from gateway.requests.changes import TOPICS, State
from gateway.requests.service import Client, Requests, no_request
from gateway.requests.shown import shown_listed, shown_request
from gateway.resources import BodyLimits, Call, Handler, Resource
from gateway.settings import Settings

PATH: Final = "/v1/requests"
MAX_WAIT: Final = 60.0
"""Seconds that a long poll takes at most."""
HINT_SECONDS: Final = 1
"""What `Retry-After` says of an unfinished request to whoever polls."""
MAX_KEY: Final = 255
MAX_TTL: Final = 30 * 86_400.0
_HIGHEST: Final = 2**53 - 1

_KEY: Final = re.compile(rb"[\x21-\x7e]{1,255}")
_NUMBER: Final = re.compile(r"[0-9]{1,8}(\.[0-9]{1,3})?", re.ASCII)
_TAGS: Final = re.compile(rb'(?:W/)?"([0-9]{1,16})"')


class RequestsApi:
    """
    Everything under `/v1/requests`.

    Args:
        requests: what is asked.
        intake: whose budget bodies are accounted to.
        settings: bound how long a body may take.
        quotas: of who hands requests in.
    """

    def __init__(self, requests: Requests, intake: Intake, settings: Settings, quotas: Quotas) -> None:
        self._requests = requests
        self._quotas = quotas
        self._intake = intake
        self._limits = BodyLimits(settings, requests.options.max_bytes)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(PATH, self._resource(GET=self._list)),
            Route(PATH + "/{name}:retry", self._resource(POST=self._retry)),
            Route(PATH + "/{name}", self._resource(GET=self._show, POST=self._submit, DELETE=self._cancel)),
        ]

    def _resource(self, **methods: Handler) -> Resource:
        return Resource(self._intake, self._limits, "requests", **methods)

    async def _submit(self, call: Call) -> Response:
        """Take a request in; the answer comes when it is durable."""
        ttl = call.query("ttl").get("ttl")
        caller = call.caller
        caller.check_request(call.part("name"))
        service = self._service(call.part("name"))
        member, data = payload(content_type(call.headers.get(b"content-type")), call.body)
        check_nesting(data)  # it is kept as a part of a change
        value = data if isinstance(data, Raw) else Raw(data)
        is_base64 = member == DATA_BASE64
        request, cursor = await self._requests.submit(
            service,
            None if is_base64 else value,
            value if is_base64 else None,
            _key(
                f"{caller.owner}\x1f{service}" if caller.owner else service,
                call.headers.get(b"idempotency-key"),
            ),
            None if ttl is None else _seconds("ttl", ttl, MAX_TTL),
            Client(caller.tenant, caller.mark, partial(self._quotas.check_request, caller)),
        )
        status_url = call.url(f"{PATH}/{request.token}")
        shown = {
            "token": request.token,
            "status_url": status_url,
            "events_url": call.url(f"/v1/events?topic={TOPICS}{request.token}&cursor={cursor}"),
            "cursor": cursor,
        }
        answer = json_response(shown, 202)
        answer.headers["location"] = status_url
        return answer

    async def _show(self, call: Call) -> Response:
        """Say where a request stands; with `wait` as soon as it is finished, or has changed."""
        asked = call.query("wait")
        seconds = _seconds("wait", asked.get("wait", "0"), MAX_WAIT, least=0)
        request = await self._found(call)
        seen = _position(call.headers.get(b"if-none-match"))
        if seconds:
            async with call.watched() as gone:
                await self._requests.wait(request, seen, seconds, gone)
        position = request.latest
        if seen == position:
            answer = Response(status_code=304, headers={"cache-control": "no-store"})
        else:
            change = await self._requests.newest(request)
            if change is None and request.state is State.DONE:
                raise Problem(410, "the result has left the log")
            answer = json_response(shown_request(request, change))
        answer.headers["etag"] = f'"{position}"'
        if not request.state.final:
            answer.headers["retry-after"] = str(HINT_SECONDS)
        return answer

    async def _cancel(self, call: Call) -> Response:
        """Take a request back."""
        call.check_bare()
        request = await self._found(call)
        await self._requests.cancel(request)
        return json_response(shown_request(request, None))

    async def _retry(self, call: Call) -> Response:
        """Have a failed request tried again."""
        call.check_bare()
        request = await self._requests.find(call.part("name"))
        await self._requests.retry(request)
        return json_response(shown_request(request, None), 202)

    async def _list(self, call: Call) -> Response:
        """Return requests, the eldest first; those of one service or state if asked."""
        asked = call.query("service", "state", "limit", "page")
        self._requests.check_ready()
        limit = read_limit(asked.get("limit"))
        (after,) = read_page(asked.get("page"), "requests", (0,), (_HIGHEST,))
        service = None if "service" not in asked else self._service(asked["service"])
        state = None if "state" not in asked else _state(asked["state"])
        found = list(
            islice(
                (
                    each
                    for each in self._requests.book
                    if each.serial > after and service in (None, each.service) and state in (None, each.state)
                ),
                limit + 1,
            )
        )
        shown: dict[str, Any] = {"requests": [shown_listed(each) for each in found[:limit]]}
        if len(found) > limit:
            shown["next"] = write_page("requests", found[limit - 1].serial)
        return json_response(shown)

    async def _found(self, call: Call) -> Request:
        """
        Return the request that the path names. Its token is as good as a key, but only within its tenant.

        Raises:
            Problem: 404, there is none that who asks can know of; 503.
        """
        request = await self._requests.find(call.part("name"))
        grants = call.caller.grants
        if not grants.admin and (request.tenant != call.caller.tenant or not grants.requests):
            raise no_request()
        return request

    def _service(self, name: str) -> str:
        if name not in self._requests.options.services:
            raise Problem(404, f"there is no service {name[:60]!a} (setting: services)")
        return name


def _key(service: str, header: bytes | None) -> str | None:
    """Return the event id that all calls of one client, to one service, with this idempotency key share."""
    if header is None:
        return None
    if not _KEY.fullmatch(header):
        raise Problem(422, f"an Idempotency-Key has 1 to {MAX_KEY} visible ASCII characters")
    return f"request.{blake2b(service.encode() + b' ' + header, digest_size=20).hexdigest()}"


def _seconds(name: str, text: str, most: float, least: float = 0.001) -> float:
    if not _NUMBER.fullmatch(text) or not least <= float(text) <= most:
        raise Problem(422, f"{name} is a number of seconds, at most {most:g}")
    return float(text)


def _state(text: str) -> State:
    try:
        return State(text)
    except ValueError:
        raise Problem(422, f"state is one of {', '.join(each.value for each in State)}") from None


def _position(header: bytes | None) -> int | None:
    """Return the position that an `If-None-Match` names (RFC 9110, 13.1.2); None if it is none of ours."""
    found = None if header is None else _TAGS.fullmatch(header.strip())
    return None if found is None else int(found[1])
