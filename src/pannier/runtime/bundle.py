"""What a container's bundle mounts of Pannier's: by device and place, whatever path names it."""

from __future__ import annotations

import json
import os
import re

from pannier.runtime.mounted import HostMounts, Place, below, inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOUNT_ROOT = "/var/lib/pannier/mounts"
IMAGES = "/run/pannier/images"
"""Where images are mounted, each at NAME.KEY.EPOCH; what is mounted at ``MOUNT_ROOT`` is a part of that."""
HELD = "/run/pannier/barrier/held"
CATALOG = "/var/lib/pannier/catalog.json"
DOCKER = "/var/lib/docker"

_PROPAGATING = frozenset(("shared", "rshared", "slave", "rslave"))
_OWN_FILE = re.compile(r"(/.+)/containers/[0-9a-f]{64}/(?:hostname|hosts|resolv\.conf)")
"""A file that Docker puts into each container; it tells where Docker's directory is."""


class RefusedError(Exception):
    """The container must not start."""


class BundleVolumes:
    """What a bundle mounts of Pannier's.

    Attributes:
        volumes: the held volumes of which it mounts all or a part, sorted.
        refuses: one of them has ``unheld_writes=refuse``.
        passing: it mounts a directory below which volumes are mounted, or will be: what it sees of them
            changes as they come and go.
    """

    __slots__ = ("passing", "refuses", "volumes")

    def __init__(self, volumes: list[str], *, passing: bool, refuses: bool) -> None:
        self.volumes = volumes
        self.refuses = refuses
        self.passing = passing


class _Ours:
    """Where volumes are on this machine now.

    Attributes:
        trees: place and name of each held volume that is attached, and of its mount point.
        points: the mount points on which a volume is shown whole; a copy of such a mount is no use of it.
        roots: the places of the directories in which volumes are mounted.
    """

    def __init__(self, mounts: HostMounts) -> None:
        held = frozenset(_listed(HELD))
        self.trees: list[tuple[Place, str]] = []
        self.roots: list[Place] = []
        self.points: set[str] = set()
        for top in (MOUNT_ROOT, IMAGES):
            try:
                real, (device, path) = mounts.at(top)
            except FileNotFoundError:
                continue
            self.roots.append((device, path))
            if top == MOUNT_ROOT:
                self.trees += [((device, f"{path.rstrip('/')}/{name}"), name) for name in held]
            for mount in mounts.under(real):
                word = mount.point[len(real) :].lstrip("/")
                name = word if top == MOUNT_ROOT else word.rsplit(".", 2)[0]
                self.points.add(mount.point)
                if name in held:
                    self.trees.append((mount.place, name))


def examine(config: Any) -> BundleVolumes:
    """What a bundle mounts of the held volumes.

    Args:
        config: the decoded config.json (OCI runtime specification).

    Raises:
        RefusedError: it mounts a volume that hides one of Pannier's.
        OSError, ValueError, LookupError, TypeError, AttributeError: it cannot be told.
    """
    mounts = HostMounts()
    ours = _Ours(mounts)
    volumes, passing = set[str](), False
    binds = [mount for mount in config.get("mounts") or () if _is_bind(mount)]
    shadows = _Shadows([mount["source"] for mount in binds], mounts)
    for bind in binds:
        try:
            real, place = mounts.at(bind["source"])
        except FileNotFoundError:
            continue  # runc says so
        below_it = mounts.under(real)
        own = [place, *(each.place for each in below_it if each.point not in ours.points)]
        held = {name for tree, name in ours.trees if any(inside(each, tree) for each in own)}
        volumes |= held
        seen = [place, *(each.place for each in below_it)]
        around = (*ours.roots, *(tree for tree, name in ours.trees if name not in held))
        if any(inside(each, top) for each in around for top in seen):
            propagates = not _PROPAGATING.isdisjoint(bind.get("options") or ())
            passing = passing or propagates or bool(ours.trees)
        shadows.refuse(real, place)
    refuses = any(_mark(name) == "refuse" for name in volumes)
    return BundleVolumes(sorted(volumes), passing=passing, refuses=refuses)


def _is_bind(mount: Any) -> bool:
    """Whether it shows a directory or file of this machine's."""
    options = mount.get("options") or ()
    bound = mount.get("type") == "bind" or "bind" in options or "rbind" in options
    return bound or (mount.get("source") or "").startswith("/")


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _mark(volume: str) -> str:
    """What is to be done about writes to a held volume that cannot be held; empty where its mark is just gone."""
    try:
        with open(f"{HELD}/{volume}", encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return ""


class _Shadows:
    """Docker's local volumes, of which none may have the name of a volume of Pannier's."""

    def __init__(self, sources: list[str], mounts: HostMounts) -> None:
        told = (_OWN_FILE.fullmatch(source) for source in sources)
        self._folders: list[tuple[str, Place]] = []
        for top in sorted({DOCKER, *(match[1] for match in told if match)}):
            try:
                self._folders.append(mounts.at(f"{top}/volumes"))
            except FileNotFoundError:
                continue

    def refuse(self, real: str, place: Place) -> None:
        """Raise RefusedError where this is a local volume, or a part of one, with a name of ours."""
        for folder, (device, path) in self._folders:
            rest = below(real, folder)
            if rest is None and place[0] == device:
                rest = below(place[1], path)
            name = rest.split("/")[1] if rest else ""
            if name and name in _names():
                raise RefusedError(
                    f"volume {name}: Docker has a local volume of this name here, and took that one instead of "
                    f"Pannier's. It makes one when a container names a volume without its driver while Pannier "
                    f"does not answer. What is to be done: remove this container, then "
                    f"`docker volume rm {name}` (look into {folder}/{name}/_data before), then make the container "
                    f"anew while pannierd runs"
                )


def _names() -> frozenset[str]:
    """The names of the cluster's volumes, as pannierd has saved them last."""
    try:
        with open(CATALOG, encoding="utf-8") as file:
            saved = json.load(file)
    except FileNotFoundError:
        return frozenset()
    return frozenset(volume["name"] for volume in saved["volumes"])
