"""
A gateway with something of everything in it, so that whoever asks it at random finds something.

    with World() as world:
        world.webhook()    # the id of a webhook
        world.token()      # the token of a request
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import requests

from gateway.openapi.document import describe
from gateway.settings import Settings
from tests.support.bearer import ENVIRON
from tests.support.bearer import fresh as fresh_token
from tests.support.server import GatewayProcess
from tests.support.tokens import SECRET

DEADLINE: Final = 20.0
SERVICE: Final = "reports"
TOKEN: Final = fresh_token(
    7200,
    sub="operator",
    iat=time.time() + 7200,  # so that nothing that is revoked at random means this one
    admin=True,
    publish=["#"],
    subscribe=["#"],
    requests=["*"],
    work=["*"],
    webhooks=True,
)
"""Who asks: somebody who may do anything."""
BATCH: Final = 10
"""Requests that are leased together."""


def document(*, keys: bool) -> dict[str, Any]:
    """Return what describes such a gateway, with keys or without."""
    return describe(Settings(data="memory:", services=SERVICE, jwt_key=SECRET if keys else ""), auth=keys)


class Account(msgspec.Struct):
    """
    What came of asking for one operation.

    Attributes:
        sent: how many cases were sent.
        succeeded: whether it did at least once what it was asked for.
        failure: what an answer broke; empty if none did.
    """

    sent: int = 0
    succeeded: bool = False
    failure: str = ""


class World:
    """
    A gateway in memory, with webhooks and a service.

    Args:
        keys: whether it asks who its callers are.

    Attributes:
        gateway: the child.
        session: the connection to it, kept from one request to the next.
    """

    def __init__(self, *, keys: bool = True) -> None:
        # Receivers are this very gateway: it answers them at once, by 404.
        self.gateway = GatewayProcess(
            data="memory:",
            services=SERVICE,
            webhooks_allow="127.0.0.0/8",
            webhooks_timeout=1,
            request_queue=100_000,
            request_lease=3600,
            log_level="warning",
            environ=ENVIRON if keys else {},
        )
        self.session = requests.Session()
        self.session.trust_env = False  # never through a proxy that the environment names
        if keys:
            self.session.headers["Authorization"] = f"Bearer {TOKEN}"
        self._webhook = self._delivery = self._job = self._token = self._lease = self._connection = ""
        self._key = self._revocation = ""
        self._leases: list[dict[str, Any]] = []
        self._stream: requests.Response | None = None
        self._lines: Iterator[bytes] = iter(())

    def __enter__(self) -> Self:
        self.gateway.__enter__()
        self.post(f"/v1/webhooks/{self.webhook()}/test")
        self.delivery()  # it ends while nothing else is under way
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        self.session.close()
        self.gateway.__exit__(kind, error, where)

    @property
    def receiver(self) -> str:
        """The URL of a receiver."""
        return f"{self.gateway.url}/demo/receiver/nobody-is-here"

    def webhook(self, *, fresh: bool = False) -> str:
        """Return the id of a webhook; with `fresh` of a new one."""
        if not fresh and self._webhook:
            return self._webhook
        made: str = self.post("/v1/webhooks", url=self.receiver, topics=["seed.#"], schedule=[])["id"]
        self._webhook = self._webhook or made
        return made

    def delivery(self) -> str:
        """Return the id of a delivery that was attempted."""
        if not self._delivery:
            webhook = self.webhook(fresh=True)  # nobody has paused or changed it
            self._delivery = self.post(f"/v1/webhooks/{webhook}/test")["id"]
            self.until(f"/v1/deliveries/{self._delivery}", lambda shown: "ended" in shown)
        return self._delivery

    def job(self) -> str:
        """Return the id of a job of `webhook()`."""
        if not self._job:
            path = f"/v1/webhooks/{self.webhook()}"
            self._job = self.post(f"{path}/recover", since="earliest")["id"]
            self.until(f"{path}/jobs/{self._job}", lambda shown: shown["state"] == "done")
        return self._job

    def token(self, *, fresh: bool = False) -> str:
        """Return the token of a request; with `fresh` of a new one."""
        if not fresh and self._token:
            return self._token
        made: str = self.post(f"/v1/requests/{SERVICE}", month=11)["token"]
        self._token = self._token or made
        return made

    def failed(self) -> str:
        """Return the token of a request that failed just now."""
        lease = self._leased()
        self.post(f"/v1/leases/{lease['lease']}:fail", again=False)
        token: str = lease["token"]
        return token

    def connection(self) -> str:
        """Return the name of a connection, which stays open."""
        if not self._connection:
            url = f"{self.gateway.url}/v1/events?topic=seed.%23"
            headers = {"Accept": "application/x-ndjson"}
            self._stream = self.session.get(url, headers=headers, stream=True, timeout=DEADLINE)
            self._lines = self._stream.iter_lines()  # kept: without it the stream is closed
            self._connection = json.loads(next(self._lines))["connection"]
        return self._connection

    def key(self, *, fresh: bool = False) -> str:
        """Return the id of an API key; with `fresh` of a new one."""
        if not fresh and self._key:
            return self._key
        made: str = self.post("/v1/keys", subject="somebody")["id"]
        if not fresh:
            self._key = made
        return made

    def revocation(self, *, fresh: bool = False) -> str:
        """Return the id of a revocation; with `fresh` of another one."""
        if not fresh and self._revocation:
            return self._revocation
        made: str = self.post("/v1/revocations", token="other" if fresh else "lost")["id"]
        if not fresh:
            self._revocation = made
        return made

    def lease(self, *, fresh: bool = False) -> str:
        """Return a lease; with `fresh` a new one."""
        if not fresh and self._lease:
            return self._lease
        made: str = self._leased()["lease"]
        self._lease = self._lease or made
        return made

    def _leased(self) -> dict[str, Any]:
        """Return a new lease, with all that its worker is told."""
        if not self._leases:
            for _ in range(BATCH):
                self.token(fresh=True)
            self._leases = self.post(f"/v1/services/{SERVICE}:lease", wait=5, max=BATCH)["leases"]
        return self._leases.pop()

    def post(self, path: str, **members: Any) -> dict[str, Any]:
        """Return the answer to a `POST`, which is expected to succeed."""
        answer = self.session.post(self.gateway.url + path, json=members, timeout=DEADLINE)
        assert answer.ok, answer.text
        answered: dict[str, Any] = answer.json() if answer.content else {}
        return answered

    def until(self, path: str, condition: Any) -> None:
        """Wait until what a path answers fulfils a condition."""
        deadline = time.monotonic() + DEADLINE
        while not condition(self.session.get(self.gateway.url + path, timeout=DEADLINE).json()):
            assert time.monotonic() < deadline, path
            time.sleep(0.05)
