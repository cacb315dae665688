"""Containers stand still while it is not known whether this node still holds their volume.

The kernel's freezer does it, for a control group as a whole: from the moment it is told, none of the
group's threads runs an instruction of its own, and a thread inside a system call stops at its end. That is as good
as SIGKILL for whoever is about to take the volume over, and, unlike it, can be taken back.

Both of the kernel's forms are known: the ``freezer`` controller of control groups version 1, and
``cgroup.freeze`` of version 2. Which groups are frozen here is kept in a file on tmpfs, written
first: a daemon that is started again knows which ones to let go on, and leaves alone those that a
person has paused.
"""

from __future__ import annotations

import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from pannier.agent.usage import User
from pannier.core.errors import PannierError
from pannier.core.record import Record
from pannier.host.records import encode, read_file

log = structlog.get_logger(__name__)

_V1 = ("freezer.state", "FROZEN", "THAWED")
_V2 = ("cgroup.freeze", "1", "0")


class Freezer(ABC):
    """Makes containers stand still, and lets them go on."""

    @abstractmethod
    def freeze(self, volume_id: str, users: Sequence[User]) -> list[User]:
        """Freeze the containers of ``users``. Returns those users that this is not possible for."""

    @abstractmethod
    def thaw(self, volume_id: str) -> None:
        """Let go on what was frozen for this volume, and for no other one. Repeatable."""

    @abstractmethod
    def holds(self, volume_id: str) -> bool:
        """Whether anything was frozen for this volume and not thawed since."""


@dataclass(frozen=True, slots=True)
class _Group:
    """A control group that can be frozen.

    Attributes:
        file: tells whether it is frozen, and changes it.
    """

    file: str
    frozen: str
    thawed: str

    def is_thawed(self) -> bool:
        return Path(self.file).read_text().strip() == self.thawed


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenGroups(Record):
    """The file of :class:`CgroupFreezer`: by volume id, the files that freeze groups."""

    groups: dict[str, list[str]] = field(default_factory=dict)


class CgroupFreezer(Freezer):
    """The freezer of this node's kernel.

    Args:
        file: where frozen groups are kept. One that cannot be read counts as empty.
        root: where control groups are mounted.
        proc: the process file system.
    """

    def __init__(
        self, file: Path, *, root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")
    ) -> None:
        self._file = file
        self._proc = proc
        self._v1 = root / "freezer"
        self._v2 = next((at for at in (root, root / "unified") if _is_v2(at)), None)
        self._saved = self._load()
        self._frozen = self._saved.groups
        self._lock = threading.Lock()

    def freeze(self, volume_id: str, users: Sequence[User]) -> list[User]:
        """See :meth:`Freezer.freeze`: not possible for processes in no container."""
        with self._lock:
            return [user for user in users if not self._freeze(volume_id, user)]

    def thaw(self, volume_id: str) -> None:
        """See :meth:`Freezer.thaw`."""
        with self._lock:
            files = self._frozen.pop(volume_id, [])
            for file in set(files) - self._all():
                with suppress(OSError):  # it has ended
                    Path(file).write_text(_V1[2] if file.endswith(_V1[0]) else _V2[2])
            if files:
                try:
                    self._save()
                except OSError as error:  # a later run thaws them once more: no harm
                    log.warning("frozen containers not written", error=str(error))

    def holds(self, volume_id: str) -> bool:
        """See :meth:`Freezer.holds`."""
        return volume_id in self._frozen

    def _freeze(self, volume_id: str, user: User) -> bool:
        try:
            group = self._group_of(user)
            if group is None:
                return False
            if group.is_thawed() or group.file in self._all():
                self._remember(volume_id, group)
                Path(group.file).write_text(group.frozen)
        except OSError as error:
            if not os.path.exists(f"{self._proc}/{user.pid}"):
                return True  # it has ended meanwhile
            log.warning("container.not-frozen", pid=user.pid, error=str(error))
            return False
        return True

    def _all(self) -> set[str]:
        return {file for files in self._frozen.values() for file in files}

    def _group_of(self, user: User) -> _Group | None:
        """The group of a user's container, without ours; None where there is none to freeze."""
        if user.container is None:
            return None
        theirs, ours = self._paths(user.pid), self._paths(os.getpid())
        for base, key, form in ((self._v1, "freezer", _V1), (self._v2, "", _V2)):
            path = _of_container(theirs.get(key, ""), user.container)
            if base is None or path is None or _contains(path, ours.get(key, "")):
                continue
            if (base / path / form[0]).exists():
                return _Group(str(base / path / form[0]), *form[1:])
        return None

    def _paths(self, pid: int) -> dict[str, str]:
        """A process's control groups: by controller in version 1, and by nothing in version 2."""
        found = {}
        for line in (self._proc / str(pid) / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            found.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
        return found

    def _remember(self, volume_id: str, group: _Group) -> None:
        files = self._frozen.setdefault(volume_id, [])
        if group.file not in files:
            files.append(group.file)
            self._save()

    def _load(self) -> FrozenGroups:
        remedy = "what stands still must be let go by hand: see pannier doctor"
        try:
            saved = read_file(self._file, FrozenGroups, remedy=remedy)
        except PannierError as error:
            log.warning("frozen containers not readable", error=str(error))
            saved = None
        return saved or FrozenGroups()

    def _save(self) -> None:
        new = self._file.with_name(f"{self._file.name}.new")
        new.write_bytes(encode(replace(self._saved, groups=self._frozen)))
        new.replace(self._file)


def _is_v2(at: Path) -> bool:
    return (at / "cgroup.procs").exists() and (at / "cgroup.controllers").exists()


def _of_container(path: str, container: str) -> str | None:
    """The part of a group's path that ends with the container's own group."""
    found = re.match(rf"(?:.*?/)?[^/]*{container}[^/]*", path)
    return found[0] if found else None


def _contains(group: str, path: str) -> bool:
    return path == group or path.startswith(f"{group}/")
