"""TLS at the gateway's own port: who is served, who is not, and certificates that change meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.certificates import Certificates
from tests.support.clients import (
    STREAMS,
    Address,
    Frame,
    Tcp,
    Topics,
    exchange,
    fetch,
    metric,
    open_subscriber,
    publish,
    request_bytes,
    until,
)
from tests.support.command import run_sluice
from tests.support.host import address_of
from tests.support.rabbitmq import Broker
from tests.support.requests import Api
from tests.support.server import GatewayProcess
from tests.support.worker import WorkerProcess
from tests.support.workers import WorkersProcess

pytestmark = pytest.mark.integration

HEADER_TIMEOUT = 1.0
STALL = 2.0

on_every_stream = pytest.mark.parametrize("transport", STREAMS)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Files that tests leave as they are."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def process(certificates: Certificates) -> Iterator[GatewayProcess]:
    """A gateway that tests leave as it was, impatient with those who do not read."""
    with encrypted(certificates, stall_timeout=STALL) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def hasty(certificates: Certificates) -> Iterator[Address]:
    """The address of a gateway that is impatient with those who say nothing."""
    with encrypted(certificates, header_timeout=HEADER_TIMEOUT) as gateway:
        yield address_of(gateway)


@pytest.fixture
def address(process: GatewayProcess) -> Address:
    return address_of(process)


def encrypted(certificates: Certificates, **settings: Any) -> GatewayProcess:
    """Return a gateway that serves TLS."""
    return GatewayProcess(
        tls=certificates.trusting(), tls_cert=certificates.chain, tls_key=certificates.key, **settings
    )


def changed(certificates: Certificates, **members: Any) -> bytes:
    """Have the files changed to another certificate; return it as it is on the wire."""
    made: trustme.LeafCert = certificates.issue(**members)
    pem = made.cert_chain_pems[0].bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


@asynccontextmanager
async def plain(address: Address) -> AsyncIterator[Tcp]:
    """Connect to a port that expects TLS, without TLS."""
    async with Tcp.open(Address(address.host, address.port)) as tcp:
        yield tcp


async def shown(address: Address) -> bytes:
    """Return the certificate that a new connection is shown."""
    assert address.tls is not None
    _, writer = await asyncio.open_connection(address.host, address.port, ssl=address.tls)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    assert isinstance(found, bytes)
    return found


# --- who is served -----------------------------------------------------------------------------------------


async def test_the_port_is_encrypted(process: GatewayProcess, address: Address) -> None:
    """The first line says `https://`, and a client that trusts the authority is answered by TLS 1.3."""
    assert f"sluice: serving on https://127.0.0.1:{process.port}, data in " in process.log_text()
    _, writer = await asyncio.open_connection(address.host, address.port, ssl=address.tls)
    assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    writer.transport.abort()
    assert (await fetch(address, "/healthz")).status == 200


@pytest.mark.parametrize(
    ("version", "ciphers", "served"),
    [
        (ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+CHACHA20", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+AES:!AESGCM:!AESCCM", False),
        (ssl.TLSVersion.TLSv1_2, "RSA+AESGCM", False),
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0", False),
    ],
    ids=["1.2 AES-GCM", "1.2 ChaCha20", "1.2 CBC", "1.2 RSA", "1.1", "1.0"],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_old_versions_and_ciphers_are_refused(
    address: Address, certificates: Certificates, version: ssl.TLSVersion, ciphers: str, served: bool
) -> None:
    """TLS 1.2 with ciphers of today is the least that is spoken."""
    client = certificates.trusting()
    client.set_ciphers(ciphers)
    client.minimum_version = client.maximum_version = version
    asking = fetch(Address(address.host, address.port, tls=client), "/healthz")
    if served:
        assert (await asking).status == 200
    else:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asking


def test_commands_work_over_https(certificates: Certificates, process: GatewayProcess) -> None:
    """`sluice publish` and `sluice tail` trust what SSL_CERT_FILE names, and nobody else."""
    trusting = {"SSL_CERT_FILE": str(certificates.ca)}
    done = run_sluice("publish", "--url", process.url, "commands", '"hello"', environ=trusting)
    assert done.returncode == 0, done.stderr
    tail = ("tail", "--url", process.url, "commands", "--cursor=earliest", "--count=1")
    done = run_sluice(*tail, environ=trusting)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"] == "hello"
    for command in (("publish", "--url", process.url, "commands", '"hello"'), tail):
        done = run_sluice(*command)
        assert done.returncode == 1
        assert f"{process.url} is not trusted: " in done.stderr


async def test_a_worker_works_over_https(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sluice worker` trusts what SSL_CERT_FILE names, as the other commands do."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    with encrypted(certificates, services="reports") as process:
        api = Api(address_of(process))
        with WorkerProcess(process.url, "reports", "def handle(request): return request.data"):
            shown = await api.show(await api.submit("reports", "done"), wait=30)
    assert shown["result"] == "done"


async def test_redirects_lead_to_where_the_client_came_from(
    address: Address, certificates: Certificates
) -> None:
    """The scheme is that of the port, or what a proxy of ours says; nobody else is believed."""
    forwarded = [("X-Forwarded-Proto", "http")]
    assert (await fetch(address, "/healthz/")).head["location"].startswith("https://")
    assert (await fetch(address, "/healthz/", (), forwarded)).head["location"].startswith("https://")
    with encrypted(certificates, trusted_proxies="127.0.0.1") as process:
        address = address_of(process)
        assert (await fetch(address, "/healthz/")).head["location"].startswith("https://")
        assert (await fetch(address, "/healthz/", (), forwarded)).head["location"].startswith("http://")


# --- who is not ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ["nothing", "half a ClientHello"])
async def test_who_does_not_shake_hands_is_dropped(hasty: Address, sent: str) -> None:
    """A client that sends nothing, or half of its first message, is dropped by `header_timeout`."""
    async with plain(hasty) as tcp:
        begun = time.monotonic()
        if sent != "nothing":
            await tcp.send(client_hello()[:100])
        assert await tcp.rest() == b""
        assert HEADER_TIMEOUT * 0.9 < time.monotonic() - begun < HEADER_TIMEOUT + 5


async def test_who_asks_nothing_after_the_handshake_is_dropped(hasty: Address) -> None:
    """The head of a request has its own deadline, as without TLS."""
    async with Tcp.open(hasty) as tcp:
        assert await tcp.rest() == b""


@pytest.mark.parametrize(
    "sent",
    [request_bytes("GET", "/healthz"), b"\x00" * 1000, b"\x16\x03\x01\xff\xff" + b"x" * 1000],
    ids=["HTTP", "zeros", "a broken record"],
)
async def test_what_is_no_tls_does_no_harm(process: GatewayProcess, address: Address, sent: bytes) -> None:
    """Whoever speaks something else is turned away without an answer in HTTP, and the log stays quiet."""
    before = process.log_text()
    for _ in range(10):
        async with plain(address) as tcp:
            await tcp.send(sent)
            assert b"HTTP/" not in await tcp.rest()
    assert (await fetch(address, "/healthz")).status == 200
    assert process.log_text() == before


def client_hello() -> bytes:
    """Return the first message of a client."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


# --- certificates that change -------------------------------------------------------------------------------


async def test_a_new_certificate_is_for_new_connections(tmp_path: Path) -> None:
    """Connections that come after a change are shown the new certificate; an older stream goes on."""
    certificates = Certificates(tmp_path)
    with encrypted(certificates) as process:
        address = address_of(process)
        before = await shown(address)
        async with open_subscriber(address, "sse", "t") as subscriber:
            await publish(address, {"topic": "t", "data": 1})
            new = changed(certificates, key_type=trustme.KeyType.RSA)

            async def is_new() -> bool:
                return await shown(address) == new

            await until(is_new, "the new certificate is shown")
            await publish(address, {"topic": "t", "data": 2})
            assert await subscriber.data(2) == [1, 2]
        assert before != new
        assert await metric(address, "sluice_tls_reload_failures_total") == 0
        [certificate] = x509.load_pem_x509_certificates(certificates.chain.read_bytes())
        expires = certificate.not_valid_after_utc.timestamp()
        assert await metric(address, "sluice_tls_certificate_expires_seconds") == pytest.approx(expires)


async def test_a_broken_certificate_is_not_used(tmp_path: Path) -> None:
    """Files that cannot be used are told once, counted, and change nothing; good ones then are used."""
    certificates = Certificates(tmp_path)
    with encrypted(certificates) as process:
        address = address_of(process)
        before = await shown(address)
        certificates.chain.write_text("my diary")

        async def is_counted() -> bool:
            return await metric(address, "sluice_tls_reload_failures_total") == 1

        await until(is_counted, "the failure is counted")
        assert await shown(address) == before
        new = changed(certificates)

        async def is_new() -> bool:
            return await shown(address) == new

        await until(is_new, "the new certificate is shown")
        said = f"tls.not_reloaded: tls_cert: {certificates.chain}: no certificate in PEM form"
        assert process.log_text().count(said) == 1


async def test_every_worker_uses_a_new_certificate(tmp_path: Path) -> None:
    """Workers share the port, and each sees by itself that the files changed."""
    certificates = Certificates(tmp_path)
    settings: dict[str, Any] = {"tls_cert": certificates.both, "workers": 2}
    with (
        Broker() as broker,
        WorkersProcess(backbone=broker.url, tls=certificates.trusting(), **settings) as process,
    ):
        assert f"sluice: serving on https://127.0.0.1:{process.port}, " in process.log_text()
        address = address_of(process)
        assert len({await shown(address) for _ in range(10)}) == 1
        new = changed(certificates)

        async def all_new() -> bool:
            return {await shown(address) for _ in range(20)} == {new}

        await until(all_new, "every worker shows the new certificate")
        failures = [
            line
            for line in (await fetch(address, "/metrics")).body.decode().splitlines()
            if line.startswith("sluice_tls_reload_failures_total{")
        ]
        assert [line.rpartition(" ")[2] for line in failures] == ["0.0", "0.0"]


def test_workers_refuse_a_certificate_with_one_sentence(tmp_path: Path) -> None:
    """What one worker cannot use, none can: the start ends as with a single process."""
    missing = tmp_path / "missing.pem"
    done = run_sluice(
        "serve",
        "--backbone=amqp://localhost:1",
        "--workers=2",
        "--data=memory:",
        "--port=0",
        f"--tls-cert={missing}",
    )
    assert done.returncode == 1
    assert done.stderr == f"sluice: tls_cert: {missing}: No such file or directory\n"


# --- streams, from their middle to their end ----------------------------------------------------------------


async def subscribed(address: Address, topic: str) -> list[dict[str, Any]]:
    """Return the connections that want a topic, as operators see them."""
    listed = (await fetch(address, "/v1/connections")).json["connections"]
    return [each for each in listed if each["topics"] == [topic]]


@on_every_stream
async def test_who_does_not_read_costs_little_and_is_cut_off(
    address: Address, topics: Topics, transport: str
) -> None:
    """A client that stalls is held back after what its buffers take, then aborted; others get everything."""
    async with (
        open_subscriber(address, transport, topics()) as healthy,
        open_subscriber(address, transport, topics(), receive_buffer=4096) as stalled,
    ):
        reading = asyncio.ensure_future(healthy.data(100))
        stalled.tcp.stall()
        for start in range(0, 100, 10):
            events = [{"topic": topics(), "data": [n, "x" * 100_000]} for n in range(start, start + 10)]
            await publish(address, *events)
        assert min(each["delivered"] for each in await subscribed(address, topics())) < 20

        async def is_gone() -> bool:  # by our clock, or the kernel's (TCP_USER_TIMEOUT), which has the same
            return len(await subscribed(address, topics())) == 1

        await until(is_gone, "the stalled connection is aborted")
        assert [number for number, _ in await reading] == list(range(100))


@on_every_stream
async def test_who_reads_slowly_is_kept(address: Address, topics: Topics, transport: str) -> None:
    """A client that takes a little now and then, for longer than `stall_timeout`, misses nothing."""
    # With a window below what the kernel sends at a time, its own clock would take the pauses for a death.
    async with open_subscriber(address, transport, topics(), receive_buffer=1 << 17) as slow:
        slow.tcp.stall()
        for start in range(0, 80, 10):
            events = [{"topic": topics(), "data": [n, "x" * 100_000]} for n in range(start, start + 10)]
            await publish(address, *events)
        assert [each["state"] for each in await subscribed(address, topics())] == ["paused"]
        received = []
        for _ in range(6):
            await asyncio.sleep(STALL / 4)  # what makes it slow
            slow.tcp.go_on()
            received += await slow.data(5)
            slow.tcp.stall()
        slow.tcp.go_on()
        received += await slow.data(50)
        assert [number for number, _ in received] == list(range(80))


async def test_who_reads_is_not_paused(address: Address, topics: Topics) -> None:
    """Every event goes straight to a client that reads: encryption alone is no reason to hold it back."""
    async with open_subscriber(address, "websocket", topics(), welcomed=False) as subscriber:
        name = (await subscriber.control("welcome"))["connection"]
        for number in range(50):
            await publish(address, {"topic": topics(), "data": number})
            assert await subscriber.data(1) == [number]
        seen = (await fetch(address, f"/v1/connections/{name}")).json
        assert (seen["delivered"], seen["pauses"], seen["state"]) == (50, 0, "live")


@on_every_stream
async def test_a_drain_tells_everybody(certificates: Certificates, transport: str) -> None:
    """On SIGTERM a stream is told to reconnect, ends in its transport's own way, and the gateway ends."""
    with encrypted(certificates) as process:
        address = address_of(process)
        async with open_subscriber(address, transport, "t") as subscriber:
            os.kill(process.pid, signal.SIGTERM)
            assert (await subscriber.control("reconnect"))["reason"] == "draining"
            if transport == "websocket":
                assert (await subscriber.closed()).code == 1012
            else:
                await subscriber.end()
        assert await asyncio.to_thread(process.wait) == 0
        assert "Traceback" not in process.log_text()


async def test_the_end_does_not_wait_for_who_keeps_a_connection(certificates: Certificates) -> None:
    """A client that keeps its connection for later does not read our goodbye; that holds nobody up."""
    with encrypted(certificates) as process:
        address = address_of(process)
        async with Tcp.open(address) as kept, plain(address):
            await exchange(kept, request_bytes("GET", "/healthz"))
            kept.stall()
            assert await process.astop() == 0
        assert process.log_text().count("\n") == 1, process.log_text()


async def test_a_close_frame_is_not_lost_behind_unread_bytes(address: Address, topics: Topics) -> None:
    """A client that is still sending megabytes when it is closed reads the close frame, not a reset."""
    for _ in range(5):
        async with open_subscriber(address, "websocket", topics()) as subscriber:
            sending = asyncio.ensure_future(subscriber.tcp.send(Frame(3, b"").encode() + bytes(2_000_000)))
            assert (await subscriber.closed()).code == 1002
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
