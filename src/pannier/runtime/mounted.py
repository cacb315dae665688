"""Where directories lie: the device, and the path inside its file system, whatever they are mounted at."""

from __future__ import annotations

import os
import re

Place = tuple[str, str]
"""A directory or file as all its mounts show it: ``major:minor`` of the file system, and the path inside it."""

_ESCAPE = re.compile(r"\\([0-7]{3})")


class HostMount:
    """A line of /proc/self/mountinfo: what is at ``point``."""

    __slots__ = ("ident", "place", "point")

    def __init__(self, line: str) -> None:
        words = line.split(" ", 5)
        self.ident = int(words[0])
        self.place: Place = words[2], _unescaped(words[3])
        self.point = _unescaped(words[4])


class HostMounts:
    """The mounts of this process's namespace, as they were read last."""

    def __init__(self) -> None:
        self._read()

    def _read(self) -> None:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            self.all = [HostMount(line) for line in file]
        self._by_id = {mount.ident: mount for mount in self.all}

    def at(self, path: str) -> tuple[str, Place]:
        """The real path of ``path``, and its place. Only the kernel can tell which of several mounts it is in.

        Raises:
            FileNotFoundError: nothing is there.
            OSError: it cannot be looked at.
            LookupError: its mount is none of this namespace.
        """
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            real = os.readlink(f"/proc/self/fd/{fd}")
            with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
                (ident,) = (line.split()[1] for line in file if line.startswith("mnt_id:"))
        finally:
            os.close(fd)
        if (
            int(ident) not in self._by_id
        ):  # it came just now, as one that is mounted when it is looked at
            self._read()
        mount = self._by_id[int(ident)]
        device, root = mount.place
        rest = below(real, mount.point)
        if rest is None:
            raise LookupError(
                f"{real} is not below {mount.point}, where its file system is mounted"
            )
        return real, (device, root.rstrip("/") + rest or "/")

    def under(self, real: str) -> list[HostMount]:
        """What is mounted below a directory; what is mounted at itself is not among it."""
        return [mount for mount in self.all if below(mount.point, real)]


def below(path: str, top: str) -> str | None:
    """The part of ``path`` under ``top``: empty or beginning with ``/``; None where it is not."""
    if top == "/":
        return "" if path == "/" else path
    if path == top:
        return ""
    return path[len(top) :] if path.startswith(top + "/") else None


def inside(place: Place, tree: Place) -> bool:
    """Whether ``place`` is ``tree`` or in it."""
    return place[0] == tree[0] and below(place[1], tree[1]) is not None


def _unescaped(field: str) -> str:
    return _ESCAPE.sub(lambda code: chr(int(code[1], 8)), field) if "\\" in field else field
