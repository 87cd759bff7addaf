"""Describes webhooks: endpoints, deliveries, jobs, and the public keys. Pure."""

from __future__ import annotations

from typing import Final

from gateway.openapi.operate import LIMIT, PAGE
from gateway.openapi.parts import (
    ANYTHING,
    BODY,
    JSON,
    TEXT,
    Json,
    answer,
    body,
    number,
    one_of,
    operation,
    optional,
    parameter,
    ref,
    refused,
    taken,
    text,
)
from gateway.openapi.schemas import TOPIC, TYPE
from gateway.openapi.webhooks_schemas import RECEIVED, SCHEME, STATE
from gateway.resources import MERGE_PATCH
from gateway.settings import Settings
from gateway.webhooks_api import PATH
from webhooks.keys import MAX_OVERLAP

_CACHED: Final = ["Cache-Control"]
_CHANGING: Final = refused(403, *BODY, 404, 409, 412, 422, 503)

_WEBHOOK: Final = parameter("path", "webhook", text(1, 64), "The `id` of the webhook.")
_DELIVERY: Final = parameter("path", "delivery", text(1, 64), "The `id` of the delivery.")
_JOB: Final = parameter("path", "job", text(1, 64), "The `id` of the job.")
_IF_MATCH: Final = parameter("header", "If-Match", TEXT, "Only if its `ETag` is still this.")

_ONE: Final = PATH + "/{webhook}"
_DELIVERIES: Final = "/v1/deliveries/{delivery}"


def paths(settings: Settings) -> Json:
    """Return the paths; none if there are no webhooks."""
    if not settings.webhooks:
        return {}
    return {**_endpoints(), **_verbs(), **_deliveries(), **_keys()}


def schemas(settings: Settings) -> dict[str, Json]:
    """Return the schemas of what the paths name."""
    return RECEIVED if settings.webhooks else {}


def _endpoints() -> Json:
    made = answer(
        "It is made; its secret is shown only now.",
        {JSON: ref("Webhook")},
        ["ETag", "Location", *_CACHED],
    )
    return {
        PATH: {
            "get": operation(
                "listWebhooks",
                "All webhooks",
                {"200": _ok("They are these, the eldest first.", ref("WebhookList")), **refused(422, 503)},
                parameters=[LIMIT, PAGE],
            ),
            "post": operation(
                "createWebhook",
                "Have events sent to a URL",
                {"201": made, **refused(403, *BODY, 409, 422, 503)},
                body=body({JSON: ref("NewWebhook")}, required=True),
            ),
        },
        _ONE: {
            "get": operation(
                "getWebhook",
                "One webhook, and how much is pending for it",
                {"200": _tagged("It is this."), **refused(404, 422, 503)},
                parameters=[_WEBHOOK],
            ),
            "patch": operation(
                "changeWebhook",
                "Change the members that are given",
                {"200": _tagged("It is changed."), **_CHANGING},
                parameters=[_WEBHOOK, _IF_MATCH],
                body=body(
                    {MERGE_PATCH: ref("ChangedWebhook"), JSON: ref("ChangedWebhook")},
                    "What is not given stays; `null` is the default.",
                    required=True,
                ),
            ),
            "delete": operation(
                "removeWebhook",
                "Remove a webhook with all its deliveries",
                {"204": answer("It is gone."), **_CHANGING},
                parameters=[_WEBHOOK, _IF_MATCH],
            ),
        },
    }


def _verbs() -> Json:
    held = taken(held=optional(one_of("replay", "skip")))
    rotation = taken(
        scheme=optional(SCHEME),
        secret=optional(text(1, 200)),
        overlap=optional(number(0, MAX_OVERLAP, "Seconds for which the old one goes on signing.")),
    )
    event = taken(topic=optional(TOPIC), type=optional(TYPE), data=ANYTHING)
    job = answer("A job gives up what is held, and opens the webhook then.", {JSON: ref("Job")}, ["Location"])
    return {
        f"{_ONE}:pause": {"post": _verb("pauseWebhook", "Send nothing for now")},
        f"{_ONE}:resume": {"post": _verb("resumeWebhook", "Go on with what was paused")},
        f"{_ONE}:enable": {
            "post": _verb("enableWebhook", "Open a webhook that was closed", {"202": job}, body({JSON: held}))
        },
        f"{_ONE}/secret:rotate": {
            "post": operation(
                "rotateSecret",
                "Replace a secret by a new one",
                {
                    "200": answer("The new one.", {JSON: ref("Rotated")}, ["ETag", *_CACHED]),
                    **_CHANGING,
                },
                parameters=[_WEBHOOK, _IF_MATCH],
                body=body({JSON: rotation}),
            )
        },
        f"{_ONE}/test": {
            "post": operation(
                "testWebhook",
                "Send an event that is in no log",
                {"202": _located("It will be delivered.", ref("Delivery")), **_CHANGING},
                parameters=[_WEBHOOK],
                body=body({JSON: event}),
            )
        },
    }


def _deliveries() -> Json:
    since = {**TEXT, "description": "A time, the cursor of an event, or `earliest`."}
    recovery = taken("since", since=since, until=optional(since))
    listed = {"200": _ok("They are these.", ref("DeliveryList")), **refused(404, 422, 503)}
    return {
        f"{_ONE}/deliveries": {
            "get": operation(
                "listDeliveries",
                "Deliveries of a webhook, the newest events first",
                listed,
                parameters=[
                    _WEBHOOK,
                    parameter("query", "state", STATE, "Only those in this state."),
                    LIMIT,
                    PAGE,
                ],
            )
        },
        f"{_ONE}/recover": {
            "post": operation(
                "recoverDeliveries",
                "Have all deliveries tried again that failed since",
                {"202": _located("A job does it.", ref("Job")), **_CHANGING},
                parameters=[_WEBHOOK],
                body=body({JSON: recovery}, required=True),
            )
        },
        f"{_ONE}/jobs": {
            "get": _read("listJobs", "Jobs of a webhook, the newest first", "JobList", _WEBHOOK)
        },
        f"{_ONE}/jobs/{{job}}": {"get": _read("getJob", "How far a job is", "Job", _WEBHOOK, _JOB)},
        _DELIVERIES: {"get": _read("getDelivery", "One delivery", "Delivery", _DELIVERY)},
        f"{_DELIVERIES}/attempts": {
            "get": _read(
                "listAttempts", "Its attempts, the last one first", "AttemptList", _DELIVERY, LIMIT, PAGE
            )
        },
        f"{_DELIVERIES}:retry": {
            "post": operation(
                "retryDelivery",
                "Try a delivery again, also one that arrived",
                {"202": _located("It will be tried.", ref("Delivery")), **_CHANGING},
                parameters=[_DELIVERY],
            )
        },
    }


def _keys() -> Json:
    keys = answer("They are these.", {"application/jwk-set+json": ref("KeySet")}, _CACHED)
    return {
        "/.well-known/jwks.json": {
            "get": operation(
                "getKeys",
                "The public keys of all webhooks that sign by `v1a`",
                {"200": keys, **refused(422, 503)},
            )
        }
    }


def _verb(id: str, summary: str, more: Json | None = None, taking: Json | None = None) -> Json:
    return operation(
        id,
        summary,
        {"200": _tagged("The webhook as it is now."), **(more or {}), **_CHANGING},
        parameters=[_WEBHOOK, _IF_MATCH],
        body=taking,
    )


def _read(id: str, summary: str, schema: str, *parameters: Json) -> Json:
    answers = {"200": _ok("It is this.", ref(schema)), **refused(404, 422, 503)}
    return operation(id, summary, answers, parameters=parameters)


def _ok(description: str, schema: Json) -> Json:
    return answer(description, {JSON: schema}, _CACHED)


def _tagged(description: str) -> Json:
    return answer(description, {JSON: ref("Webhook")}, ["ETag", *_CACHED])


def _located(description: str, schema: Json) -> Json:
    return answer(description, {JSON: schema}, ["Location", *_CACHED])
