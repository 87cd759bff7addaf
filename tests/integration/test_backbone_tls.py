"""TLS to a real broker: who is trusted, who is not, and the one sentence that ends a start then."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from tests.support.rabbitmq import Broker
from tests.support.server import GatewayProcess, free_port

pytestmark = pytest.mark.integration


class Certificates:
    """
    An authority and what it signed, as files.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.other_ca = folder / "other-ca.pem"
        trustme.CA().cert_pem.write_to_path(self.other_ca)
        self.broker = folder / "broker.pem"
        self.key = folder / "broker-key.pem"
        self.issue()
        self.client = folder / "client.pem"
        self.authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(self.client)

    def issue(self, **members: Any) -> None:
        """Write a certificate for the broker, of `localhost` unless said otherwise."""
        certificate = self.authority.issue_cert("localhost", **members)
        certificate.cert_chain_pems[0].write_to_path(self.broker)
        certificate.private_key_pem.write_to_path(self.key)


class TlsBroker(Broker):
    """
    A broker that speaks AMQP on one port and AMQP in TLS on another.

    Args:
        certificates: its own and those that it trusts.
        config: lines added to its `rabbitmq.conf`.
    """

    def __init__(self, certificates: Certificates, *config: str) -> None:
        self.tls_port = free_port()
        super().__init__(
            [
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
                f"ssl_options.cacertfile = {certificates.ca}",
                f"ssl_options.certfile = {certificates.broker}",
                f"ssl_options.keyfile = {certificates.key}",
                *config,
            ]
        )

    @property
    def tls_url(self) -> str:
        """Its address by the name that is in its certificate."""
        return f"amqps://guest:guest@localhost:{self.tls_port}/"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def broker(certificates: Certificates) -> Iterator[TlsBroker]:
    with TlsBroker(certificates) as node:
        yield node


def refusal(**settings: Any) -> str:
    """Return the one sentence with which a gateway ends because it will not or may not use the broker."""
    with ExitStack() as stack:
        gateway = GatewayProcess(**settings)
        stack.callback(gateway.close)
        gateway.launch()
        assert gateway.wait() == 1
        said = gateway.log_text()
    assert said.startswith("sluice: ")
    assert said.count("\n") == 1, said
    return said


def test_a_gateway_works_through_tls(certificates: Certificates, broker: TlsBroker) -> None:
    """With the authority named, events go to the broker and come back, all connections encrypted."""
    with GatewayProcess(backbone=broker.tls_url, backbone_ca=certificates.ca) as gateway:
        assert gateway.publish({"topic": "a", "data": 1})["accepted"] == 1
        assert b'"data":1' in gateway.get("/v1/events?topic=a&cursor=earliest")[1]
        connections = broker.control("list_connections", "client_properties", "ssl", "ssl_protocol")
    assert connections.count("sluicegate") >= 2
    for line in connections.splitlines():
        assert "sluicegate" not in line or "\ttrue\ttlsv1.3" in line, line


def test_the_systems_authorities_count_without_another(certificates: Certificates, broker: TlsBroker) -> None:
    """Without `backbone_ca` the system says whom to trust, its own variables included."""
    assert "is not trusted: self-signed certificate in certificate chain" in refusal(backbone=broker.tls_url)
    environ = {"SSL_CERT_FILE": str(certificates.ca)}
    with GatewayProcess(backbone=broker.tls_url, environ=environ) as gateway:
        assert gateway.publish({"topic": "a", "data": 1})["accepted"] == 1


def test_a_broker_that_is_not_trusted_ends_the_start(certificates: Certificates, broker: TlsBroker) -> None:
    """Another authority, another name: the sentence says which, and what to do."""
    said = refusal(backbone=broker.tls_url, backbone_ca=certificates.other_ca)
    assert f"the certificate of the broker at localhost:{broker.tls_port} is not trusted: " in said
    assert "backbone_ca names a file with the authority that signed it" in said
    by_number = broker.tls_url.replace("localhost", "127.0.0.1")
    said = refusal(backbone=by_number, backbone_ca=certificates.ca)
    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in said
    assert "the address must have a name that is in it" in said


def test_an_expired_certificate_ends_the_start(certificates: Certificates, broker: TlsBroker) -> None:
    """A certificate whose time is over is not trusted."""
    now = dt.datetime.now(tz=dt.UTC)
    certificates.issue(not_before=now - dt.timedelta(days=2), not_after=now - dt.timedelta(days=1))
    try:
        broker.control("eval", "ssl:clear_pem_cache().")
        said = refusal(backbone=broker.tls_url, backbone_ca=certificates.ca)
    finally:
        certificates.issue()
        broker.control("eval", "ssl:clear_pem_cache().")
    assert "is not trusted: certificate has expired" in said


def test_the_wrong_port_ends_the_start(certificates: Certificates, broker: TlsBroker) -> None:
    """TLS where there is none, and none where there is: each is told."""
    plain = f"amqps://localhost:{broker.port}"
    said = refusal(backbone=plain, backbone_ca=certificates.ca)
    assert f"the broker at localhost:{broker.port} speaks no TLS: " in said
    said = refusal(backbone=f"amqp://localhost:{broker.tls_port}")
    assert f"the broker at localhost:{broker.tls_port} speaks TLS: its address begins with amqps://" in said


def test_files_that_cannot_be_used_end_the_start(
    certificates: Certificates, broker: TlsBroker, tmp_path: Path
) -> None:
    """A file that is missing, or holds something else, is named with what it should be."""
    url = broker.tls_url
    missing = tmp_path / "missing.pem"
    said = refusal(backbone=url, backbone_ca=missing)
    assert said == f"sluice: backbone_ca: {missing}: No such file or directory\n"
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("my diary")
    said = refusal(backbone=url, backbone_ca=wrong)
    assert said == f"sluice: backbone_ca: {wrong}: no certificate in PEM form\n"
    said = refusal(backbone=url, backbone_ca=certificates.ca, backbone_certificate=missing)
    assert said == f"sluice: backbone_certificate: {missing}: No such file or directory\n"
    said = refusal(backbone=url, backbone_ca=certificates.ca, backbone_certificate=certificates.ca)
    assert said.endswith("a certificate in PEM form and its key are needed in it\n")
    locked = tmp_path / "locked.pem"
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    locked.write_bytes(key + certificates.ca.read_bytes())
    said = refusal(backbone=url, backbone_ca=certificates.ca, backbone_certificate=locked)
    assert "its key is encrypted" in said


def test_a_broker_that_asks_for_a_certificate_gets_one(certificates: Certificates) -> None:
    """A broker that lets only certified clients in refuses others with a sentence, and takes ours."""
    demands = "ssl_options.verify = verify_peer", "ssl_options.fail_if_no_peer_cert = true"
    for versions in ("tlsv1.3", "tlsv1.2"):
        with TlsBroker(certificates, *demands, f"ssl_options.versions.1 = {versions}") as broker:
            said = refusal(backbone=broker.tls_url, backbone_ca=certificates.ca)
            assert "does not accept us by our certificate" in said
            assert "backbone_certificate names it" in said
            with GatewayProcess(
                backbone=broker.tls_url,
                backbone_ca=certificates.ca,
                backbone_certificate=certificates.client,
            ) as gateway:
                assert gateway.publish({"topic": "a", "data": 1})["accepted"] == 1
