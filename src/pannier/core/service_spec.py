"""A Swarm service's spec as the engine has it, with other tasks or another mount. All else in it stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pannier.core.errors import Conflict
from pannier.core.importing import ImportSource, SourceKind

Spec = Mapping[str, Any]
"""As the engine's API names its fields. A change must send all of it back."""


@dataclass(frozen=True, slots=True)
class MountOf:
    """Finds the mounts of what is imported.

    Attributes:
        places: the paths, for a directory; the name, for a local volume.
    """

    source: ImportSource
    places: frozenset[str]

    def fits(self, mount: Mapping[str, Any]) -> bool:
        """Whether a mount of a spec is one of it."""
        if mount.get("Source") not in self.places:
            return False
        if self.source.kind is SourceKind.DIRECTORY:
            return mount.get("Type") == "bind"
        driver = ((mount.get("VolumeOptions") or {}).get("DriverConfig") or {}).get(
            "Name"
        ) or "local"
        return mount.get("Type") == "volume" and driver == "local"


def with_replicas(spec: Spec, replicas: int) -> Spec:
    """The same service with so many tasks. It is a replicated one."""
    mode = {**spec["Mode"], "Replicated": {"Replicas": replicas}}
    return {**spec, "Mode": mode}


def with_volume(spec: Spec, old: MountOf, volume: str) -> Spec:
    """The same service with a volume of ours in place of what was imported, wherever its tasks mount that.

    Raises:
        Conflict: they do not mount it.
    """
    mounts = _mounts(spec)
    if not any(map(old.fits, mounts)):
        raise Conflict(
            f"service {spec['Name']} does not mount {old.source}",
            remedy=f"see its mounts: docker service inspect --pretty {spec['Name']}",
        )
    return _with_mounts(spec, [_ours(each, volume) if old.fits(each) else each for each in mounts])


def with_mounts_of(spec: Spec, former: Spec) -> Spec:
    """The same service with the mounts that it had."""
    return _with_mounts(spec, _mounts(former))


def _ours(mount: Mapping[str, Any], volume: str) -> dict[str, Any]:
    options = mount.get("VolumeOptions") or {}
    kept = {key: value for key, value in options.items() if key in ("NoCopy", "Subpath")}
    made = {key: value for key, value in mount.items() if key in ("Target", "ReadOnly")}
    return {
        **made,
        "Type": "volume",
        "Source": volume,
        "VolumeOptions": {**kept, "DriverConfig": {"Name": "pannier"}},
    }


def _mounts(spec: Spec) -> list[Any]:
    return list(spec["TaskTemplate"]["ContainerSpec"].get("Mounts") or [])


def _with_mounts(spec: Spec, mounts: list[Any]) -> Spec:
    task = spec["TaskTemplate"]
    container = {**task["ContainerSpec"], "Mounts": mounts}
    return {**spec, "TaskTemplate": {**task, "ContainerSpec": container}}
