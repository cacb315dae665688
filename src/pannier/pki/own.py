"""A machine's own certificate while it is in use: renewed, replaced, and taken up without a restart."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog

from pannier.core.errors import Denied, PannierError
from pannier.pki import files
from pannier.pki.authority import load_private
from pannier.pki.credentials import Credentials, check_together, request_for
from pannier.pki.facts import CertificateFacts, facts_of
from pannier.pki.identity import Identity
from pannier.pki.renewal import Proved, RenewalRequest, prove

log = structlog.get_logger(__name__)

FOLLOW_SECONDS = 60.0
"""Between two looks of a process at whether its certificate was replaced. The one that is replaced counts for months yet,
unless it has ended; then somebody waits for this."""


class OwnCertificate:
    """The certificate in ``credentials``, as the disk has it.

    All methods may raise NotFound, Denied or OSError where its files are missing, do not fit or cannot be read.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._taken_up = self._stamp()

    @property
    def identity(self) -> Identity:
        """Whose it is."""
        return self._credentials.identity

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._credentials.certificate_path

    @property
    def authority_path(self) -> Path:
        """Where the certificate of its authority is."""
        return self._credentials.ca_path

    def facts(self) -> CertificateFacts:
        """The certificate."""
        return facts_of(files.read(self.path))

    def authority(self) -> CertificateFacts:
        """The certificate of its authority."""
        return facts_of(files.read(self.authority_path))

    def request(self) -> RenewalRequest:
        """Asks for a longer time for the same key."""
        key_path = self._credentials.key_path
        key = load_private(files.read_private(key_path), path=key_path)
        return RenewalRequest(files.read(self.path), request_for(key, self.identity.name))

    def prove(self, request: RenewalRequest) -> Proved:
        """Check somebody's request by this cluster's authority: see :func:`~pannier.pki.renewal.prove`."""
        return prove(request, ca=files.read(self.authority_path))

    def keep(self, chain: str) -> None:
        """Replace the certificate on the disk by a renewed one, whole and durable; :meth:`refresh` shows it.

        Waits for the disk, and may be called in a thread.

        Raises:
            Denied: it is another one's, for another key, or ends no later. Nothing was changed.
        """
        mine = self._credentials
        identity = check_together(
            chain,
            key=files.read_private(mine.key_path),
            ca=files.read(mine.ca_path),
            directory=mine.directory,
            kind=mine.kind,
        )
        if identity != self.identity or facts_of(chain).ends <= self.facts().ends:
            raise Denied(
                f"the certificate that came for {self.identity} does not renew the present one",
                remedy="look at the node with the authority: pannier doctor there",
            )
        # One file, for the same key: after a power cut there is the old certificate or the new one.
        files.write(self.path, chain, mode=files.PUBLIC_MODE, replace=True)

    def refresh(self) -> bool:
        """Take up the certificate on the disk if it was replaced, by whomever. Returns whether it was."""
        stamp = self._stamp()
        if stamp == self._taken_up:
            return False
        self._credentials.take_up()
        self._taken_up = stamp
        return True

    def _stamp(self) -> tuple[int, int, int]:
        found = os.stat(self.path)
        return found.st_ino, found.st_mtime_ns, found.st_size


async def follow(own: OwnCertificate) -> None:
    """Take up what is on the disk, for ever: run as a task of a process that renews nothing itself."""
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        try:
            if own.refresh():
                log.info("certificate.taken-up", serial=own.facts().serial)
        except (PannierError, OSError) as error:
            log.warning("certificate.not-taken-up", error=str(error))
