"""
Webhooks from end to end: made and watched through the API of a real gateway, which sends to real receivers.

What is signed is verified by what others wrote; what receivers do, and where they are, has the state and the
attempts that the API shows.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest
import standardwebhooks
import svix.webhooks
import trustme
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.support.node_receiver import LIBRARIES, NodeReceiver
from tests.support.postgres import Postgres
from tests.support.receiver import (
    HEAD,
    OK,
    Peer,
    Received,
    Script,
    always,
    answers,
    receiver,
    silent,
    with_status,
)
from tests.support.server import GatewayProcess, free_port
from tests.webhooks.test_guard import REFUSED
from webhooks.envelope import Form
from webhooks.keys import jwks
from webhooks.signature import Scheme, new_secret

pytestmark = pytest.mark.integration

DEADLINE: Final = 30.0
TIMEOUT: Final = 1.0
"""Seconds that the gateway gives an attempt."""
DATA: Final = {"total": 129.5, "für": "10 €"}


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    """A gateway that may send to loopback addresses."""
    with GatewayProcess(webhooks_allow="127.0.0.0/8", webhooks_timeout=TIMEOUT) as one:
        yield one


@pytest.fixture(scope="module")
def careful() -> Iterator[GatewayProcess]:
    """A gateway that may send to the internet only, as it is without any setting."""
    with GatewayProcess() as one:
        yield one


@pytest.fixture(scope="module")
def node() -> Iterator[NodeReceiver]:
    with NodeReceiver() as one:
        yield one


class User:
    """Makes webhooks and publishes to them, over HTTP."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self._topics = 0

    async def create(self, url: str, **members: Any) -> dict[str, Any]:
        """Make a webhook for a topic of its own."""
        self._topics += 1
        topic = f"live-{time.monotonic_ns()}.{self._topics}"
        answer = await self.http.post("/v1/webhooks", json={"url": url, "topics": [topic], **members})
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    async def publish(self, webhook: dict[str, Any], data: object = DATA) -> str:
        """Publish an event for a webhook, and return its cursor."""
        answer = await self.http.post("/v1/events", json={"topic": webhook["topics"][0], "data": data})
        cursor: str = answer.json()["cursor"]
        return cursor

    async def deliver(
        self, webhook: dict[str, Any], data: object = DATA, attempts: int = 1
    ) -> dict[str, Any]:
        """Publish an event, and return its delivery when so many attempts were made."""
        cursor = await self.publish(webhook, data)
        async with asyncio.timeout(DEADLINE):
            while True:
                listed = await self.http.get(f"/v1/webhooks/{webhook['id']}/deliveries")
                for each in listed.json()["deliveries"]:
                    if each["webhook_id"] == f"msg_{cursor}" and each["attempts"] >= attempts:
                        found: dict[str, Any] = each
                        return found
                await asyncio.sleep(0.02)

    async def attempts(self, delivery: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the attempts of a delivery, the last one first."""
        answer = await self.http.get(f"/v1/deliveries/{delivery['id']}/attempts")
        found: list[dict[str, Any]] = answer.json()["attempts"]
        return found

    async def until(self, webhook: dict[str, Any], **members: Any) -> None:
        """Wait until a webhook has these members."""
        async with asyncio.timeout(DEADLINE):
            while not (await self.show(webhook)).items() >= members.items():  # noqa: ASYNC110  (it is another process)
                await asyncio.sleep(0.02)

    async def show(self, webhook: dict[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = (await self.http.get(f"/v1/webhooks/{webhook['id']}")).json()
        return shown


@asynccontextmanager
async def user_of(gateway: GatewayProcess) -> AsyncIterator[User]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=DEADLINE, trust_env=False) as http:
        yield User(http)


@pytest.fixture
async def user(gateway: GatewayProcess) -> AsyncIterator[User]:
    async with user_of(gateway) as one:
        yield one


# --- signatures, verified by others

BOTH: Final = ["v1", "v1a"]


def v1_by_python(secret: str, received: Received) -> None:
    """Verify by both libraries of PyPI."""
    standardwebhooks.Webhook(secret).verify(received.body, received.headers)
    svix.webhooks.Webhook(secret).verify(received.body, received.headers)


def v1a(public: bytes, received: Received) -> bool:
    """Verify by the cryptography that everybody has."""
    headers = received.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + received.body
    key = Ed25519PublicKey.from_public_bytes(public)
    for token in headers["webhook-signature"].split():
        scheme, signature = token.split(",")
        if scheme == "v1a":
            with contextlib.suppress(InvalidSignature):
                key.verify(base64.b64decode(signature), signed)
                return True
    return False


async def published_keys(user: User) -> set[bytes]:
    """Return the public keys of the JSON Web Key Set."""
    found = (await user.http.get("/.well-known/jwks.json")).json()["keys"]
    return {base64.urlsafe_b64decode(each["x"] + "=") for each in found}


@pytest.mark.parametrize("form", [form.value for form in Form])
async def test_both_signatures_are_verified(user: User, form: str) -> None:
    """Of every form of body: v1 by two libraries of PyPI, v1a by a key of the set."""
    async with receiver(always) as target:
        webhook = await user.create(target.url, body=form, signatures=BOTH)
        delivery = await user.deliver(webhook)
        (received,) = target.requests
        assert received.line == "POST /hook HTTP/1.1"
        assert received.headers["webhook-id"] == delivery["webhook_id"]
        assert abs(int(received.headers["webhook-timestamp"]) - time.time()) < 60
        v1_by_python(webhook["secret"], received)
        assert [v1a(key, received) for key in await published_keys(user)].count(True) == 1
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            v1_by_python(webhook["secret"], Received(received.line, received.headers, received.body + b" "))


@pytest.mark.parametrize("form", [form.value for form in Form])
@pytest.mark.parametrize("library", LIBRARIES)
async def test_v1_is_verified_in_node(user: User, node: NodeReceiver, library: str, form: str) -> None:
    """A receiver with a library of npm takes what is signed by its secret, and nothing else."""
    secret, other = new_secret(Scheme.V1).text, new_secret(Scheme.V1).text
    url = f"http://127.0.0.1:{node.port}/{library}?secret={quote(secret, safe='')}"
    for signed_by, status in ((secret, 204), (other, 400)):
        webhook = await user.create(url, secret=signed_by, body=form, signatures=BOTH, schedule=[])
        (attempt,) = await user.attempts(await user.deliver(webhook))
        assert attempt["status"] == status
        assert ("No matching signature" in attempt.get("response", "")) is (status == 400)


@pytest.mark.parametrize("form", [form.value for form in Form])
async def test_v1a_is_verified_in_node(user: User, node: NodeReceiver, form: str) -> None:
    """A receiver with Node's own cryptography and a key as the set has it."""
    secret, other = new_secret(Scheme.V1A), new_secret(Scheme.V1A)
    (jwk,) = json.loads(jwks([secret]))["keys"]
    url = f"http://127.0.0.1:{node.port}/jwk?key={quote(json.dumps(jwk), safe='')}"
    for signed_by, status in ((secret, 204), (other, 400)):
        webhook = await user.create(url, secret=signed_by.text, body=form, signatures=["v1a"], schedule=[])
        (attempt,) = await user.attempts(await user.deliver(webhook))
        assert attempt["status"] == status


async def test_two_secrets_sign_until_the_old_one_ends(user: User) -> None:
    """During the overlap each verifies alone, behind it only the new one."""
    async with receiver(always) as target:
        webhook = await user.create(target.url, signatures=BOTH)
        path = f"/v1/webhooks/{webhook['id']}/secret:rotate"
        new = (await user.http.post(path)).json()["secret"]
        await user.deliver(webhook)
        for secret in (webhook["secret"], new):
            v1_by_python(secret, target.requests[-1])
        assert target.requests[-1].headers["webhook-signature"].count("v1,") == 2
        newest = (await user.http.post(path, json={"overlap": 0})).json()["secret"]
        await user.deliver(webhook)
        v1_by_python(newest, target.requests[-1])
        for secret in (webhook["secret"], new):
            with pytest.raises(standardwebhooks.WebhookVerificationError):
                v1_by_python(secret, target.requests[-1])


# --- what receivers do


@dataclass(frozen=True)
class Case:
    """
    What a receiver does, and what comes of it.

    Attributes:
        script: of the receiver.
        state: of the delivery after one attempt, of a schedule with one wait.
        status, error: of the attempt.
        endpoint: the state of the webhook.
        wait: seconds that it is left alone for, at least.
    """

    script: Script
    state: str = "pending"
    status: int | None = None
    error: str | None = None
    endpoint: str = "active"
    wait: float = 0.0


def status(status: int, *lines: str, state: str = "pending", wait: float = 0.0) -> Case:
    return Case(answers(with_status(status, *lines)), state, status, wait=wait)


def reset(peer: Peer) -> None:
    peer.reset()


def endlessly(start: bytes, piece: bytes) -> Script:
    """Return a script: answer with a start, then with pieces without end."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(start)
        while True:
            await peer.send(piece)

    return script


def dripping(data: bytes) -> Script:
    """Return a script: answer byte by byte, too slowly."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for byte in data:
            await peer.send(bytes([byte]))
            await asyncio.sleep(TIMEOUT / 4)

    return script


async def unfinished(peer: Peer) -> None:
    """A script: begin a body and leave it at that."""
    await peer.request()
    await peer.send(HEAD + b"Content-Length: 9\r\n\r\nhalf")
    await peer.gone()


async def at_a_date(peer: Peer) -> None:
    """A script: answer 429, to be asked again in an hour."""
    await peer.request()
    await peer.send(with_status(429, f"Retry-After: {formatdate(time.time() + 3600, usegmt=True)}"))


BARE: Final = b"HTTP/1.1 204 No Content\r\n\r\n"

RESPONSES: Final = {
    **{f"{code}": status(code, state="delivered") for code in (200, 201, 202, 206, 226, 299)},
    "204": Case(answers(BARE), "delivered", 204),
    **{
        f"{code}": status(code, "Location: http://127.0.0.1:1/")
        for code in (300, 301, 302, 303, 305, 307, 308)
    },
    "304": Case(answers(b"HTTP/1.1 304 Not Modified\r\n\r\n"), status=304),
    **{
        f"{code}": status(code)
        for code in (400, 401, 402, 403, 404, 405, 406, 408, 409, 413, 415, 422, 451, 499)
    },
    "410": Case(answers(with_status(410)), "held", 410, endpoint="gone"),
    "429": status(429),
    "429 in seconds": status(429, "Retry-After: 60", wait=60),
    "429 at a date": Case(at_a_date, status=429, wait=3590),
    "429 in ten years": status(429, f"Retry-After: {10 * 365 * 86400}", wait=86_000),
    "429 in the past": status(429, "Retry-After: Thu, 01 Jan 2026 00:00:00 GMT"),
    "429 nonsense": status(429, "Retry-After: soon"),
    "429 negative": status(429, "Retry-After: -5"),
    **{f"{code}": status(code) for code in (500, 501, 502, 503, 504, 511, 599, 999)},
    "503 in seconds": status(503, "Retry-After: 30", wait=30),
    "reset": Case(answers(b"", then=reset), error="reset"),
    "reset in the head": Case(answers(HEAD, then=reset), error="reset"),
    "closed without a word": Case(answers(b"", close=True), error="reset"),
    "no answer": Case(silent, error="timeout"),
    "slow head": Case(dripping(OK), error="timeout"),
    "slow body": Case(unfinished, "delivered", 200),
    "endless body": Case(endlessly(HEAD + b"\r\n", b"x" * 65536), "delivered", 200),
    "endless head": Case(endlessly(HEAD + b"X: ", b"x" * 65536), error="too_large"),
    "huge chunk": Case(
        endlessly(HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n", b"x" * 65536), "delivered", 200
    ),
    "no HTTP": Case(answers(b"SSH-2.0-OpenSSH_9.2\r\n"), error="protocol"),
    "HTTP/2 instead": Case(answers(b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80"), error="protocol"),
}


@pytest.mark.parametrize("name", RESPONSES)
async def test_what_receivers_answer(user: User, name: str) -> None:
    """Has the state, the attempt and the rest for the webhook that the rules say."""
    case = RESPONSES[name]
    async with receiver(case.script) as target:
        webhook = await user.create(target.url, schedule=[600])
        delivery = await user.deliver(webhook)
        (attempt,) = await user.attempts(delivery)
        shown = await user.show(webhook)
        await user.http.delete(f"/v1/webhooks/{webhook['id']}")
        assert target.connections == 1
    check(case, delivery, attempt, shown)


def check(case: Case, delivery: dict[str, Any], attempt: dict[str, Any], shown: dict[str, Any]) -> None:
    assert (delivery["state"], delivery["attempts"]) == (case.state, 1)
    assert attempt["number"] == 1
    assert attempt.get("status") == case.status
    assert (attempt.get("error") or "").partition(":")[0] == (case.error or "")
    assert attempt["duration_ms"] < (TIMEOUT + 5) * 1000
    assert len(attempt.get("response", "")) <= 1024
    assert shown["state"] == case.endpoint
    assert shown["health"]["failures"] == (case.state != "delivered")
    began = datetime.fromisoformat(attempt["time"])
    if case.wait:
        until = datetime.fromisoformat(shown["health"]["waits_until"])
        assert (until - began).total_seconds() >= case.wait - 2
        assert delivery["next_attempt"] >= shown["health"]["waits_until"]
    else:
        assert "waits_until" not in shown["health"]
    if case.state == "pending":
        again = datetime.fromisoformat(delivery["next_attempt"])
        assert (again - began).total_seconds() >= 600 * 0.8
    else:
        assert "next_attempt" not in delivery


async def test_certificates_that_nobody_trusts(user: User) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with receiver(always, tls=context) as target:
        webhook = await user.create(target.url, schedule=[])
        delivery = await user.deliver(webhook)
        (attempt,) = await user.attempts(delivery)
    assert delivery["state"] == "failed"
    assert attempt["error"].startswith("tls: ")


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://127.0.0.1:{port}/", "refused"),
        ("https://127.0.0.1:{open}/", "tls"),
        ("http://nowhere.invalid/", "dns"),
    ],
)
async def test_receivers_that_are_not_there(user: User, url: str, error: str) -> None:
    """Nobody listens, nobody speaks TLS, nobody has that name."""

    async def plain(peer: Peer) -> None:
        await peer.send(with_status(400))

    async with receiver(plain) as target:
        webhook = await user.create(url.format(port=free_port(), open=target.port), schedule=[])
        delivery = await user.deliver(webhook)
        (attempt,) = await user.attempts(delivery)
    assert delivery["state"] == "failed"
    assert attempt["error"].startswith(f"{error}: ")
    assert "status" not in attempt


async def test_a_delivery_is_tried_until_it_arrives(user: User) -> None:
    """Each attempt has the same id and another time, and its own signature."""
    async with receiver(answers(*(with_status(500) for _ in range(3)), OK)) as target:
        webhook = await user.create(target.url, schedule=[0.1, 0.1, 1.1, 0.1])
        delivery = await user.deliver(webhook, attempts=4)
        attempts = await user.attempts(delivery)
    assert delivery["state"] == "delivered"
    assert [each["status"] for each in attempts] == [200, 500, 500, 500]
    assert [each["number"] for each in attempts] == [4, 3, 2, 1]
    assert {each.headers["webhook-id"] for each in target.requests} == {delivery["webhook_id"]}
    assert len({each.headers["webhook-signature"] for each in target.requests}) > 1
    for each in target.requests:
        v1_by_python(webhook["secret"], each)


@pytest.mark.parametrize(("held", "sent"), [("replay", 53), ("skip", 2)])
async def test_what_was_held_is_sent_or_skipped(user: User, held: str, sent: int) -> None:
    """A webhook opens with all that came while it was closed, or without: then nothing of it goes out."""
    gone = [with_status(410)]

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(gone.pop() if gone else OK)

    async with receiver(script) as target:
        webhook = await user.create(target.url)
        path = f"/v1/webhooks/{webhook['id']}"
        assert (await user.deliver(webhook))["state"] == "held"
        for number in range(50):
            await user.publish(webhook, number)
        await user.until(webhook, pending=51)
        opened = await user.http.post(f"{path}:enable", json={"held": held})
        assert opened.status_code == (202 if held == "skip" else 200)
        await user.until(webhook, pending=0, state="active")
        assert (await user.deliver(webhook, "last"))["state"] == "delivered"
        assert len(target.requests) == sent


async def test_a_rate_that_the_receiver_allows_is_kept(user: User) -> None:
    """The handshake's consent is asked for by the gateway, and named with every attempt."""
    granted = with_status(200, "WebHook-Allowed-Origin: *", "WebHook-Allowed-Rate: 6000")
    async with receiver(answers(granted, OK)) as target:
        webhook = await user.create(target.url, origin="events.example.com", rate=1000)
        assert webhook["rate"] == 100
        await user.deliver(webhook)
    asked, sent = target.requests
    assert (asked.line, sent.line) == ("OPTIONS /hook HTTP/1.1", "POST /hook HTTP/1.1")
    for each in (asked, sent):
        assert each.headers["WebHook-Request-Origin"] == "events.example.com"


async def test_all_of_it_with_a_store_in_postgresql() -> None:
    """What failed is recovered; publishing goes on while the store is away, and all arrives afterwards."""
    failing = [True]

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(with_status(500) if failing[0] else OK)

    with Postgres() as server:
        process = GatewayProcess(store=server.make(), webhooks_allow="127.0.0.0/8")
        async with receiver(script) as target, process as gateway, user_of(gateway) as user:
            webhook = await user.create(target.url, schedule=[])
            path = f"/v1/webhooks/{webhook['id']}"
            assert (await user.deliver(webhook))["state"] == "failed"
            failing[0] = False
            job = await user.http.post(f"{path}/recover", json={"since": "earliest"})
            async with asyncio.timeout(DEADLINE):
                while (await user.http.get(job.headers["location"])).json()["state"] != "done":  # noqa: ASYNC110  (it is another process)
                    await asyncio.sleep(0.02)
            await user.until(webhook, pending=0)
            assert (await user.http.get(f"{path}/deliveries?state=delivered")).json()["deliveries"] != []
            server.kill()
            refused = await user.http.get(path)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            cursor = await user.publish(webhook, "while it was away")
            server.start()
            async with asyncio.timeout(DEADLINE):
                while target.requests[-1].headers["webhook-id"] != f"msg_{cursor}":  # noqa: ASYNC110  (it is another process)
                    await asyncio.sleep(0.02)


# --- where receivers are


def written(address: str) -> str:
    return f"[{address}]" if ":" in address else address


async def test_no_address_of_a_private_network_is_taken(careful: GatewayProcess) -> None:
    """Whatever form it is written in; the sentence says what kind it is. Nothing is made."""
    forms = {f"http://{written(address)}/": kind for address, kind in REFUSED.items() if kind != "no address"}
    assert len(forms) >= 60
    odd = [
        "0x7f000001",
        "127.1",
        "0177.0.0.1",
        "2130706433",
        "127.0.0.1.",
        "0",
        "[::1%25lo]",
        "\uff11\uff12\uff17.0.0.1",
    ]
    async with user_of(careful) as user:
        for url, kind in forms.items():
            answer = await user.http.post("/v1/webhooks", json={"url": url, "topics": ["a"]})
            assert answer.status_code == 422, url
            assert answer.json()["pointer"] == "/url"
            assert kind in answer.json()["detail"] or "is no IPv6 address" in answer.json()["detail"], url
        for host in odd:
            answer = await user.http.post("/v1/webhooks", json={"url": f"http://{host}/", "topics": ["a"]})
            assert answer.status_code == 422, host
        assert (await user.http.get("/v1/webhooks")).json() == {"webhooks": []}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST"])
async def test_a_name_that_leads_into_the_network_is_blocked(careful: GatewayProcess, host: str) -> None:
    """The name says nothing; the address that is connected to does. Nobody connects."""
    async with receiver(always) as target, user_of(careful) as user:
        webhook = await user.create(target.named(host), schedule=[])
        delivery = await user.deliver(webhook)
        (attempt,) = await user.attempts(delivery)
        assert delivery["state"] == "failed"
        assert attempt["error"].startswith("blocked: ")
        assert "127.0.0.1" not in attempt["error"]
        assert target.connections == 0


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(user: User, code: int) -> None:
    """Neither into the network nor anywhere else."""
    async with receiver(always) as inside:
        async with receiver(answers(with_status(code, f"Location: {inside.url}"))) as target:
            webhook = await user.create(target.url, schedule=[])
            delivery = await user.deliver(webhook)
            (attempt,) = await user.attempts(delivery)
        assert (delivery["state"], attempt["status"]) == ("failed", code)
        assert inside.connections == 0


async def test_the_handshake_is_guarded_as_well(careful: GatewayProcess) -> None:
    """It would be a way to look around in the network."""
    async with receiver(always) as target, user_of(careful) as user:
        body = {"url": target.named("localhost"), "topics": ["a"], "origin": "events.example.com"}
        answer = await user.http.post("/v1/webhooks", json=body)
        assert answer.status_code == 422
        assert "127.0.0.1" not in answer.json()["detail"]
        assert target.connections == 0
