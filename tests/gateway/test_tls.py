"""TLS at the gateway's port: what is offered, what is refused in which words, and files that change."""

from __future__ import annotations

import os
import ssl
from itertools import count
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from gateway.setting import SettingsError
from gateway.settings import Settings
from gateway.tls import Tls, TlsError
from tests.support.certificates import Certificates
from tests.support.command import run_sluice

_moments = count(1)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def touch(*files: Path) -> None:
    """Have files look changed, however fast a test is: the kernel's clock may stand between two writes."""
    for each in files:
        os.utime(each, ns=(0, next(_moments) * 10**9))


def served(tls: Tls, client: ssl.SSLContext) -> bytes:
    """Shake hands; return the certificate that the client was shown."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_end = tls.context.wrap_bio(to_server, to_client, server_side=True)
    client_end = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    waiting = [client_end, server_end]
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    assert not waiting
    shown = client_end.getpeercert(binary_form=True)
    assert shown is not None
    return shown


def der(certificate: trustme.LeafCert) -> bytes:
    """Return a certificate as it is on the wire."""
    return x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)


# --- what is offered ---------------------------------------------------------------------------------------


def test_only_what_is_good_today_is_offered(certificates: Certificates) -> None:
    """TLS 1.2 and 1.3, forward secrecy and authenticated encryption, no compression, no second handshake."""
    context = Tls(str(certificates.both)).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.maximum_version == ssl.TLSVersion.MAXIMUM_SUPPORTED
    for cipher in context.get_ciphers():
        assert cipher["aead"], cipher
        assert cipher["protocol"] == "TLSv1.3" or cipher["name"].startswith("ECDHE-"), cipher
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_the_protocol_is_http_1(certificates: Certificates) -> None:
    """A client that asks by ALPN hears `http/1.1`."""
    tls = Tls(str(certificates.both))
    client = certificates.trusting()
    client.set_alpn_protocols(["h2", "http/1.1"])
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_end = tls.context.wrap_bio(to_server, to_client, server_side=True)
    client_end = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client_end.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        server_end.do_handshake()
    client_end.do_handshake()
    assert client_end.selected_alpn_protocol() == "http/1.1"


def test_the_key_may_be_in_the_same_file_or_in_another(certificates: Certificates) -> None:
    """Both forms serve the same certificate, and know when it expires."""
    one, two = Tls(str(certificates.both)), Tls(str(certificates.chain), str(certificates.key))
    client = certificates.trusting()
    assert served(one, client) == served(two, client)
    assert one.expires == two.expires
    [first] = x509.load_pem_x509_certificates(certificates.chain.read_bytes())
    assert one.expires == first.not_valid_after_utc.timestamp()


# --- what is refused ---------------------------------------------------------------------------------------


def refusal(certificate: Path, key: Path | None = None) -> str:
    """Return the sentence with which files are refused."""
    with pytest.raises(TlsError) as caught:
        Tls(str(certificate), "" if key is None else str(key))
    return str(caught.value)


def test_files_that_cannot_be_used_are_refused(certificates: Certificates, tmp_path: Path) -> None:
    """The sentence names the setting, the file, and what is wrong with it."""
    missing, diary, empty = tmp_path / "missing.pem", tmp_path / "diary.pem", tmp_path / "empty.pem"
    diary.write_text("my diary")
    empty.write_text("")
    chain, key = certificates.chain, certificates.key
    assert refusal(missing) == f"tls_cert: {missing}: No such file or directory"
    assert refusal(tmp_path) == f"tls_cert: {tmp_path}: Is a directory"
    for wrong in (diary, empty, key):
        assert refusal(wrong) == f"tls_cert: {wrong}: no certificate in PEM form"
    assert refusal(chain) == f"tls_cert: {chain}: no private key in PEM form"
    assert refusal(chain, missing) == f"tls_key: {missing}: No such file or directory"
    for wrong in (diary, empty, chain):
        assert refusal(chain, wrong) == f"tls_key: {wrong}: no private key in PEM form"


@pytest.mark.parametrize("kind", list(trustme.KeyType), ids=lambda kind: kind.name)
def test_the_key_of_another_certificate_is_refused(
    certificates: Certificates, tmp_path: Path, kind: trustme.KeyType
) -> None:
    """A key that does not fit is named, whatever kind it is."""
    other = tmp_path / "other.pem"
    certificates.authority.issue_cert("other", key_type=kind).private_key_pem.write_to_path(other)
    assert refusal(certificates.chain, other) == f"tls_key: {other}: the key is not that of the certificate"


def test_an_encrypted_key_is_refused(certificates: Certificates, tmp_path: Path) -> None:
    """Nobody is there to type a password, and nobody is asked."""
    locked = tmp_path / "locked.pem"
    secret = BestAvailableEncryption(b"secret")
    key = ec.generate_private_key(ec.SECP256R1())
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    said = f"tls_key: {locked}: its key is encrypted, and there is nobody to ask for the password"
    assert refusal(certificates.chain, locked) == said


def test_a_broken_certificate_is_refused(certificates: Certificates) -> None:
    """PEM around nonsense is no certificate."""
    text = certificates.both.read_text().splitlines()
    at = next(number for number, line in enumerate(text) if "BEGIN CERTIFICATE" in line)
    text[at + 1] = "AAAA" + text[at + 1][4:]
    certificates.both.write_text("\n".join(text))
    assert refusal(certificates.both) == f"tls_cert: {certificates.both}: no certificate in PEM form"


def test_a_key_alone_is_no_setting() -> None:
    """A key is of use only with a certificate."""
    with pytest.raises(SettingsError, match=r"^tls_key: a key is of use only with a certificate"):
        Settings(tls_key="key.pem")


def test_check_tries_the_certificate(certificates: Certificates, tmp_path: Path) -> None:
    """`sluice check` says when it expires, or with the same sentence as a start why it cannot be used."""
    good = run_sluice("check", "--data=memory:", f"--tls-cert={certificates.both}")
    assert good.returncode == 0
    assert "TLS: the certificate expires on " in good.stdout
    missing = tmp_path / "missing.pem"
    for command in ("check", "serve"):
        bad = run_sluice(command, "--data=memory:", f"--tls-cert={missing}")
        assert bad.returncode == 1
        assert bad.stderr == f"sluice: tls_cert: {missing}: No such file or directory\n"


# --- files that change -------------------------------------------------------------------------------------


def test_a_new_certificate_is_used_once_it_stays(certificates: Certificates) -> None:
    """Changed files count from the second look that finds them the same: they may be half written."""
    tls = Tls(str(certificates.chain), str(certificates.key))
    client = certificates.trusting()
    before = served(tls, client)
    new = certificates.issue()
    touch(certificates.chain, certificates.key)
    tls.look()
    assert served(tls, client) == before
    tls.look()
    assert served(tls, client) == der(new) != before
    assert tls.failures == 0


def test_half_a_change_is_no_failure(certificates: Certificates) -> None:
    """A certificate that was renewed a moment before its key is not taken for a broken one."""
    tls = Tls(str(certificates.chain), str(certificates.key))
    new = certificates.issue()
    touch(certificates.chain)
    tls.look()
    touch(certificates.key)
    tls.look()
    tls.look()
    assert served(tls, certificates.trusting()) == der(new)
    assert tls.failures == 0


def test_a_key_of_another_kind_replaces_the_old_one(certificates: Certificates) -> None:
    """After RSA became ECDSA, or the other way round, no client is shown the old certificate any more."""
    certificates.issue(key_type=trustme.KeyType.RSA)
    tls = Tls(str(certificates.both))
    for kind, auth in ((trustme.KeyType.ECDSA, "RSA"), (trustme.KeyType.RSA, "ECDSA")):
        new = certificates.issue(key_type=kind)
        touch(certificates.both)
        tls.look()
        tls.look()
        assert served(tls, certificates.trusting()) == der(new)
        old = certificates.trusting()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        old.set_ciphers(f"ECDHE-{auth}-AES128-GCM-SHA256")
        with pytest.raises(ssl.SSLError):
            served(tls, old)


@pytest.mark.parametrize("broken", ["diary", "missing", "mismatch"])
def test_what_cannot_be_used_changes_nothing(
    certificates: Certificates, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    """The old certificate stays, the log says it once, a metric counts it; good files end the trouble."""
    tls = Tls(str(certificates.chain), str(certificates.key))
    client = certificates.trusting()
    before, expires = served(tls, client), tls.expires
    if broken == "missing":
        certificates.chain.unlink()
    elif broken == "diary":
        certificates.chain.write_text("my diary")
        touch(certificates.chain)
    else:
        certificates.authority.issue_cert("other").private_key_pem.write_to_path(certificates.key)
        touch(certificates.key)
    for _ in range(5):
        tls.look()
    assert (served(tls, client), tls.expires) == (before, expires)
    assert tls.failures == 1
    [said] = [record.getMessage() for record in caplog.records if record.name == "gateway.tls"]
    assert said.startswith("tls.not_reloaded: tls_")
    assert said.endswith("; the old certificate stays")
    new = certificates.issue()
    touch(certificates.chain, certificates.key)
    for _ in range(5):
        tls.look()
    assert served(tls, client) == der(new)
    assert tls.failures == 1


def test_the_same_files_are_not_loaded_again(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """Looking at files that did not change says nothing."""
    caplog.set_level("INFO")
    tls = Tls(str(certificates.both))
    for _ in range(5):
        tls.look()
    assert not caplog.records
