"""Where a driver gets the keys of encrypted volumes from."""

from __future__ import annotations

from typing import Protocol


class VolumeKeys(Protocol):
    """The keys of volumes, in memory. It is asked from any thread, and waits for nothing."""

    def key_of(self, volume: str) -> bytes | None:
        """The key with which the files of a volume are encrypted; None for one that is not.

        Raises:
            KeyMissing: they are, and the key is not here. Corrupt: the key on record is not the one that was put there.
        """
        ...


class NoKeys:
    """For a driver that keeps nothing encrypted. It refuses an image that is."""

    def key_of(self, volume: str) -> bytes | None:
        """See :class:`VolumeKeys`."""
        del volume
        return None
