"""
Describes requests: `/v1/requests` for clients and operators, `/v1/services` and `/v1/leases` for workers.
Pure.
"""

from __future__ import annotations

from typing import Final

from gateway.openapi.operate import LIMIT, PAGE
from gateway.openapi.parts import (
    ANYTHING,
    BODY,
    COUNT,
    FLAG,
    JSON,
    TEXT,
    TIME,
    Json,
    answer,
    body,
    listed,
    number,
    one_of,
    operation,
    optional,
    parameter,
    ref,
    refused,
    shape,
    taken,
    text,
)
from gateway.requests.api import MAX_KEY, MAX_TTL, MAX_WAIT, PATH
from gateway.requests.changes import State
from gateway.requests.door import LEASES, MAX_DELAY, MAX_LEASES, MAX_WORKER, REASONS, SERVICES
from gateway.requests.door import MAX_WAIT as MAX_LEASE_WAIT
from gateway.requests.options import services_of
from gateway.settings import Settings

_CACHED: Final = ["Cache-Control"]
_STATE: Final = one_of(*(each.value for each in State))
_REASON: Final = one_of(*sorted(REASONS), "lost", "expired", "gone")
_REQUEST: Final[dict[str, Json]] = {
    "token": TEXT,
    "service": TEXT,
    "state": _STATE,
    "attempt": COUNT,
    "created": TIME,
    "updated": TIME,
    "expires": TIME,
    "next": {**TIME, "description": "It is not tried again before."},
}
_ALWAYS: Final = "token service state attempt created updated expires"

SCHEMAS: Final[dict[str, Json]] = {
    "Submitted": shape(
        "token status_url events_url cursor",
        token=TEXT,
        status_url=TEXT,
        events_url={**TEXT, "description": "Where every change of it is an event."},
        cursor=ref("Cursor"),
    ),
    "Request": shape(
        _ALWAYS,
        **_REQUEST,
        progress=ANYTHING,
        result=ANYTHING,
        error=shape("reason", reason=_REASON, detail=TEXT),
    ),
    "RequestList": shape("requests", requests=listed(shape(_ALWAYS, **_REQUEST, reason=_REASON)), next=TEXT),
    "Services": shape(
        "services",
        services=listed(
            shape(
                "service",  # the rest is for workers and operators
                service=TEXT,
                unfinished=COUNT,
                running=COUNT,
                waiting_workers=COUNT,
            )
        ),
    ),
    "Lease": {
        **shape(
            "lease token service attempt expires seconds",
            lease=TEXT,
            token=TEXT,
            service=TEXT,
            attempt=COUNT,
            expires=TIME,
            seconds={"type": "number", "description": "It holds for so long from now."},
            data=ANYTHING,
            data_base64=TEXT,
        ),
        "oneOf": [{"required": ["data"]}, {"required": ["data_base64"]}],
    },
}


def paths(settings: Settings) -> Json:
    """Return the paths; without services only the list of them, which is empty."""
    services = {SERVICES: {"get": _services()}}
    names = services_of(settings.services)
    if not names:
        return services
    service, token = one_of(*names), text(1, 64)
    return {
        PATH: {"get": _list(service)},
        PATH + "/{name}": {
            "get": _show(token),
            "post": _submit(service),
            "delete": operation(
                "cancelRequest",
                "Take a request back",
                {"200": _ok("It is cancelled.", ref("Request")), **refused(403, *BODY, 404, 409, 422, 503)},
                parameters=[_token(token)],
            ),
        },
        PATH + "/{name}:retry": {
            "post": operation(
                "retryRequest",
                "Have a failed request tried again",
                {
                    "202": _ok("It is queued.", ref("Request")),
                    **refused(403, *BODY, 404, 409, 410, 422, 503),
                },
                parameters=[_token(token)],
            )
        },
        **services,
        SERVICES + "/{service}:lease": {"post": _lease(service)},
        **_reports(),
    }


def schemas(settings: Settings) -> dict[str, Json]:
    """Return the schemas of what the paths name."""
    return SCHEMAS if settings.services else {"Services": SCHEMAS["Services"]}


def _services() -> Json:
    return operation(
        "listServices",
        "The services, and how much there is to do",
        {"200": answer("They are these.", {JSON: ref("Services")}, _CACHED), **refused(422, 503)},
    )


def _list(service: Json) -> Json:
    return operation(
        "listRequests",
        "Requests that are unfinished, or were finished lately",
        {"200": _ok("They are these, the eldest first.", ref("RequestList")), **refused(404, 422, 503)},
        parameters=[
            parameter("query", "service", service, "Only those of this service."),
            parameter("query", "state", _STATE, "Only those in this state."),
            LIMIT,
            PAGE,
        ],
    )


def _show(token: Json) -> Json:
    return operation(
        "getRequest",
        "Where a request stands",
        {
            "200": answer(
                "Where it stands. `Retry-After` is missing when there is nothing left to wait for.",
                {JSON: ref("Request")},
                ["ETag", *_CACHED],
                ["Retry-After"],
            ),
            "304": answer("As `If-None-Match` says.", None, ["ETag", *_CACHED], ["Retry-After"]),
            **refused(404, 410, 422, 503),
        },
        parameters=[
            _token(token),
            parameter("query", "wait", number(0, MAX_WAIT), "Seconds to wait until it is finished."),
            parameter("header", "If-None-Match", TEXT, "An `ETag`: wait for any change behind it."),
        ],
    )


def _submit(service: Json) -> Json:
    return operation(
        "submitRequest",
        "Hand in a request",
        {
            "202": answer("It is durable.", {JSON: ref("Submitted")}, ["Location", *_CACHED]),
            **refused(403, *BODY, 404, 409, 422, 429, 503),
        },
        parameters=[
            parameter("path", "name", service, "The service."),
            parameter("query", "ttl", number(0.001, MAX_TTL), "Seconds in which it has to be done."),
            parameter(
                "header",
                "Idempotency-Key",
                {**text(1, MAX_KEY), "pattern": "^[!-~]+$"},
                "Repeats of a call with it are one request.",
            ),
        ],
        body=body(
            {JSON: ANYTHING, "text/plain": TEXT, "application/octet-stream": {}},
            "Any content type: JSON is handed on as it is, text as a string, anything else as bytes.",
        ),
    )


def _lease(service: Json) -> Json:
    wanted = taken(
        worker=optional(text(1, MAX_WORKER, "A name for operators.")),
        wait=optional(number(0, MAX_LEASE_WAIT, "Seconds to wait for a request.")),
        max=optional({"type": "integer", "minimum": 1, "maximum": MAX_LEASES}),
    )
    leases = shape("leases", leases=listed(ref("Lease"), most=MAX_LEASES))
    return operation(
        "leaseRequests",
        "Take requests to work on, as soon as there are some",
        {
            "200": _ok("Leases of them; none when the time is over.", leases),
            **refused(403, *BODY, 404, 422, 503),
        },
        parameters=[parameter("path", "service", service, "Whose requests.")],
        body=body({JSON: wanted}),
    )


def _reports() -> Json:
    failure = taken(
        reason=optional(one_of(*sorted(REASONS))),
        detail=optional(TEXT),
        again=optional({**FLAG, "description": "Whether there is a use in trying again."}),
        delay=optional(number(0, MAX_DELAY, "Seconds before the next try.")),
    )
    held = _ok("The lease holds for so long from now.", shape("seconds", seconds={"type": "number"}))
    done = answer("It is noted.")
    reports: dict[str, tuple[str, Json | None, tuple[str, Json]]] = {
        "progress": ("Say how far it is, and keep the lease", taken(progress=ANYTHING), ("200", held)),
        "complete": ("Hand in the result", taken(result=ANYTHING), ("204", done)),
        "fail": ("Say that it could not be done", failure, ("204", done)),
        "release": ("Give it back unworked", None, ("204", done)),
    }
    lease = parameter("path", "lease", text(1, 64), "The lease.")
    return {
        f"{LEASES}/{{lease}}:{verb}": {
            "post": operation(
                f"{verb}Lease",
                summary,
                {status: answered, **refused(403, *BODY, 404, 422, 503)},
                parameters=[lease],
                body=None if taking is None else body({JSON: taking}),
            )
        }
        for verb, (summary, taking, (status, answered)) in reports.items()
    }


def _token(schema: Json) -> Json:
    return parameter("path", "name", schema, "The token of the request.")


def _ok(description: str, schema: Json) -> Json:
    return answer(description, {JSON: schema}, _CACHED)
