"""A key, its certificate and that of the authority, as files of one directory. A renewal replaces one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from pannier.core.errors import Denied
from pannier.pki.authority import CA_CERTIFICATE, load_private
from pannier.pki.identity import is_issued_by


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """``ca.crt``, ``KIND.crt`` and ``KIND.key``.

    Attributes:
        directory: where they are.
        kind: the files' base name.
    """

    directory: Path
    kind: str

    @property
    def certificate_path(self) -> Path:
        """The chain: own certificate, then the CA's."""
        return self.directory / f"{self.kind}.crt"

    @property
    def key_path(self) -> Path:
        """The private key."""
        return self.directory / f"{self.kind}.key"

    @property
    def ca_path(self) -> Path:
        """The CA's certificate."""
        return self.directory / CA_CERTIFICATE

    def take_up(self) -> None:
        """Let this process show the certificate that is on the disk now. Here it shows none: another program reads the files."""

    def check_together(self, certificate: str, *, key: str, ca: str) -> x509.Certificate:
        """A certificate, if it belongs to the key and was issued by the CA; all PEM.

        Raises:
            Denied: it does not, or cannot be read. Messages name the files as they are here.
        """
        remedy = "restore the directory from a backup, or join the cluster again"
        try:
            parsed = x509.load_pem_x509_certificate(certificate.encode())
            issuer = x509.load_pem_x509_certificate(ca.encode())
        except ValueError as error:
            raise Denied(
                f"a certificate in {self.directory} cannot be read", remedy=remedy
            ) from error
        if parsed.public_key() != load_private(key, path=self.key_path).public_key():
            raise Denied(
                f"{self.certificate_path} does not belong to the key beside it", remedy=remedy
            )
        if not is_issued_by(parsed, issuer):
            raise Denied(
                f"{self.certificate_path} was not issued by the CA beside it", remedy=remedy
            )
        return parsed
