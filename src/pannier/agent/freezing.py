"""Containers stand still while it is not known whether this node still holds their volume.

The kernel's freezer does it, for a control group as a whole: from the moment it is told, none of the
group's threads runs an instruction of its own, and a thread inside a system call stops at its end. That is as good
as SIGKILL for whoever is about to take the volume over, and, unlike it, can be taken back.

A container's own group is its engine's, too: who unpauses a container thaws it. So what is in it is
moved into a group of ours inside of it, which is frozen by itself, and back again in the end; groups
that the container has made are frozen where they are. The container's group is frozen as well: then
an engine begins no further process in it, and refuses to pause it. One that a person had paused
before is not thawed in the end.

Which groups are frozen here is kept in a file on tmpfs, written first: a daemon that is started again
knows which ones to let go on, and leaves alone those that a person has paused.
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
    """Makes containers stand still, and lets them go on."""

    @abstractmethod
    def freeze(self, volume_id: str, users: Sequence[User]) -> list[User]:
        """Freeze the containers of ``users``, so that nobody else can let them go on. Repeatable.

        Returns those users that this is not possible for.
        """

    @abstractmethod
    def keep(self, volume_id: str) -> None:
        """See to it that what was frozen for this volume stands still, with all that came into it
        since, and that what was killed can end: to be called often. It costs less than
        :meth:`freeze`, which needs to know the users.
        """

    @abstractmethod
    def thaw(self, volume_id: str) -> None:
        """Let go on what was frozen for this volume, and for no other one. Repeatable."""

    @abstractmethod
    def holds(self, volume_id: str) -> bool:
        """Whether anything was frozen for this volume and not thawed since."""


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
                    if (
                        group.is_empty()
                    ):  # its engine takes what is frozen for paused, not for ended
                        below = [file for file in files if Path(file).is_relative_to(group.folder)]
                        self._release(volume_id, below)
                    else:
                        self._hold(volume_id, group)
                except OSError as error:  # it is seen by its users, and they are killed
                    log.warning("container.not-kept", group=str(group.folder), error=str(error))

    def thaw(self, volume_id: str) -> None:
        """See :meth:`Freezer.thaw`."""
        with self._lock:
            self._release(volume_id, self._frozen.get(volume_id, []))

    def holds(self, volume_id: str) -> bool:
        """See :meth:`Freezer.holds`."""
        return volume_id in self._frozen

    def _release(self, volume_id: str, files: Sequence[str]) -> None:
        """Thaw some of what was frozen for a volume, unless it was for another one as well."""
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
        """Whether the user's container stands still now; the groups in ``done`` do."""
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
        """Freeze one group, unless somebody else has; ``and_know`` is to be thawed in the end, too."""
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
        """A process's control groups: by controller in version 1, and by nothing in version 2."""
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
    """Thaw a group. Ours is emptied into the container's own and removed."""
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
