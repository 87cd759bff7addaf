"""
TLS to the broker: whom we trust, who we are, and what of its failures no waiting changes.

The files are read for every connection, so that renewed certificates count from the next one on.
"""

from __future__ import annotations

import ssl
from typing import Final, NoReturn

from gateway.amqp.address import Address

_UNKNOWN_ISSUER: Final = {18, 19, 20, 21}
_WRONG_NAME: Final = {62, 64}
"""OpenSSL's numbers of what is wrong with a certificate (`X509_V_ERR_…`)."""


class TlsError(Exception):
    """TLS as the settings have it cannot be; the text is one sentence."""


def context(address: Address) -> ssl.SSLContext:
    """
    Return what a connection is encrypted with: certificate and name of the broker are always checked.

    Takes 50 ms with the system's authorities: not for the event loop.

    Raises:
        TlsError: a file cannot be used.
    """
    try:
        made = ssl.create_default_context(cafile=address.ca or None)
    except OSError as error:
        raise TlsError(f"backbone_ca: {address.ca}: {_why(error, 'no certificate in PEM form')}") from None
    if address.certificate:
        try:
            made.load_cert_chain(address.certificate, password=_no_password)
        except OSError as error:
            needed = "a certificate in PEM form and its key are needed in it"
            raise TlsError(f"backbone_certificate: {address.certificate}: {_why(error, needed)}") from None
    return made


def refusal(where: str, error: Exception | None) -> str | None:
    """Return a sentence if a failed connection to `where` fails again until somebody changes something."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {where} is not trusted: {error.verify_message.rstrip('.')}{_remedy(error)}"
        )
    reason = (error.reason if isinstance(error, ssl.SSLError) else None) or ""
    if reason == "WRONG_VERSION_NUMBER":
        return f"{where} speaks no TLS: amqps:// has a port of its own, usually 5671"
    if "PROTOCOL_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason:
        return f"{where} has no version of TLS in common with us: TLS 1.2 is the oldest that is taken"
    if "ALERT" in reason and any(word in reason for word in ("CERT", "HANDSHAKE_FAILURE", "UNKNOWN_CA")):
        return f"{where} does not accept us by our certificate ({reason}): backbone_certificate names it"
    return None


def is_alert(data: bytes) -> bool:
    """Say whether bytes that should be AMQP are what TLS answers to those who do not speak it."""
    return data[:2] == b"\x15\x03"


def _remedy(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _UNKNOWN_ISSUER:
        return "; backbone_ca names a file with the authority that signed it"
    if error.verify_code in _WRONG_NAME:
        return "; the address must have a name that is in it"
    return ""


def _why(error: OSError, otherwise: str) -> str:
    return otherwise if isinstance(error, ssl.SSLError) else error.strerror or str(error)


def _no_password() -> NoReturn:
    raise TlsError("backbone_certificate: its key is encrypted, and there is nobody to ask for the password")
