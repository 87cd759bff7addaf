"""The receiver of webhooks that the demo page brings along: as strict as any other, and bounded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest

from gateway.demo import MAX_KEPT_BYTES, MAX_RECEIVED, MAX_RECEIVERS
from tests.support.server import GatewayProcess
from webhooks.signature import Scheme, Secret, new_secret, signature

pytestmark = pytest.mark.integration

DEADLINE: Final = 30.0


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with GatewayProcess("memory:") as running:
        yield running


@pytest.fixture
def http(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=DEADLINE, trust_env=False) as client:
        yield client


def sent(secret: Secret, body: bytes = b'{"a":1}', off: int = 0, id: str = "msg_1") -> dict[str, str]:
    """Return the headers of a webhook, signed now."""
    timestamp = int(time.time()) + off
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature([secret], id, timestamp, body).decode(),
    }


def test_the_receiver_takes_what_is_genuine(http: httpx.Client) -> None:
    """It answers as it was told to, and 400 to whatever is not signed by its secret, or not now."""
    path, secret = "/demo/receiver/genuine-1", new_secret(Scheme.V1)
    assert http.post(path, content=b"{}").status_code == 404
    assert http.put(path, json={"secret": secret.text}).json() == {"answer": 204, "received": []}
    body = b'{"a":1}'
    good = sent(secret)
    assert http.post(path, content=body, headers=good).status_code == 204
    both = {**good, "webhook-signature": f"v1a,x v1,y {good['webhook-signature']}"}
    assert http.post(path, content=body, headers=both).status_code == 204
    refused = [
        (sent(new_secret(Scheme.V1)), body, "no signature matches"),
        (good, body + b" ", "no signature matches"),
        ({**good, "webhook-id": "msg_2"}, body, "no signature matches"),
        ({**good, "webhook-signature": ""}, body, "no signature matches"),
        (sent(secret, off=-301), body, "the timestamp is too far off"),
        (sent(secret, off=302), body, "the timestamp is too far off"),
        ({**good, "webhook-timestamp": "1e9"}, body, "there is no timestamp"),
        ({}, body, "there is no timestamp"),
    ]
    for headers, content, why in refused:
        answer = http.post(path, content=content, headers=headers)
        assert (answer.status_code, answer.text) == (400, f"{why}\n")
    assert http.put(path, json={"secret": secret.text, "answer": 500}).status_code == 200
    assert http.post(path, content=body, headers=good).status_code == 500
    shown = http.get(path).json()
    assert shown["answer"] == 500
    assert [each["answered"] for each in shown["received"]] == [500, *[400] * len(refused), 204, 204]
    assert shown["received"][1]["why"] == "there is no timestamp"
    first = shown["received"][-1]
    assert (first["id"], first["signature"], first["body"]) == (
        "msg_1",
        good["webhook-signature"],
        body.decode(),
    )
    assert http.delete(path).status_code == 204
    assert http.get(path).status_code == 404


@pytest.mark.parametrize(
    ("name", "members", "status"),
    [
        ("short", {"secret": new_secret(Scheme.V1).text}, 422),
        ("x" * 65, {"secret": new_secret(Scheme.V1).text}, 422),
        ("has%20space", {"secret": new_secret(Scheme.V1).text}, 422),
        ("good-name", {"secret": "whsec_MTIz"}, 422),
        ("good-name", {}, 422),
        ("good-name", {"secret": new_secret(Scheme.V1).text, "answer": 100}, 422),
        ("good-name", {"secret": new_secret(Scheme.V1).text, "answer": 600}, 422),
        ("good-name", {"secret": new_secret(Scheme.V1).text, "more": 1}, 422),
    ],
)
def test_receivers_that_cannot_be(
    http: httpx.Client, name: str, members: dict[str, Any], status: int
) -> None:
    assert http.put(f"/demo/receiver/{name}", json=members).status_code == status
    assert http.get(f"/demo/receiver/{name}").status_code == 404


def test_the_receiver_remembers_so_much(http: httpx.Client) -> None:
    """Of requests, of each body, and of receivers."""
    secret = new_secret(Scheme.V1)
    body = b"x" * (MAX_KEPT_BYTES + 1)
    path = "/demo/receiver/memory-1"
    http.put(path, json={"secret": secret.text})
    for number in range(MAX_RECEIVED + 5):
        id = f"msg_{number}"
        assert http.post(path, content=body, headers=sent(secret, body, id=id)).status_code == 204
    received = http.get(path).json()["received"]
    assert (len(received), received[0]["id"]) == (MAX_RECEIVED, f"msg_{MAX_RECEIVED + 4}")
    assert (len(received[0]["body"]), received[0]["whole"]) == (MAX_KEPT_BYTES, False)
    for number in range(MAX_RECEIVERS):
        http.put(f"/demo/receiver/another-{number}", json={"secret": secret.text})
    assert http.get(path).status_code == 404
