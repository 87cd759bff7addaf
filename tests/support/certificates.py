"""An authority of the tests' own, and certificates for gateways on this machine."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import trustme


class Certificates:
    """
    An authority, and the certificate that it signed for a gateway, as files.

    Args:
        folder: where they lie.

    Attributes:
        ca: file with the authority's certificate.
        both: file with a certificate and its key.
        chain: file with the certificate alone.
        key: file with the key alone.
    """

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.both = folder / "both.pem"
        self.chain = folder / "chain.pem"
        self.key = folder / "key.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.issue()

    def issue(self, **members: Any) -> trustme.LeafCert:
        """Write another certificate for this machine; see `trustme.CA.issue_cert`."""
        made = self.authority.issue_cert("127.0.0.1", "localhost", **members)
        made.private_key_and_cert_chain_pem.write_to_path(self.both)
        made.cert_chain_pems[0].write_to_path(self.chain)
        made.private_key_pem.write_to_path(self.key)
        return made

    def trusting(self) -> ssl.SSLContext:
        """Return what a client needs that trusts the authority and nobody else."""
        return ssl.create_default_context(cafile=str(self.ca))
