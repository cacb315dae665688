"""Copying trees of files that somebody else made, by rsync: it knows all that a file can be, and copies again what has changed.

A second pass removes what is gone and writes what differs, which neither cp nor tar do. What rsync does not know are the
flags of chattr: see :mod:`pannier.storage.tree.flags`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO

from pannier.core.errors import Conflict, PoolFull, StorageError
from pannier.host import process
from pannier.host.process import Failing, Finished

_SAME = (
    *("-aHAXS", "--numeric-ids", "--delete"),
    "--modify-window=-1",
    "--filter=-x btrfs.*",
)
"""Everything but what a btrfs keeps in attributes of its own, such as its compression: no other file system takes those.

Without that window, times within one second are the same to rsync: a file that was written twice in it would not be copied again.
"""
_FAILING = Failing(
    error=StorageError,
    missing=StorageError,
    remedy="see what it says, then do it again",
    install="apt install rsync, or what your system has for it",
)
_LONGEST_SECONDS = 30 * 24 * 3600.0
"""Of one pass: in a month a slow disk reads 25 TB. A pass that somebody waits for is ended by whoever gives up."""
_PARTIAL, _VANISHED = 23, 24
_NO_ROOM = ("No space left on device", "Disk quota exceeded")
_SHOWN = 5
"""So many differences are named."""


async def check_installed() -> None:
    """Raise StorageError where there is no rsync."""
    await process.run(("rsync", "--version"), timeout_s=60.0, failing=_FAILING)


async def copy(source: Path, target: Path, *, in_use: bool, called: str = "") -> None:
    """Make one directory what another one is; what is the same already stays. Cancelling ends it.

    Args:
        in_use: files may change and go meanwhile; what did not arrive is left to the next pass.
        called: what people call the source; its path, if nothing is said.

    Raises:
        PoolFull: the target has no room for it.
        Conflict: a file went meanwhile, and it is not ``in_use``.
        StorageError: something cannot be read or written; or there is no rsync.
    """
    ended = await _run((*_SAME, *_ends(source, target)), stdout=None)
    if any(words in ended.stderr for words in _NO_ROOM):
        raise PoolFull(
            f"{called or source} does not fit: {_what_failed(ended)}",
            remedy="give the volume more room with -o size=, or make room in the pool",
        )
    if ended.status == 0 or (in_use and ended.status in (_PARTIAL, _VANISHED)):
        return
    if ended.status == _VANISHED:
        raise changed(source, _what_failed(ended))
    raise StorageError(
        f"{called or source} cannot be copied: {_what_failed(ended)}",
        remedy="see to that file, then do it again",
    )


async def check_same(source: Path, target: Path) -> None:
    """Read every file of both, and compare checksums and attributes. Nothing is changed.

    Raises:
        Conflict: something differs; the message names it.
        StorageError: something cannot be read.
    """
    with tempfile.TemporaryFile() as found:
        ended = await _run(
            (*_SAME, "-c", "-n", "--out-format=%i %n", *_ends(source, target)), stdout=found
        )
        found.seek(0)
        lines = [found.readline().decode(errors="replace").strip() for _ in range(_SHOWN)]
    if ended.status not in (0, _VANISHED):
        raise StorageError(
            f"{source} cannot be compared: {_what_failed(ended)}",
            remedy="see to that, then do it again",
        )
    if differing := [line.partition(" ")[2] for line in lines if line]:
        raise changed(source, ", ".join(differing))


def changed(source: Path, what: str) -> Conflict:
    """The error for a source that did not stay as it was."""
    return Conflict(
        f"{source} was changed while it was copied and compared: {what}",
        remedy="end whoever writes there, then do it again; nothing is left of the new volume",
    )


async def _run(arguments: tuple[str, ...], *, stdout: IO[bytes] | None) -> Finished:
    running = await process.start(
        ("rsync", *arguments),
        stdout=None if stdout is None else stdout.fileno(),
        failing=_FAILING,
    )
    return await running.wait(timeout_s=_LONGEST_SECONDS)


def _ends(source: Path, target: Path) -> tuple[str, str, str]:
    return "--", f"{source}/", f"{target}/"


def _what_failed(ended: Finished) -> str:
    """The first thing that rsync could not do; its last words only count them."""
    said = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    named = [line for line in said if not line.startswith(("rsync error:", "rsync warning:"))]
    return named[0].removeprefix("rsync: ") if named else ended.last_words
