"""The local sync of a group of sync calls: what each is told is what this node's disk said.

Each open file of the group is synced by itself, so nobody waits for what others wrote to the volume. Each call is synced by
its own descriptor, and told what that has not been told yet. The kernel syncs all files of a group at the same time: so
they share the disk's flushes and the commits of ext4's journal.

What a call is answered:

- fsync, fdatasync and syncfs by the caller's own open file description: the result. The kernel would do the same again,
  and what others wrote to the file meanwhile would be on this disk only.
- ``sync``: the kernel performs it, since it concerns every file system of the machine.
- msync: the kernel performs it, since it also checks the addresses. By then there is nothing left to write.
- A descriptor that could only be opened anew: the kernel performs it, and tells what the caller's own has to be told.
- A descriptor that is closed by now, or another file's: success, once the whole file system is synced. The call began
  before that.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pannier.barrier.borrowing import Borrowed, borrowed
from pannier.barrier.calls import BY_KERNEL, DONE, Answer, Mapped, SyncCall
from pannier.host.syncing import start_writing, sync_file_system, write_out
from pannier.host.threads import in_own_thread
from pannier.host.together import sync_files

_BORROWED = 64
"""Files that a group has open at a time."""
_PERFORM = {"fsync": os.fsync, "fdatasync": os.fdatasync, "syncfs": sync_file_system}
_OF_ONE_FILE = frozenset(("fsync", "fdatasync"))
_OF_THE_CALLER = frozenset((errno.EBADF, errno.EINVAL))
"""What a call is told that cannot be done, such as one on an O_PATH descriptor. The disk was not asked."""


@dataclass(frozen=True, slots=True)
class SyncedCall:
    """What the local disk said.

    Attributes:
        answer: for the call, if the rest of what it waits for succeeds.
        whole: whether the whole file system has still to be synced for it.
        refused: whether the disk refused something that was written.
    """

    answer: Answer
    whole: bool = False
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Steps:
    """What the thread does besides, for a group of which every call names a file. Neither raises.

    Attributes:
        given: when the disk has taken all that was written to the files, and only its flush, and what the file system does
            for that, is left; the flush goes on meanwhile. Left out where that moment is not known.
        durable: when everything is durable. Left out where the disk refused something.
    """

    given: Callable[[], None] | None
    durable: Callable[[], None]


async def sync_group(
    calls: Sequence[SyncCall], *, root: Path, steps: Steps | None = None
) -> list[SyncedCall]:
    """Sync the files of a group's calls, and nothing else. One result for each call; raises nothing.

    The thread is shared with nothing that could make it wait.

    Args:
        root: a directory on the file system of the volume.
    """
    asked = [at for at, call in enumerate(calls) if call.file or call.mapped]
    found = dict.fromkeys(range(len(calls)), SyncedCall(BY_KERNEL, whole=True))
    if not all(call.file and call.name in _OF_ONE_FILE for call in calls):
        steps = None
    if asked:
        work = in_own_thread(partial(_sync_all, [calls[at] for at in asked], root, steps))
        found.update(zip(asked, await work, strict=True))
    return list(found.values())


def _sync_all(calls: Sequence[SyncCall], root: Path, steps: Steps | None) -> list[SyncedCall]:
    try:
        device = os.stat(root).st_dev
    except OSError:  # it was unmounted meanwhile
        return [SyncedCall(BY_KERNEL, whole=call.is_there()) for call in calls]
    given = steps.given if steps is not None and len(calls) <= _BORROWED else None
    batches = (calls[at : at + _BORROWED] for at in range(0, len(calls), _BORROWED))
    synced = [each for batch in batches for each in _sync_batch(batch, device, given)]
    if steps is not None and not any(each.refused for each in synced):
        steps.durable()
    return synced


def _sync_batch(
    calls: Sequence[SyncCall], device: int, given: Callable[[], None] | None
) -> list[SyncedCall]:
    with ExitStack() as opened:
        files = [_file_of(call, opened, device) for call in calls]
        if len(files) > 1:
            for file in files:
                if isinstance(file, Borrowed):
                    start_writing(file.fd)
        if given is not None:
            files = [_given(file) for file in files]
            if not all(isinstance(file, Borrowed) for file in files):
                given = None
        at_once = _sync_at_once(calls, files, given)
        return [at_once.get(at) or _sync(call, files[at], device) for at, call in enumerate(calls)]


def _sync_at_once(
    calls: Sequence[SyncCall],
    files: Sequence[Borrowed | SyncedCall],
    meanwhile: Callable[[], None] | None,
) -> dict[int, SyncedCall]:
    """What the disk said of all single files, by their place in ``calls``: so they share its flushes."""
    theirs = {
        at: file
        for at, (call, file) in enumerate(zip(calls, files, strict=True))
        if isinstance(file, Borrowed) and call.name in _OF_ONE_FILE
    }
    errors = sync_files(
        [file.fd for file in theirs.values()],
        data_only=[calls[at].name == "fdatasync" for at in theirs],
        meanwhile=meanwhile,
    )
    return {
        at: _said(error, file) for (at, file), error in zip(theirs.items(), errors, strict=True)
    }


def _said(error: int, file: Borrowed) -> SyncedCall:
    return _failed(error) if error else SyncedCall(DONE if file.own else BY_KERNEL)


def _given(file: Borrowed | SyncedCall) -> Borrowed | SyncedCall:
    """Wait until the disk has taken what was written to a file. What it refused is told only once: so it is the result."""
    if isinstance(file, SyncedCall):
        return file
    try:
        write_out(file.fd)
    except OSError as error:
        return _failed(error.errno or errno.EIO)
    return file


def _file_of(call: SyncCall, opened: ExitStack, device: int) -> Borrowed | SyncedCall:
    """The file that is to be synced for a call, or the result if there is none."""
    if call.file is None:
        return SyncedCall(BY_KERNEL, whole=True)
    try:
        file = opened.enter_context(borrowed(call, device=device))
    except OSError:  # no file that could be had, or its caller has ended
        return SyncedCall(BY_KERNEL, whole=call.is_there())
    if file is None:  # its caller has ended, or its descriptor is another file's
        return SyncedCall(DONE, whole=call.is_there())
    return file


def _sync(call: SyncCall, file: Borrowed | SyncedCall, device: int) -> SyncedCall:
    if call.mapped is not None:
        return _sync_mapped(call.pid, call.mapped, device)
    if isinstance(file, SyncedCall):
        return file
    return _said(_error_of(call.name, file.fd), file)


def _failed(error: int) -> SyncedCall:
    return SyncedCall(Answer(error), refused=error not in _OF_THE_CALLER)


def sync_stacked(call: SyncCall) -> int:
    """Sync the file system of a call's file, which may lie in a volume. Returns the errno; 0 for success.

    It may hang for ever, and raises nothing.
    """
    try:
        with borrowed(call, device=None) as file:
            return _error_of("syncfs", file.fd) if file is not None else 0
    except OSError:
        return 0  # no file that could be had


def _error_of(name: str, fd: int) -> int:
    try:
        _PERFORM[name](fd)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


# -- msync -----------------------------------------------------------------------------------------


def _sync_mapped(tid: int, mapped: Mapped, device: int) -> SyncedCall:
    """Sync the files of the volume that are mapped there; all of it if that cannot be seen."""
    try:
        names = _mappings(tid, mapped, device)
        for name in names or ():
            fd = os.open(f"/proc/{tid}/map_files/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if error := _error_of("fdatasync", fd):
                    return _failed(error)
            finally:
                os.close(fd)
    except (OSError, ValueError):
        return SyncedCall(BY_KERNEL, whole=True)
    return SyncedCall(BY_KERNEL, whole=names is None)


def _mappings(tid: int, mapped: Mapped, device: int) -> list[str] | None:
    """Names in ``map_files`` of the volume's files; None if a file of another file system is mapped there, which may
    lie in the volume.

    Raises:
        OSError, ValueError: /proc cannot be read, or has an unexpected form.
    """
    names = []
    with open(f"/proc/{tid}/maps", "rb") as lines:
        for line in lines:
            span, way, _offset, where, inode = line.split()[:5]
            start, _, end = span.partition(b"-")
            if int(end, 16) <= mapped.start or int(start, 16) >= mapped.end:
                continue
            if way[3:4] != b"s" or not int(inode):
                continue
            major, _, minor = where.partition(b":")
            if os.makedev(int(major, 16), int(minor, 16)) != device:
                return None
            names.append(f"{int(start, 16):x}-{int(end, 16):x}")
    return names
