"""Problems: the form in which every endpoint says no."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from gateway.problems import EXCEPTION_HANDLERS, Problem, method_not_allowed


async def _answer(app: Any, method: str = "GET", path: str = "/") -> tuple[int, dict[str, str], Any]:
    """Call an ASGI application and return status, headers and parsed body of its response."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [],
    }
    await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, json.loads(sent[1]["body"])


async def test_is_sent_as_problem_json() -> None:
    """A problem is answered with its status, as application/problem+json that nobody may cache."""
    status, headers, body = await _answer(Problem(400, "no JSON", members={"index": 3}))
    assert status == body["status"] == 400
    assert body["type"] == "about:blank"
    assert (body["title"], body["detail"], body["index"]) == ("Bad Request", "no JSON", 3)
    assert headers["content-type"] == "application/problem+json"
    assert headers["cache-control"] == "no-store"
    assert int(headers["content-length"]) == len(Problem(400, "no JSON", members={"index": 3}).body())


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.1, "2"), (30, "30")])
async def test_rounds_retry_after_up(seconds: float, header: str) -> None:
    """Retry-After is whole seconds, never less than asked for and never 0."""
    _, headers, _ = await _answer(Problem(503, "busy", retry_after=seconds))
    assert headers["retry-after"] == header


@pytest.mark.parametrize(
    ("status", "title"),
    [(413, "Content Too Large"), (422, "Unprocessable Content"), (404, "Not Found"), (599, "599")],
)
def test_titles_are_those_of_rfc_9110(status: int, title: str) -> None:
    """The title is the status's phrase whatever the Python version, and the number for an unknown status."""
    assert Problem(status, "why").title == title


def test_a_problem_of_one_event_names_its_index() -> None:
    """`at` adds the index to the members, the pointer and the sentence."""
    problem = Problem(422, "the ttl is negative", members={"pointer": "/ttl"}).at(3)
    assert problem.members == {"index": 3, "pointer": "/3/ttl"}
    assert problem.detail == "event 3: the ttl is negative"


def test_a_lone_surrogate_in_the_detail_does_not_break_the_answer() -> None:
    """What UTF-8 cannot carry is replaced, for a problem must always be sendable."""
    assert json.loads(Problem(422, "bad \ud800 topic é").body())["detail"] == "bad ? topic é"


async def test_a_wrong_method_is_told_the_right_ones() -> None:
    """A 405 names the allowed methods in its Allow header."""
    status, headers, _ = await _answer(method_not_allowed("POST", "GET"))
    assert (status, headers["allow"]) == (405, "GET, POST")


async def test_starlette_sends_problems_and_its_own_refusals_alike() -> None:
    """With the handlers installed, a raised problem, an unknown path and a wrong method have one form."""

    class Busy:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            raise Problem(503, "the log is full", retry_after=0.2)

    routes = [Route("/here", Busy(), methods=["POST"])]
    app = Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS)
    raised = await _answer(app, "POST", "/here")
    missing = await _answer(app, "GET", "/else\nwhere")
    wrong = await _answer(app, "DELETE", "/here")
    assert [answer[0] for answer in (raised, missing, wrong)] == [503, 404, 405]
    assert all(answer[1]["content-type"] == "application/problem+json" for answer in (raised, missing, wrong))
    assert raised[1]["retry-after"] == "1"
    assert wrong[1]["allow"] == "POST"
    assert "\n" not in missing[2]["detail"]
