"""The cluster's key, which encrypts the secrets of backup targets and the keys of volumes: nodes have it, and the store does not.

The first node that needs it makes it, and names it in the store. The others ask a node that has it, over the connection on
which both prove that they belong to the cluster (docs/adr/0006-secrets-of-backups.md, 0007-encrypted-volumes.md). A node has
its keys in memory, and in a file unless they are locked with a passphrase. Keys are never forgotten: an older record may
need them.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import structlog

from pannier.cluster.catalog import Changed
from pannier.cluster.cluster import Cluster
from pannier.cluster.key_records import KeyRecords
from pannier.cluster.keyring import Keyring
from pannier.cluster.passphrases import lock, unlocked
from pannier.cluster.registry import Versioned
from pannier.cluster.sealing import id_of, new_key, seal, unseal
from pannier.contract.peers import Peers
from pannier.contract.views import BackupKeyView, FindingView
from pannier.contract.words import Level
from pannier.core.encryption import LOCKED_FORMAT, ClusterKey, LockedKeys
from pannier.core.errors import (
    Conflict,
    Corrupt,
    KeyMissing,
    NotFound,
    OutcomeUnknown,
    PannierError,
    Stale,
    StorageError,
    Unavailable,
)
from pannier.core.pace import HoldingPace
from pannier.core.record import Record
from pannier.core.volume import Volume
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedClusterKeys(Record):
    """The file of :class:`ClusterKeys`: keys by their ids, base64; and what the store had last of keys that are locked."""

    keys: dict[str, str] = field(default_factory=dict, repr=False)
    locked: LockedKeys | None = None


class ClusterKeys:
    """Keeps ``keyring`` so that it has what this node needs. ``file`` is on this node's disk, for root only."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        records: KeyRecords,
        keyring: Keyring,
        peers: Peers,
        file: StateFile,
        pace: HoldingPace,
    ) -> None:
        self._cluster = cluster
        self._records = records
        self._keyring = keyring
        self._peers = peers
        self._file = file
        self._pace = pace
        self._lock = asyncio.Lock()
        """One change of the file at a time."""
        self._in_memory: frozenset[str] = frozenset()
        """Ids of keys that this run made to be locked, whatever became of that."""
        self._wake = asyncio.Event()
        self._load()

    def _load(self) -> None:
        """Read the file. What cannot be read is told, and asked of the other nodes."""
        try:
            for text in self._saved().keys.values():
                self._keyring.add(base64.b64decode(text, validate=True))
        except (PannierError, ValueError) as error:
            log.error("keys.not-read", file=str(self._file.path), error=str(error))

    async def current(self) -> str:
        """The id of the key that encrypts what is new. It is made where there is none, and is here then.

        Raises:
            KeyMissing: no node that answers has it; StorageError: a new one cannot be kept; StoreUnavailable; OutcomeUnknown.
        """
        found = await self._records.current()
        if found is None:
            await self._make()
            found = await self._records.current()
            assert found is not None
        await self.need(found.record.id)
        return found.record.id

    async def seal(self, plain: bytes, *, about: str) -> tuple[str, str]:
        """Encrypt a secret.

        Args:
            about: what it belongs to; it can be decrypted together with the same text only.

        Returns:
            The id of the key, and what the store keeps.

        Raises:
            As :meth:`current`.
        """
        found = await self.current()
        return found, seal(await self.need(found), plain, about=about)

    async def unseal(self, key_id: str, sealed: str, *, about: str, otherwise: Corrupt) -> bytes:
        """Decrypt what :meth:`seal` has encrypted.

        Raises:
            Corrupt: ``otherwise``: it was changed, or belongs to something else. KeyMissing: as :meth:`need`.
        """
        return unseal(await self.need(key_id), sealed, about=about, otherwise=otherwise)

    def here(self, key_id: str) -> BackupKeyView:
        """A key, for another node.

        Raises:
            NotFound: this node does not have it.
        """
        key = self._keyring.get(key_id)
        if key is None:
            raise NotFound(f"node {self._cluster.node} does not have the key {key_id[:8]}")
        return BackupKeyView(id=key_id, key=base64.b64encode(key).decode())

    async def need(self, key_id: str) -> bytes:
        """A key: from memory, or of another node.

        Raises:
            KeyMissing: no node that answers has it.
        """
        known = self._keyring.get(key_id)
        if known is not None:
            return known
        for node in self._cluster.catalog.nodes():
            if node.name == self._cluster.node or not self._cluster.catalog.is_up(node.name):
                continue
            try:
                told = await self._peers.to(node).peer_backup_key(key_id)
                key = base64.b64decode(told.key, validate=True)
            except (PannierError, OSError, ValueError) as error:
                log.info("keys.not-told", node=node.name, error=str(error))
                continue
            if id_of(key) == key_id:
                await self._have(key)
                return key
        raise KeyMissing(
            f"no node that answers has the cluster's key {key_id[:8]}, which encrypts volumes and the secrets of backup targets",
            remedy="start the other nodes, or give the passphrase: pannier key unlock; if it is gone for good, add the "
            "backup targets again: pannier backup target rm, then add",
        )

    async def _have(self, key: bytes) -> None:
        """Have a key that another node has. What cannot be kept now is at the next look."""
        try:
            await self.add([key])
        except PannierError as error:
            log.warning("keys.not-kept", error=str(error))

    async def add(self, keys: Iterable[bytes]) -> None:
        """Have keys, and keep them in the file, but for what is locked.

        Raises:
            StorageError: they cannot be kept; StoreUnavailable, OutcomeUnknown: whether they may be is not known.
        """
        for key in keys:
            self._keyring.add(key)
        found = await self._records.current()
        await self._keep(found.record if found is not None else None)

    async def take(self, key_id: str) -> None:
        """Another node is about to use a key: have it, and keep it.

        Raises:
            As :meth:`need` and :meth:`add`.
        """
        await self.add([await self.need(key_id)])

    # -- another one, and passphrases -----------------------------------------------------------

    async def named(self) -> Versioned[ClusterKey] | None:
        """Which key encrypts what is new, by the store; None where nothing was encrypted yet."""
        return await self._records.current()

    def missing(self, key: ClusterKey | None) -> frozenset[str]:
        """The ids of the keys that volumes need and that are not here; also of that one, and of what is locked with it."""
        wanted = set(self.wanted())
        if key is not None:
            wanted |= {key.id, *(key.locked.ids if key.locked is not None else ())}
        return frozenset(wanted - self._keyring.all().keys())

    async def unlock(self, passphrase: str) -> int:
        """Have the keys that are locked. Returns how many there are.

        Raises:
            Denied: it is another passphrase. Conflict: no key is locked.
        """
        locked = await self._locked()
        if locked is None:
            raise Conflict(
                "the cluster's keys are not locked with a passphrase",
                remedy="a node that lacks one asks the others: start one that has it; see pannier key show",
            )
        keys = await asyncio.to_thread(unlocked, locked, passphrase)
        for key in keys:
            self._keyring.add(key)
        self._wake.set()
        return len(keys)

    async def _locked(self) -> LockedKeys | None:
        """What is locked, by the store, or by what it had last while it does not answer, or has lost it."""
        try:
            found = await self._records.current()
        except (Unavailable, OutcomeUnknown):
            found = None
        return found.record.locked if found is not None else self._saved().locked

    async def name_another(
        self,
        former: Versioned[ClusterKey],
        *,
        passphrase: str,
        prepare: Callable[[str], Awaitable[None]] | None,
    ) -> ClusterKey:
        """Name a new key.

        Args:
            former: the record of the present one. All keys that are locked there must be here.
            passphrase: locks the new key and all others that are here; empty: they are kept in files.
            prepare: called with the new key's id before it is named. It is on this node's disk then, unless it is locked.

        Raises:
            KeyMissing: one that is locked is not here. Stale: somebody was faster. StorageError: it cannot be kept.
            StoreUnavailable; OutcomeUnknown: it may have been named.
        """
        for wanted in former.record.locked.ids if former.record.locked is not None else ():
            await self.need(wanted)
        made = new_key()
        new = replace(former.record, id=id_of(made), locked=None, format=1)
        # What is locked is on no disk, not even before the store says so.
        self._in_memory = self._in_memory | {new.id} if passphrase else frozenset()
        self._keyring.add(made)
        if passphrase:
            all_keys = list(self._keyring.all().values())
            locked = await asyncio.to_thread(lock, all_keys, passphrase)
            new = replace(new, locked=locked, format=LOCKED_FORMAT)
        else:
            await self._keep(former.record)
        if prepare is not None:
            await prepare(new.id)
        await self._records.name(new, expect=former.revision)
        await self._keep(new)
        return new

    async def run(self) -> None:
        """Fetch what is needed before it is needed, for ever: run as a task. Whoever has it may be gone by then."""
        while True:
            self._wake.clear()
            try:
                await self._look()
            except PannierError as error:
                log.info("keys.missing", error=str(error))
            pause = self._pace.key_retry if self.missing(None) else self._pace.key_look
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    def hear(self, changed: Changed) -> None:
        """A volume's record has changed: its key may be sealed with one that is not here yet."""
        record = changed.after
        key = record.key if isinstance(record, Volume) else None
        if key is not None and self._keyring.get(key.by) is None:
            self._wake.set()

    async def _look(self) -> None:
        """Volumes come first: they are remembered also while the store does not answer."""
        for wanted in sorted(self.wanted()):
            await self.need(wanted)
        found = await self._records.current()
        if found is not None:
            await self.need(found.record.id)
            await self._keep(found.record)

    def wanted(self) -> frozenset[str]:
        """The ids of the keys that volumes need, as far as this node remembers."""
        catalog = self._cluster.catalog
        volumes = (*catalog.volumes(), *catalog.trashed())
        return frozenset(each.key.by for each in volumes if each.key is not None)

    async def findings(self) -> AsyncIterator[FindingView]:
        """What ``pannier doctor`` says: which volumes wait for a key."""
        catalog, lacking = self._cluster.catalog, self.missing(None)
        waiting = [v.name for v in catalog.volumes() if v.key is not None and v.key.by in lacking]
        if waiting:
            yield FindingView(
                level=Level.PROBLEM,
                subject=f"cluster key on {self._cluster.node}",
                what=f"is not here, so these volumes cannot be opened on this node: {', '.join(waiting)}",
                remedy="start another node that has it, or give the passphrase: pannier key unlock",
            )

    async def _make(self) -> None:
        key = new_key()
        self._keyring.add(key)
        await self._keep(None)  # before anything is encrypted with it
        try:
            await self._records.name(ClusterKey(id=id_of(key)))
        except Stale:  # another node was faster
            log.info("keys.made-elsewhere")

    async def _keep(self, record: ClusterKey | None) -> None:
        """Bring the file in line: all keys that are here, but for those that are locked; None: the store has no record."""
        async with self._lock:
            saved = self._saved()
            locks = saved.locked if record is None else record.locked
            locked = self._in_memory.union(locks.ids if locks is not None else ())
            here = {id: base64.b64encode(key).decode() for id, key in self._keyring.all().items()}
            keys = {id: text for id, text in {**saved.keys, **here}.items() if id not in locked}
            kept = replace(saved, keys=keys, locked=locks)
            if kept == saved:
                return
            try:
                await asyncio.to_thread(self._file.write, encode(kept))
            except OSError as error:
                raise StorageError(
                    f"{self._file.path} cannot be written: {error}", remedy="see the disk"
                ) from error

    def _saved(self) -> SavedClusterKeys:
        remedy = "remove the file; the other nodes have the key"
        return read_file(self._file, SavedClusterKeys, remedy=remedy) or SavedClusterKeys()
