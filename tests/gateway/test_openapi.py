"""The documents describe what is there: each route and method, and what the code's own checks take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.routing import Route

from fanout.errors import TopicError
from fanout.topics import check_pattern, check_topic
from gateway.app import Gateway
from gateway.openapi import asyncapi
from gateway.openapi.document import describe
from gateway.openapi.schemas import PATTERN, TOPIC
from gateway.problems import EXCEPTION_HANDLERS
from gateway.settings import Settings

ALL: Final = Settings(data="memory:", services="reports,mail")
BROKER: Final = Settings(
    backbone="amqp://hidden:hidden@hidden:5672/", exchanges="events:#,orders:order.*,orders:refund.#"
)
OPEN: Final = {
    ("/healthz", "get"),
    ("/readyz", "get"),
    ("/openapi.json", "get"),
    ("/asyncapi.json", "get"),
    ("/.well-known/jwks.json", "get"),
    ("/v1/session", "delete"),
}
"""What is answered to everybody."""
LEAST: Final = Settings(data="memory:", webhooks=False)
ASKING: Final = Settings(data="memory:", services="reports", jwt_key="a secret of 32 bytes, or more of them")
SETTINGS: Final = pytest.mark.parametrize("settings", [ALL, LEAST, ASKING], ids=["all", "least", "asking"])


@SETTINGS
async def test_what_is_described_is_what_is_served(settings: Settings) -> None:
    """Each route is described with its methods, and nothing else is; the demo page is none of the API."""
    application = Gateway(settings).application()
    # Its routes without what starts it: no method is asked for that does anything.
    bare = Starlette(routes=application.routes, exception_handlers=EXCEPTION_HANDLERS)
    served: dict[str, set[str]] = {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(bare), base_url="http://test") as client:
        for route in application.routes:
            if isinstance(route, Route) and not re.match("/$|/demo/", route.path):
                path = re.sub(r":\w+}", "}", route.path)
                served[path] = await allowed(client, path)
    described = {
        path: {method.upper() for method in methods}
        for path, methods in describe(settings, auth=settings.asks)["paths"].items()
    }
    for path, methods in described.items():
        described[path] = methods | ({"HEAD"} if "GET" in methods else set())
    assert described == served


async def allowed(client: httpx.AsyncClient, path: str) -> set[str]:
    """Return the methods that a path has, as it says itself."""
    answer = await client.request("PROPFIND", re.sub(r"{\w+}", "x", path))
    assert answer.status_code == 405, path
    return set(answer.headers["allow"].split(", "))


@SETTINGS
@pytest.mark.parametrize("auth", [False, True], ids=["open", "auth"])
def test_the_document_is_openapi(settings: Settings, *, auth: bool) -> None:
    """The document is valid, and its operations have names that are unique and fit for code."""
    document = describe(settings, auth=auth)
    OpenAPIV31SpecValidator(document).validate()
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch("[a-z][A-Za-z]+", each) for each in ids)


def test_with_auth_all_but_two_want_a_token() -> None:
    """Where tokens are wanted each operation says so, and that it may be refused; health stays open."""
    document = describe(ALL, auth=True)
    assert document["components"]["securitySchemes"].keys() == {"bearer", "cookie"}
    for path, method, operation in operations(document):
        is_open = (path, method) in OPEN
        assert ("security" in operation) != is_open, path
        assert ("401" in operation["responses"]) != is_open or path.endswith("/token"), path
        assert "403" in operation["responses"], path
    assert "securitySchemes" not in describe(ALL, auth=False)["components"]


@SETTINGS
def test_each_component_is_used(settings: Settings) -> None:
    """Every reference leads somewhere, and every schema is referred to."""
    for document in (describe(settings, auth=True), asyncapi.describe(settings)):
        used = set(references(document))
        for each in used:
            assert found(document, each), each
        for name in document["components"]["schemas"]:
            assert f"#/components/schemas/{name}" in used, name


@pytest.mark.parametrize("settings", [ALL, BROKER], ids=["embedded", "broker"])
def test_asyncapi_hangs_together(settings: Settings) -> None:
    """The messages of each operation, and of its reply, are among those of its channel."""
    document = asyncapi.describe(settings)
    assert document["asyncapi"] == "3.0.0"
    for name, operation in document["operations"].items():
        assert operation["action"] in ("send", "receive")
        for part in (operation, *([operation["reply"]] if "reply" in operation else [])):
            channel = part["channel"]["$ref"]
            assert part["messages"]
            for message in part["messages"]:
                assert message["$ref"].startswith(f"{channel}/messages/"), name
    for name, message in document["components"]["messages"].items():
        Draft202012Validator.check_schema(message["payload"])
        assert message["summary"], name


def test_exchanges_are_described_without_the_broker() -> None:
    """Each exchange is a channel, events go to the first, and nobody learns where the broker is."""
    document = asyncapi.describe(BROKER)
    found = [
        each["bindings"]["amqp"]["exchange"]
        for each in document["channels"].values()
        if each["address"] == "{topic}"
    ]
    assert found == [{"name": "events", "type": "topic", "durable": True}, {"name": "orders"}]
    assert {"receive-exchange1", "receive-exchange2", "send-exchange1"} <= document["operations"].keys()
    assert "send-exchange2" not in document["operations"]
    assert "hidden" not in str(document)
    assert "exchange1" not in asyncapi.describe(ALL)["channels"]


words = st.text(st.sampled_from("ab.*#\x00\x9f\u2028é "), max_size=8)


@given(words)
def test_topics_are_described_as_they_are_checked(text: str) -> None:
    """The schemas of topic and pattern take what the code takes."""
    assert Draft202012Validator(TOPIC).is_valid(text) == passes(check_topic, text)
    assert Draft202012Validator(PATTERN).is_valid(text) == passes(check_pattern, text)


def passes(check: Any, text: str) -> bool:
    """Return whether a check of the code passes."""
    try:
        check(text)
    except TopicError:
        return False
    return True


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Return path, method and description of each operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(part: Any) -> Iterator[str]:
    """Return all references in a part of a document."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for each in part.values():
            yield from references(each)
    elif isinstance(part, list):
        for each in part:
            yield from references(each)


def found(document: Any, reference: str) -> bool:
    """Return whether a reference leads somewhere."""
    for step in reference.removeprefix("#/").split("/"):
        if step not in document:
            return False
        document = document[step]
    return True
