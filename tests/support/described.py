"""
A gateway with something of everything in it, so that whoever asks it at random finds something.

    with World() as world:
        world.webhook()      # the id of a webhook, with deliveries and a job
        world.request()      # the token of a request
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Final, Self

import requests

from tests.support.server import GatewayProcess

DEADLINE: Final = 20.0
SERVICE: Final = "reports"


class World:
    """
    A gateway in memory, with webhooks and a service.

    Attributes:
        gateway: the child.
        session: the connection to it, kept from one request to the next.
    """

    def __init__(self) -> None:
        # Receivers are this very gateway: it answers them at once, by 404.
        self.gateway = GatewayProcess(
            data="memory:",
            services=SERVICE,
            webhooks_allow="127.0.0.0/8",
            webhooks_timeout=1,
            request_queue=100_000,
            log_level="warning",
        )
        self.session = requests.Session()
        self.session.trust_env = False  # never through a proxy that the environment names
        self._webhook = self._delivery = self._job = self._token = self._lease = ""

    def __enter__(self) -> Self:
        self.gateway.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.session.close()
        self.gateway.__exit__(kind, error, where)

    @property
    def receiver(self) -> str:
        """The URL of a receiver."""
        return f"{self.gateway.url}/demo/receiver/nobody-is-here"

    def webhook(self, *, fresh: bool = False) -> str:
        """Return the id of a webhook; with `fresh` of a new one."""
        if fresh or not self._webhook:
            self._webhook = self.post("/v1/webhooks", url=self.receiver, topics=["seed.#"])["id"]
        return self._webhook

    def delivery(self) -> str:
        """Return the id of a delivery that was attempted."""
        if not self._delivery:
            webhook = self.webhook(fresh=True)
            self._delivery = self.post(f"/v1/webhooks/{webhook}/test")["id"]
            self.until(f"/v1/deliveries/{self._delivery}", lambda shown: shown["attempts"] > 0)
        return self._delivery

    def job(self) -> str:
        """Return the id of a job of `webhook()`."""
        self._job = self.post(f"/v1/webhooks/{self.webhook()}/recover", since="earliest")["id"]
        self.until(
            f"/v1/webhooks/{self.webhook()}/jobs/{self._job}", lambda shown: shown["state"] == "done"
        )
        return self._job

    def token(self, *, fresh: bool = False) -> str:
        """Return the token of a request; with `fresh` of a new one."""
        if fresh or not self._token:
            self._token = self.post(f"/v1/requests/{SERVICE}", month=11)["token"]
        return self._token

    def lease(self, *, fresh: bool = False) -> str:
        """Return a lease; with `fresh` a new one."""
        if fresh or not self._lease:
            self.token(fresh=True)
            (lease,) = self.post(f"/v1/services/{SERVICE}:lease", wait=5)["leases"]
            self._lease = lease["lease"]
        return self._lease

    def post(self, path: str, **members: Any) -> dict[str, Any]:
        """Return the answer to a `POST`, which is expected to succeed."""
        answer = self.session.post(self.gateway.url + path, json=members, timeout=DEADLINE)
        assert answer.ok, answer.text
        answered: dict[str, Any] = answer.json()
        return answered

    def until(self, path: str, condition: Any) -> None:
        """Wait until what a path answers fulfils a condition."""
        deadline = time.monotonic() + DEADLINE
        while not condition(self.session.get(self.gateway.url + path, timeout=DEADLINE).json()):
            assert time.monotonic() < deadline, path
            time.sleep(0.05)
