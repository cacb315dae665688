"""The key that encrypts the secrets of targets in the store: each node has it in a file, and the store does not.

The first node that needs it makes it, and names it in the store. The others ask a node that has it, over the connection on
which both prove that they belong to the cluster (docs/adr/0006-secrets-of-backups.md).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets as random
from dataclasses import dataclass, field, replace

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pannier.cluster.backup_records import BackupRecords
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.contract.views import BackupKeyView
from pannier.core.backups import Secrets
from pannier.core.errors import Corrupt, NotFound, PannierError, Stale, StorageError, Unavailable
from pannier.core.pace import BackupPace
from pannier.core.record import Record
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile

log = structlog.get_logger(__name__)

_KEY_BITS = 256
_NONCE_BYTES = 12
"""What AES-GCM takes. Each is random; a key encrypts some tens of secrets in its life, of 2^32 for which that is safe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBackupKeys(Record):
    """The file of :class:`BackupKeys`: keys by their ids, base64."""

    keys: dict[str, str] = field(default_factory=dict, repr=False)


class BackupKeys:
    """Encrypts and decrypts secrets. ``file`` is on this node's disk, for root only."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        records: BackupRecords,
        peers: Peers,
        file: StateFile,
        pace: BackupPace,
    ) -> None:
        self._cluster = cluster
        self._records = records
        self._peers = peers
        self._file = file
        self._pace = pace
        self._lock = asyncio.Lock()
        """One change of the file at a time."""

    async def seal(self, secrets: Secrets, *, about: str) -> tuple[str, str]:
        """Encrypt secrets.

        Args:
            about: what they belong to; they can be decrypted together with the same text only.

        Returns:
            The id of the key, and what the store keeps.

        Raises:
            Unavailable: no node that answers has the key; StorageError: it cannot be kept; StoreUnavailable;
            OutcomeUnknown.
        """
        key_id = await self._records.key() or await self._make()
        nonce = random.token_bytes(_NONCE_BYTES)
        plain = msgspec.json.encode(secrets)
        sealed = AESGCM(await self._key(key_id)).encrypt(nonce, plain, about.encode())
        return key_id, base64.b64encode(nonce + sealed).decode()

    async def unseal(self, key_id: str, sealed: str, *, about: str) -> Secrets:
        """Decrypt what :meth:`seal` has encrypted.

        Raises:
            Corrupt: it was changed, or belongs to something else; Unavailable, StorageError: as :meth:`seal`.
        """
        key = await self._key(key_id)
        try:
            raw = base64.b64decode(sealed, validate=True)
            plain = AESGCM(key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], about.encode())
            return msgspec.json.decode(plain, type=Secrets)
        except (InvalidTag, ValueError) as error:
            raise Corrupt(
                "the secrets of a backup target in the store are not those that were put there",
                remedy="add the target again: pannier backup target rm, then add",
            ) from error

    def here(self, key_id: str) -> BackupKeyView:
        """A key, for another node.

        Raises:
            NotFound: this node does not have it. StorageError: its file cannot be read.
        """
        key = self._saved().keys.get(key_id)
        if key is None:
            raise NotFound(f"node {self._cluster.node} does not have the key {key_id[:8]}")
        return BackupKeyView(id=key_id, key=key)

    async def run(self) -> None:
        """Fetch the key that the store names before it is needed, for ever: run as a task. Whoever has it may be gone by then."""
        while True:
            try:
                if key_id := await self._records.key():
                    await self._key(key_id)
            except PannierError as error:
                log.info("backups.no-key", error=str(error))
            await asyncio.sleep(self._pace.key_look)

    async def _make(self) -> str:
        key = AESGCM.generate_key(_KEY_BITS)
        key_id = hashlib.sha256(key).hexdigest()
        await self._keep(key_id, key)  # before anything is encrypted with it
        try:
            await self._records.name_key(key_id)
        except Stale:  # another node was faster
            named = await self._records.key()
            assert named is not None
            return named
        return key_id

    async def _key(self, key_id: str) -> bytes:
        if known := self._saved().keys.get(key_id):
            return base64.b64decode(known)
        for node in self._cluster.catalog.nodes():
            if node.name == self._cluster.node or not self._cluster.catalog.is_up(node.name):
                continue
            try:
                told = await self._peers.to(node).peer_backup_key(key_id)
                key = base64.b64decode(told.key, validate=True)
            except (PannierError, OSError, ValueError) as error:
                log.info("backups.key-not-told", node=node.name, error=str(error))
                continue
            if hashlib.sha256(key).hexdigest() == key_id:
                await self._keep(key_id, key)
                return key
        raise Unavailable(
            f"no node that answers has the key to the secrets of backup targets ({key_id[:8]})",
            remedy="start the other nodes; if they are gone for good, add the targets again: pannier backup target rm, then add",
        )

    async def _keep(self, key_id: str, key: bytes) -> None:
        async with self._lock:
            saved = self._saved()
            kept = replace(saved, keys={**saved.keys, key_id: base64.b64encode(key).decode()})
            try:
                await asyncio.to_thread(self._file.write, encode(kept))
            except OSError as error:
                raise StorageError(
                    f"{self._file.path} cannot be written: {error}", remedy="see the disk"
                ) from error

    def _saved(self) -> SavedBackupKeys:
        remedy = "remove the file; the other nodes have the key"
        return read_file(self._file, SavedBackupKeys, remedy=remedy) or SavedBackupKeys()
