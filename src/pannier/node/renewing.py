"""Keeps this node's certificate good: it is renewed long before its end, and also after it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from pannier.cluster.catalog import Catalog
from pannier.contract.bodies import RenewalOrder
from pannier.core.certificates import is_due
from pannier.core.errors import PannierError, PeerUnavailable
from pannier.core.node import API_PORT
from pannier.core.pace import NodePace
from pannier.core.record import Record
from pannier.host.clock import Clock
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile
from pannier.node.certificate_ports import CertificatePorts
from pannier.node.membership import Membership
from pannier.node.signing import Signing

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedForRenewal(Record):
    """When this node asked last, in seconds since the boot; also where nothing came of it."""

    at: float


class Renewing:
    """A slow loop. All its steps may be repeated, and a power cut may end each.

    The node asks, the authority signs, the certificate replaces the old one in one step, and this node's record is told.
    Until the replacement the old one counts, and the key that the record names is the same all the time.

    ``file`` lasts until the next boot.
    """

    def __init__(
        self,
        *,
        node: str,
        ports: CertificatePorts,
        signing: Signing,
        membership: Membership,
        catalog: Catalog,
        file: StateFile,
        clock: Clock,
        pace: NodePace,
    ) -> None:
        """Prepare; :meth:`run` works."""
        self._node = node
        self._own = ports.own
        self._ask_as_stranger = ports.stranger
        self._signing = signing
        self._membership = membership
        self._catalog = catalog
        self._file = file
        self._clock = clock
        self._pace = pace
        self.trouble = ""
        """Why the certificate was not renewed although it is due; empty where it is well."""

    async def run(self) -> None:
        """For ever: run as a task."""
        while True:
            await self.look()
            await asyncio.sleep(self._pace.certificate_look)

    async def look(self) -> None:
        """Take up what is on the disk, and renew what is due, but do not ask again and again."""
        try:
            if self._own.refresh():
                log.info("certificate.taken-up", serial=self._own.facts().serial)
            if not self._is_due():
                self.trouble = ""
            elif self._may_ask():
                self._note()
                await self.renew()
        except (PannierError, OSError) as error:
            self.trouble = str(error)
            log.warning("certificate.not-renewed", error=self.trouble)
        await self._report()

    async def renew(self, *, address: str | None = None) -> None:
        """Renew the certificate now.

        Args:
            address: of the node to ask; None for whoever has the authority, as far as this node knows.

        Raises:
            PannierError: as :meth:`~pannier.node.signing.Signing.renew`, and what the asked node answers.
            OSError: the disk refused. The certificate that was there still is, unless only a later step failed.
        """
        request = self._own.request()
        if address is not None:
            chain = await self._by_stranger(address, API_PORT, None)
        elif self._has_ended() and not self._signing.is_here:
            chain = await self._by_any_node()
        else:
            chain = await self._signing.renew(request)
        await asyncio.to_thread(self._own.keep, chain)
        self._own.refresh()
        log.info("certificate.renewed", serial=self._own.facts().serial)
        self.trouble = ""
        await self._report()

    async def _by_any_node(self) -> str:
        """Ask as one whose certificate nobody accepts any more; any node passes that on to the authority.

        Raises:
            PannierError: what the first that was asked said, which is the one with the authority if this node remembers it.
        """
        failures: list[PannierError] = []
        others = [node for node in self._catalog.nodes() if node.name != self._node]
        for node in sorted(others, key=lambda each: not each.authority):
            try:
                return await self._by_stranger(node.address, node.api_port, node.name)
            except PannierError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        raise PeerUnavailable(
            "this node remembers no other node that it could ask",
            remedy="say which: pannier cert renew --address ADDRESS",
        )

    async def _by_stranger(self, address: str, port: int, node: str | None) -> str:
        request = self._own.request()
        order = RenewalOrder(certificate=request.certificate, csr=request.csr)
        return (await self._ask_as_stranger(address, port, node, order)).certificate

    def _is_due(self) -> bool:
        ends, authority_ends = self._own.facts().ends, self._own.authority().ends
        return is_due(ends, now=self._clock.unix(), authority_ends=authority_ends)

    def _has_ended(self) -> bool:
        return self._own.facts().ends <= self._clock.unix()

    def _may_ask(self) -> bool:
        """Not too often, whatever the wall clock says, and however often this daemon starts."""
        pause = (
            self._pace.certificate_retry_ended
            if self._has_ended()
            else self._pace.certificate_retry
        )
        asked = read_file(self._file, AskedForRenewal, remedy="remove it: it is made anew")
        # A later time than now is of an earlier boot, where the directory has outlasted that.
        return asked is None or not 0 <= self._clock.now() - asked.at < pause

    def _note(self) -> None:
        self._file.write(encode(AskedForRenewal(at=self._clock.now())))

    async def _report(self) -> None:
        """Tell this node's record of the certificate: nodes of earlier versions know it by that alone.

        What fails is tried again at the next look.
        """
        mine = self._catalog.node(self._node)
        try:
            shown = self._own.facts().fingerprints
            if (
                mine is not None
                and mine.is_shown_by(shown)
                and mine.certificate != shown.certificate
            ):
                await self._membership.report_certificate(shown)
        except (PannierError, OSError) as error:
            log.warning("certificate.not-reported", error=str(error))
