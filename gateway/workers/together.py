"""
What operators look at, of all workers: whichever of them the kernel gave the question to asks the others.

Health and readiness stay those of the one that is asked: they are for whoever wants to know whether this port
serves, and all workers depend on the same broker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from prometheus_client.core import Metric
from starlette.requests import Request
from starlette.responses import Response

from gateway import metrics
from gateway.operate import NO_STORE, Operate, json_response, read_limit
from gateway.pages import MAX_LISTED
from gateway.problems import Problem
from gateway.workers.merging import merge_connections, merge_metrics, merge_topics
from gateway.workers.siblings import Answer, Siblings

if TYPE_CHECKING:
    from gateway.app import Gateway
    from gateway.workers.worker import Worker


class Together(Operate):
    """
    The endpoints for operators, of all workers.

    Args:
        gateway: that of this worker.
        worker: which this one is.
    """

    def __init__(self, gateway: Gateway, worker: Worker) -> None:
        super().__init__(gateway)
        self._siblings = Siblings(worker.folder, worker.workers)

    async def metrics(self, _request: Request) -> Response:
        """Return the metrics of all workers, each with its number as a label."""
        answers = await self._siblings.ask("/metrics")
        texts = {answer.worker: answer.body.decode() for answer in answers}
        merged = CollectorRegistry(auto_describe=False)
        merged.register(_Collected(merge_metrics(texts, self._siblings.missing(answers))))
        return Response(metrics.text(merged), media_type=CONTENT_TYPE_LATEST, headers=NO_STORE)

    async def connections(self, request: Request) -> Response:
        """Return how many connections there are, and those furthest behind first: at most `limit` (100)."""
        limit = read_limit(request)
        target = f"/v1/connections?limit={limit}"
        answers = await self._siblings.ask(target)
        everyone = [*answers, *await self._siblings.ask_leaving(target)]
        merged = merge_connections(((each.worker, _decoded(each)) for each in everyone), limit)
        return json_response({**merged, "missing": self._siblings.missing(answers)})

    async def connection(self, request: Request) -> Response:
        """Return one connection, wherever it is."""
        name = request.path_params["name"]
        target = f"/v1/connections/{quote(name, safe='')}"
        answers = await self._siblings.ask(target)
        for answer in [*answers, *await self._siblings.ask_leaving(target)]:
            if answer.status == 200:
                return json_response({**_decoded(answer), "worker": answer.worker})
        if missing := self._siblings.missing(answers):
            which = ", ".join(map(str, missing))
            raise Problem(
                503, f"{name[:60]!a} may be at a worker that does not answer: {which}", retry_after=1
            )
        raise Problem(404, f"there is no connection {name[:60]!a}")

    async def topics(self, request: Request) -> Response:
        """Return the topics in the window, and the patterns in use; at most `limit` (100) each."""
        limit = read_limit(request)
        answers = await self._siblings.ask(f"/v1/topics?limit={MAX_LISTED}")
        merged = merge_topics(map(_decoded, answers), limit)
        return json_response({**merged, "missing": self._siblings.missing(answers)})


class _Collected:
    """Metrics in the form that a registry takes."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._families


def _decoded(answer: Answer) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(answer.body)
    return decoded
