"""Freezing containers while it is not known whether this node still holds their volume.

The kernel's freezer freezes a control group as a whole: from that moment none of the group's threads
runs an instruction of its own, and a thread inside a system call stops when the call ends. For a node
that takes the volume over this is as good as SIGKILL, but it can be undone.

The engine uses the container's own group, too: whoever unpauses a container thaws that group. So its
processes are moved into a group of ours inside it, which is frozen by itself, and are moved back in the
end. Groups that the container has made are frozen where they are. The container's own group is frozen
as well: then the engine starts no further process in it, and refuses to pause it. A container that a
person had paused before is not thawed in the end.

The frozen groups are listed in a file on tmpfs, which is written before a group is frozen. A daemon that
is started again thus knows which groups to thaw, and leaves alone those that a person has paused.
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

from pannier.agent.cgroup import V1, V2, Cgroup
from pannier.agent.usage import User
from pannier.core.errors import PannierError
from pannier.core.record import Record
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile

log = structlog.get_logger(__name__)

_HOLD = "pannier-hold"
"""Our group in a container's own."""


class Freezer(ABC):
    """Freezes and thaws containers."""

    @abstractmethod
    def freeze(self, volume_id: str, users: Sequence[User]) -> list[User]:
        """Freeze the containers of ``users``, so that nobody else can thaw them. Repeatable.

        Returns the users that cannot be frozen.
        """

    @abstractmethod
    def keep(self, volume_id: str) -> None:
        """Keep frozen what was frozen for this volume, and freeze what was added to it since.

        Killed processes can then end. To be called often: it costs less than :meth:`freeze`, which
        needs to know the users.
        """

    @abstractmethod
    def thaw(self, volume_id: str) -> None:
        """Thaw what was frozen for this volume, unless another one needs it frozen, too. Repeatable."""

    @abstractmethod
    def holds(self, volume_id: str) -> bool:
        """Whether anything was frozen for this volume and not thawed since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenGroups(Record):
    """The file of :class:`CgroupFreezer`: by volume id, the files that freeze its groups."""

    groups: dict[str, list[str]] = field(default_factory=dict)


class CgroupFreezer(Freezer):
    """The freezer of this node's kernel.

    Args:
        file: where frozen groups are kept. One that cannot be read counts as empty.
        root: where control groups are mounted.
        proc: the process file system.
    """

    def __init__(
        self, file: StateFile, *, root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")
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
            done: set[Cgroup] = set()
            return [user for user in users if not self._freeze(volume_id, user, done)]

    def keep(self, volume_id: str) -> None:
        """See :meth:`Freezer.keep`."""
        with self._lock:
            files = self._frozen.get(volume_id, [])
            groups = [Cgroup.of(file) for file in files]
            for group in [group.parent for group in groups if group.folder.name == _HOLD]:
                try:
                    # The engine takes a frozen container for paused, even if its processes have ended.
                    if group.is_empty():
                        below = [file for file in files if Path(file).is_relative_to(group.folder)]
                        self._release(volume_id, below)
                    else:
                        self._hold(volume_id, group)
                except OSError as error:  # the next freeze finds its users, and they are killed
                    log.warning("container.not-kept", group=str(group.folder), error=str(error))

    def thaw(self, volume_id: str) -> None:
        """See :meth:`Freezer.thaw`."""
        with self._lock:
            self._release(volume_id, self._frozen.get(volume_id, []))

    def holds(self, volume_id: str) -> bool:
        """See :meth:`Freezer.holds`."""
        return volume_id in self._frozen

    def _release(self, volume_id: str, files: Sequence[str]) -> None:
        """Thaw some of what was frozen for a volume, unless another one needs it frozen, too."""
        if not files:
            return
        left = [file for file in self._frozen[volume_id] if file not in files]
        if left:
            self._frozen[volume_id] = left
        else:
            del self._frozen[volume_id]
        ours = set(files) - self._all()
        # A container's own group comes after those in it, so that all of it goes on at once.
        for file in sorted(ours, key=lambda file: -file.count("/")):
            with suppress(OSError):  # it has ended
                _let_go(Cgroup.of(file))
        try:
            self._save(self._frozen)
        except OSError as error:  # a later run thaws them once more: no harm
            log.warning("frozen containers not written", error=str(error))

    def _freeze(self, volume_id: str, user: User, done: set[Cgroup]) -> bool:
        """Whether the user's container is frozen now; the groups in ``done`` are."""
        try:
            group = self._group_of(user)
            if group is None:
                return False
            if group not in done:
                self._hold(volume_id, group)
                done.add(group)
        except OSError as error:
            if not os.path.exists(f"{self._proc}/{user.pid}"):
                return True  # it has ended meanwhile
            log.warning("container.not-frozen", pid=user.pid, error=str(error))
            return False
        return True

    def _hold(self, volume_id: str, group: Cgroup) -> None:
        """Freeze a container's group and all in it, each so that it stays frozen by itself."""
        hold = group.child(_HOLD)
        self._stop(volume_id, group, and_know=hold)
        if group.processes():
            hold.folder.mkdir(exist_ok=True)
            hold.freeze()
            hold.take_all(group)
        for child in group.children():
            if child != hold:
                self._stop(volume_id, child)
        self._stop(volume_id, group)  # a person may just have unpaused it
        hold.let_die()

    def _stop(self, volume_id: str, group: Cgroup, *, and_know: Cgroup | None = None) -> None:
        """Freeze one group, unless somebody else has; ``and_know`` is noted too, to be thawed in the end."""
        ours = group.is_thawed() or group.file in self._all()
        new = [group] if ours else []
        self._remember(volume_id, [*new, and_know] if and_know else new)
        if ours:
            group.freeze()

    def _all(self) -> set[str]:
        return {file for files in self._frozen.values() for file in files}

    def _group_of(self, user: User) -> Cgroup | None:
        """The group of a user's container, without ours; None where there is none to freeze."""
        if user.container is None:
            return None
        theirs, ours = self._paths(user.pid), self._paths(os.getpid())
        for base, key, form in ((self._v1, "freezer", V1), (self._v2, "", V2)):
            path = _of_container(theirs.get(key, ""), user.container)
            if base is None or path is None or _contains(path, ours.get(key, "")):
                continue
            if (base / path / form).exists():
                return Cgroup(base / path, form)
        return None

    def _paths(self, pid: int) -> dict[str, str]:
        """A process's control groups by controller; that of version 2 under an empty name."""
        found = {}
        for line in (self._proc / str(pid) / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            found.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
        return found

    def _remember(self, volume_id: str, groups: Sequence[Cgroup]) -> None:
        files = self._frozen.get(volume_id, [])
        new = [group.file for group in groups if group.file not in files]
        if new:
            frozen = {**self._frozen, volume_id: [*files, *new]}
            self._save(frozen)
            self._frozen = frozen

    def _load(self) -> FrozenGroups:
        remedy = "what stands still must be let go by hand: see pannier doctor"
        try:
            saved = read_file(self._file, FrozenGroups, remedy=remedy)
        except PannierError as error:
            log.warning("frozen containers not readable", error=str(error))
            saved = None
        return saved or FrozenGroups()

    def _save(self, frozen: dict[str, list[str]]) -> None:
        self._file.write(encode(replace(self._saved, groups=frozen)))


def _let_go(group: Cgroup) -> None:
    """Thaw a group. A group of ours is emptied into the container's own and removed instead."""
    if group.folder.name != _HOLD:
        group.thaw()
        return
    group.let_die()
    try:
        group.parent.take_all(group)
        group.folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("container.not-moved-back", group=str(group.folder), error=str(error))
        group.thaw()


def _is_v2(at: Path) -> bool:
    return (at / "cgroup.procs").exists() and (at / "cgroup.controllers").exists()


def _of_container(path: str, container: str) -> str | None:
    """The part of a group's path that ends with the container's own group."""
    found = re.match(rf"(?:.*?/)?[^/]*{container}[^/]*", path)
    return found[0] if found else None


def _contains(group: str, path: str) -> bool:
    return path == group or path.startswith(f"{group}/")
