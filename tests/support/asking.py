"""
Asks a gateway whatever `/openapi.json` allows, and whatever it does not, and holds each answer against it:

    PYTHONHASHSEED=0 python -m tests.support.asking [--without-keys] [LABEL...]

The gateway asks who its callers are, or, on request, does not: then less is drawn, because most is the same.
It prints an account of each operation, as JSON. It is a process of its own because the cases that are drawn
depend on the order of sets, and because schemathesis changes Hypothesis for all that is in its process. Most
cases are the same each time; a few values of schemathesis' own choice still differ.
"""

from __future__ import annotations

import copy
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

import msgspec
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CheckContext
from schemathesis.config import GenerationConfig, SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks
from schemathesis.transport import SerializationContext

from gateway.auth.tokens import MAX_TOKEN_BYTES
from gateway.subscription import MAX_WAIT
from tests.support.described import TOKEN, Account, World, document

Case = schemathesis.Case[Any]
Operation = APIOperation[Any, Any, Any, Any]

WITHOUT_KEYS: Final = "--without-keys" in sys.argv
DRAWN: Final = 20 if WITHOUT_KEYS else 200
"""Cases that are drawn for an operation, beside those at the borders of its schemas."""
DRAWN_OF_LARGE: Final = 10 if WITHOUT_KEYS else 90
LARGE: Final = {"subscribe", "publishEvents", "publishToTopic", "createWebhook", "changeWebhook"}
"""Operations with many borders, of which a case takes long to draw."""
TIMEOUT: Final = 20.0
SHORT: Final = 0.01
"""Seconds of any `wait`: what is asked here comes to nothing by waiting."""

DOCUMENT: Final = document(keys=not WITHOUT_KEYS)
LINES: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")


@schemathesis.serializer(*LINES)
def as_lines(_context: SerializationContext, value: Any) -> bytes:
    """Lines are text, whatever is drawn for them."""
    return value.encode() if isinstance(value, str) else repr(value).encode()


def closed(part: Any, name: str = "") -> Any:
    """Return a part of a document in which objects have no members but those described."""
    if isinstance(part, list):
        return [closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    inner = {key: closed(each, key) for key, each in part.items()}
    if inner.get("type") == "object" and "properties" in inner and name != "CloudEvent":
        inner.setdefault("additionalProperties", False)
    return inner


REFUSED: Final = [400, 403, 404, 405, 409, 412, 413, 415, 422]
"""By what is refused what the document does not allow."""
CONFIG: Final = SchemathesisConfig.from_dict(
    {
        "generation": {"deterministic": True, "database": "none", "with-security-parameters": False},
        "checks": {"negative_data_rejection": {"expected-statuses": REFUSED}},
    }
)
SCHEMA: Final = schemathesis.openapi.from_dict(closed(copy.deepcopy(DOCUMENT)), config=CONFIG)
OPERATIONS: Final[dict[str, Operation]] = {
    each.ok().label: each.ok() for each in SCHEMA.get_all_operations() if isinstance(each, Ok)
}


def no_mistake_of_ours(_context: CheckContext, response: Response, case: Case) -> None:
    """Whatever is asked, it is no mistake of the gateway's."""
    assert response.status_code != 500, case


CHECKS: Final = [
    no_mistake_of_ours,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
    checks.negative_data_rejection,
]


def account(world: World, operation: Operation) -> Account:
    """Ask for an operation until an answer is not as described, or often enough."""
    modes = list(GenerationMode)
    found = Account()

    @settings(
        max_examples=DRAWN_OF_LARGE if operation_id(operation) in LARGE else DRAWN,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(*map(operation.as_strategy, modes)), real=st.booleans())
    def drawn(case: Case, real: bool) -> None:
        ask(world, case, found, real=real)

    covering = SCHEMA.iter_coverage_cases(
        operation, generation_modes=modes, generation_config=GenerationConfig(deterministic=True)
    )
    try:
        for number, case in enumerate(covering):
            ask(world, case, found, real=number % 2 == 0)
        drawn()
    except (Exception, FailureGroup):  # noqa: BLE001  (whatever it is, it is told)
        found.failure = traceback.format_exc()[-5000:]
    return found


def ask(world: World, case: Case, found: Account, *, real: bool) -> None:
    """Send a case and check its answer; with `real` it names what there is."""
    found.sent += 1
    shorten(case)
    if real:
        steer(world, case)
    response = case.call(
        base_url=world.gateway.url,
        session=world.session,
        headers={"Accept": "application/json"},  # a stream would not end
        timeout=TIMEOUT,
        allow_redirects=False,
    )
    case.validate_response(response, checks=CHECKS)
    found.succeeded |= response.status_code < 300


def shorten(case: Case) -> None:
    """Have a case wait for no time worth mentioning."""
    for part in (case.query, case.body):
        if isinstance(part, dict) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", str(part.get("wait"))):
            wait = float(str(part["wait"]))
            part["wait"] = min(wait, SHORT) if wait <= MAX_WAIT else wait


def operation_id(operation: Operation) -> str:
    """Return the name of an operation."""
    name: str = operation.definition.raw["operationId"]
    return name


def _text(value: Any) -> bool:
    """Tell whether a value is a text, and not one that is too short for anything."""
    return isinstance(value, str) and value != ""


def _fits(token: Any) -> bool:
    """Tell whether a token in a body is as long as one may be; what is not is to be refused."""
    return isinstance(token, str) and 1 <= len(token) <= MAX_TOKEN_BYTES


ONCE: Final = {
    "removeWebhook",
    "cancelRequest",
    "completeLease",
    "failLease",
    "releaseLease",
    "deleteKey",
    "deleteRevocation",
}
"""Operations after which what they name is gone."""


def steer(world: World, case: Case) -> None:
    """Have a case name what there is, so that it comes further than to a 404."""
    name = operation_id(case.operation)
    once = name in ONCE
    there: dict[str, Callable[[], str]] = {
        "webhook": lambda: world.webhook(fresh=once),
        "delivery": world.delivery,
        "job": world.job,
        "lease": lambda: world.lease(fresh=once),
        "key": lambda: world.key(fresh=once),
        "revocation": lambda: world.revocation(fresh=once),
    }
    named: dict[str, Callable[[], str]] = {
        "getRequest": world.token,
        "cancelRequest": lambda: world.token(fresh=True),
        "retryRequest": world.failed,
        "getConnection": world.connection,
        "renewConnection": world.connection,
    }
    if name in named:
        there["name"] = named[name]
    case.path_parameters.update({part: there[part]() for part in case.path_parameters if part in there})
    if isinstance(case.body, dict):
        # What is of another type stays so: it is to be refused.
        good = {"url": world.receiver} if "Webhook" in name else {"since": "earliest"}
        good = {"token": TOKEN} if name == "renewConnection" else good
        found = {part: each for part, each in good.items() if _text(case.body.get(part))}
        case.body.update(found if _fits(case.body.get("token", "x")) else {})


def main() -> None:
    """Ask for all operations, or those that are named."""
    labels = [each for each in sys.argv[1:] if each != "--without-keys"] or OPERATIONS
    with World(keys=not WITHOUT_KEYS) as world:
        accounts = {label: account(world, OPERATIONS[label]) for label in labels}
    sys.stdout.buffer.write(msgspec.json.encode(accounts))


if __name__ == "__main__":
    main()
