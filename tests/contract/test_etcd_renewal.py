"""Certificates for etcd are exchanged while a real one serves: nothing is started again, and no connection is cut."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from etcd_server import Certificates, EtcdCluster
from watcher import watching

from pannier.core.errors import StoreUnavailable
from pannier.core.removals import serial
from pannier.pki import files
from pannier.pki.authority import CA_CERTIFICATE, STORE_NAME, Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.pki.facts import CertificateFacts
from pannier.pki.own import OwnCertificate
from pannier.pki.refusal import refusal_list
from pannier.pki.renewal import Prover, StoreIdentity
from pannier.store.base import ABSENT, Change
from pannier.store.etcd import EtcdStore
from pannier.store.etcd_gateway import Timing
from pannier.store.etcd_member import member_certificate
from pannier.store.shown import shown_by_store

YEAR = 365 * 86_400.0
IMPATIENT = Timing(deadline_seconds=2.0, try_seconds=0.5, quiet_seconds=0.3)
PATIENCE_SECONDS = 60.0


class KeptCertificates(Certificates):
    """As a node keeps them: its own for etcd, and that of the member beside it. All members here have the same.

    Args:
        made: when all was issued, Unix time.
    """

    def __init__(self, directory: Path, *, made: float) -> None:
        own = Authority.create(directory / "ca", cluster="c0ffee", clock=lambda: made)
        store = Authority.create(
            directory / "ca/store", cluster="c0ffee", name=STORE_NAME, clock=lambda: made
        )
        self._directory = directory
        self._own_ca = directory / "ca" / CA_CERTIFICATE
        assert own.certificate_pem == files.read(self._own_ca)
        client, member = new_request("n1"), new_request("etcd-n1")
        self.credentials = Credentials.save(
            directory / "store",
            ca=store.certificate_pem,
            certificate=store.issue_store_client(client.csr_pem, node="n1", membership=1),
            key=client.key_pem,
        )
        issued = store.issue_etcd(
            member.csr_pem, member="etcd-n1", addresses=["127.0.0.1"], membership=1
        )
        pki = files.private_directory(directory / "pki")
        self.ca, self.key, self.certificate = (
            pki / name for name in ("ca.crt", "tls.key", "tls.crt")
        )
        files.write(self.ca, store.certificate_pem, mode=0o644, replace=False)
        files.write(self.key, member.key_pem, mode=0o600, replace=False)
        files.write(self.certificate, issued, mode=0o600, replace=False)
        self.context = self.credentials.client_context()

    def client(self) -> ssl.SSLContext:
        return self.context

    def renew(self, *, at: float) -> None:
        """Each as its node does it, with an authority that has this Unix time."""
        ca = self.credentials.ca_path
        member = member_certificate(store_ca=ca, directory=self.certificate.parent)
        assert member is not None
        authority = Authority.load(self._directory / "ca/store", clock=lambda: at)
        for own in (OwnCertificate(self.credentials), member):
            proved = Prover(ca=self._own_ca, store_ca=ca).prove(own.request())
            assert isinstance(proved.who, StoreIdentity)
            own.keep(authority.renew(proved.certificate, number=proved.who.serial))
            own.refresh()

    def member(self) -> CertificateFacts:
        """On the disk."""
        found = member_certificate(
            store_ca=self.credentials.ca_path, directory=self.certificate.parent
        )
        assert found is not None
        return found.facts()


def address(etcd: EtcdCluster) -> str:
    return "etcd://" + ",".join(etcd.endpoints)


@asynccontextmanager
async def connected(
    etcd: EtcdCluster, certificates: KeptCertificates, *, timing: Timing | None = None
) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(etcd.endpoints, tls=certificates.context, timing=timing)
    async with store.session():
        yield store


async def test_both_are_exchanged_while_members_serve_and_a_watch_goes_on(tmp_path: Path) -> None:
    """The members read the new one at their next handshakes, with clients and with each other."""
    certificates = KeptCertificates(tmp_path, made=time.time() - 4.8 * YEAR)
    certificates.renew(at=time.time() - 3600)  # the node's had ended
    before = certificates.member()
    etcd = EtcdCluster(tmp_path, size=3, certificates=certificates)
    with etcd.running():
        async with connected(etcd, certificates) as store, watching(store, "w/") as watcher:
            await store.commit(Change("w/a", b"", ABSENT))
            certificates.renew(at=time.time())
            await store.commit(Change("w/b", b"", ABSENT))
            await watcher.until_present("w/a", "w/b")
            after = certificates.member()
            shown = await shown_by_store(address(etcd))
            assert set(shown.values()) == {after}
            assert (after.serial, after.ends > before.ends) == (before.serial, True)
            async with connected(etcd, certificates) as another:
                await another.commit(Change("w/c", b"", ABSENT))
            await watcher.until_present("w/a", "w/b", "w/c")
            assert watcher.begun() == 1, "no connection was cut"
        for member in etcd.members:  # each shakes hands anew with members that run on
            member.kill()
            etcd.start(member)
            await asyncio.to_thread(etcd.wait_until_serving, member)


async def test_an_etcd_that_started_with_ended_ones_serves_once_they_are_renewed(
    tmp_path: Path,
) -> None:
    """As after years without power. Nobody starts it again, and nobody makes a new client."""
    certificates = KeptCertificates(tmp_path, made=time.time() - 6 * YEAR)
    etcd = EtcdCluster(tmp_path, size=3, certificates=certificates)
    try:
        for each in etcd.members:
            etcd.start(each)
        async with connected(etcd, certificates, timing=IMPATIENT) as store:
            await until_shown([each.peer_url for each in etcd.members], certificates.member())
            with pytest.raises(StoreUnavailable):
                await store.get("x")
            certificates.renew(at=time.time())
            for each in etcd.members:
                await asyncio.to_thread(etcd.wait_until_serving, each)
            await store.commit(Change("x", b"", ABSENT))
            assert set((await shown_by_store(address(etcd))).values()) == {certificates.member()}
    finally:
        for each in etcd.members:
            each.kill()


async def until_shown(urls: list[str], wanted: CertificateFacts) -> None:
    """Wait until members run, also where they do not serve."""
    ends = "etcd://" + ",".join(url.removeprefix("https://") for url in urls)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while set((await shown_by_store(ends)).values()) != {wanted}:
            await asyncio.sleep(0.1)


async def test_what_a_removed_node_had_renewed_is_refused(tmp_path: Path) -> None:
    """Also where the authority had not heard of the removal: the number is that of the membership."""
    certificates = KeptCertificates(tmp_path, made=time.time() - 4.8 * YEAR)
    refused = tmp_path / "refused.crl"
    # Not the member's, which etcd's gateway shows to etcd itself: it is there as one of a node that stays.
    refused.write_bytes(refusal_list({serial("n1", 1)}, now=time.time()))
    certificates.renew(at=time.time())
    etcd = EtcdCluster(
        tmp_path, size=1, certificates=certificates, options=("--client-crl-file", str(refused))
    )
    [member] = etcd.members
    try:
        etcd.start(member)
        async with connected(etcd, certificates, timing=IMPATIENT) as store:
            await until_shown([member.peer_url], certificates.member())
            with pytest.raises(StoreUnavailable):
                await store.get("x")
            refused.write_bytes(refusal_list((), now=time.time()))
            await asyncio.to_thread(etcd.wait_until_serving, member)
            await store.get("x")
    finally:
        member.kill()
