"""Keeps this machine's certificates good: each is renewed long before its end, and also after it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from pannier.cluster.catalog import Catalog
from pannier.contract.bodies import RenewalOrder
from pannier.contract.words import CertificateKind
from pannier.core.certificates import is_due
from pannier.core.errors import PannierError, PeerUnavailable
from pannier.core.node import API_PORT
from pannier.core.pace import NodePace
from pannier.core.record import Record
from pannier.host.clock import Clock
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile
from pannier.node.certificate_ports import CertificatePorts, KeepsCertificate, KeptCertificate
from pannier.node.membership import Membership
from pannier.node.signing import Signing
from pannier.pki.renewal import RenewalRequest

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedForRenewal(Record):
    """When this node asked last for a certificate, in seconds since the boot; also where nothing came of it."""

    at: float


class Renewing:
    """A slow loop. All its steps may be repeated, and a power cut may end each.

    The node asks, the authority signs, the certificate replaces the old one in one step, and of the node's own its record is
    told. Until the replacement the old one counts, and the key is the same all the time. Nothing is started again: this
    daemon and its lease's process take a new one up, and etcd reads its files at each handshake.

    ``files`` last until the next boot; there is one for each kind of certificate that a node keeps.
    """

    def __init__(
        self,
        *,
        node: str,
        ports: CertificatePorts,
        signing: Signing,
        membership: Membership,
        catalog: Catalog,
        files: Mapping[CertificateKind, StateFile],
        clock: Clock,
        pace: NodePace,
    ) -> None:
        """Prepare; :meth:`run` works."""
        self._node = node
        self._ports = ports
        self._signing = signing
        self._membership = membership
        self._catalog = catalog
        self._files = files
        self._clock = clock
        self._pace = pace
        self._troubles: dict[str, str] = {}

    def trouble(self, where: str) -> str:
        """Why the certificate at a path was not renewed although it is due; empty where it is well."""
        return self._troubles.get(where, "")

    async def run(self) -> None:
        """For ever: run as a task."""
        while True:
            await self.look()
            await asyncio.sleep(self._pace.certificate_look)

    async def look(self) -> None:
        """Take up what is on the disk, and renew what is due, but do not ask again and again."""
        for kept in self._ports.kept():
            await self._look_at(kept)
        await self._report()

    async def _look_at(self, kept: KeptCertificate) -> None:
        certificate, where = kept.certificate, str(kept.certificate.path)
        try:
            if certificate.refresh():
                log.info("certificate.taken-up", where=where, serial=certificate.facts().serial)
            if not self._is_due(certificate):
                self._troubles.pop(where, None)
            elif self._may_ask(kept):
                self._files[kept.kind].write(encode(AskedForRenewal(at=self._clock.now())))
                await self._renew(certificate, address=None)
        except (PannierError, OSError) as error:
            self._troubles[where] = str(error)
            log.warning("certificate.not-renewed", where=where, error=str(error))

    async def renew(self, *, address: str | None = None) -> None:
        """Renew now what is due, or ask at least for this node's own.

        Args:
            address: of the node to ask; None for whoever has the authority, as far as this node knows.

        Raises:
            PannierError: as :meth:`~pannier.node.signing.Signing.renew`, and what the asked node answers.
            OSError: the disk refused. The certificate that was there still is, unless only a later step failed.
        """
        asked, failures = False, list[PannierError | OSError]()
        for kept in self._ports.kept():
            try:
                if self._is_due(kept.certificate):
                    asked = True
                    await self._renew(kept.certificate, address=address)
            except (PannierError, OSError) as error:  # the store may wait for another one
                failures.append(error)
        if not asked and not failures:
            await self._renew(self._ports.own, address=address)
        await self._report()
        if failures:
            raise failures[0]

    async def _renew(self, certificate: KeepsCertificate, *, address: str | None) -> None:
        request = certificate.request()
        if address is not None:
            chain = await self._by_stranger(request, address, API_PORT, None)
        elif self._has_ended(self._ports.own) and not self._signing.is_here:
            chain = await self._by_any_node(request)
        else:
            chain = await self._signing.renew(request)
        await asyncio.to_thread(certificate.keep, chain)
        certificate.refresh()
        where = str(certificate.path)
        log.info("certificate.renewed", where=where, serial=certificate.facts().serial)
        self._troubles.pop(where, None)

    async def _by_any_node(self, request: RenewalRequest) -> str:
        """Ask as one whose certificate nobody accepts any more; any node passes that on to the authority.

        Raises:
            PannierError: what the first that was asked said, which is the one with the authority if this node remembers it.
        """
        failures: list[PannierError] = []
        others = [node for node in self._catalog.nodes() if node.name != self._node]
        for node in sorted(others, key=lambda each: not each.authority):
            try:
                return await self._by_stranger(request, node.address, node.api_port, node.name)
            except PannierError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        raise PeerUnavailable(
            "this node remembers no other node that it could ask",
            remedy="say which: pannier cert renew --address ADDRESS",
        )

    async def _by_stranger(
        self, request: RenewalRequest, address: str, port: int, node: str | None
    ) -> str:
        order = RenewalOrder(certificate=request.certificate, csr=request.csr)
        return (await self._ports.stranger(address, port, node, order)).certificate

    def _is_due(self, certificate: KeepsCertificate) -> bool:
        ends, authority_ends = certificate.facts().ends, certificate.authority().ends
        return is_due(ends, now=self._clock.unix(), authority_ends=authority_ends)

    def _has_ended(self, certificate: KeepsCertificate) -> bool:
        return certificate.facts().ends <= self._clock.unix()

    def _may_ask(self, kept: KeptCertificate) -> bool:
        """Not too often, whatever the wall clock says, and however often this daemon starts."""
        pause = (
            self._pace.certificate_retry_ended
            if self._has_ended(kept.certificate)
            else self._pace.certificate_retry
        )
        file = self._files[kept.kind]
        asked = read_file(file, AskedForRenewal, remedy="remove it: it is made anew")
        # A later time than now is of an earlier boot, where the directory has outlasted that.
        return asked is None or not 0 <= self._clock.now() - asked.at < pause

    async def _report(self) -> None:
        """Tell this node's record of the certificate: nodes of earlier versions know it by that alone.

        What fails is tried again at the next look.
        """
        mine = self._catalog.node(self._node)
        try:
            shown = self._ports.own.facts().fingerprints
            if (
                mine is not None
                and mine.is_shown_by(shown)
                and mine.certificate != shown.certificate
            ):
                await self._membership.report_certificate(shown)
        except (PannierError, OSError) as error:
            log.warning("certificate.not-reported", error=str(error))
