"""The door for workers: they lease requests by long poll, and say what becomes of them, in any language."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.auth.caller import forbidden
from gateway.intake import Intake
from gateway.operate import json_response
from gateway.payloads import check_nesting
from gateway.problems import Problem
from gateway.requests.changes import Trouble
from gateway.requests.leasing import no_lease
from gateway.requests.service import Requests
from gateway.requests.shown import shown_lease
from gateway.resources import BodyLimits, Call, Handler, Resource
from gateway.settings import Settings
from webhooks.description import decoded

SERVICES: Final = "/v1/services"
LEASES: Final = "/v1/leases"
MAX_WAIT: Final = 60.0
MAX_LEASES: Final = 100
"""Leases that one call returns at most."""
MAX_DELAY: Final = 86_400.0
_SLACK: Final = 4096
"""Bytes of a body beside the result in it."""

REASONS: Final = frozenset({"error", "timeout", "refused", "result"})
"""Reasons that a worker can give; the others are the gateway's own."""
MAX_DETAIL: Final = 2000
MAX_WORKER: Final = 100
"""Characters of a worker's name."""


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """What a worker says that asks for requests."""

    worker: str = "worker"
    wait: float = 0
    max: int = 1


class Progress(msgspec.Struct, forbid_unknown_fields=True):
    """What a worker says that is at work."""

    progress: msgspec.Raw = msgspec.Raw(b"")


class Result(msgspec.Struct, forbid_unknown_fields=True):
    """What a worker says that is done."""

    result: msgspec.Raw = msgspec.Raw(b"null")


class Failure(msgspec.Struct, forbid_unknown_fields=True):
    """What a worker says that could not do it."""

    reason: str = "error"
    detail: str = ""
    again: bool = True
    delay: float | None = None


class Door:
    """
    Everything under `/v1/services` and `/v1/leases`.

    Args:
        requests: what is worked on.
        intake: whose budget bodies are accounted to.
        settings: bound how long a body may take.
    """

    def __init__(self, requests: Requests, intake: Intake, settings: Settings) -> None:
        self._requests = requests
        self._leasing = requests.leasing
        self._intake = intake
        # A result that is somewhat too large gets a sentence about its size, and its request an end.
        self._limits = BodyLimits(settings, 4 * requests.options.max_result_bytes + _SLACK)

    def routes(self) -> list[Route]:
        """Return the routes."""
        verbs: dict[str, Handler] = {
            "progress": self._progress,
            "complete": self._complete,
            "fail": self._fail,
            "release": self._release,
        }
        return [
            Route(SERVICES, self._resource(GET=self._services)),
            Route(SERVICES + "/{service}:lease", self._resource(POST=self._lease)),
            *(
                Route(f"{LEASES}/{{lease}}:{verb}", self._resource(POST=handler))
                for verb, handler in verbs.items()
            ),
        ]

    def _resource(self, **methods: Handler) -> Resource:
        return Resource(self._intake, self._limits, "requests", **methods)

    async def _services(self, call: Call) -> Response:
        """
        Return the services that the caller has to do with; to who works for them or operates, also how much
        there is to do. Whoever may only hand in finds the name.
        """
        call.query()
        grants = call.caller.grants
        running = Counter(lease.request.service for lease in self._leasing.leases.values())
        listed: list[dict[str, Any]] = []
        for name in self._requests.options.services:
            if grants.admin or grants.may_work(name):
                listed.append(
                    {
                        "service": name,
                        "unfinished": self._requests.book.unfinished[name],
                        "running": running[name],
                        "waiting_workers": self._leasing.waiting(name),
                    }
                )
            elif grants.may_request(name):
                listed.append({"service": name})
        return json_response({"services": listed})

    async def _lease(self, call: Call) -> Response:
        """Return leases of requests, as soon as there is one."""
        call.query()
        self._requests.check_ready()
        service = call.part("service")
        call.caller.check_work(service)
        if service not in self._requests.options.services:
            raise Problem(404, f"there is no service {service[:60]!a} (setting: services)")
        wanted = decoded(call.members(), Wanted)
        if not 0 <= wanted.wait <= MAX_WAIT:
            raise Problem(422, f"wait is from 0 to {MAX_WAIT:g} seconds", members={"pointer": "/wait"})
        if not 1 <= wanted.max <= MAX_LEASES:
            raise Problem(422, f"max is from 1 to {MAX_LEASES}", members={"pointer": "/max"})
        if not 1 <= len(wanted.worker) <= MAX_WORKER or not wanted.worker.isprintable():
            detail = f"worker is a name of 1 to {MAX_WORKER} characters"
            raise Problem(422, detail, members={"pointer": "/worker"})
        async with call.watched() as gone:
            leased = await self._leasing.lease(service, wanted.worker, wanted.max, wanted.wait, gone)
        seconds = self._requests.options.lease
        return json_response({"leases": [shown_lease(lease, begun, seconds) for lease, begun in leased]})

    async def _progress(self, call: Call) -> Response:
        """Extend a lease, and publish the progress if there is any."""
        call.query()
        given = decoded(call.members(), Progress)
        check_nesting(given.progress)
        await self._check(call)
        await self._leasing.progress(call.part("lease"), given.progress)
        return json_response({"seconds": self._requests.options.lease})

    async def _complete(self, call: Call) -> Response:
        """Take a result."""
        call.query()
        given = decoded(call.members(), Result)
        check_nesting(given.result)
        await self._check(call)
        await self._leasing.complete(call.part("lease"), given.result)
        return _done()

    async def _fail(self, call: Call) -> Response:
        """Take it that an attempt failed."""
        call.query()
        given = decoded(call.members(), Failure)
        if given.reason not in REASONS:
            reasons = ", ".join(sorted(REASONS))
            raise Problem(422, f"reason is one of {reasons}", members={"pointer": "/reason"})
        if given.delay is not None and not 0 <= given.delay <= MAX_DELAY:
            raise Problem(422, f"delay is from 0 to {MAX_DELAY:g} seconds", members={"pointer": "/delay"})
        await self._check(call)
        trouble = Trouble(given.reason, given.detail[:MAX_DETAIL])
        await self._leasing.fail(call.part("lease"), trouble, again=given.again, delay=given.delay)
        return _done()

    async def _release(self, call: Call) -> Response:
        """Take a request back unworked."""
        call.check_bare()
        await self._check(call)
        await self._leasing.release(call.part("lease"))
        return _done()

    async def _check(self, call: Call) -> None:
        """
        Check that who names a lease may work for its service.

        Raises:
            Problem: 403, for none; 404, for another, or there is no such lease.
        """
        caller = call.caller
        if not caller.grants.work:
            raise forbidden("the token does not grant work for any service")
        lease = await self._leasing.find(call.part("lease"))
        if not caller.grants.may_work(lease.request.service):
            raise no_lease()


async def no_services(_request: Request) -> Response:
    """Answer for a gateway that takes no requests."""
    return json_response({"services": []})


def _done() -> Response:
    return Response(status_code=204)
