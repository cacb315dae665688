"""What the Docker volume plugin may ask of a node.

Each method may raise any :class:`~pannier.core.errors.PannierError`; the plugin translates it, nothing else.
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
    """The Docker volume plugin's use cases on this node."""

    async def create(self, name: str, options: Mapping[str, str]) -> None:
        """Make the volume, or do nothing where it exists and ``options`` ask for nothing else."""
        ...

    async def remove(self, name: str) -> None:
        """Move the volume to the trash; refused while it is in use anywhere."""
        ...

    async def mount(self, name: str, mount_id: str) -> Path:
        """Make this node the holder (waiting for a hand-over), mount, and return the path."""
        ...

    async def unmount(self, name: str, mount_id: str) -> None:
        """Forget a use. Repeated and unknown ids are no error."""
        ...

    async def abandon(self, name: str, mount_id: str) -> None:
        """The engine hung up before it got the answer to its Mount: do not count that use."""
        ...

    def get(self, name: str) -> DockerVolume:
        """From memory. Raises VolumeNotFound."""
        ...

    def list(self) -> list[DockerVolume]:
        """From memory."""
        ...
