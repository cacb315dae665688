"""What the Docker volume plugin may ask of a node.

The plugin passes on the text of any :class:`~pannier.core.errors.PannierError`; other exceptions are internal
errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerVolume:
    """A volume as Docker's Get and List answer it."""

    name: str
    mountpoint: str
    created_at: str
    status: dict[str, Any]


class DockerVolumes(Protocol):
    """The Docker volume plugin's use cases on this node.

    A method that must ask another node also raises what that node answers, and the errors of every
    :class:`~pannier.contract.peers.Peer`. A method without ``Raises:`` raises nothing.
    """

    async def create(self, name: str, options: Mapping[str, str]) -> None:
        """Make the volume, or do nothing where it exists and ``options`` ask for nothing else.

        Raises:
            InvalidInput: the name or an option is not valid.
            AlreadyExists: the volume exists, and its options are others.
            Conflict: no node can take the volume or one of its copies, or a node has data of a volume
                of this name that the store does not know; NotHolder where it has no such driver.
            StoreUnavailable: it was not made: the store does not answer, or is not this cluster's.
            OutcomeUnknown: it may have been made.
            StorageError: the node's pool is missing, full or damaged, or the store's record is.
        """
        ...

    async def remove(self, name: str) -> None:
        """Move the volume to the trash; refused while it is in use anywhere.

        Raises:
            VolumeNotFound: there is no such volume.
            VolumeInUse: a container or a process uses it.
            Stale: it was changed meanwhile.
            Conflict: it is on its way to another node, or its holder has left the cluster.
            PeerUnavailable: its holder does not answer.
            StoreUnavailable: it was not removed.
            OutcomeUnknown: it may have been removed.
            StorageError: the holder's pool is missing or damaged, or the store's record is.
        """
        ...

    async def mount(self, name: str, mount_id: str) -> Path:
        """Make this node the holder (waiting for a hand-over), mount, and return the path.

        Raises:
            VolumeNotFound: there is no such volume.
            NotHolder: this node has no driver for it.
            Conflict: it asks for durability=fsync, and this node's engine cannot hold sync calls; or
                something else is mounted at its path.
            VolumeInUse: a process on this node uses what is mounted at its path.
            InvalidInput: Docker's configuration file cannot be read while the engine does not answer.
            DeadlineExceeded: it is still in use elsewhere, or on its way, at the end of the wait.
            PeerUnavailable: its holder does not answer, and no copy can take over.
            Unavailable: what is needed was not available for too long; StoreUnavailable also where
                the volume is not known here.
            OutcomeUnknown: the store was asked for a change and did not answer.
            StorageError: this node's pool or disk, the volume's data or its record cannot be used.
            OSError: pannier-runtime cannot be told of it.
            PannierError: what else ended the hand-over or the takeover.
        """
        ...

    async def unmount(self, name: str, mount_id: str) -> None:
        """Forget a use. Repeated and unknown ids are no error."""
        ...

    async def abandon(self, name: str, mount_id: str) -> None:
        """The engine hung up before it got the answer to its Mount: do not count that use."""
        ...

    def get(self, name: str) -> DockerVolume:
        """One volume, from memory.

        Raises:
            VolumeNotFound: it is not known here.
        """
        ...

    def list(self) -> list[DockerVolume]:
        """All volumes, from memory."""
        ...
