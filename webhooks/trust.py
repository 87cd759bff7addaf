"""Whose certificates are trusted: the system's authorities, and any that an operator adds."""

from __future__ import annotations

import ssl
from pathlib import Path


def client_context(ca: Path | None = None) -> ssl.SSLContext:
    """
    Return what TLS connections to targets are made with: TLS 1.2 or later, certificates checked.

    Args:
        ca: a file of further authorities, in PEM.

    Raises:
        OSError: the file cannot be read.
        ssl.SSLError: there is no certificate in it.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca is not None:
        context.load_verify_locations(ca)
    return context
