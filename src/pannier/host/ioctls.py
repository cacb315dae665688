"""The ioctl system call, for blocks of any size, while the other threads go on."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def control(fd: int, request: int, argument: bytes | bytearray | int = 0) -> int:
    """Call ioctl and return its result; raises OSError as the kernel reports it.

    ``fcntl.ioctl`` keeps all threads of the process waiting for as long as the call takes, if its
    block has more than 1,024 bytes. A disk that crawls would stop all of pannierd.

    Args:
        argument: a block that the kernel only reads (bytes), one that it also writes (bytearray), or a
            number.
    """
    given: ctypes.c_ulong | ctypes.c_char_p | ctypes.Array[ctypes.c_char]
    match argument:
        case int():
            given = ctypes.c_ulong(argument)
        case bytes():
            given = ctypes.c_char_p(argument)
        case bytearray():
            given = (ctypes.c_char * len(argument)).from_buffer(argument)
    result = int(_libc.ioctl(fd, ctypes.c_ulong(request), given))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
