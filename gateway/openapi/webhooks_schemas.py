"""The schemas of webhooks: what their owners say of them, and what they are shown. Pure."""

from __future__ import annotations

from typing import Final

from gateway.openapi.parts import (
    COUNT,
    TEXT,
    TIME,
    Json,
    listed,
    number,
    one_of,
    optional,
    ref,
    shape,
    taken,
    text,
)
from gateway.webhooks_deliveries import MAX_ATTEMPT, MAX_JOBS_SHOWN
from webhooks.delivery import State as DeliveryState
from webhooks.description import IN_FLIGHT, MAX_IN_FLIGHT, MAX_TEXT, MAX_TOPICS, MAX_TYPES, Order
from webhooks.endpoint import State
from webhooks.envelope import Form
from webhooks.headers import MAX_HEADERS
from webhooks.keys import MAX_LIVE
from webhooks.rate import MAX_RATE, MIN_RATE
from webhooks.records import Task
from webhooks.schedule import MAX_WAIT, MAX_WAITS, MIN_WAIT
from webhooks.signature import HMAC_PREFIX, PRIVATE_PREFIX, PUBLIC_PREFIX, Scheme
from webhooks.target import MAX_URL

SCHEME: Final = one_of(*(each.value for each in Scheme))
STATE: Final = one_of(*(each.value for each in DeliveryState))

_URL: Final[Json] = {**text(1, MAX_URL), "format": "uri", "examples": ["https://example.com/hook"]}
_TOPICS: Final = listed(ref("Pattern"), 1, MAX_TOPICS)
_SCHEMES: Final[Json] = {**listed(SCHEME, 1, len(Scheme)), "uniqueItems": True}
_MEMBERS: Final[dict[str, Json]] = {
    "url": _URL,
    "topics": _TOPICS,
    "types": {**listed(text(1, 255), most=MAX_TYPES), "description": "All types if there are none."},
    "filter": {"type": ["object", "null"], "description": "A condition on the data.", "default": None},
    "signatures": _SCHEMES,
    "body": one_of(*(each.value for each in Form)),
    "order": one_of(*(each.value for each in Order)),
    "in_flight": {"type": "integer", "minimum": 1, "maximum": MAX_IN_FLIGHT, "default": IN_FLIGHT},
    "rate": {
        "type": ["number", "null"],
        "minimum": MIN_RATE,
        "maximum": MAX_RATE,
        "description": "Attempts a second; any number if it is `null`.",
    },
    "schedule": {
        **listed(number(MIN_WAIT, MAX_WAIT), most=MAX_WAITS),
        "description": "Seconds between the attempts of a delivery.",
    },
    "headers": {
        "type": "object",
        "maxProperties": MAX_HEADERS,
        "additionalProperties": TEXT,
        "description": "Sent along with every attempt.",
    },
    "origin": {**optional(text(1, 253)), "description": "The name by which the receiver is asked first."},
    "description": text(0, MAX_TEXT, "Whatever its owner wants to remember."),
}
_ASKED: Final = {
    name: schema if name in ("url", "topics") else optional(schema)
    for name, schema in _MEMBERS.items()
    if name not in ("filter", "rate", "origin")
} | {name: _MEMBERS[name] for name in ("filter", "rate", "origin")}

_KEY: Final = shape(
    "scheme created",
    scheme=SCHEME,
    created=TIME,
    expires=TIME,
    public_key={**TEXT, "pattern": f"^{PUBLIC_PREFIX}"},
)
_SECRET: Final[Json] = {**TEXT, "pattern": f"^{HMAC_PREFIX}"}
_JWK: Final = shape(
    "kty crv x kid use alg",
    kty={"const": "OKP"},
    crv={"const": "Ed25519"},
    x=TEXT,
    kid=TEXT,
    use={"const": "sig"},
    alg={"const": "EdDSA"},
)
_HEALTH: Final = shape(
    "failures",
    failures=COUNT,
    first_failure=TIME,
    last_failure=TIME,
    waits_until={**TIME, "description": "It is left alone until then."},
)

RECEIVED: Final[dict[str, Json]] = {
    "NewWebhook": taken(
        "url topics",
        **_ASKED,
        secret={
            **optional(text(1, 200)),
            "description": f"One that its owner brings along, `{HMAC_PREFIX}…` or `{PRIVATE_PREFIX}…`.",
        },
    ),
    "ChangedWebhook": taken("", **_ASKED),
    "Webhook": shape(
        " ".join(["id", *_MEMBERS, "state created changed keys health"]),
        **_MEMBERS,
        id=TEXT,
        state=one_of(*(each.value for each in State)),
        created=TIME,
        changed=TIME,
        keys=listed(_KEY, 1, MAX_LIVE * len(Scheme)),
        health=_HEALTH,
        pending={**COUNT, "description": "How many deliveries wait; only where one is asked for."},
        secret={**_SECRET, "description": "Only where it is new."},
    ),
    "WebhookList": shape("webhooks", webhooks=listed(ref("Webhook")), next=TEXT),
    "Rotated": shape(
        "id scheme keys", id=TEXT, scheme=SCHEME, public_key=TEXT, secret=_SECRET, keys=listed(_KEY, 1)
    ),
    "Delivery": shape(
        "id webhook webhook_id event topic time state attempts",
        id=TEXT,
        webhook=TEXT,
        webhook_id={**TEXT, "description": "The header of that name, on every attempt."},
        event={**TEXT, "description": "The `id` of the event."},
        topic=ref("Topic"),
        time=TIME,
        state=STATE,
        attempts=COUNT,
        next_attempt=TIME,
        ended=TIME,
    ),
    "DeliveryList": shape("deliveries", deliveries=listed(ref("Delivery")), next=TEXT),
    "Attempt": shape(
        "number time duration_ms",
        number={"type": "integer", "minimum": 1, "maximum": MAX_ATTEMPT},
        time=TIME,
        status={"type": "integer", "minimum": 100, "maximum": 999},
        error={**TEXT, "description": "A word, and a sentence behind it."},
        duration_ms=COUNT,
        response={**TEXT, "description": "The beginning of what the receiver said."},
    ),
    "AttemptList": shape("attempts", attempts=listed(ref("Attempt")), next=TEXT),
    "Job": shape(
        "id webhook task state deliveries",
        id=TEXT,
        webhook=TEXT,
        task=one_of(*(each.value for each in Task)),
        state=one_of("running", "done"),
        deliveries={**COUNT, "description": "How many it has dealt with."},
    ),
    "JobList": shape("jobs", jobs=listed(ref("Job"), most=MAX_JOBS_SHOWN)),
    "KeySet": shape("keys", keys=listed(_JWK)),
}
