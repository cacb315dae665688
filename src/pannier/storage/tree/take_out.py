"""Copying a file or a directory out of a tree that nobody writes to, to a new place on this machine.

It is made under a draft's name, and gets its own when it is complete. So what has its name is whole, also after a kill, and
nothing that was there before is ever replaced.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pannier.core.errors import AlreadyExists, InvalidInput, NotFound
from pannier.host.beneath import open_beneath
from pannier.host.files import rename_new
from pannier.storage.blocking import storage_error, told_as_storage_error
from pannier.storage.tree.build import Builder
from pannier.storage.tree.manifest import Manifest, TreeEntry
from pannier.storage.tree.walk import read_entry, remove_tree, scan

DRAFT = ".pannier-cp-"
"""What the directories begin with in which copies are made. A kill leaves one, and nothing else."""
_PARENT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class PartOfTree:
    """What is copied.

    Attributes:
        root: an open directory of the tree's root.
        path: in the tree; "/" is all of it.
        name: what all of it is called.
    """

    root: int
    path: str
    name: str

    @property
    def names(self) -> list[str]:
        """The path's parts."""
        return [part for part in self.path.split("/") if part not in ("", ".")]


def take_out(
    source: PartOfTree, directory: Path, *, note: Callable[[int], None], stop: threading.Event
) -> Path:
    """Copy a file, or a directory with all in it, into a directory of this machine; returns where it is then.

    Owners, permissions, times, extended attributes, holes, and links between files are kept. A symbolic link is copied, and
    none is followed.

    Args:
        directory: an absolute path.
        note: told how many more bytes were copied.
        stop: set when nobody waits any more.

    Raises:
        InvalidInput: a path leads out of the tree or through a symbolic link; or ``directory`` is none.
        NotFound: nothing is at the path. AlreadyExists: something is at the new place.
        StorageError, PoolFull: it cannot be read, or not written. ReadingStopped: ``stop`` was set.
    """
    name = source.names[-1] if source.names else source.name
    found = _open(source)
    try:
        target = _open_target(directory)
        try:
            _check_new(name, target, directory)
            with told_as_storage_error(f"copy {source.path!r} to {directory}"):
                _copy(source, found, name, directory, target, note=note, stop=stop)
        finally:
            os.close(target)
    finally:
        os.close(found)
    return directory / name


def _open(source: PartOfTree) -> int:
    """A descriptor of what is copied; of a link itself (O_PATH)."""
    what = f"{source.path!r}"
    path = os.fsencode("/".join(source.names) or ".")
    if ".." in source.names:
        raise _leads_out(what)
    if len(path) >= 4096:
        raise InvalidInput(f"{what[:80]}... is too long", remedy="copy a directory above it")
    try:
        return open_beneath(source.root, path, os.O_PATH | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"{what} is not there", remedy="see what is: copy a directory above it"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EXDEV):
            raise storage_error(f"find {what}", error) from error
        raise _leads_out(what) from None


def _leads_out(what: str) -> InvalidInput:
    return InvalidInput(
        f"{what} leads through a symbolic link, or out of the volume",
        remedy="write the path of the file itself, from the volume's root",
    )


def _open_target(directory: Path) -> int:
    if not directory.is_absolute() or not directory.is_dir():
        raise InvalidInput(
            f"{directory} is not the absolute path of a directory",
            remedy=f"mkdir -p {directory} on that node",
        )
    with told_as_storage_error(f"open {directory}"):
        return os.open(directory, _PARENT)


def _check_new(name: str, target: int, directory: Path) -> None:
    try:
        os.stat(name, dir_fd=target, follow_symlinks=False)
    except FileNotFoundError:
        return
    raise _exists(name, directory)


def _exists(name: str, directory: Path) -> AlreadyExists:
    return AlreadyExists(
        f"{directory / name} exists, and nothing is overwritten",
        remedy="name another directory, or move that away",
    )


def _copy(
    source: PartOfTree,
    found: int,
    name: str,
    directory: Path,
    target: int,
    *,
    note: Callable[[int], None],
    stop: threading.Event,
) -> None:
    draft = f"{DRAFT}{secrets.token_hex(4)}"
    os.mkdir(draft, 0o700, dir_fd=target)  # nobody else looks or writes there
    try:
        place = os.open(draft, _PARENT | os.O_NOFOLLOW, dir_fd=target)
        try:
            _build(source, found, name, place, note=note, stop=stop)
            try:
                rename_new(name, name, place=place, to=target)
            except FileExistsError:
                raise _exists(name, directory) from None
        finally:
            os.close(place)
    finally:
        remove_tree(directory / draft)


def _build(
    source: PartOfTree,
    found: int,
    name: str,
    place: int,
    *,
    note: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Make what was found in the open directory ``place``."""
    status = os.fstat(found)
    if stat.S_ISDIR(status.st_mode):
        os.mkdir(name, 0o700, dir_fd=place)
        base, manifest = found, scan(found, hasher=_unread)
        root = os.open(name, _PARENT | os.O_NOFOLLOW, dir_fd=place)
    else:
        above = os.fsencode("/".join(source.names[:-1]) or ".")
        base = open_beneath(source.root, above, _PARENT)
        manifest, root = Manifest.of([read_entry(name, status, found, _unread)]), os.dup(place)
    try:
        Builder(
            root,
            manifest=manifest,
            base=(base, manifest),
            share=False,
            content=_no_content,
            stop=stop,
            note=note,
        ).build()
    finally:
        os.close(root)
        if base != found:
            os.close(base)


def _unread(path: str, status: os.stat_result, found: int) -> str:
    """Nothing is compared later, so no digest is needed."""
    return ""


def _no_content(entry: TreeEntry) -> list[tuple[int, bytes]]:
    raise AssertionError(f"{entry.path!r} is in the base")
