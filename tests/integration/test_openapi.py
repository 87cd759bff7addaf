"""
The gateway answers as `/openapi.json` says: schemathesis asks whatever the document allows, and what it does not
allow, and every answer has to be one that is described.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CheckContext
from schemathesis.config import GenerationConfig, SchemathesisConfig
from schemathesis.core.transport import Response
from schemathesis.specs.openapi import checks
from schemathesis.transport import SerializationContext

from gateway.openapi import asyncapi
from gateway.openapi.document import describe
from gateway.settings import Settings
from tests.support.described import SERVICE, World

pytestmark = pytest.mark.integration

LEAST_CASES: Final = 10_000
EXAMPLES: Final = 160
"""Cases that are drawn for an operation, of what is allowed and as many of what is not."""
COVERED: Final = 120
"""Cases at the borders of the schemas, for an operation."""
TIMEOUT: Final = 20.0
SHORT: Final = 0.01
"""Seconds of any `wait`: what is asked here comes to nothing by waiting."""

DOCUMENT: Final = describe(Settings(data="memory:", services=SERVICE), auth=False)
LINES: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")

sent: Counter[str] = Counter()
"""How many cases were sent to each operation."""


@schemathesis.serializer(*LINES)
def lines(_context: SerializationContext, value: Any) -> bytes:
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


CONFIG: Final = SchemathesisConfig.from_dict({"generation": {"deterministic": True, "database": "none"}})
SCHEMA: Final = schemathesis.openapi.from_dict(closed(copy.deepcopy(DOCUMENT)), config=CONFIG)
OPERATIONS: Final = {each.ok().label: each.ok() for each in SCHEMA.get_all_operations()}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as found:
        yield found


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
]


def test_the_documents_are_served(world: World) -> None:
    """What is described is served as it is."""
    for path, expected in {
        "/openapi.json": DOCUMENT,
        "/asyncapi.json": asyncapi.describe(Settings(port=world.gateway.port)),
    }.items():
        answer = requests.get(world.gateway.url + path, timeout=TIMEOUT)
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == expected


@pytest.mark.parametrize("label", OPERATIONS)
def test_answers_are_as_described(world: World, label: str) -> None:
    """Every answer has a status that is described for the operation, and is of the form described for it."""
    operation = OPERATIONS[label]
    modes = list(GenerationMode)
    covering = SCHEMA.iter_coverage_cases(
        operation, generation_modes=modes, generation_config=GenerationConfig(deterministic=True)
    )
    for number, case in enumerate(covering):
        if number == COVERED:
            break
        ask(world, case, real=number % 2 == 0)

    @settings(
        max_examples=2 * EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(*map(operation.as_strategy, modes)), real=st.booleans())
    def drawn(case: Case, real: bool) -> None:
        ask(world, case, real=real)

    drawn()


def test_so_many_cases_were_sent() -> None:
    """All operations were asked, and all together often enough."""
    if sent.keys() != OPERATIONS.keys():
        pytest.skip("not all operations were asked in this run")
    assert sent.total() >= LEAST_CASES, sent


def ask(world: World, case: Case, *, real: bool) -> None:
    """Send a case and check its answer; with `real` it names what there is."""
    sent[case.operation.label] += 1
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


def shorten(case: Case) -> None:
    """Have a case wait for no time worth mentioning."""
    for part in (case.query, case.body):
        if isinstance(part, dict) and isinstance(part.get("wait"), (int, float)) and 0 < part["wait"] <= 60:
            part["wait"] = SHORT


def steer(world: World, case: Case) -> None:
    """Have a case name what there is, so that it comes further than to a 404."""
    name = case.operation.definition.raw["operationId"]
    given = case.path_parameters
    once = name in ("removeWebhook", "cancelRequest", "completeLease", "failLease", "releaseLease")
    if "webhook" in given:
        given["webhook"] = world.webhook(fresh=once)
    if "delivery" in given:
        given["delivery"] = world.delivery()
    if "job" in given:
        given["job"] = world.job()
    if "lease" in given:
        given["lease"] = world.lease(fresh=once)
    if name in ("getRequest", "cancelRequest", "retryRequest"):
        given["name"] = world.token(fresh=once)
    if name in ("createWebhook", "changeWebhook") and isinstance(case.body, dict) and "url" in case.body:
        case.body["url"] = world.receiver
