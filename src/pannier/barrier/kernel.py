"""The kernel's seccomp notifications (seccomp_unotify(2)): to receive, look up and answer them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pannier.host.ioctls import control

# _IOWR('!', 0, struct seccomp_notif), _IOWR('!', 1, struct seccomp_notif_resp), _IOW('!', 2, __u64)
_RECEIVE, _SEND, _ID_VALID = 0xC0502100, 0xC0182101, 0x40082102
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
"""id, pid, flags, and struct seccomp_data: nr, arch, instruction pointer, six arguments."""
_RESPONSE = struct.Struct("=QqiI")
"""id, return value, errno, flags."""
_IDENT = struct.Struct("=Q")

_X32 = 0x40000000  # this bit is set in the number of an x32 call; the rest is as on x86_64

# AUDIT_ARCH_*, and the numbers from the kernel's tables.
_CALLS = {
    0xC000003E: {74: "fsync", 75: "fdatasync", 162: "sync", 306: "syncfs", 26: "msync"},  # x86_64
    0x40000003: {118: "fsync", 148: "fdatasync", 36: "sync", 344: "syncfs", 144: "msync"},  # i386
    0xC00000B7: {82: "fsync", 83: "fdatasync", 81: "sync", 267: "syncfs", 227: "msync"},  # aarch64
    0x40000028: {118: "fsync", 148: "fdatasync", 36: "sync", 373: "syncfs", 144: "msync"},  # arm
}


@dataclass(frozen=True, slots=True)
class Notification:
    """A system call that waits.

    Attributes:
        ident: the kernel's cookie for it.
        tid: the calling thread, in this process's pid namespace; 0 where that does not show it.
        name: of the call; ``unknown`` where this module's table does not have its number.
        arguments: six registers, as unsigned 64 bit.
    """

    ident: int
    tid: int
    name: str
    arguments: tuple[int, ...]

    @property
    def fd(self) -> int | None:
        """The descriptor that the call is about, -1 if negative; None where it has none."""
        if self.name not in ("fsync", "fdatasync", "syncfs"):
            return None
        number = self.arguments[0] & 0xFFFFFFFF
        return number if number < 1 << 31 else -1


def receive(listener: int) -> Notification | None:
    """Take the next call off the listener's queue; None where it was withdrawn meanwhile.

    To be called only when the listener is readable: it would block otherwise.
    """
    buffer = bytearray(_NOTIFICATION.size)
    try:
        control(listener, _RECEIVE, buffer)
    except FileNotFoundError:
        return None
    ident, tid, _flags, number, arch, _pointer, *arguments = _NOTIFICATION.unpack(buffer)
    if arch == 0xC000003E:
        number &= ~_X32
    name = _CALLS.get(arch, {}).get(number, "unknown")
    return Notification(ident, tid, name, tuple(arguments))


def let_continue(listener: int, ident: int) -> bool:
    """Let the kernel perform the call; False where nobody waits for it any more."""
    try:
        control(listener, _SEND, bytearray(_RESPONSE.pack(ident, 0, 0, _CONTINUE)))
    except FileNotFoundError:
        return False
    return True


def answer(listener: int, ident: int, error: int) -> bool:
    """Let the call return: 0, or with an errno. False where nobody waits for it any more."""
    try:
        control(listener, _SEND, bytearray(_RESPONSE.pack(ident, 0, -error, 0)))
    except FileNotFoundError:
        return False
    return True


def is_waiting(listener: int, ident: int) -> bool:
    """Whether the call was received, and its thread still waits for the answer."""
    try:
        control(listener, _ID_VALID, _IDENT.pack(ident))
    except FileNotFoundError:
        return False
    return True
