"""Whether anything in a tree was changed between two looks, by what the kernel notes of each change."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pannier.storage.blocking import told_as_storage_error
from pannier.storage.tree.rsync import changed
from pannier.storage.tree.walk import everything


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of a whole tree.

    Attributes:
        sums: the same as long as nothing was written, made, renamed, removed or given other attributes.
        newest: path of what was changed last, and when, in nanoseconds.
    """

    sums: int
    newest: str
    changed_ns: int

    def changed_since(self, before: Fingerprint) -> str:
        """What was changed between two looks, in words; empty where nothing was."""
        if self.sums == before.sums:
            return ""
        if self.changed_ns > before.changed_ns:
            return self.newest
        return "something was removed"


def fingerprint(root: Path) -> Fingerprint:
    """Look at everything in a tree, without reading any file. Blocks.

    Raises:
        Conflict: something went meanwhile.
        StorageError: it cannot be read.
    """
    with told_as_storage_error(f"look through {root}"):
        try:
            return _fingerprint(root)
        except FileNotFoundError as error:
            raise changed(root, str(error.filename)) from error


def _fingerprint(root: Path) -> Fingerprint:
    top = os.lstat(root)
    sums, newest, changed_ns = _sum(".", top), ".", top.st_ctime_ns
    for path, _, status in everything(root):
        sums += _sum(path, status)
        if status.st_ctime_ns > changed_ns:
            newest, changed_ns = path, status.st_ctime_ns
    return Fingerprint(sums, newest, changed_ns)


def _sum(path: str, status: os.stat_result) -> int:
    # Added up, since directories need not list their entries in the same order twice.
    seen = (
        path,
        status.st_ino,
        status.st_mode,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    return int.from_bytes(hashlib.sha256(os.fsencode(repr(seen))).digest(), "big")
