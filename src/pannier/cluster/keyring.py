"""The cluster's keys that this node has in memory, and the keys of volumes that they open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pannier.cluster.catalog import Catalog
from pannier.cluster.sealing import id_of, seal, unseal
from pannier.core.encryption import SealedKey, about_volume
from pannier.core.errors import Corrupt, KeyMissing
from pannier.core.volume import Volume


class Keyring:
    """Keys by their ids. Any thread may ask; only the event loop adds."""

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}

    def add(self, key: bytes) -> str:
        """Have a key. Returns its id."""
        found = id_of(key)
        self._keys = {**self._keys, found: key}
        return found

    def get(self, key_id: str) -> bytes | None:
        """A key; None where it is not here."""
        return self._keys.get(key_id)

    def all(self) -> Mapping[str, bytes]:
        """All that are here, by their ids."""
        return self._keys


class RecordedKeys:
    """The keys of volumes, by what this node remembers of their records."""

    def __init__(self, *, node: str, catalog: Catalog, keyring: Keyring) -> None:
        self._node = node
        self._catalog = catalog
        self._keyring = keyring
        self._begun: dict[str, Volume] = {}

    @contextmanager
    def begun(self, volume: Volume) -> Iterator[None]:
        """Know a volume that has no record yet, for the time of the block."""
        self._begun[volume.id] = volume
        try:
            yield
        finally:
            del self._begun[volume.id]

    def key_of(self, volume: str) -> bytes | None:
        """See :class:`~pannier.storage.keys.VolumeKeys`. Of a volume without a record there is no key."""
        record = self._begun.get(volume) or self._recorded(volume)
        return None if record is None else self.key_in(record)

    def key_in(self, volume: Volume) -> bytes | None:
        """The key in a volume's record; None for a volume that is not encrypted.

        Raises:
            As :meth:`key_of`.
        """
        if volume.key is None:
            if volume.spec.encrypted:
                raise _not_its_key(volume)
            return None
        key = self._keyring.get(volume.key.by)
        if key is None:
            raise KeyMissing(
                f"volume {volume.name} is encrypted, and node {self._node} does not have the cluster's key "
                f"{volume.key.by[:8]} that opens it",
                remedy="start another node that has it, or give the passphrase: pannier key unlock; "
                "see pannier key show",
            )
        about = about_volume(self._catalog.cluster or "", volume.id)
        return unseal(key, volume.key.sealed, about=about, otherwise=_not_its_key(volume))

    def sealed(self, key: bytes, volume_id: str, *, by: str) -> SealedKey:
        """A volume's key, as its record has it.

        Args:
            by: the id of a key of the cluster's that is here.
        """
        cluster_key = self._keyring.get(by)
        assert cluster_key is not None, "whoever names it has it"
        about = about_volume(self._catalog.cluster or "", volume_id)
        return SealedKey(by=by, sealed=seal(cluster_key, key, about=about))

    def _recorded(self, volume_id: str) -> Volume | None:
        known = self._catalog.volume(volume_id.rpartition(".")[0])
        if known is not None and known.id == volume_id:
            return known
        return self._catalog.removed(volume_id)


def _not_its_key(volume: Volume) -> Corrupt:
    return Corrupt(
        f"volume {volume.name} is encrypted, and its key in the store is not the one that was put there",
        remedy="restore the store from a snapshot; the volume's data is on the nodes",
    )
