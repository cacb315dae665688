"""Reads and sync calls that the kernel performs at the same time, for one thread (io_submit(2)).

Threads would do it, too, but each costs more than what it waits for. What cannot be begun in this way, since an old kernel or a
limit (fs.aio-max-nr) forbids it, is done one after the other.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_MOST = 16
"""Performed at once. Disks get hardly faster with more, and each context takes its number from fs.aio-max-nr: 65,536 for all
programs of a machine."""
_MOST_IN_USE = 8
"""Contexts that are in use at the same time: the kernel's threads for it serve other programs and disks, too, and one disk that hangs
must not take all of them. Who gets none uses the usual system calls."""
_NUMBERS = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2)}
_SETUP, _GETEVENTS, _SUBMIT = _NUMBERS.get(platform.machine(), (-1,) * 3)
"""The numbers of the system calls."""
_PREAD, _FSYNC, _FDSYNC = 0, 2, 3
_REQUEST = struct.Struct("<QIiHhIQQqQII")
"""``struct iocb``: our number, key, flags, operation, priority, descriptor, buffer, bytes, offset, and unused ones."""
_EVENT = struct.Struct("<QQqq")
"""``struct io_event``: our number, the request's address, its result and a second one."""

_libc = ctypes.CDLL(None, use_errno=True)

_Operation = tuple[int, int, int, int, int]
"""Which, descriptor, the buffer's address, bytes, offset."""


def sync_files(
    files: Sequence[int],
    *,
    data_only: Sequence[bool],
    meanwhile: Callable[[], None] | None = None,
) -> list[int]:
    """Call fsync, or fdatasync where ``data_only``, for all open files at once. The errno of each; 0 for success.

    Args:
        meanwhile: what this thread does after they have begun. It raises nothing.
    """
    asked = zip(files, data_only, strict=True)
    operations = [(_FDSYNC if only else _FSYNC, fd, 0, 0, 0) for fd, only in asked]
    return [max(0, -result) for result in _perform(operations, meanwhile)]


def read_pieces(fd: int, pieces: Sequence[tuple[int, int, int]]) -> list[int]:
    """Read pieces of a file into memory, all at once.

    Args:
        pieces: of each the offset in the file, its bytes, and the address of the memory, which stays there meanwhile.

    Returns:
        The bytes that were read of each: fewer at the file's end.

    Raises:
        OSError: one cannot be read.
    """
    found = _perform([(_PREAD, fd, address, size, at) for at, size, address in pieces])
    for got in found:
        if got < 0:
            raise OSError(-got, os.strerror(-got))
    return found


def _perform(
    operations: Sequence[_Operation], meanwhile: Callable[[], None] | None = None
) -> list[int]:
    results: list[int] = []
    for at in range(0, len(operations), _MOST):
        results += _perform_some(operations[at : at + _MOST], meanwhile)
        meanwhile = None
    return results


def _perform_some(
    operations: Sequence[_Operation], meanwhile: Callable[[], None] | None
) -> list[int]:
    if len(operations) > 1 or meanwhile is not None:
        with _context() as context:
            if context is not None:
                return context.perform(operations, meanwhile)
    if meanwhile is not None:
        meanwhile()
    return [_one(each) for each in operations]


def _one(operation: _Operation) -> int:
    """The same by the usual system call: what it returns, or minus its errno."""
    which, fd, address, size, at = operation
    try:
        if which == _PREAD:
            memory = (ctypes.c_char * size).from_address(address)
            return os.preadv(fd, [memory], at)
        (os.fsync if which == _FSYNC else os.fdatasync)(fd)
    except OSError as error:
        return -(error.errno or errno.EIO)
    return 0


class _Context:
    """For one thread at a time, and kept for the next one: there are :data:`_MOST_IN_USE` at most.

    Raises:
        OSError: the kernel gives none.
    """

    def __init__(self) -> None:
        self._id = ctypes.c_ulong(0)
        _system_call(_SETUP, _MOST, ctypes.byref(self._id))
        self._requests = ctypes.create_string_buffer(_REQUEST.size * _MOST)
        self._events = ctypes.create_string_buffer(_EVENT.size * _MOST)
        first = ctypes.addressof(self._requests)
        self._addresses = (ctypes.c_void_p * _MOST)(
            *(first + _REQUEST.size * at for at in range(_MOST))
        )

    def perform(
        self, operations: Sequence[_Operation], meanwhile: Callable[[], None] | None
    ) -> list[int]:
        """Perform at most :data:`_MOST` at once, and wait for all. Their results, or minus their errno."""
        for at, (which, fd, address, size, offset) in enumerate(operations):
            _REQUEST.pack_into(
                self._requests, _REQUEST.size * at,
                at, 0, 0, which, 0, fd, address, size, offset, 0, 0, 0,
            )  # fmt: skip
        results: dict[int, int] = {}
        begun = self._begin(len(operations))
        if meanwhile is not None:
            meanwhile()
        while len(results) < begun:
            results.update(self._ended(begun - len(results)))
        rest = range(begun, len(operations))
        results.update((at, _one(operations[at])) for at in rest)
        return [results[at] for at in range(len(operations))]

    def _begin(self, count: int) -> int:
        """Begin the first ``count`` requests. How many the kernel took: it stops at one that cannot be begun so."""
        begun = 0
        while begun < count:
            first = ctypes.byref(self._addresses, begun * ctypes.sizeof(ctypes.c_void_p))
            try:
                begun += _system_call(_SUBMIT, self._id, count - begun, first)
            except OSError:
                break  # the usual system call says what is wrong with it
        return begun

    def _ended(self, count: int) -> Iterator[tuple[int, int]]:
        """Wait until so many have ended: their numbers and results."""
        try:
            got = _system_call(_GETEVENTS, self._id, count, count, self._events, None)
        except InterruptedError:
            return
        for at in range(got):
            number, _, result, _ = _EVENT.unpack_from(self._events, _EVENT.size * at)
            yield number, result


_free: list[_Context] = []
_in_use = threading.BoundedSemaphore(_MOST_IN_USE)


@contextmanager
def _context() -> Iterator[_Context | None]:
    """A context that nobody else uses meanwhile; None where none is to be had."""
    if not _in_use.acquire(blocking=False):
        yield None
        return
    try:
        context = _kept_or_made()
        yield context
        if context is not None:
            _free.append(context)
    finally:
        _in_use.release()


def _kept_or_made() -> _Context | None:
    try:
        return _free.pop()
    except IndexError:
        return _made()


def _made() -> _Context | None:
    try:
        return _Context()
    except OSError:
        return None


def _system_call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
