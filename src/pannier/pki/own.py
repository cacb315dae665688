"""A machine's own certificate while it is in use: renewed, replaced, and taken up without a restart."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog
from cryptography import x509

from pannier.core.errors import Denied, PannierError
from pannier.pki import files
from pannier.pki.authority import load_private
from pannier.pki.credentials import request_for
from pannier.pki.facts import CertificateFacts, facts_of
from pannier.pki.key_files import KeyFiles
from pannier.pki.renewal import RenewalRequest

log = structlog.get_logger(__name__)

FOLLOW_SECONDS = 60.0
"""Between two looks of a process at whether its certificate was replaced. The one that is replaced counts for months yet,
unless it has ended; then somebody waits for this."""


class OwnCertificate:
    """The certificate ``at`` some files, as the disk has it.

    All methods may raise NotFound, Denied or OSError where its files are missing, do not fit or cannot be read.
    """

    def __init__(self, at: KeyFiles) -> None:
        self._at = at
        self._taken_up = self._stamp()

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._at.certificate_path

    def facts(self) -> CertificateFacts:
        """The certificate."""
        return facts_of(files.read(self.path))

    def authority(self) -> CertificateFacts:
        """The certificate of its authority."""
        return facts_of(files.read(self._at.ca_path))

    def request(self) -> RenewalRequest:
        """Asks for a longer time for the same key."""
        key_path = self._at.key_path
        key = load_private(files.read_private(key_path), path=key_path)
        return RenewalRequest(files.read(self.path), request_for(key, self.facts().name))

    def keep(self, chain: str) -> None:
        """Replace the certificate on the disk by a renewed one, whole and durable; :meth:`refresh` shows it.

        Waits for the disk, and may be called in a thread.

        Raises:
            Denied: it is another one's, for another key, or ends no later. Nothing was changed.
        """
        key, ca = files.read_private(self._at.key_path), files.read(self._at.ca_path)
        present = self._at.check_together(files.read(self.path), key=key, ca=ca)
        renewed = self._at.check_together(chain, key=key, ca=ca)
        if _says(renewed) != _says(present) or facts_of(chain).ends <= self.facts().ends:
            raise Denied(
                f"the certificate that came for {self.path} does not renew the present one",
                remedy="look at the node with the authority: pannier doctor there",
            )
        # One file, for the same key: after a power cut there is the old certificate or the new one. Everybody may read it.
        files.write(self.path, chain, mode=files.PUBLIC_MODE, replace=True)

    def refresh(self) -> bool:
        """Take up the certificate on the disk if it was replaced, by whomever. Returns whether it was."""
        stamp = self._stamp()
        if stamp == self._taken_up:
            return False
        self._at.take_up()
        self._taken_up = stamp
        return True

    def _stamp(self) -> tuple[int, int, int]:
        found = os.stat(self.path)
        return found.st_ino, found.st_mtime_ns, found.st_size


def _says(certificate: x509.Certificate) -> tuple[object, ...]:
    """Whom a certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return certificate.subject, names.value


async def follow(own: OwnCertificate) -> None:
    """Take up what is on the disk, for ever: run as a task of a process that renews nothing itself."""
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        try:
            if own.refresh():
                log.info("certificate.taken-up", serial=own.facts().serial)
        except (PannierError, OSError) as error:
            log.warning("certificate.not-taken-up", error=str(error))
