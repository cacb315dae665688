"""One control group of the kernel: freezing it, and moving processes in and out.

Both versions of control groups are supported: the ``freezer`` controller of version 1, and
``cgroup.freeze`` of version 2. In both, a frozen group stays frozen whatever happens to the groups
around it, and a process that is moved from one frozen group to another does not run in between.
"""

from __future__ import annotations

import errno
import re
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

V1, V2 = "freezer.state", "cgroup.freeze"
"""The files that freeze and thaw a group."""
_WORDS = {V1: ("FROZEN", "THAWED"), V2: ("1", "0")}
_OWN = {V1: "freezer.self_freezing", V2: V2}
"""The files that show whether a group was frozen itself: "0" if not. Its parents may still be frozen."""
_MOVES = 100
"""How often a group is searched for processes to move: those not frozen yet may fork meanwhile."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A control group that can be frozen; it need not exist.

    Each method except :meth:`children`, :meth:`processes` and :meth:`is_empty` raises OSError if the
    kernel refuses.

    Attributes:
        folder: where it is mounted.
        form: :data:`V1` or :data:`V2`.
    """

    folder: Path
    form: str

    @classmethod
    def of(cls, file: str) -> Cgroup:
        """The group that a file freezes; the opposite of :attr:`file`."""
        path = Path(file)
        return cls(path.parent, path.name)

    @property
    def file(self) -> str:
        """The file that freezes it."""
        return str(self.folder / self.form)

    @property
    def parent(self) -> Cgroup:
        """The group around it."""
        return Cgroup(self.folder.parent, self.form)

    def child(self, name: str) -> Cgroup:
        """A group in it, which need not exist."""
        return Cgroup(self.folder / name, self.form)

    def children(self) -> list[Cgroup]:
        """The groups right in it; none where it is gone."""
        with suppress(OSError):
            return [self.child(entry.name) for entry in self.folder.iterdir() if entry.is_dir()]
        return []

    def is_thawed(self) -> bool:
        """Whether nobody has frozen this very group."""
        return (self.folder / _OWN[self.form]).read_text().strip() == "0"

    def freeze(self) -> None:
        """Freeze all processes in it."""
        Path(self.file).write_text(_WORDS[self.form][0])

    def thaw(self) -> None:
        """Let all in it go on, except what is in a group below that is frozen itself."""
        Path(self.file).write_text(_WORDS[self.form][1])

    def processes(self) -> list[int]:
        """The processes right in it; none where it is gone.

        Processes outside of our pid namespace read as "0" and are left out: written to the file, "0"
        would mean this process itself.
        """
        with suppress(OSError):
            pids = map(int, (self.folder / "cgroup.procs").read_text().split())
            return [pid for pid in pids if pid]
        return []

    def is_empty(self) -> bool:
        """Whether there is no process in it and in the groups below, or it is gone."""
        return not self.processes() and all(child.is_empty() for child in self.children())

    def take(self, pid: int) -> None:
        """Move a process here, with all its threads; nothing where it has ended."""
        try:
            (self.folder / "cgroup.procs").write_text(str(pid))
        except ProcessLookupError:
            return

    def take_all(self, source: Cgroup) -> None:
        """Move all processes right in ``source`` here, those that are forked meanwhile included."""
        for _ in range(_MOVES):
            pids = source.processes()
            if not pids:
                return
            for pid in pids:
                self.take(pid)
        raise OSError(errno.EBUSY, "new processes are born all the time", str(source.folder))

    def let_die(self) -> None:
        """Let killed processes end: a frozen group of version 1 would keep them until it is thawed.

        They are moved to the group around the container's, and end there without running any more.
        """
        if self.form == V1:
            for pid in self.processes():
                if _is_killed(pid):
                    self.parent.parent.take(pid)


def _is_killed(pid: int) -> bool:
    with suppress(OSError):
        pending = re.findall(
            r"(?m)^(?:Sig|Shd)Pnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text()
        )
        return any(int(mask, 16) >> (signal.SIGKILL - 1) & 1 for mask in pending)
    return False
