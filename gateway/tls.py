"""
TLS at the gateway's own port: what is offered to clients, and certificates that change while it serves.

Strategy: connections are taken with one context for as long as the gateway runs. When the files change, their
chain is loaded into a context of its own, and only if that succeeds handshakes are handed over to it: as a
whole, key and chain at once. (Loaded into the first one, a certificate with a key of another kind would be
served beside the old one.)
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from typing import Final, NoReturn

from cryptography import x509

from gateway.settings import Settings

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 2.0
"""How often the files are looked at. What changed is loaded when it has stayed so until the next look."""

SHUTDOWN_SECONDS: Final = 10.0
"""
How long a connection may take to end in order: the rest of its answer, and the goodbye of either side. Enough
for the largest answer to a poll at 1 Mbit/s.
"""

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption, as TLS 1.3 has nothing else (RFC 9325 4.2)."""

_OTHER_KEY: Final = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
"""What OpenSSL says of a key that is not the certificate's; the last two when it is of another kind."""

_State = tuple[tuple[int, ...] | None, ...]  # what tells that the files are others than before


class TlsError(Exception):
    """The certificate cannot be used; the text is one sentence that names the setting."""


class Tls:
    """
    What a gateway encrypts its port with.

    Args:
        certificate: PEM file with the certificate and the chain behind it.
        key: PEM file with its key; empty if it is in the same one.

    Attributes:
        context: what connections are taken with.
        expires: when the certificate in use expires, in Unix time.
        failures: how often changed files could not be used.

    Raises:
        TlsError: a file cannot be used.
    """

    def __init__(self, certificate: str, key: str = "") -> None:
        self._certificate = certificate
        self._key = key
        self._seen = self._state()
        self._tried = self._seen
        self.context, self.expires = self._load()
        self.failures = 0

    @classmethod
    def of(cls, settings: Settings) -> Tls | None:
        """
        Return what the settings say; None if it is plain HTTP.

        Raises:
            TlsError: a file cannot be used.
        """
        return cls(settings.tls_cert, settings.tls_key) if settings.tls_cert else None

    async def watch(self) -> None:
        """Use the files anew whenever they have changed, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.look()

    def look(self) -> None:
        """
        Load the files if they changed and are still the same as at the look before.

        Two files are rarely written in one moment: half of a change would be a failure that means nothing.
        """
        before, self._seen = self._seen, self._state()
        if self._seen == self._tried or self._seen != before:
            return
        self._tried = self._seen
        try:
            fresh, self.expires = self._load()
        except TlsError as error:
            self.failures += 1
            logger.error("tls.not_reloaded: %s; the old certificate stays", error)  # noqa: TRY400  (it says all)
            return
        self.context.sni_callback = lambda connection, _name, _context: setattr(connection, "context", fresh)
        logger.info("tls.reloaded", extra={"expires": int(self.expires)})

    def _state(self) -> _State:
        return _identity(self._certificate), _identity(self._key) if self._key else None

    def _load(self) -> tuple[ssl.SSLContext, float]:
        """
        Return a context with the chain that is in the files now, and when its certificate expires.

        Raises:
            TlsError: a file cannot be used.
        """
        expires = _expiry(self._certificate)
        if self._key:
            _read("tls_key", self._key)
        made = _context()
        try:
            made.load_cert_chain(self._certificate, self._key or None, password=self._no_password)
        except ssl.SSLError as error:
            raise TlsError(self._why(error)) from None
        except OSError as error:  # since they were read just now
            raise TlsError(f"tls_cert: {self._certificate}: {error.strerror}") from None
        return made, expires

    @property
    def _key_named(self) -> str:
        """The setting that names the key, and its file."""
        return f"tls_key: {self._key}" if self._key else f"tls_cert: {self._certificate}"

    def _why(self, error: ssl.SSLError) -> str:
        if error.reason in _OTHER_KEY:
            return f"{self._key_named}: the key is not that of the certificate"
        if not error.reason or "PEM" in error.library or error.reason in ("NO_START_LINE", "UNSUPPORTED"):
            return f"{self._key_named}: no private key in PEM form"
        return f"tls_cert: {self._certificate}: it cannot be used ({error.reason})"

    def _no_password(self) -> NoReturn:
        raise TlsError(
            f"{self._key_named}: its key is encrypted, and there is nobody to ask for the password"
        )


def _context() -> ssl.SSLContext:
    """Return a context without a certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers(CIPHERS)
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    made.set_alpn_protocols(["http/1.1"])
    return made


def _expiry(certificate: str) -> float:
    """
    Return when the certificate in a file expires; the first one is that of the server.

    Raises:
        TlsError: there is none.
    """
    try:
        chain = x509.load_pem_x509_certificates(_read("tls_cert", certificate))
        return chain[0].not_valid_after_utc.timestamp()
    except (ValueError, x509.InvalidVersion):
        raise TlsError(f"tls_cert: {certificate}: no certificate in PEM form") from None


def _read(setting: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  (a setting is text)
            return file.read()
    except OSError as error:
        raise TlsError(f"{setting}: {path}: {error.strerror}") from None


def _identity(path: str) -> tuple[int, ...] | None:
    """Return what changes with a file, also where a link to it is set anew; None if it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116  (a setting is text)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
