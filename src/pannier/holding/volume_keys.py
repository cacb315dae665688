"""The keys of encrypted volumes: made with a volume, taken over by its clones, and sealed with the cluster's key."""

from __future__ import annotations

import secrets as random
from contextlib import AbstractContextManager

from pannier.cluster.keyring import RecordedKeys
from pannier.core.encryption import SealedKey
from pannier.core.volume import Volume
from pannier.holding.cluster_keys import ClusterKeys

KEY_BYTES = 64
"""What the kernel takes for AES-256-XTS (:mod:`pannier.storage.image.fscrypt`)."""


class KeysOfVolumes:
    """Makes and seals them."""

    def __init__(self, *, recorded: RecordedKeys, cluster_keys: ClusterKeys) -> None:
        self._recorded = recorded
        self._cluster_keys = cluster_keys

    def begun(self, volume: Volume) -> AbstractContextManager[None]:
        """Know a volume that has no record yet, for the time of the block: its driver can encrypt it, and mount it."""
        return self._recorded.begun(volume)

    async def new(self, volume_id: str) -> SealedKey:
        """A key for a new volume.

        Raises:
            As :meth:`ClusterKeys.current`.
        """
        return await self._seal(random.token_bytes(KEY_BYTES), volume_id)

    async def of_clone(self, volume: Volume, clone_id: str) -> SealedKey | None:
        """The key of a volume for a clone of it, which shares its bytes; None where it is not encrypted.

        Raises:
            As :meth:`ClusterKeys.current`; Corrupt: the key on record is not the one that was put there.
        """
        if volume.key is None:
            return None
        await self._cluster_keys.need(volume.key.by)
        key = self._recorded.key_in(volume)
        assert key is not None
        return await self._seal(key, clone_id)

    async def sealed_anew(self, volume: Volume, *, by: str) -> SealedKey:
        """The key of an encrypted volume, sealed with the cluster's key ``by``, which is here.

        Raises:
            KeyMissing: the one that it is sealed with is nowhere; Corrupt: as :meth:`of_clone`.
        """
        assert volume.key is not None
        await self._cluster_keys.need(by)
        await self._cluster_keys.need(volume.key.by)
        key = self._recorded.key_in(volume)
        assert key is not None
        return self._recorded.sealed(key, volume.id, by=by)

    async def _seal(self, key: bytes, volume_id: str) -> SealedKey:
        by = await self._cluster_keys.current()
        return self._recorded.sealed(key, volume_id, by=by)
